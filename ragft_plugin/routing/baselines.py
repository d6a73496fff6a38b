"""Plain methods to compare with: k nearest neighbours, a classifier of the best arm, a small neural network.

They get the features that the router's last stage has, with signals and texts weighed so that neither drowns the
other: one standard deviation of a signal counts a fifth of a whole text. Where a plain method is as good as the
learnt policy, it should be preferred.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.routing.text import IntArray
from ragft_plugin.types import FloatArray

Baseline = Callable[[FloatArray, FloatArray, FloatArray], IntArray]
"""(training features (m, d), their rewards (m, a), features (n, d)) -> arms (n,)."""
SIGNAL_SCALE = 0.2  # a signal of one standard deviation against a text block of length one


def comparable(features: FloatArray, signals: NDArray[np.bool_]) -> FloatArray:
    """Features of a router, weighed for methods that do not choose weights themselves, shape (n, d).

    Args:
        features: shape (n, d).
        signals: which columns are signals, not parts of a text block, shape (d,).
    """
    return features * np.where(signals, SIGNAL_SCALE, 1.0)


def nearest_neighbours(train: FloatArray, reward: FloatArray, features: FloatArray) -> IntArray:
    """The arm with the best mean reward among the nearest sqrt(m) training queries."""
    from sklearn.neighbors import NearestNeighbors

    k = max(1, round(float(np.sqrt(len(train)))))
    found = NearestNeighbors(n_neighbors=k).fit(train).kneighbors(features, return_distance=False)
    return np.asarray(reward[found].mean(axis=1).argmax(axis=1), dtype=np.intp)


def best_arm_classifier(train: FloatArray, reward: FloatArray, features: FloatArray) -> IntArray:
    """Logistic regression of which arm was best; ties count for the arm that is better on the whole."""
    from sklearn.linear_model import LogisticRegression

    order = np.argsort(-reward.mean(axis=0), kind="stable")
    label = order[reward[:, order].argmax(axis=1)]
    if len(np.unique(label)) < 2:
        return np.full(len(features), label[0], dtype=np.intp)
    model = LogisticRegression(max_iter=2000).fit(train, label)
    return np.asarray(model.predict(features), dtype=np.intp)


def neural_network(train: FloatArray, reward: FloatArray, features: FloatArray) -> IntArray:
    """A perceptron with one hidden layer of 64 that predicts all rewards."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    model = MLPRegressor(
        hidden_layer_sizes=(64,), alpha=1e-2, early_stopping=len(train) >= 100, max_iter=300, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        predicted = model.fit(train, reward).predict(features)
    return np.asarray(predicted.reshape(len(features), -1).argmax(axis=1), dtype=np.intp)


BASELINES: dict[str, Baseline] = {
    "best_arm_classifier": best_arm_classifier,
    "nearest_neighbours": nearest_neighbours,
    "neural_network": neural_network,
}
"""Baselines by name."""
