import json

import pytest
from stubs import Echo, Shelf

from ragft_plugin.arms import Arm
from ragft_plugin.errors import DataError, GenerationError
from ragft_plugin.trial import LabelledQuestion, read_questions, run_arms


def test_every_arm_answers_every_question_from_the_same_passages():
    shelf = Shelf()
    arms = [Arm("base", Echo("base")), Arm("rag", Echo("rag"), shelf, cost=1.0)]
    asked = [LabelledQuestion("one", ("base: one (closed)",), "1"), LabelledQuestion("two", ("no",), "2", "g")]
    seen = []
    trial = run_arms(arms, asked, lambda text, gold: float(text in gold), k=2, progress=lambda *a: seen.append(a))
    assert [row.reward for row in trial.outcomes] == [{"base": 1.0, "rag": 0.0}, {"base": 0.0, "rag": 0.0}]
    assert [row.cost for row in trial.outcomes] == [{"base": 0.0, "rag": 1.0}] * 2
    assert trial.outcomes[0].answers == {"base": "base: one (closed)", "rag": "rag: one (2 passages)"}
    assert [p.id for p in trial.outcomes[1].passages] == ["p0", "p1"]
    assert trial.outcomes[0].drafts["base"].logprobs == (-0.1,)
    assert trial.tokens == {"base": [3, 3], "rag": [3, 3]}
    assert len(shelf.calls) == 1
    assert seen == [(2, 4), (4, 4)]


class Picky(Echo):
    """Fails on questions that name a word."""

    def generate(self, prompts, **options):
        if any("two" in prompt.question for prompt in prompts):
            raise GenerationError("returned an empty answer")
        return super().generate(prompts, **options)


def test_a_question_that_an_arm_fails_on_earns_nothing_and_the_others_count(caplog):
    asked = [LabelledQuestion(q, (f"base: {q} (closed)",), q) for q in ("one", "two", "three")]
    trial = run_arms([Arm("base", Picky("base"))], asked, lambda text, gold: float(text in gold))
    assert [row.reward["base"] for row in trial.outcomes] == [1.0, 0.0, 1.0]
    assert trial.outcomes[1].answers["base"] == ""
    assert "arm base failed on 1 of 3 questions" in caplog.text


def test_an_arm_that_fails_on_everything_is_an_error_and_not_a_zero():
    asked = [LabelledQuestion(f"two {i}", ("x",), str(i)) for i in range(3)]
    with pytest.raises(GenerationError, match="empty answer"):
        run_arms([Arm("base", Picky("base"))], asked, lambda text, gold: 0.0)


def test_a_score_outside_zero_and_one_is_refused():
    asked = [LabelledQuestion("one", ("x",), "q7")]
    with pytest.raises(DataError, match=r"arm 'base' on question 'q7' is 2.0; expected \[0, 1\]"):
        run_arms([Arm("base", Echo("base"))], asked, lambda text, gold: 2.0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"q.jsonl:2: this line is not JSON"),
        ("[1]", r"q.jsonl:2: expected an object, got list"),
        ('{"query": "a"}', r"q.jsonl:2: needs query \(or question\) and answer \(or answers\); has query"),
        ('{"query": "a", "answers": [1]}', r"q.jsonl:2: every answer must be a string"),
        ('{"query": "  ", "answer": "x"}', r"q.jsonl:2: the question is empty"),
    ],
)
def test_a_bad_question_row_is_named_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"query": "fine", "answer": "yes"}) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        read_questions(path)


def test_a_question_may_be_called_query_or_question(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"query": "a", "answer": "x"}\n{"question": "b", "answers": ["y", "z"]}\n')
    assert [(q.query, q.answers) for q in read_questions(path)] == [("a", ("x",)), ("b", ("y", "z"))]


def test_files_that_hold_no_question_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no question"):
        read_questions(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_questions(tmp_path / "binary.jsonl")
