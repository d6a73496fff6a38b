"""Switching adapters: which one the next forward pass uses.

PEFT's own ``set_adapter`` walks the whole module tree and toggles gradients, about a millisecond on a small model,
as much as the forward pass itself. The worker switches before nearly every step, so the tuner layers are listed once
and only their choice is set. Under ``inference_mode`` gradients do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

_UNKNOWN = object()


class AdapterSwitch:
    """Chooses the adapter of a model. To be used from one thread only.

    Args:
        model: a PeftModel, or the bare base while no adapter is loaded.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._layers: list[Any] = [
            m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)
        ]
        self._current: object = _UNKNOWN

    def use(self, adapter: str | None) -> None:
        """Let the next forward passes use ``adapter``, or the base alone if None."""
        if adapter == self._current:
            return
        self._current = _UNKNOWN  # stays so if a layer refuses half-way
        off = adapter is None
        active = [adapter]
        for layer in self._layers:
            if not off:
                layer._active_adapter = active
            layer._disable_adapters = off
        self._current = adapter

    @contextmanager
    def mixed(self, adapters: Sequence[str | None]) -> Iterator[dict[str, Any]]:
        """One adapter per row: yields the argument to pass to PEFT's forward.

        PEFT leaves its hooks behind when such a forward pass raises, and they would silently route every later
        call, so whatever hook was not there before is removed again.
        """
        enabled = next((a for a in adapters if a is not None), None)
        self.use(enabled)
        before = [set(layer._forward_pre_hooks) for layer in self._layers]
        try:
            yield {"adapter_names": ["__base__" if a is None else a for a in adapters]}
        finally:
            for layer, known in zip(self._layers, before, strict=True):
                for hook in [h for h in layer._forward_pre_hooks if h not in known]:
                    layer._forward_pre_hooks.pop(hook, None)
                    layer._forward_pre_hooks_with_kwargs.pop(hook, None)
