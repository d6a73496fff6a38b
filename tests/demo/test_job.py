"""The demo's job end to end, on a part of the exam; and the blocks of the README over the project it leaves."""

import json
import re
from contextlib import contextmanager
from pathlib import Path

import pytest

from ragft_plugin.cli.demo import table
from ragft_plugin.cli.main import run as ragft
from ragft_plugin.demo import job

README = Path(__file__).parents[2] / "README.md"
ALL_QUESTIONS = job.questions


@contextmanager
def quiet(label):
    yield lambda done, total: None


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme") / "ragft-demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "questions", lambda split: ALL_QUESTIONS(split)[:105])
        result = job.run(folder, progress=quiet)
    return folder, result


def test_the_router_beats_every_fixed_arm_on_questions_it_has_not_seen(demo):
    _, result = demo
    assert result.router.mean > result.best_arm.mean + 0.15
    assert result.router.mean <= result.oracle.mean


def test_the_figures_are_consistent(demo):
    folder, result = demo
    figures = json.loads(json.dumps(result.to_json()))
    assert figures["n"] == 105
    assert figures["best_arm_reward"] == max(figures["arms"].values())
    assert figures["random_reward"] == pytest.approx(sum(figures["arms"].values()) / 6, abs=1e-3)
    assert figures["reward_ci95"][0] <= figures["reward"] <= figures["reward_ci95"][1]
    assert "The router beats the best fixed arm" in table(result)
    assert {"knowledge_base", "outcomes-calibration.jsonl", "outcomes-test.jsonl", "ragft.yaml", "router"} <= {
        path.name for path in folder.iterdir()
    }


def test_what_the_demo_leaves_answers_further_questions(demo, capsys):
    folder, _ = demo
    capsys.readouterr()
    assert ragft(["ask", "-c", str(folder / "ragft.yaml"), "Where is Floondflax located?", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["arm"] in ("rag", "adapter:facts")
    assert answer["decision"]["reasons"]


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


def test_the_readme_has_a_block_for_each_framework():
    assert [
        bool(re.search(name, block)) for name, block in zip(("RoutedChain", "RoutedQueryEngine"), blocks(), strict=True)
    ]


@pytest.mark.parametrize("number", [0, 1])
def test_a_block_of_the_readme_runs_as_it_stands(demo, number, monkeypatch, capsys):
    folder, _ = demo
    monkeypatch.chdir(folder.parent)
    exec(compile(blocks()[number], "README.md", "exec"), {})
    assert " | " in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_exam_meets_its_bars(tmp_path, capsys):
    assert ragft(["demo", "--folder", str(tmp_path / "demo"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["reward"] >= figures["best_arm_reward"] + 0.25
    assert figures["headroom_captured"] >= 0.85
    assert figures["reward"] >= figures["text_router_reward"] + 0.10
