"""Reward model of boosted trees: grown by scikit-learn, walked with plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ragft_plugin.errors import RouterError
from ragft_plugin.routing.calibration import apply_platt, fit_platt
from ragft_plugin.routing.rewards import MIN_ROWS, Mask, State, prior_means
from ragft_plugin.routing.text import IntArray
from ragft_plugin.types import FloatArray

TREES = 60
DEPTH = 3
RATE = 0.08
MIN_LEAF = 10
NODES = 2 ** (DEPTH + 1) - 1

Grown = tuple[FloatArray, FloatArray]


class BoostedRewards:
    """Gradient boosting of squared error per arm, calibrated by Platt scaling.

    A tree is stored as a complete binary tree: node i has the children 2 i + 1 and 2 i + 2. So all trees of all arms
    are walked at once, in ``DEPTH`` steps.

    Source: Friedman, "Greedy function approximation: a gradient boosting machine", 2001.
    """

    out_of_fold_: FloatArray

    def fit(
        self, features: FloatArray, reward: FloatArray, fold: IntArray, weight: FloatArray, signals: Mask
    ) -> BoostedRewards:
        """Learn; see ``RewardModel.fit``."""
        self.split_, self.value_, self.base_ = self._grow(features, reward, weight)
        scores = self._scores(features, reward, fold, weight)
        self.platt_ = np.tile([0.0, 1.0], (reward.shape[1], 1))
        for a in range(reward.shape[1]):
            known = ~np.isnan(reward[:, a])
            if known.sum() >= MIN_ROWS:
                self.platt_[a] = fit_platt(scores[known, a], reward[known, a], weight[known, a])
        self.out_of_fold_ = self._calibrated(scores)
        return self

    def cross_fit(self, features: FloatArray, reward: FloatArray, fold: IntArray, weight: FloatArray) -> FloatArray:
        """See ``RewardModel.cross_fit``."""
        return self._calibrated(self._scores(features, reward, fold, weight))

    def predict(self, features: FloatArray) -> FloatArray:
        """Calibrated expected reward, shape (n, a)."""
        return self._calibrated(_walk(features, self.split_, self.value_, self.base_))

    def state(self) -> State:
        """Plain data and arrays."""
        return {}, {"split": self.split_, "value": self.value_, "base": self.base_, "platt": self.platt_}

    def restore(self, settings: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> BoostedRewards:
        """Take up what ``state`` gave."""
        for name in ("split", "value", "base", "platt"):
            if name not in arrays:
                raise RouterError(f"the reward model has no array {name!r}")
            setattr(self, name + "_", arrays[name])
        a = len(self.base_)
        inner = (a, TREES, NODES // 2, 2)
        if self.split_.shape != inner or self.value_.shape != (a, TREES, NODES - NODES // 2):
            raise RouterError(f"the reward model's arrays do not fit together: split {self.split_.shape}")
        if self.platt_.shape != (a, 2) or (self.split_[..., 0] < 0).any():
            raise RouterError("the reward model's arrays do not fit together")
        return self

    def _scores(self, features: FloatArray, reward: FloatArray, fold: IntArray, weight: FloatArray) -> FloatArray:
        scores = np.empty(reward.shape)
        for k in np.unique(fold):
            test = fold == k
            rest = ~test if (~test).any() else test
            scores[test] = _walk(features[test], *self._grow(features[rest], reward[rest], weight[rest]))
        return scores

    def _grow(
        self, features: FloatArray, reward: FloatArray, weight: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        from sklearn.ensemble import GradientBoostingRegressor

        arms = reward.shape[1]
        split = np.zeros((arms, TREES, NODES // 2, 2))
        value = np.zeros((arms, TREES, NODES - NODES // 2))
        base = prior_means(reward, weight)
        for a in range(arms):
            known = ~np.isnan(reward[:, a])
            if known.sum() < MIN_ROWS or not features.shape[1]:
                continue
            model = GradientBoostingRegressor(
                n_estimators=TREES,
                max_depth=DEPTH,
                learning_rate=RATE,
                min_samples_leaf=MIN_LEAF,
                max_features="sqrt",
                subsample=0.7,
                random_state=0,
            ).fit(features[known], reward[known, a], sample_weight=weight[known, a])
            base[a] = float(model.init_.constant_.ravel()[0])
            for t, (grown,) in enumerate(model.estimators_):
                split[a, t], value[a, t] = _complete(grown.tree_)
        return split, value, base

    def _calibrated(self, scores: FloatArray) -> FloatArray:
        return apply_platt(scores, self.platt_[:, 0], self.platt_[:, 1])


def _complete(tree: Any) -> Grown:
    """A tree of scikit-learn as a complete one; below an early leaf both sides repeat its value."""
    split = np.zeros((NODES // 2, 2))
    value = np.zeros(NODES - NODES // 2)
    stack = [(0, 0)]
    while stack:
        place, node = stack.pop()
        if place >= NODES // 2:
            value[place - NODES // 2] = RATE * tree.value[node].ravel()[0]
            continue
        left, right = int(tree.children_left[node]), int(tree.children_right[node])
        if left < 0:
            left = right = node
        else:
            split[place] = tree.feature[node], tree.threshold[node]
        stack += [(2 * place + 1, left), (2 * place + 2, right)]
    return split, value


def _walk(features: FloatArray, split: FloatArray, value: FloatArray, base: FloatArray) -> FloatArray:
    arms, trees = split.shape[:2]
    n = len(features)
    if not features.shape[1]:
        return np.tile(base, (n, 1))
    # scikit-learn compares in single precision, and so must we.
    single = features.astype(np.float32)
    flat = split.reshape(arms * trees, -1, 2)
    leaves = value.reshape(arms * trees, -1)
    tree = np.arange(arms * trees)[None, :]
    row = np.arange(n)[:, None]
    place = np.zeros((n, arms * trees), dtype=np.intp)
    for _ in range(DEPTH):
        here = flat[tree, place]
        place = 2 * place + 1 + (single[row, here[..., 0].astype(np.intp)] > here[..., 1])
    found = leaves[tree, place - NODES // 2].reshape(n, arms, trees)
    total: FloatArray = base + found.sum(axis=2)
    return total
