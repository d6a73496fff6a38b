"""A query engine that routes each question: to retrieval, to the adapter, to both, or to neither."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import RESPONSE_TYPE, AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base import EventContext
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.synthesis import SynthesizeEndEvent, SynthesizeStartEvent
from llama_index.core.prompts.mixin import PromptMixin, PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.tools import QueryEngineTool

from ragft_plugin.answer_stream import AnswerStream
from ragft_plugin.course import Routed
from ragft_plugin.decision_record import DECISION_KEY
from ragft_plugin.errors import ConfigError
from ragft_plugin.llama_index.events import announce, dispatcher
from ragft_plugin.llama_index.nodes import decision_of, node_from, passage_from
from ragft_plugin.llama_index.parts import pipeline_from
from ragft_plugin.llama_index.prompt_names import flat
from ragft_plugin.llama_index.retriever import RoutedRetriever
from ragft_plugin.llama_index.traced import watched
from ragft_plugin.pipeline import Pipeline, Router
from ragft_plugin.types import Answer, Evidence, Passage


class RoutedNodes(list[NodeWithScore]):
    """The nodes that a routed engine retrieved, with the decision, which would be lost when there are none.

    Attributes:
        routed: evidence and decision.
    """

    def __init__(self, nodes: Sequence[NodeWithScore], routed: Routed) -> None:
        super().__init__(nodes)
        self.routed = routed
        self._found = tuple(nodes)

    @property
    def untouched(self) -> bool:
        """Whether the nodes are still those that were retrieved."""
        return len(self) == len(self._found) and all(a is b for a, b in zip(self, self._found, strict=True))


class RoutedQueryEngine(BaseQueryEngine):
    """Answers each question by the arm that the pipeline's router chooses.

    ``response.metadata["decision"]`` is the ``Decision``; ``response.source_nodes`` is what the arm was given to read,
    empty for a closed-book one. ``retrieve`` followed by ``synthesize`` decides once.

    Args:
        pipeline: decides and answers; or a ``RoutedRetriever``, whose pipeline is then used.
        streaming: return ``StreamingResponse`` from ``query`` and ``AsyncStreamingResponse`` from ``aquery``, once the
            first piece is there. A failure before it falls back to another arm.
        callback_manager: told of queries and syntheses.
        **request: ``scope``, ``k``, ``cost_weight``, ``arm`` and ``options`` for every query; see
            ``ragft_plugin.course.Request``.

    Example:
        >>> engine = RoutedQueryEngine.from_defaults(llm=llm, retriever=index)  # doctest: +SKIP
        >>> response = engine.query("Which port does the relay use?")  # doctest: +SKIP
        >>> response.metadata["decision"].arm  # doctest: +SKIP
        'rag'
    """

    def __init__(
        self,
        pipeline: Pipeline | RoutedRetriever,
        *,
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
        **request: Any,
    ) -> None:
        super().__init__(callback_manager)
        self.pipeline = pipeline.pipeline if isinstance(pipeline, RoutedRetriever) else pipeline
        self._streaming = streaming
        self._request = request
        self.pipeline.stream("", **request)  # runs nothing, but checks the request now and not at the first query

    @classmethod
    def from_defaults(
        cls,
        *,
        router: Router | str | Path | None = None,
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
        **parts: Any,
    ) -> RoutedQueryEngine:
        """Make an engine of LlamaIndex parts; for ``router`` and ``parts`` see ``pipeline_from``."""
        return cls(pipeline_from(router=router, **parts), streaming=streaming, callback_manager=callback_manager)

    @classmethod
    def from_tools(cls, tools: Sequence[QueryEngineTool], **settings: Any) -> RoutedQueryEngine:
        """Make an engine over the tools of a ``RouterQueryEngine``: each is an arm, under the tool's name."""
        engines = {tool.metadata.get_name(): tool.query_engine for tool in tools}
        if len(engines) < len(tools):
            raise ConfigError("tools must have names of their own; two share one")
        return cls.from_defaults(query_engines=engines, **settings)

    def with_request(self, **request: Any) -> RoutedQueryEngine:
        """This engine with other settings of the request, such as another user's ``scope``."""
        return self._like(self._streaming, {**self._request, **request})

    def with_streaming(self, streaming: bool = True) -> RoutedQueryEngine:
        """This engine, streaming or not."""
        return self._like(streaming, self._request)

    def _like(self, streaming: bool, request: dict[str, Any]) -> RoutedQueryEngine:
        return type(self)(self.pipeline, streaming=streaming, callback_manager=self.callback_manager, **request)

    @dispatcher.span
    def decide(self, query: str | Evidence) -> Routed:
        """Choose the arm; ``answer`` then answers by it."""
        (routed,) = self._watched.decide([query], **self._request)
        announce(routed.decision)
        return routed

    @dispatcher.span
    async def adecide(self, query: str | Evidence) -> Routed:
        """As ``decide``, without blocking the event loop."""
        (routed,) = await self._watched.adecide([query], **self._request)
        announce(routed.decision)
        return routed

    @dispatcher.span
    def answer(
        self, query: QueryBundle, routed: Routed, additional_source_nodes: Sequence[NodeWithScore] = ()
    ) -> Response | StreamingResponse:
        """Answer a question whose arm is chosen; nothing is decided again."""
        dispatcher.event(SynthesizeStartEvent(query=query))
        with self.callback_manager.as_trace("query"), self._event(CBEventType.SYNTHESIZE, query) as event:
            response: Response | StreamingResponse
            if self._streaming:
                stream = self._watched.stream(routed, **self._request)
                pieces = iter(stream)
                first = next(pieces, None)
                response = StreamingResponse(_after(first, pieces), **self._told(stream, additional_source_nodes))
            else:
                (answer,) = self._watched.complete([routed], **self._request)
                response = _response(answer, additional_source_nodes)
            event.on_end(payload={EventPayload.RESPONSE: response})
        dispatcher.event(SynthesizeEndEvent(query=query, response=response))
        return response

    @dispatcher.span
    async def aanswer(
        self, query: QueryBundle, routed: Routed, additional_source_nodes: Sequence[NodeWithScore] = ()
    ) -> Response | AsyncStreamingResponse:
        """As ``answer``, without blocking the event loop."""
        dispatcher.event(SynthesizeStartEvent(query=query))
        with self.callback_manager.as_trace("query"), self._event(CBEventType.SYNTHESIZE, query) as event:
            response: Response | AsyncStreamingResponse
            if self._streaming:
                stream = self._watched.stream(routed, **self._request)
                pieces = aiter(stream)
                first = await anext(pieces, None)
                response = AsyncStreamingResponse(_aafter(first, pieces), **self._told(stream, additional_source_nodes))
            else:
                (answer,) = await self._watched.acomplete([routed], **self._request)
                response = _response(answer, additional_source_nodes)
            event.on_end(payload={EventPayload.RESPONSE: response})
        dispatcher.event(SynthesizeEndEvent(query=query, response=response))
        return response

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """The nodes that the chosen arm reads; none if it answers closed-book."""
        routed = self.decide(query_bundle.query_str)
        (routed,) = self._watched.read([routed], **self._request)
        return self._nodes(routed)

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """As ``retrieve``, without blocking the event loop."""
        routed = await self.adecide(query_bundle.query_str)
        (routed,) = await self._watched.aread([routed], **self._request)
        return self._nodes(routed)

    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Answer from given nodes, by the decision that came with them; only nodes from elsewhere are routed anew."""
        routed = _decided(query_bundle, nodes) or self.decide(_evidence(query_bundle, nodes))
        return self.answer(query_bundle, routed, additional_source_nodes or ())

    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """As ``synthesize``, without blocking the event loop."""
        routed = _decided(query_bundle, nodes) or await self.adecide(_evidence(query_bundle, nodes))
        return await self.aanswer(query_bundle, routed, additional_source_nodes or ())

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        with self._event(CBEventType.QUERY, query_bundle) as event:
            response = self.answer(query_bundle, self.decide(query_bundle.query_str))
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        with self._event(CBEventType.QUERY, query_bundle) as event:
            response = await self.aanswer(query_bundle, await self.adecide(query_bundle.query_str))
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    @property
    def _watched(self) -> Pipeline:
        return watched(self.pipeline, self.callback_manager)

    def _event(self, kind: CBEventType, query: QueryBundle) -> AbstractContextManager[EventContext]:
        return self.callback_manager.event(kind, payload={EventPayload.QUERY_STR: query.query_str})

    def _told(self, stream: AnswerStream, more: Sequence[NodeWithScore]) -> dict[str, Any]:
        """What is known once the first piece is there: which arm answers, and what it reads."""
        assert stream.routed is not None
        sources = [*map(node_from, self._read(stream.routed)), *more]
        return {"source_nodes": sources, "metadata": {DECISION_KEY: stream.routed.decision}}

    def _nodes(self, routed: Routed) -> RoutedNodes:
        return RoutedNodes([node_from(passage, routed.decision) for passage in self._read(routed)], routed)

    def _read(self, routed: Routed) -> tuple[Passage, ...]:
        """What the answering arm reads."""
        arm = self.pipeline.arms[routed.decision.fallback or routed.decision.arm]
        return (routed.evidence.passages or ()) if arm.retrieves else ()

    def _get_prompt_modules(self) -> PromptMixinType:
        """Prompts of the arms, under their names."""
        return {
            flat(name): arm.generator
            for name, arm in self.pipeline.arms.items()
            if isinstance(arm.generator, PromptMixin)
        }


def _response(answer: Answer, more: Sequence[NodeWithScore]) -> Response:
    sources = [*map(node_from, answer.passages), *more]
    return Response(answer.text, source_nodes=sources, metadata={DECISION_KEY: answer.decision})


def _evidence(query: QueryBundle, nodes: Sequence[NodeWithScore]) -> Evidence:
    return Evidence(query.query_str.strip(), passages=tuple(map(passage_from, nodes)))


def _decided(query: QueryBundle, nodes: Sequence[NodeWithScore]) -> Routed | None:
    """The decision that came with the nodes, over the nodes as they are now."""
    if isinstance(nodes, RoutedNodes):
        if nodes.untouched and nodes.routed.evidence.query == query.query_str.strip():
            return nodes.routed
        decision = nodes.routed.decision
    else:
        found = decision_of(nodes)
        if found is None:
            return None
        decision = found
    return Routed(_evidence(query, nodes), decision, reader=decision.arm)


def _after(first: str | None, rest: Iterator[str]) -> Generator[str, None, None]:
    if first is not None:
        yield first
    yield from rest


async def _aafter(first: str | None, rest: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    if first is not None:
        yield first
    async for piece in rest:
        yield piece
