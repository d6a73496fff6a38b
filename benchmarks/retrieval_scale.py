"""The knowledge base at a million passages: recall, latency, opening, adding, memory.

    python benchmarks/retrieval_scale.py build FOLDER [--passages 1000000] [--directions own|shared] [--index KIND]
    python benchmarks/retrieval_scale.py measure FOLDER [--queries 1000] [--json FILE]

Building takes minutes and about 7 GB of memory. Vectors are drawn from the seeded mixtures of ``retrieval_speed``:
5,000 clusters in 384 dimensions, noise within a cluster spans 24 directions (the intrinsic dimension; a
maximum-likelihood estimate from the neighbours of the queries is printed beside). Queries come from the same mixture
with another seed. ``measure`` drops the files from the page cache first, where the system allows it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from retrieval_speed import DIM, WORDS, Given, clustered, passages

from ragft_plugin.retrieval import KnowledgeBase

NOTHING = np.zeros((0, DIM), np.float32)


def memory(field: str) -> float:
    """Return a field of /proc/self/status in MB, NaN where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":")), float("nan"))


def dimension(distances: np.ndarray) -> float:
    """Return the maximum-likelihood intrinsic dimension (Levina & Bickel 2004) from sorted distances, shape (n, k)."""
    logs = np.log(distances[:, -1:] / np.maximum(distances[:, :-1], 1e-12))
    return float(1.0 / np.mean(logs.mean(axis=1)))


def build(folder: Path, count: int, index: Any, shared: bool) -> None:
    """Make the knowledge base."""
    vectors = clustered(count + 2000, seed=1, shared=shared)
    started = time.perf_counter()
    with KnowledgeBase.create(folder / "kb", Given(NOTHING)) as kb:
        for start in range(0, count, 50_000):
            end = min(start + 50_000, count)
            kb.add(passages(end - start, start), vectors=vectors[start:end])
            print(f"{end} passages, {time.perf_counter() - started:.0f} s, {memory('VmHWM'):.0f} MB peak", flush=True)
        added = time.perf_counter() - started
        kb.compact(index=index)
        noted = {
            "passages": count,
            "shared": shared,
            "add s": added,
            "compact s": time.perf_counter() - started - added,
        }
        (folder / "build.json").write_text(json.dumps({**noted, "peak MB": memory("VmHWM"), **kb.stats()}, default=str))
        print(json.dumps(kb.stats(), indent=1))


def prepare(folder: Path, count: int, queries: int, shared: bool) -> None:
    """Compute the true neighbours, exactly, and keep them."""
    vectors, asked = clustered(count + 2000, seed=1, shared=shared), clustered(queries, seed=2, shared=shared)
    scores, truth = faiss.knn(asked, vectors[:count], 20, metric=faiss.METRIC_INNER_PRODUCT)
    estimate = dimension(np.sqrt(np.maximum(2.0 - 2.0 * scores, 0.0)))
    np.savez(
        folder / "truth.npz", asked=asked, truth=truth[:, :10], more=vectors[count : count + 2000], estimate=estimate
    )


def measure(folder: Path, results: dict[str, Any]) -> None:
    """Open, search, add; print what it took."""
    noted = json.loads((folder / "build.json").read_text())
    kept = np.load(folder / "truth.npz")
    asked, truth, count = kept["asked"], kept["truth"], noted["passages"]
    results |= {
        "passages": count,
        "directions": "shared" if noted["shared"] else "own",
        "queries": len(asked),
        "intrinsic dimension, estimated": float(kept["estimate"]),
        "build": {key: noted[key] for key in ("add s", "compact s", "peak MB", "indexes", "bytes_on_disk", "memory")},
    }
    for path in (folder / "kb").rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    kb = KnowledgeBase.open(folder / "kb", encoder=Given(NOTHING))
    results["open, files not in the page cache, s"] = time.perf_counter() - started
    kb.close()
    before = memory("VmRSS")
    started = time.perf_counter()
    kb = KnowledgeBase.open(folder / "kb", encoder=Given(NOTHING))
    results["open again, s"] = time.perf_counter() - started
    with kb:
        results["memory after opening MB"] = {k: memory(k) - before for k in ("VmRSS",)} | {"anon": memory("RssAnon")}
        words = [f"{WORDS[q % 400]} {WORDS[q % 77]} {WORDS[q % 1999]}" for q in range(len(asked))]
        started = time.perf_counter()
        kb.retrieve(words[:1], 10, mode="dense", vectors=asked[:1])
        results["first query ms"] = 1e3 * (time.perf_counter() - started)
        for name, mode in (("dense, cold disk", "dense"), ("dense", "dense"), ("bm25", "bm25"), ("hybrid", "hybrid")):
            taken, hits = [], 0
            few = len(asked) if mode == "dense" else max(1, len(asked) // 5)
            for word, vector, wanted in list(zip(words, asked, truth, strict=True))[:few]:
                started = time.perf_counter()
                [found] = kb.retrieve([word], 10, mode=mode, vectors=vector[None])
                taken.append(1e3 * (time.perf_counter() - started))
                hits += len({p.metadata["n"] for p in found} & set(wanted.tolist()))
            p50, p95 = np.quantile(taken, [0.5, 0.95])
            results[name] = {"queries": few, "p50 ms": p50, "p95 ms": p95}
            if mode == "dense":
                results[name]["recall@10"] = hits / (10 * len(asked))
        results["dense, all queries in one call, ms a query"] = (
            1e3 * _timed(lambda: kb.retrieve(words, 10, mode="dense", vectors=asked)) / len(asked)
        )
        results["filter, first s"] = _timed(lambda: kb.retrieve(words[:1], 10, {"rare": True}, vectors=asked[:1]))
        results["filter, again ms"] = 1e3 * _timed(
            lambda: kb.retrieve(words[:1], 10, {"rare": True}, mode="dense", vectors=asked[:1])
        )
        broad = {"source": {"$in": [f"s{n}" for n in range(10)]}}
        kb.retrieve(words[:1], 10, broad, mode="dense", vectors=asked[:1])
        results["filter that a tenth passes, ms"] = 1e3 * float(
            np.median(
                [
                    _timed(lambda i=i: kb.retrieve(words[:1], 10, broad, mode="dense", vectors=asked[i : i + 1]))
                    for i in range(min(100, len(asked)))
                ]
            )
        )
        results["memory while searching MB"] = {k: memory(k) for k in ("VmRSS", "RssAnon", "RssFile", "VmHWM")}
        more = passages(2000, 10_000_000)
        for name, part in (("first", slice(0, 1000)), ("second", slice(1000, 2000))):
            ours, vectors = more[part], kept["more"][part]
            results[f"add 1000, {name}, s"] = _timed(lambda ours=ours, vectors=vectors: kb.add(ours, vectors=vectors))
        results["delete 1000 s"] = _timed(lambda: kb.delete([p.id for p in more[:1000]]))
        taken = [
            _timed(lambda i=i: kb.retrieve(words[:1], 10, mode="dense", vectors=asked[i : i + 1]))
            for i in range(min(200, len(asked)))
        ]
        results["dense, 1000 added and 1000 deleted, p50 ms"] = 1e3 * float(np.median(taken))
        kb.delete([p.id for p in more])
        results["passages afterwards"] = len(kb)


def _timed(run: Any) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Build or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "measure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--index", choices=["auto", "flat", "pq", "hnsw", "ivf"], default="auto")
    parser.add_argument("--directions", choices=["own", "shared"], default="own")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.what == "build":
        shared = options.directions == "shared"
        build(options.folder, options.passages, options.index, shared)
        prepare(options.folder, options.passages, options.queries, shared)
    else:
        results: dict[str, Any] = {}
        try:
            measure(options.folder, results)
        finally:
            print(json.dumps(results, indent=1, default=float))
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
