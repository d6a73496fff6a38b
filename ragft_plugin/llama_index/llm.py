"""An LLM of LlamaIndex over one local base with many adapters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from llama_index.core.base.llms.generic_utils import (
    astream_completion_response_to_chat_response,
    completion_response_to_chat_response,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    LogProb,
)
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from pydantic import Field, PrivateAttr

from ragft_plugin.llama_index.waiting import iterate
from ragft_plugin.types import AsyncGenerator, Generation, Generator, Prompt

# What LlamaIndex calls an option -> what the package calls it.
_OPTION_NAMES = {"max_tokens": "max_new_tokens"}


class AdapterModel(Protocol):
    """A base with adapters; ``ragft_plugin.lora.LoraModel`` is one."""

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may take together."""
        ...

    def generator(self, adapter: str | None = None) -> Generator:
        """What answers with an adapter, or with the base alone."""
        ...


class LoraLLM(CustomLLM):
    """Chat and completion with a local model, the adapter chosen per call; async waits without holding the loop.

    Args:
        model: a ``LoraModel``.
        adapter: used where a call names none; None is the base alone.
        max_new_tokens: tokens to write at most.
        temperature: 0 takes the likeliest token.

    Each call takes ``adapter`` and the generator's options (``max_new_tokens`` or ``max_tokens``, ``temperature``,
    ``stop``, ``seed``, ``timeout``).

    Example:
        >>> llm = LoraLLM(LoraModel.load("models/base"), adapter="legal")  # doctest: +SKIP
        >>> llm.complete("Who signs?").text  # doctest: +SKIP
        'The notary.'
        >>> llm.complete("Who signs?", adapter=None).text  # doctest: +SKIP
        'I do not know.'
    """

    adapter: str | None = Field(default=None, description="Adapter used where a call names none.")
    max_new_tokens: int = Field(default=128, description="Tokens to write at most.", gt=0)
    temperature: float = Field(default=0.0, description="0 takes the likeliest token.", ge=0)
    _model: AdapterModel = PrivateAttr()

    def __init__(self, model: AdapterModel, **settings: Any) -> None:
        settings.setdefault("messages_to_prompt", one_turn)
        super().__init__(**settings)
        self._model = model

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex writes the class down."""
        return "LoraLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks of a model before it fills its window."""
        return LLMMetadata(
            context_window=self._model.context,
            num_output=self.max_new_tokens,
            is_chat_model=True,
            model_name=self.adapter or "base",
        )

    def generator(self, adapter: str | None = None) -> Generator:
        """The generator behind this LLM, which renders passages as the adapter saw them in training."""
        return self._model.generator(adapter or self.adapter)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer one prompt, taken as one turn of a user."""
        generator, options = self._call(kwargs)
        return _completion(generator.generate([Prompt(prompt)], **options)[0])

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As ``complete``, without blocking the event loop."""
        generator, options = self._call(kwargs)
        if isinstance(generator, AsyncGenerator):
            return _completion((await generator.agenerate([Prompt(prompt)], **options))[0])
        made = await asyncio.to_thread(lambda: generator.generate([Prompt(prompt)], **options))
        return _completion(made[0])

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer one prompt, piece by piece."""
        generator, options = self._call(kwargs)
        return _growing(generator.stream(Prompt(prompt), **options))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """As ``stream_complete``, without blocking the event loop."""
        generator, options = self._call(kwargs)

        async def gen() -> CompletionResponseAsyncGen:
            if isinstance(generator, AsyncGenerator):
                pieces = generator.astream(Prompt(prompt), **options)
            else:
                pieces = iterate(iter(generator.stream(Prompt(prompt), **options)))
            text = ""
            async for piece in pieces:
                text += piece
                yield CompletionResponse(text=text, delta=piece)

        return gen()

    # ``chat`` and ``stream_chat`` of the base class call the two above; its async ones would call them in the loop.
    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As ``chat``, without blocking the event loop."""
        prompt = self.messages_to_prompt(messages)  # type: ignore[misc] # a validator has filled it in
        return completion_response_to_chat_response(await self.acomplete(prompt, formatted=True, **kwargs))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As ``stream_chat``, without blocking the event loop."""
        prompt = self.messages_to_prompt(messages)  # type: ignore[misc] # a validator has filled it in
        pieces = await self.astream_complete(prompt, formatted=True, **kwargs)
        return astream_completion_response_to_chat_response(pieces)

    def _call(self, kwargs: dict[str, Any]) -> tuple[Generator, dict[str, Any]]:
        generator = self._model.generator(kwargs.pop("adapter", self.adapter))
        named = {_OPTION_NAMES.get(name, name): value for name, value in kwargs.items() if value is not None}
        return generator, {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, **named}


def one_turn(messages: Sequence[ChatMessage]) -> str:
    r"""A conversation as the one turn that the model's chat template is then given.

    Instructions come first; turns before the last are told as a transcript.

    Example:
        >>> one_turn([ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Who?")])
        'Be brief.\n\nWho?'
    """
    system = [m.content or "" for m in messages if m.role == "system"]
    turns = [m for m in messages if m.role != "system"]
    last = [turns[-1].content or ""] if len(turns) == 1 else []
    told = [f"{m.role.value}: {m.content or ''}" for m in turns] if len(turns) > 1 else last
    return "\n\n".join([*system, "\n".join(told)])


def _completion(made: Generation) -> CompletionResponse:
    usage = {"prompt_tokens": made.usage.prompt_tokens, "completion_tokens": made.usage.completion_tokens}
    return CompletionResponse(
        text=made.text,
        additional_kwargs=usage,
        raw={"usage": usage, "finish_reason": made.finish_reason},
        logprobs=_logprobs(made),
    )


def _logprobs(made: Generation) -> list[list[LogProb]] | None:
    """For each token its log-probability, and the runner-up's where the margin is known."""
    if made.logprobs is None:
        return None
    if made.margins is None:
        return [[LogProb(logprob=chosen)] for chosen in made.logprobs]
    both = zip(made.logprobs, made.margins, strict=True)
    return [[LogProb(logprob=chosen), LogProb(logprob=chosen - margin)] for chosen, margin in both]


def _growing(pieces: Iterator[str]) -> CompletionResponseGen:
    text = ""
    for piece in pieces:
        text += piece
        yield CompletionResponse(text=text, delta=piece)
