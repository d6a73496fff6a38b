"""Speed of the knowledge base beside the vector stores people use, with the same vectors and the same index kind.

    python benchmarks/retrieval_speed.py [--passages 13449] [--queries 1000] [--rounds 4] [--json FILE]

Vectors are drawn from a seeded mixture of 5,000 clusters: 384 dimensions, noise within a cluster spans 24 directions
(the intrinsic dimension), unit length. Queries are given as vectors, so that no encoder is timed; every store searches
exactly. Stores take turns of 50 queries in one process, so that a busy machine slows all alike; medians over the turns
are reported, and the quartiles of the ratio.

    python benchmarks/retrieval_scale.py      has the figures at a million passages
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.types import Passage

DIM, INTRINSIC, K = 384, 24, 5
TURN = 50  # queries that one store answers before it is the next one's turn
WORDS = [f"w{i}" for i in range(5000)]


def clustered(count: int, *, seed: int, shared: bool = False) -> np.ndarray:
    """Return unit vectors, shape (count, 384), float32: 5,000 clusters, within each noise in 24 directions.

    With directions of each cluster's own, a vector is its centre plus noise of 0.75 of the centre's length, so that
    its cosine with the centre is about 0.8 and that with another vector of its cluster about 0.64, as between texts on
    one subject under a sentence encoder. With ``shared`` directions the noise is as long as the centre and the same 24
    directions serve all clusters, so that the neighbours of a vector lie in hundreds of clusters: harder for an index
    that relies on clusters than texts are.
    """
    shape = np.random.default_rng(0)
    centres = shape.standard_normal((5000, DIM)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    if shared:
        bases = np.linalg.qr(shape.standard_normal((DIM, INTRINSIC)))[0].T[None].astype(np.float32)
        bases /= np.sqrt(INTRINSIC)
    else:
        bases = shape.standard_normal((5000, INTRINSIC, DIM)).astype(np.float32)
        bases *= 0.75 / np.sqrt(INTRINSIC * DIM)
    draw = np.random.default_rng(seed)
    vectors = np.empty((count, DIM), np.float32)
    for start in range(0, count, 65_536):
        size = min(65_536, count - start)
        of = draw.integers(0, len(centres), size)
        noise = draw.standard_normal((size, INTRINSIC)).astype(np.float32)
        order = np.argsort(of, kind="stable")
        block = np.empty((size, DIM), np.float32)
        for rows in np.split(order, np.flatnonzero(np.diff(of[order])) + 1):
            cluster = of[rows[0]]
            block[rows] = centres[cluster] + noise[rows] @ bases[0 if shared else cluster]
        vectors[start : start + size] = block
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


def rounds(arms: dict[str, Callable[[slice], Any]], queries: int, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each arm for each turn of 50 queries; arms take turns, the first pass is thrown away."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats + 1):
        for start in range(0, queries, TURN):
            part = slice(start, min(start + TURN, queries))
            for name, run in arms.items():
                started = time.perf_counter()
                run(part)
                if repeat:
                    taken[name].append((time.perf_counter() - started) * TURN / (part.stop - part.start))
    return taken


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


def llama_stores(vectors: np.ndarray, texts: list[Passage]) -> dict[str, Any]:
    """Return LlamaIndex' FAISS store and its simple store over the same vectors, as far as they are installed."""
    stores: dict[str, Any] = {}
    try:
        from llama_index.core.schema import TextNode
        from llama_index.core.vector_stores import SimpleVectorStore
        from llama_index.vector_stores.faiss import FaissVectorStore
    except ImportError:
        return stores
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    stores["LlamaIndex FAISS store"] = FaissVectorStore(index)
    nodes = [
        TextNode(id_=p.id, text=p.text, embedding=v.tolist(), metadata=dict(p.metadata))
        for p, v in zip(texts, vectors, strict=True)
    ]
    stores["LlamaIndex simple store"] = SimpleVectorStore()
    stores["LlamaIndex simple store"].add(nodes)
    return stores


def print_rates(taken: dict[str, list[float]], size: int, reference: str, results: dict[str, Any]) -> None:
    """Print a row per arm and the ratio of the reference's rate to its rate: median and quartiles over the turns."""
    for name, seconds in taken.items():
        middle = statistics.median(seconds)
        ratios = np.asarray(seconds) / np.asarray(taken[reference])
        low, mid, high = (float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75]))
        results[name] = {
            "ms": 1e3 * middle / size,
            "per s": size / middle,
            "turns": len(seconds),
            f"rate of {reference} over its rate": [mid, low, high],
        }
        print(
            f"  {name:38s} {1e3 * middle / size:7.3f} ms/query {size / middle:8.0f}/s   "
            f"ours is {mid:5.2f}x as fast [{low:.2f}, {high:.2f}]"
        )


def search(count: int, queries: int, repeats: int, results: dict[str, Any]) -> None:
    """Compare unfiltered search with the stores, one query at a time and in a batch; then filtered search."""
    vectors, asked = clustered(count, seed=1), clustered(queries, seed=2)
    texts = passages(count)
    raw = faiss.IndexFlatIP(DIM)
    raw.add(vectors)
    with tempfile.TemporaryDirectory() as folder, KnowledgeBase.create(Path(folder) / "kb", Given(vectors)) as kb:
        started = time.perf_counter()
        kb.add(texts, vectors=vectors)
        print(f"{count} passages added in {time.perf_counter() - started:.2f} s (encoding apart)")
        kb.compact(index="flat")
        words = [f"{WORDS[q % 400]} {WORDS[q % 77]} {WORDS[q % 1999]}" for q in range(queries)]
        lists = [v.tolist() for v in asked]
        ours = "knowledge base, dense"

        def single(mode: Any, filter: Any = None) -> Callable[[slice], Any]:
            return lambda part: [
                kb.retrieve([w], K, filter, mode=mode, vectors=v[None])
                for w, v in zip(words[part], asked[part], strict=True)
            ]

        arms: dict[str, Callable[[slice], Any]] = {
            "faiss alone": lambda part: [raw.search(v[None], K) for v in asked[part]],
            ours: single("dense"),
        }
        store = community(vectors, texts)
        if store is not None:
            arms["community FAISS"] = lambda part: [store.similarity_search_by_vector(v, k=K) for v in lists[part]]
        for name, llama in llama_stores(vectors, texts).items():
            from llama_index.core.vector_stores.types import VectorStoreQuery

            asks = [VectorStoreQuery(query_embedding=v, similarity_top_k=K) for v in lists]
            run = partial(_ask_llama, llama, asks)
            if "simple" not in name:
                arms[name] = run
                continue
            started = time.perf_counter()
            run(slice(0, 20))
            results[name] = {"ms": 1e3 * (time.perf_counter() - started) / 20}
            print(f"  {name:38s} {results[name]['ms']:7.3f} ms/query (20 queries, once)")
        print("one query at a time, k = 5")
        print_rates(rounds(arms, queries, repeats), TURN, ours, results)
        print(f"{TURN} queries in one call")
        batch: dict[str, Callable[[slice], Any]] = {
            "faiss alone, batch": lambda part: raw.search(asked[part], K),
            f"{ours}, batch": lambda part: kb.retrieve(words[part], K, mode="dense", vectors=asked[part]),
        }
        for name in ("community FAISS", "LlamaIndex FAISS store"):
            if name in arms:
                batch[f"{name} (has no batch)"] = arms[name]
        print_rates(rounds(batch, queries, repeats), TURN, f"{ours}, batch", results)
        print("the other modes")
        modes = {f"knowledge base, {mode}": single(mode) for mode in ("dense", "bm25", "hybrid")}
        print_rates(rounds(modes, queries, 1), TURN, ours, results)
        filtered = {
            f"filter 10 of {count}, {mode}": single(mode, {"rare": True}) for mode in ("dense", "bm25", "hybrid")
        }
        best = np.argsort(-(asked @ vectors[:10].T), axis=1, kind="stable")[:, :K]
        got = kb.retrieve(words, K, {"rare": True}, mode="dense", vectors=asked)
        exact = all([p.metadata["n"] for p in g] == b.tolist() for g, b in zip(got, best, strict=True))
        print(f"a filter that matches 10 of {count}: the {K} true nearest of the 10 in order for every query: {exact}")
        results["filter exact"] = exact
        print_rates(rounds(filtered, queries, 1), TURN, f"filter 10 of {count}, dense", results)


def _ask_llama(store: Any, asks: list[Any], part: slice) -> Any:
    return [store.query(ask) for ask in asks[part]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=13_449)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    packages = " ".join(f"{n} {importlib.metadata.version(n)}" for n in ("faiss-cpu", "tantivy", "numpy"))
    load = "/".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load}, OMP {faiss.omp_get_max_threads()}, {packages}")
    results: dict[str, Any] = {}
    search(options.passages, options.queries, options.rounds, results)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
