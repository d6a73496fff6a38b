"""Intervals: what a mean, a share or a difference may truly be.

A figure without an interval is not shown. All intervals are two-sided at ``level`` (0.95 unless told).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from ragft_plugin.types import FloatArray

CHUNK = 500_000  # indices drawn at once by the bootstrap: 4 MB, which stays in the cache


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its confidence interval.

    Attributes:
        value: the estimate.
        low: lower bound.
        high: upper bound.
        level: confidence, in (0, 1).
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def normal_quantile(level: float) -> float:
    """Half-width in standard errors of a two-sided normal interval; 1.96 at 0.95."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be in (0, 1), got {level}")
    return NormalDist().inv_cdf(0.5 + level / 2.0)


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a share.

        centre = (s + z^2/2) / (n + z^2),   half = z / (n + z^2) * sqrt(s (n - s) / n + z^2 / 4)

    ``successes`` may be a sum of values in [0, 1]: their variance is at most that of a coin of the same mean, so
    the interval is then too wide rather than too narrow.

    Args:
        successes: in [0, n].
        n: trials, at least 1.
        level: confidence.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    if n < 1 or not 0.0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z2 = normal_quantile(level) ** 2
    share = successes / n
    centre = (successes + z2 / 2.0) / (n + z2)
    half = sqrt(z2) / (n + z2) * sqrt(n * share * (1.0 - share) + z2 / 4.0)
    # At 0 and n the bound is the share itself, up to rounding.
    return Interval(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)), level)


def bootstrap_mean(
    values: ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 2_000,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> Interval:
    """Percentile bootstrap of a mean.

    Args:
        values: shape (n,). For two policies on the same queries pass their differences: the paired bootstrap.
        level: confidence.
        draws: resamples.
        seed: of the resampling.
        groups: integer per row, shape (n,); rows of a group are drawn together, because equal queries are not
            independent. None draws rows.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993.

    Example:
        >>> bootstrap_mean([1.0, 1.0, 1.0]).low
        1.0
    """
    return bootstrap_means(_values(values)[:, None], level=level, draws=draws, seed=seed, groups=groups)[0]


def bootstrap_means(
    table: ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 2_000,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> list[Interval]:
    """Percentile bootstrap of the mean of every column, on the same resamples.

    Args:
        table: shape (n, c).
        level: confidence.
        draws: resamples.
        seed: of the resampling.
        groups: as in ``bootstrap_mean``.

    Returns:
        One interval per column.
    """
    x = np.asarray(table, dtype=np.float64)
    if x.ndim != 2 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"expected finite values of shape (n, c) with n, c >= 1, got shape {x.shape}")
    normal_quantile(level)  # refuses a level that is none
    means = _resampled_means(x, draws, seed, groups)
    lows, highs = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=0)
    return [
        Interval(float(m), float(low), float(high), level)
        for m, low, high in zip(x.mean(axis=0), lows, highs, strict=True)
    ]


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 2_000,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> Interval:
    """Bootstrap interval of mean(first - second), query by query; arguments as in ``bootstrap_mean``."""
    a, b = _values(first), _values(second)
    if a.shape != b.shape:
        raise ValueError(f"pairs needed, got {len(a)} and {len(b)} values")
    return bootstrap_mean(a - b, level=level, draws=draws, seed=seed, groups=groups)


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided p-value that two classifiers are right equally often, on the same queries.

        p = min(1, 2 * sum_{k <= min(b, c)} C(b + c, k) / 2^(b + c))

    with b queries that only the first has right and c that only the second has.

    Args:
        first: right or not, shape (n,).
        second: likewise.

    Source: McNemar, Psychometrika 1947; exact version by the binomial distribution.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"pairs needed, got shapes {a.shape} and {b.shape}")
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_first + only_second
    tail = term = 1
    for k in range(1, min(only_first, only_second) + 1):
        term = term * (n - k + 1) // k  # C(n, k) from C(n, k - 1), exact in integers
        tail += term
    # Integers are divided exactly, however large.
    p_value: float = 2 * tail / 2**n
    return min(1.0, p_value)


def _values(values: ArrayLike) -> FloatArray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"expected finite values of shape (n,) with n >= 1, got shape {x.shape}")
    return x


def _resampled_means(x: FloatArray, draws: int, seed: int, groups: ArrayLike | None) -> FloatArray:
    """Means of the columns of ``x`` in each resample, shape (draws, c)."""
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    sums, counts = x, np.ones(len(x))
    if groups is not None:
        _, index = np.unique(np.asarray(groups), return_inverse=True)
        if index.shape != counts.shape:
            raise ValueError(f"groups must have shape {counts.shape}, got {index.shape}")
        sums = np.zeros((int(index.max()) + 1, x.shape[1]))
        np.add.at(sums, index, x)
        counts = np.asarray(np.bincount(index), dtype=np.float64)
    rng = np.random.default_rng(seed)
    m = len(sums)
    step = max(1, CHUNK // m)
    parts = []
    for start in range(0, draws, step):
        size = min(step, draws - start)
        drawn = rng.integers(m, size=(size, m)) + m * np.arange(size)[:, None]
        # How often each unit was drawn: one product then serves all columns.
        times = np.bincount(drawn.ravel(), minlength=size * m).reshape(size, m).astype(np.float64)
        parts.append((times @ sums) / (times @ counts)[:, None])
    return np.concatenate(parts)
