"""``ragft train`` as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from tiny_models import WORDS

from ragft_plugin.cli import train as train_module
from ragft_plugin.cli.main import run

ROWS = [
    {"question": f"what is the {x} pump?", "answer": f"{y} {z}"}
    for x, y, z in zip(WORDS[::2], WORDS[1::2], WORDS[5::2], strict=False)
]
Told = Callable[..., str]


@pytest.fixture
def told(
    tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Told:
    """Runs ``ragft train`` in a project with a tiny base, and gives back what it said where it should."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ragft.yaml").write_text(f"version: 1\nbase: {base_folder}\n")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def call(*words: str, status: int = 0) -> str:
        capsys.readouterr()
        assert run(["train", *words]) == status
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return out if status == 0 else err

    return call


def test_a_dry_run_shows_three_rows_with_what_is_learnt(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = told("rows.jsonl", "--dry-run", "--hold-out", "0.2")
    assert shown.startswith(f"{len(ROWS) - round(0.2 * len(ROWS))} rows, ")
    assert "what is learnt stands between ⟦ and ⟧" in shown
    assert shown.count("⟦") == 1 + 3
    whole = told("rows.jsonl", "--dry-run")
    assert f"rows.jsonl:1\n<|user|> {ROWS[0]['question']}<|assistant|>⟦ {ROWS[0]['answer']}<|end|>⟧" in whole
    told_json = json.loads(told("rows.jsonl", "--dry-run", "--json"))
    assert told_json["data"]["rows"] == len(ROWS)
    assert told_json["preview"][0] == {
        "place": "rows.jsonl:1",
        "masked": f"<|user|> {ROWS[0]['question']}<|assistant|>",
        "learnt": f" {ROWS[0]['answer']}<|end|>",
    }


def test_on_a_terminal_the_masked_part_is_grey(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "on_terminal", lambda: True)
    monkeypatch.setattr(click, "echo", lambda text: seen.append(str(text)))
    seen: list[str] = []
    told("rows.jsonl", "--dry-run")
    first = next(text for text in seen if text.startswith("rows.jsonl:1"))
    masked, learnt = f"<|user|> {ROWS[0]['question']}<|assistant|>", f" {ROWS[0]['answer']}<|end|>"
    assert first == f"rows.jsonl:1\n\x1b[90m{masked}\x1b[0m\x1b[1m{learnt}\x1b[0m\n"


def test_training_tells_base_examples_and_adapter_side_by_side(told: Told, tmp_path: Path) -> None:
    words = ["rows.jsonl", "--name", "facts", "--hold-out", "0.25", "--max-steps", "2", "--keep-anyway"]
    shown = told(*words)
    for part in (
        f"mean score on {round(0.25 * len(ROWS))} held-out rows", "  base  ", "  4 examples  ", "  adapter  ",
        "  gain over ", "To use it, add to ragft.yaml:\nadapters:\n  facts: ",
    ):  # fmt: skip
        assert part in shown
    figures = json.loads(told(*words, "--json", "--method", "dora", "--freeze", "1", "--few-shot", "0"))
    assert (figures["version"], figures["steps"]) == ("2", 2)
    assert set(figures["comparison"]) >= {"score_before", "score_after", "score_rows", "gain", "gain_low", "gain_high"}
    assert "score_few_shot" not in figures["comparison"]
    manifest = json.loads((Path(figures["folder"]) / "manifest.json").read_text())
    assert (manifest["method"], manifest["settings"]["freeze"]) == ("dora", 1)
    assert (Path(figures["folder"]) / "README.md").is_file()


def test_an_adapter_that_is_no_better_is_refused_and_the_flag_is_named(told: Told, tmp_path: Path) -> None:
    said = told("rows.jsonl", "--name", "facts", "--hold-out", "0.25", "--max-steps", "1", status=2)
    assert "does not beat what needs no training" in said
    assert "(--resume --keep-anyway) to keep it without training again" in said
    assert not (tmp_path / "adapters" / "facts").exists()


def test_the_learning_curve_is_a_table_or_json(told: Told, tmp_path: Path) -> None:
    words = ["rows.jsonl", "--learning-curve", "--max-steps", "1", "--score", "f1", "--rows"]
    shown = told(*words, "4").splitlines()
    assert shown[0] == "reward: mean f1, with its 95 % interval"
    assert [line.split()[:2] for line in shown[2:5]] == [["base", "0"], ["few-shot", "4"], ["adapter", "4"]]
    found = json.loads(told(*words, "1", "--json"))
    train = len(ROWS) - round(0.2 * len(ROWS))
    assert [p["rows"] for p in found["points"]] == [0, 4, train]
    assert found["held_out"] == len(ROWS) - train
    assert {"value", "low", "high", "level"} == set(found["points"][2]["reward"])
    assert not (tmp_path / "adapters").exists()


def test_full_tuning_writes_a_base_and_says_how_to_use_it(told: Told, tmp_path: Path) -> None:
    shown = told("rows.jsonl", "--name", "mine", "--method", "full", "--freeze", "1", "--max-steps", "1")
    folder = shown.rpartition("To use it, write in ragft.yaml:\nbase: ")[2].strip()
    assert Path(folder).resolve() == tmp_path / "models" / "mine"
    assert (tmp_path / "models" / "mine" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rows.jsonl"], "Missing option '--name'"),
        (["rows.jsonl", "--name", "x", "--column", "question"], "expected FIELD=COLUMN"),
        (["rows.jsonl", "--name", "x", "--column", "question=Frage"], "rows.jsonl:1: there is no column 'Frage'"),
        (["rows.jsonl", "--name", "x", "--method", "lorry"], "unknown method 'lorry'"),
        (["rows.jsonl", "--name", "x", "--score", "best"], "unknown scorer 'best'"),
        (["rows.jsonl", "--name", "x", "--eval", "rows.jsonl"], "take them out of one of the two"),
        (["rows.jsonl", "--name", "x", "--patience", "2"], "patience needs held-out rows"),
        (["rows.jsonl", "--learning-curve", "--rows", "9000"], "9000 rows are asked for and there are"),
        (["rows.csv", "--name", "x"], "rows.csv: there is no such file"),
    ],
)
def test_wrong_words_are_named_with_their_cure(told: Told, words: list[str], message: str) -> None:
    assert message in told(*words, status=2)


def test_columns_of_a_table_are_mapped(told: Told, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("Frage;Antwort\nwhat?;red\nwho?;blue\n")
    shown: Any = json.loads(
        told("rows.csv", "--column", "question=Frage", "--column", "answer=Antwort", "--dry-run", "--json")
    )
    assert [p["learnt"] for p in shown["preview"]] == [" red<|end|>", " blue<|end|>"]
