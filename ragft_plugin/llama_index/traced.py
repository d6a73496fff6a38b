"""Parts of the package that know nothing of LlamaIndex, with its spans, events and callbacks around them.

LLMs and retrievers of LlamaIndex tell its dispatcher what they do; a knowledge base or a local model with adapters does
not. Routed components therefore see their pipeline through the wrappers of this module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, aclosing
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMChatStartEvent
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent, RetrievalStartEvent

from ragft_plugin.arms import Arm
from ragft_plugin.course import Generate, Retrieve, aperform, astream
from ragft_plugin.llama_index.engine_arms import EngineGenerator, EngineRetriever
from ragft_plugin.llama_index.events import dispatcher
from ragft_plugin.llama_index.generators import LLMGenerator, SynthesizerGenerator
from ragft_plugin.llama_index.nodes import node_from
from ragft_plugin.llama_index.responses import chat_from
from ragft_plugin.llama_index.retrievers import NodeRetriever
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.prompts import messages
from ragft_plugin.types import Filter, Generation, Generator, Passage, Prompt, Retriever
from ragft_plugin.views import view

_LLAMA_INDEX = (LLMGenerator, SynthesizerGenerator, EngineGenerator, NodeRetriever, EngineRetriever)


def watched(pipeline: Pipeline, callback_manager: CallbackManager | None = None) -> Pipeline:
    """The pipeline with its own parts told of; those made of LlamaIndex' parts tell by themselves."""
    told = callback_manager or CallbackManager([])
    return view(
        pipeline,
        generator=lambda part: part if isinstance(part, _LLAMA_INDEX) else TracedGenerator(part, told),
        retriever=lambda part: part if isinstance(part, _LLAMA_INDEX) else TracedRetriever(part, told),
    )


class TracedGenerator:
    """A generator that is told of as an LLM: a span for each batch, events for each answer."""

    def __init__(self, generator: Generator, callback_manager: CallbackManager) -> None:
        self.generator = generator
        self._callbacks = callback_manager

    @dispatcher.span
    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """As the generator's own."""
        with _Answers(self, prompts, options) as answers:
            return answers.end(self.generator.generate(prompts, **options))

    @dispatcher.span
    async def agenerate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """As the generator's own, or in a thread where it has none."""
        with _Answers(self, prompts, options) as answers:
            return answers.end(await aperform(Generate(self._arm, list(prompts), options)))

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """As the generator's own."""
        text = ""
        with _Answers(self, [prompt], options) as answers:
            for piece in self.generator.stream(prompt, **options):
                text += piece
                yield piece
            answers.end([Generation(text)])

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[str]:
        """As the generator's own, or in threads where it has none."""
        text = ""
        with _Answers(self, [prompt], options) as answers:
            async with aclosing(astream(self._arm, prompt, options)) as pieces:
                async for piece in pieces:
                    text += piece
                    yield piece
            answers.end([Generation(text)])

    @property
    def _arm(self) -> Arm:
        return Arm("traced", self.generator)


class TracedRetriever:
    """A retriever that is told of: a span for each batch, events for each question."""

    def __init__(self, retriever: Retriever, callback_manager: CallbackManager) -> None:
        self.retriever = retriever
        self._callbacks = callback_manager

    @dispatcher.span
    def retrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        """As the retriever's own."""
        return self._told(queries, self.retriever.retrieve(queries, k, filter))

    @dispatcher.span
    async def aretrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        """As the retriever's own, or in a thread where it has none."""
        found: list[list[Passage]] = await aperform(Retrieve(self.retriever, list(queries), k, filter))
        return self._told(queries, found)

    def _told(self, queries: Sequence[str], found: list[list[Passage]]) -> list[list[Passage]]:
        for query, passages in zip(queries, found, strict=False):
            nodes = [node_from(passage) for passage in passages]
            dispatcher.event(RetrievalStartEvent(str_or_query_bundle=query))
            with self._callbacks.event(CBEventType.RETRIEVE, payload={EventPayload.QUERY_STR: query}) as event:
                event.on_end(payload={EventPayload.NODES: nodes})
            dispatcher.event(RetrievalEndEvent(str_or_query_bundle=query, nodes=nodes))
        return found


class _Answers:
    """The events of one batch of answers, from its start to its end."""

    def __init__(self, traced: TracedGenerator, prompts: Sequence[Prompt], options: dict[str, Any]) -> None:
        self._traced = traced
        self._asked = [
            [ChatMessage(role=turn["role"], content=turn["content"]) for turn in messages(prompt)] for prompt in prompts
        ]
        self._options = options
        self._stack = ExitStack()

    def __enter__(self) -> _Answers:
        generator = self._traced.generator
        model = {
            "class_name": type(generator).__name__,
            "model_name": getattr(generator, "adapter", None) or "base",
            **self._options,
        }
        self._events = []
        for asked in self._asked:
            dispatcher.event(LLMChatStartEvent(messages=asked, additional_kwargs=self._options, model_dict=model))
            payload: dict[str, Any] = {EventPayload.MESSAGES: asked, EventPayload.SERIALIZED: model}
            event = self._traced._callbacks.event(CBEventType.LLM, payload=payload)
            self._events.append(self._stack.enter_context(event))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def end(self, made: list[Generation]) -> list[Generation]:
        """Tell of what was written."""
        for asked, event, generation in zip(self._asked, self._events, made, strict=False):
            response = chat_from(generation)
            event.on_end(payload={EventPayload.MESSAGES: asked, EventPayload.RESPONSE: response})
            dispatcher.event(LLMChatEndEvent(messages=asked, response=response))
        return made
