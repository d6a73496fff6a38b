"""Question in, routed answer out: the chain that stands where ``create_retrieval_chain`` stood."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any, Self, cast

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.messages import AnyMessage
from langchain_core.runnables import ConfigurableFieldSpec, Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.graph import Graph
from langchain_core.runnables.utils import get_unique_config_specs
from pydantic import ConfigDict, Field, model_validator

from ragft_plugin.course import Routed, adrive, drive
from ragft_plugin.langchain.chain_io import (
    RoutedInput,
    RoutedOutput,
    end_of,
    joined,
    merge,
    output_of,
    part_of,
    read,
    undecided,
)
from ragft_plugin.langchain.graph import graph_of, runnables_of
from ragft_plugin.langchain.parts import pipeline_from
from ragft_plugin.langchain.questions import Asked, asked_from, condenser, routed_from, standalone
from ragft_plugin.langchain.requests import request_of
from ragft_plugin.langchain.retriever import RoutedRetriever
from ragft_plugin.langchain.runs import Call, parents, set_parent
from ragft_plugin.langchain.traced import watched
from ragft_plugin.langchain.tracing import aroute, route
from ragft_plugin.pipeline import Pipeline

# Stands for the pipeline in what is dumped.
PIPELINE_ID = "RAGFT_PIPELINE"


class RoutedChain(RunnableSerializable[Any, dict[str, Any]]):
    """A chain that decides, per question, which arm of a pipeline answers it.

    It takes a question, a dict with ``input`` (and perhaps ``chat_history`` and ``decision``), or messages, and
    returns ``input``, ``context``, ``answer`` and ``decision``. A decision that is passed in is not made again, nor are
    documents retrieved again that are passed in as ``context``.
    ``batch`` decides for all its questions and then runs each arm once. ``stream`` yields parts of that dict, the
    answer piece by piece; before its first piece a failing arm is replaced by another, as the decision then says.

    Args:
        pipeline: decides and answers; a ``RoutedRetriever`` stands for its pipeline and settings.
        k: passages per question; None means the pipeline's.
        filter: access filter for retrieval; None lets everything through.
        cost_weight: reward given up per unit of cost; None means the router's own.
        arm: force this arm.
        options: for the generators: ``max_new_tokens``, ``temperature``, ``stop``, ``timeout`` in seconds, ...
        condense: model or chain that makes a standalone question of a chat; None means the generator of the
            pipeline's first closed-book arm.
        cite: also return ``citations``: the documents that the answer refers to as [1], [2], ...

    All but the pipeline can be given at the call as well: ``chain.invoke(question, arm="rag", k=5)``.

    Example::

        chain = RoutedChain.from_parts(models={"base": llm, "adapter:legal": legal}, retriever=store, router=router)
        chain.invoke("Who founded Rome?")["answer"]
    """

    pipeline: Pipeline
    k: int | None = None
    filter: dict[str, Any] | None = None
    cost_weight: float | None = None
    arm: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    condense: Runnable[Any, Any] | None = None
    cite: bool = False

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    @classmethod
    def from_parts(cls, **parts: Any) -> Self:
        """A chain over LangChain's models and retriever.

        Args:
            **parts: ``router``, ``models``, ``retriever``, ``costs``, ... as ``pipeline_from`` takes them; and
                arguments of this class.
        """
        own = {name: parts.pop(name) for name in set(parts) & (set(cls.model_fields) - {"pipeline"})}
        return cls(pipeline=pipeline_from(**parts), **own)

    @model_validator(mode="before")
    @classmethod
    def _unwrap(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = values.get("pipeline")
        if not isinstance(given, RoutedRetriever):
            return values
        settings = {name: getattr(given, name) for name in ("k", "filter", "cost_weight", "arm")}
        return {**settings, **values, "pipeline": given.pipeline}

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        """Answer one question.

        Raises:
            DataError: if there is no question in the input.
            GenerationError: if the chosen arm and every fallback failed.
        """
        return self._call_with_config(self._invoke, input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        """As ``invoke``, without blocking the event loop."""
        return await self._acall_with_config(self._ainvoke, input, config, **kwargs)

    def _invoke(
        self, input: Any, run_manager: CallbackManagerForChainRun, config: RunnableConfig, **settings: Any
    ) -> dict[str, Any]:
        asked = asked_from(input)
        return self._answer([asked], [Call.of(asked.question, run_manager, config)], request_of(self, **settings))[0]

    async def _ainvoke(
        self, input: Any, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig, **settings: Any
    ) -> dict[str, Any]:
        asked = asked_from(input)
        call = Call.of(asked.question, run_manager, config)
        return (await self._aanswer([asked], [call], request_of(self, **settings)))[0]

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Answer questions together: one decision step for all, then each arm once for all of its questions."""
        call = partial(self._batch, isolate=return_exceptions)
        return self._batch_with_config(call, inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """As ``batch``, without blocking the event loop."""
        call = partial(self._abatch, isolate=return_exceptions)
        return await self._abatch_with_config(call, inputs, config, return_exceptions=return_exceptions, **kwargs)

    def _batch(
        self,
        inputs: list[Any],
        run_manager: list[CallbackManagerForChainRun],
        config: list[RunnableConfig],
        isolate: bool,
        **settings: Any,
    ) -> list[Exception | dict[str, Any]]:
        request = request_of(self, **settings)
        asked, calls, faults = read(inputs, run_manager, config, isolate)
        try:
            made: list[Any] = list(self._answer(asked, calls, request))
        except Exception:
            if not isolate:
                raise
            made = []
            for one, call in zip(asked, calls, strict=True):
                try:
                    made += self._answer([one], [call], request)
                except Exception as error:
                    made.append(error)
        return merge(made, faults, len(inputs))

    async def _abatch(
        self,
        inputs: list[Any],
        run_manager: list[AsyncCallbackManagerForChainRun],
        config: list[RunnableConfig],
        isolate: bool,
        **settings: Any,
    ) -> list[Exception | dict[str, Any]]:
        request = request_of(self, **settings)
        asked, calls, faults = read(inputs, run_manager, config, isolate)
        try:
            made: list[Any] = list(await self._aanswer(asked, calls, request))
        except Exception:
            if not isolate:
                raise
            made = []
            for one, call in zip(asked, calls, strict=True):
                try:
                    made += await self._aanswer([one], [call], request)
                except Exception as error:
                    made.append(error)
        return merge(made, faults, len(inputs))

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[dict[str, Any]]:
        """Yield parts of the answer's dict: ``input``, ``decision``, ``context``, then ``answer`` piece by piece.

        Raises:
            PartialAnswerError: if generation fails after the first piece; it carries the text so far.
        """
        yield from self.transform(iter([input]), config, **kwargs)

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """As ``stream``, without blocking the event loop."""

        async def inputs() -> AsyncIterator[Any]:
            yield input

        async with aclosing(self.atransform(inputs(), config, **kwargs)) as parts:
            async for part in parts:
                yield part

    def transform(
        self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[dict[str, Any]]:
        """Wait for the whole input, then ``stream``."""
        yield from self._transform_stream_with_config(input, self._transform, config, **kwargs)

    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncGenerator[dict[str, Any]]:
        """As ``transform``, without blocking the event loop."""
        parts = self._atransform_stream_with_config(input, self._atransform, config, **kwargs)
        async with aclosing(cast(AsyncGenerator[dict[str, Any]], parts)) as closing:
            async for part in closing:
                yield part

    def _transform(
        self, input: Iterator[Any], run_manager: CallbackManagerForChainRun, config: RunnableConfig, **settings: Any
    ) -> Iterator[dict[str, Any]]:
        request = request_of(self, **settings)
        asked = asked_from(joined(list(input)))
        call = Call.of(asked.question, run_manager, config)
        (routed,) = self._route([asked], [call], request)
        call = call.after(routed)
        set_parent(call)
        stream = watched(self.pipeline, [call.config]).stream(routed, **request)
        first = True
        for piece in stream:
            yield part_of(asked, stream, piece, first)
            first = False
        yield from end_of(asked, stream, first, self.cite)

    async def _atransform(
        self,
        input: AsyncIterator[Any],
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        **settings: Any,
    ) -> AsyncIterator[dict[str, Any]]:
        request = request_of(self, **settings)
        asked = asked_from(joined([part async for part in input]))
        call = Call.of(asked.question, run_manager, config)
        (routed,) = await self._aroute([asked], [call], request)
        call = call.after(routed)
        set_parent(call)
        stream = watched(self.pipeline, [call.config]).stream(routed, **request)
        first = True
        async with aclosing(aiter(stream)) as pieces:
            async for piece in pieces:
                yield part_of(asked, stream, piece, first)
                first = False
        for part in end_of(asked, stream, first, self.cite):
            yield part

    # --------------------------------------------------------------------------------------------------- the course

    def _answer(self, asked: list[Asked], calls: list[Call], request: dict[str, Any]) -> list[dict[str, Any]]:
        routed = self._route(asked, calls, request)
        with parents([call.after(item) for call, item in zip(calls, routed, strict=True)]):
            answers = self._watched(calls).complete(routed, **request)
        return [output_of(one, answer, self.cite) for one, answer in zip(asked, answers, strict=True)]

    async def _aanswer(self, asked: list[Asked], calls: list[Call], request: dict[str, Any]) -> list[dict[str, Any]]:
        routed = await self._aroute(asked, calls, request)
        with parents([call.after(item) for call, item in zip(calls, routed, strict=True)]):
            answers = await self._watched(calls).acomplete(routed, **request)
        return [output_of(one, answer, self.cite) for one, answer in zip(asked, answers, strict=True)]

    def _route(self, asked: list[Asked], calls: list[Call], request: dict[str, Any]) -> list[Routed]:
        """Decide what is not decided yet, each question understandable by itself."""
        calls = drive(standalone(asked, calls, condenser(self.condense, self._watched(calls)), self.options))
        made = iter(route(self.pipeline, *undecided(asked, calls, request), request))
        return [self._decided(one, call, request) or next(made) for one, call in zip(asked, calls, strict=True)]

    async def _aroute(self, asked: list[Asked], calls: list[Call], request: dict[str, Any]) -> list[Routed]:
        calls = await adrive(standalone(asked, calls, condenser(self.condense, self._watched(calls)), self.options))
        made = iter(await aroute(self.pipeline, *undecided(asked, calls, request), request))
        return [self._decided(one, call, request) or next(made) for one, call in zip(asked, calls, strict=True)]

    def _watched(self, calls: list[Call]) -> Pipeline:
        return watched(self.pipeline, [call.config for call in calls])

    def _decided(self, asked: Asked, call: Call, request: dict[str, Any]) -> Routed | None:
        if asked.decision is None:
            return None
        return routed_from(asked.decision, asked.evidence(call.question, request["scope"]))

    # ------------------------------------------------------------------------------------------ what LangChain asks

    @property
    def InputType(self) -> Any:
        """What it takes: a question, a dict, or messages."""
        return str | RoutedInput | list[AnyMessage]

    @property
    def OutputType(self) -> Any:
        """What it returns."""
        return RoutedOutput

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """The configurable fields of the pipeline's parts."""
        return get_unique_config_specs(spec for part in runnables_of(self.pipeline) for spec in part.config_specs)

    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """The arms as branches, for drawing."""
        return graph_of(self)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True: all but the pipeline, which ``ragft_plugin.langchain.load`` is given."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where the class is found when loaded."""
        return ["ragft_plugin", "langchain"]

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What is given at loading instead of being written down."""
        return {"pipeline": PIPELINE_ID}
