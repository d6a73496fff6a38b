"""An extension of griffe: ``Example:`` in a docstring is a section of code, as ``Examples:`` is."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the section while docstrings are collected."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
