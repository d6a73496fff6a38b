"""The command line as a user meets it: the words of the README, and wrong input on purpose."""

import json

import pytest

from ragft_plugin.cli.main import COMMANDS, run

DOCS = {
    "pumps.md": "# Pumps\n\nThe Brelko pump needs oil every ninety days.\n\n## Warranty\n\nIt lasts two years.\n",
    "notes.txt": "Visitors park behind the mill.\n",
    "more.jsonl": json.dumps({"id": "m1", "text": "The canteen opens at noon."}) + "\n",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["init"]) == 0
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, text in DOCS.items():
        (docs / name).write_text(text)
    return tmp_path


def told(capsys, argv, status=2):
    capsys.readouterr()
    assert run(argv) == status
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out if status == 0 else err


def test_help_lists_every_command(capsys):
    out = told(capsys, ["--help"], status=0)
    assert all(name in out for name in COMMANDS)
    for name in COMMANDS:
        assert "Usage" in told(capsys, [name, "--help"], status=0)


def test_index_then_ask_shows_the_passages(project, capsys):
    report = json.loads(told(capsys, ["index", "docs", "--json"], status=0))
    assert (report["added"], report["skipped"]) == (report["passages"], [])
    again = json.loads(told(capsys, ["index", "docs", "--json"], status=0))
    assert (again["added"], again["updated"], again["deleted"]) == (0, 0, 0)
    answer = json.loads(told(capsys, ["ask", "How often does the Brelko pump need oil?", "--arm", "rag", "--json"], 0))
    assert answer["arm"] == "rag"
    assert "ninety days" in answer["passages"][0]["text"]
    assert answer["passages"][0]["metadata"]["source"].endswith("pumps.md")
    assert answer["decision"]["forced"]


def test_the_whole_job_on_ones_own_files(project, capsys):
    told(capsys, ["index", "docs"], status=0)
    rows = [{"question": f"Who runs mill {i}?", "answer": "Ada"} for i in range(12)]
    (project / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = told(capsys, ["train", "train.jsonl", "--name", "mills", "--dry-run"], status=0)
    assert "Ada" in shown
    trained = json.loads(told(capsys, ["train", "train.jsonl", "--name", "mills", "--max-steps", "2", "--json"], 0))
    assert (project / trained["folder"] / "adapter_model.safetensors").is_file()
    settings = (project / "ragft.yaml").read_text().replace("adapters: {}", "adapters:\n  mills: adapters/mills")
    (project / "ragft.yaml").write_text(settings)
    asked = [{"query": f"Who runs mill {i}?", "answers": ["Ada", "I do not know."]} for i in range(40)]
    (project / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    result = json.loads(told(capsys, ["run-arms", "questions.jsonl", "--score", "em", "--json"], status=0))
    assert set(result["arms"]) == {"base", "rag", "adapter:mills", "rag+adapter:mills"}
    assert result["n"] == 40
    told(capsys, ["fit", "outcomes.jsonl", "--out", "router"], status=0)
    figures = json.loads(told(capsys, ["eval", "router", "outcomes.jsonl", "--json"], status=0))
    assert figures["n"] == 40
    answer = json.loads(told(capsys, ["ask", "Who runs mill 3?", "--json"], status=0))
    assert answer["arm"] in result["arms"]
    assert answer["decision"]["reasons"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["index", "nowhere"], "nowhere"),
        (["index", "empty"], "empty"),
        (["ask", "", "--arm", "base"], "the question is empty"),
        (["ask", "x" * 100_000, "--arm", "base"], "100,000 characters"),
        (["ask", "Who?", "--arm", "rga"], "no arm named 'rga'"),
        (["ask", "Who?", "--arm", "rag"], "ragft index DOCUMENTS"),
        (["run-arms", "bad.jsonl"], "bad.jsonl:2: this line is not JSON"),
        (["train", "bad.jsonl", "--name", "x"], "bad.jsonl:2"),
        (["train", "none.jsonl", "--name", "x"], "none.jsonl"),
        (["fit", "bad.jsonl", "--cv", "5"], "bad.jsonl:1"),
        (["nonsense"], "No such command 'nonsense'"),
        (["init"], "already there"),
    ],
)
def test_wrong_input_is_named_with_its_cure_and_exit_status_2(project, capsys, argv, message):
    (project / "empty").mkdir()
    (project / "bad.jsonl").write_text('{"query": "a", "answer": "b", "question": "a"}\n{oops\n')
    assert message in told(capsys, argv)


def test_wrong_input_writes_nothing(project, capsys):
    before = sorted(p.name for p in project.iterdir())
    told(capsys, ["index", "nowhere"])
    told(capsys, ["run-arms", "none.jsonl"])
    assert sorted(p.name for p in project.iterdir()) == before


def test_a_binary_file_is_reported_and_the_rest_is_indexed(project, capsys):
    (project / "docs" / "broken.txt").write_bytes(bytes(range(256)))
    report = json.loads(told(capsys, ["index", "docs", "--json"], status=0))
    assert [row["path"].endswith("broken.txt") for row in report["skipped"]] == [True]
    assert report["added"] >= 3


def test_malformed_documents_are_named_by_file_and_line(project, capsys):
    (project / "docs" / "more.jsonl").write_text('{"id": "1", "text": "fine"}\n{oops\n')
    assert "more.jsonl:2" in told(capsys, ["index", "docs"])


def test_settings_that_are_missing_or_wrong_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "make one with: ragft init" in told(capsys, ["ask", "Who?"])
    (tmp_path / "ragft.yaml").write_text("kk: 1")
    assert "kk" in told(capsys, ["ask", "Who?"])


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    from ragft_plugin.errors import ConfigError

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        run(["--debug", "ask", "Who?"])
