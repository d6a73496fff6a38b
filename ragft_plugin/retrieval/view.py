"""A view: one immutable state of a knowledge base, and every way to search it.

Readers hold a view for the length of a call; a new one is swapped in with a single assignment. Everything in a view is
either immutable (segments, pinned BM25) or names rows whose content never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.retrieval import fusion
from ragft_plugin.retrieval.bm25 import Lexicon
from ragft_plugin.retrieval.catalogue import Catalogue
from ragft_plugin.retrieval.filters import Column, select
from ragft_plugin.retrieval.records import State
from ragft_plugin.retrieval.segments import Segment, search
from ragft_plugin.types import Filter

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]
Vectors = NDArray[np.float32]
Mode = Literal["hybrid", "dense", "bm25", "rrf", "mmr"]
DEPTH = 100  # candidates that each half brings to a fusion
MMR_WEIGHT = 0.5
_COLUMNS = 64  # kept in memory
_FEW = 64  # up to so many removed rows of a segment are searched along and dropped


class StaleView(Exception):
    """A row of this view was purged by a compaction: look again at the newer state."""


class Hit(NamedTuple):
    """A row, its score, and its parts: {"dense": cosine, "bm25": score} as far as they were computed."""

    row: int
    score: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One state of a knowledge base.

    Attributes:
        state: version, counts, digest.
        segments: in order of rows; their ranges do not overlap.
        dead: removed rows that segments still hold, sorted.
        lexicon: BM25 of exactly this state.
        catalogue: for metadata.
        columns: metadata columns by (segment, key), shared by all views since segments never change.
        alive: positions of the rows that are there, by segment, where many are not; filled as they are needed.
    """

    state: State
    segments: tuple[Segment, ...]
    dead: Rows
    lexicon: Lexicon
    catalogue: Catalogue
    columns: dict[tuple[str, str], Column] = field(repr=False)
    alive: dict[str, Rows] = field(default_factory=dict, repr=False)

    def search(
        self, mode: Mode, queries: Sequence[str], vectors: Vectors | None, k: int, filter: Filter | None
    ) -> list[list[Hit]]:
        """Return the best rows of each query, best first.

        Args:
            mode: how to rank.
            queries: texts.
            vectors: of the queries, shape (n, dim); None for BM25.
            k: at most this many each.
            filter: checked; None for all.
        """
        allowed = None if filter is None else self._allowed(filter)
        return _SEARCHES[mode](self, queries, vectors if vectors is not None else np.empty((0, 0)), k, allowed)

    def dense(self, vectors: Vectors, k: int, allowed: Rows | None) -> list[tuple[Scores, Rows]]:
        """Return (cosines, rows) of the nearest rows of each query, best first."""
        found: list[tuple[Scores, Rows]] = []
        for segment in self.segments:
            if allowed is not None:
                scores, at = search(vectors, segment, k, _positions(segment, allowed))
            else:
                dead = _positions(segment, self.dead) if len(self.dead) else self.dead
                if len(dead) <= _FEW:
                    scores, at = search(vectors, segment, k + len(dead), None)
                    scores = np.where(np.isin(at, dead), -np.inf, scores) if len(dead) else scores
                else:
                    scores, at = search(vectors, segment, k, self._alive_in(segment, dead))
            found.append((scores, segment.rows[at]))
        if not found:
            return [(np.empty(0), np.empty(0, np.int64))] * len(vectors)
        scores, rows = found[0] if len(found) == 1 else [np.concatenate(p, axis=1) for p in zip(*found, strict=True)]
        best = []
        for s, r in zip(scores, rows, strict=True):
            if len(self.dead):
                keep = np.isfinite(s)
                s, r = s[keep], r[keep]
            if len(found) > 1:
                s, r = fusion.ordered(s, r)
            best.append((s[:k], r[:k]))
        return best

    def vectors_of(self, rows: Rows) -> Vectors:
        """Return the vectors of rows of this view, shape (n, dim)."""
        out = np.zeros((len(rows), self.state.dim), np.float32)
        for segment in self.segments:
            at = np.minimum(np.searchsorted(segment.rows, rows), len(segment.rows) - 1)
            here = segment.rows[at] == rows
            if here.any():
                out[here] = segment.vectors[at[here]]
        return out

    def _alive_in(self, segment: Segment, dead: Rows) -> Rows:
        known = self.alive.get(segment.name)
        if known is None:
            known = self.alive[segment.name] = np.delete(np.arange(len(segment)), dead)
        return known

    def _allowed(self, filter: Filter) -> Rows:
        parts = [select(filter, self._column_of(segment), segment.rows) for segment in self.segments]
        rows = np.concatenate(parts) if parts else np.empty(0, np.int64)
        return np.setdiff1d(rows, self.dead, assume_unique=True) if len(self.dead) else rows

    def _column_of(self, segment: Segment) -> Callable[[str], Column]:
        def column(key: str) -> Column:
            known = self.columns.get((segment.name, key))
            return known if known is not None else self._make_column(segment, key)

        return column

    def _make_column(self, segment: Segment, key: str) -> Column:
        entries: list[tuple[int, Any]] = []
        seen: list[int] = []
        for row, metadata in self.catalogue.all_metadata(int(segment.rows[0]), int(segment.rows[-1])):
            seen.append(row)
            if key in metadata:
                entries.append((row, metadata[key]))
        missing = np.setdiff1d(segment.rows, np.asarray(seen, np.int64), assume_unique=True)
        if len(np.setdiff1d(missing, self.dead, assume_unique=True)):
            raise StaleView
        column = Column(entries)
        if len(self.columns) >= _COLUMNS:  # keys come from callers, and there is no end of them
            self.columns.pop(next(iter(self.columns)), None)
        self.columns[segment.name, key] = column
        return column


def _positions(segment: Segment, rows: Rows) -> Rows:
    """Return where sorted rows stand in a segment."""
    low, high = np.searchsorted(rows, (segment.rows[0], segment.rows[-1] + 1))
    return np.searchsorted(segment.rows, rows[low:high])


def _dense(view: View, queries: Sequence[str], vectors: Vectors, k: int, allowed: Rows | None) -> list[list[Hit]]:
    return [
        [Hit(row, score, {"dense": score}) for score, row in zip(s.tolist(), r.tolist(), strict=True)]
        for s, r in view.dense(vectors, k, allowed)
    ]


def _bm25(view: View, queries: Sequence[str], vectors: Vectors, k: int, allowed: Rows | None) -> list[list[Hit]]:
    found = [view.lexicon.search(query, k, allowed) for query in queries]
    return [
        [Hit(row, score, {"bm25": score}) for score, row in zip(s.tolist(), r.tolist(), strict=True)] for s, r in found
    ]


def _rrf(view: View, queries: Sequence[str], vectors: Vectors, k: int, allowed: Rows | None) -> list[list[Hit]]:
    depth = max(DEPTH, k)
    best = []
    for query, (cosines, near) in zip(queries, view.dense(vectors, depth, allowed), strict=True):
        bm25, common = view.lexicon.search(query, depth, allowed)
        scores, rows = fusion.rrf([near, common])
        parts = _parts(near, cosines, common, bm25)
        best.append([Hit(row, s, parts[row]) for s, row in zip(scores[:k].tolist(), rows[:k].tolist(), strict=True)])
    return best


def _hybrid(view: View, queries: Sequence[str], vectors: Vectors, k: int, allowed: Rows | None) -> list[list[Hit]]:
    depth = max(DEPTH, k)
    best = []
    for i, (query, (_, near)) in enumerate(zip(queries, view.dense(vectors, depth, allowed), strict=True)):
        bm25, common = view.lexicon.search(query, depth, allowed)
        # Each candidate gets both scores, whichever half it came from: a missing score is no score of zero.
        rows = np.union1d(near, common)
        cosine = np.round(view.vectors_of(rows).astype(np.float64) @ vectors[i].astype(np.float64), 6)
        lexical = _aligned(rows, bm25, common)
        unscored = np.setdiff1d(near, common)
        if len(common) == depth and len(unscored):  # else no further passage shares a word with the query
            lexical += _aligned(rows, *view.lexicon.search(query, len(unscored), unscored))
        scores, order = fusion.ordered(fusion.weighted(cosine, lexical), np.arange(len(rows)))
        best.append(
            [
                Hit(int(rows[at]), score, {"dense": float(cosine[at]), "bm25": float(lexical[at])})
                for score, at in zip(scores[:k].tolist(), order[:k].tolist(), strict=True)
            ]
        )
    return best


def _mmr(view: View, queries: Sequence[str], vectors: Vectors, k: int, allowed: Rows | None) -> list[list[Hit]]:
    best = []
    for scores, rows in view.dense(vectors, max(4 * k, 20), allowed):
        order = fusion.mmr(scores, view.vectors_of(rows), k, weight=MMR_WEIGHT)
        best.append([Hit(int(rows[at]), float(scores[at]), {"dense": float(scores[at])}) for at in order])
    return best


def _aligned(rows: Rows, scores: Scores, found: Rows) -> Scores:
    out = np.zeros(len(rows))
    out[np.searchsorted(rows, found)] = scores
    return out


def _parts(near: Rows, cosines: Scores, common: Rows, bm25: Scores) -> dict[int, dict[str, float]]:
    parts: dict[int, dict[str, float]] = {}
    for name, rows, scores in (("dense", near, cosines), ("bm25", common, bm25)):
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            parts.setdefault(row, {})[name] = score
    return parts


_SEARCHES: dict[str, Callable[..., list[list[Hit]]]] = {
    "bm25": _bm25,
    "dense": _dense,
    "hybrid": _hybrid,
    "mmr": _mmr,
    "rrf": _rrf,
}
MODES = tuple(_SEARCHES)
