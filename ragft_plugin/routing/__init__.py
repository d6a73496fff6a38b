"""Routing: for each query, which arm answers it, and how much to find out before deciding.

Needs numpy and pydantic at run time; scikit-learn is imported only while fitting.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ragft_plugin.routing.adapters import AdapterRecord
    from ragft_plugin.routing.policies import POLICIES
    from ragft_plugin.routing.router import Router
    from ragft_plugin.routing.signals.registry import SIGNALS, signal

_EXPORTS = {
    "AdapterRecord": "adapters",
    "POLICIES": "policies",
    "Router": "router",
    "SIGNALS": "signals.registry",
    "signal": "signals.registry",
}

__all__ = ["POLICIES", "SIGNALS", "AdapterRecord", "Router", "signal"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
