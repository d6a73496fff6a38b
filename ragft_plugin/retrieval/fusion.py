"""Fusion: one ranking from several.

``rrf`` looks at ranks only. ``relative`` looks at scores: each ranking's scores are brought to [0, 1] per query and
averaged with weights. Scores carry how sure a ranking is of its first hit, ranks do not; that is why the rank fusion
of a good and a mediocre ranking can be worse than the good one alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]


def rrf(rankings: Sequence[Rows], *, k: int = 60) -> tuple[Scores, Rows]:
    """Reciprocal rank fusion:  score(d) = sum over rankings of 1 / (k + rank(d)),  ranks from 1.

    Args:
        rankings: rows of each ranking, best first.
        k: damps the first ranks.

    Returns:
        scores and rows, best first; equal scores in order of rows.

    Source: Cormack, Clarke & Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual rank
    learning methods", 2009.
    """
    totals: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking.tolist(), start=1):
            totals[row] = totals.get(row, 0.0) + 1.0 / (k + rank)
    return ordered(np.fromiter(totals.values(), np.float64), np.fromiter(totals, np.int64))


def ordered(scores: Scores, rows: Rows) -> tuple[Scores, Rows]:
    """Sort by score, highest first; equal scores in order of rows."""
    order = np.lexsort((rows, -scores))
    return scores[order], rows[order]


def relative(scores: Scores, *, floor: float) -> Scores:
    """Bring one query's scores to [0, 1]:  (s - floor) / (max s - floor);  all 0 where no score exceeds the floor.

    Args:
        scores: shape (n,).
        floor: the lowest score there can be (-1 for a cosine, 0 for BM25), not the lowest seen.

    Source: Bruch, Gai & Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", 2023 (TMM).
    """
    top = float(scores.max(initial=floor))
    if top <= floor:
        return np.zeros(len(scores))
    return np.asarray((scores - floor) / (top - floor))


def weighted(dense: Scores, bm25: Scores, *, weight: float = 0.8) -> Scores:
    """Convex combination of relative scores:  weight * dense + (1 - weight) * bm25.

    Args:
        dense: cosines of one query's candidates, shape (n,).
        bm25: their BM25 scores, 0 without a common word, shape (n,).
        weight: of the dense half; 0.8 is the value its source recommends without tuning.

    Source: Bruch, Gai & Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", 2023 (TM2C2).
    """
    return weight * relative(dense, floor=-1.0) + (1.0 - weight) * relative(bm25, floor=0.0)


def mmr(relevance: Scores, vectors: NDArray[np.float32], k: int, *, weight: float = 0.5) -> list[int]:
    """Maximal marginal relevance: pick, one by one, what is relevant and unlike what is already picked.

        next = argmax over the rest of  weight * relevance(d) - (1 - weight) * max over picked p of cos(d, p)

    Args:
        relevance: cosines with the query, shape (n,).
        vectors: unit vectors of the candidates, shape (n, dim).
        k: at most this many.
        weight: 1 is plain relevance.

    Returns:
        positions in order of picking.

    Source: Carbonell & Goldstein, "The Use of MMR, Diversity-Based Reranking", 1998.
    """
    picked: list[int] = []
    closest = np.full(len(relevance), -np.inf)
    rest = np.ones(len(relevance), dtype=bool)
    while len(picked) < min(k, len(relevance)):
        redundancy = closest if picked else np.zeros(len(relevance))
        value = np.where(rest, weight * relevance - (1.0 - weight) * redundancy, -np.inf)
        best = int(np.argmax(value))
        picked.append(best)
        rest[best] = False
        closest = np.maximum(closest, vectors @ vectors[best])
    return picked
