"""Completeness: which rows of a log have all evidence, and how many queries each of them stands for.

A live router decides early where it pays, so the rows of its log end at different stages. What a later stage would
have told is known only of the rows that have it, and these are a choice made by the router: learning from them as
they are would learn from the queries it found hard. Where *chance* gathered all evidence now and then, with a logged
probability (``ragft_plugin.routing.exploring``), the choice can be undone:

    sum over all rows of f(x)  is estimated by  sum over complete rows of f(x_i) / P_i(evidence)

for every f that may look at all stages. So later stages, stopping and gate learn from complete rows with these
weights; the reward model of the question learns from every row.

Source: Horvitz & Thompson, "A generalization of sampling without replacement from a finite universe", 1952.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.evaluation.outcomes import Outcome, Outcomes
from ragft_plugin.types import STAGES, FloatArray

logger = logging.getLogger(__name__)

MIN_COMPLETE = 100  # fewer complete rows do not tell when to stop
MAX_UNSUPPORTED = 0.05  # share of rows that had no chance of being complete
MAX_WEIGHT = 20.0  # a row gathered by a tiny chance stands for at most so many queries


@dataclass(frozen=True, eq=False)
class Completeness:
    """Which rows serve to learn what later stages tell.

    Attributes:
        rows: whether each row has all evidence, shape (n,).
        weight: queries that each of these rows stands for, shape (rows.sum(),), of mean 1.
    """

    rows: NDArray[np.bool_]
    weight: FloatArray

    @property
    def is_whole(self) -> bool:
        """Whether every row has all evidence."""
        return bool(self.rows.all())

    @classmethod
    def of(cls, outcomes: Outcomes) -> Completeness:
        """Find the complete rows of a log.

        Returns:
            All rows where they end at one stage; those that reach the last stage of any row where chance has
            gathered enough of them. Otherwise all rows, each counted up to the evidence that every row has.
        """
        n = len(outcomes)
        every = cls(np.ones(n, dtype=bool), np.ones(n))
        level = np.array([reached(row) for row in outcomes.rows])
        complete = level == level.max()
        if complete.all():
            return every
        stuck = float((~complete & (outcomes.stage_probability >= 1.0)).mean())
        if complete.sum() < MIN_COMPLETE or stuck > MAX_UNSUPPORTED:
            if any(row.stage is not None for row in outcomes.rows):
                logger.warning(
                    "%d of %d rows have evidence up to %r, and %.0f %% had no chance of it: only evidence that every "
                    "row has is learnt from. Explore with epsilon_greedy to learn what later stages tell",
                    complete.sum(),
                    n,
                    STAGES[int(level.max())],
                    100.0 * stuck,
                )
            return every
        weight = np.minimum(1.0 / outcomes.stage_probability[complete], MAX_WEIGHT)
        return cls(complete, weight / weight.mean())


def reached(row: Outcome) -> int:
    """Index of the last stage whose evidence the row's decision was made on.

    A row that names no stage has all the evidence that stands in it: passages, a draft, a second answer.
    """
    if row.stage is not None:
        return STAGES.index(row.stage)
    texts = len(row.drafts.keys() | row.answers.keys())
    there = [True, row.passages is not None, texts >= 1, texts >= 2]
    return max(i for i, has in enumerate(there) if has)
