"""``ragft eval`` as a user meets it: figures of a router on a held-out file, and every way to ask wrongly."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragft_plugin.cli.main import run
from ragft_plugin.evaluation.outcomes import write_outcomes
from ragft_plugin.routing import Router

sys.path.insert(0, str(Path(__file__).parents[1] / "routing"))
from routing_worlds import world

FIGURES = {
    "n", "arms", "encoder", "best_arm", "best_arm_reward", "reward", "reward_ungated", "gain", "gain_ci95",
    "oracle_reward", "headroom_captured", "mean_cost", "stage_share", "ece", "brier", "gate", "calibration_p",
}  # fmt: skip

Told = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a router fitted on one file, and a file it has not seen."""
    folder = tmp_path_factory.mktemp("job")
    Router().fit(world(240)).save(folder / "router")
    write_outcomes(folder / "test.jsonl", world(120, seed=9).rows)
    return folder


@pytest.fixture
def told(job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Told:
    monkeypatch.chdir(job)

    def call(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run(list(argv))
        return status, *capsys.readouterr()

    return call


def figures(told: Told, *options: str) -> dict[str, Any]:
    status, out, err = told("eval", "router", "test.jsonl", "--json", *options)
    assert (status, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def test_json_holds_the_figures_of_the_held_out_file(told: Told) -> None:
    found = figures(told)
    assert found.keys() >= FIGURES
    assert found["n"] == 120
    log = world(120, seed=9)
    assert found["oracle_reward"] == pytest.approx(log.reward.max(axis=1).mean(), abs=1e-6)
    assert found["fixed"]["rag"]["reward"] == pytest.approx(log.reward[:, 1].mean(), abs=1e-6)
    assert found["reward"] > 0.8 > found["best_arm_reward"]


def test_the_same_file_gives_the_same_figures_again(told: Told) -> None:
    assert figures(told) == figures(told)


def test_a_cost_weight_is_applied_without_fitting_again(told: Told) -> None:
    free, dear = figures(told), figures(told, "--cost-weight", "5")
    assert free["cost_weight"] == 0.0 != dear["cost_weight"]
    # Five rewards for one retrieval: nothing is retrieved any more, and the free arm is the best one.
    assert free["mean_cost"] > 0.3
    assert dear["mean_cost"] == 0.0
    assert dear["best_arm"] == "adapter"
    assert dear["reward"] == pytest.approx(dear["fixed"]["adapter"]["reward"])


def test_the_frontier_goes_from_all_in_to_nothing_spent(told: Told) -> None:
    assert "frontier" not in figures(told)
    points = figures(told, "--frontier")["frontier"]
    weights = [p["cost_weight"] for p in points]
    assert weights[0] == 0.0
    assert weights == sorted(weights)
    assert points[0]["cost"] > 0.3
    assert points[-1]["cost"] == 0.0
    costs = [p["cost"] for p in points]
    assert all(a >= b - 0.02 for a, b in pairwise(costs))
    assert {"cost_weight", "cost", "reward"} <= points[0].keys()


def test_people_see_every_arm_the_interval_and_the_gate(told: Told) -> None:
    status, out, _ = told("eval", "router", "test.jsonl")
    assert status == 0
    for words in ("120 queries", "always adapter", "always rag", "oracle", "headroom", "gate open", "95 %"):
        assert words in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["eval", "nowhere", "test.jsonl"], "nowhere"),
        (["eval", "router", "nothing.jsonl"], "nothing.jsonl"),
        (["eval", "router"], "OUTCOMES"),
        (["eval", "router", "test.jsonl", "--cost-weight", "-1"], "cost-weight"),
        (["eval", "router", "test.jsonl", "--cost-weight", "much"], "cost-weight"),
        (["eval", "router", "test.jsonl", "--encoder", "word2vec"], "encoder"),
    ],
)
def test_wrong_requests_end_with_status_2_and_name_what_is_wrong(argv: list[str], message: str, told: Told) -> None:
    status, out, err = told(*argv)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def spoil(job: Path, name: str, change: Callable[[Path], object]) -> str:
    """A copy of the router with something wrong in it."""
    import shutil

    folder = job / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(job / "router", folder)
    change(folder)
    return name


def _edit(**changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "router.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("half", lambda f: (f / "router.json").write_text((f / "router.json").read_text()[:200]), "router.json"),
        ("text", lambda f: (f / "router.json").write_text("not a router"), "router.json"),
        ("gone", lambda f: (f / "router.json").unlink(), "gone"),
        ("no-arrays", lambda f: (f / "arrays.npz").unlink(), "arrays"),
        ("cut-arrays", lambda f: (f / "arrays.npz").write_bytes((f / "arrays.npz").read_bytes()[:500]), "arrays"),
        ("newer", _edit(version=99), "version 99"),
        ("other-arms", _edit(arms=["a", "b", "c"]), "other-arms"),
        ("arrays-of-objects", lambda f: np.savez(f / "arrays.npz", x=np.array([print], dtype=object)), "arrays"),
    ],
)
def test_a_bad_router_is_refused_with_status_2(
    name: str, change: Callable[[Path], object], message: str, job: Path, told: Told
) -> None:
    status, out, err = told("eval", spoil(job, name, change), "test.jsonl", "--json")
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_outcomes_of_other_arms_are_refused_by_name(job: Path, told: Told) -> None:
    rows = [{"query_id": "1", "query": "Who?", "reward": {"base": 1.0, "rag": 0.0}}]
    (job / "other.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    status, out, err = told("eval", "router", "other.jsonl")
    assert (status, out) == (2, "")
    assert "base" in err
    assert "adapter" in err


def test_a_wrong_row_is_named_by_file_and_line(job: Path, told: Told) -> None:
    lines = (job / "test.jsonl").read_text().splitlines()
    lines[4] = lines[4].replace('"reward":{"adapter":', '"reward":{"adapter":7')
    (job / "wrong.jsonl").write_text("\n".join(lines) + "\n")
    status, _, err = told("eval", "router", "wrong.jsonl")
    assert status == 2
    assert "wrong.jsonl" in err
    assert "5" in err
