"""The watch: progress, time, and an end to a training from which nothing good can come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from ragft_plugin.errors import AdapterError


class Watch(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Reports progress, keeps time, and stops a training that has gone wrong.

    Args:
        steps: optimiser steps in all.
        max_seconds: stop after so long.
        progress: called with (steps done, steps in all).
    """

    def __init__(
        self,
        steps: int,
        max_seconds: float | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.timed_out = False
        self._steps = steps
        self._end = None if max_seconds is None else time.monotonic() + max_seconds
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the step, and end the training when its time is up."""
        if self._progress is not None:
            self._progress(state.global_step, self._steps)
        if self._end is not None and time.monotonic() >= self._end:
            self.timed_out = state.global_step < self._steps
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Look at the losses."""
        check_loss(logs or {}, step=state.global_step, learning_rate=args.learning_rate)


def check_loss(logs: Mapping[str, Any], *, step: int, learning_rate: float) -> None:
    """Stop a training from which nothing good can come.

    Args:
        logs: what the Trainer logs, with ``loss``, ``grad_norm`` or ``eval_loss``.
        step: optimiser steps so far.
        learning_rate: named in the message.

    Raises:
        AdapterError: if a loss is not a number, or nothing is learnt from.
    """
    for name in ("loss", "grad_norm", "eval_loss"):
        value = logs.get(name)
        if value is not None and not math.isfinite(value):
            raise AdapterError(
                f"{name} is {value} after step {step}; lower learning_rate (it is {learning_rate:g}), lower "
                "max_grad_norm, or train in float32. The last checkpoint before it is kept"
            )
    if logs.get("loss") == 0.0 and logs.get("grad_norm") == 0.0:
        raise AdapterError(
            f"loss and gradient are exactly 0 at step {step}, so nothing is learnt; check with a preview that the "
            "rows have answer tokens that are not masked, and that target_modules names layers the base uses"
        )
