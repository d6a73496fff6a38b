"""One answer, piece by piece, with a fallback before the first piece and none after it."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ragft_plugin.arms import Arm
from ragft_plugin.course import Course, Request, Routed, Work, aperform, astream, fallen_back, perform
from ragft_plugin.errors import ConfigError, DataError, GenerationError, PartialAnswerError
from ragft_plugin.types import Answer, Generation, Passage, Prompt

if TYPE_CHECKING:
    from ragft_plugin.pipeline import Pipeline

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """Work: the next piece that an arm's generator streams for a prompt, or None after the last."""

    arm: Arm
    prompt: Prompt
    options: Mapping[str, Any]


class AnswerStream:
    """One answer, piece by piece; iterate it with ``for`` or ``async for``, once.

    Attributes:
        routed: evidence and decision; known from the first piece on.
        answer: the whole answer; known after the last piece.
    """

    def __init__(self, pipeline: Pipeline, query: str | Routed, request: Request) -> None:
        self.routed: Routed | None = None if isinstance(query, str) else query
        self.answer: Answer | None = None
        self._query = query
        self._pipeline = pipeline
        self._request = request
        self._began = time.perf_counter()

    @property
    def passages(self) -> tuple[Passage, ...]:
        """What the answering arm reads; known from the first piece on."""
        if self.routed is None:
            return ()
        decision = self.routed.decision
        reads = self._pipeline._arm(decision.fallback or decision.arm).retrieves
        return (self.routed.evidence.passages or ()) if reads else ()

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces."""
        course = self._course()
        writing: Write | None = None
        resume: Callable[[], Any] = course.__next__
        while True:
            try:
                wish = resume()
            except StopIteration:
                return
            resume = course.__next__
            if isinstance(wish, str):
                yield wish
                continue
            try:
                if not isinstance(wish, Write):
                    resume = partial(course.send, perform(wish))
                    continue
                if wish is not writing:
                    writing, pieces = wish, iter(wish.arm.generator.stream(wish.prompt, **wish.options))
                resume = partial(course.send, next(pieces, None))
            except Exception as error:
                resume = partial(course.throw, error)

    async def __aiter__(self) -> AsyncGenerator[str]:
        """Yield the pieces without blocking the event loop."""
        course = self._course()
        writing: Write | None = None
        resume: Callable[[], Any] = course.__next__
        async with AsyncExitStack() as open_streams:
            while True:
                try:
                    wish = resume()
                except StopIteration:
                    return
                resume = course.__next__
                if isinstance(wish, str):
                    yield wish
                    continue
                try:
                    if not isinstance(wish, Write):
                        resume = partial(course.send, await aperform(wish))
                        continue
                    if wish is not writing:
                        pieces = astream(wish.arm, wish.prompt, wish.options)
                        writing = wish
                        await open_streams.enter_async_context(aclosing(pieces))
                    resume = partial(course.send, await anext(pieces, None))
                except Exception as error:
                    resume = partial(course.throw, error)

    def _course(self) -> Generator[Work | Write | str, Any, None]:
        """What happens in which order, for both ways of iterating: yields work, and pieces to hand out."""
        pipeline = self._pipeline
        item = yield from self._prepare()
        if (draft := item.evidence.drafts.get(item.decision.arm)) is not None:
            yield self._finish(item, draft)
            return
        last: Exception | None = None
        for name in (item.decision.arm, *pipeline._fallbacks(item.decision)):
            arm = pipeline._arm(name)
            text = ""
            try:
                item, prompt = yield from self._turn(item, name, last)
                work = Write(arm, prompt, {**arm.options, **self._request.options})
                while (piece := (yield work)) is not None:
                    text += piece
                    yield piece
            except (ConfigError, DataError):
                raise
            except Exception as error:
                self._fail(name, text, error)
                last = error
                continue
            self._finish(item, arm.answer(item.evidence, Generation(text), 0.0))
            return
        raise GenerationError(f"no arm answered; last error: {last}") from last

    def _prepare(self) -> Course[Routed]:
        if isinstance(self._query, str):
            (self.routed,) = yield from self._pipeline._decide([self._query], self._request)
        assert self.routed is not None
        return self.routed

    def _turn(self, item: Routed, name: str, last: Exception | None) -> Course[tuple[Routed, Prompt]]:
        """Get ready to stream from an arm: its passages, its prompt, and the decision that says so."""
        decision = item.decision if last is None else fallen_back(item.decision, name, last)
        stand_in = replace(item, decision=replace(item.decision, arm=name))
        (read,) = yield from self._pipeline._read([stand_in], self._request)
        self.routed = replace(read, decision=decision)
        return self.routed, self._pipeline._arm(name).prompt(read.evidence)

    def _fail(self, name: str, text: str, error: Exception) -> None:
        if text:
            raise PartialAnswerError(f"arm {name!r} failed: {error}", text=text) from error
        logger.warning("arm %s failed before its first token (%s)", name, error)

    def _finish(self, item: Routed, answer: Answer) -> str:
        seconds = time.perf_counter() - self._began
        self.answer = replace(answer, decision=item.decision, seconds=seconds)
        self._pipeline._record(item)
        return answer.text
