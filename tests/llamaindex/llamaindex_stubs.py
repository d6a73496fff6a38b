"""Routers, LLMs, retrievers and stores whose every answer can be worked out on paper."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    LogProb,
)
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from ragft_plugin.pipeline import Pipeline
from ragft_plugin.types import Decision, Evidence, Filter, Gather, Generation, Passage, Prompt

FACTS = {
    "p1": "The relay of Norden uses port 4100.",
    "p2": "The relay of Sulm uses port 4200.",
    "p3": "Norden has nine wells.",
}


VOCABULARY = sorted({word for text in FACTS.values() for word in text.lower().strip(".").split()})


class WordRouter:
    """Chooses by a word of the question; asks for passages first if told to."""

    def __init__(self, arms: dict[str, str], default: str, *, gather: bool = False) -> None:
        self.arms = tuple(dict.fromkeys([*arms.values(), default]))
        self.calls = 0
        self._arms, self._default, self._gather = arms, default, gather

    def next(
        self, evidence: Sequence[Evidence], *, cost_weight: float | None = None, arm: str | None = None
    ) -> list[Decision | Gather]:
        return [self._one(e, arm) for e in evidence]

    def _one(self, evidence: Evidence, forced: str | None) -> Decision | Gather:
        if self._gather and evidence.passages is None:
            return Gather("passages")
        self.calls += 1
        words = evidence.query.lower().split()
        chosen = forced or next((arm for word, arm in self._arms.items() if word in words), self._default)
        return Decision(
            f"d{self.calls}",
            chosen,
            {name: float(name == chosen) for name in self.arms},
            {name: 0.9 if name == chosen else 0.1 for name in self.arms},
            0.9,
            "passages" if self._gather else "question",
            reasons=(f"the question goes to {chosen}",),
            forced=forced is not None,
            router_version="words-1",
        )


class PlainGenerator:
    """A generator of the package: says what it was asked, and with what."""

    def __init__(self, name: str, *, fail: Callable[[], Exception] | None = None, delay: float = 0.0) -> None:
        self.name, self.fail, self.delay = name, fail, delay
        self.options: list[dict[str, Any]] = []

    def _say(self, prompt: Prompt) -> str:
        if self.fail is not None:
            raise self.fail()
        read = "nothing" if prompt.passages is None else ",".join(p.id for p in prompt.passages)
        return f"{self.name} read {read} for {prompt.question}"

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        self.options.append(options)
        time.sleep(self.delay)
        return [Generation(self._say(prompt)) for prompt in prompts]

    def stream(self, prompt: Prompt, **options: Any) -> Any:
        self.options.append(options)
        for i, word in enumerate(self._say(prompt).split(" ")):
            time.sleep(self.delay)
            yield word if i == 0 else " " + word


class PlainRetriever:
    """A retriever of the package over ``FACTS``; best first are those that share most words."""

    def __init__(self) -> None:
        self.calls = 0

    def retrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        self.calls += 1
        return [ranked(query)[:k] for query in queries]


def ranked(query: str) -> list[Passage]:
    words = set(query.lower().strip("?").split())
    found = [
        Passage(i, t, float(len(words & set(t.lower().strip(".").split()))), {"source": i}) for i, t in FACTS.items()
    ]
    return sorted(found, key=lambda p: -p.score)


class SleepyRetriever(BaseRetriever):
    """A retriever of LlamaIndex that knows no async and takes its time."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.calls = 0
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.calls += 1
        time.sleep(self.delay)
        return [
            NodeWithScore(node=TextNode(id_=p.id, text=p.text, metadata=dict(p.metadata)), score=p.score)
            for p in ranked(query_bundle.query_str)
        ]


class AsyncRetriever(SleepyRetriever):
    """The same, with an async twin of its own."""

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        await asyncio.sleep(self.delay)
        delay, self.delay = self.delay, 0.0
        try:
            return self._retrieve(query_bundle)
        finally:
            self.delay = delay


class EchoLLM(CustomLLM):
    """A completion model of LlamaIndex that returns its prompt; sync only, so async is derived."""

    delay: float = 0.0
    chats: bool = False
    seen: list[dict[str, Any]] = []  # noqa: RUF012 -- pydantic copies it per instance

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="echo", context_window=4096, num_output=64, is_chat_model=self.chats)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.seen.append(kwargs)
        time.sleep(self.delay)
        return CompletionResponse(
            text=f"<{prompt}>",
            logprobs=[[LogProb(token="a", logprob=-0.5), LogProb(token="b", logprob=-1.5)]],
            raw={"usage": {"prompt_tokens": 7, "completion_tokens": 2}},
        )

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        self.seen.append(kwargs)

        def pieces() -> CompletionResponseGen:
            said = ""
            for piece in ("<", prompt, ">"):
                time.sleep(self.delay)
                said += piece
                yield CompletionResponse(text=said, delta=piece)

        return pieces()


class AsyncEchoLLM(EchoLLM):
    """The same, with async methods of its own."""

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        await asyncio.sleep(self.delay)
        return CompletionResponse(text=f"<{prompt}>")

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        async def pieces() -> CompletionResponseAsyncGen:
            said = ""
            for piece in ("<", prompt, ">"):
                await asyncio.sleep(self.delay)
                said += piece
                yield CompletionResponse(text=said, delta=piece)

        return pieces()


class WordEmbedding(BaseEmbedding):
    """One dimension for each word of ``FACTS``, and one for all others."""

    delay: float = 0.0

    def _vector(self, text: str) -> list[float]:
        words = text.lower().strip(".?").split()
        return [float(words.count(word)) for word in VOCABULARY] + [0.01]

    def _get_text_embedding(self, text: str) -> list[float]:
        time.sleep(self.delay)
        return self._vector(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        await asyncio.sleep(self.delay)
        return self._vector(query)


def plain_pipeline(*, delay: float = 0.0, gather: bool = False, **settings: Any) -> Pipeline:
    """base and rag over stub parts; a question with "port" or "wells" goes to rag."""
    from ragft_plugin.arms import Arm

    generator, retriever = PlainGenerator("model", delay=delay), PlainRetriever()
    router = WordRouter({"port": "rag", "wells": "rag"}, "base", gather=gather)
    arms = [Arm("base", generator), Arm("rag", generator, retriever, cost=1.0)]
    return Pipeline(arms, router, **{"k": 2, **settings})
