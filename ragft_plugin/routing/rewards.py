"""Reward models: features -> calibrated probability, per arm, that its answer is good.

All share one protocol. ``fit`` also leaves ``out_of_fold_``: what the model says of each training row when it was
fitted without that row's fold. Everything that comes after (stopping, gate, calibration) learns from these and
never from predictions of rows that were seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import RouterError
from ragft_plugin.routing.calibration import apply_platt, fit_platt
from ragft_plugin.routing.ridge import PENALTIES, fit_ridge, out_of_fold_path
from ragft_plugin.routing.text import IntArray
from ragft_plugin.types import FloatArray

MIN_ROWS = 30  # below so many rewards of an arm, its prior is all there is
PRIOR_ROWS = 4.0  # an arm's mean is shrunk to that of all arms as if so many rows had shown it

SIGNAL_SCALES = (0.1, 0.2, 0.4)  # a signal of one standard deviation against a text block of length one

State = tuple[dict[str, Any], dict[str, FloatArray]]
Mask = NDArray[np.bool_]


class RewardModel(Protocol):
    """Predicts rewards of all arms.

    Attributes:
        out_of_fold_: calibrated predictions for the training rows, shape (n, a).
    """

    out_of_fold_: FloatArray

    def fit(
        self, features: FloatArray, reward: FloatArray, fold: IntArray, weight: FloatArray, signals: Mask
    ) -> RewardModel:
        """Learn.

        Args:
            features: shape (n, d).
            reward: shape (n, a) in [0, 1], NaN where unknown.
            fold: cross-fitting fold of each row, shape (n,).
            weight: shape (n, a), e.g. one over the propensity.
            signals: which columns are signals of their own and not part of a text block, shape (d,).
        """
        ...

    def predict(self, features: FloatArray) -> FloatArray:
        """Calibrated expected reward, shape (n, a)."""
        ...

    def state(self) -> State:
        """Plain data and arrays that ``restore`` makes the same model of."""
        ...

    def restore(self, settings: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> RewardModel:
        """Take up what ``state`` gave."""
        ...


def prior_means(reward: FloatArray, weight: FloatArray) -> FloatArray:
    """Mean reward of each arm, shrunk to that of all arms; that mean itself for an arm never seen.

    Example:
        >>> reward = np.array([[1.0, np.nan], [0.0, np.nan]])
        >>> prior_means(reward, np.ones((2, 2))).tolist()
        [0.5, 0.5]
    """
    known = ~np.isnan(reward)
    value = np.where(known, reward, 0.0)
    w = np.where(known, weight, 0.0)
    pooled = ((w * value).sum() + 1.0) / (w.sum() + 2.0)
    means: FloatArray = ((w * value).sum(axis=0) + PRIOR_ROWS * pooled) / (w.sum(axis=0) + PRIOR_ROWS)
    return means


class LinearRewards:
    """Ridge regression per arm, calibrated by Platt scaling.

    The penalty and the weight of signals against text are common to all arms: the pair with the least squared error
    out of fold, summed over arms. One choice made on all rewards is steadier than one per arm made on fewer, and
    an arm with few rows, such as a new adapter, borrows it from the others.
    """

    out_of_fold_: FloatArray

    def fit(
        self, features: FloatArray, reward: FloatArray, fold: IntArray, weight: FloatArray, signals: Mask
    ) -> LinearRewards:
        """Learn; see ``RewardModel.fit``."""
        n, arms = reward.shape
        self.coef_ = np.zeros((features.shape[1], arms))
        self.intercept_ = prior_means(reward, weight)
        self.platt_ = np.tile([0.0, 1.0], (arms, 1))
        known = ~np.isnan(reward)
        scores = np.tile(self.intercept_, (n, 1))
        for k in np.unique(fold):
            scores[fold == k] = prior_means(reward[fold != k], weight[fold != k])
        fitted = [a for a in range(arms) if known[:, a].sum() >= MIN_ROWS]
        if features.shape[1] and fitted:
            self._fit_arms(features, reward, fold, weight, signals, fitted, scores)
        for a in fitted:
            rows = known[:, a]
            self.platt_[a] = fit_platt(scores[rows, a], reward[rows, a], weight[rows, a])
        self.out_of_fold_ = apply_platt(scores, self.platt_[:, 0], self.platt_[:, 1])
        return self

    def predict(self, features: FloatArray) -> FloatArray:
        """Calibrated expected reward, shape (n, a)."""
        return apply_platt(features @ self.coef_ + self.intercept_, self.platt_[:, 0], self.platt_[:, 1])

    def state(self) -> State:
        """Plain data and arrays."""
        return {}, {"coef": self.coef_, "intercept": self.intercept_, "platt": self.platt_}

    def restore(self, settings: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> LinearRewards:
        """Take up what ``state`` gave."""
        self.coef_, self.intercept_, self.platt_ = arrays["coef"], arrays["intercept"], arrays["platt"]
        a = self.coef_.shape[1] if self.coef_.ndim == 2 else -1
        if self.intercept_.shape != (a,) or self.platt_.shape != (a, 2):
            raise RouterError(f"the reward model's arrays do not fit together: coef {self.coef_.shape}")
        return self

    def _fit_arms(
        self,
        features: FloatArray,
        reward: FloatArray,
        fold: IntArray,
        weight: FloatArray,
        signals: Mask,
        fitted: list[int],
        scores: FloatArray,
    ) -> None:
        known = ~np.isnan(reward)
        value = np.where(known, reward, 0.0)
        # Arms run on the same rows share the decomposition.
        same = bool(known[:, fitted].all()) and bool((weight[:, fitted] == weight[:, fitted[:1]]).all())
        groups = [fitted] if same else [[a] for a in fitted]

        def rows_of(group: list[int]) -> tuple[Mask, FloatArray, FloatArray, IntArray]:
            rows = known[:, group[0]]
            return rows, value[rows][:, group], weight[rows, group[0]], fold[rows]

        scales = SIGNAL_SCALES if signals.any() and not signals.all() else SIGNAL_SCALES[:1]
        loss = np.zeros((len(scales), len(PENALTIES)))
        for i, scale in enumerate(scales):
            scaled = features * np.where(signals, scale, 1.0)
            for group in groups:
                rows, y, w, f = rows_of(group)
                path = out_of_fold_path(scaled[rows], y, w, f, PENALTIES)
                loss[i] += np.einsum("n,pnm->p", w, (path - y) ** 2)
        i, p = divmod(int(loss.argmin()), len(PENALTIES))
        multiplier = np.where(signals, scales[i], 1.0)
        scaled, penalty = features * multiplier, PENALTIES[p : p + 1]
        for group in groups:
            rows, y, w, f = rows_of(group)
            coef, intercept = fit_ridge(scaled[rows], y, w, np.repeat(penalty, len(group)))
            self.coef_[:, group], self.intercept_[group] = coef * multiplier[:, None], intercept
            scores[np.ix_(rows, np.array(group))] = out_of_fold_path(scaled[rows], y, w, f, penalty)[0]
            if not rows.all():
                scores[np.ix_(~rows, np.array(group))] = scaled[~rows] @ coef + intercept


REWARD_MODELS: dict[str, Callable[[], RewardModel]] = {"linear": LinearRewards}
"""Reward models by name."""
