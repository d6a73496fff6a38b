"""Cross-validation of a router, and its evaluation on a held-out log: the figures of ``ragft fit`` and ``eval``.

Every row is decided by a router that was fitted, gated and calibrated without it. So ``reward`` is what deploying the
router would have earned, and ``reward_ungated`` what the learnt policy would have earned without its gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.calibration import calibration_test
from ragft_plugin.evaluation.frontier import headroom_captured
from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.routing.baselines import BASELINES
from ragft_plugin.routing.gate import paired_gain, single_arm
from ragft_plugin.routing.learning import Progress
from ragft_plugin.routing.router import Router
from ragft_plugin.routing.tracing import Course, Trace
from ragft_plugin.types import Encoder, FloatArray, Stage


@dataclass(frozen=True, eq=False)
class Part:
    """A router, the rows it was not fitted on, and the best single arm of the rows it was fitted on."""

    trace: Trace
    index: np.ndarray
    train: Outcomes
    single_reward: FloatArray
    single_cost: FloatArray

    def single(self, weight: float) -> int:
        """Index of the arm that was best on the training rows."""
        return single_arm(self.single_reward, self.single_cost, weight)


def cross_validate(
    outcomes: Outcomes,
    cv: int = 5,
    seed: int = 0,
    *,
    stages: Sequence[Stage] | None = None,
    encoder: str | Encoder = "tfidf",
    model: str = "linear",
    cost_weight: float = 0.0,
    frontier: bool = False,
    baselines: bool = False,
    progress: Progress | None = None,
    **fit: Any,
) -> dict[str, Any]:
    """Cross-validated figures of a router.

    Args:
        outcomes: the log.
        cv: number of folds; rows with the same query text stay together.
        seed: of the folds and of fitting.
        stages: stages that may be used; None means all there are.
        encoder: as in ``Router.fit``.
        model: as in ``Router.fit``.
        cost_weight: reward given up per unit of cost.
        frontier: add ``frontier``, points of cost and reward from all in to nothing spent.
        baselines: add ``baselines``, plain methods on the same features and folds.
        progress: called with (steps done, steps in all).
        **fit: further arguments of ``Router.fit``.

    Returns:
        The figures, as plain data; see ``figures`` for what they mean. ``gate`` is that of the router fitted on
        all rows, the one to be deployed.

    Raises:
        DataError: if the log cannot be learnt from or split.
    """
    outcomes = outcomes.require_learnable()
    tell = progress or (lambda done, total: None)
    options: dict[str, Any] = {"stages": stages, "encoder": encoder, "model": model, "seed": seed, **fit}
    folds = outcomes.folds(cv, seed)
    parts: list[Part] = []
    for i, (train, test) in enumerate(folds):
        rows = outcomes.take(train)
        router = Router(cost_weight=cost_weight).fit(rows, **options)
        parts.append(_part(router, rows, outcomes.take(test), test))
        tell(i + 1, cv + 1)
    final = Router(cost_weight=cost_weight).fit(outcomes, **options)
    tell(cv + 1, cv + 1)
    return figures(final, parts, outcomes, cost_weight, seed, frontier=frontier, baselines=baselines)


def evaluate(
    router: Router,
    outcomes: Outcomes,
    *,
    cost_weight: float | None = None,
    frontier: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """The same figures for a router on rows that it was not fitted on.

    The single arm it is compared with is the one that was best on its own training rows.

    Raises:
        DataError: if the log lacks arms or evidence that the router needs.
    """
    weight = router._weight(cost_weight)
    outcomes = outcomes.require_learnable()
    trace = Trace.of(router, outcomes)
    _, plan = router._fitted()
    part = Part(trace, np.arange(len(outcomes)), outcomes, plan.means[None], plan.prices.direct[None])
    return figures(router, [part], outcomes, weight, seed, frontier=frontier, baselines=False)


def _part(router: Router, train: Outcomes, test: Outcomes, index: np.ndarray) -> Part:
    trace = Trace.of(router, test)
    _, plan = router._fitted()
    return Part(trace, index, train, plan.means[None], plan.prices.direct[None])


def figures(
    router: Router,
    parts: Sequence[Part],
    outcomes: Outcomes,
    weight: float,
    seed: int,
    *,
    frontier: bool,
    baselines: bool,
) -> dict[str, Any]:
    """Pool parts into figures.

    Returns:
        ``n, arms, encoder, stages, cost_weight``; ``best_arm`` and ``best_arm_reward`` (highest mean net value on
        these very rows), ``fixed`` (each arm's reward and cost), ``reward`` (gated), ``reward_ungated``, ``gain``
        (mean net value of the learnt policy minus that of the single arm chosen on training rows) and
        ``gain_ci95`` (paired bootstrap), ``oracle_reward``, ``random_reward``, ``headroom_captured``,
        ``mean_cost``, ``stage_share``, and of the chosen arm's confidence ``ece, brier, base_brier`` and
        ``calibration_p``; ``gate``.
    """
    n = len(outcomes)
    stages = router.stages
    gated = _pool(parts, n, weight, gated=True)
    free = _pool(parts, n, weight, gated=False)
    reward = np.zeros((n, len(outcomes.arms)))
    direct = np.zeros_like(reward)
    single = np.zeros(n)
    column = [router.arms.index(a) for a in outcomes.arms]
    for part in parts:
        reward[part.index] = part.trace.reward[:, column]
        direct[part.index] = part.trace.costs.direct[:, column]
        a = part.single(weight)
        single[part.index] = part.trace.reward[:, a] - weight * part.trace.costs.direct[:, a]
    net = reward - weight * direct
    best = int(np.round(net.mean(axis=0), 9).argmax())
    rows = np.arange(n)
    oracle = reward[rows, np.round(net, 9).argmax(axis=1)]
    gain = paired_gain(free.reward - weight * free.cost - single, outcomes.text_groups, seed)
    means = reward.mean(axis=0)
    setting = router.gate(weight)
    result: dict[str, Any] = {
        "n": n,
        "arms": list(outcomes.arms),
        "encoder": router.encoder_fingerprint,
        "model": router._model_name,
        "stages": list(stages),
        "draft_arm": router.draft_arm,
        "agreement_arm": router.agreement_arm,
        "cost_weight": weight,
        "best_arm": outcomes.arms[best],
        "best_arm_reward": _round(means[best]),
        "fixed": {
            a: {"reward": _round(means[j]), "cost": _round(direct[:, j].mean())} for j, a in enumerate(outcomes.arms)
        },
        "reward": _round(gated.reward.mean()),
        "reward_ungated": _round(free.reward.mean()),
        "gain": _round(gain.mean),
        "gain_ci95": [_round(x) for x in gain.interval],
        "oracle_reward": _round(oracle.mean()),
        "random_reward": _round(reward.mean()),
        "headroom_captured": _round(
            headroom_captured(
                float(gated.reward.mean()), float(means[best]), max(float(oracle.mean()), float(means[best]))
            )
        ),
        "mean_cost": _round(gated.cost.mean()),
        "mean_cost_ungated": _round(free.cost.mean()),
        "stage_share": _shares(gated, stages),
        "stage_share_ungated": _shares(free, stages),
        **_calibration(gated, seed, ""),
        **_calibration(free, seed, "_ungated"),
        "gate": "open" if setting.is_open else "closed",
        "gate_gain": _round(setting.gain),
        "gate_lower": _round(setting.lower),
        "gates_open": sum(part.trace.router.gate(weight).is_open for part in parts),
    }
    if frontier:
        result["frontier"] = _frontier(router, parts, n)
    if baselines:
        result["baselines"] = {name: _round(np.mean(_baseline(make, parts, n))) for name, make in BASELINES.items()}
    return result


def _pool(parts: Sequence[Part], n: int, weight: float, *, gated: bool) -> Course:
    stage, arm = np.zeros(n, dtype=np.intp), np.zeros(n, dtype=np.intp)
    reward, cost, confidence = np.zeros(n), np.zeros(n), np.zeros(n)
    for part in parts:
        course = part.trace.course(weight, gated=gated)
        stage[part.index], arm[part.index] = course.stage, course.arm
        reward[part.index], cost[part.index] = course.reward, course.cost
        confidence[part.index] = course.confidence
    return Course(stage, arm, reward, cost, confidence)


def _shares(course: Course, stages: Sequence[Stage]) -> dict[str, float]:
    return {stage: _round(np.mean(course.stage == s)) for s, stage in enumerate(stages)}


def _calibration(course: Course, seed: int, suffix: str) -> dict[str, float]:
    test = calibration_test(course.confidence, np.clip(course.reward, 0.0, 1.0), seed=seed)
    return {
        "ece" + suffix: _round(test.ece),
        "brier" + suffix: _round(test.brier),
        "base_brier" + suffix: _round(test.base_brier),
        "calibration_p" + suffix: _round(test.p_value),
    }


def _frontier(router: Router, parts: Sequence[Part], n: int) -> list[dict[str, float]]:
    _, plan = router._fitted()
    grid = plan.weights
    # Between two weights of the plan lies one more, so that what is interpolated is seen as well.
    between = np.sqrt(grid[1:-1] * grid[2:]) if len(grid) > 2 else grid[:0]
    points = []
    for weight in sorted({*grid.tolist(), *between.tolist(), *([2.0 * float(grid[-1])] if grid[-1] else [])}):
        free = _pool(parts, n, weight, gated=False)
        gated = _pool(parts, n, weight, gated=True)
        points.append(
            {
                "cost_weight": float(weight),
                "cost": _round(free.cost.mean()),
                "reward": _round(free.reward.mean()),
                "cost_gated": _round(gated.cost.mean()),
                "reward_gated": _round(gated.reward.mean()),
            }
        )
    return points


def _baseline(make: Any, parts: Sequence[Part], n: int) -> FloatArray:
    earned = np.zeros(n)
    for part in parts:
        train = Trace.of(part.trace.router, part.train)
        if np.isnan(train.reward).any():
            raise DataError("baselines need full feedback: every arm run on every query")
        arm = make(train.features, train.reward, part.trace.features)
        earned[part.index] = part.trace.reward[np.arange(len(arm)), arm]
    return earned


def _round(value: Any) -> float:
    number = float(value)
    return round(number, 6) if np.isfinite(number) else number
