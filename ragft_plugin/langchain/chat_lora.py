"""A chat model over one base with many adapters: the adapter is chosen per call, by ``model=``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import (
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
    get_config_list,
    merge_configs,
)
from langchain_core.tools import BaseTool
from langchain_core.tracers._streaming import _StreamingCallbackHandler
from langchain_core.utils import from_env
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field

from ragft_plugin.arms import Arm
from ragft_plugin.course import Generate, aperform, astream
from ragft_plugin.langchain.backends import BACKEND_ENV, opened
from ragft_plugin.langchain.chat_messages import choice_of, prompt_from
from ragft_plugin.langchain.chat_outputs import chunk_from, facts_of, result_from, usage_of
from ragft_plugin.types import Generation, Prompt

BASE = "base"
_NAMES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
# Handled here, or instructions to servers that mean nothing to a local model.
_NOT_FOR_THE_BACKEND = frozenset(
    {"model", "tools", "tool_choice", "logprobs", "strict", "parallel_tool_calls", "stream", "api_key", "max_retries"}
)


class ChatLora(BaseChatModel):
    """Chat with a base and its adapters: streaming, async without threads, batches that are generated together.

    Args:
        backend: serves the generators: a ``LoraModel``, the folder of a base (loaded at the first question; by default
            the environment's ``RAGFT_BACKEND``), anything with a method ``generator(adapter)``, or a function of the
            adapter's name (None for the base), such as one that makes ``OpenAIGenerator`` for a server.
        adapters: name -> folder of each adapter to load, where the backend is a folder.
        model: the adapter that answers, or "base"; ``invoke(..., model="legal")`` chooses another for one call.
        max_tokens: at most so many tokens are written; None means the backend's own bound.
        temperature: 0 takes the likeliest token; None means the backend's own.
        stop: strings at which an answer ends.
        seed: for one and the same answer at a temperature above 0.
        timeout: seconds for one answer.
        logprobs: put the tokens' log-probabilities into ``response_metadata["logprobs"]``.
        streaming: accepted for the sake of other chat models' arguments, like ``api_key`` and ``max_retries``; a
            local model needs none of them.

    Example::

        chat = ChatLora(backend=LoraModel.load("models/base"), model="legal")
        chat.invoke("Who signs?")
        chat.invoke("Who signs?", model="base")
    """

    backend: Any = Field(
        default_factory=from_env(
            BACKEND_ENV,
            error_message=f"ChatLora needs backend=: a LoraModel or a base's folder; or set {BACKEND_ENV} to a folder",
        ),
        exclude=True,
        repr=False,
    )
    adapters: dict[str, str] = Field(default_factory=dict)
    model: str = BASE
    max_tokens: int | None = None
    temperature: float | None = None
    stop: list[str] | None = None
    seed: int | None = None
    timeout: float | None = None
    logprobs: bool = False
    streaming: bool = False
    api_key: str | None = Field(default=None, exclude=True, repr=False)
    max_retries: int | None = None

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    # ---------------------------------------------------------------------------------------------------- answering

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        prompt, arm, options = self._call(messages, stop, kwargs)
        (made,) = arm.generator.generate([prompt], **options)
        return self._result(made, arm.name, kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        prompt, arm, options = self._call(messages, stop, kwargs)
        (made,) = await aperform(Generate(arm, [prompt], options))
        return self._result(made, arm.name, kwargs)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        if kwargs.get("tools"):
            yield chunk_from(self._generate(messages, stop, None, **kwargs))
            return
        prompt, arm, options = self._call(messages, stop, kwargs)
        text = ""
        for piece in arm.generator.stream(prompt, **options):
            text += piece
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield self._last(prompt, text, arm.name)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        if kwargs.get("tools"):
            yield chunk_from(await self._agenerate(messages, stop, None, **kwargs))
            return
        prompt, arm, options = self._call(messages, stop, kwargs)
        text = ""
        async with aclosing(astream(arm, prompt, options)) as pieces:
            async for piece in pieces:
                text += piece
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager:
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        yield self._last(prompt, text, arm.name)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer together: one generation for all inputs, each of them a run of its own."""
        configs = get_config_list(config, len(inputs)) if inputs else []
        if return_exceptions or self._apart(configs):
            # One by one; LangChain's pool has a handful of threads, but here each only waits for the one worker.
            wide = [{"max_concurrency": len(inputs), **one} for one in configs]
            return super().batch(inputs, wide, return_exceptions=return_exceptions, **kwargs)  # type: ignore[arg-type]
        asked = self._asked(inputs, kwargs)
        runs = [
            get_callback_manager_for_config(told).on_chat_model_start(self._serialized, **start)[0]
            for told, start in self._starts(asked.messages, configs, kwargs)
        ]
        try:
            made = asked.arm.generator.generate(asked.prompts, **asked.options)
        except BaseException as error:
            for run in runs:
                run.on_llm_error(error)
            raise
        results = [self._result(one, asked.arm.name, kwargs) for one in made]
        for run, result in zip(runs, results, strict=True):
            run.on_llm_end(LLMResult(generations=[[*result.generations]]))
        return [_message(run, result) for run, result in zip(runs, results, strict=True)]

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """As ``batch``, without blocking the event loop."""
        configs = get_config_list(config, len(inputs)) if inputs else []
        if return_exceptions or self._apart(configs):
            return await super().abatch(inputs, configs, return_exceptions=return_exceptions, **kwargs)
        asked = self._asked(inputs, kwargs)
        runs = []
        for told, start in self._starts(asked.messages, configs, kwargs):
            manager = get_async_callback_manager_for_config(told)
            runs += await manager.on_chat_model_start(self._serialized, **start)
        try:
            made = await aperform(Generate(asked.arm, asked.prompts, asked.options))
        except BaseException as error:
            for run in runs:
                await run.on_llm_error(error)
            raise
        results = [self._result(one, asked.arm.name, kwargs) for one in made]
        for run, result in zip(runs, results, strict=True):
            await run.on_llm_end(LLMResult(generations=[[*result.generations]]))
        return [_message(run, result) for run, result in zip(runs, results, strict=True)]

    def _apart(self, configs: Sequence[RunnableConfig]) -> bool:
        """Whether what LangChain does around single calls is wanted: caching, rate limits, streaming, few at once."""
        if not configs or self.cache or (self.cache is None and get_llm_cache() is not None) or self.rate_limiter:
            return True
        managers = [get_callback_manager_for_config(config) for config in configs]
        streams = any(isinstance(one, _StreamingCallbackHandler) for manager in managers for one in manager.handlers)
        return streams or configs[0].get("max_concurrency") is not None

    def _asked(self, inputs: Sequence[LanguageModelInput], given: Mapping[str, Any]) -> _Asked:
        messages = [self._convert_input(value).to_messages() for value in inputs]
        rest = {name: value for name, value in given.items() if name != "stop"}
        calls = [self._call(one, given.get("stop"), rest) for one in messages]
        _, arm, options = calls[0]
        return _Asked(messages, [prompt for prompt, _, _ in calls], arm, options)

    def _starts(
        self, messages: Sequence[list[BaseMessage]], configs: Sequence[RunnableConfig], given: Mapping[str, Any]
    ) -> Iterator[tuple[RunnableConfig, dict[str, Any]]]:
        """For each input the configuration of its run, with the model's own, and what the run is told at its start."""
        stop = given.get("stop")
        rest = {name: value for name, value in given.items() if name != "stop"}
        facts = {**(self.metadata or {}), **self._get_ls_params(stop=stop, **rest)}
        start = {"invocation_params": self._get_invocation_params(stop=stop, **rest), "options": {"stop": stop}}
        for one, config in zip(messages, configs, strict=True):
            own = RunnableConfig(callbacks=self.callbacks, tags=self.tags or [], metadata=facts)
            run = {"name": config.get("run_name"), "run_id": config.get("run_id")}
            yield merge_configs(config, own), {"messages": [one], **start, **run}

    def _call(
        self, messages: list[BaseMessage], stop: list[str] | None, given: Mapping[str, Any]
    ) -> tuple[Prompt, Arm, dict[str, Any]]:
        """What to ask, whom, and with which options."""
        options = {
            "max_new_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stop": stop if stop is not None else self.stop,
            "seed": self.seed,
            "timeout": self.timeout,
        }
        options |= {_NAMES.get(name, name): value for name, value in given.items() if name not in _NOT_FOR_THE_BACKEND}
        prompt = prompt_from(messages, tools=given.get("tools") or (), tool_choice=given.get("tool_choice"))
        name = given.get("model") or self.model
        backend = opened(self.backend, self.adapters)
        serve = getattr(backend, "generator", backend)
        generator = serve(None if name == BASE else name)
        return prompt, Arm(name, generator), {name: value for name, value in options.items() if value is not None}

    def _result(self, made: Generation, name: str, given: Mapping[str, Any]) -> ChatResult:
        return result_from(made, name, tools=bool(given.get("tools")), logprobs=given.get("logprobs", self.logprobs))

    def _last(self, prompt: Prompt, text: str, name: str) -> ChatGenerationChunk:
        """The chunk that ends a stream."""
        renderer = getattr(opened(self.backend, self.adapters), "renderer", None)
        usage = None if renderer is None else usage_of(len(renderer.render(prompt)), len(renderer.encode(text)))
        message = AIMessageChunk(
            content="", response_metadata=facts_of(name), usage_metadata=usage, chunk_position="last"
        )
        return ChatGenerationChunk(message=message)

    # -------------------------------------------------------------------------------------- tools and structured output

    def bind_tools(
        self,
        tools: Sequence[Mapping[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Tell the model about tools; a base that was taught to call functions then calls them.

        Args:
            tools: functions, tools, pydantic classes or dicts.
            tool_choice: name of the one to call, "any" or True for some one, "auto" or None to leave it open.
            **kwargs: for each call.
        """
        told = [convert_to_openai_tool(tool) for tool in tools]
        return self.bind(tools=told, tool_choice=choice_of(tool_choice), **kwargs)

    # ------------------------------------------------------------------------------------------ what LangChain asks

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True: all but the backend, which is given at loading, as secrets are."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where the class is found when loaded."""
        return ["ragft_plugin", "langchain", "chat_lora"]

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What is given at loading instead of being written down."""
        return {"backend": BACKEND_ENV, "api_key": "RAGFT_API_KEY"}

    @property
    def _llm_type(self) -> str:
        return "ragft-lora"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        # Two bases may have adapters of one name; a cache must tell them apart.
        folder = getattr(getattr(self.backend, "base", None), "folder", id(self.backend))
        if isinstance(self.backend, str | Path):
            folder = self.backend
        names = ("model", "max_tokens", "temperature", "stop", "seed", "logprobs")
        return {"backend": str(folder), **{name: getattr(self, name) for name in names}}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        return {**params, "ls_provider": "ragft_plugin", "ls_model_name": kwargs.get("model") or self.model}

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of the base's own tokenizer, if the backend has one."""
        renderer = getattr(opened(self.backend, self.adapters), "renderer", None)
        return super().get_token_ids(text) if renderer is None else list(renderer.encode(text))


@dataclass(frozen=True, slots=True)
class _Asked:
    """Several inputs of one call, read."""

    messages: list[list[BaseMessage]]
    prompts: list[Prompt]
    arm: Arm
    options: dict[str, Any]


def _message(run: Any, result: ChatResult) -> AIMessage:
    message = result.generations[0].message
    assert isinstance(message, AIMessage)
    message.id = f"lc_run--{run.run_id}"  # as LangChain names them
    return message
