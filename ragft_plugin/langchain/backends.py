"""Backends of ``ChatLora``: where its generators come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, runtime_checkable

from ragft_plugin.types import Generator

# Where the folder of a base is looked up when no backend is given; and what stands for the backend in what is dumped.
BACKEND_ENV = "RAGFT_BACKEND"
_opened: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}
_lock = Lock()


@runtime_checkable
class Backend(Protocol):
    """Where the generators come from; ``ragft_plugin.lora.LoraModel`` is one."""

    def generator(self, adapter: str | None = None) -> Generator:
        """A generator that answers with one adapter, or with the base alone."""
        ...


def opened(backend: Any, adapters: Mapping[str, str]) -> Any:
    """The backend itself; or, of a folder or a name on the hub, the model in it, loaded at the first question.

    Args:
        backend: a backend, or where one is. The same place is loaded once in a process, however many ask for it: a
            base and its adapters share one worker.
        adapters: name -> folder of each adapter to load onto a base that is given by its place.

    Raises:
        AdapterError: if an adapter does not fit the base.
    """
    if not isinstance(backend, str | Path):
        return backend
    key = (str(backend), tuple(sorted(adapters.items())))
    with _lock:
        if key not in _opened:
            from ragft_plugin.lora import LoraModel

            model = LoraModel.load(str(backend))
            for name, folder in adapters.items():
                model.load_adapter(name, folder)
            _opened[key] = model
        return _opened[key]
