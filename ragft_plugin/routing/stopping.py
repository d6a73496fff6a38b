"""Stopping: pay for the next stage of evidence, or decide now.

Backward induction on the log. At the last stage the best arm is taken. At each earlier one, what continuing earned
more than stopping is regressed on a few numbers that are known by then, and one continues where the regression
says that it pays. What is regressed is the *realised* difference of the two courses on queries that the reward
models had not seen, never a predicted maximum: the larger of two noisy predictions is too high on average, and
would buy evidence for its own sake.

Evidence that costs nothing more is always taken: if the arm one would choose now is the very one that the next stage
runs, then running it first and deciding afterwards is the same price and can only be better informed.

Source: Longstaff & Schwartz, "Valuing American Options by Simulation", Review of Financial Studies, 2001.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.routing.costs import Costs
from ragft_plugin.routing.policies import choose
from ragft_plugin.routing.text import IntArray
from ragft_plugin.types import FloatArray

STAGING_ROWS = 300  # fewer cannot tell when to stop; then every query goes to the same stage
REGRESSORS = 6
PENALTY = 100.0  # ridge on standardised regressors, as if so many rows had shown no difference
FREE = 1e-12
FEW = 30  # fewer rows that would have to pay: none of them does
COLUMNS = REGRESSORS + 2  # intercept, slopes, and whether free evidence is taken


@dataclass(frozen=True, eq=False)
class Course:
    """What became of every query under one policy.

    Attributes:
        stage: index of the stage at which it was decided, shape (n,).
        arm: index of the chosen arm, shape (n,).
        utility: reward minus weighted cost of stages and arm, shape (n,).
    """

    stage: IntArray
    arm: IntArray
    utility: FloatArray


def regressors(probability: FloatArray, net: FloatArray, safe: int) -> FloatArray:
    """What the wish for more evidence depends on, shape (n, 6).

    Args:
        probability: calibrated reward of each arm, shape (n, a).
        net: the same minus weighted marginal cost, shape (n, a).
        safe: index of the best single arm.

    Returns:
        The best net value and its square, its lead over the second and over the safe arm, the mean reward over
        arms, and the chosen arm's uncertainty p (1 - p).
    """
    n, arms = net.shape
    out = np.empty((n, REGRESSORS))
    pick = choose(net)
    rows = np.arange(n)
    best = net[rows, pick]
    second = np.partition(net, arms - 2, axis=1)[:, arms - 2] if arms > 1 else best
    chosen = probability[rows, pick]
    out[:, 0] = best
    out[:, 1] = best * best
    out[:, 2] = best - second
    out[:, 3] = best - net[:, safe]
    out[:, 4] = probability.mean(axis=1)
    out[:, 5] = chosen * (1.0 - chosen)
    return out


def always(stages: int, stop: int) -> FloatArray:
    """Coefficients that decide every query at stage ``stop``, shape (stages - 1, 8)."""
    coef = np.zeros((max(stages - 1, 0), COLUMNS))
    coef[:, 0] = np.where(np.arange(len(coef)) < stop, 1.0, -1.0)
    return coef


def wants_more(
    probability: FloatArray, net: FloatArray, pick: IntArray, extra: FloatArray, safe: int, coef: FloatArray
) -> NDArray[np.bool_]:
    """Whether to continue from a stage, shape (n,).

    Args:
        probability: calibrated reward of each arm, shape (n, a).
        net: the same minus weighted marginal cost, shape (n, a).
        pick: the arm one would choose now, shape (n,).
        extra: weighted price of continuing and then choosing each arm, beyond choosing it now, shape (a,).
        safe: index of the best single arm.
        coef: of this stage, shape (8,).
    """
    if not coef[1:].any():
        return np.full(len(net), coef[0] > 0.0)
    gain = coef[0] + regressors(probability, net, safe) @ coef[1:-1]
    more: NDArray[np.bool_] = np.round(gain, 9) > 0.0
    if coef[-1] > 0.5:
        more |= (extra <= FREE)[pick]
    return more


def extra_price(prices: Costs, stage: int, weight: float) -> FloatArray:
    """Weighted price of gathering the next stage and then choosing each arm, beyond choosing it now, shape (a,)."""
    price: FloatArray = prices.stage[stage + 1] + prices.arm[stage + 1] - prices.arm[stage]
    return weight * price


def follow(
    probability: Sequence[FloatArray],
    reward: FloatArray,
    costs: Costs,
    prices: Costs,
    weight: float,
    safe: int,
    coef: FloatArray,
) -> Course:
    """Let every query take its course.

    Args:
        probability: per stage, calibrated reward of each arm, shape (n, a).
        reward: what each arm earns, shape (n, a).
        costs: what each query costs, leading with n.
        prices: what is known of costs beforehand.
        weight: reward given up per unit of cost.
        safe: index of the best single arm.
        coef: shape (stages - 1, 8).
    """
    n = len(reward)
    rows = np.arange(n)
    stage = np.zeros(n, dtype=np.intp)
    arm = np.zeros(n, dtype=np.intp)
    going = np.ones(n, dtype=bool)
    for s, p in enumerate(probability):
        net = p - weight * prices.arm[s]
        pick = choose(net)
        stage[going] = s
        arm[going] = pick[going]
        if s + 1 == len(probability) or not going.any():
            break
        going &= wants_more(p, net, pick, extra_price(prices, s, weight), safe, coef[s])
    price = costs.spent[rows, stage] + costs.arm[rows, stage, arm]
    return Course(stage, arm, reward[rows, arm] - weight * price)


def learn_stopping(
    probability: Sequence[FloatArray],
    reward: FloatArray,
    costs: Costs,
    prices: Costs,
    weight: float,
    safe: int,
    fold: IntArray,
    repeats: int = 1,
    row_weight: FloatArray | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Learn when to stop, at one weight.

    Args:
        probability: per stage, out-of-fold calibrated reward of each arm, shape (n, a).
        reward: what each arm earned, shape (n, a).
        costs: what each query costs, leading with n.
        prices: what is known of costs beforehand.
        weight: reward given up per unit of cost.
        safe: index of the best single arm.
        fold: cross-fitting fold of each row, shape (n,); the same for all copies of a query.
        repeats: how often each query is there, predicted by models of different folds.
        row_weight: how many queries each row stands for, shape (n,); None means 1. Where chance gathered the
            evidence, 1 / P(evidence): then sums over complete rows estimate sums over all queries.

    Returns:
        Coefficients of the policy to use, shape (stages - 1, 8), and the utility that this way of choosing a
        policy earned on rows it was not chosen on, shape (n,).
    """
    stages = len(probability)
    rows = np.ones(len(reward)) if row_weight is None else row_weight
    candidates = [
        (always(stages, stop), follow(probability, reward, costs, prices, weight, safe, always(stages, stop)).utility)
        for stop in range(stages)
    ]
    if stages > 1 and len(reward) >= STAGING_ROWS * repeats:
        candidates.append(_induce(probability, reward, costs, prices, weight, safe, fold, repeats, rows))
    utilities = np.stack([utility for _, utility in candidates])
    staged = len(candidates) > stages
    nested = np.empty(len(reward))
    for k in np.unique(fold):
        test = fold == k
        nested[test] = utilities[_best(utilities[:, ~test], staged, repeats, rows[~test]), test]
    return candidates[_best(utilities, staged, repeats, rows)][0], nested


def _best(utilities: FloatArray, staged: bool, repeats: int, rows: FloatArray) -> int:
    """Which candidate to use; utilities have shape (candidates, n), ``rows`` weighs the queries.

    Among static ones that with the highest mean; ties go to the first, which gathers least. The staged one, last,
    is preferred to it unless the log says by a standard error that it is worse: it contains the static ones, and
    choosing anew at each weight by differences that are noise would cost more than it finds.
    """
    n = utilities.shape[1]
    if not n:
        return 0
    static = utilities[:-1] if staged else utilities
    best = int(np.round(static @ rows / rows.sum(), 9).argmax())
    if not staged:
        return best
    loss = utilities[best] - utilities[-1]
    mean = float(rows @ loss / rows.sum())
    error = float(np.sqrt(repeats * (rows**2 @ (loss - mean) ** 2)) / rows.sum())
    return len(static) if mean <= error else best


def _induce(
    probability: Sequence[FloatArray],
    reward: FloatArray,
    costs: Costs,
    prices: Costs,
    weight: float,
    safe: int,
    fold: IntArray,
    repeats: int,
    weights: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    n, stages = len(reward), len(probability)
    rows = np.arange(n)
    coef = np.zeros((stages - 1, COLUMNS))
    coef[:, -1] = 1.0
    later = np.empty(n)
    for s in range(stages - 1, -1, -1):
        p = probability[s]
        net = p - weight * prices.arm[s]
        arm = choose(net)
        stop = reward[rows, arm] - weight * costs.arm[rows, s, arm]
        if s == stages - 1:
            later = stop
            continue
        go = later - weight * costs.stage[:, s + 1]
        known = regressors(p, net, safe)
        paid = (extra_price(prices, s, weight) > FREE)[arm]
        gain = np.ones(n)
        for k in np.unique(fold):
            test = (fold == k) & paid
            rest = (fold != k) & paid
            learnt = _regress(known[rest], (go - stop)[rest], weights[rest], repeats)
            gain[test] = learnt[0] + known[test] @ learnt[1:]
        coef[s, :-1] = _regress(known[paid], (go - stop)[paid], weights[paid], repeats)
        later = np.where(gain > 0.0, go, stop)
    return coef, later


def _regress(known: FloatArray, gain: FloatArray, weight: FloatArray, repeats: int) -> FloatArray:
    """Intercept and slopes of a weighted ridge regression on standardised columns, in their own units."""
    if len(known) < FEW * repeats:
        return np.array([-1.0, *np.zeros(REGRESSORS)])
    mean = np.average(known, axis=0, weights=weight)
    spread = np.sqrt(np.average((known - mean) ** 2, axis=0, weights=weight))
    spread[spread < 1e-9] = np.inf
    x = (known - mean) / spread
    centre = float(np.average(gain, weights=weight))
    # Weights of mean 1 leave the penalty its meaning: as if so many rows had shown no difference.
    w = (weight / weight.mean())[:, None]
    slope = np.linalg.solve(x.T @ (w * x) + PENALTY * repeats * np.eye(x.shape[1]), x.T @ (w[:, 0] * (gain - centre)))
    slope = slope / spread
    return np.concatenate([[centre - mean @ slope], slope])
