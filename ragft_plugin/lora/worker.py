"""The worker: one thread that owns a model and writes for all callers at once.

It has no waiting window. An idle worker starts on the first request at once; requests that come while it writes are
read and joined between two steps. Rows of one adapter are written together. Whatever goes wrong with a request fails
that request; the worker goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from ragft_plugin.errors import AdapterError, GenerationError, OverloadedError
from ragft_plugin.lora.batch import Batch, Network, portions
from ragft_plugin.lora.delivery import deliver
from ragft_plugin.lora.rendering import Renderer
from ragft_plugin.lora.request import Request, Row
from ragft_plugin.lora.sampling import extend
from ragft_plugin.lora.switch import AdapterSwitch

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Worker:
    """Writes answers on a thread of its own.

    Args:
        model: the bare base model; ``replace_model`` puts a PEFT model over it.
        renderer: decodes what is written.
        max_rows: rows written at once; more wait.
        max_pending: requests that may wait; more raise OverloadedError.
        max_prefill: padded tokens read in one pass, unless one row has more.
        mixed: rows of all adapters in one batch, or a batch for each; ``set_mixed`` changes it.
    """

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        *,
        max_rows: int = 64,
        max_pending: int = 1024,
        max_prefill: int = 16_384,
        mixed: bool = False,
    ) -> None:
        self.max_pending = max_pending
        self._renderer = renderer
        self._max_rows = max_rows
        self._max_prefill = max_prefill
        self._mixed = mixed
        self._pending: deque[Request] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._batches: dict[object, Batch] = {}
        self._wake = threading.Condition()
        self._closed = False
        # Adapters come and go between two steps, so a request's name means what it means when it is taken up.
        self.resolve: Callable[[str | None], str | None] = lambda name: name
        self.replace_model(model, None)
        pad = renderer.tokenizer.pad_token_id
        self._network = Network(model, pad_id=renderer.end_ids[0] if pad is None else pad)
        self._thread = threading.Thread(target=self._work, name="ragft-lora", daemon=True)
        self._thread.start()

    def replace_model(self, model: Any, peft: Any) -> None:
        """Write with these from now on. On the worker's thread only.

        Args:
            model: the base, with the layers of the adapters inside it.
            peft: PEFT's wrapping of it, or None without adapters.
        """
        self._model, self._peft = model, peft
        self._switch = AdapterSwitch(model)

    def set_mixed(self, mixed: bool) -> None:
        """Whether rows of different adapters share a batch. What is under way goes on as it began."""
        self._mixed = mixed and self._network.joins

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests, all or none.

        Raises:
            OverloadedError: if the queue is too full.
            GenerationError: if the worker is closed.
        """
        with self._wake:
            self._check_open()
            if len(self._pending) + len(requests) > self.max_pending:
                raise OverloadedError(
                    f"{len(self._pending)} requests are waiting and at most {self.max_pending} may; "
                    "try again later, or load the model with a larger max_pending"
                )
            self._pending.extend(requests)
            self._wake.notify()

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the worker's thread between two steps, and wait for what it returns."""
        if threading.current_thread() is self._thread:
            return function()
        future: Future[T] = Future()
        with self._wake:
            self._check_open()
            self._calls.append((function, future))
            self._wake.notify()
        return future.result()

    def logprobs(self, ids: Sequence[int], start: int, adapter: str | None) -> list[float]:
        """Log-probability of each token from ``start`` on. On the worker's thread only."""
        self._switch.use(adapter)
        tokens = torch.tensor([list(ids)], device=self._network.device)
        logits = self._model(input_ids=tokens, use_cache=False).logits[0, start - 1 : -1]
        chosen = logits.float().log_softmax(-1).gather(-1, tokens[0, start:, None])
        return [float(x) for x in chosen[:, 0]]

    def in_use(self, adapter: str | None) -> bool:
        """Whether rows of this adapter are under way. On the worker's thread only."""
        return any(row.adapter == adapter for row in self._live())

    def close(self) -> None:
        """Stop; whatever waits or is under way fails."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _check_open(self) -> None:
        if self._closed:
            raise GenerationError("the model is closed; load it again")

    def _live(self) -> Iterable[Row]:
        return (row for batch in self._batches.values() for row in batch.rows)

    @torch.inference_mode()
    def _work(self) -> None:
        try:
            while True:
                with self._wake:
                    while not (self._pending or self._calls or self._batches or self._closed):
                        self._wake.wait()
                    if self._closed:
                        break
                    calls = list(self._calls)
                    self._calls.clear()
                    room = self._max_rows - sum(len(b.rows) for b in self._batches.values())
                    arrivals = [self._pending.popleft() for _ in range(min(room, len(self._pending)))]
                for function, future in calls:
                    _complete(function, future)
                try:
                    self._admit(arrivals)
                    for key in list(self._batches):
                        self._advance(key)
                except Exception as error:  # a fault of the worker itself; whoever comes next is served
                    logger.exception("the worker failed")
                    for request in [*arrivals, *(row.request for row in self._live())]:
                        request.fail(_failure(error))
                    self._batches.clear()
        finally:
            self._abandon()

    def _admit(self, arrivals: Sequence[Request]) -> None:
        groups: dict[tuple[object, str | None], list[Row]] = {}
        for request in arrivals:
            if self._over(request):
                continue
            try:
                row = Row.of(request, self.resolve(request.adapter))
            except AdapterError as error:  # unloaded while it waited
                request.fail(error)
                continue
            # Rows that cannot be joined are batches of their own.
            key: object = (self._mixed or row.adapter) if self._network.joins else row
            groups.setdefault((key, row.adapter), []).append(row)
        # Also rows that are going to be written mixed are read by adapter, unless they are too few for a pass of their
        # own: reading gains nothing from mixing, and what they have in common is read once.
        few: list[Row] = []
        for (key, _), rows in groups.items():
            if key is True and sum(row.length for row in rows) < self._network.overhead:
                few += rows
                continue
            self._read(key, rows)
        self._read(True, few)

    def _read(self, key: object, rows: Sequence[Row]) -> None:
        for portion in portions(rows, most=self._max_prefill, overhead=self._network.overhead):
            self._prefill(key, portion)

    def _prefill(self, key: object, rows: list[Row]) -> None:
        batch = self._batches.get(key) or Batch(self._network, self._forward)
        try:
            extend(rows, batch.add(rows))
        except Exception as error:
            # One bad request must not fail those read along with it.
            if len(rows) > 1:
                for row in rows:
                    self._prefill(key, [row])
            else:
                logger.debug("a request failed while its prompt was read", exc_info=error)
                rows[0].request.fail(_failure(error))
            return
        self._batches[key] = batch
        self._settle(key, rows)

    def _advance(self, key: object) -> None:
        batch = self._batches.get(key)
        if batch is None:
            return
        batch.drop({row for row in batch.rows if self._over(row.request)})
        if batch.rows:
            try:
                extend(batch.rows, batch.step())
            except Exception as error:
                logger.warning("a batch of %d failed while it was written: %s", len(batch.rows), error)
                for row in batch.rows:
                    row.request.fail(_failure(error))
                batch.rows = []
        self._settle(key, batch.rows)

    def _settle(self, key: object, rows: Sequence[Row]) -> None:
        """Stream what is new, complete what is finished, and forget a batch without rows."""
        batch = self._batches[key]
        gone = set()
        for row in rows:
            try:
                if deliver(row, self._renderer):
                    gone.add(row)
            except Exception as error:
                row.request.fail(_failure(error))
                gone.add(row)
        batch.drop(gone)
        if not batch.rows:
            del self._batches[key]

    def _over(self, request: Request) -> bool:
        if request.future.done():
            return True
        if request.deadline is not None and time.monotonic() > request.deadline:
            request.fail(
                GenerationError(
                    f"no answer within {request.options.timeout:g} s; raise timeout, lower max_new_tokens, "
                    "or send fewer requests at once"
                )
            )
            return True
        return False

    def _forward(self, rows: Sequence[Row], **inputs: Any) -> Any:
        return self.forward([row.adapter for row in rows], **inputs)

    def forward(self, adapters: Sequence[str | None], **inputs: Any) -> Any:
        """One pass of the model with an adapter for each row. On the worker's thread only."""
        if len(set(adapters)) == 1:
            self._switch.use(adapters[0])
            return self._model(**inputs)
        with self._switch.mixed(adapters) as names:
            return self._peft(**inputs, **names)

    def _abandon(self) -> None:
        error = GenerationError("the model was closed while this request waited; load it again")
        with self._wake:
            self._closed = True
            waiting = [*self._pending, *(row.request for row in self._live())]
            calls = list(self._calls)
            self._pending.clear()
            self._calls.clear()
        for request in waiting:
            request.fail(error)
        for _, future in calls:
            future.set_exception(error)
        self._batches.clear()


def _failure(error: Exception) -> GenerationError:
    if isinstance(error, GenerationError):
        return error
    failure = GenerationError(f"the model failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _complete(function: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
