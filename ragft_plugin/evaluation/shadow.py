"""Shadow mode: a new router decides beside the live one, answers nothing, and is compared on the same queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.decision_rows import LoggedDecision
from ragft_plugin.evaluation.intervals import Interval, wilson
from ragft_plugin.evaluation.logged import check_log
from ragft_plugin.evaluation.ope import Estimate, estimate


@dataclass(frozen=True, slots=True)
class ShadowComparison:
    """The live and the shadow router on the same queries.

    Attributes:
        n: queries that both decided.
        agreement: share on which they chose the same arm.
        flows: (live arm, shadow arm) -> queries.
        live_cost: mean cost logged of the live decisions.
        shadow_cost: mean cost logged of the shadow decisions.
        gain: estimated reward of the shadow router minus that of the live one, from the rewards that have come
            (self-normalised IPS); None if it cannot be estimated.
        refused: why not; empty if it can.
    """

    n: int
    agreement: Interval
    flows: Mapping[tuple[str, str], int]
    live_cost: float
    shadow_cost: float
    gain: Estimate | None
    refused: str = ""


def compare_shadow(live: Iterable[LoggedDecision], shadow: Iterable[LoggedDecision]) -> ShadowComparison:
    """Pair shadow decisions with the live ones beside which they were made.

    Args:
        live: from ``DecisionLog.decisions()``; forced ones are left out.
        shadow: from ``DecisionLog.decisions(shadow=True)``.

    Raises:
        DataError: if no shadow decision has its live one.
    """
    by_id = {row.id: row for row in live if not row.forced}
    pairs = [(by_id[row.shadow_of], row) for row in shadow if row.shadow_of in by_id]
    if not pairs:
        raise DataError("no shadow decision stands beside a live one; log it with shadow_of=<id of the live decision>")
    same = sum(a.arm == b.arm for a, b in pairs)
    gain, refused = _gain(pairs)
    return ShadowComparison(
        n=len(pairs),
        agreement=wilson(same, len(pairs)),
        flows=dict(sorted(Counter((a.arm, b.arm) for a, b in pairs).items())),
        live_cost=float(np.mean([a.cost for a, _ in pairs])),
        shadow_cost=float(np.mean([b.cost for _, b in pairs])),
        gain=gain,
        refused=refused,
    )


def _gain(pairs: list[tuple[LoggedDecision, LoggedDecision]]) -> tuple[Estimate | None, str]:
    rewarded = [(a, b, a.reward) for a, b in pairs if a.reward is not None]
    if len(rewarded) < 2:
        return None, f"{len(rewarded)} of the {len(pairs)} live decisions have a reward, at least 2 are needed"
    arms = list(dict.fromkeys(arm for a, b, _ in rewarded for arm in (*a.propensities, *b.propensities)))
    reward = np.array([r for _, _, r in rewarded])
    logged = np.array([[a.propensities.get(arm, 0.0) for arm in arms] for a, _, _ in rewarded])
    dist = np.array([[b.propensities.get(arm, 0.0) for arm in arms] for _, b, _ in rewarded])
    arm = np.array([arms.index(a.arm) for a, _, _ in rewarded])
    try:
        log = check_log(reward, arm, logged[np.arange(len(arm)), arm], dist, logged_dist=logged)
        # The live router is the one that logged: its terms are the rewards themselves.
        return estimate(log, "snips", baseline=reward), ""
    except DataError as error:
        return None, str(error)
