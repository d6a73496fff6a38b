"""A query engine of LlamaIndex as an arm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.prompts.mixin import PromptDictType, PromptMixin, PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle

from ragft_plugin.arms import Arm
from ragft_plugin.errors import ConfigError
from ragft_plugin.llama_index.nodes import node_from, passage_from
from ragft_plugin.llama_index.prompt_names import flat_prompts, update_flat_prompts
from ragft_plugin.types import Answer, Evidence, Filter, Generation, Passage, Prompt


@dataclass(frozen=True, slots=True)
class EngineGeneration(Generation):
    """What a query engine answered, and what it read.

    Attributes:
        sources: its source nodes as passages.
    """

    sources: tuple[Passage, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineArm(Arm):
    """An arm whose generator is a whole query engine, which retrieves for itself."""

    def prompt(self, evidence: Evidence) -> Prompt:
        """What the engine is asked.

        Raises:
            ConfigError: if there is an access filter, which a query engine cannot be told.
        """
        if evidence.scope:
            raise ConfigError(
                f"arm {self.name!r} is a query engine and cannot be told the access filter {dict(evidence.scope)!r}; "
                "route over its retriever and LLM instead"
            )
        return Arm.prompt(self, evidence)

    def answer(self, evidence: Evidence, generation: Generation, seconds: float) -> Answer:
        """Make an answer, with the engine's own source nodes as its passages."""
        # Named, not super(): a dataclass with slots is a new class, which zero-argument super does not know.
        answer = Arm.answer(self, evidence, generation, seconds)
        return replace(answer, passages=generation.sources) if isinstance(generation, EngineGeneration) else answer


class EngineGenerator(PromptMixin):
    """Answers prompts with a query engine: ``query`` for closed-book prompts, ``synthesize`` for open-book ones.

    Generation options do not reach a query engine and are ignored.
    """

    def __init__(self, engine: BaseQueryEngine) -> None:
        self.engine = engine

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """Answer each prompt."""
        return [_generation(_whole(self._ask(prompt))) for prompt in prompts]

    async def agenerate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """As ``generate``, concurrently."""
        asked = await asyncio.gather(*map(self._aask, prompts))
        return [_generation(await _awhole(response)) for response in asked]

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Yield the answer: in pieces if the engine streams, else at once."""
        response = self._ask(prompt)
        if isinstance(response, StreamingResponse):
            yield from response.response_gen
        else:
            yield _generation(_whole(response)).text

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[str]:
        """As ``stream``, without blocking the event loop."""
        response = await self._aask(prompt)
        if isinstance(response, AsyncStreamingResponse):
            async for piece in response.response_gen:
                yield piece
        else:
            yield _generation(await _awhole(response)).text

    def _ask(self, prompt: Prompt) -> RESPONSE_TYPE:
        query = QueryBundle(prompt.question)
        if prompt.passages is None:
            return self.engine.query(query)
        return self.engine.synthesize(query, _nodes(prompt))

    async def _aask(self, prompt: Prompt) -> RESPONSE_TYPE:
        query = QueryBundle(prompt.question)
        if prompt.passages is None:
            return await self.engine.aquery(query)
        return await self.engine.asynthesize(query, _nodes(prompt))

    def _get_prompts(self) -> PromptDictType:
        return flat_prompts(self.engine)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        update_flat_prompts(self.engine, prompts_dict)


class EngineRetriever:
    """Finds passages with a query engine's ``retrieve``; how many is the engine's own setting, at most ``k``."""

    def __init__(self, engine: BaseQueryEngine) -> None:
        self.engine = engine

    def retrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        """Return up to ``k`` passages per query, best first.

        Raises:
            ConfigError: if there is an access filter, which a query engine cannot be told.
        """
        self._refuse(filter)
        return [_passages(self.engine.retrieve(QueryBundle(query)), k) for query in queries]

    async def aretrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        """As ``retrieve``, without blocking the event loop."""
        self._refuse(filter)
        return list(await asyncio.gather(*(self._afind(query, k) for query in queries)))

    async def _afind(self, query: str, k: int) -> list[Passage]:
        # The base class of query engines has no async twin of ``retrieve``; the usual engines have one.
        native = getattr(self.engine, "aretrieve", None)
        if native is not None:
            return _passages(await native(QueryBundle(query)), k)
        return _passages(await asyncio.to_thread(self.engine.retrieve, QueryBundle(query)), k)

    def _refuse(self, filter: Filter | None) -> None:
        if filter:
            raise ConfigError(
                f"{type(self.engine).__name__} cannot be told the access filter {dict(filter)!r}; route over its "
                "retriever instead"
            )


def from_query_engine(name: str, engine: BaseQueryEngine, *, cost: float = 0.0) -> Arm:
    """An arm made of a query engine.

    An engine that can ``retrieve`` and ``synthesize`` shares what it retrieved with the router; any other one is
    asked as a whole, and its source nodes are known only once it has answered.

    Args:
        name: of the arm.
        engine: what answers.
        cost: of one answer.
    """
    retrieves = type(engine).retrieve is not BaseQueryEngine.retrieve
    if retrieves:
        return Arm(name, EngineGenerator(engine), EngineRetriever(engine), cost=cost)
    return EngineArm(name, EngineGenerator(engine), cost=cost)


def _nodes(prompt: Prompt) -> list[NodeWithScore]:
    return [node_from(passage) for passage in prompt.passages or ()]


def _passages(nodes: Sequence[NodeWithScore], k: int) -> list[Passage]:
    return [passage_from(node) for node in nodes[:k]]


def _whole(response: RESPONSE_TYPE) -> Response | PydanticResponse:
    if isinstance(response, AsyncStreamingResponse):
        raise ConfigError("the query engine streams asynchronously; call it with aquery")
    return response.get_response() if isinstance(response, StreamingResponse) else response


async def _awhole(response: RESPONSE_TYPE) -> Response | PydanticResponse:
    return await response.get_response() if isinstance(response, AsyncStreamingResponse) else _whole(response)


def _generation(response: Response | PydanticResponse) -> EngineGeneration:
    text = str(response) if response.response is not None else ""
    return EngineGeneration(text, sources=tuple(passage_from(node) for node in response.source_nodes))
