"""Names of adapters: short, safe as a folder, and none that PEFT mistakes for a part of itself."""

from __future__ import annotations

import re

from ragft_plugin.errors import AdapterError

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_RESERVED = ("lora", "base_layer", "weight", "default")


def check_name(name: str) -> str:
    """Return the name.

    Raises:
        AdapterError: if it cannot name an adapter.
    """
    if not _NAME.fullmatch(name) or name in _RESERVED or name == "base":
        raise AdapterError(
            f"{name!r} cannot name an adapter: take small letters, digits, - and _, starting with a letter, and none "
            f"of {', '.join((*_RESERVED, 'base'))}"
        )
    return name
