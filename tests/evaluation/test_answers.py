"""Scores of answers: arithmetic written out, and SQuAD's own script as oracle."""

import re
import string
import sys
import types
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.evaluation.metrics import (
    SCORERS,
    contains,
    exact_match,
    load_scorer,
    normalize_answer,
    rouge_l,
    token_f1,
)

words = st.lists(st.sampled_from("the a cat dog sat on mat 7 Paris, it's !".split()), max_size=8).map(" ".join)
laws = settings(deadline=None, derandomize=True, max_examples=150)


def squad_normalize(text: str) -> str:
    text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(answer: str, gold: str) -> float:
    found, wanted = squad_normalize(answer).split(), squad_normalize(gold).split()
    same = sum((Counter(found) & Counter(wanted)).values())
    if not found or not wanted or same == 0:
        return float(found == wanted)
    precision, recall = same / len(found), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def plain_lcs(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@laws
@given(words, words)
def test_scores_equal_squad_wherever_something_is_left_after_normalising(answer, gold):
    if not squad_normalize(answer) or not squad_normalize(gold):
        return
    assert normalize_answer(answer) == squad_normalize(answer)
    assert exact_match(answer, gold) == float(squad_normalize(answer) == squad_normalize(gold))
    assert token_f1(answer, gold) == pytest.approx(squad_f1(answer, gold), abs=1e-12)


@laws
@given(words, words)
def test_rouge_l_equals_the_quadratic_recurrence(answer, gold):
    found, wanted = (re.findall(r"[a-z0-9]+", text.lower()) for text in (answer, gold))
    common = plain_lcs(found, wanted)
    expected = 2 * common / (len(found) + len(wanted)) if found and wanted else float(found == wanted)
    assert rouge_l(answer, gold) == pytest.approx(expected, abs=1e-12)


@laws
@given(words, st.lists(words, min_size=1, max_size=3))
def test_every_scorer_stays_in_its_range_and_more_accepted_answers_never_hurt(answer, golds):
    for scorer in SCORERS.values():
        value = scorer(answer, golds)
        assert 0.0 <= value <= 1.0
        assert value >= scorer(answer, golds[:1])


def test_f1_of_a_partial_answer_is_the_written_out_harmonic_mean():
    # answer: big cat sat; gold: cat sat down. 2 in common, P = R = 2/3.
    assert token_f1("The big cat sat", ["cat sat down"]) == pytest.approx(2 / 3)


def test_rouge_of_the_textbook_example_is_three_quarters():
    # Lin 2004: police killed the gunman / police kill the gunman: LCS = police the gunman.
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)


def test_contains_asks_for_whole_words():
    assert contains("So the answer is: Elton John.", ["elton john"]) == 1.0
    assert contains("An article", ["art"]) == 0.0


def test_a_choice_letter_that_is_an_article_does_not_match_an_empty_answer():
    assert exact_match("A.", "A") == 1.0
    assert exact_match("", "A") == exact_match("the", "A") == token_f1("", "A") == contains("", "A") == 0.0


def test_no_accepted_answer_is_an_error():
    with pytest.raises(DataError, match="at least one"):
        exact_match("x", [])


def test_an_unknown_scorer_is_refused_with_the_names_there_are():
    with pytest.raises(ConfigError, match="contains, rouge or module:function"):
        load_scorer("bleu")
    with pytest.raises(ConfigError, match="PYTHONPATH"):
        load_scorer("no_such_module_anywhere:f")
    with pytest.raises(ConfigError, match="no function 'nothing'"):
        load_scorer("string:nothing")


@pytest.fixture
def user_module(monkeypatch):
    module = types.ModuleType("users_scorers")
    module.half = lambda answer, gold: 0.5
    module.wrong = lambda answer, gold: 2.0
    module.nan = lambda answer, gold: float("nan")
    module.word = lambda answer, gold: "1"
    monkeypatch.setitem(sys.modules, "users_scorers", module)


@pytest.mark.usefixtures("user_module")
def test_the_users_own_scorer_is_used_and_its_range_is_checked():
    assert load_scorer("users_scorers:half")("a", ["b"]) == 0.5
    for name in ("wrong", "nan", "word"):
        with pytest.raises(DataError, match="expected a number in"):
            load_scorer(f"users_scorers:{name}")("a", ["b"])
