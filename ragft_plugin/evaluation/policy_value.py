"""The value of a policy on an outcome log: exact under full feedback, estimated off-policy under partial feedback.

This is where a log of ``Outcomes`` meets the estimators of ``ope``, so that callers need not know which of the two
their log is. Value is reward - cost_weight * cost of the chosen arm; what stages of evidence cost is the router's
to add.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.logged import Log, check_log
from ragft_plugin.evaluation.ope import TERMS, Estimate, IntervalKind, estimate
from ragft_plugin.evaluation.outcome_table import Outcomes
from ragft_plugin.types import FloatArray


def policy_value(
    outcomes: Outcomes,
    dist: ArrayLike,
    predicted: ArrayLike | None = None,
    *,
    method: str | None = None,
    over: ArrayLike | None = None,
    cost_weight: float = 0.0,
    interval: IntervalKind = "normal",
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """What a policy earns on a log, with an interval.

    Args:
        outcomes: the log, full or partial feedback. Forced rows of a partial log are left out.
        dist: probabilities of the policy, shape (n, a), rows sum to 1.
        predicted: predicted *reward* (not net of cost), shape (n, a), fitted on other rows.
        method: "ips", "snips", "direct_method" or "doubly_robust"; None takes the last if there are predictions
            and "snips" if not. Under full feedback all are the same, and exact: sum_a pi(a | x) r(x, a).
        over: probabilities of another policy, shape (n, a); then the gain over it is estimated, query by query.
        cost_weight: reward that one unit of cost is worth.
        interval: "normal" or "bootstrap".
        level: confidence.
        seed: of the bootstrap.

    Raises:
        DataError: for a log that cannot be learnt from, more than 5 % unsupported mass in either policy, or
            wrong shapes.
    """
    outcomes.require_learnable()
    if method is None:
        method = "snips" if predicted is None and not outcomes.full_feedback else "doubly_robust"
    log = _aligned(outcomes, "dist", dist, predicted, cost_weight)
    baseline = None
    if over is not None:
        other = _aligned(outcomes, "over", over, predicted, cost_weight)
        estimate(other, method)  # refuses a policy that the log does not support
        baseline = TERMS[method](other)
    return estimate(log, method, baseline=baseline, interval=interval, level=level, seed=seed)


def _aligned(outcomes: Outcomes, name: str, dist: ArrayLike, predicted: ArrayLike | None, cost_weight: float) -> Log:
    net = outcomes.reward - cost_weight * outcomes.cost
    pi = _like(name, dist, net).copy()
    known = ~np.isnan(net).any(axis=1)
    arm = np.where(known, 0, outcomes.arm)
    model: FloatArray | None = np.zeros(net.shape) if known.all() else None
    if predicted is not None:
        model = _like("predicted", predicted, net) - cost_weight * outcomes.cost
    propensity = np.ones(len(net)) if outcomes.propensity is None else outcomes.propensity
    logged = outcomes.propensities
    # A row with all rewards is as good as one whose only arm earned the policy's exact value with certainty:
    # every estimator then gives that value for it.
    exact = (pi * np.where(np.isnan(net), 0.0, net)).sum(axis=1)
    wrong = known & ((np.abs(pi.sum(axis=1) - 1.0) > 1e-6) | (pi < 0.0).any(axis=1))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"rows of {name} must be probabilities that sum to 1; row {row} has {pi[row].sum()}")
    for table, value in ((pi, 1.0), (logged, 1.0), (model, exact[known])):
        if table is not None:
            table[known] = 0.0
            table[known, 0] = value
    reward = np.where(known, exact, net[np.arange(len(net)), arm])
    return check_log(reward, arm, propensity, pi, model, logged_dist=logged, forced=outcomes.forced & ~known)


def _like(name: str, values: ArrayLike, net: FloatArray) -> FloatArray:
    table = np.asarray(values, dtype=np.float64)
    if table.shape != net.shape:
        raise DataError(f"{name} must have one row per outcome and one column per arm, {net.shape}; got {table.shape}")
    return table
