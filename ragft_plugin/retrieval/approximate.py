"""Approximate indexes: faster search in large segments, at a recall that is measured when they are built.

    flat   up to 50,000 vectors        exact; no index at all
    hnsw   up to 400,000               a graph (32 links) over float32; in memory about 1.2 times the vectors
    ivf    above                       inverted lists with 8-bit scalar quantisation; about a quarter of that size

Both return candidates, whose cosines are then computed exactly, so that scores mean the same as without an index. The
effort of the search (``efSearch``, ``nprobe``) is the least at which recall@10 reaches its aim, found while building.

An index belongs to one immutable segment and is as immutable; it is derived, and a damaged one is left aside with a
warning. FAISS reads its own format without running code, but it is not hardened against hostile files: from a stranger
take the directory without ``indexes/``.

Sources: Malkov & Yashunin, "Efficient and robust approximate nearest neighbor search using HNSW graphs", 2016;
Johnson, Douze & Jegou, "Billion-scale similarity search with GPUs", 2017.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError

logger = logging.getLogger(__name__)
_FAISS: Any = faiss  # its type hints lack some of its classes

Vectors = NDArray[np.float32]
Kind = Literal["flat", "hnsw", "ivf"]
AIM = 0.97  # recall@10
_WIDER = 4  # candidates per wanted neighbour
_LEAST_EFFORT = 8
_MAX_EFFORT = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Approximate:
    """An index over the vectors of one segment.

    Attributes:
        kind: "hnsw" or "ivf".
        effort: efSearch or nprobe.
        recall: share of the true ten nearest found, measured on perturbed vectors of the segment.
        size: bytes of the index in memory.
    """

    kind: str
    effort: int
    recall: float
    size: int
    index: Any

    def candidates(self, queries: Vectors, k: int, allowed: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return positions of likely neighbours, -1 where there are none, shape (n, more than k).

        Args:
            queries: shape (n, dim).
            k: neighbours wanted.
            allowed: positions that may be returned, sorted; None for all.
        """
        count = min(_WIDER * k, self.index.ntotal)
        selector = None
        if allowed is not None:
            bits = np.zeros(self.index.ntotal, bool)
            bits[allowed] = True
            packed = np.packbits(bits, bitorder="little")
            selector = faiss.IDSelectorBitmap(self.index.ntotal, faiss.swig_ptr(packed))
        _, positions = self.index.search(queries, count, params=_PARAMETERS[self.kind](self.effort, count, selector))
        return np.asarray(positions, np.int64)


def kind_for(count: int) -> Kind:
    """Return the index kind that suits a number of vectors."""
    return "flat" if count <= 50_000 else "hnsw" if count <= 400_000 else "ivf"


def build(vectors: Vectors, kind: Kind | Literal["auto"]) -> Approximate | None:
    """Build an index and measure it; None for a flat one.

    Args:
        vectors: unit vectors, shape (n, dim).
        kind: "auto" chooses by ``kind_for``.

    Raises:
        ConfigError: unknown kind.
    """
    chosen: str = kind_for(len(vectors)) if kind == "auto" else kind
    if chosen == "flat" or vectors.shape[1] == 0 or len(vectors) < 100:
        if chosen not in ("flat", *_BUILDERS):
            raise ConfigError(f"unknown index kind {chosen!r}; known: auto, flat, hnsw, ivf")
        return None
    if chosen not in _BUILDERS:
        raise ConfigError(f"unknown index kind {chosen!r}; known: auto, flat, hnsw, ivf")
    index = _BUILDERS[chosen](vectors)
    size = len(faiss.serialize_index(index)) if len(vectors) < 100_000 else _size(index, vectors)
    queries, truth = _sample(vectors)

    def tried(effort: int) -> Approximate:
        found = Approximate(chosen, effort, 0.0, size, index)
        return replace(found, recall=_recall(found, queries, truth))

    best = tried(_LEAST_EFFORT)
    while best.recall < AIM and best.effort < _MAX_EFFORT:
        best = tried(2 * best.effort)
    low = best.effort // 2
    while best.effort > _LEAST_EFFORT and best.effort - low > low // 8 + 1:  # the least effort that is enough
        middle = tried((low + best.effort) // 2)
        if middle.recall >= AIM:
            best = middle
        else:
            low = middle.effort
    logger.info("%s index over %d vectors: effort %d, recall@10 %.3f", chosen, len(vectors), best.effort, best.recall)
    return best


def save(approximate: Approximate, folder: Path, name: str) -> None:
    """Write an index and its description; the description comes last and makes it valid."""
    folder.mkdir(exist_ok=True)
    path, note = folder / f"{name}.faiss", folder / f"{name}.json"
    temporary = path.with_suffix(".faiss.tmp")
    faiss.write_index(approximate.index, str(temporary))
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    os.replace(temporary, path)
    text = {
        "kind": approximate.kind,
        "effort": approximate.effort,
        "recall": approximate.recall,
        "size": approximate.size,
        "sha256": digest,
    }
    draft = note.with_suffix(".json.tmp")
    draft.write_text(json.dumps(text), "utf-8")
    os.replace(draft, note)


def load(folder: Path, name: str, shape: tuple[int, int]) -> Approximate | None:
    """Read the index of a segment; None, with a warning where it is damaged, to search exactly.

    Args:
        folder: of the indexes.
        name: of the segment.
        shape: of its vectors.
    """
    path, note = folder / f"{name}.faiss", folder / f"{name}.json"
    if not note.is_file() or note.is_symlink() or path.is_symlink() or folder.is_symlink():
        return None
    try:
        text = json.loads(note.read_text("utf-8"))
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != text["sha256"]:
                raise ValueError("its SHA-256 is not the one noted")
        index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if text["kind"] == "ivf" else 0)
        if (index.ntotal, index.d) != shape or text["kind"] not in _PARAMETERS:
            raise ValueError(f"it holds {index.ntotal} vectors of {index.d}, expected {shape}")
        if text["kind"] == "ivf":
            # Reading ahead in 32 threads, as FAISS does by default, only costs where the lists are in memory already.
            _FAISS.downcast_InvertedLists(index.invlists).prefetch_nthread = 0
        return Approximate(text["kind"], int(text["effort"]), float(text["recall"]), int(text["size"]), index)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        logger.warning("%s is damaged (%s); searching exactly until compact() builds it again", path, error)
        return None


def _hnsw(vectors: Vectors) -> Any:
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    index.add(vectors)
    return index


def _ivf(vectors: Vectors) -> Any:
    lists = int(min(2 * np.sqrt(len(vectors)), len(vectors) / 39))  # FAISS wants 39 training vectors a list
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, vectors.shape[1], max(1, lists), faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = 1234
    index.cp.niter = 12
    draw = np.random.default_rng(0)
    training = min(len(vectors), 48 * max(1, lists))
    index.train(np.ascontiguousarray(vectors[np.sort(draw.choice(len(vectors), training, replace=False))]))
    for start in range(0, len(vectors), 65_536):
        index.add(np.ascontiguousarray(vectors[start : start + 65_536]))
    return index


def _sample(vectors: Vectors) -> tuple[Vectors, NDArray[np.int64]]:
    """Return queries near the vectors, and the true ten nearest of each."""
    draw = np.random.default_rng(1)
    chosen = np.sort(draw.choice(len(vectors), min(200, len(vectors)), replace=False))
    noise = draw.standard_normal((len(chosen), vectors.shape[1])) * (0.5 / np.sqrt(vectors.shape[1]))
    queries = (vectors[chosen] + noise).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    _, truth = faiss.knn(queries, vectors, 10, metric=faiss.METRIC_INNER_PRODUCT)
    return queries, truth


def _recall(approximate: Approximate, queries: Vectors, truth: NDArray[np.int64]) -> float:
    found = approximate.candidates(queries, 10, None)
    return float(np.mean([len(set(f) & set(t)) / len(t) for f, t in zip(found.tolist(), truth.tolist(), strict=True)]))


def _size(index: Any, vectors: Vectors) -> int:
    per_vector = vectors.shape[1] + 8 if isinstance(index, faiss.IndexIVF) else vectors.shape[1] * 4 + 64 * 4 + 16
    return int(per_vector * len(vectors))


def _hnsw_parameters(effort: int, count: int, selector: Any) -> Any:
    return _FAISS.SearchParametersHNSW(efSearch=max(effort, count), **({} if selector is None else {"sel": selector}))


def _ivf_parameters(effort: int, count: int, selector: Any) -> Any:
    return _FAISS.SearchParametersIVF(nprobe=effort, **({} if selector is None else {"sel": selector}))


_BUILDERS: dict[str, Callable[[Vectors], Any]] = {"hnsw": _hnsw, "ivf": _ivf}
_PARAMETERS: dict[str, Callable[[int, int, Any], Any]] = {"hnsw": _hnsw_parameters, "ivf": _ivf_parameters}
