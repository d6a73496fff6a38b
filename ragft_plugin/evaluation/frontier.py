"""Frontier: what quality a router buys for how much cost, against what anyone can have.

Mixing two policies by a coin reaches every point on the line between them. So a set of policies is worth its
non-decreasing convex hull, and a router is worth something only above the line between the fixed arms.

Shapes: n queries, a arms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragft_plugin.types import FloatArray


@dataclass(frozen=True, slots=True)
class Point:
    """A policy as mean cost and mean reward.

    Attributes:
        cost: mean cost of a query, in the user's unit.
        reward: mean reward of a query.
        name: which policy: an arm, or a router at some cost weight.
        cost_weight: reward that one unit of cost is worth to that policy; None for a fixed arm.
    """

    cost: float
    reward: float
    name: str = ""
    cost_weight: float | None = None


def fixed_points(reward: ArrayLike, cost: ArrayLike, arms: Sequence[str]) -> list[Point]:
    """Every arm, used for all queries.

    Args:
        reward: shape (n, a).
        cost: shape (n, a).
        arms: a names.
    """
    r, c = _tables(reward, cost)
    if len(arms) != r.shape[1]:
        raise ValueError(f"{r.shape[1]} columns but {len(arms)} arms: {', '.join(arms)}")
    return [Point(float(c[:, j].mean()), float(r[:, j].mean()), name) for j, name in enumerate(arms)]


def sweep(
    predicted: ArrayLike, reward: ArrayLike, cost: ArrayLike, cost_weights: Iterable[float] | None = None
) -> list[Point]:
    """The curve of a one-stage router: at each weight every query takes the arm of greatest predicted net value.

    Args:
        predicted: predicted reward, shape (n, a), fitted on other rows.
        reward: what the arms truly earned, shape (n, a).
        cost: shape (n, a).
        cost_weights: each >= 0; None takes ``weight_grid``.

    Returns:
        One point per weight, smallest weight first.
    """
    r, c = _tables(reward, cost)
    q = np.asarray(predicted, dtype=np.float64)
    if q.shape != r.shape:
        raise ValueError(f"predicted must have shape {r.shape} as reward has, got {q.shape}")
    weights = sorted(weight_grid(c) if cost_weights is None else cost_weights)
    rows = np.arange(len(r))
    points = []
    for w in weights:
        # Ties go to the cheaper arm, then to the earlier one, so that a weight of 0 wastes nothing.
        chosen = choose(q, c, w)
        points.append(Point(float(c[rows, chosen].mean()), float(r[rows, chosen].mean()), f"w={w:g}", w))
    return points


def choose(value: ArrayLike, cost: ArrayLike, cost_weight: float = 0.0) -> NDArray[np.intp]:
    """Per query the arm of greatest value - cost_weight * cost, shape (n,); ties to the cheaper, then the first.

    With true rewards as values this is the oracle.
    """
    v, c = _tables(value, cost)
    if not 0.0 <= cost_weight < inf:
        raise ValueError(f"cost_weight must be finite and at least 0, got {cost_weight}")
    # Rounded, so that the same decision is made whatever the order of summation was.
    net = np.round(v - cost_weight * c, 9)
    best = net == net.max(axis=1, keepdims=True)
    return np.asarray(np.argmin(np.where(best, c, inf), axis=1), dtype=np.intp)


def weight_grid(cost: ArrayLike, size: int = 24) -> list[float]:
    """Cost weights from "cost is nothing" to "one unit is worth more than any answer": 0 and a geometric grid.

    Args:
        cost: shape (n, a).
        size: how many, at least 2.
    """
    c = np.asarray(cost, dtype=np.float64)
    spread = c.max(axis=1) - c.min(axis=1)
    if not (spread > 0.0).any():
        return [0.0]
    # Beyond 1 / (smallest difference) even a certain reward of 1 does not pay for the dearer arm.
    steps = np.diff(np.sort(c, axis=1), axis=1)
    top = 2.0 / float(steps[steps > 0.0].min())
    bottom = 1e-3 / float(spread.max())
    return [0.0, *np.geomspace(bottom, top, max(1, size - 1)).tolist()]


def convex_hull(points: Iterable[Point]) -> list[Point]:
    """Non-decreasing convex hull: the best that mixing the points can reach, cheapest first.

    A point stays if no mixture of others is at least as good for at most its cost.

    Source: Hu et al., "RouterBench", 2024, section 3.

    Example:
        >>> [p.name for p in convex_hull([Point(1, 0.5, "a"), Point(2, 0.5, "b"), Point(3, 0.9, "c")])]
        ['a', 'c']
    """
    hull: list[Point] = []
    for p in sorted(points, key=lambda p: (p.cost, -p.reward)):
        if hull and p.reward <= hull[-1].reward:
            continue  # dearer and no better
        # The middle of three goes if it lies on or below the line between its neighbours.
        while len(hull) >= 2 and _turns_up(hull[-2], hull[-1], p):
            hull.pop()
        hull.append(p)
    if not hull:
        raise ValueError("a frontier needs at least one point")
    return hull


def reward_at(points: Iterable[Point], cost: float) -> float:
    """Best mean reward that mixing the points reaches for a mean cost of at most ``cost``; -inf below all."""
    hull = convex_hull(points)
    if cost < hull[0].cost:
        return -inf
    return float(np.interp(cost, [p.cost for p in hull], [p.reward for p in hull]))


def cost_at(points: Iterable[Point], reward: float) -> float:
    """Least mean cost at which mixing the points reaches a mean reward of ``reward``; inf above all."""
    hull = convex_hull(points)
    if reward > hull[-1].reward:
        return inf
    return float(np.interp(reward, [p.reward for p in hull], [p.cost for p in hull]))


def aiq(points: Iterable[Point], cost_low: float | None = None, cost_high: float | None = None) -> float:
    """Average improvement in quality: mean reward of the hull over a range of costs.

        AIQ = 1 / (c_high - c_low) * integral of hull(c) dc from c_low to c_high

    Two routers are comparable over the same range only. Beyond its last point a hull stays level.

    Args:
        points: of one router.
        cost_low: None means the cheapest point, and no less is allowed, as the hull is undefined there.
        cost_high: None means the dearest point.

    Source: Hu et al., "RouterBench", 2024, section 3.

    Example:
        >>> aiq([Point(0, 0.0), Point(1, 1.0)], 0, 2)
        0.75
    """
    known = list(points)
    hull = convex_hull(known)
    low = hull[0].cost if cost_low is None else cost_low
    high = max(p.cost for p in known) if cost_high is None else cost_high
    if low < hull[0].cost or high < low:
        raise ValueError(f"range of costs must lie in [{hull[0].cost}, inf), got [{low}, {high}]")
    if high == low:
        return reward_at(hull, low)
    inner = [p.cost for p in hull if low < p.cost < high]
    xs = [low, *inner, high]
    ys = [reward_at(hull, x) for x in xs]
    area = sum((b - a) * (u + v) / 2.0 for a, b, u, v in zip(xs, xs[1:], ys, ys[1:], strict=False))
    return area / (high - low)


def margin(points: Iterable[Point], fixed: Iterable[Point], edge: float = 0.05) -> float:
    """Least height of a router's hull above that of the fixed arms, over the costs in between.

    At the two ends all is spent or nothing, and both meet; so a share ``edge`` of the range is left off at either.

    Args:
        points: of the router.
        fixed: of the fixed arms, see ``fixed_points``.
        edge: in [0, 0.5).

    Returns:
        Negative if somewhere a mixture of fixed arms is better. The range goes from the cheapest fixed arm to
        the dearest, or begins where the router does.
    """
    known = list(fixed)
    ours, theirs = convex_hull(points), convex_hull(known)
    low = max(ours[0].cost, theirs[0].cost)
    high = max(low, *(p.cost for p in known))
    low, high = low + edge * (high - low), high - edge * (high - low)
    # Both are piecewise linear, so the least difference is at a corner or at an end.
    corners = [p.cost for p in (*ours, *theirs) if low < p.cost < high]
    return min(reward_at(ours, c) - reward_at(theirs, c) for c in (low, *corners, high))


def regret(value: ArrayLike, chosen: ArrayLike) -> FloatArray:
    """What each query lost against its best arm, shape (n,), >= 0.

    Args:
        value: net value of every arm, shape (n, a).
        chosen: index of the arm taken, shape (n,).
    """
    v = np.asarray(value, dtype=np.float64)
    return np.asarray(v.max(axis=1) - v[np.arange(len(v)), np.asarray(chosen)], dtype=np.float64)


def headroom_captured(router: float, best_arm: float, oracle: float) -> float:
    """Share of what lies between the best fixed arm and the oracle that the router earns.

        (router - best_arm) / (oracle - best_arm);   0 if there is nothing between them

    Negative if the router loses to the best arm.

    Example:
        >>> headroom_captured(0.75, 0.5, 1.0)
        0.5
    """
    if oracle < best_arm - 1e-12:
        raise ValueError(f"the oracle ({oracle}) cannot earn less than an arm ({best_arm})")
    room = oracle - best_arm
    return (router - best_arm) / room if room > 1e-12 else 0.0


def _turns_up(a: Point, b: Point, c: Point) -> bool:
    return (b.reward - a.reward) * (c.cost - a.cost) <= (c.reward - a.reward) * (b.cost - a.cost)


def _tables(reward: ArrayLike, cost: ArrayLike) -> tuple[FloatArray, FloatArray]:
    r, c = np.asarray(reward, dtype=np.float64), np.asarray(cost, dtype=np.float64)
    if r.ndim != 2 or 0 in r.shape or r.shape != c.shape:
        raise ValueError(f"expected two tables of shape (n, a), got {r.shape} and {c.shape}")
    if np.isnan(r).any() or np.isnan(c).any():
        raise ValueError("every arm must have been run on every query; use policy_value for partial feedback")
    return r, c
