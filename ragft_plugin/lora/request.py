"""Requests: what the worker is asked for, and what it keeps of each while it writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from ragft_plugin.errors import ConfigError
from ragft_plugin.types import Generation

OPTIONS = ("max_new_tokens", "temperature", "stop", "seed", "timeout")


@dataclass(frozen=True, slots=True)
class Options:
    """How to generate.

    Attributes:
        max_new_tokens: at most so many tokens are written.
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        stop: strings at which the answer ends; they are not part of it.
        seed: seed of this request's own draws; None draws one. The same seed gives the same answer whatever else
            is in the batch.
        timeout: seconds from submission until the request fails; None waits for ever.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    timeout: float | None = None

    @classmethod
    def of(cls, *layers: Mapping[str, Any]) -> Options:
        """Merge options, later ones winning; None leaves what was there.

        Raises:
            ConfigError: for an unknown name or a value out of range.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            for name, value in layer.items():
                if name not in OPTIONS:
                    raise ConfigError(f"unknown generation option {name!r}; expected one of {', '.join(OPTIONS)}")
                if value is not None:
                    merged[name] = value
        if isinstance(merged.get("stop"), str):
            merged["stop"] = (merged["stop"],)
        merged["stop"] = tuple(s for s in merged.get("stop", ()) if s)
        options = cls(**merged)
        if options.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {options.max_new_tokens}")
        if not options.temperature >= 0:
            raise ConfigError(f"temperature must be 0 or above, got {options.temperature}")
        if options.timeout is not None and not options.timeout > 0:
            raise ConfigError(f"timeout must be above 0 seconds, got {options.timeout}")
        return options


@dataclass(slots=True, eq=False)
class Request:
    """One prompt on its way through the worker.

    Attributes:
        ids: the rendered prompt.
        adapter: PEFT's name of the adapter, or None for the base.
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
        length: tokens read and written so far that lie in the cache or are about to.
        tokens, logprobs, margins, entropies: what was written, the end token included.
        sent: characters of the answer already streamed.
        draws: the request's own random numbers, None when greedy.
    """

    request: Request
    length: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    sent: int = 0
    draws: torch.Generator | None = None

    @classmethod
    def of(cls, request: Request) -> Row:
        """A fresh row."""
        row = cls(request, length=len(request.ids))
        if request.options.temperature > 0:
            row.draws = torch.Generator()
            if request.options.seed is None:
                row.draws.seed()
            else:
                row.draws.manual_seed(request.options.seed)
        return row
