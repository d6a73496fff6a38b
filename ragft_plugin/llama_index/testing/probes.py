"""Probes: how long the event loop stood still, and which events and spans there were."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.prompts.mixin import PromptMixin
from pydantic import Field

PATIENCE = 0.040  # seconds for which a component may hold the loop
DELAY = 0.150  # seconds that a component is made to wait; well above the patience
_TICK = 0.002
_TRIES = 8


def longest_stall(call: Callable[[], Awaitable[Any]]) -> float:
    """The longest time, in seconds, for which a call kept other tasks from running.

    A call that blocks does so every time; a busy machine does not. So the best of a few tries counts.
    """
    best = float("inf")
    for _ in range(_TRIES):
        best = min(best, asyncio.run(_stall(call)))
        if best < PATIENCE:
            break
    return best


async def _stall(call: Callable[[], Awaitable[Any]]) -> float:
    longest = 0.0
    done = False

    async def watch() -> None:
        nonlocal longest
        while not done:
            before = time.perf_counter()
            await asyncio.sleep(_TICK)
            longest = max(longest, time.perf_counter() - before - _TICK)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    try:
        await call()
    finally:
        done = True
        await watcher
    return longest


class Recorder(BaseEventHandler):
    """Keeps the events that were sent.

    Attributes:
        events: in order.
    """

    events: list[Any] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the handler."""
        return "Recorder"

    def handle(self, event: Any, **kwargs: Any) -> None:
        """Keep one event."""
        self.events.append(event)

    @property
    def names(self) -> list[str]:
        """Class names of the events, in order."""
        return [event.class_name() for event in self.events]

    def assert_pair(self, kind: str) -> None:
        """Check that the first event of a kind is its start, that the last is its end, and that they are as many.

        Args:
            kind: "Query" for QueryStartEvent and QueryEndEvent.
        """
        start, end = f"{kind}StartEvent", f"{kind}EndEvent"
        found = [name for name in self.names if name in (start, end)]
        assert found, f"neither {start} nor {end} was sent; sent: {self.names}"
        assert (found[0], found[-1]) == (start, end), f"{kind} events out of order: {found}"
        assert found.count(start) == found.count(end), f"{kind} events do not pair up: {found}"


@contextmanager
def recorded() -> Iterator[tuple[Recorder, SimpleSpanHandler]]:
    """Record all events and spans of LlamaIndex while the block runs."""
    root = get_dispatcher()
    recorder, spans = Recorder(), SimpleSpanHandler()
    root.add_event_handler(recorder)
    root.add_span_handler(spans)
    try:
        yield recorder, spans
    finally:
        root.event_handlers.remove(recorder)
        root.span_handlers.remove(spans)


def assert_prompts_can_be_replaced(component: PromptMixin) -> None:
    """Check that every prompt that is shown can be replaced, and that the others stay."""
    before = component.get_prompts()
    for name, template in before.items():
        changed = template.partial_format(conformance="x")
        component.update_prompts({name: changed})
        after = component.get_prompts()
        assert set(after) == set(before), f"replacing {name} changed which prompts there are"
        assert after[name].kwargs.get("conformance") == "x", f"{name} was not replaced"
        component.update_prompts({name: template})
        assert "conformance" not in component.get_prompts()[name].kwargs, f"{name} could not be put back"
