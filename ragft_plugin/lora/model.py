"""The model: one base, its adapters, and the worker that writes with them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from peft import get_peft_model, set_peft_model_state_dict

from ragft_plugin.errors import AdapterError
from ragft_plugin.lora.adapter_files import read_adapter
from ragft_plugin.lora.base import Base, Dtype, load_base
from ragft_plugin.lora.batching import mixed_is_faster
from ragft_plugin.lora.fingerprints import Fingerprints, fingerprints
from ragft_plugin.lora.generator import LoraGenerator
from ragft_plugin.lora.manifest import Manifest, Probe
from ragft_plugin.lora.names import check_name
from ragft_plugin.lora.probes import check_probe
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.lora.registry import Registry, check_files
from ragft_plugin.lora.worker import Worker

Batching = Literal["auto", "grouped", "mixed"]

logger = logging.getLogger(__name__)


class LoraModel:
    """A causal language model with any number of adapters, for any number of threads and event loops.

    Args:
        base: the loaded base.
        max_rows: answers written at once; more wait.
        max_pending: requests that may wait; more raise OverloadedError.
        batching: "grouped" writes the rows of each adapter in a batch of their own, "mixed" writes all in one, "auto"
            measures which is faster whenever an adapter is loaded.

    Example:
        >>> with LoraModel.load("models/base") as model:  # doctest: +SKIP
        ...     model.load_adapter("legal", "adapters/legal/1")
        ...     model.generator("legal").generate([closed_book("Who signs?")])
    """

    def __init__(
        self,
        base: Base,
        *,
        max_rows: int = 64,
        max_pending: int = 1024,
        batching: Batching = "auto",
    ) -> None:
        self.base = base
        self._batching = batching
        self.renderer = base.renderer
        self.context = base.context
        self.worker = Worker(base.model, base.renderer, max_rows=max_rows, max_pending=max_pending)
        self._peft: Any = None
        self._names: dict[str, str] = {}  # the user's name -> PEFT's name
        self._retired: set[str] = set()
        self._count = itertools.count(1)

    @classmethod
    def load(
        cls,
        base: str | Path,
        *,
        device: str = "auto",
        dtype: Dtype = "auto",
        max_rows: int = 64,
        max_pending: int = 1024,
        batching: Batching = "auto",
    ) -> Self:
        """Load a base.

        Args:
            base: a folder with a Hugging Face causal language model, or its name on the hub.
            device: "auto", "cpu", "cuda", ...
            dtype: "auto" is float32 on a CPU, the stored one elsewhere.
            max_rows: answers written at once.
            max_pending: requests that may wait.
            batching: see the class.

        Raises:
            ConfigError: if it cannot be loaded.
        """
        loaded = load_base(base, device=device, dtype=dtype)
        return cls(loaded, max_rows=max_rows, max_pending=max_pending, batching=batching)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded adapters, sorted."""
        return tuple(sorted(self._names))

    def generator(self, adapter: str | None = None, **defaults: Any) -> LoraGenerator:
        """A generator that answers with one adapter, or with the base alone.

        Args:
            adapter: a loaded adapter, or None.
            **defaults: generation options, see ``LoraGenerator``.

        Raises:
            AdapterError: if no adapter of that name is loaded.
        """
        self.resolve(adapter)
        return LoraGenerator(self, adapter, **defaults)

    def resolve(self, adapter: str | None) -> str | None:
        """PEFT's name of an adapter.

        Raises:
            AdapterError: if no adapter of that name is loaded.
        """
        if adapter is None:
            return None
        try:
            return self._names[adapter]
        except KeyError:
            loaded = ", ".join(self.adapters) or "none"
            raise AdapterError(
                f"no adapter {adapter!r} is loaded (loaded: {loaded}); load_adapter({adapter!r}, folder) first"
            ) from None

    def load_adapter(self, name: str, folder: str | Path, *, trust: bool = False) -> None:
        """Load an adapter, or a new version of one while the old goes on answering what it has begun.

        Args:
            name: what to call it.
            folder: adapter_config.json and adapter_model.safetensors, as PEFT saves them.
            trust: load it although it was trained on another base, tokenizer or template.

        Raises:
            AdapterError: if it is damaged, of a kind that cannot share a base, or does not fit.
        """
        check_name(name)
        path = _current_version(Path(folder))
        manifest = Manifest.read(path)
        if manifest is None:
            logger.info("%s has no manifest, so it cannot be checked that it fits the base", path)
        elif not trust:
            check_files(path, manifest)
            self._check_fingerprints(manifest, path)
        probe = None if manifest is None or trust else manifest.probe
        config, weights = read_adapter(path)
        self.worker.call(lambda: self._attach(name, config, weights, path, probe))

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; what it has begun to answer is finished first.

        Raises:
            AdapterError: if no adapter of that name is loaded.
        """
        self.resolve(name)
        self.worker.call(lambda: self._retire(name))

    def logprobs(self, ids: Sequence[int], start: int, *, adapter: str | None = None) -> list[float]:
        """How likely a text is: natural log-probability of each token from position ``start`` (at least 1) on."""
        inner = self.resolve(adapter)
        return self.worker.call(lambda: self.worker.logprobs(ids, start, inner))

    def close(self) -> None:
        """Stop the worker; requests under way fail. Closing twice is harmless."""
        self.worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @cached_property
    def fingerprints(self) -> Fingerprints:
        """Fingerprints of base, tokenizer and template."""
        return fingerprints(self.base.folder, self.base.tokenizer, self.renderer.template)

    def _check_fingerprints(self, manifest: Manifest, folder: Path) -> None:
        mine, theirs = self.fingerprints, manifest.fingerprints
        for part in ("base", "tokenizer", "template"):
            if getattr(mine, part) != getattr(theirs, part):
                raise AdapterError(
                    f"{folder} was trained with another {part} ({manifest.base}) than {self.base.folder} has; load "
                    "it there, train it again on this one, or load it with trust=True at your own risk"
                )

    # What follows runs on the worker's thread.

    def _attach(
        self,
        name: str,
        config: Any,
        weights: dict[str, torch.Tensor],
        folder: Path,
        probe: Probe | None,
    ) -> None:
        self._sweep()
        inner = f"{name}_{next(self._count)}"
        try:
            # PEFT draws a start for the weights, which are then read from the file; nobody should notice.
            with quiet(), torch.random.fork_rng(devices=[]):
                if self._peft is None:
                    self._peft = get_peft_model(self.base.model, config, adapter_name=inner)
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
            self._peft.to(self.base.model.device).eval()
            self._refresh()
            check_probe(
                self.worker.logprobs,
                inner,
                self.renderer,
                probe,
                folder,
                exact=self.base.model.dtype == torch.float32,
            )
        except Exception as error:
            self._delete(inner)
            if isinstance(error, AdapterError):
                raise
            raise AdapterError(
                f"{folder} does not fit {self.base.folder}: {str(error).splitlines()[0]}; load it on the base that "
                "it was trained on"
            ) from error
        old = self._names.get(name)
        self._names[name] = inner
        if old is not None:
            self._retired.add(old)
            self._sweep()
        self._refresh()
        mixed = self._batching == "mixed"
        if self._batching == "auto":
            some: list[str | None] = [None, *list(self._names.values())[:3]]
            mixed = mixed_is_faster(self.worker.forward, some, self.base.model.device)
        self.worker.set_mixed(mixed)

    def _retire(self, name: str) -> None:
        self._retired.add(self._names.pop(name))
        self._sweep()

    def _sweep(self) -> None:
        """Delete retired adapters that nobody waits for any more."""
        for inner in [i for i in self._retired if not self.worker.in_use(i)]:
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
        self.worker.replace_model(self.base.model, self._peft)


def _current_version(folder: Path) -> Path:
    """The folder itself, or the current version if it is one of a registry."""
    if not (folder / "adapter_config.json").exists() and (folder / "current.json").exists():
        return Registry(folder.parent).folder(folder.name)
    return folder
