"""Filters of LlamaIndex <-> filters of the package (grammar: ``ragft_plugin.retrieval.filters``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from pydantic import ValidationError

from ragft_plugin.errors import ConfigError
from ragft_plugin.types import Filter

_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.CONTAINS: "$contains",
}
_BACK = {name: operator for operator, name in _OPERATORS.items()}


def filter_from(filters: MetadataFilters | None) -> Filter | None:
    """The package's filter of LlamaIndex' ``MetadataFilters``.

    ``IS_EMPTY`` holds for a missing value, null and the empty text; not for an empty list, since the grammar compares
    no lists.

    Raises:
        ConfigError: for an operator that matches text inside a value, which the grammar does not have.
    """
    if filters is None or not filters.filters:
        return None
    parts = [_part(one) for one in filters.filters]
    if filters.condition == FilterCondition.OR:
        return {"$or": parts}
    if filters.condition == FilterCondition.NOT:
        return {"$not": {"$or": parts}}
    return parts[0] if len(parts) == 1 else {"$and": parts}


def metadata_filters_from(filter: Filter | None) -> MetadataFilters | None:
    """LlamaIndex' ``MetadataFilters`` of the package's filter.

    Raises:
        ConfigError: for what LlamaIndex cannot say: ``$exists``, true, false and null as values or among them, values
            of several types, an empty list of alternatives.
    """
    if not filter:
        return None
    parts: list[MetadataFilter | MetadataFilters] = []
    for key, condition in filter.items():
        if key in ("$and", "$or"):
            joined = FilterCondition.AND if key == "$and" else FilterCondition.OR
            parts.append(MetadataFilters(filters=[_nested(key, one) for one in condition], condition=joined))
            if not condition:
                raise ConfigError(f"{key} of nothing cannot be said as MetadataFilters; leave it out")
        elif key == "$not":
            parts.append(MetadataFilters(filters=[_nested(key, condition)], condition=FilterCondition.NOT))
        else:
            wanted = condition if isinstance(condition, Mapping) else {"$eq": condition}
            parts.extend(_comparison(key, name, value) for name, value in wanted.items())
    return MetadataFilters(filters=parts, condition=FilterCondition.AND)


def _part(one: MetadataFilter | MetadataFilters) -> dict[str, Any]:
    if isinstance(one, MetadataFilters):
        return dict(filter_from(one) or {})
    if one.operator == FilterOperator.IS_EMPTY:
        return {one.key: {"$in": [None, ""]}}
    if one.operator in (FilterOperator.ANY, FilterOperator.ALL):
        values = one.value if isinstance(one.value, list) else [one.value]
        joined = "$or" if one.operator == FilterOperator.ANY else "$and"
        return {joined: [{one.key: {"$contains": value}} for value in values]}
    if one.operator not in _OPERATORS:
        known = ", ".join(operator.value for operator in (*_OPERATORS, FilterOperator.ANY, FilterOperator.ALL))
        raise ConfigError(f"filter on {one.key!r}: operator {one.operator.value!r} is not known; known: {known}")
    return {one.key: {_OPERATORS[one.operator]: one.value}}


def _nested(key: str, filter: Filter) -> MetadataFilters:
    found = metadata_filters_from(filter)
    if found is None:
        raise ConfigError(f"{key} of the empty filter cannot be said as MetadataFilters; leave it out")
    return found


def _comparison(key: str, name: str, value: Any) -> MetadataFilter:
    if name not in _BACK or value is None or isinstance(value, bool):
        raise ConfigError(f"filter on {key!r}: {name} {value!r} cannot be said as MetadataFilters")
    listed = list(value) if isinstance(value, (list, tuple, set, frozenset)) else value
    try:
        return MetadataFilter(key=key, value=listed, operator=_BACK[name])
    except ValidationError as error:
        raise ConfigError(f"filter on {key!r}: {name} {value!r} cannot be said as MetadataFilters") from error
