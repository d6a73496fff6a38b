"""Calibration: scores -> probabilities that can be trusted, also from few rows.

Platt scaling on the log-odds with a prior that says "the score is right already" (intercept 0, slope 1). With many
rows the prior vanishes; with few the score is left alone. Only scores of queries that the scorer has not seen may
be used to fit it.
"""

from __future__ import annotations

import numpy as np

from ragft_plugin.types import FloatArray

PRIOR_PRECISION = 1.0  # of intercept and slope - 1
CLIP = 0.005


def log_odds(p: FloatArray) -> FloatArray:
    """Log-odds of probabilities, bounded."""
    clipped = np.clip(p, CLIP, 1.0 - CLIP)
    odds: FloatArray = np.log(clipped / (1.0 - clipped))
    return odds


def logistic(z: FloatArray) -> FloatArray:
    """1 / (1 + exp(-z)) without overflow.

    Example:
        >>> float(logistic(np.array(0.0)))
        0.5
    """
    half: FloatArray = 0.5 * (1.0 + np.tanh(0.5 * z))
    return half


def fit_platt(score: FloatArray, reward: FloatArray, weight: FloatArray | None = None) -> tuple[float, float]:
    """Intercept and slope that turn scores into probabilities.

        p = logistic(intercept + slope * log_odds(score))

    Args:
        score: out-of-fold predictions of the reward, shape (n,).
        reward: in [0, 1], shape (n,).
        weight: of each row, shape (n,); None means 1.

    Returns:
        Intercept and slope; the slope is never negative, so order is kept.

    Source: Platt, "Probabilistic Outputs for Support Vector Machines", 1999; the prior is ours.
    """
    weight = np.ones_like(score) if weight is None else weight
    design = np.stack([np.ones_like(score), log_odds(score)], axis=1)
    start = np.array([0.0, 1.0])
    theta = start.copy()
    for _ in range(50):
        p = logistic(design @ theta)
        slope = design.T @ (weight * (p - reward)) + PRIOR_PRECISION * (theta - start)
        curve = (design * (weight * p * (1.0 - p))[:, None]).T @ design + PRIOR_PRECISION * np.eye(2)
        step = np.linalg.solve(curve, slope)
        theta -= np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-10:
            break
    if theta[1] < 0.0:
        base = float(np.average(reward, weights=weight)) if weight.sum() > 0 else 0.5
        return float(log_odds(np.array(base))), 0.0
    return float(theta[0]), float(theta[1])


def apply_platt(score: FloatArray, intercept: FloatArray | float, slope: FloatArray | float) -> FloatArray:
    """Calibrated probability of a score."""
    return logistic(intercept + slope * log_odds(score))
