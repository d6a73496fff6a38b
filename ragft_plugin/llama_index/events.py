"""Instrumentation: the event that says which arm was chosen, and why."""

from __future__ import annotations

# LlamaIndex exports these two without saying so to type checkers.
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.base import BaseEvent  # type: ignore[attr-defined]

from ragft_plugin.types import Decision

dispatcher = get_dispatcher(__name__)


class RouteDecisionEvent(BaseEvent):
    """A query was routed. Fields as in ``ragft_plugin.types.Decision``; the query itself is in the start event."""

    decision_id: str
    arm: str
    confidence: float
    propensities: dict[str, float]
    values: dict[str, float]
    stage: str
    reasons: list[str]
    forced: bool
    router_version: str

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which exporters write the event."""
        return "RouteDecisionEvent"


def announce(decision: Decision) -> None:
    """Send a ``RouteDecisionEvent`` to whoever listens."""
    dispatcher.event(
        RouteDecisionEvent(
            decision_id=decision.id,
            arm=decision.arm,
            confidence=decision.confidence,
            propensities=dict(decision.propensities),
            values=dict(decision.values),
            stage=decision.stage,
            reasons=list(decision.reasons),
            forced=decision.forced,
            router_version=decision.router_version,
        )
    )
