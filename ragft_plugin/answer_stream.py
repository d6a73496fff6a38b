"""One answer, piece by piece, with a fallback before the first piece and none after it."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from ragft_plugin.course import Course, Request, Routed, adrive, astream, drive, fallen_back
from ragft_plugin.errors import ConfigError, DataError, GenerationError, PartialAnswerError
from ragft_plugin.types import Answer, Generation, Passage, Prompt

if TYPE_CHECKING:
    from ragft_plugin.pipeline import Pipeline

logger = logging.getLogger(__name__)


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
        pipeline = self._pipeline
        item = drive(self._prepare())
        if (draft := item.evidence.drafts.get(item.decision.arm)) is not None:
            yield self._finish(item, draft)
            return
        last: Exception | None = None
        for name in (item.decision.arm, *pipeline._fallbacks(item.decision)):
            pieces: list[str] = []
            try:
                item, prompt = drive(self._turn(item, name, last))
                arm = pipeline._arm(name)
                for piece in arm.generator.stream(prompt, **{**arm.options, **self._request.options}):
                    pieces.append(piece)
                    yield piece
            except (ConfigError, DataError):
                raise
            except Exception as error:
                self._fail(name, pieces, error)
                last = error
                continue
            self._finish(item, pipeline._arm(name).answer(item.evidence, Generation("".join(pieces)), 0.0))
            return
        raise GenerationError(f"no arm answered; last error: {last}") from last

    async def __aiter__(self) -> AsyncGenerator[str]:
        """Yield the pieces without blocking the event loop."""
        pipeline = self._pipeline
        item = await adrive(self._prepare())
        if (draft := item.evidence.drafts.get(item.decision.arm)) is not None:
            yield self._finish(item, draft)
            return
        last: Exception | None = None
        for name in (item.decision.arm, *pipeline._fallbacks(item.decision)):
            pieces: list[str] = []
            try:
                item, prompt = await adrive(self._turn(item, name, last))
                arm = pipeline._arm(name)
                options = {**arm.options, **self._request.options}
                async with aclosing(astream(arm, prompt, options)) as made:
                    async for piece in made:
                        pieces.append(piece)
                        yield piece
            except (ConfigError, DataError):
                raise
            except Exception as error:
                self._fail(name, pieces, error)
                last = error
                continue
            self._finish(item, pipeline._arm(name).answer(item.evidence, Generation("".join(pieces)), 0.0))
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

    def _fail(self, name: str, pieces: list[str], error: Exception) -> None:
        if pieces:
            raise PartialAnswerError(f"arm {name!r} failed: {error}", text="".join(pieces)) from error
        logger.warning("arm %s failed before its first token (%s)", name, error)

    def _finish(self, item: Routed, answer: Answer) -> str:
        seconds = time.perf_counter() - self._began
        self.answer = replace(answer, decision=item.decision, seconds=seconds)
        self._pipeline._record(item)
        return answer.text
