"""Deciding: features of queries at one stage -> decisions, or the wish for the next stage.

All queries of a stage are decided together on whole arrays; each gets what it would get alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError
from ragft_plugin.routing.calibration import apply_platt
from ragft_plugin.routing.parts import Parts
from ragft_plugin.routing.path import Path, Stale, Terms, follow_path, net_values
from ragft_plugin.routing.policies import choose
from ragft_plugin.routing.text import IntArray
from ragft_plugin.types import Decision, FloatArray, Gather

SAFE_FIRST = 1e6  # lifts the safe arm over all others where it can answer


def decide(
    parts: Parts,
    features: FloatArray,
    level: int,
    terms: Terms,
    stale: Sequence[Stale] = (),
    bought: NDArray[np.bool_] | None = None,
) -> list[Decision | Gather]:
    """Decide queries whose evidence ends with the same stage.

    Args:
        parts: of the router.
        features: at that stage, shape (n, d).
        level: index of the stage.
        terms: of the call.
        stale: per query, arms that must not answer it: index -> why; empty if there are none at all.
        bought: whether each stage up to ``level`` was gathered at the router's wish, shape (n, level + 1); None
            if it does not matter, as without exploration.
    """
    setting, plan = terms.setting, parts.plan
    probability = parts.probability(features, level)
    net = net_values(parts, probability, level, setting.weight, stale)
    unfamiliar = parts.unfamiliar(features)
    path = follow_path(parts, features, level, terms, probability, net, unfamiliar, stale, bought)
    guarded = unfamiliar | (not terms.learnt)
    able = np.isfinite(net)
    # The safe arm is the best by its mean; if it cannot answer this query, the best of those that can.
    values = np.where(guarded[:, None] & able, plan.means - setting.weight * plan.prices.arm[level], net)
    values[guarded & able[:, setting.safe], setting.safe] += SAFE_FIRST
    best = choose(values)
    rows = np.arange(len(features))
    said = probability[rows, best]
    confidence = np.where(guarded, said, apply_platt(said, *setting.platt))
    if unfamiliar.any():
        confidence[unfamiliar] = np.minimum(confidence, plan.means[best])[unfamiliar] * 0.5
    dist = terms.exploration.distribution(values, best)
    pick = terms.exploration.draw(dist, best)
    if pick is not best:
        confidence = np.where(pick == best, confidence, probability[rows, pick])
    shown = np.where(able, net, -1.0)
    return _written(parts, level, terms, path, pick, shown, dist, confidence, unfamiliar, stale)


def _written(
    parts: Parts,
    level: int,
    terms: Terms,
    path: Path,
    pick: IntArray,
    shown: FloatArray,
    dist: FloatArray,
    confidence: FloatArray,
    unfamiliar: NDArray[np.bool_],
    stale: Sequence[Stale],
) -> list[Decision | Gather]:
    """Decisions and wishes in words."""
    arms, stage = parts.arms, parts.stages[level]
    n = len(pick)
    others = shown.copy()
    others[np.arange(n), pick] = -np.inf
    second = others.argmax(axis=1).tolist()
    ids = os.urandom(16 * n).hex()
    # One line serves all queries that are held back for the same reason.
    held = _held(arms, terms)
    strange = f"unlike all queries learnt from; the safe arm {arms[terms.setting.safe]} answers"
    out: list[Decision | Gather] = []
    for i, (go, by_chance, best, p, chances, sure, odd, stage_chance) in enumerate(
        zip(
            path.more.tolist(),
            path.by_chance.tolist(),
            pick.tolist(),
            shown.tolist(),
            dist.tolist(),
            confidence.tolist(),
            unfamiliar.tolist(),
            path.probability.tolist(),
            strict=True,
        )
    ):
        if go:
            following = parts.stages[level + 1]
            out.append(Gather(following, parts.runs(following), stage_chance if by_chance else 1.0))
            continue
        if odd and terms.demoted is None:
            reasons: tuple[str, ...] = (strange,)
        elif held is not None:
            reasons = (held,)
        elif best == second[i]:
            reasons = (f"{arms[best]} is the only arm",)
        else:
            reasons = (f"{arms[best]} {p[best]:.3f} net of cost, {arms[second[i]]} {p[second[i]]:.3f}",)
        if stale and stale[i]:
            reasons = (*(f"{arms[a]} is stale: {why}" for a, why in stale[i].items()), *reasons)
        if by_chance:
            reasons = (*reasons, f"all evidence gathered to learn from, with probability {stage_chance:.3f}")
        if chances[best] < 0.5:
            reasons = (*reasons, f"explored with probability {chances[best]:.3f}")
        out.append(
            Decision(
                ids[32 * i : 32 * i + 32],
                arms[best],
                dict(zip(arms, chances, strict=True)),
                dict(zip(arms, p, strict=True)),
                sure,
                stage,
                stage_chance,
                reasons,
                False,
                None,
                terms.version,
            )
        )
    return out


def _held(arms: Sequence[str], terms: Terms) -> str | None:
    """Why no query is decided by what was learnt, or None."""
    setting = terms.setting
    safe = arms[setting.safe]
    if terms.demoted is not None:
        return f"{terms.demoted}; the safe arm {safe} answers"
    if terms.learnt:
        return None
    return f"gate closed: routing gains {setting.gain:+.4f} over always {safe}, lower bound {setting.lower:+.4f}"


def forced(arms: Sequence[str], arm: str, version: str) -> Decision:
    """The decision of a caller who names the arm.

    Raises:
        ConfigError: if there is no such arm.
    """
    if arm not in arms:
        raise ConfigError(f"unknown arm {arm!r}, expected one of {', '.join(arms)}")
    return Decision(
        id=uuid4().hex,
        arm=arm,
        propensities={a: float(a == arm) for a in arms},
        confidence=0.0,
        reasons=("named by the caller",),
        forced=True,
        router_version=version,
    )
