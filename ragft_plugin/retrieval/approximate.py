"""Approximate indexes: faster search in large segments, at a recall that is measured when they are built.

    flat   up to 50,000 vectors        exact; no index at all
    pq     up to 4 million             4 bits for 4 dimensions, all read; 48 bytes a vector of 384 dimensions
    ivf    above                       inverted lists with 8-bit scalar quantisation, 392 bytes a vector; mapped
    hnsw   only when asked for         a graph over float32; in memory about 1.2 times the vectors

All return candidates, whose cosines are then computed exactly, so that scores mean the same as without an index. The
effort of the search (see ``retrieval.index_kinds``) is the least at which recall@10 reaches its aim, found while
building. Where none reaches it, the segment is searched exactly unless the kind was asked for.

An index belongs to one immutable segment and is as immutable; it is derived, and a damaged one is left aside with a
warning. Accidents are noticed by checksums of its file and of the note beside it. A stranger's file has the right ones,
and FAISS's reader is not made for it: it may be led outside the directory, or out of its memory. So a file is read only
where all of it is what our kinds write (``retrieval.index_files``). Nothing guards against one that is changed between
this check and the reading, nor against one that is well-formed and bad: with it the search finds less. Scores, filters
and texts do not come from an index.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import stat
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError
from ragft_plugin.retrieval.drafts import draft_of
from ragft_plugin.retrieval.index_kinds import KINDS
from ragft_plugin.retrieval.integrity import open_plain

logger = logging.getLogger(__name__)
_FAISS: Any = faiss  # its type hints lack some of its classes

Vectors = NDArray[np.float32]
Kind = Literal["flat", "pq", "hnsw", "ivf"]
AIM = 0.98  # recall@10


@dataclass(frozen=True, slots=True, eq=False)
class Approximate:
    """An index over the vectors of one segment.

    Attributes:
        kind: a key of ``KINDS``.
        effort: of the search; what it means depends on the kind.
        recall: share of the true ten nearest found, measured on perturbed vectors of the segment.
        index: of FAISS.
        size: bytes of its file, and about as many in memory; 0 until it is saved.
    """

    kind: str
    effort: int
    recall: float
    index: Any
    size: int = 0

    @property
    def resident(self) -> bool:
        """Whether it is read whole when it is opened, not mapped."""
        return KINDS[self.kind].resident

    def candidates(self, queries: Vectors, k: int, allowed: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return positions of likely neighbours, -1 where there are none, shape (n, more than k).

        Args:
            queries: shape (n, dim).
            k: neighbours wanted.
            allowed: positions that may be returned, sorted, at least one; None for all.
        """
        return KINDS[self.kind].search(self.index, self.effort, queries, k, allowed)


def kind_for(count: int) -> Kind:
    """Return the index kind that suits a number of vectors."""
    return "flat" if count <= 50_000 else "pq" if count <= 4_000_000 else "ivf"


def build(vectors: Vectors, kind: Kind | Literal["auto"]) -> Approximate | None:
    """Build an index and measure it; None for a flat one.

    Args:
        vectors: unit vectors, shape (n, dim).
        kind: "auto" chooses by ``kind_for``.

    Raises:
        ConfigError: unknown kind.
    """
    chosen: str = kind_for(len(vectors)) if kind == "auto" else kind
    if chosen not in ("flat", *KINDS):
        raise ConfigError(f"unknown index kind {chosen!r}; known: auto, flat, {', '.join(KINDS)}")
    if chosen == "flat" or vectors.shape[1] == 0 or len(vectors) < 100:
        return None
    made = KINDS[chosen]
    index = made.build(vectors)
    queries, truth = _sample(vectors)

    def tried(effort: int) -> Approximate:
        found = Approximate(chosen, effort, 0.0, index)
        return replace(found, recall=_recall(found, queries, truth))

    best = tried(made.least)
    while best.recall < AIM and best.effort < made.most:
        best = tried(2 * best.effort)
    low = best.effort // 2
    while best.effort > made.least and best.effort - low > low // 8 + 1:  # the least effort that is enough
        middle = tried((low + best.effort) // 2)
        if middle.recall >= AIM:
            best = middle
        else:
            low = middle.effort
    level = logging.INFO if best.recall >= AIM else logging.WARNING
    told = "%s index over %d vectors: effort %d, recall@10 %.3f, aim %.2f"
    logger.log(level, told, chosen, len(vectors), best.effort, best.recall, AIM)
    if kind == "auto" and best.recall < AIM:
        logger.warning("searching exactly instead; compact(index=%r) has the index all the same", chosen)
        return None
    return best


def save(approximate: Approximate, folder: Path, name: str) -> None:
    """Write an index and its note; the note comes last and makes it valid. All or nothing.

    Raises:
        OSError: they cannot be written.
        RuntimeError: FAISS says so.
    """
    folder.mkdir(exist_ok=True)
    path, note = _files(folder, name)
    try:
        with draft_of(path) as draft:
            faiss.write_index(approximate.index, _FAISS.PyCallbackIOWriter(draft.write))
            draft.seek(0)
            digest = hashlib.file_digest(draft, "sha256").hexdigest()
        about = {
            "kind": approximate.kind,
            "effort": approximate.effort,
            "recall": approximate.recall,
            "sha256": digest,
        }
        with draft_of(note) as draft:
            draft.write(json.dumps({**about, "crc32": _crc(about)}).encode("utf-8"))
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def load(folder: Path, name: str, shape: tuple[int, int]) -> Approximate | None:
    """Read the index of a segment; None, with a warning where it is damaged, to search exactly.

    Args:
        folder: of the indexes.
        name: of the segment.
        shape: of its vectors.
    """
    try:
        return _read(folder, name, shape)
    except _DamageError as error:
        logger.warning("%s is damaged (%s); searching exactly until compact() builds it again", *error.args)
        return None


def damaged(folder: Path, name: str, shape: tuple[int, int]) -> list[str]:
    """Return the files of an index that are damaged, none where there is no index; arguments as of ``load``."""
    try:
        _read(folder, name, shape)
    except _DamageError as error:
        return [str(error.args[0])]
    return []


class _DamageError(Exception):
    """A file of an index is not what was written; arguments: path, reason."""


def _read(folder: Path, name: str, shape: tuple[int, int]) -> Approximate | None:
    path, note = _files(folder, name)
    if not os.path.lexists(path) and not os.path.lexists(note):
        return None
    at = note
    try:
        about = _noted(note)
        at, kind = path, KINDS[about["kind"]]
        with _opened(path) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
                raise ValueError("its SHA-256 is not the one noted")
            kind.check(file, *shape)
            size = os.fstat(file.fileno()).st_size
        index: Any = faiss.read_index(str(path), 0 if kind.resident else faiss.IO_FLAG_MMAP)
        if not kind.resident:
            # Reading ahead in 32 threads, as FAISS does by default, only costs where the lists are in memory already.
            _FAISS.downcast_InvertedLists(index.invlists).prefetch_nthread = 0
    except Exception as error:  # whatever is the matter with an index: there is the exact search
        raise _DamageError(at, error) from error
    return Approximate(about["kind"], about["effort"], about["recall"], index, size)


def _noted(note: Path) -> dict[str, Any]:
    with _opened(note) as file:
        found = json.loads(file.read())
    told = found.pop("crc32", None)
    if told != _crc(found):
        raise ValueError(f"its CRC-32 is {_crc(found)}, it says {told!r}")
    kind = KINDS[found["kind"]]
    if type(found["effort"]) is not int or not kind.least <= found["effort"] <= kind.most:
        raise ValueError(f"the effort {found['effort']!r} is not from {kind.least} to {kind.most}")
    if not isinstance(found["recall"], float):
        raise ValueError(f"the recall {found['recall']!r} is no number")
    return dict(found)


def _crc(about: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode("utf-8"))


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.faiss", folder / f"{name}.json"


def _opened(path: Path) -> io.BufferedReader:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError("it is no file but a link, a folder or a pipe")
    return open_plain(path)


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
