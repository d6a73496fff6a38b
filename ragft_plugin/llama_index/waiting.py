"""Waiting without blocking the event loop for components whose async methods are sync ones in disguise.

Several base classes of LlamaIndex implement ``a...`` by calling the sync method in the event loop: a retriever that
takes 50 ms then stops every other task for 50 ms. Such methods are recognised by not being overridden, and their sync
twins run in a thread instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


def inherits(component: object, method: str, base: type) -> bool:
    """Whether a component's method is still the one of ``base``."""
    # By the class that defines it: spans wrap methods, so the attributes themselves are never the same object.
    return _home(type(component), method) is _home(base, method)


def _home(kind: type, method: str) -> type | None:
    return next((one for one in kind.__mro__ if method in one.__dict__), None)


async def iterate(pieces: Iterator[T]) -> AsyncIterator[T]:
    """Iterate in a thread, piece by piece, all in one copy of the caller's context."""
    context = copy_context()
    loop = asyncio.get_running_loop()

    def step() -> T:
        return context.run(lambda: next(pieces, _END))

    while (piece := await loop.run_in_executor(None, step)) is not _END:
        yield piece
