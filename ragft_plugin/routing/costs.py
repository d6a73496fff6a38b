"""Costs: what evidence has paid for is not paid again.

Four rules, the same for deciding and for counting:

* an arm that ran as draft or second answer costs nothing more: its answer is there;
* once passages are there, an arm that retrieves costs its price less the price of that retrieval;
* a query costs the sum of its stages plus what its arm costs beyond them;
* a signal with a price of its own (``signal(price=...)``) adds it to its stage: it is paid whenever the router looks.

So with ``{"adapter": 1, "rag": 1, "rag+adapter": 2}`` and stages ``{"passages": 1, "draft": 1}`` (the adapter's),
after passages and draft ``rag`` and ``adapter`` cost nothing more and ``rag+adapter`` costs 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ragft_plugin.evaluation.outcomes import Outcomes, reads_passages
from ragft_plugin.routing.signals import SIGNALS
from ragft_plugin.types import FloatArray, Stage


@dataclass(frozen=True, eq=False)
class Costs:
    """Prices of stages and arms; arrays lead with n for prices that differ by query.

    Attributes:
        stage: price of gathering each stage when the ones before are there, shape (..., s).
        arm: what each arm costs beyond the stages gathered, shape (..., s, a).
    """

    stage: FloatArray
    arm: FloatArray

    def mean(self, weight: FloatArray | None = None) -> Costs:
        """What is known before a query is asked: the mean, each row counting ``weight``, shape (n,)."""
        if weight is None:
            return Costs(self.stage.mean(axis=0), self.arm.mean(axis=0))
        return Costs(np.average(self.stage, axis=0, weights=weight), np.average(self.arm, axis=0, weights=weight))

    def take(self, index: np.ndarray) -> Costs:
        """Rows at ``index``."""
        return Costs(self.stage[index], self.arm[index])

    @property
    def spent(self) -> FloatArray:
        """Price of all stages up to each one, shape (..., s)."""
        return np.cumsum(self.stage, axis=-1)

    @property
    def direct(self) -> FloatArray:
        """What an arm costs if nothing but the question is known, shape (..., a)."""
        return self.arm[..., 0, :]


def signal_price(stage: Stage) -> float:
    """Price of reading all signals of a stage, in the user's unit.

    Example:
        >>> signal_price("question")
        0.0
    """
    return sum(each.price for each in SIGNALS.values() if each.stage == stage)


def costs_of(
    outcomes: Outcomes,
    stages: Sequence[Stage],
    draft_arm: str | None,
    agreement_arm: str | None,
    retrieves: Sequence[bool] | None = None,
) -> Costs:
    """Prices of every logged query.

    Args:
        outcomes: the log.
        stages: in order; the first is "question" and free.
        draft_arm: whose answer is the draft.
        agreement_arm: whose answer is compared with it.
        retrieves: whether each arm reads passages, shape (a,); None tells it from the arms' names.
    """
    arms = outcomes.arms
    reads = np.array([reads_passages(a) for a in arms] if retrieves is None else list(retrieves))
    n = len(outcomes)
    stage = np.zeros((n, len(stages)))
    arm = np.repeat(outcomes.cost[:, None, :], len(stages), axis=1)
    paid = np.zeros(n)
    done: list[int] = []
    for s, name in enumerate(stages):
        runs = {"draft": draft_arm, "agreement": agreement_arm}.get(name)
        for i, row in enumerate(outcomes.rows):
            stage[i, s] = row.price(name, runs, paid=float(paid[i]))
        if name == "passages":
            paid = stage[:, s].copy()
        if runs is not None:
            done.append(arms.index(runs))
        arm[:, s, reads] = np.maximum(0.0, arm[:, s, reads] - paid[:, None])
        arm[:, s, done] = 0.0
        stage[:, s] += signal_price(name)
    return Costs(stage, arm)
