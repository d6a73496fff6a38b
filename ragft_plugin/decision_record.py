"""Decisions and answers as plain values: what crosses into JSON, metadata, checkpoints and traces, and back.

Written once here, so that the command line, LangChain and LlamaIndex pass on the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from numbers import Real
from typing import Any, get_args

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.outcome import plain_json
from ragft_plugin.types import Answer, Decision, Passage, Stage

# Where a decision stands in what a routed component returns.
DECISION_KEY = "decision"
_NAMES = tuple(field.name for field in fields(Decision))
_NEEDED = ("id", "arm", "propensities")
_TEXTS = ("id", "arm", "router_version")
_NUMBERS = ("confidence", "stage_probability")
_TABLES = ("propensities", "values")


def decision_to_dict(decision: Decision) -> dict[str, Any]:
    """A decision as a dict of JSON values; ``decision_from_dict`` is the inverse.

    Numbers of numpy become Python's; a number that is not finite becomes None, since JSON has no other.

    Example:
        >>> decision_to_dict(Decision("d1", "rag", {"base": 0.0, "rag": 1.0}))["arm"]
        'rag'
    """
    return {name: plain_json(getattr(decision, name)) for name in _NAMES}


def decision_from_dict(value: Mapping[str, Any]) -> Decision:
    """The decision that ``decision_to_dict`` wrote; keys that have a default may be absent.

    Raises:
        DataError: if a key is missing, unknown, or holds something else than a decision has there.

    Example:
        >>> decision_from_dict({"id": "d1", "arm": "rag", "propensities": {"rag": 1}}).propensities
        {'rag': 1.0}
    """
    if not isinstance(value, Mapping):
        raise DataError(f"this is not a decision but {type(value).__name__}; expected the dict of one")
    unknown = sorted(set(map(str, value)) - set(_NAMES))
    missing = sorted(set(_NEEDED) - set(value))
    if unknown or missing:
        raise DataError(
            f"this is not a decision: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}; "
            f"pass on the value that stood under {DECISION_KEY!r} in a routed answer, unchanged"
        )
    given = dict(value)
    for name in _TEXTS:
        _expect(name, given, isinstance(given.get(name, ""), str), "a string")
    said = given.get("reasons", ())
    _expect("reasons", given, isinstance(said, list | tuple) and all(isinstance(r, str) for r in said), "strings")
    given["reasons"] = tuple(said)
    for name in _TABLES:
        given[name] = {str(arm): _number(name, number) for arm, number in _table(name, given).items()}
    for name in _NUMBERS:
        if name in given:
            given[name] = _number(name, given[name])
    _expect("stage", given, given.get("stage", "question") in get_args(Stage), f"one of {', '.join(get_args(Stage))}")
    _expect("forced", given, isinstance(given.get("forced", False), bool), "true or false")
    _expect("fallback", given, isinstance(given.get("fallback"), str | None), "the name of an arm or null")
    return Decision(**given)


def answer_to_dict(answer: Answer) -> dict[str, Any]:
    """An answer with its passages and its decision, as JSON values.

    Returns:
        ``answer, arm, seconds, passages [{id, text, score, metadata}], decision`` (None for a draft).
    """
    return {
        "answer": answer.text,
        "arm": answer.arm,
        "seconds": round(answer.seconds, 3),
        "passages": [passage_to_dict(passage) for passage in answer.passages],
        DECISION_KEY: None if answer.decision is None else decision_to_dict(answer.decision),
    }


def passage_to_dict(passage: Passage) -> dict[str, Any]:
    """A passage as JSON values; metadata that is no JSON (dates) becomes text.

    Example:
        >>> passage_to_dict(Passage("1", "A bridge."))
        {'id': '1', 'text': 'A bridge.', 'score': 0.0, 'metadata': {}}
    """
    return {
        "id": passage.id,
        "text": passage.text,
        "score": plain_json(passage.score),
        "metadata": plain_json(passage.metadata),
    }


def _table(name: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    table = given.get(name, {})
    _expect(name, given, isinstance(table, Mapping), "a number per arm")
    return table  # type: ignore[no-any-return]


def _number(name: str, value: Any) -> float:
    """A number; None, which stands for one that was not finite, is not a number."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, Real):
        raise DataError(f"{name} of a decision is {value!r}, expected a number")
    return float(value)


def _expect(name: str, given: Mapping[str, Any], fits: bool, wanted: str) -> None:
    if not fits:
        raise DataError(f"{name} of a decision is {given[name]!r}, expected {wanted}")
