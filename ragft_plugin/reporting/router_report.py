"""The report of a router: what it earned, where each arm wins, retrieval against fine-tuning, and what to do next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ragft_plugin.evaluation.frontier import Point
from ragft_plugin.evaluation.outcomes import Outcome, Outcomes
from ragft_plugin.evaluation.report import Report, build_report
from ragft_plugin.reporting.advice import Advice, advise
from ragft_plugin.reporting.comparison import ComparisonRow, compare
from ragft_plugin.reporting.topics import Topic, find_topics, group_topics
from ragft_plugin.routing.adapters import AdapterRecord
from ragft_plugin.routing.figures import frontier_weights
from ragft_plugin.routing.router import Router
from ragft_plugin.routing.tracing import Trace

VERSION = 1


@dataclass(frozen=True, slots=True)
class Case:
    """A mistake with all that is needed to understand it.

    Attributes:
        query: the question.
        chosen, best: the arm taken, and the one that would have been best.
        chosen_answer, best_answer: what they said; None if the log does not tell.
        gold: accepted answers.
        passages: texts of what was retrieved, best first.
        confidence: stated for the chosen arm.
        lost: net value.
    """

    query: str
    chosen: str
    best: str
    chosen_answer: str | None
    best_answer: str | None
    gold: tuple[str, ...]
    passages: tuple[str, ...]
    confidence: float | None
    lost: float


@dataclass(frozen=True, slots=True)
class RouterReport:
    """All that the page shows. Made by ``report_router``.

    Attributes:
        report: figures, with intervals.
        topics: of the questions, largest first.
        comparison: retrieval beside fine-tuning; empty if the log lacks one of the two.
        advice: what to do next.
        cases: the worst mistakes.
    """

    report: Report
    topics: tuple[Topic, ...]
    comparison: tuple[ComparisonRow, ...]
    advice: tuple[Advice, ...]
    cases: tuple[Case, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``ragft report --json`` prints them."""
        return {"version": VERSION, **json.loads(json.dumps(asdict(self), allow_nan=False))}

    def to_html(self) -> str:
        """One self-contained page: no script, nothing loaded."""
        from ragft_plugin.reporting.page import render_page

        return render_page(self)


def report_router(
    router: Router,
    outcomes: Outcomes,
    *,
    cost_weight: float | None = None,
    adapters: Mapping[str, AdapterRecord] | None = None,
    facts: Sequence[ComparisonRow] = (),
    title: str = "Router report",
    seed: int = 0,
) -> RouterReport:
    """Measure a router on outcomes that it was not fitted on.

    Args:
        router: the router.
        outcomes: held-out log with every arm's reward.
        cost_weight: reward that one unit of cost is worth; None takes the router's own.
        adapters: name -> what is known of its training.
        facts: lines of the comparison that were measured elsewhere.
        title: of the page.
        seed: of clustering and resampling.

    Raises:
        DataError: if the log lacks arms or evidence that the router needs, or rewards of some arms.
    """
    weight = router.cost_weight if cost_weight is None else cost_weight
    trace = Trace.of(router, outcomes)
    course = trace.course(weight)
    column = [outcomes.arms.index(arm) for arm in router.arms]
    points = [_point(trace, at) for at in frontier_weights(router)]
    setting = router.gate(weight)
    state = "open" if setting.is_open else "closed: every question goes to the best single arm"
    report = build_report(
        outcomes,
        [column[a] for a in course.arm],
        cost=course.cost,
        confidence=course.confidence,
        stage=[router.stages[s] for s in course.stage],
        cost_weight=weight,
        best_arm=single_arm_name(router, weight),
        frontier=points if len(points) > 1 else (),
        title=title,
        notes=[f"The gate is {state}. It asks for a gain that is certain on the rows the router was fitted on."],
        seed=seed,
    )
    topics = find_topics(outcomes, cost_weight=weight, seed=seed)
    return RouterReport(
        report,
        topics,
        compare(outcomes, adapters=adapters, facts=facts, cost_weight=weight),
        advise(outcomes, report, (*group_topics(outcomes, cost_weight=weight, seed=seed), *topics), adapters),
        _cases(report, outcomes),
    )


def _point(trace: Trace, weight: float) -> Point:
    course = trace.course(weight, gated=False)
    return Point(round(float(course.cost.mean()), 6), round(float(course.reward.mean()), 6), "router", weight)


def single_arm_name(router: Router, weight: float) -> str:
    """The arm that was best on the rows the router was fitted on: what it falls back to."""
    return router.arms[router.gate(weight).safe]


def _cases(report: Report, outcomes: Outcomes) -> tuple[Case, ...]:
    row_of = {row.query_id: row for row in outcomes.rows}
    cases = []
    for mistake in report.mistakes:
        row = row_of[mistake.query_id]
        cases.append(
            Case(
                query=row.query,
                chosen=mistake.chosen,
                best=mistake.best,
                chosen_answer=_said(row, mistake.chosen),
                best_answer=_said(row, mistake.best),
                gold=(row.gold,) if isinstance(row.gold, str) else tuple(map(str, row.gold or ())),
                passages=tuple(p.text for p in (row.passages or ())[:3]),
                confidence=mistake.confidence,
                lost=mistake.regret,
            )
        )
    return tuple(cases)


def _said(row: Outcome, arm: str) -> str | None:
    answer = row.draft(arm, final=True)
    return None if answer is None else answer.text
