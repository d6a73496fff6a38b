"""Attempts: how often a request is sent to a server, after which pauses, and until when."""

from __future__ import annotations

import time

import httpx

from ragft_plugin.errors import PartialAnswerError
from ragft_plugin.lora.openai_wire import describe, retry_after


class Attempts:
    """The attempts of one request; its timeout holds for all of them together.

    Args:
        url: named in messages.
        retries: further attempts after the first.
        backoff: seconds before the first of them, doubled each time; a server's Retry-After wins.
        timeout: seconds for everything, or None.
    """

    def __init__(self, url: str, *, retries: int, backoff: float, timeout: float | None) -> None:
        self._url, self._left, self._backoff, self._timeout = url, retries, backoff, timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout

    @property
    def seconds(self) -> float | None:
        """Seconds that are left.

        Raises:
            httpx.ReadTimeout: if none are. (httpx' own timeouts are per read, and start anew with every piece.)
        """
        if self._deadline is None:
            return None
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise httpx.ReadTimeout("the time is up")
        return left

    def check(self) -> None:
        """Nothing, if time is left; else as ``seconds``."""
        _ = self.seconds

    def pause(self, error: Exception, sent: str = "") -> float:
        """Seconds to wait before the next attempt.

        Args:
            error: what went wrong with this one.
            sent: text that was emitted already; it cannot be taken back, so there is no further attempt.

        Raises:
            GenerationError: if there is no further attempt to be made.
        """
        wait = retry_after(error)
        if wait is not None and self._left and not sent:
            wait = wait or self._backoff
            if self._deadline is None or time.monotonic() + wait < self._deadline:
                self._left -= 1
                self._backoff *= 2
                return wait
        described = describe(error, self._url, self._timeout)
        if sent:
            raise PartialAnswerError(str(described), text=sent) from error
        raise described from error
