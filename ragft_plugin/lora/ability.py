"""Ability: what the base could do before, and what is left of it after training.

Fine-tuning on a narrow task makes a model answer every question as if it were of that task. So a fixed set of
questions is asked before and after: the user's own, or those held-out rows which the base answers right already.
The latter score 1 before by their choice, so that only a fall can be seen, which is what is looked for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ragft_plugin.lora.data import TrainingRow

LARGEST_DROP = 0.1  # of the mean score; a larger one is warned of
_RIGHT = 1.0 - 1e-9

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ability:
    """Scores on the probe set, row by row.

    Attributes:
        before: of the base.
        after: of the adapter.
        chosen: the rows were chosen because the base answers them right.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    chosen: bool

    @property
    def drop(self) -> float:
        """Mean score before minus after."""
        return fmean(self.before) - fmean(self.after)

    def metrics(self) -> dict[str, float]:
        """Means and size, as the manifest keeps them."""
        return {
            "ability_before": fmean(self.before),
            "ability_after": fmean(self.after),
            "ability_rows": float(len(self.before)),
        }


def answered_already(rows: Sequence[TrainingRow], scores: Sequence[float]) -> list[TrainingRow]:
    """The rows which the base answers right."""
    return [row for row, score in zip(rows, scores, strict=True) if score >= _RIGHT]


def warn_of_forgetting(ability: Ability, name: str) -> str | None:
    """Warn if the score on the probe set fell by more than ``LARGEST_DROP``; returns the warning."""
    if ability.drop <= LARGEST_DROP:
        return None
    warning = (
        f"{name} forgets: of {len(ability.before)} questions that have nothing to do with its task the base scores "
        f"{fmean(ability.before):.3f} and the adapter {fmean(ability.after):.3f}; mix some of them into the training "
        "rows, train for fewer epochs or at a lower learning_rate, or ask this adapter only questions of its own kind"
    )
    logger.warning("%s", warning)
    return warning
