from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.extraction import FieldScore, read_record, score_extraction
from ragft_plugin.evaluation.faithfulness import balanced, coverage, faithfulness, lexical_support, split_sentences

PASSAGE = "Brelkon is located in Rome. It was founded in 1950. Ada Plunk manages the plant."


def test_each_sentence_is_held_against_the_passages() -> None:
    told = faithfulness("Brelkon is in Rome. It was founded in 1951. Ada Plunk manages it.", [PASSAGE, "Other words."])
    assert [s.support >= told.threshold for s in told.sentences] == [True, False, True]
    assert told.score == pytest.approx(2 / 3)
    assert told.unsupported == ("It was founded in 1951.",)


@pytest.mark.parametrize(
    ("sentence", "supported"),
    [
        ("Brelkon is located in Rome.", 1.0),
        ("Brelkon stands in Rome.", 4 / 5),  # brelk and rome weigh 2, stand 1
        ("Brelkon is located in Paris.", 0.0),  # a name that is not there
        ("Ada Plunk managed the plant.", 1.0),  # by its first five letters
        ("Ada Plunk manages Rome.", 0.0),  # both names are there, but never together: windows are two sentences
        ("The of and.", 0.0),  # claims nothing
    ],
)
def test_support_is_the_share_of_words_that_stand_together(sentence: str, supported: float) -> None:
    assert lexical_support(sentence, [PASSAGE]) == pytest.approx(supported)


def test_an_answer_that_says_nothing_earns_nothing() -> None:
    assert faithfulness("", [PASSAGE]).score == 0.0
    assert faithfulness("Brelkon is in Rome.", []).score == 0.0
    assert balanced(1.0, 0.0) == balanced(0.0, 0.0) == 0.0
    assert balanced(1.0, 0.5) == pytest.approx(2 / 3)
    assert coverage("It is in Rome, since 1950.", ["rome", "1950", "Ada"]) == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="no wanted value"):
        coverage("x", ["", " "])


def test_a_support_of_ones_own_is_checked() -> None:
    assert faithfulness("One. Two.", ["x"], support=lambda s, p: float(s == "One.")).score == 0.5
    with pytest.raises(DataError, match=r"expected a number in \[0, 1\]"):
        faithfulness("One.", ["x"], support=lambda s, p: 2.0)


def test_sentences_break_where_a_reader_would_break_them() -> None:
    assert split_sentences("It costs 3.5 euros. He (Dr. no) left!\nDone") == [
        "It costs 3.5 euros.", "He (Dr. no) left!", "Done",
    ]  # fmt: skip


@settings(deadline=None, derandomize=True, max_examples=50)
@given(seed=st.integers(0, 1000), extra=st.text("abc .", max_size=20))
def test_a_copied_sentence_is_fully_supported_whatever_stands_around_it(seed: int, extra: str) -> None:
    rng = random.Random(seed)
    told = split_sentences(PASSAGE)
    sentence = rng.choice(told)
    assert lexical_support(sentence, [extra, PASSAGE]) == 1.0
    assert 0.0 <= lexical_support(extra, [PASSAGE]) <= 1.0


def test_field_counts_written_out() -> None:
    score = score_extraction(
        ["city: Rome\nyear: 1950\nowner: Ada", '{"city": "rome!", "year": null}', "no idea"],
        [{"city": "Rome", "year": "1951"}, {"city": "Rome"}, {"city": "Bonn", "year": "unknown"}],
        ("city", "year"),
    )
    assert score.fields["city"] == FieldScore(right=2, predicted=2, wanted=3)
    assert score.fields["year"] == FieldScore(right=0, predicted=1, wanted=1)
    assert score.micro == FieldScore(right=2, predicted=4, wanted=4)  # owner is foreign, and counts as predicted
    assert (score.micro.precision, score.micro.recall, score.micro.f1) == (0.5, 0.5, 0.5)
    assert score.exact == pytest.approx(1 / 3)  # the second record alone
    assert (score.foreign, score.unread) == (1, 1)
    assert score.macro_f1 == pytest.approx((4 / 5 + 0) / 2)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.sampled_from(["x", "y 1", "unknown"])), min_size=1))
def test_the_right_records_score_one_in_either_form(records: list[dict[str, str]]) -> None:
    lines = ["\n".join(f" {k}: {v}" for k, v in record.items()) for record in records]
    for predictions in (records, lines):
        score = score_extraction(predictions, records, ("a", "b", "c"))
        assert (score.micro.precision, score.micro.recall, score.micro.f1, score.exact) == (1.0, 1.0, 1.0, 1.0)


def test_records_are_read_from_what_models_write() -> None:
    assert read_record('```json\n{"City": "Rome"}\n```') == {"city": "Rome"}
    assert read_record("{broken} \n city: Rome: centre\n city: Bonn") == {"city": "Rome: centre"}
    assert read_record("nothing here") == {}
    with pytest.raises(DataError, match="record 1 has the field 'x'"):
        score_extraction([""], [{"x": "1"}], ("a",))
    with pytest.raises(DataError, match="expected as many"):
        score_extraction([], [{"a": "1"}], ("a",))
