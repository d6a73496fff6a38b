"""Decisions as plain values, fit for node metadata, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ragft_plugin.errors import DataError
from ragft_plugin.types import Decision

# Where a decision stands in the metadata of a response and of a node.
DECISION_KEY = "decision"
_NAMES = frozenset(field.name for field in fields(Decision))


def decision_to_dict(decision: Decision) -> dict[str, Any]:
    """A decision as a dict of JSON values; ``decision_from_dict`` is the inverse.

    Example:
        >>> decision_to_dict(Decision("d1", "rag", {"base": 0.0, "rag": 1.0}))["arm"]
        'rag'
    """
    return {name: _plain(getattr(decision, name)) for name in sorted(_NAMES)}


def decision_from_dict(value: Mapping[str, Any]) -> Decision:
    """The decision that ``decision_to_dict`` wrote.

    Raises:
        DataError: if it holds no ``id``, ``arm`` or ``propensities``, or a key that no decision has.
    """
    unknown = sorted(set(value) - _NAMES)
    missing = sorted({"id", "arm", "propensities"} - set(value))
    if unknown or missing:
        raise DataError(
            f"this is not a decision: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}; "
            f"pass on the value that stood under {DECISION_KEY!r} in a routed node, unchanged"
        )
    return Decision(**{**value, "reasons": tuple(value.get("reasons", ()))})


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): float(number) for name, number in value.items()}
    return list(value) if isinstance(value, tuple) else value
