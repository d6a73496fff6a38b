"""What every query engine does."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import QueryBundle

from ragft_plugin.llama_index.testing.probes import (
    DELAY,
    PATIENCE,
    assert_prompts_can_be_replaced,
    longest_stall,
    recorded,
)


class QueryEngineConformance:
    """Subclass and implement ``component``.

    Attributes:
        questions: answered in all ways.
        streams: the engine can stream.
    """

    questions: ClassVar[tuple[str, ...]] = ("Where is Brelkon?",)
    streams: ClassVar[bool] = True

    def component(self, *, streaming: bool = False, delay: float = 0.0) -> BaseQueryEngine:
        """Make a fresh engine."""
        raise NotImplementedError

    def test_is_a_query_engine(self) -> None:
        """The base class is in the MRO."""
        assert "BaseQueryEngine" in [base.__name__ for base in type(self.component()).__mro__]

    def test_sync_and_async_agree(self) -> None:
        """``query`` and ``aquery`` give the same text and the same sources."""
        for question in self.questions:
            engine = self.component()
            sync, awaited = engine.query(question), asyncio.run(_answered(engine, question))
            assert str(sync) == str(awaited)
            assert _ids(sync) == _ids(awaited)

    def test_streams_agree_with_the_whole(self) -> None:
        """A streamed answer, sync or async, is the whole answer in pieces, with the same sources."""
        if not self.streams:
            pytest.skip("the engine does not stream")
        for question in self.questions:
            whole = self.component().query(question)
            streamed = self.component(streaming=True).query(question)
            assert isinstance(streamed, StreamingResponse)
            assert "".join(streamed.response_gen) == str(whole)
            assert _ids(streamed) == _ids(whole)
            text, astreamed = asyncio.run(_streamed(self.component(streaming=True), question))
            assert isinstance(astreamed, AsyncStreamingResponse)
            assert text == str(whole)
            assert _ids(astreamed) == _ids(whole)

    def test_query_bundles_are_taken_as_strings_are(self) -> None:
        """A ``QueryBundle`` gives what its string gives, and is not changed."""
        for question in self.questions:
            bundle = QueryBundle(question)
            assert str(self.component().query(bundle)) == str(self.component().query(question))
            assert bundle.query_str == question

    def test_retrieve_then_synthesize_is_query(self) -> None:
        """Where the engine does both halves, they make the whole."""
        engine = self.component()
        for question in self.questions:
            bundle = QueryBundle(question)
            try:
                nodes = engine.retrieve(bundle)
            except NotImplementedError:
                pytest.skip("the engine does not retrieve")
            assert str(engine.synthesize(bundle, nodes)) == str(engine.query(bundle))
            assert str(asyncio.run(engine.asynthesize(bundle, nodes))) == str(engine.query(bundle))

    def test_does_not_hold_the_event_loop(self) -> None:
        """Other tasks run while ``aquery`` waits."""
        for question in self.questions:
            engine = self.component(delay=DELAY)
            stall = longest_stall(lambda e=engine, q=question: e.aquery(q))  # type: ignore[misc]
            assert stall < PATIENCE, f"aquery held the event loop for {stall * 1000:.0f} ms"

    def test_prompts_can_be_seen_and_replaced(self) -> None:
        """What ``get_prompts`` shows, ``update_prompts`` replaces."""
        assert_prompts_can_be_replaced(self.component())

    def test_events_are_in_order(self) -> None:
        """Query events enclose all others; every span is closed."""
        for question in self.questions:
            for awaited in (False, True):
                engine = self.component()
                with recorded() as (events, spans):
                    _ = asyncio.run(_answered(engine, question)) if awaited else engine.query(question)
                assert (events.names[0], events.names[-1]) == ("QueryStartEvent", "QueryEndEvent")
                events.assert_pair("Query")
                assert not spans.open_spans
                assert not spans.dropped_spans

    def test_has_a_callback_manager(self) -> None:
        """Code that sets a callback manager finds one."""
        assert isinstance(self.component().callback_manager, CallbackManager)


async def _answered(engine: BaseQueryEngine, question: str) -> Any:
    return await engine.aquery(question)


async def _streamed(engine: BaseQueryEngine, question: str) -> tuple[str, Any]:
    response = await engine.aquery(question)
    assert isinstance(response, AsyncStreamingResponse)
    return "".join([piece async for piece in response.async_response_gen()]), response


def _ids(response: Any) -> list[str]:
    return [node.node_id for node in response.source_nodes]
