"""Report: what a router earned on a log, beside every fixed arm, chance and the oracle, with intervals.

All policies are compared on the same queries, and resampling draws queries with the same text together. ``Report``
and its rows are data (``report_data``); here they are computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.calibration import calibration_test, reliability
from ragft_plugin.evaluation.frontier import Point, aiq, choose, fixed_points, headroom_captured, margin
from ragft_plugin.evaluation.intervals import Interval, bootstrap_mean, bootstrap_means, paired_bootstrap
from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.evaluation.report_data import VERSION, GroupRow, Mistake, PolicyRow, Report
from ragft_plugin.types import FloatArray

__all__ = ["VERSION", "GroupRow", "Mistake", "PolicyRow", "Report", "build_report"]

MISTAKES = 20
IntArray = NDArray[np.intp]


def build_report(
    outcomes: Outcomes,
    arm: ArrayLike,
    *,
    cost: ArrayLike | None = None,
    confidence: ArrayLike | None = None,
    stage: Sequence[str] | None = None,
    cost_weight: float = 0.0,
    best_arm: str | None = None,
    others: Mapping[str, ArrayLike] | None = None,
    frontier: Iterable[Point] = (),
    title: str = "Router",
    notes: Sequence[str] = (),
    seed: int = 0,
) -> Report:
    """Compare a router's choices with all that a log knows.

    Args:
        outcomes: full feedback, not fitted on.
        arm: index of the arm the router chose, shape (n,).
        cost: what each query cost, evidence included, shape (n,); None means the chosen arm's cost.
        confidence: that the chosen arm's answer is good, shape (n,), in [0, 1].
        stage: last stage gathered, n names.
        cost_weight: reward that one unit of cost is worth.
        best_arm: the arm that was best on the training rows; None takes the best on these rows, which flatters
            the arm and not the router.
        others: name -> index of chosen arms, shape (n,), of methods to compare with.
        frontier: points of the router at several cost weights.
        title: what is evaluated.
        notes: what a reader must know.
        seed: of the resampling.

    Raises:
        DataError: under partial feedback (use ``policy_value``), or for wrong shapes or arms.
    """
    if not outcomes.full_feedback:
        raise DataError("a report needs every arm's reward on every query; under partial feedback use policy_value")
    n = len(outcomes)
    reward, price, rows = outcomes.reward, outcomes.cost, np.arange(n)
    net = reward - cost_weight * price
    groups = outcomes.text_groups
    chosen = _choices("arm", arm, outcomes)
    spent = price[rows, chosen] if cost is None else _column("cost", cost, n)
    stated = None if confidence is None else _column("confidence", confidence, n)

    ideal = choose(reward, price, cost_weight)
    known = [(name, "fixed", reward[:, j], price[:, j]) for j, name in enumerate(outcomes.arms)]
    known.append(("random", "random", reward.mean(axis=1), price.mean(axis=1)))
    for name, choice in (others or {}).items():
        index = _choices(name, choice, outcomes)
        known.append((name, "other", reward[rows, index], price[rows, index]))
    known.append(("router", "router", reward[rows, chosen], spent))
    known.append(("oracle", "oracle", reward[rows, ideal], price[rows, ideal]))

    best = _best(outcomes, net, best_arm)
    mine, base, top = reward[rows, chosen] - cost_weight * spent, net[:, best], net[rows, ideal]
    points, fixed = tuple(frontier), fixed_points(reward, price, outcomes.arms)
    return Report(
        title=title,
        n=n,
        cost_weight=float(cost_weight),
        best_arm=outcomes.arms[best],
        policies=_policies(known, cost_weight, groups, seed),
        gain=paired_bootstrap(mine, base, seed=seed, groups=groups),
        headroom=_headroom(mine, base, top, groups, seed),
        frontier=points,
        fixed=tuple(fixed),
        aiq=_aiq(points, fixed) if points else None,
        margin=margin(points, fixed) if points else None,
        calibration=None if stated is None else calibration_test(stated, reward[rows, chosen], seed=seed),
        reliability=() if stated is None else tuple(reliability(stated, reward[rows, chosen])),
        stage_share=_shares(stage, n),
        groups=_groups(outcomes, mine, base, top, seed),
        mistakes=_mistakes(outcomes, net, top - mine, chosen, ideal, stated),
        notes=tuple(notes),
    )


def _policies(
    known: Sequence[tuple[str, str, FloatArray, FloatArray]], cost_weight: float, groups: IntArray, seed: int
) -> tuple[PolicyRow, ...]:
    table = np.column_stack([x for _, _, earned, paid in known for x in (earned, paid, earned - cost_weight * paid)])
    found = bootstrap_means(table, seed=seed, groups=groups)
    return tuple(PolicyRow(name, kind, *found[3 * i : 3 * i + 3]) for i, (name, kind, _, _) in enumerate(known))


def _best(outcomes: Outcomes, net: FloatArray, name: str | None) -> int:
    if name is None:
        return int(np.argmax(np.round(net.mean(axis=0), 9)))
    if name not in outcomes.arms:
        raise DataError(f"best_arm {name!r} is not in the log, which has {', '.join(outcomes.arms)}")
    return outcomes.arms.index(name)


def _headroom(mine: FloatArray, base: FloatArray, top: FloatArray, groups: IntArray, seed: int) -> Interval:
    """Share of headroom; its interval is that of a ratio of means, linearised about it (delta method)."""
    share = headroom_captured(float(mine.mean()), float(base.mean()), float(top.mean()))
    room = float((top - base).mean())
    if room <= 1e-12:
        return Interval(share, share, share)
    found = bootstrap_mean(share + (mine - base - share * (top - base)) / room, seed=seed, groups=groups)
    return Interval(share, found.low, found.high)


def _aiq(points: Sequence[Point], fixed: Sequence[Point]) -> float:
    low = max(min(p.cost for p in points), min(p.cost for p in fixed))
    return aiq(points, low, max(low, *(p.cost for p in fixed)))


def _groups(outcomes: Outcomes, mine: FloatArray, base: FloatArray, top: FloatArray, seed: int) -> tuple[GroupRow, ...]:
    names = np.array([row.group if row.group is not None else "" for row in outcomes.rows])
    texts = outcomes.text_groups
    table = []
    for name in np.unique(names) if (names != "").any() else ():
        at = names == name
        gain = paired_bootstrap(mine[at], base[at], seed=seed, groups=texts[at])
        best, router, oracle = (float(x[at].mean()) for x in (base, mine, top))
        table.append(GroupRow(str(name) or "(none)", int(at.sum()), best, router, oracle, gain))
    return tuple(sorted(table, key=lambda g: (-g.n, g.group)))


def _mistakes(
    outcomes: Outcomes, net: FloatArray, lost: FloatArray, chosen: IntArray, ideal: IntArray, stated: FloatArray | None
) -> tuple[Mistake, ...]:
    """Largest losses first; among equal ones those made with most confidence."""
    sure = np.zeros(len(lost)) if stated is None else stated
    wrong = net[np.arange(len(lost)), ideal] > net[np.arange(len(lost)), chosen] + 1e-9
    order = np.lexsort((-sure, -np.round(lost, 9)))
    found = []
    for i in order[wrong[order]][:MISTAKES]:
        row = outcomes.rows[i]
        found.append(
            Mistake(
                query_id=row.query_id,
                query=row.query,
                chosen=outcomes.arms[chosen[i]],
                best=outcomes.arms[ideal[i]],
                reward=float(outcomes.reward[i, chosen[i]]),
                regret=float(lost[i]),
                confidence=None if stated is None else float(stated[i]),
            )
        )
    return tuple(found)


def _shares(stage: Sequence[str] | None, n: int) -> dict[str, float]:
    if stage is None:
        return {}
    if len(stage) != n:
        raise DataError(f"stage must have {n} names, got {len(stage)}")
    return {name: sum(s == name for s in stage) / n for name in dict.fromkeys(stage)}


def _choices(name: str, values: ArrayLike, outcomes: Outcomes) -> IntArray:
    index = np.asarray(values)
    n, a = outcomes.reward.shape
    if index.shape != (n,) or not np.issubdtype(index.dtype, np.integer):
        raise DataError(f"{name} must be integers of shape ({n},), got {index.dtype} of shape {index.shape}")
    if ((index < 0) | (index >= a)).any():
        raise DataError(f"{name} must be in 0..{a - 1}, one of {', '.join(outcomes.arms)}")
    return index.astype(np.intp)


def _column(name: str, values: Any, n: int) -> FloatArray:
    column = np.asarray(values, dtype=np.float64)
    if column.shape != (n,) or not np.isfinite(column).all():
        raise DataError(f"{name} must be finite numbers of shape ({n},), got shape {column.shape}")
    return column
