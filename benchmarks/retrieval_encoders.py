"""Encoders compared: milliseconds per question, and hit@1 of the nearest passage, on a public question set.

    python benchmarks/retrieval_encoders.py ONNX_FOLDER STATIC_FOLDER [--set pubmedqa] [--queries 200] [--limit N]

The folders are made first if they are missing: ``export_onnx`` takes minutes, ``StaticEncoder.distil`` half a minute.
Reads ``<set>_retrieval.json.gz`` from RAGFT_BENCH_DATA (default ../shared/bench). One thread; questions are encoded
one by one, the encoders in turns, and the median of each is told. Intervals of hit@1: paired bootstrap over questions,
2,000 resamples, seed 0.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from ragft_plugin.retrieval import MiniLMEncoder, OnnxEncoder, StaticEncoder, export_onnx
from ragft_plugin.types import Encoder


def opened(onnx: Path, static: Path) -> dict[str, Encoder]:
    """Return the encoders, made if they are missing."""
    if not static.exists():
        StaticEncoder.distil().save(static)
    int8 = OnnxEncoder(onnx) if onnx.exists() else export_onnx(onnx)
    return {"MiniLM, torch": MiniLMEncoder(), "MiniLM, ONNX int8": int8, "static": StaticEncoder.load(static)}


def main() -> None:
    """Measure speed, then quality."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("static", type=Path)
    parser.add_argument("--set", default="pubmedqa")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--limit", type=int, help="passages and questions, for a quick look")
    options = parser.parse_args()
    path = Path(os.environ.get("RAGFT_BENCH_DATA", "../shared/bench")) / f"{options.set}_retrieval.json.gz"
    if not path.exists():
        sys.exit(f"{path} is not there; set RAGFT_BENCH_DATA")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        data = json.load(file)
    import torch

    torch.set_num_threads(1)
    ids = [str(id) for id in data["docs"]][: options.limit]
    row = {id: i for i, id in enumerate(ids)}
    asked = [q for q in data["queries"] if any(str(id) in row for id in q["rel_docs"])]
    questions = [query["question"] for query in asked]
    relevant = [{row[str(id)] for id in query["rel_docs"] if str(id) in row} for query in asked]
    encoders = opened(options.onnx, options.static)
    for encoder in encoders.values():
        encoder.encode(questions[:10])
    times: dict[str, list[float]] = {name: [] for name in encoders}
    for question in questions[: options.queries]:
        for name, encoder in encoders.items():
            started = time.perf_counter()
            encoder.encode([question])
            times[name].append(time.perf_counter() - started)
    slow = float(np.median(times["MiniLM, torch"]))
    draws = np.random.default_rng(0).integers(0, len(asked), (2000, len(asked)))
    first: np.ndarray | None = None
    print(f"{options.set}: {len(ids)} passages, {len(asked)} questions, times of {len(times['static'])} questions")
    for name, encoder in encoders.items():
        started = time.perf_counter()
        passages = encoder.encode([data["docs"][id] for id in ids])
        seconds = time.perf_counter() - started
        nearest = (encoder.encode(questions) @ passages.T).argmax(axis=1)
        hits = np.array([int(n) in wanted for n, wanted in zip(nearest, relevant, strict=True)], dtype=float)
        first = hits if first is None else first
        low, high = np.quantile((hits - first)[draws].mean(axis=1), [0.025, 0.975])
        p50, p95 = np.quantile(times[name], [0.5, 0.95]) * 1e3
        print(
            f"  {name:18s} p50 {p50:7.3f} ms  p95 {p95:7.3f} ms  {slow / p50 * 1e3:6.1f} x  passages {seconds:6.1f} s  "
            f"hit@1 {hits.mean():.4f}  against torch {(hits - first).mean():+.4f} [{low:+.4f}, {high:+.4f}]"
        )


if __name__ == "__main__":
    main()
