"""Adapters: one base with many of them, served in mixed batches, trained, checked and kept.

Needs the extra ``lora``.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ragft_plugin.errors import MissingExtraError

if TYPE_CHECKING:
    from ragft_plugin.lora.generator import LoraGenerator
    from ragft_plugin.lora.model import LoraModel

_EXPORTS = {
    "LoraGenerator": "generator",
    "LoraModel": "model",
}

for _package in ("torch", "transformers", "peft", "safetensors"):
    if find_spec(_package) is None:
        raise MissingExtraError(_package, "lora")

__all__ = ["LoraGenerator", "LoraModel"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
