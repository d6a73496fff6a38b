"""Quality of the knowledge base: dense, BM25 and both, on public question sets.

    python benchmarks/retrieval_quality.py [--sets pubmedqa nq pubmedqa-sentences] [--vectors FOLDER] [--json FILE]

Reads ``<set>_retrieval.json.gz`` from RAGFT_BENCH_DATA (default ../shared/bench). ``pubmedqa-sentences`` cuts the
abstracts into sentences, each relevant where its abstract is: short passages, many alike. Encoding takes minutes; with
``--vectors`` it is kept. Nothing is fitted: the modes are the package's defaults. Metrics are ir_measures'; hit@1 is
also counted by hand and must agree. Intervals: paired bootstrap over questions, 2,000 resamples, seed 0.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
from ir_measures import RR, Success, nDCG

from ragft_plugin.retrieval import KnowledgeBase, MiniLMEncoder
from ragft_plugin.types import Passage

MEASURES = {"hit@1": Success @ 1, "hit@5": Success @ 5, "nDCG@10": nDCG @ 10, "MRR@10": RR @ 10}
MODES = ("dense", "bm25", "rrf", "hybrid")


class Kept:
    """An encoder that keeps what it has encoded in a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._encoder, self._folder = MiniLMEncoder(), folder
        self.fingerprint = self._encoder.fingerprint

    def encode(self, texts: Any) -> Any:
        """Encode, or read what was encoded."""
        if self._folder is None:
            return self._encoder.encode(texts)
        name = hashlib.sha256(json.dumps([self.fingerprint, *texts]).encode()).hexdigest()[:24]
        path = self._folder / f"{name}.npy"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            np.save(path, self._encoder.encode(texts))
        return np.load(path)


def load(name: str) -> tuple[dict[str, str], list[str], list[set[str]]]:
    """Return documents, questions, and the relevant documents of each question."""
    if name == "pubmedqa-sentences":
        documents, questions, relevant = load("pubmedqa")
        parts = {id: [s for s in re.split(r"(?<=[.?!])\s+(?=[A-Z])", text) if s] for id, text in documents.items()}
        sentences = {f"{id}#{n}": sentence for id, cut in parts.items() for n, sentence in enumerate(cut)}
        return sentences, questions, [{f"{id}#{n}" for id in ids for n in range(len(parts[id]))} for ids in relevant]
    path = Path(os.environ.get("RAGFT_BENCH_DATA", "../shared/bench")) / f"{name}_retrieval.json.gz"
    if not path.exists():
        sys.exit(f"{path} is not there; set RAGFT_BENCH_DATA")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        data = json.load(file)
    documents = {str(id): text for id, text in data["docs"].items()}
    relevant = [{str(id) for id in query["rel_docs"]} for query in data["queries"]]
    return documents, [query["question"] for query in data["queries"]], relevant


def judge(found: list[list[Passage]], relevant: list[set[str]]) -> dict[str, np.ndarray]:
    """Return each measure for every question, shape (n,)."""
    qrels = [ir_measures.Qrel(str(i), id, 1) for i, ids in enumerate(relevant) for id in ids]
    # Ranks, not scores: ir_measures breaks ties by id.
    run = [ir_measures.ScoredDoc(str(i), p.id, -r) for i, ps in enumerate(found) for r, p in enumerate(ps)]
    values = {name: np.zeros(len(relevant)) for name in MEASURES}
    names = {measure: name for name, measure in MEASURES.items()}
    for metric in ir_measures.iter_calc(list(MEASURES.values()), qrels, run):
        values[names[metric.measure]][int(metric.query_id)] = metric.value
    by_hand = np.array([bool(ps) and ps[0].id in ids for ps, ids in zip(found, relevant, strict=True)])
    if not np.array_equal(by_hand, values["hit@1"] == 1):
        raise SystemExit("hit@1 counted by hand and by ir_measures differ")
    return values


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean."""
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def measure(name: str, vectors: Path | None) -> dict[str, Any]:
    """Build a knowledge base of one set and print a row per mode."""
    documents, questions, relevant = load(name)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, KnowledgeBase.create(Path(folder) / "kb", Kept(vectors)) as kb:
        kb.add([Passage(id, text) for id, text in documents.items()])
        print(
            f"\n{name}: {len(kb)} passages, {len(questions)} questions; built in {time.perf_counter() - started:.1f} s"
        )
        encoded = kb.encode(questions)
        judged = {}
        for mode in MODES:
            judged[mode] = judge(kb.retrieve(questions, 10, mode=mode, vectors=encoded), relevant)
            shown = "  ".join(f"{key} {values.mean():.4f}" for key, values in judged[mode].items())
            low, high = interval(judged[mode]["hit@1"])
            print(f"  {mode:8s} {shown}   hit@1 95 % [{low:.3f}, {high:.3f}]")
    better = max(("dense", "bm25"), key=lambda mode: judged[mode]["hit@1"].mean())
    gain = judged["hybrid"]["hit@1"] - judged[better]["hit@1"]
    low, high = interval(gain)
    verdict = "met" if gain.mean() >= -0.005 else "MISSED"
    print(f"  hybrid - {better}: {gain.mean():+.4f} [{low:+.4f}, {high:+.4f}]; bar >= -0.005: {verdict}")
    return {
        "passages": len(documents),
        "questions": len(questions),
        "modes": {mode: {key: float(v.mean()) for key, v in values.items()} for mode, values in judged.items()},
        "gain": {"over": better, "mean": float(gain.mean()), "ci95": [low, high]},
    }


def main() -> None:
    """Measure every set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["pubmedqa", "nq", "pubmedqa-sentences"])
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {name: measure(name, options.vectors) for name in options.sets}
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
