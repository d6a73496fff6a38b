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

WAVES = 192  # random cosines
WAVE_ROWS = 150  # fewer rows cannot tell whether bending helps
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

    def cross_fit(self, features: FloatArray, reward: FloatArray, fold: IntArray, weight: FloatArray) -> FloatArray:
        """After ``fit``: calibrated predictions for the same rows out of other folds, shape (n, a)."""
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

    Beside the features as they are it sees the signals bent by random cosines, which stand for a Gaussian kernel on
    them: that two answers agree means more where the draft is short. The penalty, the weight of signals against text
    and whether the bent ones are used are common to all arms: what has the least squared error out of fold, summed
    over arms. One choice made on all rewards is steadier than one per arm made on fewer, and an arm with few rows,
    such as a new adapter, borrows it from the others.

    Source: Rahimi & Recht, "Random features for large-scale kernel machines", 2007.
    """

    out_of_fold_: FloatArray

    def fit(
        self, features: FloatArray, reward: FloatArray, fold: IntArray, weight: FloatArray, signals: Mask
    ) -> LinearRewards:
        """Learn; see ``RewardModel.fit``."""
        known = ~np.isnan(reward)
        arms = reward.shape[1]
        self.waves_ = np.zeros((0, 0))
        self.signals_ = signals
        self.scale_, self.penalty_ = SIGNAL_SCALES[0], float(PENALTIES[-1])
        self.fitted_ = np.array([bool(known[:, a].sum() >= MIN_ROWS) for a in range(arms)])
        if features.shape[1] and self.fitted_.any():
            self._choose(features, reward, fold, weight)
        design = self._design(features)
        self.coef_ = np.zeros((design.shape[1], arms))
        self.intercept_ = prior_means(reward, weight)
        for group, rows in self._groups(known, weight):
            y, w = reward[np.ix_(rows, group)], weight[rows, group[0]]
            coef, intercept = fit_ridge(design[rows], y, w, np.full(len(group), self.penalty_))
            self.coef_[:, group], self.intercept_[group] = coef, intercept
        scores = self._scores(design, reward, fold, weight)
        self.platt_ = np.tile([0.0, 1.0], (arms, 1))
        for a in np.flatnonzero(self.fitted_):
            rows = known[:, a]
            self.platt_[a] = fit_platt(scores[rows, a], reward[rows, a], weight[rows, a])
        self.out_of_fold_ = self._calibrated(scores)
        return self

    def cross_fit(self, features: FloatArray, reward: FloatArray, fold: IntArray, weight: FloatArray) -> FloatArray:
        """Predictions out of other folds, with what was chosen in ``fit``; see ``RewardModel.cross_fit``."""
        return self._calibrated(self._scores(self._design(features), reward, fold, weight))

    def predict(self, features: FloatArray) -> FloatArray:
        """Calibrated expected reward, shape (n, a)."""
        return self._calibrated(self._design(features) @ self.coef_ + self.intercept_)

    def state(self) -> State:
        """Plain data and arrays."""
        arrays = {
            "coef": self.coef_,
            "intercept": self.intercept_,
            "platt": self.platt_,
            "signals": self.signals_,
            "waves": self.waves_,
        }
        return {"scale": self.scale_, "penalty": self.penalty_}, arrays

    def restore(self, settings: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> LinearRewards:
        """Take up what ``state`` gave."""
        try:
            self.scale_, self.penalty_ = float(settings["scale"]), float(settings["penalty"])
            self.coef_, self.intercept_ = arrays["coef"], arrays["intercept"]
            self.platt_, self.waves_ = arrays["platt"], arrays["waves"]
            self.signals_ = arrays["signals"].astype(bool)
        except (KeyError, TypeError, ValueError) as error:
            raise RouterError(f"the reward model is not complete: {error}") from None
        a = self.intercept_.shape[0] if self.intercept_.ndim == 1 else -1
        width = len(self.signals_) + (self.waves_.shape[1] if self.waves_.ndim == 2 else -1)
        waves = (int(self.signals_.sum()) + 1, self.waves_.shape[1]) if self.waves_.size else (0, 0)
        if (
            self.signals_.ndim != 1
            or self.coef_.shape != (width, a)
            or self.platt_.shape != (a, 2)
            or self.waves_.shape != waves
        ):
            raise RouterError(f"the reward model's arrays do not fit together: coef {self.coef_.shape}")
        return self

    def _design(self, features: FloatArray) -> FloatArray:
        """Features with signals weighed, then the bent signals, shape (n, d + waves)."""
        scaled = features * np.where(self.signals_, self.scale_, 1.0)
        if not self.waves_.size:
            return scaled
        angle = features[:, self.signals_] @ self.waves_[:-1] + self.waves_[-1]
        return np.hstack([scaled, np.cos(angle) * np.sqrt(2.0 / angle.shape[1])])

    def _calibrated(self, scores: FloatArray) -> FloatArray:
        return apply_platt(scores, self.platt_[:, 0], self.platt_[:, 1])

    def _groups(self, known: Mask, weight: FloatArray) -> list[tuple[IntArray, Mask]]:
        """Arms with enough rows, and those rows; arms run on the same rows share the decomposition."""
        arms = np.flatnonzero(self.fitted_)
        if not len(arms):
            return []
        if known[:, arms].all() and (weight[:, arms] == weight[:, arms[:1]]).all():
            return [(arms, known[:, arms[0]])]
        return [(arms[i : i + 1], known[:, a]) for i, a in enumerate(arms)]

    def _choose(self, features: FloatArray, reward: FloatArray, fold: IntArray, weight: FloatArray) -> None:
        """Choose the weight of signals, then whether bending them helps."""
        known = ~np.isnan(reward)

        def loss() -> FloatArray:
            design = self._design(features)
            total = np.zeros(len(PENALTIES))
            for group, rows in self._groups(known, weight):
                y, w = reward[np.ix_(rows, group)], weight[rows, group[0]]
                path = out_of_fold_path(design[rows], y, w, fold[rows], PENALTIES)
                total += np.einsum("n,pnm->p", w, (path - y) ** 2)
            return total

        both = bool(self.signals_.any()) and not bool(self.signals_.all())
        best = np.inf
        for scale in SIGNAL_SCALES if both else SIGNAL_SCALES[1:2]:
            before, self.scale_ = self.scale_, scale
            found = loss()
            if found.min() < best:
                best, self.penalty_ = found.min(), float(PENALTIES[found.argmin()])
            else:
                self.scale_ = before
        d = int(self.signals_.sum())
        if d >= 2 and len(features) >= WAVE_ROWS:
            rng = np.random.default_rng(0)
            # With this width two queries at the mean distance are alike by 1 / e.
            self.waves_ = np.vstack(
                [rng.normal(size=(d, WAVES)) / np.sqrt(d), rng.uniform(0.0, 2.0 * np.pi, (1, WAVES))]
            )
            found = loss()
            if found.min() < best:
                self.penalty_ = float(PENALTIES[found.argmin()])
            else:
                self.waves_ = np.zeros((0, 0))

    def _scores(self, design: FloatArray, reward: FloatArray, fold: IntArray, weight: FloatArray) -> FloatArray:
        """Uncalibrated predictions of rows by models that have not seen their fold, shape (n, a)."""
        known = ~np.isnan(reward)
        scores = np.empty(reward.shape)
        for k in np.unique(fold):
            rest = fold != k if (fold != k).any() else fold == k
            scores[fold == k] = prior_means(reward[rest], weight[rest])
        penalty = np.array([self.penalty_])
        for group, rows in self._groups(known, weight):
            y, w = reward[np.ix_(rows, group)], weight[rows, group[0]]
            scores[np.ix_(rows, group)] = out_of_fold_path(design[rows], y, w, fold[rows], penalty)[0]
            if not rows.all():
                unseen = np.flatnonzero(~rows)
                scores[np.ix_(unseen, group)] = design[unseen] @ self.coef_[:, group] + self.intercept_[group]
        return scores


def _boosted() -> RewardModel:
    from ragft_plugin.routing.boosted import BoostedRewards

    return BoostedRewards()


def _neighbours() -> RewardModel:
    from ragft_plugin.routing.neighbours import NeighbourRewards

    return NeighbourRewards()


REWARD_MODELS: dict[str, Callable[[], RewardModel]] = {
    "boosted": _boosted,
    "linear": LinearRewards,
    "neighbours": _neighbours,
}
"""Reward models by name."""
