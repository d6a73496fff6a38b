"""An LLM of LlamaIndex as a generator of the package, with prompts that can be seen and replaced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from collections.abc import Generator as SyncGenerator
from copy import copy
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.llms import LLM
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate
from llama_index.core.prompts.mixin import PromptDictType, PromptMixin, PromptMixinType
from llama_index.core.response_synthesizers import BaseSynthesizer
from pydantic import BaseModel

from ragft_plugin.errors import ConfigError
from ragft_plugin.llama_index.llm import LoraLLM
from ragft_plugin.llama_index.prompt_names import flat_prompts, update_flat_prompts
from ragft_plugin.llama_index.responses import generation_from
from ragft_plugin.llama_index.waiting import inherits, iterate
from ragft_plugin.prompts import INSTRUCTION
from ragft_plugin.types import Generation, Generator, Passage, Prompt

# The package's own prompts (``ragft_plugin.prompts.messages``) as LlamaIndex templates.
CLOSED_BOOK = ChatPromptTemplate.from_messages([("user", "{query_str}")])
OPEN_BOOK = ChatPromptTemplate.from_messages([("system", INSTRUCTION + "\n\n{context_str}"), ("user", "{query_str}")])
# What the package calls an option -> what most LLMs of LlamaIndex call it.
OPTION_NAMES = {"max_new_tokens": "max_tokens"}


class LLMGenerator(PromptMixin):
    """Answers prompts with an LLM of LlamaIndex; async where that one is, in threads where it is not.

    Args:
        llm: chat or completion model.
        open_book: template for questions with passages; knows ``{context_str}`` and ``{query_str}``.
        closed_book: template for questions without; knows ``{query_str}``.
        option_names: how the LLM calls the package's options, where it calls them differently.
        concurrency: prompts of one batch under way at once, async only.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        open_book: BasePromptTemplate | None = None,
        closed_book: BasePromptTemplate | None = None,
        option_names: Mapping[str, str] | None = None,
        concurrency: int = 8,
    ) -> None:
        self.llm = llm
        self._templates: PromptDictType = {
            "closed_book": closed_book or CLOSED_BOOK,
            "open_book": open_book or OPEN_BOOK,
        }
        self._option_names = OPTION_NAMES if option_names is None else option_names
        self._concurrency = concurrency

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """Answer each prompt, one after the other: LLMs of LlamaIndex know no batches."""
        return [self._ask(prompt, self._renamed(options)) for prompt in prompts]

    async def agenerate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """Answer the prompts concurrently, without blocking the event loop."""
        gate = asyncio.Semaphore(self._concurrency)

        async def one(prompt: Prompt) -> Generation:
            async with gate:
                return await self._aask(prompt, self._renamed(options))

        return list(await asyncio.gather(*map(one, prompts)))

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Yield pieces of one answer."""
        named = self._renamed(options)
        pieces: Iterator[ChatResponse | CompletionResponse]
        if self._chats:
            pieces = self.llm.stream_chat(self._messages(prompt), **named)
        else:
            pieces = self.llm.stream_complete(self._text(prompt), formatted=True, **named)
        for piece in pieces:
            if piece.delta:
                yield piece.delta

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[str]:
        """As ``stream``, without blocking the event loop."""
        if self._sync("astream_chat" if self._chats else "astream_complete"):
            async for text in iterate(self.stream(prompt, **options)):
                yield text
            return
        named = self._renamed(options)
        pieces: AsyncIterator[ChatResponse | CompletionResponse]
        if self._chats:
            pieces = await self.llm.astream_chat(self._messages(prompt), **named)
        else:
            pieces = await self.llm.astream_complete(self._text(prompt), formatted=True, **named)
        async for piece in pieces:
            if piece.delta:
                yield piece.delta

    def _ask(self, prompt: Prompt, options: dict[str, Any]) -> Generation:
        if self._chats:
            return generation_from(self.llm.chat(self._messages(prompt), **options))
        return generation_from(self.llm.complete(self._text(prompt), formatted=True, **options))

    async def _aask(self, prompt: Prompt, options: dict[str, Any]) -> Generation:
        if self._sync("achat" if self._chats else "acomplete"):
            return await asyncio.to_thread(self._ask, prompt, options)
        if self._chats:
            return generation_from(await self.llm.achat(self._messages(prompt), **options))
        return generation_from(await self.llm.acomplete(self._text(prompt), formatted=True, **options))

    @property
    def _chats(self) -> bool:
        return self.llm.metadata.is_chat_model

    def _sync(self, method: str) -> bool:
        return inherits(self.llm, method, CustomLLM)

    # ``_get_messages`` and ``_get_prompt`` are what ``LLM.predict`` uses: they add the LLM's system prompt and wrapper.
    # ``predict`` itself would throw token counts and log-probabilities away.
    def _messages(self, prompt: Prompt) -> list[ChatMessage]:
        template, fields = self._filled(prompt)
        *head, question = self.llm._get_messages(template, **fields)
        return [*head, *(ChatMessage(role=role, content=text) for role, text in prompt.turns), question]

    def _text(self, prompt: Prompt) -> str:
        if prompt.turns and self.llm.messages_to_prompt is not None:
            return self.llm.messages_to_prompt(self._messages(prompt))
        template, fields = self._filled(prompt)
        return self.llm._get_prompt(template, **fields)

    def _filled(self, prompt: Prompt) -> tuple[BasePromptTemplate, dict[str, str]]:
        if not prompt.passages:
            return self._templates["closed_book"], {"query_str": prompt.question}
        return self._templates["open_book"], {
            "query_str": prompt.question,
            "context_str": _numbered(prompt.passages),
        }

    def _renamed(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {self._option_names.get(name, name): value for name, value in options.items() if value is not None}

    def _get_prompts(self) -> PromptDictType:
        return self._templates

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        self._templates = {name: prompts_dict.get(name, template) for name, template in self._templates.items()}


class SynthesizerGenerator(PromptMixin):
    """Answers questions with passages by a response synthesizer, and those without by the LLM directly.

    A synthesizer answers "Empty Response" when it is given no nodes, so closed-book questions go round it.

    Args:
        synthesizer: any mode; it is not changed.
        closed_book: answers questions without passages.
    """

    def __init__(self, synthesizer: BaseSynthesizer, closed_book: LLMGenerator) -> None:
        self.closed_book = closed_book
        self._whole, self._streaming = copy(synthesizer), copy(synthesizer)
        # The synthesizer knows streaming as a state, not as an argument: one copy for each.
        self._whole._streaming, self._streaming._streaming = False, True

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """Answer each prompt."""
        return [self._ask(prompt, options) for prompt in prompts]

    async def agenerate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """As ``generate``, concurrently."""
        return list(await asyncio.gather(*(self._aask(prompt, options) for prompt in prompts)))

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Yield pieces of one answer."""
        if not prompt.passages:
            yield from self.closed_book.stream(prompt, **options)
            return
        answer = self._streaming.get_response(prompt.question, _texts(prompt.passages))
        if isinstance(answer, SyncGenerator):
            yield from answer
        else:
            yield _said(answer)

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[str]:
        """As ``stream``, without blocking the event loop."""
        if not prompt.passages:
            pieces = self.closed_book.astream(prompt, **options)
        elif self._sync:
            pieces = iterate(self.stream(prompt, **options))
        else:
            answer = await self._streaming.aget_response(prompt.question, _texts(prompt.passages))
            if not isinstance(answer, AsyncIterator):
                yield _said(answer)
                return
            pieces = answer
        async for piece in pieces:
            yield piece

    def _ask(self, prompt: Prompt, options: dict[str, Any]) -> Generation:
        if not prompt.passages:
            return self.closed_book.generate([prompt], **options)[0]
        return Generation(_said(self._whole.get_response(prompt.question, _texts(prompt.passages))))

    async def _aask(self, prompt: Prompt, options: dict[str, Any]) -> Generation:
        if not prompt.passages:
            return (await self.closed_book.agenerate([prompt], **options))[0]
        if self._sync:
            return await asyncio.to_thread(self._ask, prompt, options)
        return Generation(_said(await self._whole.aget_response(prompt.question, _texts(prompt.passages))))

    @property
    def _sync(self) -> bool:
        llm = self._whole._llm
        return any(inherits(llm, method, CustomLLM) for method in ("achat", "acomplete"))

    def _get_prompts(self) -> PromptDictType:
        closed = {"closed_book": self.closed_book.get_prompts()["closed_book"]}
        return {**closed, **flat_prompts(self._whole)}

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        for one in (self.closed_book, self._whole, self._streaming):
            update_flat_prompts(one, prompts_dict)


def from_llm(source: LLM | Generator, *, synthesizer: BaseSynthesizer | None = None, **settings: Any) -> Generator:
    """A generator of the package made of an LLM of LlamaIndex; one of the package is returned as it is.

    A ``LoraLLM`` gives the generator of its adapter, unless templates or a synthesizer are to stand in front of it.

    Args:
        source: what answers. Names such as "default" are not taken: they would resolve to a hosted model.
        synthesizer: answers questions that have passages, in place of the ``open_book`` template.
        **settings: of ``LLMGenerator``.

    Raises:
        ConfigError: if it is neither.
    """
    # The model behind it renders passages as its adapters saw them in training, which no template here could.
    if isinstance(source, LoraLLM) and synthesizer is None and not settings:
        return source.generator()
    if isinstance(source, LLM):
        plain = LLMGenerator(source, **settings)
        return plain if synthesizer is None else SynthesizerGenerator(synthesizer, plain)
    if isinstance(source, Generator):
        return source
    raise ConfigError(f"expected a LlamaIndex LLM or a generator, got {type(source).__name__}: {source!r}")


def _said(answer: object) -> str:
    """The text of what a synthesizer returned; an object of ``output_cls`` as JSON."""
    return answer.model_dump_json() if isinstance(answer, BaseModel) else str(answer)


def _texts(passages: Sequence[Passage]) -> list[str]:
    return [passage.text for passage in passages]


def _numbered(passages: Sequence[Passage]) -> str:
    return "\n\n".join(f"[{i}] {passage.text}" for i, passage in enumerate(passages, 1))
