"""The outcomes file: what is read, what is refused and where, how it is split, what a router may see."""

import gzip
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation import outcomes as module
from ragft_plugin.evaluation.outcomes import (
    NEVER_FEATURES,
    Outcome,
    Outcomes,
    join_rewards,
    normalized_query,
    read_outcomes,
    reads_passages,
    write_outcomes,
)
from ragft_plugin.types import Evidence

laws = settings(deadline=None, derandomize=True, max_examples=40)

FULL = {
    "query_id": "1",
    "query": "Who wrote Emma?",
    "group": "novels",
    "gold": ["Jane Austen"],
    "options": {"A": "Austen", "B": "Burney"},
    "passages": [{"id": "p", "text": "Emma is by Austen.", "score": 3.5, "metadata": {"source": "a", "gold": 1}}],
    "drafts": {"adapter": {"text": "Think. Austen", "logprobs": [-0.1, -0.2]}},
    "answers": {"adapter": "Austen", "rag": "Jane Austen"},
    "reward": {"adapter": 1, "rag": 0.5},
    "cost": {"adapter": 1, "rag": 3},
    "stage_cost": {"passages": 1, "draft": 0.5},
    "facts": {"length": 3.0},
    "embedding": [0.6, 0.8],
    "encoder": "e1",
    "a key of the future": {"ignored": True},
}


def row(query_id="1", query="Who?", reward=None, **fields):
    return {"query_id": query_id, "query": query, "reward": reward or {"rag": 1.0}, **fields}


def save(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------ reading


def test_a_full_row_is_read_and_unknown_keys_are_ignored(tmp_path):
    log = read_outcomes(save(tmp_path / "log.jsonl", [FULL]))
    assert log.arms == ("adapter", "rag")
    assert log.reward.tolist() == [[1.0, 0.5]]
    assert log.cost.tolist() == [[1.0, 3.0]]
    assert log.full_feedback
    assert log.propensity is None
    assert log.encoder == "e1"
    assert log.embeddings is not None
    assert log.embeddings.tolist() == [[0.6, 0.8]]
    assert (log.draft_arms, log.text_arms, log.has_passages) == (("adapter",), ("adapter", "rag"), True)


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
def test_writing_and_reading_are_inverse(tmp_path, name):
    rows = tuple(Outcome.model_validate(r) for r in (FULL, row("2", drafts={"rag": "No"}, propensities={"rag": 1})))
    write_outcomes(tmp_path / name, rows)
    assert read_outcomes(tmp_path / name).rows == rows
    before = (tmp_path / name).read_bytes()
    write_outcomes(tmp_path / name, rows)
    assert (tmp_path / name).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]
    (tmp_path / "plain").touch()
    assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = save(tmp_path / "log.jsonl", [FULL])
    before = path.read_bytes()

    def rows():
        yield Outcome.model_validate(FULL)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_outcomes(path, rows())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_metadata_that_is_no_json_does_not_cost_the_answers(tmp_path):
    passage = {"id": "p", "text": "half a pair \ud800", "metadata": {"when": object, "nan": np.nan, "n": np.float32(2)}}
    write_outcomes(tmp_path / "log.jsonl", [Outcome.model_validate(row(passages=[passage], answers={"rag": "x"}))])
    (read,) = read_outcomes(tmp_path / "log.jsonl").rows
    assert read.answers == {"rag": "x"}
    assert read.passages[0].text == "half a pair ?"
    assert read.passages[0].metadata == {"when": "<class 'object'>", "nan": None, "n": 2.0}


def test_null_means_absent_and_an_arm_that_said_nothing_gave_an_empty_answer():
    read = Outcome.model_validate(
        row(answers={"rag": None}, drafts={"rag": None}, group=None, cost={"rag": None}, passages=None)
    )
    assert read.answers == {"rag": ""}
    assert read.drafts["rag"].text == ""
    assert read.cost == {}


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(FULL).encode() + b"\r\n\r\n  \n")
    assert len(read_outcomes(path)) == 1


WRONG = [
    ('{"query_id": "1", ', "not a JSON object"),
    ("[1, 2]", "expected a JSON object, got list"),
    ("[" * 200_000, "not a JSON object"),
    (json.dumps({"query_id": "9", "query": "Who?"}), "reward: Field required"),
    (json.dumps(row("9", reward={"rag": None})), "reward.rag"),
    (json.dumps({**row("9"), "reward": {}}), "reward: Dictionary should have at least 1 item"),
    (json.dumps(row("9", reward={"rag": float("nan")})), "it holds NaN, which is no JSON number"),
    (json.dumps(row("9", reward={"rag": float("inf")})), "it holds Infinity"),
    (json.dumps(row("9", reward={"rag": 1.5})), "reward.rag.*less than or equal to 1, got 1.5"),
    (json.dumps(row("9", reward={"rag": -0.1})), "reward.rag.*greater than or equal to 0"),
    (json.dumps(row("9", reward={"": 1})), "reward"),
    (json.dumps(row("9", cost={"rag": -1})), "cost.rag.*greater than or equal to 0, got -1"),
    (json.dumps(row("9", stage_cost={"draught": 1})), "stage_cost.draught"),
    (json.dumps(row("1")), "query_id '1' was used before"),
    (json.dumps(row("9", query="  ")), "query is empty"),
    (json.dumps(row("9", propensities={"rag": 0.5, "base": 0.4})), "propensities sum to 0.9, expected 1"),
    (json.dumps(row("9", propensities={"rag": 0.0, "base": 1.0})), "the logged arm 'rag' has propensity 0"),
    (json.dumps(row("9", arm="base")), "arm is 'base' but reward has only rag"),
    (json.dumps(row("9", facts={"reward": 1.0})), "never a feature"),
    (json.dumps(row("9", facts={"f": float("nan")})), "it holds NaN"),
    (json.dumps(row("9", embedding=[1.0, float("-inf")])), "it holds -Infinity"),
    (json.dumps(row("9", drafts={"rag": {"text": "x", "logprobs": ["x"]}})), "drafts.rag.logprobs.0"),
    (json.dumps(row("9", query="\ud800")), "not a JSON object.*surrogates"),
    ("\xff", "not UTF-8"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[m[:40] for _, m in WRONG])
def test_a_wrong_row_is_an_error_that_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "log.jsonl"
    path.write_bytes(json.dumps(row("1")).encode() + b"\n\n" + line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=message) as caught:
        read_outcomes(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert (caught.value.path, caught.value.line) == (str(path), 3)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["rag", "text", "id", ""]), inner),
    max_leaves=4,
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.dictionaries(st.sampled_from(sorted(Outcome.model_fields)), json_values, max_size=3), st.booleans())
def test_whatever_stands_in_a_row_it_is_read_or_refused_as_data(fields, twice):
    base = row("1", drafts={"rag": "x"}, propensities={"rag": 1.0}, arm="rag", cost={"rag": 1})
    lines = [json.dumps({**base, **fields}), *([json.dumps(row("2"))] if twice else [])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        try:
            log = read_outcomes(path)
        except DataError as error:
            message = str(error)
            log = None
        if log is None:
            assert message.startswith(f"{path}")
            return
        # What was read can be used and written, and holds no silent NaN.
        write_outcomes(path, log.rows)
        assert read_outcomes(path).rows == log.rows
        assert np.isfinite(log.cost).all()
        assert all(np.isfinite(list(r.reward.values())).all() for r in log.rows)
        [r.evidence("draft", arms=["rag"]) for r in log.rows]


def test_an_empty_file_names_the_cure(tmp_path):
    with pytest.raises(DataError, match="ragft run-arms"):
        read_outcomes(save(tmp_path / "log.jsonl", []))


def test_a_missing_or_truncated_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_outcomes(tmp_path / "none.jsonl")
    whole = gzip.compress(json.dumps(FULL).encode() * 50)
    for name, content in (("cut.jsonl.gz", whole[: len(whole) // 2]), ("no.jsonl.gz", b"plain")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read|not a JSON"):
            read_outcomes(tmp_path / name)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 1_000)
    path = save(tmp_path / "log.jsonl", [row("1"), row("2", query="x" * 2_000)])
    with pytest.raises(DataError, match="longer than 1,000 bytes") as caught:
        read_outcomes(path)
    assert caught.value.line == 2


def test_an_arm_that_was_not_asked_for_is_refused(tmp_path):
    path = save(tmp_path / "log.jsonl", [row("1", reward={"rga": 1.0})])
    with pytest.raises(DataError, match="unknown arm 'rga', expected one of rag, base"):
        read_outcomes(path, arms=["rag", "base"])


@pytest.mark.parametrize("wrong", [{"reward": {"rag": np.nan}}, {"facts": {"f": np.inf}}, {"embedding": [np.nan]}])
def test_rows_made_in_memory_are_checked_as_rows_of_a_file_are(wrong):
    with pytest.raises(DataError, match=rf"row 2: {next(iter(wrong))}.*finite"):
        Outcomes.from_rows([row("1"), {**row("2"), **wrong}])


def test_a_log_that_mixes_encoders_is_refused():
    rows = [row("1", encoder="e1", embedding=[1.0]), row("2", encoder="e2", embedding=[1.0])]
    with pytest.raises(DataError, match="row 2: embedding of encoder 'e2'"):
        Outcomes.from_rows(rows)
    with pytest.raises(DataError, match="2 dimensions"):
        Outcomes.from_rows([rows[0], row("2", encoder="e1", embedding=[1.0, 2.0])])


# ------------------------------------------------------------------------------------------------- arrays


def test_a_cost_that_is_not_stated_is_the_mean_of_the_arm():
    log = Outcomes.from_rows(
        [
            row("1", reward={"a": 1, "b": 0}, cost={"a": 1.0}),
            row("2", reward={"a": 1, "b": 0}, cost={"a": 3.0}),
            row("3", reward={"a": 1, "b": 0}),
        ]
    )
    assert log.cost.tolist() == [[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]]


def test_a_part_keeps_the_costs_of_the_whole_and_the_arrays_cannot_be_written():
    log = Outcomes.from_rows([row("1", reward={"a": 1}, cost={"a": 2.0}), row("2", reward={"b": 1})])
    assert log.take([1]).cost.tolist() == [[2.0, 0.0]]
    assert log.take(np.array([False, True])).rows == log.rows[1:]
    assert len(log.take([])) == 0
    with pytest.raises(ValueError, match="read-only"):
        log.reward[0, 0] = 5.0


def test_arms_stand_in_the_order_of_the_propensities_then_of_the_rewards():
    log = Outcomes.from_rows(
        [row("1", reward={"b": 1}, propensities={"a": 0.5, "b": 0.5}), row("2", reward={"c": 1, "a": 0})]
    )
    assert log.arms == ("a", "b", "c")
    assert log.arm.tolist() == [1, -1]


def test_partial_feedback_without_propensities_is_read_but_not_learnt_from():
    log = Outcomes.from_rows([row("1", reward={"a": 1}), row("2", reward={"b": 1})])
    with pytest.raises(DataError, match=r"query_id '1'.*no propensities.*ragft run-arms"):
        log.require_learnable()


def test_some_of_several_arms_without_the_chosen_one_named_is_not_learnt_from():
    rows = [row("1", reward={"a": 1, "b": 1}), row("2", reward={"c": 1}, propensities={"c": 1.0})]
    with pytest.raises(DataError, match="2 of 3 arms have a reward; name the chosen one"):
        Outcomes.from_rows(rows).require_learnable()


def test_forced_rows_are_left_out_of_learning():
    half = {"a": 0.5, "b": 0.5}
    rows = [row("1", reward={"a": 1}, propensities=half), row("2", reward={"b": 1}, propensities=half, forced=True)]
    assert [r.query_id for r in Outcomes.from_rows(rows).require_learnable().rows] == ["1"]
    with pytest.raises(DataError, match="every row was forced"):
        Outcomes.from_rows([{**r, "forced": True} for r in rows]).require_learnable()


def test_the_propensity_is_that_of_the_logged_arm():
    log = Outcomes.from_rows(
        [
            row("1", reward={"a": 1}, propensities={"a": 0.25, "b": 0.75}),
            row("2", reward={"a": 1, "b": 0}),
            row("3", reward={"b": 1}),
        ]
    )
    assert log.propensity is not None
    assert log.propensity[:2].tolist() == [0.25, 1.0]
    assert np.isnan(log.propensity[2])
    assert log.propensities[0].tolist() == [0.25, 0.75]
    assert np.isnan(log.propensities[1:]).all()


# ------------------------------------------------------------------------------------------------- splits

queries = st.lists(st.sampled_from(["Who?", "who", " WHO ?", "What?", "what!", "Why", "When", "x", "y"]), min_size=6)


@laws
@given(queries, st.integers(2, 3), st.integers(0, 5))
def test_the_same_query_text_never_stands_on_both_sides(texts, n_splits, seed):
    log = Outcomes.from_rows([row(str(i), query=q) for i, q in enumerate(texts)])
    distinct = {normalized_query(q) for q in texts}
    if len(distinct) < n_splits:
        with pytest.raises(DataError, match="cannot be split"):
            log.folds(n_splits, seed)
        return
    folds = log.folds(n_splits, seed)
    assert sorted(i for _, test in folds for i in test) == list(range(len(texts)))
    for train, test in folds:
        assert len(test) > 0
        assert sorted([*train, *test]) == list(range(len(texts)))
        sides = [{normalized_query(texts[i]) for i in side} for side in (train, test)]
        assert not sides[0] & sides[1]


def test_folds_are_balanced_and_depend_on_the_seed_alone():
    log = Outcomes.from_rows([row(str(i), query=f"q{i}") for i in range(103)])
    sizes = [len(test) for _, test in log.folds(5, 1)]
    assert max(sizes) - min(sizes) <= 1
    # One text repeated 30 times fills a fold, and the 70 others share the rest.
    repeated = Outcomes.from_rows([row(str(i), query=f"q{max(i, 29)}") for i in range(100)])
    assert all(sorted(len(test) for _, test in repeated.folds(4, s)) == [23, 23, 24, 30] for s in range(10))
    same = zip(log.folds(5, 1), log.folds(5, 1), strict=True)
    assert all(np.array_equal(a[1], b[1]) for a, b in same)
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(log.folds(5, 1), log.folds(5, 2), strict=True))
    with pytest.raises(DataError, match="at least 2"):
        log.folds(1)


# ------------------------------------------------------------------------------------- what a router sees


def test_evidence_grows_by_stages_and_pays_each_once():
    outcome = Outcome.model_validate(FULL)
    question = outcome.evidence()
    assert question.query == "Who wrote Emma?\nA. Austen\nB. Burney"
    assert (question.passages, dict(question.drafts), dict(question.spent)) == (None, {}, {})
    passages = outcome.evidence("passages")
    assert passages.passages is not None
    assert passages.passages[0].score == 3.5
    draft = outcome.evidence("draft", arms=["adapter"])
    assert draft.drafts["adapter"].logprobs == (-0.1, -0.2)
    assert dict(draft.spent) == {"passages": 1.0, "draft": 0.5}
    # rag costs 3, one of which is the retrieval that has been paid.
    agreement = outcome.evidence("agreement", arms=["adapter", "rag"], final=True)
    assert [a.text for a in agreement.drafts.values()] == ["Austen", "Jane Austen"]
    assert dict(agreement.spent) == {"passages": 1.0, "draft": 0.5, "agreement": 2.0}
    with pytest.raises(ValueError, match="no arm has run"):
        outcome.evidence("passages", arms=["rag"])


def test_the_answer_of_an_arm_serves_as_its_draft_at_the_price_of_the_arm():
    outcome = Outcome.model_validate(row(answers={"base": "x"}, reward={"base": 1}, cost={"base": 4}))
    assert outcome.price("draft", "base") == 4.0
    assert outcome.evidence("draft", arms=["base"]).drafts["base"].text == "x"
    assert outcome.draft("rag") is None


def everything(value) -> str:
    if isinstance(value, Evidence):
        parts = (value.query, value.passages, dict(value.drafts), dict(value.spent), dict(value.facts))
        return repr((parts, value.embedding))
    return repr(value)


def test_a_planted_leak_is_nowhere_in_what_signals_read():
    planted = {
        **row("LEAK-id", reward={"adapter": 0.123456, "rag": 0.654321}),
        "group": "LEAK-group",
        "gold": ["LEAK-gold"],
        "answers": {"rag": "LEAK-answer of an arm not drafted", "adapter": "seen"},
        "drafts": {"adapter": "seen"},
        "passages": [{"id": "p", "text": "t", "metadata": dict.fromkeys(NEVER_FEATURES, "LEAK")}],
    }
    outcome = Outcome.model_validate(planted)
    views = [outcome.evidence(), outcome.evidence("passages"), outcome.evidence("draft", arms=["adapter"])]
    for view in (*views, outcome.visible()):
        text = everything(view)
        assert "LEAK" not in text
        assert "0.123456" not in text
        assert "0.654321" not in text


@pytest.mark.parametrize("flip", [False, True])
def test_a_fact_that_is_the_reward_under_another_name_is_refused(flip):
    rewards = np.random.default_rng(0).integers(0, 2, 30)
    rows = [
        row(str(i), query=f"q{i}", reward={"rag": int(r), "base": 0}, facts={"judge": float(1 - r if flip else r)})
        for i, r in enumerate(rewards)
    ]
    with pytest.raises(DataError, match="fact 'judge' equals the reward of arm 'rag' in all 30 rows"):
        Outcomes.from_rows(rows)
    rows[3]["facts"] = {"judge": 0.5}
    assert len(Outcomes.from_rows(rows)) == 30


def test_arms_that_read_passages_are_told_by_their_names():
    names = ["rag", "rag+adapter:legal", "base", "adapter:rag", "adapter", "iterative_rag"]
    assert [reads_passages(name) for name in names] == [True, True, False, False, False, False]


# ------------------------------------------------------------------------------------------- late rewards


def decision(id, arm="rag"):
    fields = {"decision_id": id, "query_id": id, "query": "Who?", "arm": arm, "cost": {arm: 2.0}}
    return {**fields, "propensities": {"rag": 0.9, "base": 0.1}}


def test_late_rewards_are_joined_by_decision_id_and_belong_to_the_chosen_arm():
    joined = join_rewards([decision("d1"), decision("d2", "base"), decision("d3")], {"d2": 1.0, "d1": 0.0})
    assert [(o.decision_id, o.reward) for o in joined] == [("d1", {"rag": 0.0}), ("d2", {"base": 1.0})]
    assert Outcomes.from_rows(joined).propensity.tolist() == [0.9, 0.1]


def test_a_reward_of_an_unknown_decision_is_an_error():
    with pytest.raises(DataError, match="1 rewards are of unknown decisions, first 'd9'"):
        join_rewards([decision("d1")], {"d9": 1.0})
    with pytest.raises(DataError, match="decision 1 has no propensities"):
        join_rewards([{**decision("d1"), "propensities": None}], {"d1": 1.0})
    with pytest.raises(DataError, match=r"reward\.rag"):
        join_rewards([decision("d1")], {"d1": 7.0})
