"""Time-outs for plain calls, which know none: the work goes on in a daemon thread, but nobody waits for it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float | None, call: Callable[[], T]) -> T:
    """The value of ``call()``.

    Args:
        seconds: how long to wait; None calls it plainly.
        call: what to do; it sees the caller's context variables.

    Raises:
        TimeoutError: if there is no value in time.
    """
    if seconds is None:
        return call()
    return next(each_within(seconds, lambda: iter([call()])))


def each_within(seconds: float | None, call: Callable[[], Iterator[T]]) -> Iterator[T]:
    """The items of ``call()``, all of them within the time.

    Raises:
        TimeoutError: if the last is not there in time.
    """
    if seconds is None:
        yield from call()
        return
    items: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
    abandoned = threading.Event()

    def work() -> None:
        try:
            for item in call():
                items.put((item,))
                if abandoned.is_set():
                    return
            items.put(None)
        except BaseException as error:
            items.put(error)

    threading.Thread(target=copy_context().run, args=(work,), daemon=True, name="ragft-deadline").start()
    end = time.monotonic() + seconds
    try:
        while True:
            try:
                found = items.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"no answer within {seconds:g} seconds") from None
            if found is None:
                return
            if isinstance(found, BaseException):
                raise found
            yield found[0]
    finally:
        abandoned.set()
