"""Small parts of a pipeline whose every move can be counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any
from uuid import uuid4

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForLLMRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from pydantic import Field

from ragft_plugin.types import Decision, Evidence, Gather, Generation, Prompt

TOWNS = {"Avel": "Brin", "Corda": "Delo", "Esk": "Fars"}
DOCUMENTS = [
    Document(f"The capital of {land} is {town}.", id=land, metadata={"source": f"{land}.md", "land": land})
    for land, town in TOWNS.items()
]


class WordRouter:
    """Decides by a word of the question: the first arm whose rule holds; counts what it decides."""

    def __init__(self, *rules: tuple[str, str], otherwise: str = "base", stages: Sequence[Gather] = ()) -> None:
        self.rules = rules
        self.otherwise = otherwise
        self.stages = list(stages)
        self.decided: list[str] = []
        self.calls: list[dict[str, Any]] = []

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys([*(arm for _, arm in self.rules), self.otherwise]))

    def next(
        self, evidence: Sequence[Evidence], *, cost_weight: float | None = None, arm: str | None = None
    ) -> list[Decision | Gather]:
        self.calls.append({"n": len(evidence), "cost_weight": cost_weight, "arm": arm})
        return [self._next(one, arm) for one in evidence]

    def _next(self, evidence: Evidence, forced: str | None) -> Decision | Gather:
        for wish in self.stages:
            there = evidence.passages is not None if wish.stage == "passages" else wish.arm in evidence.drafts
            if not there and forced is None:
                return wish
        self.decided.append(evidence.query)
        arm = forced or next((arm for word, arm in self.rules if word in evidence.query), self.otherwise)
        propensities = {name: float(name == arm) for name in dict.fromkeys([*self.arms, arm])}
        return Decision(uuid4().hex, arm, propensities, confidence=0.75, reasons=("by a word",), forced=bool(forced))


class Echo:
    """A plain generator: says who it is, what it read and what it was asked."""

    def __init__(self, name: str = "echo", *, delay: float = 0.0, fails: bool = False, fails_after: int = -1) -> None:
        self.name = name
        self.delay = delay
        self.fails = fails
        self.fails_after = fails_after
        self.batches: list[int] = []
        self.options: list[dict[str, Any]] = []

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        self.batches.append(len(prompts))
        self.options.append(options)
        time.sleep(self.delay)
        if self.fails:
            raise RuntimeError(f"{self.name} is out of order")
        return [Generation(self.text(prompt)) for prompt in prompts]

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        if self.fails:
            raise RuntimeError(f"{self.name} is out of order")
        for i, word in enumerate(self.text(prompt).split(" ")):
            if i == self.fails_after:
                raise RuntimeError(f"{self.name} broke down")
            time.sleep(self.delay)
            yield word if i == 0 else f" {word}"

    def text(self, prompt: Prompt) -> str:
        read = ",".join(passage.id for passage in prompt.passages or ()) or "nothing"
        return f"{self.name} read {read}: {prompt.question}"


class ListRetriever(BaseRetriever):
    """Finds the documents whose land is named in the question, then all others; natively async."""

    documents: list[Document] = Field(default_factory=lambda: list(DOCUMENTS))
    k: int = 3
    delay: float = 0.0
    asked: list[str] = Field(default_factory=list)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        self.asked.append(query)
        ranked = sorted(self.documents, key=lambda one: one.metadata["land"] not in query)
        return ranked[: k or self.k]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        await asyncio.sleep(self.delay)
        return self._get_relevant_documents(query, run_manager=run_manager.get_sync(), k=k)


class ReadingChatModel(BaseChatModel):
    """A chat model that answers from the passages it is shown, else from its own table; streams word by word."""

    name: str | None = "reader"
    knows: dict[str, str] = Field(default_factory=dict)
    delay: float = 0.0
    fails: bool = False
    fails_after: int = -1
    calls: list[dict[str, Any]] = Field(default_factory=list)
    running: list[int] = Field(default_factory=lambda: [0, 0])

    @property
    def _llm_type(self) -> str:
        return "reading"

    def _text(self, messages: list[BaseMessage], **kwargs: Any) -> str:
        self.calls.append({"messages": messages, **kwargs})
        if self.fails:
            raise RuntimeError(f"{self.name} is out of order")
        question = str(messages[-1].text)
        if messages[0].type == "system":
            for line in str(messages[0].text).splitlines():
                if any(land in question and land in line for land in TOWNS):
                    return f"{line.rstrip('.').split()[-1]} it is [1]"
            return "I do not know."
        return next((town for land, town in self.knows.items() if land in question), f"{self.name} guesses")

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        time.sleep(self.delay)
        return _result(self._text(messages, stop=stop, **kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.running[0] += 1
        self.running[1] = max(self.running)
        try:
            await asyncio.sleep(self.delay)
            return _result(self._text(messages, stop=stop, **kwargs))
        finally:
            self.running[0] -= 1

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self._chunks(self._text(messages, stop=stop, **kwargs)):
            time.sleep(self.delay)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        self.running[0] += 1
        try:
            for chunk in self._chunks(self._text(messages, stop=stop, **kwargs)):
                await asyncio.sleep(self.delay)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
        finally:
            self.running[0] -= 1

    def _chunks(self, text: str) -> Iterator[ChatGenerationChunk]:
        for i, word in enumerate(text.split(" ")):
            if i == self.fails_after:
                raise RuntimeError(f"{self.name} broke down")
            yield ChatGenerationChunk(message=AIMessageChunk(word if i == 0 else f" {word}"))


def _result(text: str) -> ChatResult:
    usage = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    content = [
        {
            "token": "a",
            "logprob": -0.1,
            "top_logprobs": [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -3}],
        },
        {
            "token": "c",
            "logprob": -0.2,
            "top_logprobs": [{"token": "c", "logprob": -0.2}, {"token": "d", "logprob": -2}],
        },
    ]
    message = AIMessage(text, usage_metadata=usage, response_metadata={"logprobs": {"content": content}})
    return ChatResult(generations=[ChatGeneration(message=message)])


def forbidden(*_: Any, **__: Any) -> Any:
    """For what must not be called."""
    raise AssertionError("this must not be called")


def times(seconds: float, call: Callable[[], Any]) -> Any:
    """The value of a call that must be over in time."""
    began = time.perf_counter()
    value = call()
    assert time.perf_counter() - began < seconds
    return value


class EchoBackend:
    """Serves an echo per adapter."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.made: dict[str | None, Echo] = {}

    def generator(self, adapter: str | None = None) -> Echo:
        return self.made.setdefault(adapter, Echo(adapter or "base", **self.options))


class ScriptedBackend:
    """Returns prepared texts one after the other, and keeps the prompts."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.prompts: list[Prompt] = []

    def generator(self, adapter: str | None = None) -> ScriptedBackend:
        return self

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        self.prompts += prompts
        return [Generation(self.texts.pop(0)) for _ in prompts]

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        yield self.generate([prompt])[0].text
