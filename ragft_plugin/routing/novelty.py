"""Novelty: is this query like any that the router has learnt from?

A reward model says something of any query, also of one in another language or about another world. A query that is
less like its nearest landmark than all but one in two hundred calibration queries were is answered by the safe arm,
with low confidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.types import FloatArray

LANDMARKS = 128
QUANTILE = 0.005
MIN_ROWS = 100  # with fewer, what is unusual is not known


@dataclass(frozen=True, eq=False)
class Novelty:
    """Distance to the queries learnt from.

    Attributes:
        landmarks: question vectors of unit length, shape (l, d).
        threshold: cosine to the nearest below which a query is unfamiliar.
    """

    landmarks: FloatArray
    threshold: float

    @classmethod
    def fit(cls, vectors: FloatArray, seed: int = 0) -> Novelty:
        """Choose landmarks among question vectors, shape (n, d), and the threshold on the rest."""
        n = len(vectors)
        if n < MIN_ROWS or vectors.shape[1] == 0:
            return cls(np.zeros((0, vectors.shape[1])), -1.0)
        units = _unit(vectors)
        order = np.random.default_rng(seed).permutation(n)
        marks = units[order[: min(LANDMARKS, n // 2)]]
        # The rest stands for queries to come: none of them is its own landmark.
        near = (units[order[len(marks) :]] @ marks.T).max(axis=1)
        return cls(marks, float(np.quantile(near, QUANTILE)))

    def unfamiliar(self, vectors: FloatArray) -> NDArray[np.bool_]:
        """Whether each query is unlike all landmarks, shape (n,)."""
        if not len(self.landmarks):
            return np.zeros(len(vectors), dtype=bool)
        near = (_unit(vectors) @ self.landmarks.T).max(axis=1)
        far: NDArray[np.bool_] = np.round(near, 9) < round(self.threshold, 9)
        return far


def _unit(vectors: FloatArray) -> FloatArray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: FloatArray = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-9)
    return units
