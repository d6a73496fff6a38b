"""The plan: what to do at which cost weight.

Everything that depends on the weight is learnt on a grid of weights and interpolated, so that the weight can be
chosen per query without learning anew. Between two weights the gate is open if the interpolated lower bound is
positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ragft_plugin.routing.calibration import fit_platt
from ragft_plugin.routing.costs import Costs
from ragft_plugin.routing.gate import paired_gain, single_arm
from ragft_plugin.routing.stopping import always, follow, learn_stopping
from ragft_plugin.routing.text import IntArray
from ragft_plugin.types import FloatArray

GRID = 14
MOST_SETTINGS = 64


@dataclass(frozen=True, eq=False)
class Setting:
    """The plan at one weight.

    Attributes:
        weight: reward given up per unit of cost.
        safe: index of the best single arm.
        gain: expected gain of the learnt policy over it.
        lower: its lower confidence bound.
        is_open: whether the learnt policy is used.
        coef: when to stop, shape (stages - 1, 8).
        platt: intercept and slope that calibrate the chosen arm's confidence.
    """

    weight: float
    safe: int
    gain: float
    lower: float
    is_open: bool
    coef: FloatArray
    platt: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Plan:
    """Settings on a grid of weights.

    Attributes:
        weights: rising from 0, shape (w,).
        coef: shape (w, stages - 1, 8).
        gain: shape (w,).
        lower: shape (w,).
        platt: shape (w, 2).
        means: mean reward of each arm, shape (a,).
        prices: mean costs.
        gated: False lets the learnt policy decide whatever its gain.
    """

    weights: FloatArray
    coef: FloatArray
    gain: FloatArray
    lower: FloatArray
    platt: FloatArray
    means: FloatArray
    prices: Costs
    gated: bool = True

    def at(self, weight: float) -> Setting:
        """The setting at a weight, interpolated; beyond the grid its end holds."""
        known = self._settings.get(weight)
        if known is None:
            if len(self._settings) >= MOST_SETTINGS:
                self._settings.clear()
            known = self._settings[weight] = self._at(weight)
        return known

    @cached_property
    def _settings(self) -> dict[float, Setting]:
        """Those asked for lately: most callers always use one weight."""
        return {}

    def _at(self, weight: float) -> Setting:
        last = len(self.weights) - 1
        i = int(np.clip(np.searchsorted(self.weights, weight, side="right") - 1, 0, last))
        j = min(i + 1, last)
        span = self.weights[j] - self.weights[i]
        t = float(np.clip((weight - self.weights[i]) / span, 0.0, 1.0)) if span > 0.0 else 0.0

        def mix(values: FloatArray) -> FloatArray:
            mixed: FloatArray = values[i] if t == 0.0 else (1.0 - t) * values[i] + t * values[j]
            return mixed

        safe = int(np.round(self.means - weight * self.prices.direct, 9).argmax())
        lower = float(mix(self.lower))
        a, b = mix(self.platt)
        return Setting(
            weight,
            safe,
            float(mix(self.gain)),
            lower,
            lower > 0.0 or not self.gated,
            mix(self.coef),
            (float(a), float(b)),
        )


def weight_grid(prices: Costs) -> FloatArray:
    """Weights from 0 to where the cheapest arm always wins, shape (w,); only 0 if nothing costs anything."""
    amounts = np.concatenate([prices.stage.ravel(), prices.arm.ravel()])
    amounts = amounts[amounts > 1e-12]
    if not len(amounts):
        return np.zeros(1)
    return np.concatenate([[0.0], np.geomspace(2e-3 / amounts.max(), 1.0 / amounts.min(), GRID)])


def learn_plan(
    probability: Sequence[FloatArray],
    reward: FloatArray,
    means: FloatArray,
    costs: Costs,
    fold: IntArray,
    group: IntArray,
    *,
    repeats: int = 1,
    gated: bool,
    seed: int,
    row_weight: FloatArray | None = None,
) -> Plan:
    """Learn stopping, gate and confidence at every weight of the grid.

    Args:
        probability: per stage, out-of-fold calibrated rewards, shape (repeats * n, a): all rows, and again.
        reward: what each arm earned, or an unbiased estimate of it, shape (n, a).
        means: mean reward of each arm, shrunk, shape (a,).
        costs: of every row.
        fold: shape (n,).
        group: rows with the same query text, shape (n,).
        repeats: how many cross-fits there are.
        gated: whether the gate is used.
        seed: of the bootstrap.
        row_weight: how many queries each row stands for, shape (n,); None means 1.
    """
    counts = np.ones(len(reward)) if row_weight is None else row_weight
    prices = costs.mean(counts)
    weights = weight_grid(prices)
    n = len(reward)
    copies = np.tile(np.arange(n), repeats)
    many, many_costs, many_folds = reward[copies], costs.take(copies), fold[copies]
    rows, many_counts = np.arange(len(copies)), counts[copies]
    coef, gain, lower, platt = [], [], [], []
    for w in weights:
        safe = int(np.round(means - w * prices.direct, 9).argmax())
        learnt, utility = learn_stopping(
            probability, many, many_costs, prices, float(w), safe, many_folds, repeats, many_counts
        )
        best = single_arm(reward, costs.direct, float(w), counts)
        single = reward[:, best] - w * costs.direct[:, best]
        found = paired_gain(utility.reshape(repeats, n).mean(axis=0) - single, group, seed, counts)
        course = follow(probability, many, many_costs, prices, float(w), safe, learnt)
        said = np.stack(probability)[course.stage, rows, course.arm]
        earned = np.clip(many[rows, course.arm], 0.0, 1.0)
        coef.append(learnt)
        gain.append(found.mean)
        lower.append(found.lower if np.isfinite(found.lower) else -1.0)
        platt.append(fit_platt(said, earned, many_counts / repeats))
    return Plan(weights, np.stack(coef), np.array(gain), np.array(lower), np.array(platt), means, prices, gated)


def no_plan(stages: int, means: FloatArray, prices: Costs) -> Plan:
    """The plan of one who knows nothing: the best single arm at once."""
    return Plan(
        np.zeros(1),
        always(stages, 0)[None],
        np.zeros(1),
        np.full(1, -1.0),
        np.array([[0.0, 1.0]]),
        means,
        prices,
    )


__all__ = ["Plan", "Setting", "learn_plan", "no_plan", "single_arm", "weight_grid"]
