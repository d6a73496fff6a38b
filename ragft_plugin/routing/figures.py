"""Figures: what routers earned on rows that they were not fitted on, beside what anyone could have had.

With a cost weight everything that is compared is net value, reward - cost_weight * cost: the best single arm, the
oracle, the gain, the share of headroom and the plain methods. Rewards and costs stand beside it by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.calibration import calibration_test, spiegelhalter
from ragft_plugin.evaluation.frontier import headroom_captured
from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.routing.baselines import BASELINES, Baseline, comparable
from ragft_plugin.routing.gate import paired_gain, single_arm
from ragft_plugin.routing.router import Router
from ragft_plugin.routing.tracing import Course, Trace
from ragft_plugin.types import FloatArray, Stage


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
        ``n, arms, encoder, model, stages, cost_weight``; ``best_arm`` and ``best_arm_reward`` (highest mean net
        value on these very rows, and its reward), ``fixed`` (each arm's reward and cost), ``reward`` (gated),
        ``reward_ungated``, ``gain`` (mean net value of the learnt policy minus that of the single arm chosen on
        training rows) and ``gain_ci95`` (paired bootstrap), ``oracle_reward``, ``random_reward``,
        ``headroom_captured`` (of net value, gated), ``mean_cost``, ``stage_share``, and of the chosen arm's
        confidence ``ece, brier, base_brier``, ``calibration_p`` (consistency resampling of the ECE) and
        ``spiegelhalter_p``; ``gate``. With ``frontier`` the points, with ``baselines`` the mean net value of each
        plain method, all evidence gathered.
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
    ideal = np.round(net, 9).argmax(axis=1)
    oracle, top = reward[rows, ideal], float(net[rows, ideal].mean())
    base = float(net[:, best].mean())
    gain = paired_gain(free.reward - weight * free.cost - single, outcomes.text_groups, seed)
    means = reward.mean(axis=0)
    setting = router.gate(weight)
    result: dict[str, Any] = {
        "n": n,
        "arms": list(outcomes.arms),
        "encoder": router.encoder_fingerprint,
        "model": router.fitted().model_name,
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
            headroom_captured(float((gated.reward - weight * gated.cost).mean()), base, max(top, base))
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
        result["baselines"] = {
            name: _round(_baseline(method, parts, n, weight).mean()) for name, method in BASELINES.items()
        }
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
        "spiegelhalter_p" + suffix: _round(spiegelhalter(course.confidence, np.clip(course.reward, 0.0, 1.0))),
    }


def frontier_weights(router: Router) -> list[float]:
    """The cost weights of a router's frontier, from all in to nothing spent."""
    grid = router.fitted().plan.weights
    # Between two weights of the plan lies one more, so that what is interpolated is seen as well.
    between = np.sqrt(grid[1:-1] * grid[2:]) if len(grid) > 2 else grid[:0]
    return sorted({*grid.tolist(), *between.tolist(), *([2.0 * float(grid[-1])] if grid[-1] else [])})


def _frontier(router: Router, parts: Sequence[Part], n: int) -> list[dict[str, float]]:
    points = []
    for weight in frontier_weights(router):
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


def _baseline(method: Baseline, parts: Sequence[Part], n: int, weight: float) -> FloatArray:
    """Net value of a plain method that learns net values from all evidence and pays for it, shape (n,)."""
    earned = np.zeros(n)
    for part in parts:
        if not part.train.full_feedback:
            raise DataError("baselines need full feedback: every arm run on every query")
        train, test = Trace.of(part.trace.router, part.train), part.trace
        featurizer = part.trace.router.fitted().featurizer
        signals = featurizer.signals(featurizer.stages[-1])
        known, asked = comparable(train.features, signals), comparable(test.features, signals)
        arm = method(known, train.reward - weight * train.costs.arm[:, -1], asked)
        rows = np.arange(len(arm))
        cost = test.costs.spent[:, -1] + test.costs.arm[rows, -1, arm]
        earned[part.index] = test.reward[rows, arm] - weight * cost
    return earned


def _round(value: Any) -> float:
    number = float(value)
    return round(number, 6) if np.isfinite(number) else number
