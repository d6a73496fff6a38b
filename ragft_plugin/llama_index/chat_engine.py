"""A chat engine that routes each turn: the turn is condensed to a question of its own, and that is routed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_history_str
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager, trace_method
from llama_index.core.chat_engine.condense_question import DEFAULT_PROMPT
from llama_index.core.chat_engine.types import AgentChatResponse, BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.llms import LLM, CustomLLM
from llama_index.core.memory import BaseMemory, ChatMemoryBuffer
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.prompts.mixin import PromptDictType, PromptMixin, PromptMixinType
from llama_index.core.tools import ToolOutput

from ragft_plugin.llama_index.prompt_names import flat_prompts, update_flat_prompts
from ragft_plugin.llama_index.query_engine import RoutedQueryEngine
from ragft_plugin.llama_index.waiting import inherits


@dataclass
class RoutedChatStream(StreamingAgentChatResponse):
    """A streamed turn, read straight from the answer, with no thread between.

    Attributes:
        metadata: as of the engine's response; ``metadata["decision"]`` is the decision.
    """

    is_writing_to_memory: bool = False
    metadata: dict[str, Any] | None = None


class RoutedChatEngine(BaseChatEngine, PromptMixin):
    """Talks by way of a routed query engine. The first turn is its own question and costs no condensing.

    Args:
        query_engine: decides and answers; whether it streams does not matter here.
        llm: condenses follow-ups.
        memory: of the conversation; a buffer of the LLM's context window by default.
        condense_prompt: knows ``{chat_history}`` and ``{question}``.
        callback_manager: told of each turn.

    Example:
        >>> chat = RoutedChatEngine(engine, llm)  # doctest: +SKIP
        >>> chat.chat("Which port does the relay use?").metadata["decision"].arm  # doctest: +SKIP
        'rag'
    """

    def __init__(
        self,
        query_engine: RoutedQueryEngine,
        llm: LLM,
        *,
        memory: BaseMemory | None = None,
        condense_prompt: BasePromptTemplate | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        self._whole = query_engine.with_streaming(False)
        self._streaming = query_engine.with_streaming(True)
        self._llm = llm
        self._memory = memory or ChatMemoryBuffer.from_defaults(llm=llm)
        self._condense_prompt = condense_prompt or DEFAULT_PROMPT
        self.callback_manager = callback_manager or CallbackManager([])

    @trace_method("chat")
    def chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        """Answer one turn."""
        question = self._condensed(message, self._memory.get(message) if chat_history is None else chat_history)
        response = self._whole.query(question)
        assert isinstance(response, Response)
        self._memory.put_messages(_turns(message, response.response or ""))
        return AgentChatResponse(response.response or "", **_shown(question, response))

    @trace_method("chat")
    async def achat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        """As ``chat``, without blocking the event loop."""
        history = await self._memory.aget(message) if chat_history is None else chat_history
        question = await self._acondensed(message, history)
        response = await self._whole.aquery(question)
        assert isinstance(response, Response)
        await self._memory.aput_messages(_turns(message, response.response or ""))
        return AgentChatResponse(response.response or "", **_shown(question, response))

    @trace_method("chat")
    def stream_chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> StreamingAgentChatResponse:
        """Answer one turn, piece by piece; it enters the memory once it is complete."""
        question = self._condensed(message, self._memory.get(message) if chat_history is None else chat_history)
        response = self._streaming.query(question)
        assert isinstance(response, StreamingResponse)
        pieces = self._remembered(message, response.response_gen)
        return RoutedChatStream(chat_stream=pieces, **_shown(question, response))

    @trace_method("chat")
    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> StreamingAgentChatResponse:
        """As ``stream_chat``, without blocking the event loop."""
        history = await self._memory.aget(message) if chat_history is None else chat_history
        question = await self._acondensed(message, history)
        response = await self._streaming.aquery(question)
        assert isinstance(response, AsyncStreamingResponse)
        pieces = self._aremembered(message, response.async_response_gen())
        return RoutedChatStream(achat_stream=pieces, **_shown(question, response))

    def reset(self) -> None:
        """Forget the conversation."""
        self._memory.reset()

    @property
    def chat_history(self) -> list[ChatMessage]:
        """The conversation so far."""
        return self._memory.get_all()

    def _condensed(self, message: str, history: list[ChatMessage]) -> str:
        if not history:
            return message
        fields = {"question": message, "chat_history": messages_to_history_str(history)}
        return self._llm.predict(self._condense_prompt, **fields)

    async def _acondensed(self, message: str, history: list[ChatMessage]) -> str:
        if not history:
            return message
        fields = {"question": message, "chat_history": messages_to_history_str(history)}
        if inherits(self._llm, "acomplete", CustomLLM):
            return await asyncio.to_thread(lambda: self._llm.predict(self._condense_prompt, **fields))
        return await self._llm.apredict(self._condense_prompt, **fields)

    def _remembered(self, message: str, pieces: Iterator[str]) -> Generator[ChatResponse, None, None]:
        text = ""
        for piece in pieces:
            text += piece
            yield _grown(text, piece)
        self._memory.put_messages(_turns(message, text))

    async def _aremembered(self, message: str, pieces: AsyncIterator[str]) -> AsyncGenerator[ChatResponse, None]:
        text = ""
        async for piece in pieces:
            text += piece
            yield _grown(text, piece)
        await self._memory.aput_messages(_turns(message, text))

    def _get_prompts(self) -> PromptDictType:
        return {"condense_prompt": self._condense_prompt, **flat_prompts(self._whole)}

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        self._condense_prompt = prompts_dict.get("condense_prompt", self._condense_prompt)
        update_flat_prompts(self._whole, prompts_dict)


def _shown(question: str, response: Response | StreamingResponse | AsyncStreamingResponse) -> dict[str, Any]:
    content = str(response) if isinstance(response, Response) else ""
    source = ToolOutput(content=content, tool_name="query_engine", raw_input={"query": question}, raw_output=response)
    return {"sources": [source], "source_nodes": response.source_nodes, "metadata": response.metadata}


def _turns(message: str, answer: str) -> list[ChatMessage]:
    return [
        ChatMessage(role=MessageRole.USER, content=message),
        ChatMessage(role=MessageRole.ASSISTANT, content=answer),
    ]


def _grown(text: str, piece: str) -> ChatResponse:
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=piece)
