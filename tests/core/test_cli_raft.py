from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragft_plugin.cli.main import run
from ragft_plugin.demo.reading import draw_world
from ragft_plugin.evaluation.answers import contains
from ragft_plugin.lora.data import read_rows
from ragft_plugin.retrieval import KnowledgeBase


@pytest.fixture
def project(tmp_path: Path) -> Path:
    world = draw_world(sites=24, strangers=1)
    with KnowledgeBase.create(tmp_path / "knowledge_base", "hashing") as kb:
        kb.add(world.passages)
    (tmp_path / "ragft.yaml").write_text(
        "version: 1\nbase: pocket\nknowledge_base: knowledge_base\nencoder: hashing\n", encoding="utf-8"
    )
    return tmp_path


def test_documents_become_questions_and_these_become_rows(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    patterns = [
        {"statement": "{x} is located in {v}.", "questions": ["Where is {x}?"]},
        {"statement": "{x} is managed by {v}.", "questions": ["Who manages {x}?"]},
        {"statement": "{x} produces {v}.", "questions": ["What does {x} produce?"]},
        {"statement": "{x} requires {v}.", "questions": ["What does {x} require?"]},
    ]
    (project / "patterns.json").write_text(json.dumps(patterns), encoding="utf-8")
    assert run(["questions", "--out", "q.jsonl", "--patterns", "patterns.json", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in (project / "q.jsonl").read_text().splitlines()]
    assert len(rows) == counted["questions"] > 3
    assert [r.answer for r in read_rows(project / "q.jsonl")] == [r["answer"] for r in rows]  # closed-book rows at once
    command = ["raft", "q.jsonl", "--out", "rows.jsonl", "--eval-out", "held.jsonl", "--eval-share", "0.3"]
    assert run([*command, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    train, held = read_rows(project / "rows.jsonl"), read_rows(project / "held.jsonl")
    assert (len(train), len(held)) == (counts["train"], counts["evaluation"])
    assert len(train) + len(held) == len(rows)
    answers = {r["question"]: r["answer"] for r in rows}
    for row in (*train, *held):
        holds = [contains(p.text, answers[row.prompt.question]) for p in row.prompt.passages or ()]
        assert sum(holds) == (row.answer != "I do not know.")
    first = (project / "rows.jsonl").read_bytes()
    assert run(command) == 0
    assert "without gold" in capsys.readouterr().out
    assert (project / "rows.jsonl").read_bytes() == first


def test_a_model_of_ones_own_writes_the_questions(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    (project / "my_writer_model.py").write_text(
        "def ask(prompt):\n    first = prompt.split('Passage:')[1].split()[0]\n"
        '    return \'{"question": "What is told first?", "answer": "%s"}\' % first\n',
        encoding="utf-8",
    )
    assert run(["questions", "--out", "q.jsonl", "--writer", "my_writer_model:ask"]) == 0
    assert "1 questions" in capsys.readouterr().out  # the same question about every passage counts once
    assert run(["questions", "--out", "q.jsonl", "--writer", "no_such_module:ask"]) == 2
    assert "expected MODULE:NAME" in capsys.readouterr().err
    assert run(["questions", "--out", "q.jsonl", "--writer", "a:b", "--patterns", "x"]) == 2


def test_tuning_by_preference_reward_and_documents_from_the_command_line(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    pairs = [{"prompt": f"Where is {x}?", "chosen": "red", "rejected": "blue"} for x in ("a", "b")]
    (project / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs), encoding="utf-8")
    quick = ["--max-steps", "1", "--batch-size", "2", "-r", "2", "--json"]
    assert run(["tune", "preference", "pairs.jsonl", "--name", "liked", "--eval", "pairs.jsonl", *quick]) == 2
    assert "evaluation rows have the prompt" in capsys.readouterr().err
    assert run(["tune", "preference", "pairs.jsonl", "--name", "liked", *quick]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1
    (project / "my_reward.py").write_text("def length(answer, row):\n    return len(answer)\n", encoding="utf-8")
    rows = [{"question": f"Where is {x}?", "answer": "red"} for x in ("a", "b")]
    (project / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    command = ["tune", "reward", "rows.jsonl", "--name", "long", "--group", "2", "--max-new-tokens", "4", *quick]
    assert run([*command, "--reward", "my_reward:nothing"]) == 2
    assert "expected MODULE:FUNCTION" in capsys.readouterr().err
    assert run(["tune", "documents", "--name", "read", *quick]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["perplexity_before"] > 1
    assert (project / "adapters" / "read" / "1" / "adapter_model.safetensors").is_file()
