"""Batching: is one batch of mixed adapters faster than one batch for each?

On a small model the hooks and index operations of a mixed pass cost more than the passes they save; on a large one,
where a pass is bound by reading the base's weights, they cost less. Reading prompts gains nothing from mixing and loses
to its index operations, writing gains most. So both are measured, on the model at hand, and weighed as in a request of
64 tokens with an answer of 24.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

_WRITE = (16, 1)  # rows of each adapter, tokens: one step of a full worker
_READ = (4, 16)  # the same number of tokens as of rows there
_READ_PASSES, _WRITE_PASSES = 16, 24  # of those, for 16 requests of 64 tokens and their answers of 24
_ROUNDS, _PATIENCE = 4, 1.0  # rounds, and seconds after which no further one is begun
_MARGIN = 0.9  # mixed must win clearly; groups keep a fault to one adapter's rows

logger = logging.getLogger(__name__)


def mixed_is_faster(forward: Callable[..., Any], adapters: Sequence[str | None], device: torch.device) -> bool:
    """Time one pass of reading and one of writing, both ways.

    Args:
        forward: called as ``forward(adapters, input_ids=...)``, one adapter per row.
        adapters: two or more, None for the base.
        device: where the model is.
    """

    def grouped(shape: tuple[int, int]) -> None:
        ids = torch.ones(shape, dtype=torch.long, device=device)
        for adapter in adapters:
            forward([adapter] * shape[0], input_ids=ids, use_cache=False)

    def mixed(shape: tuple[int, int]) -> None:
        together = [adapter for adapter in adapters for _ in range(shape[0])]
        ids = torch.ones((len(together), shape[1]), dtype=torch.long, device=device)
        forward(together, input_ids=ids, use_cache=False)

    def once(way: Callable[[tuple[int, int]], None]) -> float:
        read, write = (_seconds(way, shape, device) for shape in (_READ, _WRITE))
        return _READ_PASSES * read + _WRITE_PASSES * write

    try:
        began = time.perf_counter()
        apart, joined = once(grouped), once(mixed)
        for _ in range(_ROUNDS - 1):
            if time.perf_counter() - began > _PATIENCE:
                break
            apart, joined = min(apart, once(grouped)), min(joined, once(mixed))
    except ValueError as error:  # some kinds (DoRA) cannot be mixed
        logger.debug("adapters cannot be mixed: %s", error)
        return False
    logger.debug("16 requests of each adapter would take %.2g s in groups, %.2g s mixed", apart, joined)
    return joined < _MARGIN * apart


def _seconds(way: Callable[[tuple[int, int]], None], shape: tuple[int, int], device: torch.device) -> float:
    # On a CPU the thread's own time, which does not count what else the machine does meanwhile.
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = clock()
    way(shape)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started
