"""Drift: are recent decisions made on the same kind of queries as those the router was calibrated on?

Each column (confidence, predicted value, arm, stage, and reward minus confidence where rewards have come) is compared
by a two-sample test; the p-values share one false-alarm rate (Bonferroni), which therefore holds for the whole check:
if nothing has changed and queries are independent, it alarms with probability at most ``alpha``, each time it is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.decision_rows import LoggedDecision
from ragft_plugin.types import FloatArray

ALPHA = 0.01
MIN_ROWS = 20  # on either side; with fewer a test could hardly find anything


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """Comparison of one column.

    Attributes:
        name: of the column.
        psi: population stability index; by custom, below 0.1 is stable and above 0.25 has shifted. It grows with
            fewer rows, so the p-value decides.
        statistic: Kolmogorov-Smirnov distance of numbers, total variation distance of categories.
        p_value: probability of such a distance if nothing changed.
        reference: rows of the reference.
        recent: recent rows.
    """

    name: str
    psi: float
    statistic: float
    p_value: float
    reference: int
    recent: int


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Outcome of ``drift_check``.

    Attributes:
        columns: what was compared, most suspicious first.
        alpha: false-alarm rate of the whole check.
    """

    columns: tuple[ColumnDrift, ...]
    alpha: float

    @property
    def alarms(self) -> tuple[ColumnDrift, ...]:
        """Columns that changed."""
        return tuple(c for c in self.columns if c.p_value * len(self.columns) <= self.alpha)

    @property
    def drifted(self) -> bool:
        """Whether anything changed."""
        return bool(self.alarms)


def drift_check(
    reference: Mapping[str, ArrayLike], recent: Mapping[str, ArrayLike], *, alpha: float = ALPHA, seed: int = 0
) -> DriftReport:
    """Compare columns of recent decisions with those of the calibration.

    Args:
        reference: name -> numbers or categories (text), one per row; see ``decision_columns``.
        recent: likewise. Columns that either side lacks, or has fewer than 20 rows of, are left out.
        alpha: false-alarm rate of the check.
        seed: of the permutation test of categories.

    Raises:
        DataError: if no column can be compared.
    """
    found = []
    for name in reference:
        old, new = np.asarray(reference[name]), np.asarray(recent.get(name, ()))
        if min(old.size, new.size) < MIN_ROWS:
            continue
        compare = _categories if old.dtype.kind in "USO" or new.dtype.kind in "USO" else _numbers
        found.append(compare(name, old, new, seed))
    if not found:
        sizes = ", ".join(f"{k}: {np.size(v)}/{np.size(recent.get(k, ()))}" for k, v in reference.items())
        raise DataError(
            f"nothing to compare: both sides need {MIN_ROWS} rows of a common column, got {sizes or 'no columns'}"
        )
    return DriftReport(tuple(sorted(found, key=lambda c: c.p_value)), alpha)


def decision_columns(rows: Iterable[LoggedDecision]) -> dict[str, list[float] | list[str]]:
    """Columns of logged decisions for ``drift_check``.

    ``surprise`` is reward minus confidence, of the decisions whose reward has come: it moves when answers get worse
    although the queries look the same. Forced decisions are left out, as the router did not make them.
    """
    made = [row for row in rows if not row.forced]
    rewarded = [row for row in made if row.reward is not None]
    return {
        "confidence": [row.confidence for row in made],
        "value": [row.predicted[row.arm] for row in made if row.arm in row.predicted],
        "arm": [row.arm for row in made],
        "stage": [str(row.stage) for row in made],
        "surprise": [row.reward - row.confidence for row in rewarded if row.reward is not None],
    }


def psi(reference: Sequence[float] | FloatArray, recent: Sequence[float] | FloatArray, bins: int = 10) -> float:
    """Population stability index over bins of equal mass of the reference.

        PSI = sum_b (q_b - p_b) ln(q_b / p_b)

    Half a row is added to each bin, so that an empty one is not infinitely surprising.

    Source: Siddiqi, "Credit Risk Scorecards", 2006.
    """
    old, new = _finite("reference", reference), _finite("recent", recent)
    edges = np.unique(np.quantile(old, np.linspace(0.0, 1.0, bins + 1)[1:-1]))
    counts = [np.bincount(np.searchsorted(edges, x, side="right"), minlength=len(edges) + 1) for x in (old, new)]
    return _psi(counts[0], counts[1])


def kolmogorov_smirnov(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Largest distance of two empirical distributions, and its asymptotic p-value (cautious if values tie).

    With e = sqrt(n m / (n + m)) and t = (e + 0.12 + 0.11 / e) D:   p = 2 sum_k (-1)^(k-1) exp(-2 k^2 t^2)

    Source: Smirnov 1939; small-sample correction by Stephens, JRSS B 1970.
    """
    a, b = np.sort(_finite("first", first)), np.sort(_finite("second", second))
    both = np.concatenate([a, b])
    at_a = np.searchsorted(a, both, side="right") / len(a)
    at_b = np.searchsorted(b, both, side="right") / len(b)
    distance = float(np.abs(at_a - at_b).max())
    root = sqrt(len(a) * len(b) / (len(a) + len(b)))
    t = (root + 0.12 + 0.11 / root) * distance
    if t < 0.2:
        return distance, 1.0  # the series converges slowly there, and the value is 1 to twelve digits
    series = sum((-1) ** (k - 1) * exp(-2.0 * (k * t) ** 2) for k in range(1, 101))
    return distance, min(1.0, max(0.0, 2.0 * series))


def _numbers(name: str, old: NDArray[np.generic], new: NDArray[np.generic], seed: int) -> ColumnDrift:
    a, b = _finite(name, old), _finite(name, new)
    statistic, p_value = kolmogorov_smirnov(a, b)
    return ColumnDrift(name, psi(a, b), statistic, p_value, len(a), len(b))


def _categories(name: str, old: NDArray[np.generic], new: NDArray[np.generic], seed: int) -> ColumnDrift:
    """Total variation distance, with a permutation test: labels are dealt anew between the two sides."""
    names, index = np.unique(np.concatenate([old, new]).astype(str), return_inverse=True)
    first = np.bincount(index[: old.size], minlength=len(names))
    second = np.bincount(index[old.size :], minlength=len(names))
    pooled = first + second

    def distance(recent: NDArray[np.int64]) -> NDArray[np.float64]:
        gap = recent / new.size - (pooled - recent) / old.size
        return np.asarray(0.5 * np.abs(gap).sum(axis=-1), dtype=np.float64)

    observed = float(distance(second.astype(np.int64)))
    draws = 4_999
    dealt = np.random.default_rng(seed).multivariate_hypergeometric(pooled, new.size, size=draws, method="marginals")
    p_value = (1 + int((distance(dealt) >= observed - 1e-12).sum())) / (draws + 1)
    return ColumnDrift(name, _psi(first, second), observed, p_value, old.size, new.size)


def _psi(old: NDArray[np.intp], new: NDArray[np.intp]) -> float:
    p = (old + 0.5) / (old.sum() + 0.5 * len(old))
    q = (new + 0.5) / (new.sum() + 0.5 * len(new))
    return float(np.sum((q - p) * np.log(q / p)))


def _finite(name: str, values: ArrayLike) -> FloatArray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise DataError(f"{name}: expected finite numbers of shape (n,) with n >= 1, got shape {x.shape}")
    return x
