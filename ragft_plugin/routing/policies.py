"""Policies: values per arm -> probabilities per arm.

A policy never changes what is best, only how often something else is tried. Values are rounded to 1e-9 first, so
that a query is decided alike alone and in a batch, where sums may be taken in another order; ties go to the first
arm.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError
from ragft_plugin.types import FloatArray

Policy = Callable[[FloatArray, float], FloatArray]


def choose(values: FloatArray) -> NDArray[np.intp]:
    """Index of the best arm of each row, shape (n,); ties go to the first arm.

    Example:
        >>> choose(np.array([[0.5, 0.5 + 1e-12], [0.1, 0.2]])).tolist()
        [0, 1]
    """
    best: NDArray[np.intp] = np.round(values, 9).argmax(axis=-1)
    return best


def greedy(values: FloatArray, amount: float = 0.0) -> FloatArray:
    """All probability on the best arm. ``amount`` is not used."""
    dist = np.zeros(values.shape)
    np.put_along_axis(dist, choose(values)[..., None], 1.0, axis=-1)
    return dist


def epsilon_greedy(values: FloatArray, amount: float) -> FloatArray:
    """The best arm, but with probability ``amount`` any arm, each equally likely.

    Example:
        >>> epsilon_greedy(np.array([[0.9, 0.1]]), 0.2).tolist()
        [[0.9, 0.1]]
    """
    if not 0.0 <= amount <= 1.0:
        raise ConfigError(f"epsilon must be in [0, 1], not {amount}")
    able = np.isfinite(values)
    dist: FloatArray = (1.0 - amount) * greedy(values) + amount * able / able.sum(axis=-1, keepdims=True)
    return dist


def softmax(values: FloatArray, amount: float) -> FloatArray:
    """Probability falls off exponentially with the distance from the best; ``amount`` is the temperature."""
    if not amount > 0.0:
        raise ConfigError(f"the temperature must be positive, not {amount}")
    scaled = np.round(values, 9) / amount
    weight = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    dist: FloatArray = weight / weight.sum(axis=-1, keepdims=True)
    return dist


POLICIES: dict[str, Policy] = {"epsilon_greedy": epsilon_greedy, "greedy": greedy, "softmax": softmax}
"""Policies by name: (values (n, a), amount) -> probabilities (n, a). An arm of value -inf is never chosen."""
