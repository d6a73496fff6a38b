"""Rows of the decision log: the tables, and the value that is written and read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sql

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.outcome import plain_json
from ragft_plugin.types import Decision, Evidence, Stage

SCHEMA_VERSION = 1
TABLES = sql.MetaData()
META = sql.Table(
    "ragft_meta", TABLES, sql.Column("key", sql.String(40), primary_key=True), sql.Column("value", sql.Text)
)
DECISIONS = sql.Table(
    "ragft_decisions",
    TABLES,
    sql.Column("ordinal", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("id", sql.String(200), nullable=False, unique=True),
    sql.Column("time", sql.Double, nullable=False, index=True),
    sql.Column("query_hash", sql.String(64), nullable=False),
    sql.Column("query", sql.Text),
    sql.Column("arm", sql.String(200), nullable=False),
    sql.Column("propensities", sql.Text, nullable=False),
    sql.Column("predicted", sql.Text, nullable=False),
    sql.Column("confidence", sql.Double, nullable=False),
    sql.Column("stage", sql.String(40), nullable=False),
    sql.Column("stage_probability", sql.Double, nullable=False),
    sql.Column("forced", sql.Boolean, nullable=False),
    sql.Column("fallback", sql.String(200)),
    sql.Column("router_version", sql.String(200), nullable=False),
    sql.Column("cost", sql.Double, nullable=False),
    sql.Column("passage_ids", sql.Text, nullable=False),
    sql.Column("details", sql.Text, nullable=False),
    sql.Column("shadow_of", sql.String(200), index=True),
)
REWARDS = sql.Table(
    "ragft_rewards",
    TABLES,
    sql.Column("decision_id", sql.String(200), primary_key=True),
    sql.Column("reward", sql.Double, nullable=False),
    sql.Column("time", sql.Double, nullable=False),
)
# Columns that hold JSON; "values" is a keyword of SQL and is stored as "predicted".
_JSON = ("propensities", "predicted", "passage_ids", "details")


@dataclass(frozen=True, slots=True)
class LoggedDecision:
    """A decision as it stands in the log; what ``Decision`` has too is explained there.

    Attributes:
        time: seconds since 1970.
        query_hash: equal for texts that count as the same query.
        query: its text, or None if the log keeps none.
        cost: what the query cost in all.
        passage_ids: passages retrieved.
        details: fields of an ``Outcome`` known when deciding: passages, drafts, facts, prices.
        shadow_of: id of the live decision beside which this one was only computed.
        reward: of the chosen arm, None while it has not come.
    """

    id: str
    arm: str
    propensities: Mapping[str, float]
    time: float
    query_hash: str
    query: str | None = None
    predicted: Mapping[str, float] = field(default_factory=dict)
    confidence: float = 0.0
    stage: Stage = "question"
    stage_probability: float = 1.0
    forced: bool = False
    fallback: str | None = None
    router_version: str = ""
    cost: float = 0.0
    passage_ids: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    shadow_of: str | None = None
    reward: float | None = None

    @classmethod
    def of(
        cls,
        decision: Decision,
        *,
        time: float,
        query_hash: str,
        query: str | None,
        cost: float,
        passage_ids: tuple[str, ...],
        evidence: Evidence | None,
        arm_costs: Mapping[str, float] | None,
        shadow_of: str | None,
    ) -> LoggedDecision:
        """A row of a decision; arguments as in ``DecisionLog.append``."""
        details: dict[str, Any] = {} if evidence is None else _details(evidence)
        if arm_costs is None:
            # ``cost`` already holds what the stages cost; they must not be counted twice.
            details.pop("stage_cost", None)
        else:
            details["cost"] = dict(arm_costs)
        return cls(
            id=decision.id,
            arm=decision.arm,
            propensities=decision.propensities,
            time=time,
            query_hash=query_hash,
            query=query,
            predicted=decision.values,
            confidence=decision.confidence,
            stage=decision.stage,
            stage_probability=decision.stage_probability,
            forced=decision.forced,
            fallback=decision.fallback,
            router_version=decision.router_version,
            cost=cost,
            passage_ids=passage_ids,
            details=details,
            shadow_of=shadow_of,
        )

    def outcome_fields(self) -> dict[str, Any]:
        """Fields of an ``Outcome``, without its reward."""
        return {
            "cost": {self.arm: self.cost},
            **self.details,
            "query_id": self.id,
            "decision_id": self.id,
            "query": self.query_hash if self.query is None else self.query,
            "arm": self.arm,
            "propensities": dict(self.propensities),
            "stage": self.stage,
            "stage_probability": self.stage_probability,
            "forced": self.forced,
        }


def to_record(row: LoggedDecision) -> dict[str, Any]:
    """The row as columns of ``DECISIONS``."""
    record: dict[str, Any] = {column.name: getattr(row, column.name, None) for column in DECISIONS.columns}
    del record["ordinal"]
    for name in ("time", "cost", "confidence", "stage_probability"):
        if not math.isfinite(record[name]):
            raise DataError(f"decision {row.id!r}: {name} is {record[name]}, expected a finite number")
    for name in ("propensities", "predicted"):
        if not all(math.isfinite(value) for value in record[name].values()):
            raise DataError(f"decision {row.id!r}: {name} are {dict(record[name])}, expected finite numbers")
    for name in _JSON:
        record[name] = json.dumps(plain_json(record[name]), allow_nan=False)
    return record


def from_record(record: Mapping[Any, Any]) -> LoggedDecision:
    """The inverse of ``to_record``; ``record`` also has the reward, or None."""
    fields = {name: value for name, value in record.items() if name != "ordinal"}
    for name in _JSON:
        fields[name] = json.loads(fields[name])
    fields["passage_ids"] = tuple(fields["passage_ids"])
    return LoggedDecision(**fields)


def _details(evidence: Evidence) -> dict[str, Any]:
    details: dict[str, Any] = {"stage_cost": dict(evidence.spent), "facts": dict(evidence.facts)}
    if evidence.passages is not None:
        details["passages"] = [
            {"id": p.id, "text": p.text, "score": p.score, "metadata": dict(p.metadata)} for p in evidence.passages
        ]
    if evidence.drafts:
        names = ("text", "logprobs", "margins", "entropies")
        details["drafts"] = {arm: {n: getattr(a, n) for n in names} for arm, a in evidence.drafts.items()}
    return details
