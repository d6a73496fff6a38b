"""Calibration: does an answer given with confidence 0.8 earn 0.8?

Bins hold equal numbers of queries and never split equal confidences, so a figure does not depend on the order of
the rows. Rewards between 0 and 1 count as the chance of a right answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragft_plugin.evaluation.intervals import Interval, wilson
from ragft_plugin.types import FloatArray

BINS = 10
CHUNK = 4_000_000  # coins thrown at once by the calibration test: 32 MB


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Queries of similar confidence.

    Attributes:
        low: smallest confidence in the bin.
        high: largest.
        count: queries in it.
        confidence: mean confidence.
        reward: mean reward with its Wilson interval.
    """

    low: float
    high: float
    count: int
    confidence: float
    reward: Interval


@dataclass(frozen=True, slots=True)
class CalibrationTest:
    """Outcome of ``calibration_test``.

    Attributes:
        ece: expected calibration error.
        expected_ece: its mean if the confidences were exactly right: small samples never reach 0.
        p_value: probability of an ECE this large if they were.
        brier: Brier score.
        base_brier: Brier score of always saying the mean reward; a useful confidence lies below.
        n: queries.
    """

    ece: float
    expected_ece: float
    p_value: float
    brier: float
    base_brier: float
    n: int

    def rejected(self, alpha: float = 0.05) -> bool:
        """Whether calibration is rejected; a calibrated router is rejected in a share ``alpha`` of tests."""
        return self.p_value <= alpha

    @property
    def informative(self) -> bool:
        """Whether the confidences say more than their mean: a constant does not."""
        return self.brier < self.base_brier


def brier(confidence: ArrayLike, reward: ArrayLike) -> float:
    """Mean squared difference of confidence and reward; lower is better.

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950.
    """
    p, y = _pair(confidence, reward)
    return float(np.mean((p - y) ** 2))


def ece(confidence: ArrayLike, reward: ArrayLike, bins: int = BINS, *, debiased: bool = False) -> float:
    """Expected calibration error over bins of equal mass.

        ECE = sum_b (n_b / n) |mean confidence_b - mean reward_b|

    Args:
        confidence: shape (n,), in [0, 1].
        reward: shape (n,), in [0, 1].
        bins: how many, at most.
        debiased: subtract what noise alone adds, bin by bin. With the difference d of a bin and its standard
            error s, E|d + s Z| - |d| for a standard normal Z; never below 0. It takes away a third to a half
            of a pure-noise ECE and leaves a true error alone; ``calibration_test`` decides which it is.

    Source: Naeini, Cooper & Hauskrecht, AAAI 2015; Kumar, Liang & Ma, "Verified uncertainty calibration", 2019.
    """
    p, y = _pair(confidence, reward)
    order, starts = _bins(p, bins)
    counts = np.diff(np.append(starts, len(p)))
    residual = (p - y)[order]
    gap = np.add.reduceat(residual, starts) / counts
    error = float(np.dot(counts, np.abs(gap)) / len(p))
    if not debiased:
        return error
    squares = np.add.reduceat(residual**2, starts) / counts
    spread = np.sqrt(np.maximum(squares - gap**2, 0.0) / np.maximum(counts - 1, 1))
    bias = [_folded_mean(abs(d), s) - abs(d) for d, s in zip(gap, spread, strict=True)]
    return max(0.0, error - float(np.dot(counts, bias) / len(p)))


def reliability(confidence: ArrayLike, reward: ArrayLike, bins: int = BINS) -> list[ReliabilityBin]:
    """The bins of ``ece``, lowest confidence first: data of a reliability diagram."""
    p, y = _pair(confidence, reward)
    order, starts = _bins(p, bins)
    table = []
    for rows in np.split(order, starts[1:]):
        confidences = p[rows]
        table.append(
            ReliabilityBin(
                low=float(confidences.min()),
                high=float(confidences.max()),
                count=len(rows),
                confidence=float(confidences.mean()),
                reward=wilson(float(np.clip(y[rows].sum(), 0.0, len(rows))), len(rows)),
            )
        )
    return table


def calibration_test(
    confidence: ArrayLike,
    reward: ArrayLike,
    bins: int = BINS,
    *,
    draws: int = 2_000,
    seed: int = 0,
) -> CalibrationTest:
    """Test that rewards come with the stated confidences, by consistency resampling of the ECE.

    Rewards are drawn anew as coins of the stated confidences; the p-value is (1 + #{ECE* >= ECE}) / (draws + 1).
    It is exact for rewards in {0, 1}: a calibrated router is rejected at 5 % in at most 5 % of tests, whatever n
    and the bins. For rewards in between, coins vary more than they do, and the test rejects less often.

    Args:
        confidence: shape (n,), in [0, 1]; not fitted on these rewards.
        reward: shape (n,), in [0, 1].
        bins: of the ECE.
        draws: resamples.
        seed: of the resampling.

    Source: Brocker & Smith, "Increasing the reliability of reliability diagrams", 2007;
        Vaicenavicius et al., "Evaluating model calibration in classification", 2019.
    """
    p, y = _pair(confidence, reward)
    order, starts = _bins(p, bins)
    ordered = p[order]
    stated = np.add.reduceat(ordered, starts)
    observed = float(np.abs(stated - np.add.reduceat(y[order], starts)).sum() / len(p))
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // len(p))
    parts = []
    for start in range(0, draws, step):
        coins = rng.random((min(step, draws - start), len(p))) < ordered
        earned = np.add.reduceat(coins.astype(np.float64), starts, axis=1)
        parts.append(np.abs(stated - earned).sum(axis=1) / len(p))
    drawn = np.concatenate(parts)
    # Sums of floats in another order differ in the last digits; a tie must count as a tie.
    as_large = int((drawn >= observed - 1e-12).sum())
    return CalibrationTest(
        ece=observed,
        expected_ece=float(drawn.mean()),
        p_value=(1 + as_large) / (draws + 1),
        brier=float(np.mean((p - y) ** 2)),
        base_brier=float(np.mean((y - y.mean()) ** 2)),
        n=len(p),
    )


def spiegelhalter(confidence: ArrayLike, reward: ArrayLike) -> float:
    """Two-sided p-value of Spiegelhalter's z: one number for over- and under-confidence, without bins.

        z = sum (y - p)(1 - 2p) / sqrt(sum (1 - 2p)^2 p (1 - p))

    It is blind where the confidence is 1/2. Without any variance (all confidences 0, 1/2 or 1) it is 1 if the
    rewards agree and 0 if they cannot.

    Source: Spiegelhalter, "Probabilistic prediction in patient management and clinical trials", 1986.
    """
    p, y = _pair(confidence, reward)
    variance = float(np.sum((1.0 - 2.0 * p) ** 2 * p * (1.0 - p)))
    score = float(np.sum((y - p) * (1.0 - 2.0 * p)))
    if variance == 0.0:
        return float(abs(score) < 1e-12)
    return erfc(abs(score) / sqrt(2.0 * variance))


def _folded_mean(mean: float, spread: float) -> float:
    """E|mean + spread Z| for a standard normal Z."""
    if spread == 0.0:
        return abs(mean)
    ratio = mean / spread
    density = sqrt(2.0 / np.pi) * spread * float(np.exp(-0.5 * ratio**2))
    return density + mean * (1.0 - erfc(ratio / sqrt(2.0)))


def _bins(p: FloatArray, bins: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Order of the rows by confidence, and where each bin starts in it; equal confidences share a bin."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    order = np.argsort(p, kind="stable")
    ordered = p[order]
    wanted = (np.arange(min(bins, len(p))) * len(p)) // min(bins, len(p))
    # A boundary inside a run of equal confidences moves to the start of the run.
    return order, np.unique(np.searchsorted(ordered, ordered[wanted], side="left"))


def _pair(confidence: ArrayLike, reward: ArrayLike) -> tuple[FloatArray, FloatArray]:
    p, y = np.asarray(confidence, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape or p.size == 0:
        raise ValueError(f"expected two arrays of shape (n,) with n >= 1, got {p.shape} and {y.shape}")
    for name, values in (("confidence", p), ("reward", y)):
        wrong = ~((values >= 0.0) & (values <= 1.0))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(f"{name} must be in [0, 1]; row {row} has {values[row]}")
    return p, y
