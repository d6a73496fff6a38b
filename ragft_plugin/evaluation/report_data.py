"""The report's data: plain values, which ``to_table``, ``to_json`` and ``to_html`` only show.

Whoever wants another page or a notebook cell reads ``Report`` and nothing else: every figure with its interval, every
list in the order in which it is to be shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter, ValidationError

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.calibration import CalibrationTest, ReliabilityBin
from ragft_plugin.evaluation.frontier import Point
from ragft_plugin.evaluation.intervals import Interval

VERSION = 1


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One policy on all queries.

    Attributes:
        name: an arm, "random", "router", "oracle", or a method compared with.
        kind: "fixed", "random", "router", "oracle" or "other".
        reward: mean reward.
        cost: mean cost, in the user's unit, evidence included.
        net: mean reward - cost_weight * cost.
    """

    name: str
    kind: str
    reward: Interval
    cost: Interval
    net: Interval


@dataclass(frozen=True, slots=True)
class GroupRow:
    """The queries of one group.

    Attributes:
        group: its name.
        n: queries.
        best_arm: mean net value of the arm that is best overall.
        router: mean net value of the router.
        oracle: mean net value of the oracle.
        gain: router minus best arm, paired.
    """

    group: str
    n: int
    best_arm: float
    router: float
    oracle: float
    gain: Interval


@dataclass(frozen=True, slots=True)
class Mistake:
    """A query on which the router lost most.

    Attributes:
        query_id: of the row.
        query: its text.
        chosen: the arm taken.
        best: the arm that would have been best.
        reward: what the chosen arm earned.
        regret: net value lost.
        confidence: stated for the chosen arm; None if there is none.
    """

    query_id: str
    query: str
    chosen: str
    best: str
    reward: float
    regret: float
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All there is to say of a router on a log. Made by ``build_report``.

    Attributes:
        title: what was evaluated.
        n: queries.
        cost_weight: reward that one unit of cost is worth.
        best_arm: the fixed arm compared with.
        policies: fixed arms, random, others, router, oracle.
        gain: router minus best arm, net value, paired.
        headroom: share of what lies between best arm and oracle, net value.
        frontier: points of the router, at several cost weights.
        fixed: points of the fixed arms.
        aiq: of the router's frontier over the range of the fixed arms' costs; None without a frontier.
        margin: least height of the frontier above the line between the fixed arms; None without a frontier.
        calibration: of the confidences; None without them.
        reliability: data of the reliability diagram.
        stage_share: stage -> share of queries decided there.
        groups: per group, largest first.
        mistakes: the worst, worst first.
        notes: what a reader must know, such as what the gate did.
        version: of this format.
    """

    title: str
    n: int
    cost_weight: float
    best_arm: str
    policies: tuple[PolicyRow, ...]
    gain: Interval
    headroom: Interval
    frontier: tuple[Point, ...] = ()
    fixed: tuple[Point, ...] = ()
    aiq: float | None = None
    margin: float | None = None
    calibration: CalibrationTest | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    stage_share: Mapping[str, float] = field(default_factory=dict)
    groups: tuple[GroupRow, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    notes: tuple[str, ...] = ()
    version: int = VERSION

    def policy(self, name: str) -> PolicyRow:
        """The row of a policy, by name."""
        for row in self.policies:
            if row.name == name:
                return row
        raise KeyError(f"no policy {name!r}, there are {', '.join(row.name for row in self.policies)}")

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON; ``from_json`` is the inverse."""
        return json.dumps(asdict(self), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """Read a report back.

        Raises:
            DataError: if it is not one.
        """
        try:
            report = TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise DataError(f"not a report: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if report.version != VERSION:
            raise DataError(f"report has version {report.version}, expected {VERSION}")
        return report

    def to_table(self, width: int = 100) -> str:
        """The report as plain text for a terminal."""
        from ragft_plugin.evaluation.report_text import render_text

        return render_text(self, width)

    def to_html(self) -> str:
        """The report as one self-contained page without scripts."""
        from ragft_plugin.evaluation.report_html import render_html

        return render_html(self)
