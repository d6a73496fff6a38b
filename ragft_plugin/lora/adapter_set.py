"""The adapters of one base: put on, checked, replaced and taken off between two steps of the worker.

PEFT keeps all adapters inside one model and is not thread-safe, so everything here that changes it runs on the
worker's thread. Each version gets a PEFT name of its own: what an old version has begun, it finishes, while the new one
answers already under the user's name.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, set_peft_model_state_dict

from ragft_plugin.errors import AdapterError
from ragft_plugin.lora.base import Base
from ragft_plugin.lora.manifest import Probe
from ragft_plugin.lora.probes import check_probe
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.lora.worker import Worker


class AdapterSet:
    """Adapters of one base, by the names that users gave them.

    Args:
        base: the base.
        worker: owns the thread on which the model may be touched.
    """

    def __init__(self, base: Base, worker: Worker) -> None:
        self._base = base
        self._worker = worker
        self._peft: Any = None
        self._names: dict[str, str] = {}  # the user's name -> PEFT's name
        self._retired: set[str] = set()
        self._count = itertools.count(1)

    @property
    def names(self) -> tuple[str, ...]:
        """The users' names, sorted."""
        return tuple(sorted(self._names))

    def resolve(self, name: str | None) -> str | None:
        """PEFT's name of an adapter; None is the base. From any thread.

        Raises:
            AdapterError: if no adapter of that name is loaded.
        """
        if name is None:
            return None
        try:
            return self._names[name]
        except KeyError:
            loaded = ", ".join(self.names) or "none"
            raise AdapterError(
                f"no adapter {name!r} is loaded (loaded: {loaded}); load_adapter({name!r}, folder) first"
            ) from None

    def some(self, n: int) -> list[str]:
        """PEFT's names of up to ``n`` adapters."""
        return list(self._names.values())[:n]

    # What follows runs on the worker's thread.

    def attach(
        self,
        name: str,
        config: Any,
        weights: dict[str, torch.Tensor],
        folder: Path,
        probe: Probe | None,
    ) -> None:
        """Put an adapter on, in place of one of the same name. If it is refused, all is as it was.

        Args:
            name: the user's name for it.
            config: PEFT's configuration.
            weights: as they stand in ``adapter_model.safetensors``.
            folder: named in messages.
            probe: what it said when it was saved.

        Raises:
            AdapterError: if it does not fit.
        """
        self._sweep()
        inner = f"{name}_{next(self._count)}"
        try:
            self._insert(inner, config, weights, folder)
            check_probe(
                self._worker.logprobs,
                inner,
                self._base.renderer,
                probe,
                folder,
                exact=self._base.model.dtype == torch.float32,
            )
        except Exception as error:
            self._delete(inner)
            if isinstance(error, AdapterError):
                raise
            raise AdapterError(
                f"{folder} does not fit {self._base.folder}: {str(error).splitlines()[0]}; load it on the base that "
                "it was trained on"
            ) from error
        old = self._names.get(name)
        self._names[name] = inner
        if old is not None:
            self._retired.add(old)
            self._sweep()
        self._refresh()

    def retire(self, name: str) -> None:
        """Take an adapter off once what it has begun is finished.

        Raises:
            AdapterError: if no adapter of that name is loaded.
        """
        self.resolve(name)
        self._retired.add(self._names.pop(name))
        self._sweep()

    def merge(self, name: str) -> Any:
        """Work an adapter's update into the base's weights and give the plain model away.

        Nothing can be asked of this set afterwards.

        Raises:
            AdapterError: if there is none of that name, or it has not-a-number in it.
        """
        inner = self.resolve(name)
        # The worker sets only what a forward pass reads, so PEFT is told of the choice here.
        self._peft.set_adapter(inner, inference_mode=True)
        self._peft.base_model.enable_adapter_layers()
        try:
            merged = self._peft.merge_and_unload(safe_merge=True, adapter_names=[inner])
        except ValueError as error:
            raise AdapterError(f"{name!r} cannot be merged: {error}; train it again") from error
        self._peft, self._names = None, {}
        self._refresh()
        return merged

    def _insert(self, inner: str, config: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
        # PEFT draws a start for the weights, which are then read from the file; nobody should notice.
        with quiet(), torch.random.fork_rng(devices=[]):
            if self._peft is None:
                self._peft = get_peft_model(self._base.model, config, adapter_name=inner)
            else:
                self._peft.add_adapter(inner, config)
            result: Any = set_peft_model_state_dict(self._peft, weights, adapter_name=inner)
        own = self._peft.state_dict().keys()
        missing = [k for k in result.missing_keys if f".{inner}." in k]
        if missing or result.unexpected_keys or not any(f".{inner}." in k for k in own):
            raise AdapterError(
                f"{folder}: {len(missing)} weights are missing and {len(result.unexpected_keys)} fit nowhere "
                f"(first: {(missing + list(result.unexpected_keys))[:1]}); it was trained on another base or "
                "its files are of different versions"
            )
        for parameter in self._peft.parameters():
            parameter.requires_grad_(False)
        self._peft.to(self._base.model.device).eval()
        self._refresh()

    def _sweep(self) -> None:
        """Delete retired adapters that have nothing under way any more."""
        for inner in [i for i in self._retired if not self._worker.in_use(i)]:
            self._delete(inner)
            self._retired.discard(inner)

    def _delete(self, inner: str) -> None:
        if self._peft is None:
            return
        if set(self._peft.peft_config) <= {inner}:
            self._peft.unload()
            self._peft = None
        elif inner in self._peft.peft_config:
            with quiet():
                self._peft.delete_adapter(inner)
        self._refresh()

    def _refresh(self) -> None:
        self._worker.replace_model(self._base.model, self._peft)
