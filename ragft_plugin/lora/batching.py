"""Batching: is one batch of mixed adapters faster than one batch for each?

On a small model the hooks and index operations of a mixed pass cost more than the passes they save; on a large one,
where a pass is bound by reading the base's weights, they cost less. So it is measured, on the model at hand. Only
writing counts: prompts are read by adapter either way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

_ROWS = 16  # of each adapter, as in a full worker: there it matters
_ROUNDS, _PATIENCE = 5, 1.0  # rounds, and seconds after which no further one is begun
_MARGIN = 0.8  # mixed must win clearly; groups keep a fault to one adapter's rows

logger = logging.getLogger(__name__)


def mixed_is_faster(forward: Callable[..., Any], adapters: Sequence[str | None], device: torch.device) -> bool:
    """Time one step of a few rows per adapter, both ways.

    Args:
        forward: called as ``forward(adapters, input_ids=...)``, one adapter per row.
        adapters: two or more, None for the base.
        device: where the model is.
    """
    each = [[adapter] * _ROWS for adapter in adapters]
    together = [adapter for group in each for adapter in group]
    ids = torch.ones(len(together), 1, dtype=torch.long, device=device)

    def grouped() -> None:
        for group in each:
            forward(group, input_ids=ids[:_ROWS], use_cache=False)

    def mixed() -> None:
        forward(together, input_ids=ids, use_cache=False)

    began = time.perf_counter()
    try:
        apart, joined = _seconds(grouped, device), _seconds(mixed, device)
        for _ in range(_ROUNDS - 1):
            if time.perf_counter() - began > _PATIENCE:
                break
            apart, joined = min(apart, _seconds(grouped, device)), min(joined, _seconds(mixed, device))
    except ValueError as error:  # some kinds (DoRA) cannot be mixed
        logger.debug("adapters cannot be mixed: %s", error)
        return False
    logger.debug("a step takes %.2g s in groups, %.2g s mixed", apart, joined)
    return joined < _MARGIN * apart


def _seconds(way: Callable[[], None], device: torch.device) -> float:
    # On a CPU the thread's own time, which does not count what else the machine does meanwhile.
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = clock()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started
