"""Decisions and answers as plain values."""

import json
from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragft_plugin.decision_record import answer_to_dict, decision_from_dict, decision_to_dict, passage_to_dict
from ragft_plugin.errors import DataError
from ragft_plugin.types import STAGES, Answer, Decision, Passage

names = st.text(max_size=8)
shares = st.dictionaries(names, st.floats(0, 1), max_size=4)
decisions = st.builds(
    Decision,
    id=names,
    arm=names,
    propensities=shares,
    values=st.dictionaries(names, st.floats(-9, 9), max_size=4),
    confidence=st.floats(0, 1),
    stage=st.sampled_from(STAGES),
    stage_probability=st.floats(0, 1),
    reasons=st.lists(names, max_size=3).map(tuple),
    forced=st.booleans(),
    fallback=st.none() | names,
    router_version=names,
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(decisions)
def test_a_decision_survives_json(decision: Decision) -> None:
    assert decision_from_dict(json.loads(json.dumps(decision_to_dict(decision), allow_nan=False))) == decision


def test_every_field_of_a_decision_is_written() -> None:
    written = decision_to_dict(Decision("d", "rag", {"rag": 1.0}))
    assert list(written) == list(Decision.__dataclass_fields__)
    assert written["reasons"] == []


def test_numbers_of_numpy_become_plain_and_those_that_json_lacks_become_null() -> None:
    decision = Decision("d", "rag", {"rag": np.float64(1.0)}, values={"rag": np.float32(0.5), "base": -np.inf})
    written = decision_to_dict(decision)
    assert type(written["propensities"]["rag"]) is float
    assert json.loads(json.dumps(written, allow_nan=False))["values"] == {"rag": 0.5, "base": None}
    assert np.isnan(decision_from_dict(written).values["base"])


def test_absent_keys_take_their_defaults() -> None:
    expected = Decision("d", "rag", {"rag": 1.0})
    assert decision_from_dict({"id": "d", "arm": "rag", "propensities": {"rag": 1}}) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": []}, r"unknown \['arms'\]"),
        ({"id": 5}, "id of a decision is 5, expected a string"),
        ({"propensities": [1.0]}, "propensities of a decision is .* a number per arm"),
        ({"propensities": {"rag": "1"}}, "propensities of a decision is '1', expected a number"),
        ({"values": {"rag": True}}, "values of a decision is True, expected a number"),
        ({"confidence": "high"}, "confidence of a decision is 'high'"),
        ({"stage": "later"}, "stage of a decision is 'later', expected one of question, passages"),
        ({"reasons": "because"}, "reasons of a decision is 'because', expected strings"),
        ({"forced": 1}, "forced of a decision is 1"),
        ({"fallback": 2}, "fallback of a decision is 2"),
    ],
)
def test_what_is_no_decision_is_refused_by_the_key_that_is_wrong(change: dict[str, object], message: str) -> None:
    written = {**decision_to_dict(Decision("d", "rag", {"rag": 1.0})), **change}
    with pytest.raises(DataError, match=message):
        decision_from_dict(written)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(DataError, match=r"missing \['propensities'\]"):
        decision_from_dict({"id": "d", "arm": "rag"})
    with pytest.raises(DataError, match="not a decision but list"):
        decision_from_dict([])  # type: ignore[arg-type]


def test_an_answer_carries_its_passages_and_its_decision() -> None:
    passage = Passage("p", "text", 0.5, {"updated": date(2024, 5, 1), "tags": ("a", "b")})
    answer = Answer("Oslo", "rag", (passage,), Decision("d", "rag", {"rag": 1.0}), seconds=0.12345)
    written = json.loads(json.dumps(answer_to_dict(answer), allow_nan=False))
    assert {k: written[k] for k in ("answer", "arm", "seconds")} == {"answer": "Oslo", "arm": "rag", "seconds": 0.123}
    assert written["passages"] == [passage_to_dict(passage)]
    assert written["passages"][0]["metadata"] == {"updated": "2024-05-01", "tags": ["a", "b"]}
    assert decision_from_dict(written["decision"]) == answer.decision


def test_a_draft_has_no_decision() -> None:
    assert answer_to_dict(Answer("Oslo", "rag"))["decision"] is None
