"""The generator: one arm's view of a ``LoraModel``, the base alone or with one adapter."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ragft_plugin.errors import ConfigError, GenerationError, PartialAnswerError
from ragft_plugin.lora.options import Options
from ragft_plugin.lora.request import Request
from ragft_plugin.types import Generation, Prompt

if TYPE_CHECKING:
    from ragft_plugin.lora.model import LoraModel

_END = None


class LoraGenerator:
    """Answers prompts with the base or one adapter. Safe to call from any thread and any event loop.

    Args:
        model: owns weights and worker.
        adapter: name of a loaded adapter, or None for the base.
        **defaults: options used where a call gives none: ``max_new_tokens`` (128), ``temperature`` (0), ``stop``,
            ``seed``, ``timeout``.

    Example:
        >>> model = LoraModel.load("models/base")  # doctest: +SKIP
        >>> model.load_adapter("legal", "adapters/legal/1")  # doctest: +SKIP
        >>> model.generator("legal").generate([closed_book("Who signs?")])[0].text  # doctest: +SKIP
        'The notary.'
    """

    def __init__(self, model: LoraModel, adapter: str | None = None, **defaults: Any) -> None:
        Options.of(defaults)
        self._model = model
        self._adapter = adapter
        self._defaults = defaults

    @property
    def adapter(self) -> str | None:
        """The adapter's name, or None for the base."""
        return self._adapter

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """Answer each prompt, as one batch together with whatever else is under way.

        Args:
            prompts: what to ask.
            **options: see the class.

        Raises:
            OverloadedError: if too many requests wait already.
            GenerationError: if generation fails or takes longer than ``timeout``.
            DataError: if a question does not fit into the model's context.
        """
        answers: list[Generation] = []
        for requests in self._portions(prompts, options):
            with _cancelling(requests):
                self._model.worker.submit(requests)
                answers.extend(request.future.result() for request in requests)
        return answers

    async def agenerate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """As ``generate``; waits without holding a thread. Cancelling it stops the generation."""
        answers: list[Generation] = []
        for requests in self._portions(prompts, options):
            with _cancelling(requests):
                self._model.worker.submit(requests)
                answers.extend(await asyncio.gather(*(asyncio.wrap_future(r.future) for r in requests)))
        return answers

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Yield pieces of the answer as they are written; together they are the text of ``generate``.

        Raises:
            PartialAnswerError: if generation fails after the first piece; before it, as ``generate``.
        """
        pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        request = self._request(prompt, options)
        request.emit = pieces.put
        request.future.add_done_callback(lambda _: pieces.put(_END))
        with _cancelling([request]):
            self._model.worker.submit([request])
            sent = ""
            while (piece := pieces.get()) is not _END:
                sent += piece
                yield piece
            _raise(request.future, sent)

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[str]:
        """As ``stream``, without holding a thread. Leaving the loop early stops the generation."""
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(piece: str | None) -> None:
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except RuntimeError:  # the loop is closed, nobody reads any more
                request.future.cancel()

        request = self._request(prompt, options)
        request.emit = put
        request.future.add_done_callback(lambda _: put(_END))
        with _cancelling([request]):
            self._model.worker.submit([request])
            sent = ""
            while (piece := await pieces.get()) is not _END:
                sent += piece
                yield piece
            _raise(request.future, sent)

    def _portions(self, prompts: Sequence[Prompt], options: dict[str, Any]) -> Iterator[list[Request]]:
        """Requests in portions that an empty queue can take, so that a long list is no overload by itself."""
        size = self._model.worker.max_pending
        for start in range(0, len(prompts), size):
            yield [self._request(p, options) for p in prompts[start : start + size]]

    def _request(self, prompt: Prompt, options: dict[str, Any]) -> Request:
        merged = Options.of(self._defaults, options)
        room = self._model.context - merged.max_new_tokens
        if room < 1:
            raise ConfigError(
                f"max_new_tokens={merged.max_new_tokens} leaves no room for a prompt in a context of "
                f"{self._model.context} tokens; lower it"
            )
        ids = self._model.renderer.render(prompt, limit=room)
        self._model.check_loaded(self._adapter)
        return Request(ids, self._adapter, merged)


class _cancelling:
    """Cancels requests that are still under way when their caller leaves, for whatever reason."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for request in self._requests:
            request.future.cancel()


def _raise(future: Future[Generation], sent: str) -> None:
    error = future.exception()
    if error is None:
        return
    if sent and isinstance(error, GenerationError):
        raise PartialAnswerError(str(error), text=sent) from error
    raise error
