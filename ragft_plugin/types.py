"""The vocabulary: passage, answer, evidence, decision, and the protocols of what a user brings.

Values are frozen dataclasses. What crosses a border (files, logs) is a pydantic model and lives beside its
reader: outcomes in ``evaluation.outcomes``, settings in ``config``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Stage = Literal["question", "passages", "draft", "agreement"]
STAGES: tuple[Stage, ...] = ("question", "passages", "draft", "agreement")
Metadata = Mapping[str, Any]
# Equality, in, range, and/or/not over metadata: {"source": "a.md"}, {"year": {"$gte": 2020}},
# {"$or": [{...}, {...}]}. The grammar stands in ragft_plugin.retrieval.filters.
Filter = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document.

    Attributes:
        id: stable identifier, the store's own.
        text: what it says.
        score: relevance to the query it was retrieved for; higher is better, comparable within one query.
        metadata: source, page, offsets, time of change, ... (JSON values).
    """

    id: str
    text: str
    score: float = 0.0
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one generation read and wrote."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """What a generator returns for one prompt.

    Attributes:
        text: the answer, stripped of special tokens.
        logprobs: natural log-probability of each generated token, or None if the backend tells none.
        margins: log-probability of the chosen token minus that of the runner-up, per token, or None.
        entropies: entropy of the next-token distribution in nats, per token, or None.
        usage: tokens read and written.
        finish_reason: "stop" (end token or stop string) or "length".
    """

    text: str
    logprobs: tuple[float, ...] | None = None
    margins: tuple[float, ...] | None = None
    entropies: tuple[float, ...] | None = None
    usage: Usage = Usage()
    finish_reason: Literal["stop", "length"] = "stop"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question put to a generator, with passages (open-book) or without (closed-book).

    ``passages`` is None for closed-book; an empty tuple says that retrieval found nothing.
    Built by ``ragft_plugin.prompts``, which also renders it. ``turns`` are what was said before, oldest first, as
    pairs of role ("system", "user" or "assistant") and text.
    """

    question: str
    passages: tuple[Passage, ...] | None = None
    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """Which arm answers a query, and why.

    Attributes:
        id: joins a late reward to the decision.
        arm: the chosen arm.
        propensities: probability of each arm under the policy that chose, sums to 1.
        values: predicted reward of each arm minus its weighted marginal cost.
        confidence: calibrated probability that the chosen arm's answer is good, in [0, 1].
        stage: the last stage of evidence that was looked at.
        stage_probability: probability of having gathered exactly these stages (1 without exploration).
        reasons: what decided, in words, most important first.
        forced: the caller named the arm.
        fallback: the arm that answered instead, after the chosen one failed before its first token.
        router_version: fingerprint of the router.
    """

    id: str
    arm: str
    propensities: Mapping[str, float]
    values: Mapping[str, float] = field(default_factory=dict)
    confidence: float = 0.0
    stage: Stage = "question"
    stage_probability: float = 1.0
    reasons: tuple[str, ...] = ()
    forced: bool = False
    fallback: str | None = None
    router_version: str = ""


@dataclass(frozen=True, slots=True)
class Gather:
    """The router's wish for one more stage of evidence.

    Attributes:
        stage: what to gather next: passages, draft or agreement.
        arm: the arm to run (draft and agreement), None for passages.
        probability: probability of this choice under the policy (1 without exploration).
    """

    stage: Stage
    arm: str | None = None
    probability: float = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and where it came from.

    Attributes:
        text: the answer.
        arm: the arm that gave it.
        passages: what it was given to read, in order (empty for closed-book).
        decision: the decision that led here; None for a draft.
        logprobs, margins, entropies, usage: as in ``Generation``.
        seconds: wall time from question to answer.
    """

    text: str
    arm: str
    passages: tuple[Passage, ...] = ()
    decision: Decision | None = None
    logprobs: tuple[float, ...] | None = None
    margins: tuple[float, ...] | None = None
    entropies: tuple[float, ...] | None = None
    usage: Usage = Usage()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one query so far. Lives for one call; a new stage makes a new value.

    Attributes:
        query: the question.
        scope: access filter, given by the caller, never taken from the query text.
        embedding: the query's vector, shape (dim,), or None.
        passages: retrieved passages, best first; None while retrieval has not run.
        drafts: answers of arms that have already run.
        spent: cost of each stage gathered so far, in the user's unit.
        facts: signals a user adds, name -> value.
    """

    query: str
    scope: Filter | None = None
    embedding: FloatArray | None = None
    passages: tuple[Passage, ...] | None = None
    drafts: Mapping[str, Answer] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Retriever(Protocol):
    """Finds passages. ``KnowledgeBase`` is one; converters make one of any framework's retriever."""

    def retrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        """Return up to ``k`` passages per query, best first."""
        ...


@runtime_checkable
class Generator(Protocol):
    """Answers prompts. May also have ``agenerate`` and ``astream``, where async is real."""

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """Answer each prompt, as one batch.

        Args:
            prompts: one per answer wanted.
            **options: ``max_new_tokens``, ``temperature``, ``stop``, ``seed``, ``timeout``; None or absent
                means the generator's own default.
        """
        ...

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Yield pieces of one answer as they are made; their concatenation is the text of ``generate``."""
        ...


@runtime_checkable
class AsyncGenerator(Generator, Protocol):
    """A generator whose async methods wait without holding a thread or the loop."""

    async def agenerate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """As ``generate``."""
        ...

    def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[str]:
        """As ``stream``."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Turns texts into vectors."""

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return unit vectors, shape (n, dim)."""
        ...

    @property
    def fingerprint(self) -> str:
        """Name and version of the vectors; vectors of different fingerprints are never compared."""
        ...
