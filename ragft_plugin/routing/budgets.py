"""Budgets: a cost weight with a promise, from held-out rows.

"Mean cost at most b" or "mean reward at least q", each with probability at least 1 - delta over the held-out rows.
Weights are tested one after another, beginning where the promise is easiest to keep, and testing stops at the first
that fails; so no correction for their number is needed (fixed-sequence testing).

Source: Angelopoulos, Bates, Candes, Jordan & Lei, "Learn then Test", 2021; the p-value is Hoeffding-Bentkus from
Bates et al., "Distribution-free, risk-controlling prediction sets", 2021. It holds for any n and any distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ragft_plugin.errors import ConfigError
from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.routing.router import Router
from ragft_plugin.routing.tracing import Trace


@dataclass(frozen=True, slots=True)
class Budget:
    """A weight that keeps a promise.

    Attributes:
        cost_weight: to be used with the router; None if no weight keeps the promise.
        cost: mean cost on the held-out rows at that weight.
        reward: mean reward on them.
        confidence: 1 - delta.
        tested: how many weights were tested.
    """

    cost_weight: float | None
    cost: float
    reward: float
    confidence: float
    tested: int


def risk_p_value(mean: float, n: int, limit: float) -> float:
    """P-value of "the true mean of a loss in [0, 1] exceeds ``limit``".

    Args:
        mean: of the observed losses.
        n: how many.
        limit: in (0, 1).

    Example:
        >>> risk_p_value(0.5, 100, 0.2)
        1.0
    """
    if mean >= limit:
        return 1.0
    from scipy.stats import binom

    m = max(mean, 1e-12)
    h = m * math.log(m / limit) + (1.0 - m) * math.log((1.0 - m) / (1.0 - limit))
    return float(min(1.0, math.exp(-n * h), math.e * binom.cdf(math.ceil(n * mean), n, limit)))


def within_budget(
    router: Router,
    outcomes: Outcomes,
    *,
    max_cost: float | None = None,
    min_reward: float | None = None,
    delta: float = 0.05,
) -> Budget:
    """The best weight that keeps a budget, or the cheapest that keeps a quality.

    Args:
        router: fitted on other rows.
        outcomes: held-out rows with full feedback.
        max_cost: mean cost of a query may be at most this; then the weight is the smallest that keeps it.
        min_reward: mean reward must be at least this; then the weight is the largest that keeps it.
        delta: probability of being wrong.

    Raises:
        ConfigError: unless exactly one of the two is given, or if ``delta`` is not in (0, 1).
        DataError: if the log lacks arms or evidence that the router needs.
    """
    if (max_cost is None) == (min_reward is None):
        raise ConfigError("give either max_cost or min_reward")
    if not 0.0 < delta < 1.0:
        raise ConfigError(f"delta must be in (0, 1), not {delta}")
    if not outcomes.full_feedback:
        raise ConfigError("a budget needs held-out rows on which every arm was run")
    trace = Trace.of(router, outcomes)
    plan = router.fitted().plan
    weights = plan.weights if min_reward is not None else plan.weights[::-1]
    costs = trace.costs
    most = float((costs.spent + costs.arm.max(axis=2)).max())
    kept: tuple[float, float, float] | None = None
    tested = 0
    for weight in weights.tolist():
        course = trace.course(weight)
        tested += 1
        if max_cost is not None:
            if most <= max_cost:
                p = 0.0
            elif not max_cost > 0.0:
                p = 1.0
            else:
                p = risk_p_value(float(course.cost.mean()) / most, len(course.cost), max_cost / most)
        else:
            limit = 1.0 - float(min_reward or 0.0)
            p = 0.0 if limit >= 1.0 else 1.0
            if 0.0 < limit < 1.0:
                p = risk_p_value(float(1.0 - course.reward.mean()), len(course.reward), limit)
        if p > delta:
            break
        kept = (weight, float(course.cost.mean()), float(course.reward.mean()))
    if kept is None:
        return Budget(None, math.nan, math.nan, 1.0 - delta, tested)
    return Budget(kept[0], kept[1], kept[2], 1.0 - delta, tested)


__all__ = ["Budget", "risk_p_value", "within_budget"]
