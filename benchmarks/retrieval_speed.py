"""Speed of the knowledge base beside the vector stores people use, with the same vectors and the same index kind.

    python benchmarks/retrieval_speed.py [--passages 13449] [--queries 1000] [--only search filter scale] [--json FILE]

Vectors are drawn from a seeded mixture of clusters: 384 dimensions, noise within a cluster spans 24 of them (the
intrinsic dimension), unit length. Stores are timed in alternating rounds in one process and the median of the rounds
is reported, so that a busy machine slows all alike. ``--only scale --passages 1000000`` takes an hour of CPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.types import Passage

DIM, INTRINSIC, K = 384, 24, 5
WORDS = [f"w{i}" for i in range(5000)]


def clustered(count: int, *, seed: int) -> np.ndarray:
    """Return unit vectors, shape (count, 384), float32, in clusters of about 200."""
    shape = np.random.default_rng(0)
    centres = shape.standard_normal((max(20, 5000), DIM)).astype(np.float32)
    basis = np.linalg.qr(shape.standard_normal((DIM, INTRINSIC)))[0].astype(np.float32)
    draw = np.random.default_rng(seed)
    vectors = np.empty((count, DIM), np.float32)
    for start in range(0, count, 65_536):
        size = min(65_536, count - start)
        noise = draw.standard_normal((size, INTRINSIC)).astype(np.float32) @ basis.T * 4.0
        vectors[start : start + size] = centres[draw.integers(0, len(centres), size)] + noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


class Given:
    """Encodes "<anything> <n>" as the n-th given vector: encoding is not what is measured."""

    fingerprint = f"given-{DIM}-{INTRINSIC}"

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def encode(self, texts: Sequence[str]) -> Any:
        """Look the vectors up."""
        return self._vectors[[int(text.rsplit(" ", 1)[1]) for text in texts]]


def passages(count: int, first: int = 0) -> list[Passage]:
    """Return passages of about 40 words after Zipf, each tenth of a thousand marked as rare."""
    draw = np.random.default_rng(first)
    made = []
    for n in range(first, first + count):
        words = " ".join(WORDS[min(z, 5000) - 1] for z in draw.zipf(1.3, 40))
        made.append(Passage(f"p{n}", f"{words} {n}", metadata={"source": f"s{n % 100}", "rare": n < 10, "n": n}))
    return made


def rounds(arms: dict[str, Callable[[], Any]], repeats: int = 7) -> dict[str, float]:
    """Return the median seconds of each arm over alternating rounds."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats + 1):
        for name, run in arms.items():
            started = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def community(vectors: np.ndarray, texts: list[Passage]) -> Any:
    """Return a community FAISS store over the same vectors, None where it is not installed."""
    try:
        from langchain_community.docstore.in_memory import InMemoryDocstore
        from langchain_community.vectorstores import FAISS
        from langchain_core.documents import Document
    except ImportError:
        return None
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    documents = {p.id: Document(page_content=p.text, metadata=dict(p.metadata)) for p in texts}
    return FAISS(lambda _: [], index, InMemoryDocstore(documents), {i: p.id for i, p in enumerate(texts)})


def llama_store(vectors: np.ndarray) -> Any:
    """Return LlamaIndex' FAISS store over the same vectors, None where it is not installed."""
    try:
        from llama_index.vector_stores.faiss import FaissVectorStore
    except ImportError:
        return None
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    return FaissVectorStore(index)


def search(count: int, queries: int, results: dict[str, Any]) -> None:
    """Compare unfiltered and filtered search with the stores, one query at a time."""
    vectors, asked = clustered(count, seed=1), clustered(queries, seed=2)
    texts = passages(count)
    raw = faiss.IndexFlatIP(DIM)
    raw.add(vectors)
    with tempfile.TemporaryDirectory() as folder, KnowledgeBase.create(Path(folder) / "kb", Given(vectors)) as kb:
        started = time.perf_counter()
        kb.add(texts)
        print(f"{count} passages added in {time.perf_counter() - started:.2f} s (encoding apart)")
        kb.compact(index="flat")
        words = [f"{WORDS[q % 400]} {WORDS[q % 77]} {WORDS[q % 1999]}" for q in range(queries)]
        arms: dict[str, Callable[[], Any]] = {
            "faiss alone": lambda: [raw.search(v[None], K) for v in asked],
            "knowledge base, dense": lambda: [
                kb.retrieve([w], K, mode="dense", vectors=v[None]) for w, v in zip(words, asked, strict=True)
            ],
            "knowledge base, bm25": lambda: [kb.retrieve([w], K, mode="bm25") for w in words],
            "knowledge base, hybrid": lambda: [
                kb.retrieve([w], K, vectors=v[None]) for w, v in zip(words, asked, strict=True)
            ],
        }
        store = community(vectors, texts)
        if store is not None:
            lists = [v.tolist() for v in asked]
            arms["community FAISS"] = lambda: [store.similarity_search_by_vector(v, k=K) for v in lists]
        llama = llama_store(vectors)
        if llama is not None:
            from llama_index.core.vector_stores.types import VectorStoreQuery

            asks = [VectorStoreQuery(query_embedding=v.tolist(), similarity_top_k=K) for v in asked]
            arms["LlamaIndex FAISS"] = lambda: [llama.query(a) for a in asks]
        taken = rounds(arms)
        for name, seconds in taken.items():
            print(f"  {name:24s} {1e3 * seconds / queries:7.3f} ms/query  {queries / seconds:8.0f}/s")
            results[name] = 1e3 * seconds / queries
        filtered = {
            f"filter 10 of {count}, {mode}": lambda mode=mode: [
                kb.retrieve([w], K, {"rare": True}, mode=mode, vectors=v[None])
                for w, v in zip(words, asked, strict=True)
            ]
            for mode in ("dense", "bm25", "hybrid")
        }
        counts = {len(kb.retrieve([w], K, {"rare": True}, mode="dense", vectors=asked[:1])[0]) for w in words[:50]}
        print(f"  a filter that matches 10 returns {counts} of k = {K}")
        for name, seconds in rounds(filtered).items():
            print(f"  {name:32s} {1e3 * seconds / queries:7.3f} ms/query")
            results[name] = 1e3 * seconds / queries


def scale(count: int, queries: int, results: dict[str, Any]) -> None:
    """Build a large knowledge base; measure recall, latency, opening and adding."""
    vectors, asked = clustered(count + 1000, seed=1), clustered(queries, seed=2)
    with tempfile.TemporaryDirectory() as folder:
        path, encoder = Path(folder) / "kb", Given(vectors)
        started = time.perf_counter()
        with KnowledgeBase.create(path, encoder) as kb:
            for start in range(0, count, 50_000):
                kb.add(passages(min(50_000, count - start), start))
            results["add s"] = time.perf_counter() - started
            started = time.perf_counter()
            kb.compact()
            results["compact s"] = time.perf_counter() - started
            results["indexes"] = kb.stats()["indexes"]
            results["bytes on disk"] = kb.stats()["bytes_on_disk"]
        started = time.perf_counter()
        kb = KnowledgeBase.open(path, encoder=encoder)
        results["cold open s"] = time.perf_counter() - started
        with kb:
            words = [f"{WORDS[q % 400]} {WORDS[q % 77]} {WORDS[q % 1999]}" for q in range(queries)]
            truth = faiss.knn(asked, vectors[:count], 10, metric=faiss.METRIC_INNER_PRODUCT)[1]
            for mode in ("dense", "bm25", "hybrid"):
                kb.retrieve(words[:1], 10, mode=mode, vectors=asked[:1])
                taken, hits = [], 0
                for word, vector, wanted in zip(words, asked, truth, strict=True):
                    started = time.perf_counter()
                    [found] = kb.retrieve([word], 10, mode=mode, vectors=vector[None])
                    taken.append(1e3 * (time.perf_counter() - started))
                    hits += len({p.metadata["n"] for p in found} & set(wanted.tolist()))
                p50, p95 = np.quantile(taken, [0.5, 0.95])
                results[mode] = {"p50 ms": p50, "p95 ms": p95}
                if mode == "dense":
                    results[mode]["recall@10"] = hits / (10 * queries)
            more = passages(1000, count)
            started = time.perf_counter()
            kb.add(more)
            results["add 1000 s"] = time.perf_counter() - started
    results["peak memory MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for name, value in results.items():
        print(f"  {name}: {value}")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=13_449)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=["search", "scale"], default=["search"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    packages = " ".join(f"{n} {importlib.metadata.version(n)}" for n in ("faiss-cpu", "tantivy", "numpy"))
    load = "/".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load}, OMP {faiss.omp_get_max_threads()}, {packages}")
    results: dict[str, dict[str, Any]] = {}
    for name in options.only:
        results[name] = {}
        {"search": search, "scale": scale}[name](options.passages, options.queries, results[name])
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
