"""Filters: the same answer as a plain reading of the grammar, before the search and exactly."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragft_plugin.errors import ConfigError
from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.retrieval.filters import Column, check, matches, select
from ragft_plugin.types import Passage

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, 1.0, -0.0, 2.0**60, 10**20, 10**20 + 1]),
    st.sampled_from(["", "a", "b", "ä", "1", "true"]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.just({"deep": 1}))
KEYS = st.sampled_from(["x", "y", "a.b", "source"])
METADATA = st.dictionaries(KEYS, VALUES, max_size=3)
ORDERED = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, 10**20]), st.sampled_from(["", "a", "ä"]))
LEAVES = st.one_of(
    SCALARS,
    st.dictionaries(st.sampled_from(["$eq", "$ne", "$contains"]), SCALARS, min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), ORDERED, min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(["$in", "$nin"]), st.lists(SCALARS, max_size=3), min_size=1, max_size=2),
    st.fixed_dictionaries({"$exists": st.booleans()}),
)
FILTERS = st.recursive(
    st.dictionaries(KEYS, LEAVES, max_size=2),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=6,
)


def kind(value: Any) -> str:
    if value is None or isinstance(value, (bool, list, dict, str)):
        return type(value).__name__
    return "number"


def same(a: Any, b: Any) -> bool:
    return kind(a) == kind(b) and a == b


def oracle(wanted: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """The grammar, read aloud; written without a look at the implementation."""
    truths = []
    for key, condition in wanted.items():
        if key == "$and":
            truths.append(all(oracle(f, metadata) for f in condition))
        elif key == "$or":
            truths.append(any(oracle(f, metadata) for f in condition))
        elif key == "$not":
            truths.append(not oracle(condition, metadata))
        else:
            pairs = condition.items() if isinstance(condition, dict) else [("$eq", condition)]
            truths += [leaf(op, key, value, metadata) for op, value in pairs]
    return all(truths)


def leaf(op: str, key: str, wanted: Any, metadata: Mapping[str, Any]) -> bool:
    there, value = key in metadata, metadata.get(key)
    equal = same(value, wanted) and (there or wanted is None)
    if op == "$exists":
        return there is wanted
    if op in ("$eq", "$ne"):
        return equal == (op == "$eq")
    if op in ("$in", "$nin"):
        return any(leaf("$eq", key, w, metadata) for w in wanted) == (op == "$in")
    if op == "$contains":
        return isinstance(value, list) and any(same(item, wanted) for item in value)
    compare = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}[op]
    return there and kind(value) == kind(wanted) and bool(compare(value, wanted))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(FILTERS, st.lists(METADATA, max_size=8))
def test_both_evaluations_agree_with_the_grammar_read_aloud(wanted: Any, rows: list[Any]) -> None:
    check(wanted)
    expected = [i for i, metadata in enumerate(rows) if oracle(wanted, metadata)]
    assert [i for i, metadata in enumerate(rows) if matches(wanted, metadata)] == expected

    def column(key: str) -> Column:
        return Column((i, metadata[key]) for i, metadata in enumerate(rows) if key in metadata)

    assert select(wanted, column, np.arange(len(rows))).tolist() == expected


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    made = KnowledgeBase.create(tmp_path_factory.mktemp("filters") / "kb")
    made.add(
        [Passage(f"p{n}", f"common words and number {n}", metadata={"n": n, "even": n % 2 == 0}) for n in range(600)]
    )
    made.add(
        [Passage(f"p{n}", f"common words, changed {n}", metadata={"n": n, "new": True}) for n in range(0, 600, 60)]
    )
    made.delete([f"p{n}" for n in range(1, 600, 60)])
    return made


@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid", "rrf", "mmr"])
@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ({"new": True}, 10),
        ({"n": {"$in": list(range(2, 12))}}, 10),
        ({"n": {"$gte": 590}}, 10),
        ({"n": {"$lt": 61}}, 61 - 1 - 0),
        ({"$not": {"even": True}, "n": {"$lt": 25}}, 13 - 1),
        ({"n": {"$exists": True}}, 590),
        ({"n": -1}, 0),
    ],
)
def test_a_filter_returns_all_that_match_and_nothing_else(
    kb: KnowledgeBase, mode: Any, wanted: dict[str, Any], count: int
) -> None:
    everything = {p.id: p.metadata for p in kb.get(kb.ids())}
    assert sum(oracle(wanted, metadata) for metadata in everything.values()) == count
    for k in (5, 1000):
        [found] = kb.retrieve(["common words"], k, wanted, mode=mode)
        assert len(found) == min(k, count)
        assert len({p.id for p in found}) == len(found)
        assert all(oracle(wanted, p.metadata) for p in found)


def test_many_allowed_rows_are_exact_for_bm25_too(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb", None) as kb:
        kb.add([Passage(f"p{n}", "common" + " word" * (n % 7), metadata={"n": n}) for n in range(9000)])
        everything = kb.retrieve(["word"], 9000)[0]
        for wanted, k in (({"n": {"$gte": 100}}, 7), ({"n": {"$gte": 100}}, 9000), ({"n": {"$lt": 4500}}, 50)):
            expected = [p.id for p in everything if oracle(wanted, p.metadata)][:k]
            found = kb.retrieve(["word"], k, wanted)[0]
            assert len(found) == len(expected)
            assert [p.score for p in found] == [p.score for p in everything if oracle(wanted, p.metadata)][:k]


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"$nor": []}, r"\$nor"),
        ({"x": {"$regex": "a"}}, r"\$regex"),
        ({"x": {}}, "is empty"),
        ({"x": [1]}, "compares with"),
        ({"x": float("nan")}, "compares with"),
        ({"x": {"$in": "abc"}}, "takes a list"),
        ({"x": {"$gt": None}}, "a number or a string"),
        ({"x": {"$exists": 1}}, "true or false"),
        ({"$or": {"x": 1}}, "list of filters"),
        ({1: 2}, "unknown operator 1"),
        ("x = 1", "must be a mapping"),
    ],
)
def test_what_is_not_in_the_grammar_is_refused_by_name(kb: KnowledgeBase, wanted: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        kb.retrieve(["words"], 3, wanted)
