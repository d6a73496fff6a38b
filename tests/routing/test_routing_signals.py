"""Signals: each says what its name promises, on evidence written out; and none sees what it must not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_worlds import evidence, world

from ragft_plugin.errors import ConfigError, DataError, RouterError
from ragft_plugin.evaluation.outcomes import NEVER_FEATURES, Outcomes
from ragft_plugin.routing import Router
from ragft_plugin.routing.features import Featurizer, trim
from ragft_plugin.routing.learning import evidence_of
from ragft_plugin.routing.signals import SIGNALS, Reading, signal
from ragft_plugin.routing.signals.draft import fits_question
from ragft_plugin.routing.text import Tfidf, words
from ragft_plugin.types import STAGES, Answer, Evidence, Passage


def read(name: str, found: Evidence, **options: object) -> dict[str, float]:
    """What one signal says."""
    reading = Reading(found, draft_arm="adapter", agreement_arm="rag", **options)  # type: ignore[arg-type]
    return dict(SIGNALS[name].function(reading))


def drafted(query: str, first: str, second: str | None = None, **numbers: tuple[float, ...]) -> Evidence:
    drafts = {"adapter": Answer(first, "adapter", **numbers)}
    if second is not None:
        drafts["rag"] = Answer(second, "rag")
    return Evidence(query, drafts=drafts)


# ------------------------------------------------------------------------------------------------ question


def test_lexical_shape_counts_words_names_numbers_and_tells_the_kind_of_question() -> None:
    told = read("lexical_shape", Evidence("When did Jane Austen and her sister move to Bath in 1801?"))
    assert told["q_words"] == pytest.approx(math.log1p(12))
    assert told["q_names"] == pytest.approx(math.log1p(3))  # Jane, Austen, Bath; the first word is none
    assert told["q_numbers"] == pytest.approx(math.log1p(1))
    assert told["q_links"] == pytest.approx(1 / 12)
    assert (told["q_when"], told["q_who"], told["q_mark"]) == (1.0, 0.0, 1.0)


def test_facts_of_the_caller_are_signals_of_their_own() -> None:
    assert read("facts", Evidence("Who?", facts={"vip": 1.0})) == {"fact_vip": 1.0}


# ------------------------------------------------------------------------------------------------ passages


def test_score_shape_is_the_best_score_its_gap_and_its_lead() -> None:
    found = Evidence("Who?", passages=tuple(Passage(str(i), "text", s) for i, s in enumerate((0.9, 0.5, 0.3))))
    told = read("score_shape", found)
    assert told == pytest.approx({"p_score": 0.9, "p_gap": 0.4, "p_lead": 0.9 - 0.4})


def test_a_log_without_scores_says_nothing_of_them() -> None:
    assert read("score_shape", Evidence("Who?", passages=(Passage("1", "text", 0.0),))) == {}


def test_coverage_weighs_the_words_that_passages_hold() -> None:
    tfidf = Tfidf.fit((words(t) for t in ["red fox", "red hen", "red cow"]), min_df=1)
    rare, common = tfidf.highest, 1.0  # "fox" in one text, "red" in all three: ln(4 / 4) + 1
    told = read("coverage", evidence("red fox", "red barn", "old fox"), tfidf=tfidf)
    assert told["p_cover_top"] == pytest.approx(common / (common + rare))
    assert told["p_cover_best"] == pytest.approx(rare / (common + rare))
    assert (told["p_cover_all"], told["p_none"]) == (pytest.approx(1.0), 0.0)
    assert read("coverage", Evidence("red fox", passages=())) == {"p_none": 1.0}


def test_closeness_is_the_cosine_of_question_and_passages() -> None:
    texts = ["who wrote emma", "jane austen wrote emma", "cats sit"]
    tfidf = Tfidf.fit((words(t) for t in texts), min_df=1)
    told = read("closeness", evidence("who wrote emma", *texts), tfidf=tfidf)
    assert told["p_close_top"] == pytest.approx(1.0)
    assert 0.0 < told["p_close_mean"] < told["p_close_best"] == told["p_close_top"]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ([{"retriever": "dense", "rank": 1}, {"retriever": "lexical", "rank": 1}], 0.0),
        ([{"dense_rank": 1, "lexical_rank": 1}, {}], 1.0),
        ([{"dense_rank": 1, "lexical_rank": 4}, {}], 0.0),
        ([{"dense_rank": 1, "lexical_rank": None}, {}], 0.0),
    ],
)
def test_two_retrievers_agree_if_both_put_the_same_passage_first(metadata: list[dict], expected: float) -> None:  # type: ignore[type-arg]
    passages = tuple(Passage(f"p{i}", f"text {i}", 1.0, m) for i, m in enumerate(metadata))
    assert read("retrievers_agree", Evidence("Who?", passages=passages))["p_agree"] == expected


def test_retrievers_that_found_the_same_text_under_two_ids_agree() -> None:
    passages = tuple(Passage(i, "the same", 1.0, {"retriever": i, "rank": 1}) for i in ("dense", "lexical"))
    assert read("retrievers_agree", Evidence("Who?", passages=passages))["p_agree"] == 1.0


def test_names_of_the_question_are_looked_for_in_the_passages() -> None:
    told = read("names", evidence("Which pump feeds Vessel K-12?", "Vessel B-3 stands here.", "K-12 is old."))
    assert told == {"p_names_top": 0.5, "p_names_all": 1.0}


def test_a_question_without_names_says_nothing_of_them() -> None:
    assert read("names", evidence("Which one is it?", "Vessel B-3 stands here.")) == {}


# --------------------------------------------------------------------------------------- draft and agreement


def test_certainty_reads_log_probabilities_margins_and_entropies() -> None:
    found = drafted("Who?", "Ann", logprobs=(-0.1, -0.5), margins=(2.0, 1.0), entropies=(0.3, 0.9))
    assert read("certainty", found) == pytest.approx(
        {
            "d_logprob_mean": -0.3, "d_logprob_min": -0.5, "d_logprob_first": -0.1, "d_logprob_sum": -0.6,
            "d_margin_mean": 1.5, "d_margin_min": 1.0, "d_entropy_mean": 0.6, "d_entropy_max": 0.9,
        }
    )  # fmt: skip
    assert read("certainty", drafted("Who?", "Ann")) == {}


def test_wording_tells_hedges_abstention_and_echo() -> None:
    sure = read("wording", drafted("Who wrote Emma?", "Jane Austen"))
    hedged = read("wording", drafted("Who wrote Emma?", "It may possibly be Jane Austen, I think"))
    silent = read("wording", drafted("Who wrote Emma?", "I do not know who wrote Emma"))
    assert sure["d_hedges"] == 0.0 < hedged["d_hedges"]
    assert (sure["d_abstains"], silent["d_abstains"]) == (0.0, 1.0)
    assert sure["d_echo"] == 0.0 < silent["d_echo"]
    assert silent["d_echo_question"] == 1.0
    assert read("wording", drafted("Who?", ""))["d_empty"] == 1.0


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("When was it?", "in 1801", 1.0),
        ("When was it?", "long ago", -1.0),
        ("Who was it?", "Ann", 1.0),
        ("Is it so?", "Yes.", 1.0),
        ("Is it so?", "Ann", -1.0),
        ("Name it.", "Ann", 0.0),
    ],
)
def test_an_answer_of_another_kind_than_was_asked_for_is_seen(question: str, answer: str, expected: float) -> None:
    assert fits_question(question, answer) == expected


def test_support_is_the_draft_s_overlap_with_the_passages() -> None:
    found = replace(drafted("Who wrote it?", "Jane Austen"), passages=evidence("q", "By Jane", "Jane Austen").passages)
    told = read("support", found)
    assert (told["d_support_top"], told["d_support_best"], told["d_answer_in_passages"]) == (0.5, 1.0, 1.0)
    assert read("support", drafted("Who wrote it?", "Jane Austen")) == {}


def test_agreement_compares_the_two_answers() -> None:
    same = read("agreement", drafted("Who?", "The Beatles", "beatles"))
    part = read("agreement", drafted("Who?", "Jane Austen", "Austen"))
    other = read("agreement", drafted("Who?", "Ann", "Bob"))
    assert (same["a_equal"], part["a_equal"], other["a_equal"]) == (1.0, 0.0, 0.0)
    assert (same["a_f1"], part["a_f1"], other["a_f1"]) == (1.0, pytest.approx(2 / 3), 0.0)
    assert (part["a_contains"], other["a_contains"]) == (1.0, 0.0)
    assert read("agreement", drafted("Who?", "Ann")) == {}


# ----------------------------------------------------------------------------------------------------- laws


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.text(max_size=80), st.lists(st.text(max_size=80), max_size=3), st.text(max_size=60), st.text(max_size=60))
def test_whatever_the_texts_every_signal_is_a_finite_number(query: str, texts: list[str], a: str, b: str) -> None:
    found = replace(drafted(query, a, b), passages=tuple(Passage(str(i), t, 1.0) for i, t in enumerate(texts)))
    for name in SIGNALS:
        for key, value in read(name, found).items():
            assert math.isfinite(value), (name, key)


def test_every_signal_is_described_and_no_two_give_the_same_feature() -> None:
    found = replace(
        drafted("Who is Ann?", "Ann", "Ann B", logprobs=(-0.1,)), passages=evidence("q", "Ann", "B").passages
    )
    given_by: dict[str, str] = {}
    for name, each in SIGNALS.items():
        assert each.function.__doc__, name
        assert each.stage in STAGES
        for key in read(name, found):
            assert given_by.setdefault(key, name) == name


# ------------------------------------------------------------------------------------------ one's own, leaks


def test_a_signal_of_ones_own_takes_ten_lines() -> None:
    @signal(stage="passages")
    def newest_year(reading: Reading) -> dict[str, float]:
        years = [p.metadata["year"] for p in reading.evidence.passages or () if "year" in p.metadata]
        return {"newest_year": max(years)} if years else {}

    try:
        featurizer = Featurizer(("question", "passages"))
        found = [evidence("Who?", "text", year=2000 + i) for i in range(4)] + [evidence("Who?", "text")]
        x = featurizer.fit(found)
        at = len(featurizer.names["question"]) + featurizer.axes["question"].shape[1]
        at += featurizer.names["passages"].index("newest_year")
        # Centred and scaled over those that have it; unknown stands in the middle.
        assert x[:, at] == pytest.approx([-1.5 / math.sqrt(1.25), -0.5 / math.sqrt(1.25), 0.5 / math.sqrt(1.25),
                                          1.5 / math.sqrt(1.25), 0.0])  # fmt: skip
    finally:
        del SIGNALS["newest_year"]


def test_a_signal_that_fails_is_named_with_the_query() -> None:
    @signal(stage="question", name="test_broken")
    def broken(reading: Reading) -> dict[str, float]:
        return {"x": 1.0 / 0.0}

    try:
        with pytest.raises(RouterError, match="'test_broken' failed on the query 'Who is it"):
            Featurizer(("question",)).fit([Evidence("Who is it?")])
    finally:
        del SIGNALS["test_broken"]


def test_wrong_signals_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown stage 'later'"):
        signal(stage="later")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="price of a signal"):
        signal(stage="draft", price=-1.0)
    with pytest.raises(ConfigError, match="already registered"):
        signal(stage="draft", name="agreement")(lambda reading: {})


def test_what_a_signal_reads_grows_with_the_stage_and_never_ahead_of_it() -> None:
    whole = replace(drafted("Who?", "Ann", "Bob"), passages=evidence("q", "text").passages)
    seen = {s: trim(whole, s, "adapter", "rag") for s in STAGES}
    assert seen["question"].passages is None
    assert seen["passages"].passages is not None
    assert [sorted(seen[s].drafts) for s in STAGES] == [[], [], ["adapter"], ["adapter", "rag"]]


@pytest.mark.parametrize("name", sorted(NEVER_FEATURES))
def test_a_leak_planted_in_the_facts_is_refused_by_its_name(name: str) -> None:
    rows = [row.model_dump(exclude_none=True) | {"facts": {name: 1.0}} for row in world(30).rows]
    with pytest.raises(DataError, match=f"facts hold {name}"):
        Outcomes.from_rows(rows)


@pytest.mark.parametrize("name", sorted(NEVER_FEATURES))
def test_a_leak_planted_beside_the_question_reaches_no_feature(name: str) -> None:
    """Gold, group, reward and id of a row, changed at will or put into a passage's metadata, move no number."""
    log = world(40, passages=True, drafts=True)

    def features(rows: list[dict[str, object]]) -> np.ndarray:
        changed = Outcomes.from_rows(rows, log.arms)
        found, answers = evidence_of(changed.rows, "draft", "adapter", None)
        return Featurizer(("question", "passages", "draft"), "adapter").fit(found, answers)

    plain = [row.model_dump(exclude_none=True) for row in log.rows]
    planted = []
    for i, row in enumerate(plain):
        right = row["reward"]["rag"]
        hint = {name: f"the answer of rag is {'right' if right else 'wrong'}"}
        passages = [{**p, "metadata": {**p.get("metadata", {}), **hint}} for p in row["passages"]]
        new: object = {a: 1.0 - r for a, r in row["reward"].items()} if name == "reward" else f"{right}-{i}"
        planted.append({**row, "passages": passages, name: new})
    assert np.array_equal(features(plain), features(planted))


def test_rows_with_the_same_text_never_stand_on_both_sides_of_a_split() -> None:
    """The same question with the same reward ten times over would be known by heart, were it on both sides."""
    rng = np.random.default_rng(0)
    rows = []
    for q in range(30):
        good = int(rng.random() < 0.5)
        for copy in range(10):
            text = f"riddle{q} of word{q * 7}" + (" ?" if copy % 2 else "")
            rows.append({"query_id": f"{q}-{copy}", "query": text, "reward": {"a": good, "b": 1 - good}})
    log = Outcomes.from_rows(rows)
    for train, test in log.folds(5, 0):
        assert not {log.text_groups[i] for i in train} & {log.text_groups[i] for i in test}
    from ragft_plugin.routing.crossval import cross_validate

    # Nothing can be learnt of another riddle, so a split by rows would earn 1 and this one about a half.
    assert cross_validate(log, 5)["reward_ungated"] < 0.75
    assert Router().fit(log).arms == ("a", "b")
