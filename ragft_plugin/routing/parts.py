"""The parts of a fitted router, which deciding, tracing and keeping share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.routing.features import Featurizer
from ragft_plugin.routing.novelty import Novelty
from ragft_plugin.routing.plan import Plan
from ragft_plugin.routing.rewards import RewardModel
from ragft_plugin.types import FloatArray, Stage


@dataclass(frozen=True, eq=False)
class Parts:
    """What a fitted router decides with.

    Attributes:
        arms: names, in the order of all arrays.
        featurizer: evidence -> features.
        models: per stage, features -> rewards.
        plan: rewards -> what to do, at which cost weight.
        novelty: which queries are unlike those learnt from.
        seen: whether each arm has any reward in the log, shape (a,); one without is never chosen.
        model_name: name of the reward model.
    """

    arms: tuple[str, ...]
    featurizer: Featurizer
    models: tuple[RewardModel, ...]
    plan: Plan
    novelty: Novelty
    seen: NDArray[np.bool_]
    model_name: str

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of evidence, in order."""
        return self.featurizer.stages

    def runs(self, stage: Stage) -> str | None:
        """The arm that a stage runs, None for passages."""
        return {"draft": self.featurizer.draft_arm, "agreement": self.featurizer.agreement_arm}.get(stage)

    def probability(self, features: FloatArray, level: int) -> FloatArray:
        """Calibrated reward of each arm at a stage, shape (n, a), from the features of that or a later one."""
        return self.models[level].predict(features[:, : self.widths[level]])

    def unfamiliar(self, features: FloatArray) -> NDArray[np.bool_]:
        """Whether each query is unlike all that were learnt from, shape (n,)."""
        return self.novelty.unfamiliar(features[:, self._question])

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Number of features at each stage."""
        return tuple(self.featurizer.width(stage) for stage in self.stages)

    @cached_property
    def _question(self) -> slice:
        return self.featurizer.question_columns
