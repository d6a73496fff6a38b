"""Parts of the package that know nothing of LangChain, each of their answers a run in its question's trace.

Models and retrievers of LangChain's trace themselves; a knowledge base or a local model with adapters does not. While
somebody listens, a pipeline is therefore seen through the wrappers of this module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, UsageMetadata, convert_to_messages
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_async_callback_manager_for_config, get_callback_manager_for_config

from ragft_plugin.arms import Arm
from ragft_plugin.course import Generate, Retrieve, aperform, astream
from ragft_plugin.langchain.documents import document_from
from ragft_plugin.langchain.generators import ChatModelGenerator
from ragft_plugin.langchain.retrievers import RunnableRetriever
from ragft_plugin.langchain.runs import configs_of
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.prompts import messages
from ragft_plugin.types import Filter, Generation, Generator, Passage, Prompt, Retriever
from ragft_plugin.views import view


def watched(pipeline: Pipeline, configs: Sequence[RunnableConfig]) -> Pipeline:
    """The pipeline as it is if nobody listens to these runs, else with its own parts traced."""
    if not any(_listened(config) for config in configs):
        return pipeline
    return view(pipeline, generator=_generator, retriever=_retriever)


class TracedGenerator:
    """A generator whose every answer is a run of a chat model."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """As the generator's own."""
        runs = [
            get_callback_manager_for_config(config).on_chat_model_start(_serialized(self.generator), **asked)[0]
            for config, asked in self._started(prompts, options)
        ]
        try:
            made = self.generator.generate(prompts, **options)
        except BaseException as error:
            for run in runs:
                run.on_llm_error(error)
            raise
        for run, generation in zip(runs, made, strict=False):
            run.on_llm_end(_result(generation))
        return made

    async def agenerate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """As the generator's own, or in a thread where it has none."""
        runs = [
            (await get_async_callback_manager_for_config(config).on_chat_model_start(name, **asked))[0]
            for name, (config, asked) in ((_serialized(self.generator), one) for one in self._started(prompts, options))
        ]
        try:
            made: list[Generation] = await aperform(Generate(self._arm, list(prompts), options))
        except BaseException as error:
            for run in runs:
                await run.on_llm_error(error)
            raise
        for run, generation in zip(runs, made, strict=False):
            await run.on_llm_end(_result(generation))
        return made

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """As the generator's own."""
        ((config, asked),) = self._started([prompt], options)
        manager = get_callback_manager_for_config(config)
        (run,) = manager.on_chat_model_start(_serialized(self.generator), **asked)
        text = ""
        try:
            for piece in self.generator.stream(prompt, **options):
                text += piece
                run.on_llm_new_token(piece, chunk=_chunk(piece))
                yield piece
        except BaseException as error:
            run.on_llm_error(error)
            raise
        run.on_llm_end(_result(Generation(text)))

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[str]:
        """As the generator's own, or in threads where it has none."""
        ((config, asked),) = self._started([prompt], options)
        manager = get_async_callback_manager_for_config(config)
        (run,) = await manager.on_chat_model_start(_serialized(self.generator), **asked)
        text = ""
        try:
            async with aclosing(astream(self._arm, prompt, options)) as pieces:
                async for piece in pieces:
                    text += piece
                    await run.on_llm_new_token(piece, chunk=_chunk(piece))
                    yield piece
        except BaseException as error:
            await run.on_llm_error(error)
            raise
        await run.on_llm_end(_result(Generation(text)))

    @property
    def _arm(self) -> Arm:
        return Arm("traced", self.generator)

    def _started(
        self, prompts: Sequence[Prompt], options: Mapping[str, Any]
    ) -> list[tuple[RunnableConfig, dict[str, Any]]]:
        """For each prompt the configuration of its run, and what the run is told at its start."""
        adapter = getattr(self.generator, "adapter", None)
        model = adapter or "base"
        facts = {"ls_provider": "ragft_plugin", "ls_model_name": model, "ls_model_type": "chat"}
        settings = {"model": model, **options}
        started = []
        for prompt, config in zip(prompts, _configs([prompt.question for prompt in prompts]), strict=True):
            told = RunnableConfig(**{**config, "metadata": {**(config.get("metadata") or {}), **facts}})
            shown: list[BaseMessage] = convert_to_messages(messages(prompt))
            name = type(self.generator).__name__
            started.append((told, {"messages": [shown], "invocation_params": settings, "name": name}))
        return started


class TracedRetriever:
    """A retriever whose every search is a run of a retriever."""

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever

    def retrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        """As the retriever's own."""
        name = type(self.retriever).__name__
        runs = [
            get_callback_manager_for_config(config).on_retriever_start(_serialized(self.retriever), query, name=name)
            for query, config in zip(queries, _configs(queries), strict=True)
        ]
        try:
            found = self.retriever.retrieve(queries, k, filter)
        except BaseException as error:
            for run in runs:
                run.on_retriever_error(error)
            raise
        for run, passages in zip(runs, found, strict=False):
            run.on_retriever_end([document_from(passage) for passage in passages])
        return found

    async def aretrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        """As the retriever's own, or in a thread where it has none."""
        name = type(self.retriever).__name__
        runs = [
            await get_async_callback_manager_for_config(config).on_retriever_start(
                _serialized(self.retriever), query, name=name
            )
            for query, config in zip(queries, _configs(queries), strict=True)
        ]
        try:
            found: list[list[Passage]] = await aperform(Retrieve(self.retriever, list(queries), k, filter))
        except BaseException as error:
            for run in runs:
                await run.on_retriever_error(error)
            raise
        for run, passages in zip(runs, found, strict=False):
            await run.on_retriever_end([document_from(passage) for passage in passages])
        return found


def _generator(part: Generator) -> Generator:
    return part if isinstance(part, ChatModelGenerator) else TracedGenerator(part)


def _retriever(part: Retriever) -> Retriever:
    return part if isinstance(part, RunnableRetriever) else TracedRetriever(part)


def _listened(config: RunnableConfig) -> bool:
    callbacks = config.get("callbacks")
    return bool(callbacks if isinstance(callbacks, list) else getattr(callbacks, "handlers", None))


def _configs(questions: Sequence[str]) -> list[RunnableConfig]:
    return configs_of(questions) or [RunnableConfig() for _ in questions]


def _serialized(part: object) -> dict[str, Any]:
    """What LangChain writes of an object that cannot be written down."""
    kind = type(part)
    return {"lc": 1, "type": "not_implemented", "id": [*kind.__module__.split("."), kind.__name__]}


def _result(made: Generation) -> LLMResult:
    usage = None
    if made.usage.completion_tokens:
        read, written = made.usage.prompt_tokens, made.usage.completion_tokens
        usage = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
    facts = {"finish_reason": made.finish_reason}
    message = AIMessage(made.text, usage_metadata=usage, response_metadata=facts)
    return LLMResult(generations=[[ChatGeneration(message=message, generation_info=facts)]])


def _chunk(piece: str) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=piece))
