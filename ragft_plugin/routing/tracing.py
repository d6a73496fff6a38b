"""Tracing: what a router would have done with every query of a log, at any cost weight.

The same parts decide as in ``Router.next``, on whole arrays. So a frontier of twenty weights costs one pass over the
texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.routing.calibration import apply_platt
from ragft_plugin.routing.completeness import Completeness
from ragft_plugin.routing.costs import Costs, costs_of
from ragft_plugin.routing.learning import evidence_of, full_rewards, usable_stages
from ragft_plugin.routing.stopping import follow
from ragft_plugin.routing.text import IntArray
from ragft_plugin.types import FloatArray

if TYPE_CHECKING:
    from ragft_plugin.routing.router import Router


@dataclass(frozen=True, eq=False)
class Course:
    """What became of every query; arrays of shape (n,).

    Attributes:
        stage: index of the stage at which it was decided.
        arm: index of the chosen arm.
        reward: what that arm earned.
        cost: of the stages gathered and of the arm beyond them.
        confidence: calibrated probability that the chosen arm's answer is good.
    """

    stage: IntArray
    arm: IntArray
    reward: FloatArray
    cost: FloatArray
    confidence: FloatArray


@dataclass(frozen=True, eq=False)
class Trace:
    """A router's predictions for a log.

    Attributes:
        router: whose.
        features: at the last stage, shape (n, d).
        probability: per stage, shape (n, a).
        unfamiliar: whether a query is unlike those learnt from, shape (n,).
        reward: what each arm earned, or an unbiased estimate of it, shape (n, a).
        costs: of every row.
    """

    router: Router
    features: FloatArray
    probability: tuple[FloatArray, ...]
    unfamiliar: NDArray[np.bool_]
    reward: FloatArray
    costs: Costs

    @classmethod
    def of(cls, router: Router, outcomes: Outcomes) -> Trace:
        """Predict for a log; its arms must be the router's, in any order.

        Raises:
            DataError: if arms or evidence that the router needs are missing.
        """
        parts = router.fitted()
        featurizer = parts.featurizer
        if outcomes.arms != router.arms:
            if set(outcomes.arms) != set(router.arms):
                raise DataError(f"the log has the arms {', '.join(outcomes.arms)}, the router {', '.join(router.arms)}")
            outcomes = Outcomes.from_rows(outcomes.rows, router.arms)
        outcomes = outcomes.require_learnable()
        stages = featurizer.stages
        complete = Completeness.of(outcomes).rows
        if len(stages) > 1 and not complete.all():
            raise DataError(
                f"{complete.sum()} of {len(complete)} rows have all the evidence that the router reads; the others "
                "were decided earlier. Evaluate on outcomes of 'ragft run-arms', with --stages question, or "
                "estimate from the log: ragft fit --log without --cv"
            )
        there, _, _ = usable_stages(outcomes, None, router.draft_arm, router.agreement_arm)
        missing = [s for s in stages if s not in there]
        if missing:
            raise DataError(f"the router reads {', '.join(missing)}, which the log does not have for every row")
        evidence, answers = evidence_of(outcomes.rows, stages[-1], router.draft_arm, router.agreement_arm)
        features = featurizer.transform(evidence, stages[-1], answers)
        probability = tuple(
            np.where(parts.seen, parts.probability(features, level), 0.0) for level in range(len(stages))
        )
        return cls(
            router,
            features,
            probability,
            parts.unfamiliar(features),
            full_rewards(outcomes, probability[-1]),
            costs_of(outcomes, stages, router.draft_arm, router.agreement_arm),
        )

    def course(self, weight: float, *, gated: bool = True) -> Course:
        """What becomes of every query at a cost weight.

        Args:
            weight: reward given up per unit of cost.
            gated: False follows the learnt policy wherever it leads.
        """
        plan = self.router.fitted().plan
        setting = plan.at(weight)
        n = len(self.reward)
        rows = np.arange(n)
        learnt = follow(self.probability, self.reward, self.costs, plan.prices, weight, setting.safe, setting.coef)
        stage, arm = learnt.stage.copy(), learnt.arm.copy()
        said = np.stack(self.probability)[stage, rows, arm]
        confidence = apply_platt(said, *setting.platt)
        held = self.unfamiliar.copy()
        if gated:
            held |= not setting.is_open
            stage[held], arm[held] = 0, setting.safe
            sure = self.probability[0][held, setting.safe]
            lowered = 0.5 * np.minimum(sure, plan.means[setting.safe])
            confidence[held] = np.where(self.unfamiliar[held], lowered, sure)
        cost = self.costs.spent[rows, stage] + self.costs.arm[rows, stage, arm]
        return Course(stage, arm, self.reward[rows, arm], cost, confidence)
