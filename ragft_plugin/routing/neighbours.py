"""Reward model of the nearest neighbours: what the arms earned on the most similar queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ragft_plugin.errors import RouterError
from ragft_plugin.routing.calibration import apply_platt, fit_platt
from ragft_plugin.routing.rewards import MIN_ROWS, PRIOR_ROWS, Mask, State, prior_means
from ragft_plugin.routing.text import IntArray
from ragft_plugin.types import FloatArray

SIGNAL_SCALE = 0.2  # a signal of one standard deviation against a text block of length one
CHUNK = 512  # queries whose distances are held at once


class NeighbourRewards:
    """Mean reward of the k nearest training queries, shrunk to the arm's mean, calibrated by Platt scaling.

    k is the square root of the number of rows. It keeps all rows, so deciding takes time in proportion to them.
    """

    out_of_fold_: FloatArray

    def fit(
        self, features: FloatArray, reward: FloatArray, fold: IntArray, weight: FloatArray, signals: Mask
    ) -> NeighbourRewards:
        """Learn; see ``RewardModel.fit``."""
        self.scale_ = np.where(signals, SIGNAL_SCALE, 1.0)
        self.rows_ = features * self.scale_
        self.value_ = np.where(np.isnan(reward), 0.0, reward)
        self.weight_ = np.where(np.isnan(reward), 0.0, weight)
        self.prior_ = prior_means(reward, weight)
        scores = self._scores(fold, reward, weight)
        self.platt_ = np.tile([0.0, 1.0], (reward.shape[1], 1))
        for a in range(reward.shape[1]):
            known = ~np.isnan(reward[:, a])
            if known.sum() >= MIN_ROWS:
                self.platt_[a] = fit_platt(scores[known, a], reward[known, a], weight[known, a])
        self.out_of_fold_ = self._calibrated(scores)
        return self

    def cross_fit(self, features: FloatArray, reward: FloatArray, fold: IntArray, weight: FloatArray) -> FloatArray:
        """See ``RewardModel.cross_fit``."""
        return self._calibrated(self._scores(fold, reward, weight))

    def predict(self, features: FloatArray) -> FloatArray:
        """Calibrated expected reward, shape (n, a)."""
        every = np.ones(len(self.rows_), dtype=bool)
        return self._calibrated(self._mean_near(features * self.scale_, every, self.prior_))

    def state(self) -> State:
        """Plain data and arrays."""
        names = ("scale", "rows", "value", "weight", "prior", "platt")
        return {}, {name: getattr(self, name + "_") for name in names}

    def restore(self, settings: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> NeighbourRewards:
        """Take up what ``state`` gave."""
        for name in ("scale", "rows", "value", "weight", "prior", "platt"):
            if name not in arrays:
                raise RouterError(f"the reward model has no array {name!r}")
            setattr(self, name + "_", arrays[name])
        a = len(self.prior_)
        table = (len(self.rows_), a)
        if self.value_.shape != table or self.weight_.shape != table or self.platt_.shape != (a, 2):
            raise RouterError(f"the reward model's arrays do not fit together: value {self.value_.shape}")
        if self.rows_.shape != (len(self.value_), len(self.scale_)):
            raise RouterError(f"the reward model's arrays do not fit together: rows {self.rows_.shape}")
        return self

    def _scores(self, fold: IntArray, reward: FloatArray, weight: FloatArray) -> FloatArray:
        scores = np.empty(reward.shape)
        for k in np.unique(fold):
            test = fold == k
            rest = ~test if (~test).any() else test
            scores[test] = self._mean_near(self.rows_[test], rest, prior_means(reward[rest], weight[rest]))
        return scores

    def _mean_near(self, queries: FloatArray, among: Mask, prior: FloatArray) -> FloatArray:
        rows, value, weight = self.rows_[among], self.value_[among], self.weight_[among]
        k = min(len(rows), max(1, round(float(np.sqrt(len(rows))))))
        square = (rows**2).sum(axis=1)
        out = np.empty((len(queries), value.shape[1]))
        for start in range(0, len(queries), CHUNK):
            part = queries[start : start + CHUNK]
            near = np.argpartition(np.round(square - 2.0 * part @ rows.T, 9), k - 1, axis=1)[:, :k]
            w = weight[near]
            total = (w * value[near]).sum(axis=1) + PRIOR_ROWS * prior
            out[start : start + CHUNK] = total / (w.sum(axis=1) + PRIOR_ROWS)
        return out

    def _calibrated(self, scores: FloatArray) -> FloatArray:
        return apply_platt(scores, self.platt_[:, 0], self.platt_[:, 1])
