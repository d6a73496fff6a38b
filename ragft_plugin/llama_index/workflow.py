"""Routing as two steps of a workflow: decide, then answer. The decision travels in the event between them."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.schema import QueryBundle
from llama_index.core.workflow import Event, StartEvent, StopEvent, Workflow, step

from ragft_plugin.course import Routed
from ragft_plugin.llama_index.query_engine import RoutedQueryEngine


class RoutedEvent(Event):
    """A question whose arm is chosen.

    Attributes:
        routed: evidence and decision.
    """

    routed: Any


class RoutedWorkflow(Workflow):
    """Answers ``run(query=...)`` with the engine's response; subclass it to put steps before, between or after.

    Args:
        engine: decides and answers.
        **settings: of ``Workflow`` (``timeout``, ``verbose``, ...).

    Example:
        >>> response = await RoutedWorkflow(engine).run(query="Who signs?")  # doctest: +SKIP
        >>> response.metadata["decision"].arm  # doctest: +SKIP
        'adapter:legal'
    """

    def __init__(self, engine: RoutedQueryEngine, **settings: Any) -> None:
        super().__init__(**settings)
        self.engine = engine

    @step
    async def route(self, event: StartEvent) -> RoutedEvent:
        """Choose the arm."""
        return RoutedEvent(routed=await self.engine.adecide(event.query))

    @step
    async def answer(self, event: RoutedEvent) -> StopEvent:
        """Answer by the arm that was chosen; nothing is decided again."""
        routed: Routed = event.routed
        response: RESPONSE_TYPE = await self.engine.aanswer(QueryBundle(routed.evidence.query), routed)
        return StopEvent(result=response)
