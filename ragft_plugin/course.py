"""Work to be done, and the two ways of doing it.

A course is a generator that yields work (``Retrieve``, ``Generate``), is sent the result or thrown the error, and
returns a value. ``drive`` runs one with plain calls; ``adrive`` awaits, so that the event loop is never blocked.
What happens in which order is thus written once for both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator as Pieces
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ragft_plugin.arms import Arm
from ragft_plugin.types import AsyncGenerator, Decision, Evidence, Filter, Prompt, Retriever

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retrieve:
    """Work: find passages for queries."""

    retriever: Retriever
    queries: list[str]
    k: int
    scope: Filter | None


@dataclass(frozen=True, slots=True)
class Generate:
    """Work: let an arm's generator answer prompts, as one batch."""

    arm: Arm
    prompts: list[Prompt]
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """How one call wants to be answered.

    Attributes:
        scope: access filter for retrieval.
        k: passages to read.
        cost_weight: reward given up per unit of cost; None means the router's own.
        arm: force this arm.
        options: for the generator.
    """

    scope: Filter | None
    k: int
    cost_weight: float | None = None
    arm: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Routed:
    """A query with its evidence and decision, not yet answered.

    Attributes:
        evidence: what is known of it.
        decision: what was decided.
        reader: the arm for which passages were retrieved; None: the shared retriever found them, or nobody yet.
    """

    evidence: Evidence
    decision: Decision
    reader: str | None = None


Work = Retrieve | Generate
Course = Generator[Work, Any, T]


def drive(course: Course[T]) -> T:
    """Run a course to its end."""
    step: Callable[[], Work] = course.__next__
    while True:
        try:
            work = step()
        except StopIteration as stop:
            value: T = stop.value
            return value
        try:
            result = perform(work)
        except Exception as error:
            step = _throw(course, error)
        else:
            step = _send(course, result)


async def adrive(course: Course[T]) -> T:
    """Run a course to its end without blocking the event loop."""
    step: Callable[[], Work] = course.__next__
    while True:
        try:
            work = step()
        except StopIteration as stop:
            value: T = stop.value
            return value
        try:
            result = await aperform(work)
        except Exception as error:
            step = _throw(course, error)
        else:
            step = _send(course, result)


async def astream(arm: Arm, prompt: Prompt, options: Mapping[str, Any]) -> Pieces[str]:
    """Stream from an arm's generator; one that knows no async is iterated in threads, piece by piece.

    Whoever stops reading early closes this, and this closes the generator's stream: nobody generates for nothing.
    """
    if isinstance(arm.generator, AsyncGenerator):
        made = arm.generator.astream(prompt, **options)
        try:
            async for piece in made:
                yield piece
        finally:
            if isinstance(made, Pieces):
                await made.aclose()
        return
    pieces = iter(arm.generator.stream(prompt, **options))
    while (found := await asyncio.to_thread(next, pieces, None)) is not None:
        yield found


def _send(course: Course[T], result: Any) -> Callable[[], Work]:
    return lambda: course.send(result)


def _throw(course: Course[T], error: Exception) -> Callable[[], Work]:
    return lambda: course.throw(error)


def perform(work: Work) -> Any:
    """Do one piece of work by a plain call."""
    if isinstance(work, Retrieve):
        return work.retriever.retrieve(work.queries, work.k, work.scope)
    return work.arm.generator.generate(work.prompts, **work.options)


async def aperform(work: Work) -> Any:
    """Do one piece of work by awaiting: what knows no async runs in a thread."""
    if isinstance(work, Generate) and isinstance(work.arm.generator, AsyncGenerator):
        return await work.arm.generator.agenerate(work.prompts, **work.options)
    if isinstance(work, Retrieve) and hasattr(work.retriever, "aretrieve"):
        return await work.retriever.aretrieve(work.queries, work.k, work.scope)
    return await asyncio.to_thread(perform, work)


def fallen_back(decision: Decision, name: str, error: BaseException) -> Decision:
    """The decision, saying that another arm answered. Reward and cost still belong to the chosen arm."""
    reason = f"{decision.arm} failed ({type(error).__name__}); {name} answered instead"
    return replace(decision, fallback=name, reasons=(reason, *decision.reasons))
