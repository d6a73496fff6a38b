"""The path through the stages: whether the next one is gathered, and how probable the evidence is.

The policy's own wish is a function of the evidence, so what it wished at earlier stages can be told again later:
features of an earlier stage are a prefix of those of a later one. Evidence it would not have bought was bought by
chance (``ragft_plugin.routing.exploring`` has the probabilities), and nothing need be remembered between two calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.routing.exploring import NO_EXPLORATION, Exploration
from ragft_plugin.routing.parts import Parts
from ragft_plugin.routing.plan import Setting
from ragft_plugin.routing.policies import choose
from ragft_plugin.routing.stopping import extra_price, wants_more
from ragft_plugin.types import FloatArray

Stale = Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms one call decides.

    Attributes:
        setting: the plan at the call's cost weight.
        exploration: how it explores.
        final: decide on what is there; nothing more can be gathered.
        demoted: why the router is not trusted any more, or None.
        version: fingerprint of the router.
    """

    setting: Setting
    exploration: Exploration = NO_EXPLORATION
    final: bool = False
    demoted: str | None = None
    version: str = ""

    @property
    def learnt(self) -> bool:
        """Whether what was learnt decides; otherwise the safe arm answers."""
        return self.setting.is_open and self.demoted is None


@dataclass(frozen=True, slots=True)
class Path:
    """The way through the stages; arrays of shape (n,).

    Attributes:
        more: whether to gather the next stage.
        by_chance: whether chance, not the policy, bought evidence.
        probability: of having gathered what there is, or shall be.
    """

    more: NDArray[np.bool_]
    by_chance: NDArray[np.bool_]
    probability: FloatArray


def net_values(parts: Parts, probability: FloatArray, level: int, weight: float, stale: Sequence[Stale]) -> FloatArray:
    """Reward net of cost, shape (n, a); -inf for an arm that must not answer."""
    net: FloatArray = probability - weight * parts.plan.prices.arm[level]
    net[:, ~parts.seen] = -np.inf
    for i, found in enumerate(stale):
        for a in found:
            net[i, a] = -np.inf
    return net


def _wants(parts: Parts, level: int, setting: Setting, probability: FloatArray, net: FloatArray) -> NDArray[np.bool_]:
    """Whether the learnt policy goes on from a stage, shape (n,)."""
    calm = np.where(np.isfinite(net), net, -1.0)
    extra = extra_price(parts.plan.prices, level, setting.weight)
    return wants_more(probability, calm, choose(net), extra, setting.safe, setting.coef[level])


def follow_path(
    parts: Parts,
    features: FloatArray,
    level: int,
    terms: Terms,
    probability: FloatArray,
    net: FloatArray,
    unfamiliar: NDArray[np.bool_],
    stale: Sequence[Stale],
    bought: NDArray[np.bool_] | None,
) -> Path:
    """Whether to go on from a stage, and with which probability one came there.

    Args:
        parts: of the router.
        features: at the stage, shape (n, d).
        level: its index.
        terms: of the call.
        probability: calibrated reward of each arm at the stage, shape (n, a).
        net: the same net of cost, -inf for an arm that must not answer.
        unfamiliar: whether each query is unlike all that were learnt from, shape (n,).
        stale: as in ``decide``.
        bought: as in ``decide``.
    """
    n, last = len(features), level + 1 == len(parts.stages)
    may_go = not terms.final and not last
    more = np.zeros(n, dtype=bool)
    if terms.learnt and may_go:
        more = _wants(parts, level, terms.setting, probability, net) & ~unfamiliar
    chance = np.ones(n)
    explored = np.zeros(n, dtype=bool)
    epsilon = terms.exploration.stage_epsilon
    if epsilon == 0.0:
        return Path(more, explored, chance)
    if bought is not None:
        # What lies behind is told by what the policy would have done there: it is the same each time it is asked.
        for s in range(level):
            went = np.zeros(n, dtype=bool)
            if terms.learnt:
                then = parts.probability(features, s)
                known = stale if parts.stages[s] != "question" else ()
                went = _wants(parts, s, terms.setting, then, net_values(parts, then, s, terms.setting.weight, known))
                went &= ~unfamiliar
            explored |= bought[:, s + 1] & ~went
    chance[explored] = epsilon
    if may_go:
        coin = terms.exploration.buys(n) & ~more & ~explored
        chance[~more & ~explored] = np.where(coin, epsilon, 1.0 - epsilon)[~more & ~explored]
        more = more | coin | explored
        explored = explored | coin
    return Path(more, explored, chance)
