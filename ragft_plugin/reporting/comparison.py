"""Retrieval beside fine-tuning, measured on the user's own questions.

The arms compared are the best one that retrieves without an adapter and the best one that uses an adapter without
retrieval. Every line says how it was measured; what was not measured is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.evaluation.intervals import bootstrap_mean
from ragft_plugin.evaluation.outcomes import Outcomes, reads_passages
from ragft_plugin.routing.adapters import AdapterRecord, staleness

RIGHT = 0.5  # a reward from which an answer counts as right


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One line of the comparison.

    Attributes:
        criterion: what is compared.
        retrieval, adapter: the values, in words.
        measured: how.
    """

    criterion: str
    retrieval: str
    adapter: str
    measured: str


def adapter_of(arm: str) -> str | None:
    """The adapter in an arm's name, or None.

    Example:
        >>> adapter_of("rag+adapter:legal"), adapter_of("rag")
        ('legal', None)
    """
    head, colon, name = arm.partition("adapter:")
    return name if colon and head in ("", "rag+") else None


def compare(
    outcomes: Outcomes,
    *,
    adapters: Mapping[str, AdapterRecord] | None = None,
    facts: Sequence[ComparisonRow] = (),
    cost_weight: float = 0.0,
) -> tuple[ComparisonRow, ...]:
    """Compare retrieval with fine-tuning on a log; empty if it lacks one of the two.

    Args:
        outcomes: the log, with every arm's reward.
        adapters: name -> what is known of its training, to tell fresh questions from others.
        facts: further lines measured elsewhere, such as training time and size of the data.
        cost_weight: reward that one unit of cost is worth, to choose the best arm of each kind.
    """
    net = outcomes.reward - cost_weight * outcomes.cost
    left = _best(outcomes, net, [a for a in outcomes.arms if reads_passages(a) and adapter_of(a) is None])
    right = _best(outcomes, net, [a for a in outcomes.arms if not reads_passages(a) and adapter_of(a) is not None])
    if left is None or right is None:
        return ()
    arms = outcomes.arms[left], outcomes.arms[right]
    a, b = outcomes.reward[:, left], outcomes.reward[:, right]
    n = len(outcomes)
    rows = [
        ComparisonRow("arm", *arms, "best of its kind on these questions"),
        ComparisonRow("quality", _mean(a), _mean(b), f"mean reward, 95 % interval, n = {n:,}"),
        ComparisonRow(
            "only this one is right",
            f"{np.mean((a >= RIGHT) & (b < RIGHT)):.1%}",
            f"{np.mean((b >= RIGHT) & (a < RIGHT)):.1%}",
            f"share of questions, reward >= {RIGHT:g}",
        ),
        ComparisonRow(
            "cost per answer",
            f"{outcomes.cost[:, left].mean():.4g}",
            f"{outcomes.cost[:, right].mean():.4g}",
            "mean, in the unit of the log",
        ),
    ]
    rows += _fresh(outcomes, a, b, (adapters or {}).get(adapter_of(arms[1]) or ""))
    groups = [row.group for row in outcomes.rows]
    for group in dict.fromkeys(g for g in groups if g is not None):
        at = np.array([g == group for g in groups])
        rows.append(ComparisonRow(f"quality: {group}", _mean(a[at]), _mean(b[at]), f"n = {int(at.sum()):,}"))
    return (*rows, *facts)


def newer_evidence(outcomes: Outcomes, record: AdapterRecord) -> NDArray[np.bool_]:
    """Which questions have passages newer than an adapter, or changed since its training; shape (n,)."""
    return np.array(
        [staleness(record, [p.passage() for p in row.passages or ()]) is not None for row in outcomes.rows], dtype=bool
    )


def _fresh(outcomes: Outcomes, a: np.ndarray, b: np.ndarray, record: AdapterRecord | None) -> list[ComparisonRow]:
    """Questions whose evidence is newer than the adapter, or changed since."""
    if record is None:
        return []
    newer = newer_evidence(outcomes, record)
    if not newer.any():
        return []
    how = f"questions whose passages are newer than the adapter, n = {int(newer.sum()):,}"
    return [ComparisonRow("quality on fresh questions", _mean(a[newer]), _mean(b[newer]), how)]


def _best(outcomes: Outcomes, net: np.ndarray, names: Sequence[str]) -> int | None:
    columns = [outcomes.arms.index(name) for name in names]
    return max(columns, key=lambda j: (round(float(net[:, j].mean()), 9), -j)) if columns else None


def _mean(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{float(values.mean()):.3f}"
    interval = bootstrap_mean(values)
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
