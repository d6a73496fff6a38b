"""A chat model over one base with many adapters: the adapter is chosen per call, by ``model=``."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol, runtime_checkable

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field

from ragft_plugin.arms import Arm
from ragft_plugin.course import Course, Generate, adrive, astream
from ragft_plugin.langchain.chat_messages import message_from, prompt_from
from ragft_plugin.types import Generation, Generator, Prompt

BASE = "base"
_NAMES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
# Handled here, or instructions to servers that mean nothing to a local model.
_NOT_FOR_THE_BACKEND = frozenset(
    {"model", "tools", "tool_choice", "logprobs", "strict", "parallel_tool_calls", "stream", "api_key", "max_retries"}
)
_TOOL_CHOICES: Mapping[Any, str | None] = {True: "any", "required": "any", "auto": None, False: None, "none": None}


@runtime_checkable
class Backend(Protocol):
    """Where the generators come from; ``ragft_plugin.lora.LoraModel`` is one."""

    def generator(self, adapter: str | None = None) -> Generator:
        """A generator that answers with one adapter, or with the base alone."""
        ...


class ChatLora(BaseChatModel):
    """Chat with a base and its adapters: streaming, async without threads, batches that are generated together.

    Args:
        backend: serves the generators: a ``LoraModel``, anything with a method ``generator(adapter)``, or a function of
            the adapter's name (None for the base), such as one that makes ``OpenAIGenerator`` for a server.
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

    backend: Any = Field(exclude=True, repr=False)
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
        (made,) = await adrive(_generated(Generate(arm, [prompt], options)))
        return self._result(made, arm.name, kwargs)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        if kwargs.get("tools"):
            yield _chunk(self._generate(messages, stop, None, **kwargs))
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
            yield _chunk(await self._agenerate(messages, stop, None, **kwargs))
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
        """Answer together: all inputs wait at once, and the backend's worker writes them as one batch."""
        # LangChain's pool has a handful of threads; here each only waits, so there may be one per input.
        configs = [{"max_concurrency": len(inputs), **one} for one in get_config_list(config, len(inputs))]
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)  # type: ignore[arg-type]

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
        serve = getattr(self.backend, "generator", self.backend)
        generator = serve(None if name == BASE else name)
        return prompt, Arm(name, generator), {name: value for name, value in options.items() if value is not None}

    def _result(self, made: Generation, name: str, given: Mapping[str, Any]) -> ChatResult:
        facts: dict[str, Any] = {**self._facts(name), "finish_reason": made.finish_reason}
        if given.get("logprobs", self.logprobs) and made.logprobs is not None:
            facts["logprobs"] = {"content": _tokens(made)}
        usage = _usage(made.usage.prompt_tokens, made.usage.completion_tokens)
        message = message_from(made.text, tools=bool(given.get("tools")), usage_metadata=usage, response_metadata=facts)
        return ChatResult(generations=[ChatGeneration(message=message, generation_info=facts)])

    def _last(self, prompt: Prompt, text: str, name: str) -> ChatGenerationChunk:
        """The chunk that ends a stream."""
        renderer = getattr(self.backend, "renderer", None)
        usage = None if renderer is None else _usage(len(renderer.render(prompt)), len(renderer.encode(text)))
        message = AIMessageChunk(
            content="", response_metadata=self._facts(name), usage_metadata=usage, chunk_position="last"
        )
        return ChatGenerationChunk(message=message)

    def _facts(self, name: str) -> dict[str, Any]:
        return {"model_name": name, "model_provider": "ragft_plugin"}

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
        if isinstance(tool_choice, Mapping):
            tool_choice = str(tool_choice["function"]["name"])
        chosen = _TOOL_CHOICES.get(tool_choice, tool_choice)
        return self.bind(tools=told, tool_choice=chosen, **kwargs)

    # ------------------------------------------------------------------------------------------ what LangChain asks

    @property
    def _llm_type(self) -> str:
        return "ragft-lora"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        # Two bases may have adapters of one name; a cache must tell them apart.
        folder = getattr(getattr(self.backend, "base", None), "folder", id(self.backend))
        names = ("model", "max_tokens", "temperature", "stop", "seed", "logprobs")
        return {"backend": str(folder), **{name: getattr(self, name) for name in names}}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        return {**params, "ls_provider": "ragft_plugin", "ls_model_name": kwargs.get("model") or self.model}

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of the base's own tokenizer, if the backend has one."""
        renderer = getattr(self.backend, "renderer", None)
        return super().get_token_ids(text) if renderer is None else list(renderer.encode(text))


def _generated(work: Generate) -> Course[list[Generation]]:
    made: list[Generation] = yield work
    return made


def _chunk(result: ChatResult) -> ChatGenerationChunk:
    """A whole message as the one chunk of a stream: tool calls are only known at the end."""
    message = result.generations[0].message
    assert isinstance(message, AIMessage)
    calls = [
        tool_call_chunk(name=one["name"], args=json.dumps(one["args"]), id=one["id"], index=i)
        for i, one in enumerate(message.tool_calls)
    ]
    calls += [
        tool_call_chunk(name=one["name"], args=one["args"], id=one["id"], index=len(calls) + i)
        for i, one in enumerate(message.invalid_tool_calls)
    ]
    return ChatGenerationChunk(
        message=AIMessageChunk(
            content=message.content,
            tool_call_chunks=calls,
            usage_metadata=message.usage_metadata,
            response_metadata=message.response_metadata,
            chunk_position="last",
        )
    )


def _usage(read: int, written: int) -> UsageMetadata:
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)


def _tokens(made: Generation) -> list[dict[str, Any]]:
    """Log-probabilities in the form that OpenAI's interface gave to the field; margins and entropies beside them."""
    logprobs = made.logprobs or ()
    nothing = (None,) * len(logprobs)
    rows = zip(logprobs, made.margins or nothing, made.entropies or nothing, strict=True)
    return [
        {"token": None, "logprob": logprob, "top_logprobs": [], "margin": margin, "entropy": entropy}
        for logprob, margin, entropy in rows
    ]
