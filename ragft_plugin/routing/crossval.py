"""Cross-validation of a router, and its evaluation on a held-out log: the figures of ``ragft fit`` and ``eval``.

Every row is decided by a router that was fitted, gated and calibrated without it. So ``reward`` is what deploying the
router would have earned, and ``reward_ungated`` what the learnt policy would have earned without its gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.routing.figures import Part, figures
from ragft_plugin.routing.learning import Progress
from ragft_plugin.routing.router import Router
from ragft_plugin.routing.tracing import Trace
from ragft_plugin.types import Encoder, Stage


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
    weight = router.weight(cost_weight)
    outcomes = outcomes.require_learnable()
    trace = Trace.of(router, outcomes)
    plan = router.fitted().plan
    part = Part(trace, np.arange(len(outcomes)), outcomes, plan.means[None], plan.prices.direct[None])
    return figures(router, [part], outcomes, weight, seed, frontier=frontier, baselines=False)


def _part(router: Router, train: Outcomes, test: Outcomes, index: np.ndarray) -> Part:
    trace = Trace.of(router, test)
    plan = router.fitted().plan
    return Part(trace, index, train, plan.means[None], plan.prices.direct[None])
