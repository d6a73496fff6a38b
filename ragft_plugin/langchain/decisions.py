"""Decisions as plain values, fit for JSON, checkpoints and traces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ragft_plugin.course import Routed
from ragft_plugin.errors import DataError
from ragft_plugin.types import Decision, Evidence

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
            "pass on the value that stood under 'decision' in a routed answer, unchanged"
        )
    return Decision(**{**value, "reasons": tuple(value.get("reasons", ()))})


def routed_from(value: object, evidence: Evidence) -> Routed:
    """A query whose decision is already made, in whatever form it was passed on.

    Args:
        value: a ``Routed``, a ``Decision``, or the dict of one.
        evidence: what is known of the query; its passages are those that the decided arm shall read.
    """
    if isinstance(value, Routed):
        return value
    if isinstance(value, Mapping):
        value = decision_from_dict(value)
    if not isinstance(value, Decision):
        raise DataError(f"a decision is a Decision, its dict or a Routed, not {type(value).__name__}")
    return Routed(evidence, value, reader=None if evidence.passages is None else value.arm)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, (str, bool, int, type(None))) else float(value)  # type: ignore[arg-type]
