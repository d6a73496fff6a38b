"""Index files: what FAISS writes for our kinds, checked from front to back before FAISS reads it.

FAISS's own reader trusts what stands in a file: its class, which may be one that maps further files by their names,
its sizes, and the links of a graph, which are followed without a look at where they lead. So each kind is read only
where class, sizes, links and ids are those that ``retrieval.index_kinds`` writes for that many vectors of that length.

The format is that of FAISS 1.9 to 1.15 (``faiss/impl/index_write.cpp``): a code of four letters for the class, then
its fields, little-endian; a vector is its length in 8 bytes and its elements.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

LINKS = 32  # of a node of the graph, twice as many on its ground level
_GROUP = 32  # vectors whose codes fast scan keeps together
_INNER_PRODUCT, _NO_MAP, _QT_8BIT, _MINMAX, _BY_RESIDUAL = 0, 0, 0, 0, 1  # numbers of FAISS


class _Fields:
    """The fields of a file, one after the other.

    Raises:
        ValueError: the file ends too early, or a field is not what was expected.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._raw = np.asarray(np.memmap(file, np.uint8, "r"))
        self._at = 0

    def array(self, kind: str, count: int) -> NDArray[Any]:
        """Return the next elements, shape (count,)."""
        end = self._at + count * np.dtype(kind).itemsize
        if not self._at <= end <= len(self._raw):
            raise ValueError(f"byte {self._at}: {count} elements are announced, and the file ends before")
        part = self._raw[self._at : end].view(kind)
        self._at = end
        return part

    def number(self, kind: str) -> int:
        """Return the next element."""
        return int(self.array(kind, 1)[0])

    def expect(self, kind: str, *values: Any) -> None:
        """Take the next elements, which must be these."""
        at = self._at
        found = self.array(kind, len(values)).tolist()
        if found != list(values):
            raise ValueError(f"byte {at}: {found}, expected {list(values)}")

    def vector(self, kind: str, count: int) -> NDArray[Any]:
        """Return a vector, which must be of this length."""
        self.expect("<u8", count)
        return self.array(kind, count)

    def floats(self, count: int) -> None:
        """Take a vector of numbers, all of them finite: a graph that meets NaN leads to nowhere."""
        found = self.vector("<f4", count)
        with np.errstate(invalid="ignore"):
            extremes = [found.min(), found.max()]  # NaN if there is one
        if not np.isfinite(extremes).all():
            raise ValueError("it holds NaN or infinity")

    def end(self) -> None:
        """Say that nothing follows."""
        if self._at != len(self._raw):
            raise ValueError(f"{len(self._raw) - self._at} bytes too many")


def check_pq(file: BinaryIO, count: int, dim: int) -> None:
    """Check the file of an ``IndexPQFastScan``.

    Args:
        file: open for reading.
        count: of the vectors.
        dim: of the vectors.

    Raises:
        ValueError: saying what is wrong where.
    """
    fields = _Fields(file)
    _header(fields, b"IPfs", count, dim)
    fields.expect("<u8", dim)
    parts = fields.number("<u8")
    if not 0 < parts <= dim or dim % parts:
        raise ValueError(f"{parts} parts of {dim} dimensions")
    fields.expect("<u8", 4)  # bits of a part
    fields.floats(16 * dim)
    fields.expect("<i4", 0, _GROUP, 0)  # implementation and tuning: as FAISS chooses
    groups, even = -(-count // _GROUP), parts + parts % 2
    fields.expect("<u8", groups * _GROUP, even)
    fields.vector("u1", groups * _GROUP * even // 2)
    fields.end()


def check_hnsw(file: BinaryIO, count: int, dim: int) -> None:
    """Check the file of an ``IndexHNSWFlat``; arguments and errors as of ``check_pq``."""
    fields = _Fields(file)
    _header(fields, b"IHNf", count, dim)
    top = fields.number("<u8")
    fields.array("<f8", top)  # probabilities of the levels, for building only
    until = fields.vector("<i4", top + 1)  # links of a node on all levels below
    if until.tolist() != [0, *range(2 * LINKS, 2 * LINKS + LINKS * top, LINKS)]:
        raise ValueError(f"numbers of links {until.tolist()}")
    levels = fields.vector("<i4", count)
    if levels.min() < 1 or levels.max() > top:
        raise ValueError(f"levels {levels.min()} to {levels.max()} of {top}")
    offsets = fields.vector("<u8", count + 1)
    if offsets[0] != 0 or (np.diff(offsets) != until[levels].astype(np.uint64)).any():
        raise ValueError("offsets that do not follow from the levels")
    links = fields.vector("<i4", int(offsets[-1]))
    if links.min() < -1 or links.max() >= count:
        raise ValueError(f"links from {links.min()} to {links.max()} among {count} nodes")
    for level in range(1, int(levels.max())):
        nodes = np.flatnonzero(levels > level)
        reached = links[offsets[nodes].astype(np.int64)[:, None] + np.arange(until[level], until[level + 1])]
        if (levels[reached[reached >= 0]] <= level).any():
            raise ValueError(f"a link on level {level} to a node that is not there")
    entry, highest = fields.array("<i4", 2).tolist()
    if not 0 <= entry < count or highest != levels.max() - 1 or levels[entry] != levels.max():
        raise ValueError(f"the entry {entry} on level {highest}")
    fields.array("<i4", 3)  # effort of building and of searching, given with each search; a field no longer used
    _flat(fields, count, dim)
    fields.end()


def check_ivf(file: BinaryIO, count: int, dim: int) -> None:
    """Check the file of an ``IndexIVFScalarQuantizer``; arguments and errors as of ``check_pq``."""
    fields = _Fields(file)
    _header(fields, b"IwSq", count, dim)
    lists = fields.number("<u8")
    fields.number("<u8")  # lists to look at, given with each search
    _flat(fields, lists, dim)
    fields.expect("u1", _NO_MAP)
    fields.vector("<i8", 0)
    fields.expect("<i4", _QT_8BIT, _MINMAX)
    fields.expect("<f4", 0.0)
    fields.expect("<u8", dim, dim)
    fields.floats(2 * dim)
    fields.expect("<u8", dim)
    fields.expect("u1", _BY_RESIDUAL)
    fields.expect("S4", b"ilar")  # in this file, not in one of their own
    fields.expect("<u8", lists, dim)
    seen = np.zeros(count, bool)
    for size in _sizes(fields, lists, count):
        fields.array("u1", size * dim)
        ids = fields.array("<i8", size)
        if size and (ids.min() < 0 or ids.max() >= count):
            raise ValueError(f"ids from {ids.min()} to {ids.max()} of {count} vectors")
        seen[ids] = True
    if not seen.all():
        raise ValueError("a vector that stands in no list")
    fields.end()


def _header(fields: _Fields, code: bytes, count: int, dim: int) -> None:
    fields.expect("S4", code)
    fields.expect("<i4", dim)
    fields.expect("<i8", count, 2**20, 2**20)  # two fields no longer used
    fields.expect("u1", True)  # trained
    fields.expect("<i4", _INNER_PRODUCT)


def _flat(fields: _Fields, count: int, dim: int) -> None:
    _header(fields, b"IxFI", count, dim)
    fields.floats(count * dim)


def _sizes(fields: _Fields, lists: int, count: int) -> list[int]:
    """Return the sizes of lists in their order; empty ones may be left out."""
    sizes: list[int]
    layout = fields.array("S4", 1)[0]
    if layout == b"full":
        sizes = fields.vector("<u8", lists).tolist()
    elif layout == b"sprs":
        at, sizes = fields.array("<u8", fields.number("<u8")).reshape(-1, 2).T.tolist()
        if at != sorted(set(at)) or any(one >= lists for one in at):
            raise ValueError(f"lists {at} of {lists}")
    else:
        raise ValueError(f"lists laid out as {layout!r}")
    if sum(sizes) != count:
        raise ValueError(f"lists of {sum(sizes)} vectors, expected {count}")
    return sizes
