"""Exploration: chance around the gated policy, with the probabilities that a log needs.

Two things are explored, each with a probability that is written down:

* the arm: the policy turns values into a distribution over arms, and the arm is drawn from it
  (``Decision.propensities``);
* the evidence: where the gated policy would decide now, epsilon-greedy buys *all* remaining stages with probability
  epsilon. So every query has complete evidence with positive probability, which is what learning when to stop
  needs:

        P(evidence) = epsilon        bought by chance,
                      1 - epsilon    the policy decided early and chance agreed,
                      1              the policy itself bought every stage        (``Decision.stage_probability``)

  What a later stage tells is thus learnt from complete rows alone, each counting 1 / P(evidence) times. Early
  deciding is not explored: who has more evidence also has the lesser.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError
from ragft_plugin.routing.policies import POLICIES
from ragft_plugin.routing.text import IntArray
from ragft_plugin.types import FloatArray


@dataclass(frozen=True, slots=True)
class Exploration:
    """How one call explores.

    Attributes:
        policy: name in ``POLICIES``.
        amount: epsilon, or the softmax temperature.
        rng: source of chance; None means fresh.

    Raises:
        ConfigError: for an unknown policy.
    """

    policy: str = "greedy"
    amount: float = 0.0
    rng: np.random.Generator | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(f"unknown policy {self.policy!r}, expected one of {', '.join(POLICIES)}")

    @property
    def is_on(self) -> bool:
        """Whether anything is left to chance."""
        return self.amount > 0.0 and self.policy != "greedy"

    @property
    def stage_epsilon(self) -> float:
        """Probability of buying all evidence where the policy would decide now; softmax explores arms alone."""
        return self.amount if self.policy == "epsilon_greedy" else 0.0

    def distribution(self, values: FloatArray, pick: IntArray) -> FloatArray:
        """Probabilities of the arms, shape (n, a); ``pick`` is the best arm of each row."""
        if self.is_on:
            return POLICIES[self.policy](values, self.amount)
        dist = np.zeros(values.shape)
        dist[np.arange(len(pick)), pick] = 1.0
        return dist

    def draw(self, dist: FloatArray, pick: IntArray) -> IntArray:
        """An arm for each row, shape (n,); the best one where nothing is left to chance."""
        if not self.is_on:
            return pick
        drawn: IntArray = (dist.cumsum(axis=1) > self._chance(len(dist))[:, None]).argmax(axis=1)
        return drawn

    def buys(self, n: int) -> NDArray[np.bool_]:
        """Whether chance buys all evidence, shape (n,)."""
        if self.stage_epsilon == 0.0:
            return np.zeros(n, dtype=bool)
        bought: NDArray[np.bool_] = self._chance(n) < self.stage_epsilon
        return bought

    def _chance(self, n: int) -> FloatArray:
        return (self.rng or np.random.default_rng()).random(n)


NO_EXPLORATION = Exploration()
