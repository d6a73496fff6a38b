"""Filters: conditions on metadata, evaluated exactly and before the search.

Grammar (a mapping; all its entries must hold):

    {"source": "a.md"}                          equal
    {"year": {"$gte": 2020, "$lt": 2024}}       $eq $ne $gt $gte $lt $lte
    {"lang": {"$in": ["en", "de"]}}             $in $nin
    {"tags": {"$contains": "law"}}              an element of a list
    {"page": {"$exists": true}}                 the key is there (null counts as there)
    {"$and": [f, g]}  {"$or": [f, g]}  {"$not": f}

A key names one top-level entry of the metadata, dots and all. Logic is two-valued: a comparison with a missing
value is false, ``$ne`` and ``$nin`` are the negations of ``$eq`` and ``$in`` and so hold for it, and ``None``
equals both null and missing. Numbers compare with numbers, strings with strings (by code point); true and false
are not numbers. The empty filter holds for everything.

``matches`` is the plain evaluation of one passage; ``select`` gives the same answer for a whole segment from
sorted columns, in time that grows with the result, not with the knowledge base.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError
from ragft_plugin.types import Filter, Metadata

Rows = NDArray[np.int64]  # sorted, without repeats
_MISSING = object()
_DEEPEST = 50
_ORDERED = ("$gt", "$gte", "$lt", "$lte")
_OPERATORS = ("$eq", "$ne", "$in", "$nin", "$contains", "$exists", *_ORDERED)


def check(filter: Filter, *, depth: int = 0) -> None:
    """Refuse a filter that does not follow the grammar.

    Args:
        filter: what a caller gave.
        depth: of this part in the whole.

    Raises:
        ConfigError: naming the operator or value.
    """
    if depth > _DEEPEST:
        raise ConfigError(f"a filter must not be nested deeper than {_DEEPEST} levels")
    if not isinstance(filter, Mapping):
        raise ConfigError(f"a filter must be a mapping, got {type(filter).__name__}: {filter!r}")
    for key, condition in filter.items():
        if key in ("$and", "$or"):
            if not isinstance(condition, (list, tuple)):
                raise ConfigError(f"{key} takes a list of filters, got {condition!r}")
            for part in condition:
                check(part, depth=depth + 1)
        elif key == "$not":
            check(condition, depth=depth + 1)
        elif not isinstance(key, str) or key.startswith("$"):
            raise ConfigError(f"unknown operator {key!r} in a filter; known: $and, $or, $not")
        elif isinstance(condition, Mapping):
            _check_operators(key, condition)
        else:
            _check_value(key, "$eq", condition)


def says_nothing(filter: Filter) -> bool:
    """Say whether a filter, checked by ``check``, or a part of it is empty: a rule that somebody forgot to fill in.

    Example:
        >>> says_nothing({"$and": []}), says_nothing({"team": {"$in": []}})
        (True, False)
    """
    if not filter:
        return True
    for key, condition in filter.items():
        parts = condition if key in ("$and", "$or") else [condition] if key == "$not" else None
        if parts is not None and (not parts or any(says_nothing(part) for part in parts)):
            return True
    return False


def matches(filter: Filter, metadata: Metadata) -> bool:
    """Say whether metadata satisfies a filter (checked by ``check``).

    Example:
        >>> matches({"year": {"$gte": 2020}, "$not": {"lang": "de"}}, {"year": 2024})
        True
    """
    for key, condition in filter.items():
        if key == "$and":
            holds = all(matches(part, metadata) for part in condition)
        elif key == "$or":
            holds = any(matches(part, metadata) for part in condition)
        elif key == "$not":
            holds = not matches(condition, metadata)
        else:
            value = metadata.get(key, _MISSING)
            holds = all(_holds(op, value, wanted) for op, wanted in _operators(condition))
        if not holds:
            return False
    return True


class Column:
    """The values of one metadata key over the rows of a segment, laid out for look-up.

    Args:
        entries: pairs (row, value) of the rows that have the key, in order of rows.
    """

    def __init__(self, entries: Iterable[tuple[int, Any]]) -> None:
        equal: dict[tuple[str, Any], list[int]] = {}
        element: dict[tuple[str, Any], list[int]] = {}
        present: list[int] = []
        for row, value in entries:
            present.append(row)
            if isinstance(value, list):
                for item in {_typed(item): None for item in value if _is_scalar(item)}:
                    element.setdefault(item, []).append(row)
            elif _is_scalar(value):
                equal.setdefault(_typed(value), []).append(row)
        self.present = _rows(present)
        self._equal = {value: _rows(rows) for value, rows in equal.items()}
        self._element = {value: _rows(rows) for value, rows in element.items()}
        self._sorted = {kind: self._order(equal, kind) for kind in ("number", "string")}

    @staticmethod
    def _order(equal: Mapping[tuple[str, Any], list[int]], kind: str) -> tuple[list[Any], Rows]:
        pairs = sorted(((v, rows) for (k, v), rows in equal.items() if k == kind), key=lambda p: p[0])
        values = [value for value, rows in pairs for _ in rows]
        return values, _rows([row for _, rows in pairs for row in rows])

    def select(self, operator: str, wanted: Any, universe: Rows) -> Rows:
        """Return the rows of ``universe`` for which ``value operator wanted`` holds."""
        if operator in ("$ne", "$nin"):
            opposite = {"$ne": "$eq", "$nin": "$in"}[operator]
            return np.setdiff1d(universe, self.select(opposite, wanted, universe), assume_unique=True)
        if operator == "$exists":
            there = self.present
            return there if wanted else np.setdiff1d(universe, there, assume_unique=True)
        if operator == "$in":
            return _union([self.select("$eq", value, universe) for value in wanted])
        if operator == "$contains":
            return self._element.get(_typed(wanted), _NONE)
        if operator == "$eq":
            found = self._equal.get(_typed(wanted), _NONE)
            if wanted is not None:
                return found
            return _union([found, np.setdiff1d(universe, self.present, assume_unique=True)])
        return self._range(operator, wanted)

    def _range(self, operator: str, wanted: Any) -> Rows:
        kind = _typed(wanted)[0]
        values, rows = self._sorted[kind]
        cut = (bisect_right if operator in ("$gt", "$lte") else bisect_left)(values, wanted)
        return np.sort(rows[cut:] if operator in ("$gt", "$gte") else rows[:cut])


def select(filter: Filter, column: Callable[[str], Column], universe: Rows) -> Rows:
    """Return the rows of ``universe`` that satisfy a filter, sorted.

    Args:
        filter: checked by ``check``.
        column: gives the column of a key.
        universe: all rows, sorted.
    """
    chosen = universe
    for key, condition in filter.items():
        if key == "$and":
            parts = [select(part, column, universe) for part in condition]
        elif key == "$or":
            parts = [_union([select(part, column, universe) for part in condition])]
        elif key == "$not":
            parts = [np.setdiff1d(universe, select(condition, column, universe), assume_unique=True)]
        else:
            parts = [column(key).select(op, wanted, universe) for op, wanted in _operators(condition)]
        for part in parts:
            chosen = part if chosen is universe else np.intersect1d(chosen, part, assume_unique=True)
    return chosen


_NONE: Rows = np.empty(0, dtype=np.int64)


def _rows(rows: list[int]) -> Rows:
    return np.asarray(rows, dtype=np.int64)


def _union(parts: list[Rows]) -> Rows:
    if not parts:
        return _NONE
    return parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))


def _operators(condition: Any) -> list[tuple[str, Any]]:
    return list(condition.items()) if isinstance(condition, Mapping) else [("$eq", condition)]


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _typed(value: Any) -> tuple[str, Any]:
    """Tell true from 1: Python says that they are equal."""
    if isinstance(value, bool):
        return "bool", value
    if isinstance(value, (int, float)):
        return "number", value
    return ("null" if value is None else "string"), value


def _holds(operator: str, value: Any, wanted: Any) -> bool:
    if operator == "$exists":
        return (value is not _MISSING) is wanted
    if operator in ("$ne", "$nin"):
        return not _holds({"$ne": "$eq", "$nin": "$in"}[operator], value, wanted)
    if operator == "$in":
        return any(_holds("$eq", value, item) for item in wanted)
    if operator == "$contains":
        return isinstance(value, list) and any(_typed(item) == _typed(wanted) for item in value if _is_scalar(item))
    if value is _MISSING or not _is_scalar(value):
        return operator == "$eq" and wanted is None and value is _MISSING
    kind, other = _typed(value)[0], _typed(wanted)[0]
    if kind != other:
        return False
    if operator == "$eq":
        return bool(value == wanted)
    less, equal = value < wanted, value == wanted
    truth: dict[str, bool] = {
        "$lt": less,
        "$lte": less or equal,
        "$gt": not less and not equal,
        "$gte": not less,
    }
    return truth[operator]


def _check_operators(key: str, condition: Mapping[Any, Any]) -> None:
    if not condition:
        raise ConfigError(f"the filter on {key!r} is empty; give a value or one of {', '.join(_OPERATORS)}")
    for operator, wanted in condition.items():
        if operator not in _OPERATORS:
            raise ConfigError(f"unknown operator {operator!r} in the filter on {key!r}; known: {', '.join(_OPERATORS)}")
        if operator == "$exists":
            if not isinstance(wanted, bool):
                raise ConfigError(f"$exists on {key!r} takes true or false, got {wanted!r}")
        elif operator in ("$in", "$nin"):
            if not isinstance(wanted, (list, tuple, set, frozenset)):
                raise ConfigError(f"{operator} on {key!r} takes a list, got {wanted!r}")
            for value in wanted:
                _check_value(key, operator, value)
        else:
            _check_value(key, operator, wanted)


def _check_value(key: str, operator: str, value: Any) -> None:
    if not _is_scalar(value) or value != value:
        raise ConfigError(f"{operator} on {key!r} compares with a string, number, true, false or None, got {value!r}")
    if operator in _ORDERED and (value is None or isinstance(value, bool)):
        raise ConfigError(f"{operator} on {key!r} compares with a number or a string, got {value!r}")
