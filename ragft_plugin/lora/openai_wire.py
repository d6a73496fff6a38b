"""The wire format of OpenAI-compatible chat completions: what comes back, and what can go wrong."""

from __future__ import annotations

import json
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from ragft_plugin.errors import GenerationError, OverloadedError
from ragft_plugin.types import Generation, Usage

_BUSY = (429, 503)
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_CURES = {
    400: "the server does not take the request; if it refuses log-probabilities pass logprobs=False",
    401: "pass the api_key",
    403: "the api_key may not use this model",
    404: "check base_url, and that the server has a model of this name (GET /models lists them)",
}


class Refused(GenerationError):
    """The server answered with an error.

    Attributes:
        status: HTTP status.
        wait: seconds after which it wants to be asked again, or None.
    """

    def __init__(self, message: str, status: int, wait: float | None) -> None:
        self.status, self.wait = status, wait
        super().__init__(message)


class Broken(GenerationError):
    """What the server sent is not what it should have."""


def failure(response: httpx.Response, model: str) -> Refused:
    """The error that a response stands for."""
    try:
        body = response.json()
        detail = body.get("error", body)
        text = str(detail.get("message", detail) if isinstance(detail, dict) else detail)
    except (ValueError, AttributeError):
        text = response.text
    status = response.status_code
    cure = _CURES.get(status, "see the server's log")
    wait = _seconds(response.headers.get("retry-after", ""))
    message = f"{response.url} answered {status} for model {model!r}: {text[:300]}; {cure}"
    return Refused(message, status, wait)


def _seconds(value: str) -> float | None:
    """A Retry-After header in seconds from now; it may be a number or a date."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def retry_after(error: Exception) -> float | None:
    """Seconds to wait before asking again; 0 leaves it to the caller, None says that asking again is no use."""
    if isinstance(error, Refused):
        return min(error.wait or 0.0, 30.0) if error.status in _TRANSIENT else None
    if isinstance(error, httpx.ConnectError | httpx.RemoteProtocolError | httpx.ReadError):
        return 0.0
    return None


def describe(error: Exception, url: str, timeout: float | None) -> GenerationError:
    """The error that a user sees."""
    if isinstance(error, Refused) and error.status in _BUSY:
        return OverloadedError(f"{error} (the server is overloaded; try again later)")
    if isinstance(error, GenerationError):
        return error
    if isinstance(error, httpx.TimeoutException):
        return GenerationError(f"{url} gave no answer within {timeout} s; raise timeout")
    if isinstance(error, httpx.ConnectError):
        return GenerationError(f"{url} cannot be reached ({error}); is the server running there?")
    return GenerationError(f"the connection to {url} broke: {type(error).__name__}: {error}")


def parse_answer(response: httpx.Response) -> Generation:
    """The generation in a response.

    Raises:
        Broken: if it is not a chat completion.
    """
    try:
        body = response.json()
        choice = body["choices"][0]
        text = str(choice["message"]["content"] or "").strip()
        usage = body.get("usage") or {}
        tokens = (choice.get("logprobs") or {}).get("content")
        logprobs = None if tokens is None else tuple(float(t["logprob"]) for t in tokens)
        return Generation(
            text,
            logprobs,
            _margins(tokens),
            None,
            Usage(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)),
            "length" if choice.get("finish_reason") == "length" else "stop",
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Broken(
            f"{response.url} answered {response.text[:200]!r}, which is no chat completion ({error!r}); is this an "
            "OpenAI-compatible server?"
        ) from None


def _margins(tokens: list[dict[str, Any]] | None) -> tuple[float, ...] | None:
    if tokens is None or not all(len(t.get("top_logprobs") or ()) >= 2 for t in tokens):
        return None
    margins = []
    for token in tokens:
        # A sampled token need not be among the likeliest, so the runner-up is the best of the others.
        others = [t["logprob"] for t in token["top_logprobs"] if t["token"] != token["token"]]
        margins.append(float(token["logprob"]) - float(max(others)))
    return tuple(margins)


class Pieces:
    """Takes apart a stream of server-sent events.

    Attributes:
        text: what was emitted so far, without space at either end.
    """

    def __init__(self) -> None:
        self.text = ""
        self._all = ""
        self._finished = False

    def take(self, line: str) -> str:
        """The new piece of text in a line of the stream, often empty.

        Raises:
            Broken: if the line is not what it should be, or reports an error.
        """
        if not line.startswith("data:"):
            return ""
        data = line[5:].strip()
        if data == "[DONE]":
            self._finished = True
            return ""
        try:
            event = json.loads(data)
            if "error" in event:
                raise Broken(f"the server failed while it wrote: {str(event['error'])[:300]}")
            for choice in event["choices"][:1]:
                self._all += str((choice.get("delta") or {}).get("content") or "")
                self._finished |= choice.get("finish_reason") is not None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Broken(f"the server streamed {data[:200]!r} ({error!r})") from None
        safe = self._all.strip()  # space at the end is held back until something follows
        piece = safe[len(self.text) :]
        self.text = safe
        return piece

    def close(self) -> None:
        """To be called when the stream has ended.

        Raises:
            Broken: if the answer was not finished.
        """
        if not self._finished:
            raise Broken("the server's stream broke off before the answer was finished")
