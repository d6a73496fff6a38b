"""Measures of a ranked list: hit rate, recall, reciprocal rank, nDCG.

A list is passage ids, best first; a repeated id counts where it stands first. An empty list scores zero, so a
retriever cannot gain by being silent; a query without relevant passages is an error, since no list could be right.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import log2

from ragft_plugin.errors import DataError


def hit(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """1 if a relevant passage is among the first ``k``, else 0."""
    return float(_found(ranked, relevant, k) > 0)


def recall(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Share of the relevant passages that are among the first ``k``."""
    return _found(ranked, relevant, k) / len(set(relevant))


def reciprocal_rank(ranked: Sequence[str], relevant: Collection[str], k: int | None = None) -> float:
    """1 / rank of the first relevant passage, 0 if there is none among the first ``k``. Its mean is MRR."""
    wanted = _wanted(relevant)
    return next((1.0 / rank for rank, id in enumerate(_first(ranked, k), 1) if id in wanted), 0.0)


def ndcg(ranked: Sequence[str], relevant: Collection[str] | Mapping[str, float], k: int | None = None) -> float:
    """Normalised discounted cumulative gain.

        DCG = sum_rank gain(rank) / log2(rank + 1),   nDCG = DCG / DCG of the ideal order

    Args:
        ranked: ids, best first.
        relevant: ids (gain 1), or id -> gain > 0.
        k: cut-off, None for the whole list.

    Source: Jarvelin & Kekalainen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002.
    """
    _wanted(relevant)
    gain = dict(relevant) if isinstance(relevant, Mapping) else dict.fromkeys(relevant, 1.0)
    if not any(g > 0.0 for g in gain.values()):
        raise DataError("no passage has a positive gain; nDCG needs at least one")
    ideal = sorted((max(0.0, g) for g in gain.values()), reverse=True)[:k]
    return _dcg([max(0.0, gain.get(id, 0.0)) for id in _first(ranked, k)]) / _dcg(ideal)


def _dcg(gains: Sequence[float]) -> float:
    return sum(g / log2(rank + 1) for rank, g in enumerate(gains, 1))


def _found(ranked: Sequence[str], relevant: Collection[str], k: int) -> int:
    return len(_wanted(relevant).intersection(_first(ranked, k)))


def _first(ranked: Sequence[str], k: int | None) -> list[str]:
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return list(dict.fromkeys(ranked))[:k]


def _wanted(relevant: Collection[str]) -> set[str]:
    if not relevant or isinstance(relevant, str):
        raise DataError(f"expected ids of relevant passages, got {relevant!r}")
    return set(relevant)
