"""Learning a router's parts from a log: features, reward models per stage, plan.

Reward models say of each row what they thought of it without having seen its
fold, and stopping, gate and calibration learn from that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.evaluation.outcomes import Outcome, Outcomes, reads_passages
from ragft_plugin.routing.completeness import Completeness
from ragft_plugin.routing.costs import Costs, costs_of
from ragft_plugin.routing.features import Featurizer
from ragft_plugin.routing.novelty import Novelty
from ragft_plugin.routing.parts import Parts
from ragft_plugin.routing.plan import learn_plan
from ragft_plugin.routing.rewards import REWARD_MODELS, RewardModel, prior_means
from ragft_plugin.routing.text import IntArray
from ragft_plugin.types import STAGES, Encoder, Evidence, FloatArray, Stage

FOLDS = 5
REPEATS = 3  # cross-fits with different folds; what a single split happens to do then counts less
REPEAT_ROWS = 4000  # beyond so many rows one split is steady enough
MAX_WEIGHT = 20.0  # a row logged with a tiny propensity counts at most so many times

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Learnt:
    """What a router is made of.

    Attributes:
        parts: what decides.
        features: of the training rows at the last stage, shape (n, d).
        probability: per stage, out-of-fold rewards of the m rows with all evidence, shape (repeats * m, a).
        reward: what each arm earned on these, or an unbiased estimate of it, shape (m, a).
        costs: of these.
    """

    parts: Parts
    features: FloatArray
    probability: tuple[FloatArray, ...]
    reward: FloatArray
    costs: Costs


def usable_stages(
    outcomes: Outcomes,
    wanted: Sequence[Stage] | None,
    draft_arm: str | None = None,
    agreement_arm: str | None = None,
) -> tuple[tuple[Stage, ...], str | None, str | None]:
    """Stages that every row of the log has evidence for, and the arms that draft.

    The draft is that of the cheapest arm the log names (``drafts``), or of the cheapest with an answer text; of
    equally cheap ones, the one that earned most. The second answer is that of the cheapest arm which reads
    passages if the draft's does not, and the other way round; of any other arm if there is none.

    Raises:
        ConfigError: for a stage or arm there is not.
    """
    for stage in wanted or ():
        if stage not in STAGES:
            raise ConfigError(f"unknown stage {stage!r}, expected some of {', '.join(STAGES)}")
    for arm in (draft_arm, agreement_arm):
        if arm is not None and arm not in outcomes.text_arms:
            raise ConfigError(
                f"arm {arm!r} has no draft or answer in every row; those that have: "
                f"{', '.join(outcomes.text_arms) or 'none'}"
            )
    allowed = set(STAGES if wanted is None else wanted)
    price = dict(zip(outcomes.arms, outcomes.cost.mean(axis=0), strict=True))
    stages: list[Stage] = ["question"]
    if "passages" in allowed and outcomes.has_passages:
        stages.append("passages")
    # An accepted draft is the answer: of the cheapest arms, the one that is most often right drafts.
    earned = dict(zip(outcomes.arms, np.nan_to_num(np.nanmean(outcomes.reward, axis=0)), strict=True))

    def order(arm: str) -> tuple[float, float]:
        return price[arm], -earned[arm]

    drafters = sorted(outcomes.draft_arms or outcomes.text_arms, key=order)
    draft_arm = draft_arm or next(iter(drafters), None)
    if "draft" not in allowed or draft_arm is None:
        return tuple(stages), None, None
    stages.append("draft")
    # Two answers that agree tell most where they come from different sources: one from memory, one from passages.
    reads = reads_passages(draft_arm)
    others = sorted(
        (a for a in outcomes.text_arms if a != draft_arm), key=lambda a: (reads_passages(a) == reads, *order(a))
    )
    agreement_arm = agreement_arm or next(iter(others), None)
    if "agreement" not in allowed or agreement_arm is None:
        return tuple(stages), draft_arm, None
    stages.append("agreement")
    return tuple(stages), draft_arm, agreement_arm


def evidence_of(
    rows: Sequence[Outcome], stage: Stage, draft_arm: str | None, agreement_arm: str | None
) -> tuple[list[Evidence], list[Mapping[str, str]]]:
    """Evidence of logged rows up to a stage, and the bare answers of the arms that have run by then."""
    level = STAGES.index(stage)
    arms = [a for a, at in ((draft_arm, 2), (agreement_arm, 3)) if a is not None and level >= at]
    evidence = [row.evidence(stage, arms=arms) for row in rows]
    answers: list[Mapping[str, str]] = [{a: row.answers[a] for a in arms if a in row.answers} for row in rows]
    return evidence, answers


def fold_ids(outcomes: Outcomes, seed: int) -> IntArray:
    """Cross-fitting fold of each row, shape (n,)."""
    splits = min(FOLDS, int(outcomes.text_groups.max()) + 1)
    fold = np.zeros(len(outcomes), dtype=np.intp)
    if splits >= 2:
        for k, (_, test) in enumerate(outcomes.folds(splits, seed)):
            fold[test] = k
    return fold


def learn(
    outcomes: Outcomes,
    *,
    stages: Sequence[Stage] | None,
    encoder: Encoder | None,
    model: str,
    draft_arm: str | None,
    agreement_arm: str | None,
    gated: bool,
    seed: int,
    progress: Progress | None = None,
) -> Learnt:
    """Learn all parts of a router. Arguments as in ``Router.fit``."""
    if model not in REWARD_MODELS:
        raise ConfigError(f"unknown reward model {model!r}, expected one of {', '.join(REWARD_MODELS)}")
    outcomes = outcomes.require_learnable()
    complete = Completeness.of(outcomes)
    whole = outcomes.take(complete.rows)
    used, draft_arm, agreement_arm = usable_stages(whole, stages, draft_arm, agreement_arm)
    if len(used) == 1:  # every row has a question
        complete, whole = Completeness(np.ones(len(outcomes), bool), np.ones(len(outcomes))), outcomes
    steps = len(used) + 2
    tell = progress or (lambda done, total: None)
    evidence, answers = evidence_of(outcomes.rows, used[-1], draft_arm, agreement_arm)
    featurizer = Featurizer(used, draft_arm, agreement_arm, encoder)
    features = featurizer.fit(evidence, answers, seed, complete.rows)
    if not np.isfinite(features).all():
        raise DataError("a feature is not finite; does the encoder return NaN?")
    tell(1, steps)
    weight = reward_weights(outcomes)
    counted = weight[complete.rows] * complete.weight[:, None]
    folds = [fold_ids(outcomes, seed + r) for r in range(REPEATS if len(outcomes) <= REPEAT_ROWS else 1)]
    models: list[RewardModel] = []
    probability: tuple[FloatArray, ...] = ()
    for i, stage in enumerate(used):
        x, signals = features[:, : featurizer.width(stage)], featurizer.signals(stage)
        if i == 0:
            fitted, found = _cross_fitted(model, x, outcomes.reward, weight, signals, folds)
            found = found[:, complete.rows]
        else:
            inside = [fold[complete.rows] for fold in folds]
            fitted, found = _cross_fitted(model, x[complete.rows], whole.reward, counted, signals, inside)
        models.append(fitted)
        probability += (found.reshape(-1, len(outcomes.arms)),)
        tell(2 + i, steps)
    reward = full_rewards(whole, probability[-1].reshape(len(folds), *whole.reward.shape).mean(axis=0))
    costs = costs_of(whole, used, draft_arm, agreement_arm)
    means = prior_means(outcomes.reward, weight)
    seen = np.asarray(~np.isnan(outcomes.reward).all(axis=0))
    plan = learn_plan(
        [np.where(seen, p, 0.0) for p in probability],
        reward,
        np.where(seen, means, -1.0),
        costs,
        folds[0][complete.rows],
        whole.text_groups,
        repeats=len(folds),
        gated=gated,
        seed=seed,
        row_weight=complete.weight,
    )
    tell(steps, steps)
    novelty = Novelty.fit(features[:, featurizer.question_columns], seed)
    parts = Parts(outcomes.arms, featurizer, tuple(models), plan, novelty, seen, model)
    return Learnt(parts, features, probability, reward, costs)


def _cross_fitted(
    model: str,
    features: FloatArray,
    reward: FloatArray,
    weight: FloatArray,
    signals: NDArray[np.bool_],
    folds: Sequence[IntArray],
) -> tuple[RewardModel, FloatArray]:
    """A reward model, and what models of its kind said of rows out of their fold, shape (repeats, n, a)."""
    fitted = REWARD_MODELS[model]().fit(features, reward, folds[0], weight, signals)
    others = [fitted.cross_fit(features, reward, fold, weight) for fold in folds[1:]]
    return fitted, np.stack([fitted.out_of_fold_, *others])


def reward_weights(outcomes: Outcomes) -> FloatArray:
    """Weight of each known reward, shape (n, a): one over its propensity, bounded."""
    weight = np.ones(outcomes.reward.shape)
    if outcomes.propensity is not None:
        chance = np.nan_to_num(outcomes.propensity, nan=1.0)
        weight *= np.minimum(1.0 / np.maximum(chance, 1e-9), MAX_WEIGHT)[:, None]
    return weight


def full_rewards(outcomes: Outcomes, predicted: FloatArray) -> FloatArray:
    """Rewards of all arms, shape (n, a): known ones, or doubly robust estimates of those not run.

        g(i, a) = q(i, a) + 1[a = a_i] (r_i - q(i, a)) / p_i

    Args:
        outcomes: the log.
        predicted: out-of-fold predictions q, shape (n, a).

    Source: Dudik, Erhan, Langford & Li, "Doubly Robust Policy Evaluation and Optimization", 2014.
    """
    if outcomes.full_feedback:
        return np.array(outcomes.reward)
    known = ~np.isnan(outcomes.reward)
    all_run = known.all(axis=1)
    estimate = predicted.copy()
    weight = reward_weights(outcomes)
    residual = np.where(known, outcomes.reward - predicted, 0.0)
    estimate += weight * residual
    estimate[all_run] = outcomes.reward[all_run]
    return estimate
