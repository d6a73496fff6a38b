from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TEMPLATE, make_tokenizer
from tokenizers import processors

from ragft_plugin.errors import DataError
from ragft_plugin.lora import Renderer, TrainingRow, check_rows, preview, read_rows
from ragft_plugin.lora.checks import refuse_leak
from ragft_plugin.lora.data import as_rows, parse_row
from ragft_plugin.lora.rendering import IGNORED, TrainingIds
from ragft_plugin.types import Passage, Prompt

QA = {"question": "what?", "answer": "red"}


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_tokenizer())


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


@pytest.mark.parametrize(
    "record",
    [
        QA,
        {"prompt": "what?", "completion": " red "},
        {"messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "red"}]},
        {"conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "red"}]},
        {"instruction": "what?", "input": "", "output": "red"},
        {
            "prompt": [{"role": "user", "content": "what?"}],
            "completion": [{"role": "assistant", "content": "red"}],
        },
    ],
)
def test_every_shape_means_the_same_row(record: dict[str, Any]) -> None:
    assert parse_row(record) == TrainingRow(Prompt("what?"), "red")


def test_an_input_and_a_system_message_belong_to_the_question() -> None:
    assert parse_row({"instruction": "sum", "input": "1 2", "output": "3"}).prompt.question == "sum\n\n1 2"
    turns = [("system", "be brief"), ("user", "what?"), ("assistant", "red")]
    row = parse_row({"messages": [{"role": r, "content": c} for r, c in turns]})
    assert row.prompt.question == "be brief\n\nwhat?"


def test_passages_are_texts_or_objects_and_none_is_not_empty() -> None:
    passages = parse_row(
        {**QA, "passages": ["a", {"id": "x", "text": "b", "metadata": {"title": "t"}}]}
    ).prompt.passages
    assert passages == (Passage("1", "a"), Passage("x", "b", metadata={"title": "t"}))
    assert parse_row({**QA, "passages": []}).prompt.passages == ()
    assert parse_row(QA).prompt.passages is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "rows.jsonl:2: not JSON"),
        ("[1]", "rows.jsonl:2: expected a JSON object, got a list"),
        ({"text": "x"}, r"rows.jsonl:2: unknown shape with keys \['text'\]; expected question"),
        ({"question": "what?", "answer": " "}, "rows.jsonl:2: the answer is ' ', so there is nothing to learn"),
        ({"question": "what?", "answer": 4}, "rows.jsonl:2: the answer is 4"),
        ({"question": " ", "answer": "red"}, "rows.jsonl:2: the question is empty"),
        ({**QA, "passages": "x"}, "rows.jsonl:2: expected a list"),
        ({**QA, "passages": [3]}, "rows.jsonl:2: passage 1 is 3; expected text"),
        ({"messages": [{"role": "user", "content": "x"}]}, r"rows.jsonl:2: the turns are \['user'\]"),
        ({"messages": ["x"]}, "rows.jsonl:2: a message is 'x'; expected role and content"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_rows(write(tmp_path / "rows.jsonl", QA, row))
    assert caught.value.line == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no rows"), (b"\n \n", "holds no rows"), (b"\xff\xfe\x00", "not UTF-8 text")],
)
def test_an_unusable_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(path)
    with pytest.raises(DataError, match="there is no such file"):
        read_rows(tmp_path / "other.jsonl")


def test_a_summary_counts_what_is_learnt(renderer: Renderer) -> None:
    rows = as_rows([QA, {"question": "where?", "answer": "blue river"}])
    ids, summary = check_rows(rows, renderer, max_length=64)
    # " red" and " blue river" are single tokens of this tokenizer but for the parts that BPE makes of them.
    expected = sum(len(renderer.encode(f" {row.answer}")) for row in rows)
    assert summary.supervised == expected == sum(i.supervised for i in ids)
    assert summary.rows == 2
    assert summary.tokens == sum(len(i.ids) for i in ids)
    assert summary.share == expected / summary.tokens
    assert summary.longest == max(len(i.ids) for i in ids)
    assert all(sum(label != IGNORED for label in i.labels) == i.supervised + 1 for i in ids)


def test_an_answer_that_would_be_cut_off_is_an_error(tmp_path: Path, renderer: Renderer) -> None:
    rows = read_rows(write(tmp_path / "rows.jsonl", QA, {**QA, "answer": "river " * 40}))
    with pytest.raises(DataError, match=r"rows.jsonl:2: .* would be cut off. Raise max_length"):
        check_rows(rows, renderer, max_length=30)


def test_passages_are_dropped_before_answers_are_cut(renderer: Renderer) -> None:
    rows = as_rows([{**QA, "passages": ["the river " * 20, "the pump " * 20]}])
    (ids,), summary = check_rows(rows, renderer, max_length=60)
    assert summary.shortened == 1
    assert len(ids.ids) <= 60
    assert renderer.tokenizer.decode(ids.ids).endswith("<|user|> what?<|assistant|> red<|end|>")


def test_a_row_with_nothing_to_learn_is_an_error(renderer: Renderer) -> None:
    blind = Renderer(make_tokenizer(TEMPLATE.replace(" {{ m['content'] }}<|end|>", "<|end|>")))
    with pytest.raises(DataError, match=r"rows\.jsonl:7: no token of this row is learnt from"):
        check_rows([TrainingRow(Prompt("what?"), "red", "rows.jsonl", 7)], blind, max_length=64)


def test_duplicates_and_contradictions_are_counted(renderer: Renderer) -> None:
    rows = as_rows([QA, QA, {"question": "What? ", "answer": "blue"}, {**QA, "passages": ["red"]}])
    summary = check_rows(rows, renderer, max_length=64)[1]
    assert (summary.duplicates, summary.contradictions) == (1, ("row:3",))


def test_a_leak_is_refused_by_place(renderer: Renderer) -> None:
    held = as_rows([{"question": "new?", "answer": "x"}, {"question": "WHAT?", "answer": "y"}])
    summary = check_rows(as_rows([QA]), renderer, max_length=64, eval_rows=held)[1]
    assert summary.leaked == ("row:2",)
    with pytest.raises(DataError, match="row:2; take them out of one of the two, or pass allow_leak=True"):
        refuse_leak(summary)


def test_no_rows_are_an_error(renderer: Renderer) -> None:
    with pytest.raises(DataError, match="there are no training rows"):
        check_rows([], renderer, max_length=64)


def test_a_preview_shows_what_is_masked_and_what_is_learnt(renderer: Renderer) -> None:
    (shown,) = preview(as_rows([{**QA, "passages": ["the pump"]}]), renderer)
    assert shown.masked == "<|ctx|> the pump\n<|user|> what?<|assistant|>"
    assert shown.learnt == " red<|end|>"
    assert str(shown) == f"row:1\n\x1b[90m{shown.masked}\x1b[0m{shown.learnt}"
    assert len(preview(as_rows([QA] * 9), renderer, n=4)) == 4


@pytest.mark.slow
def test_ten_thousand_rows_are_checked_in_ten_seconds(tmp_path: Path, renderer: Renderer) -> None:
    rows = [{"question": f"what is pump {i}?", "answer": f"blue river {i}"} for i in range(10_000)]
    path = write(tmp_path / "rows.jsonl", *rows)
    started = time.perf_counter()
    assert check_rows(read_rows(path), renderer, max_length=64)[1].rows == 10_000
    assert time.perf_counter() - started <= 10


def test_an_answer_whose_end_is_not_learnt_is_an_error(renderer: Renderer) -> None:
    """Never generating an end is the commonest complaint about fine-tuned models."""

    class Endless(Renderer):
        def render_training(self, prompt: Prompt, answer: str) -> TrainingIds:
            whole = super().render_training(prompt, answer)
            return TrainingIds(whole.ids[:-1], whole.labels[:-1], ended=False)

    with pytest.raises(DataError, match=r"row:1: the end of the answer is not learnt.*must close"):
        check_rows(as_rows([QA]), Endless(make_tokenizer()), max_length=64)


def test_a_tokenizer_that_adds_a_start_token_does_not_double_it() -> None:
    tokenizer = make_tokenizer("<|ctx|>" + TEMPLATE)
    start = tokenizer.convert_tokens_to_ids("<|ctx|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|ctx|> $A", special_tokens=[("<|ctx|>", start)]
    )
    assert tokenizer("what?")["input_ids"][0] == start
    ids = Renderer(tokenizer).render_training(Prompt("what?"), "red").ids
    assert ids.count(start) == 1
