"""The gate: do no harm.

A learnt policy is used only if, on queries that it was not learnt from, it earned more than always taking the best
single arm, and not by chance: the lower confidence bound of the mean difference must be above zero. Otherwise that
single arm is used, and decisions say so.

The single arm of the gate is the best one of all rows it has, a choice that flatters it. Were it chosen anew on the
other folds of each fold, two arms that are equally good would be taken in turn, each where it happens to be worse, and
pure noise would open the gate in one log of six (measured).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ragft_plugin.routing.text import IntArray
from ragft_plugin.types import FloatArray

RESAMPLES = 1000
OPEN_LEVEL = 0.05  # one-sided: a router without any advantage is let through at most this often


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean difference of paired utilities with its bootstrap interval.

    Attributes:
        mean: of the differences.
        lower: one-sided 95 % lower bound, which the gate looks at.
        interval: two-sided 95 % interval.
    """

    mean: float
    lower: float
    interval: tuple[float, float]

    @property
    def is_open(self) -> bool:
        """Whether the gain is there."""
        return self.lower > 0.0


def paired_gain(difference: FloatArray, group: IntArray, seed: int = 0, weight: FloatArray | None = None) -> Gain:
    """Bootstrap the mean of paired differences.

    Args:
        difference: utility of the policy minus that of the single arm, shape (n,).
        group: rows of the same group (same query text) are resampled together, shape (n,).
        seed: of the resampling.
        weight: how many queries each row stands for, shape (n,); None means 1. The mean is then
            sum w d / sum w.

    Returns:
        Mean and interval. With fewer than two groups the bounds are minus and plus infinity.

    Example:
        >>> gain = paired_gain(np.full(50, 0.1), np.arange(50))
        >>> gain.is_open, round(gain.lower, 3)
        (True, 0.1)
    """
    weight = np.ones(len(difference)) if weight is None else weight
    mean = float(np.average(difference, weights=weight))
    _, group = np.unique(group, return_inverse=True)
    count = np.bincount(group, weights=weight)
    if len(count) < 2:
        return Gain(mean, -np.inf, (-np.inf, np.inf))
    total = np.bincount(group, weights=weight * difference)
    if np.ptp(total / count) == 0.0:
        return Gain(mean, mean, (mean, mean))
    rng = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        # Multinomial counts are the same bootstrap as drawn indices, without an (n, resamples) array.
        times = np.bincount(rng.integers(0, len(count), len(count)), minlength=len(count))
        means[i] = (times @ total) / (times @ count)
    low, lower, high = np.quantile(means, [0.025, OPEN_LEVEL, 0.975])
    return Gain(mean, float(lower), (float(low), float(high)))


def single_arm(reward: FloatArray, cost: FloatArray, weight: float, rows: FloatArray | None = None) -> int:
    """Index of the arm with the best mean of reward - weight * cost; ties go to the first.

    Args:
        reward: shape (n, a).
        cost: of running the arm straight away, shape (n, a).
        weight: reward given up per unit of cost.
        rows: how many queries each row stands for, shape (n,); None means 1.
    """
    return int(np.round(np.average(reward - weight * cost, axis=0, weights=rows), 9).argmax())
