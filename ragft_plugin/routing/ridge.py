"""Ridge regression of rewards: many arms, a whole path of penalties, one decomposition per fold.

A linear reward model is fitted anew for every stage and every fold of every cross-validation. So the work is done
once where it can be: X'X is decomposed once per fold, and all arms and penalties share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ragft_plugin.routing.text import IntArray
from ragft_plugin.types import FloatArray

PENALTIES: FloatArray = np.geomspace(0.3, 1000.0, 10)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Weighted, centred rows, decomposed so that any penalty is solved by a division.

    Attributes:
        mean: of the features, shape (d,).
        values: eigenvalues of X'WX, or of its Gram matrix, shape (r,).
        vectors: eigenvectors of X'WX, shape (d, r).
    """

    mean: FloatArray
    values: FloatArray
    vectors: FloatArray

    @classmethod
    def of(cls, features: FloatArray, weight: FloatArray) -> Spectrum:
        """Decompose; through the Gram matrix when there are fewer rows than features."""
        total = weight.sum()
        mean = weight @ features / total
        scaled = (features - mean) * np.sqrt(weight)[:, None]
        if len(scaled) < scaled.shape[1]:
            values, left = np.linalg.eigh(scaled @ scaled.T)
            kept = values > 1e-9
            values, left = values[kept], left[:, kept]
            return cls(mean, values, (scaled.T @ left) / np.sqrt(values))
        values, vectors = np.linalg.eigh(scaled.T @ scaled)
        return cls(mean, np.maximum(values, 0.0), vectors)

    def solve(self, features: FloatArray, target: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Means of the targets, shape (m,), and their projections on the eigenvectors, shape (r, m)."""
        centre = weight @ target / weight.sum()
        right = ((features - self.mean) * weight[:, None]).T @ (target - centre)
        return centre, self.vectors.T @ right


def out_of_fold_path(
    features: FloatArray, target: FloatArray, weight: FloatArray, fold: IntArray, penalties: FloatArray
) -> FloatArray:
    """Predictions for each row by models that have not seen its fold, shape (p, n, m).

    Args:
        features: shape (n, d).
        target: shape (n, m).
        weight: shape (n,), >= 0.
        fold: fold of each row, shape (n,).
        penalties: shape (p,).
    """
    path = np.zeros((len(penalties), *target.shape))
    for k in np.unique(fold):
        test = fold == k
        x, y, w = features[~test], target[~test], weight[~test]
        if w.sum() <= 0.0:
            continue
        spectrum = Spectrum.of(x, w)
        centre, right = spectrum.solve(x, y, w)
        seen = (features[test] - spectrum.mean) @ spectrum.vectors
        for p, penalty in enumerate(penalties):
            path[p, test] = centre + seen @ (right / (spectrum.values + penalty)[:, None])
    return path


def fit_ridge(
    features: FloatArray, target: FloatArray, weight: FloatArray, penalty: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Coefficients, shape (d, m), and intercepts, shape (m,), with one penalty per target, shape (m,)."""
    spectrum = Spectrum.of(features, weight)
    centre, right = spectrum.solve(features, target, weight)
    coef = spectrum.vectors @ (right / (spectrum.values[:, None] + penalty[None, :]))
    return coef, centre - spectrum.mean @ coef
