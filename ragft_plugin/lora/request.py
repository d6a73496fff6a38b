"""Requests: what the worker is asked for, and what it keeps of each while it writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from ragft_plugin.lora.options import Options
from ragft_plugin.types import Generation


@dataclass(slots=True, eq=False)
class Request:
    """One prompt on its way through the worker.

    Attributes:
        ids: the rendered prompt.
        adapter: name of the adapter, or None for the base.
        options: how to generate.
        emit: called on the worker's thread with each new piece of text; None without streaming.
        future: completes with the generation. Cancelling it takes the request out at the next step.
        deadline: clock time (``time.monotonic``) after which the request fails, or None.
    """

    ids: list[int]
    adapter: str | None
    options: Options
    emit: Callable[[str], None] | None = None
    future: Future[Generation] = field(default_factory=Future)
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.options.timeout is not None:
            self.deadline = time.monotonic() + self.options.timeout

    def succeed(self, generation: Generation) -> None:
        """Complete the future, unless the caller has gone."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(generation)

    def fail(self, error: BaseException) -> None:
        """Fail the future, unless the caller has gone or it is complete."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(slots=True, eq=False)
class Row:
    """A request while it is being written.

    Attributes:
        request: what was asked.
        adapter: PEFT's name of the adapter, or None for the base.
        length: tokens read and written so far that lie in the cache or are about to.
        tokens, logprobs, margins, entropies: what was written, the end token included.
        sent: characters of the answer already streamed.
        draws: the request's own random numbers, None when greedy.
    """

    request: Request
    adapter: str | None
    length: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    sent: int = 0
    draws: torch.Generator | None = None

    @classmethod
    def of(cls, request: Request, adapter: str | None) -> Row:
        """A fresh row."""
        row = cls(request, adapter, length=len(request.ids))
        if request.options.temperature > 0:
            row.draws = torch.Generator()
            if request.options.seed is None:
                row.draws.seed()
            else:
                row.draws.manual_seed(request.options.seed)
        return row
