"""A hook of mkdocs: a line ``{{ public PACKAGE }}`` becomes the reference of every public name of the package."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

PUBLIC = re.compile(r"^\{\{ public ([\w.]+) \}\}$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return PUBLIC.sub(lambda match: public_names(match[1]), markdown)


def public_names(package: str) -> str:
    """One line of mkdocstrings for every name in ``__all__`` that the package itself defines."""
    module = import_module(package)
    lines = []
    for name in sorted(module.__all__):
        home = getattr(getattr(module, name), "__module__", "") or ""
        if home.startswith("ragft_plugin"):
            lines.append(f"::: {home}.{name}\n")
    return "\n".join(lines)
