"""An LLM of LlamaIndex over one local base with many adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Protocol

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from pydantic import Field, PrivateAttr

from ragft_plugin.llama_index.responses import chat_from, completion_from, prompt_from
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
        return completion_from(self._made(Prompt(prompt), kwargs))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As ``complete``, without blocking the event loop."""
        return completion_from(await self._amade(Prompt(prompt), kwargs))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer one prompt, piece by piece."""

        def gen() -> CompletionResponseGen:
            for text, piece in self._grown(Prompt(prompt), kwargs):
                yield CompletionResponse(text=text, delta=piece)

        return gen()

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """As ``stream_complete``, without blocking the event loop."""

        async def gen() -> CompletionResponseAsyncGen:
            async for text, piece in self._agrown(Prompt(prompt), kwargs):
                yield CompletionResponse(text=text, delta=piece)

        return gen()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation; the model's own chat template renders its turns."""
        return chat_from(self._made(prompt_from(messages), kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As ``chat``, without blocking the event loop."""
        return chat_from(await self._amade(prompt_from(messages), kwargs))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a conversation, piece by piece."""
        prompt = prompt_from(messages)

        def gen() -> ChatResponseGen:
            for text, piece in self._grown(prompt, kwargs):
                yield ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=piece)

        return gen()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As ``stream_chat``, without blocking the event loop."""
        prompt = prompt_from(messages)

        async def gen() -> ChatResponseAsyncGen:
            async for text, piece in self._agrown(prompt, kwargs):
                yield ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=piece)

        return gen()

    def _made(self, prompt: Prompt, kwargs: dict[str, Any]) -> Generation:
        generator, options = self._call(kwargs)
        return generator.generate([prompt], **options)[0]

    async def _amade(self, prompt: Prompt, kwargs: dict[str, Any]) -> Generation:
        generator, options = self._call(kwargs)
        if isinstance(generator, AsyncGenerator):
            return (await generator.agenerate([prompt], **options))[0]
        return (await asyncio.to_thread(lambda: generator.generate([prompt], **options)))[0]

    def _grown(self, prompt: Prompt, kwargs: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """The text so far, and its last piece."""
        generator, options = self._call(kwargs)
        text = ""
        for piece in generator.stream(prompt, **options):
            text += piece
            yield text, piece

    async def _agrown(self, prompt: Prompt, kwargs: dict[str, Any]) -> AsyncIterator[tuple[str, str]]:
        generator, options = self._call(kwargs)
        if isinstance(generator, AsyncGenerator):
            pieces = generator.astream(prompt, **options)
        else:
            pieces = iterate(iter(generator.stream(prompt, **options)))
        text = ""
        async for piece in pieces:
            text += piece
            yield text, piece

    def _call(self, kwargs: dict[str, Any]) -> tuple[Generator, dict[str, Any]]:
        asked = dict(kwargs)
        generator = self._model.generator(asked.pop("adapter", self.adapter))
        named = {_OPTION_NAMES.get(name, name): value for name, value in asked.items() if value is not None}
        return generator, {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, **named}
