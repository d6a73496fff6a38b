"""Index kinds: how each approximate index is built, searched and counted.

    pq     product quantisation, 4 bits for every 4 dimensions (or the largest divisor below), read from front to back
    hnsw   a graph of 32 links over float32
    ivf    inverted lists with 8-bit scalar quantisation

Each kind has an effort: candidates that are compared exactly (pq), ``efSearch`` (hnsw), ``nprobe`` (ivf).

Sources: Andre, Kermarrec & Le Scouarnec, "Cache locality is not enough: high-performance nearest neighbor search with
product quantization fast scan", 2015; Malkov & Yashunin, "Efficient and robust approximate nearest neighbor search
using HNSW graphs", 2016; Johnson, Douze & Jegou, "Billion-scale similarity search with GPUs", 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from ragft_plugin.retrieval.index_files import LINKS, check_hnsw, check_ivf, check_pq

_FAISS: Any = faiss  # its type hints lack some of its classes

Vectors = NDArray[np.float32]
Positions = NDArray[np.int64]
_WIDER = 4  # candidates per wanted neighbour
_BLOCK = 65_536  # vectors added at a time


@dataclass(frozen=True, slots=True)
class IndexKind:
    """One kind of index.

    Attributes:
        build: vectors, shape (n, dim) -> FAISS index.
        search: (index, effort, queries, k, allowed) -> positions of candidates, likeliest first, -1 where there are
            none; ``allowed`` are the positions that may be returned, sorted, None for all.
        check: (file, number of vectors, their length) -> ValueError where the file is not what ``build`` makes of them.
        resident: it is read whole when it is opened, not mapped.
        least, most: effort.
    """

    build: Callable[[Vectors], Any]
    search: Callable[[Any, int, Vectors, int, Positions | None], Positions]
    check: Callable[[BinaryIO, int, int], None]
    resident: bool
    least: int
    most: int


def _pq(vectors: Vectors) -> Any:
    dim = vectors.shape[1]
    together = next(size for size in (4, 3, 2, 1) if dim % size == 0)
    index = faiss.IndexPQFastScan(dim, dim // together, 4, faiss.METRIC_INNER_PRODUCT)
    return _filled(index, vectors, training=_BLOCK)


def _hnsw(vectors: Vectors) -> Any:
    index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    index.add(vectors)
    return index


def _ivf(vectors: Vectors) -> Any:
    dim = vectors.shape[1]
    lists = max(1, int(min(2 * np.sqrt(len(vectors)), len(vectors) / 39)))  # FAISS wants 39 training vectors a list
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim), dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = 1234
    index.cp.niter = 12
    return _filled(index, vectors, training=48 * lists)


def _filled(index: Any, vectors: Vectors, *, training: int) -> Any:
    draw = np.random.default_rng(0)
    chosen = np.sort(draw.choice(len(vectors), min(len(vectors), training), replace=False))
    index.train(np.ascontiguousarray(vectors[chosen]))
    for start in range(0, len(vectors), _BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + _BLOCK]))
    return index


def _scan(index: Any, effort: int, queries: Vectors, k: int, allowed: Positions | None) -> Positions:
    count = min(max(effort, _WIDER * k), index.ntotal)
    if allowed is None:
        return np.asarray(index.search(queries, count)[1], np.int64)
    # Fast scan takes no selector: look at as many more as are likely to be hidden, and drop those that are.
    wider = min(index.ntotal, -(-count * index.ntotal // len(allowed)))
    found = np.asarray(index.search(queries, wider)[1], np.int64)
    hidden = (found < 0) | ~_mask(index.ntotal, allowed)[found]
    order = np.argsort(hidden, axis=1, kind="stable")[:, :count]
    return np.where(np.take_along_axis(hidden, order, 1), -1, np.take_along_axis(found, order, 1))


def _walk(index: Any, effort: int, queries: Vectors, k: int, allowed: Positions | None) -> Positions:
    count = min(_WIDER * k, index.ntotal)
    with_selector = _selector(index, allowed)
    parameters = _FAISS.SearchParametersHNSW(efSearch=max(effort, count), **with_selector)
    return np.asarray(index.search(queries, count, params=parameters)[1], np.int64)


def _probe(index: Any, effort: int, queries: Vectors, k: int, allowed: Positions | None) -> Positions:
    with_selector = _selector(index, allowed)
    parameters = _FAISS.SearchParametersIVF(nprobe=effort, **with_selector)
    return np.asarray(index.search(queries, min(_WIDER * k, index.ntotal), params=parameters)[1], np.int64)


def _selector(index: Any, allowed: Positions | None) -> dict[str, Any]:
    if allowed is None:
        return {}
    bits = np.packbits(_mask(index.ntotal, allowed), bitorder="little")
    selector = _FAISS.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    selector.bits = bits  # FAISS keeps a bare pointer
    return {"sel": selector}


def _mask(count: int, positions: Positions) -> NDArray[np.bool_]:
    mask = np.zeros(count, bool)
    mask[positions] = True
    return mask


KINDS = {
    "pq": IndexKind(_pq, _scan, check_pq, resident=True, least=64, most=4096),
    "hnsw": IndexKind(_hnsw, _walk, check_hnsw, resident=True, least=8, most=2048),
    "ivf": IndexKind(_ivf, _probe, check_ivf, resident=False, least=8, most=2048),
}
