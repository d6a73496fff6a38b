from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TEMPLATE, make_tokenizer
from tokenizers import processors

from ragft_plugin.errors import DataError, MissingExtraError
from ragft_plugin.lora import Renderer, TrainingRow, check_rows, preview, read_rows
from ragft_plugin.lora.checks import refuse_leak
from ragft_plugin.lora.data import as_rows, hold_out, parse_row, parse_rows, prompt_key
from ragft_plugin.lora.rendering import IGNORED, TrainingIds
from ragft_plugin.types import Passage, Prompt

QA = {"question": "what?", "answer": "red"}


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_tokenizer())


def talk(*turns: str) -> list[dict[str, str]]:
    return [dict(zip(("role", "content"), turn.split(": "), strict=True)) for turn in turns]


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


def test_an_input_belongs_to_the_question_and_a_system_message_stays_one() -> None:
    assert parse_row({"instruction": "sum", "input": "1 2", "output": "3"}).prompt.question == "sum\n\n1 2"
    expected = TrainingRow(Prompt("what?", None, (("system", "be brief"),)), "red")
    assert parse_row({"messages": talk("system: be brief", "user: what?", "assistant: red")}) == expected
    assert parse_row({"instruction": "what?", "output": "red", "system": "be brief"}) == expected


def test_a_conversation_is_a_row_for_each_answer_with_what_was_said_before() -> None:
    """What the adapter sees when it answers is what it saw when it learnt."""
    said = ["system: be brief", "user: what?", "assistant: red", "user: why?", "assistant: iron"]
    expected = [
        TrainingRow(Prompt("what?", None, (("system", "be brief"),)), "red"),
        TrainingRow(Prompt("why?", None, (("system", "be brief"), ("user", "what?"), ("assistant", "red"))), "iron"),
    ]
    assert parse_rows({"messages": talk(*said)}) == expected
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [{"from": names[t["role"]], "value": t["content"]} for t in talk(*said)]
    assert parse_rows({"conversations": shared}) == expected
    alpaca = {"instruction": "why?", "output": "iron", "system": "be brief", "history": [["what?", "red"]]}
    assert parse_rows(alpaca) == expected[1:]
    assert parse_rows({"prompt": talk(*said[:-1]), "completion": talk(said[-1])}) == expected[1:]


def test_what_was_said_before_is_read_and_not_learnt(renderer: Renderer) -> None:
    rows = parse_rows({"messages": talk("user: what?", "assistant: red", "user: why?", "assistant: blue")})
    (_, second), summary = check_rows(rows, renderer, max_length=64)
    learnt = [i for i, label in zip(second.ids, second.labels, strict=True) if label != IGNORED]
    assert renderer.tokenizer.decode(learnt) == " blue<|end|>"
    assert (
        renderer.tokenizer.decode(second.ids)
        == "<|user|> what?<|assistant|> red<|end|><|user|> why?<|assistant|> blue<|end|>"
    )
    assert summary.duplicates == 0


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
        (
            {"messages": talk("user: a", "user: b", "assistant: c")},
            "rows.jsonl:2: .* expected user and assistant in turn",
        ),
        ({"messages": talk("user: a", "tool: b", "assistant: c")}, r"rows.jsonl:2: the turns are \['user', 'tool'"),
        (
            {"messages": talk("user: a", "assistant:  ", "user: b", "assistant: c")},
            "rows.jsonl:2: a turn of the assist",
        ),
        ({"instruction": "a", "output": "b", "history": ["c"]}, "rows.jsonl:2: the history holds 'c'; expected pairs"),
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
def test_an_unusable_file_is_named_with_its_cure(tmp_path: Path, content: bytes, message: str) -> None:
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
    assert (summary.least, summary.most) == (ids[0].supervised, ids[1].supervised)
    assert f"{expected} tokens ({summary.share:.0%}) are learnt from, 1 to {summary.most} in a row" in str(summary)
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


def test_all_rows_with_nothing_to_learn_are_named(renderer: Renderer) -> None:
    blind = Renderer(make_tokenizer(TEMPLATE.replace(" {{ m['content'] }}<|end|>", "<|end|>")))
    rows = [TrainingRow(Prompt(f"what {n}?"), "red", "rows.jsonl", n) for n in range(7, 15)]
    with pytest.raises(DataError, match=r"\(and 7 more rows: rows.jsonl:8, .*rows.jsonl:12\)"):
        check_rows(rows, blind, max_length=64)


def test_duplicates_and_contradictions_are_counted(renderer: Renderer) -> None:
    rows = as_rows([QA, QA, {"question": "What? ", "answer": "blue"}, {**QA, "passages": ["red"]}])
    summary = check_rows(rows, renderer, max_length=64)[1]
    assert (summary.duplicates, summary.contradictions) == (1, ("row:3",))
    assert "1 rows repeat an earlier one\n1 contradict an earlier row with the same prompt: row:3" in str(summary)


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
    long = as_rows([{**QA, "passages": ["the pump", "the river " * 40]}])
    assert preview(long, renderer, max_length=40)[0] == shown  # as it will be trained on, not as it stands


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


TABLE = [{"question": "what?", "answer": "red"}, {"question": 'say "a,b"\nnow', "answer": "7"}]


def write_table(path: Path, **names: str) -> Path:
    fields = [names.get(f, f) for f in ("question", "answer")]
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        columns = {f: [row[k] for row in TABLE] for f, k in zip(fields, ("question", "answer"), strict=True)}
        parquet.write_table(pyarrow.table(columns), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps([dict(zip(fields, row.values(), strict=True)) for row in TABLE], indent=2))
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:  # as Excel writes it
            table = csv.writer(file, delimiter={".csv": ";", ".tsv": "\t"}[path.suffix])
            table.writerows([fields, *(row.values() for row in TABLE)])
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "parquet"])
def test_tables_and_lists_hold_the_same_rows(tmp_path: Path, suffix: str) -> None:
    expected = [(row["question"], row["answer"]) for row in TABLE]
    rows = read_rows(write_table(tmp_path / f"rows.{suffix}"))
    assert [(r.prompt.question, r.answer) for r in rows] == expected
    assert [r.line for r in rows] == ([2, 3] if suffix in ("csv", "tsv") else [1, 2])
    named = {"question": "Frage", "answer": "Antwort"}
    path = write_table(tmp_path / f"other.{suffix}", **named)
    assert [(r.prompt.question, r.answer) for r in read_rows(path, columns=named)] == expected
    with pytest.raises(DataError, match=r"unknown shape with keys .*other names are mapped with columns"):
        read_rows(path)
    with pytest.raises(DataError, match="no column 'Fragen' for question; the columns are Frage, Antwort"):
        read_rows(path, columns={"question": "Fragen"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "question,answer\nwhat?,red\nwhat,is,red\n", "x.csv:3: .*more or fewer cells than the header"),
        ("x.csv", "question,answer\nwhat?\n", "x.csv:2: .*more or fewer cells"),
        ("x.csv", 'question,answer\n"what?,red\n', "x.csv:2: not a table"),
        ("x.csv", "question,answer\n", "holds no rows"),
        ("x.csv", 'question,answer\n"a\nb",red\nwhat?,\n', "x.csv:4: the answer is '', so there is nothing"),
        ("x.json", "[1]", "x.json:1: expected a JSON object, got a int"),
        ("x.json", "[{", "x.json:1: not JSON"),
        ("x.parquet", "no parquet", "x.parquet: not a Parquet file"),
    ],
)
def test_a_broken_table_is_named_by_file_and_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


def test_messages_and_passages_stand_in_cells_as_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["messages", "passages"], [json.dumps(talk("user: a", "assistant: b")), '["c"]']])
    (row,) = read_rows(path)
    assert row == TrainingRow(Prompt("a", (Passage("1", "c"),)), "b", str(path), 2)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(tmp_path / "rows.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"ragft-plugin\[train\]"):
        read_rows(path)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    asked=st.lists(st.sampled_from(["a", "b ", "B", "c", "d"]), min_size=2, max_size=30),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_holding_out_parts_the_prompts_and_loses_no_row(asked: list[str], share: float, seed: int) -> None:
    rows = [TrainingRow(Prompt(q), str(n)) for n, q in enumerate(asked)]
    different = {prompt_key(r.prompt) for r in rows}
    if len(different) < 2:
        with pytest.raises(DataError, match="cannot hold out"):
            hold_out(rows, share, seed=seed)
        return
    train, held = hold_out(rows, share, seed=seed)
    assert sorted(r.answer for r in (*train, *held)) == sorted(r.answer for r in rows)
    sides = [{prompt_key(r.prompt) for r in part} for part in (train, held)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == min(max(1, round(share * len(different))), len(different) - 1)
