"""What a new router would have earned on a log of decisions, before it replaces the one that wrote the log.

The router is fitted on other rows than those it is judged on (cross-fitting), and judged by the estimators of
``ragft_plugin.evaluation.ope`` against the policy that logged. Where chance gathered all evidence for some queries
only, these stand for all: the propensity of such a row is

    P(evidence_i) * p(a_i | evidence_i)

and IPS, a mean over all n rows of which the others contribute nothing, is the mean over the m complete ones times
m / n. The direct method and the doubly robust estimate need every row's evidence and are then left out.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.ope import Estimate
from ragft_plugin.evaluation.outcomes import Outcomes, reads_passages
from ragft_plugin.evaluation.policy_value import policy_value
from ragft_plugin.routing.completeness import Completeness
from ragft_plugin.routing.learning import Progress
from ragft_plugin.routing.router import Router
from ragft_plugin.routing.tracing import Trace
from ragft_plugin.types import FloatArray

FOLDS = 5
METHODS = ("ips", "snips", "direct_method", "doubly_robust")
PARTIAL_METHODS = ("ips", "snips")


def off_policy_figures(
    logged: Outcomes,
    *,
    more: Outcomes | None = None,
    cost_weight: float = 0.0,
    gated: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    **fit: Any,
) -> dict[str, Any]:
    """Estimates of a new router on the log of another policy.

    Args:
        logged: rows of a decision log, partial feedback with propensities.
        more: further rows to fit on, on which nothing is estimated.
        cost_weight: at which the router decides.
        gated: whether its gate counts.
        seed: of folds and resampling.
        progress: called with (routers fitted, routers to fit).
        **fit: further arguments of ``Router.fit``.

    Returns:
        ``n`` rows, ``complete`` ones among them, ``logged`` (mean reward of the logging policy, with interval) and
        ``logged_cost``; the new router's ``estimates`` by method, its ``gain`` over the logging policy and its
        ``mean_cost``. An estimate is ``{value, low, high, n, effective_sample_size, ...}``; one that the log cannot
        support is ``{"refused": why}``.

    Raises:
        DataError: if the log cannot be learnt from or split.
    """
    logged = logged.require_learnable()
    if logged.full_feedback:
        raise DataError("every arm was run on every query, so nothing need be estimated; cross-validate instead")
    complete = Completeness.of(logged)
    dist, predicted, cost = np.zeros(logged.reward.shape), np.zeros(logged.reward.shape), np.zeros(len(logged))
    tell = progress or (lambda done, total: None)
    for k, (train, test) in enumerate(logged.folds(FOLDS, seed), 1):
        rows = logged.take(train)
        if more is not None:
            rows = Outcomes.from_rows([*more.rows, *rows.rows], logged.arms)
        router = Router(cost_weight=cost_weight).fit(rows, seed=seed, gate=gated, **fit)
        tell(k, FOLDS)
        judged = test[complete.rows[test]]
        if not len(judged):
            continue
        trace = Trace.of(router, logged.take(judged))
        course = trace.course(cost_weight)
        dist[judged, course.arm] = 1.0
        predicted[judged] = np.stack(trace.probability)[course.stage, np.arange(len(judged))]
        cost[judged] = course.cost
    whole = _at_complete_rows(logged, complete)
    dist, predicted = dist[complete.rows], predicted[complete.rows]
    behaviour = np.array([[(row.propensities or {}).get(a, np.nan) for a in logged.arms] for row in whole.rows])
    known = ~np.isnan(whole.reward).any(axis=1)
    behaviour[known & np.isnan(behaviour).any(axis=1)] = 1.0 / len(logged.arms)
    behaviour = np.nan_to_num(behaviour)
    behaviour /= behaviour.sum(axis=1, keepdims=True)
    share = float(complete.rows.mean())
    methods = METHODS if complete.is_whole else PARTIAL_METHODS
    found = {name: _estimate(whole, dist, predicted, name, share) for name in methods}
    best = methods[-1]
    return {
        "n": len(logged),
        "complete": int(complete.rows.sum()),
        "folds": FOLDS,
        "logged": _estimate(whole, behaviour, None, "snips", share),
        "logged_cost": float(np.mean([_logged_cost(logged, i) for i in range(len(logged))])),
        "estimates": found,
        "gain": _estimate(whole, dist, predicted, best, share, over=behaviour),
        "mean_cost": float(np.average(cost[complete.rows], weights=complete.weight)),
    }


def _at_complete_rows(logged: Outcomes, complete: Completeness) -> Outcomes:
    """The complete rows, with the probability of having them complete in their propensity."""
    whole = logged.take(complete.rows)
    if complete.is_whole or whole.propensity is None:
        return whole
    return replace(whole, propensity=whole.propensity * whole.stage_probability)


def _estimate(
    outcomes: Outcomes,
    dist: FloatArray,
    predicted: FloatArray | None,
    method: str,
    share: float,
    over: FloatArray | None = None,
) -> dict[str, Any]:
    try:
        found = policy_value(outcomes, dist, predicted, method=method, over=over)
    except DataError as error:
        return {"refused": str(error)}
    return _plain(found, share if method == "ips" else 1.0)


def _plain(found: Estimate, scale: float) -> dict[str, Any]:
    fields = asdict(found)
    for name in ("value", "low", "high"):
        fields[name] *= scale
    # JSON knows no infinity: one row alone has no interval.
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in fields.items()}


def _logged_cost(logged: Outcomes, i: int) -> float:
    """What the logged query cost: its stages, and its arm beyond them."""
    if logged.arm[i] < 0:  # every arm was run on the query, and none of them was chosen
        return float(logged.cost[i].mean())
    row, arm = logged.rows[i], logged.arms[int(logged.arm[i])]
    spent = float(sum(row.stage_cost.values()))
    if arm in row.drafts and row.stage in ("draft", "agreement"):
        return spent
    paid = row.stage_cost.get("passages", 0.0) if reads_passages(arm) else 0.0
    return spent + max(0.0, float(logged.cost[i, int(logged.arm[i])]) - paid)
