"""The model: one base, its adapters, and the worker that writes with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ragft_plugin.errors import AdapterError
from ragft_plugin.lora.adapter_files import read_adapter
from ragft_plugin.lora.adapter_set import AdapterSet
from ragft_plugin.lora.base import Base, Dtype, load_base
from ragft_plugin.lora.batching import mixed_is_faster
from ragft_plugin.lora.fingerprints import Fingerprints, fingerprints
from ragft_plugin.lora.generator import LoraGenerator
from ragft_plugin.lora.manifest import Manifest
from ragft_plugin.lora.names import check_name
from ragft_plugin.lora.registry import check_files, current_version
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
        self._set = AdapterSet(base, self.worker)
        self.worker.resolve = self._set.resolve
        self._sources: dict[str, tuple[Path, Path]] = {}  # name -> folder as given, folder that was read

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
        return self._set.names

    def generator(self, adapter: str | None = None, **defaults: Any) -> LoraGenerator:
        """A generator that answers with one adapter, or with the base alone.

        Args:
            adapter: a loaded adapter, or None.
            **defaults: generation options, see ``LoraGenerator``.

        Raises:
            AdapterError: if no adapter of that name is loaded.
        """
        self.check_loaded(adapter)
        return LoraGenerator(self, adapter, **defaults)

    def check_loaded(self, adapter: str | None) -> None:
        """Nothing, if the adapter is loaded or None.

        Raises:
            AdapterError: if no adapter of that name is loaded.
        """
        self._set.resolve(adapter)

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
        path = current_version(Path(folder))
        manifest = Manifest.read(path)
        if manifest is None:
            logger.info("%s has no manifest, so it cannot be checked that it fits the base", path)
        elif not trust:
            check_files(path, manifest)
            self._check_fingerprints(manifest, path)
        probe = None if manifest is None or trust else manifest.probe
        config, weights = read_adapter(path)

        def attach() -> None:  # on the worker's thread
            self._set.attach(name, config, weights, path, probe)
            self._sources[name] = (Path(folder), path)
            self._choose_batching()

        self.worker.call(attach)

    def reload(self, *, trust: bool = False) -> list[str]:
        """Load the versions that registries have promoted, or rolled back to, since the adapters were loaded.

        Requests under way are finished by the version that began them. Adapters given as plain folders stay.

        Args:
            trust: as in ``load_adapter``.

        Returns:
            Names of the adapters that another version answers for now.

        Raises:
            AdapterError: if a version does not fit; the one before goes on answering.

        Example:
            >>> model.load_adapter("legal", "adapters/legal")  # doctest: +SKIP
            >>> Registry("adapters").promote("legal", "2")  # doctest: +SKIP
            >>> model.reload()  # doctest: +SKIP
            ['legal']
        """
        changed = []
        for name, (given, read) in sorted(self._sources.copy().items()):
            if current_version(given) != read:
                self.load_adapter(name, given, trust=trust)
                changed.append(name)
        return changed

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; what it has begun to answer is finished first.

        Raises:
            AdapterError: if no adapter of that name is loaded.
        """

        def retire() -> None:
            self._set.retire(name)
            del self._sources[name]

        self.worker.call(retire)

    def merge_adapter(self, name: str) -> Any:
        """The base with an adapter worked into its weights, as a plain transformers model; then close this one.

        To save it with a check, see ``merge_adapter`` in ``ragft_plugin.lora``.

        Raises:
            AdapterError: if no adapter of that name is loaded, or it cannot be merged.
        """
        return self.worker.call(lambda: self._set.merge(name))

    def logprobs(self, ids: Sequence[int], start: int, *, adapter: str | None = None) -> list[float]:
        """How likely a text is: natural log-probability of each token from position ``start`` (at least 1) on."""
        return self.worker.call(lambda: self.worker.logprobs(ids, start, self._set.resolve(adapter)))

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

    def _choose_batching(self) -> None:
        mixed = self._batching == "mixed"
        if self._batching == "auto":
            mixed = mixed_is_faster(self.worker.forward, [None, *self._set.some(3)], self.base.model.device)
        self.worker.set_mixed(mixed)
