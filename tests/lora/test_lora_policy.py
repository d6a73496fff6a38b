from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_models import WORDS, make_adapter, make_base

from ragft_plugin.errors import AdapterError, ConfigError, DataError
from ragft_plugin.lora import LoraModel, Recipe, Registry, TrainingRow
from ragft_plugin.lora.preference import as_preferences, preference_figures, train_preference
from ragft_plugin.lora.reinforcement import checked_reward, train_with_reward
from ragft_plugin.types import Prompt

QUICK = Recipe(learning_rate=5e-3, batch_size=8, r=4, max_steps=25)
PAIRS = [
    {"question": f"what is the {a} {b}?", "chosen": f"{a} copper", "rejected": f"{a} steel"}
    for a in WORDS[:8]
    for b in WORDS[8:12]
]
ROWS = [{"question": p["question"], "answer": "unused"} for p in PAIRS]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("policy"), hidden=64)


def test_preference_tuning_makes_chosen_answers_likelier_on_prompts_never_seen(base: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = train_preference(
        base,
        PAIRS[:24],
        tmp_path,
        name="polite",
        eval_rows=PAIRS[24:],
        recipe=QUICK,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps[-1] == (25, 25)
    assert report.after["margin"] > report.before["margin"] + 3  # nats
    assert report.after["accuracy"] == 1.0
    manifest = Registry(tmp_path).versions("polite")[0].manifest
    assert (manifest.method, manifest.settings["beta"], manifest.data.rows) == ("dpo", 0.1, 24)
    assert manifest.metrics["margin_after"] == pytest.approx(report.after["margin"])
    assert not list(tmp_path.glob(".training-*"))
    # The loss at the first step is ln 2: adapter and reference agree.
    assert report.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    with LoraModel.load(base) as model:
        model.load_adapter("polite", tmp_path / "polite")
        served = preference_figures(model, "polite", as_preferences(PAIRS[24:]))
    assert served == pytest.approx(report.after)


def test_preference_tuning_from_an_adapter_holds_to_that_adapter(base: Path, tmp_path: Path) -> None:
    start = make_adapter(base, tmp_path / "start", seed=5)
    report = train_preference(
        base, PAIRS[:8], tmp_path / "out", name="on", eval_rows=PAIRS[24:28], start=start, recipe=QUICK
    )
    with LoraModel.load(base) as model:
        model.load_adapter("start", start)
        before = preference_figures(model, "start", as_preferences(PAIRS[24:28]))
        plain = preference_figures(model, None, as_preferences(PAIRS[24:28]))
    assert report.before == pytest.approx(before)
    assert before != pytest.approx(plain)
    assert report.after["margin"] > report.before["margin"]
    assert report.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the reference is the start, not the base
    config = json.loads((report.folder / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert [p.name for p in report.folder.iterdir() if p.is_dir()] == []  # no second adapter beside it


def test_preferences_are_read_in_the_shapes_that_trl_has() -> None:
    plain = {"prompt": "Where?", "chosen": "Here.", "rejected": "There.", "passages": ["It is here."]}
    lists = {
        "prompt": [{"role": "user", "content": "Where?"}],
        "chosen": [{"role": "assistant", "content": "Here."}],
        "rejected": [{"role": "assistant", "content": "There."}],
    }
    implicit = {k: [*lists["prompt"], *lists[k]] for k in ("chosen", "rejected")}
    read = as_preferences([plain, lists, implicit])
    assert [(r.prompt.question, r.chosen, r.rejected) for r in read] == [("Where?", "Here.", "There.")] * 3
    assert read[0].prompt.passages is not None
    assert read[0].prompt.passages[0].text == "It is here."


@pytest.mark.parametrize(
    ("rows", "held", "said"),
    [
        ([], None, "no preferences"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], None, "nothing to prefer"),
        ([{"prompt": "a", "chosen": "b"}], None, "expected prompt, chosen and rejected"),
        ([PAIRS[0]], [PAIRS[0]], "evaluation rows have the prompt of a training row"),
        ([{"prompt": "a " * 400, "chosen": "b", "rejected": "c"}], None, "raise max_length"),
    ],
)
def test_bad_preferences_are_refused(base: Path, tmp_path: Path, rows: Any, held: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        train_preference(base, rows, tmp_path, name="x", eval_rows=held)


def test_methods_whose_reference_is_not_the_base_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which is the reference"):
        train_preference(base, PAIRS[:2], tmp_path, name="x", recipe=Recipe(method="pissa"))
    with pytest.raises(ConfigError, match="beta must be above 0"):
        train_preference(base, PAIRS[:2], tmp_path, name="x", beta=0)


def vowels(answer: str, row: TrainingRow) -> float:
    """Rewards the share of letters that are vowels; nothing said is worth nothing."""
    return sum(c in "aeiou" for c in answer) / max(8, len(answer))


def test_a_reward_function_raises_the_reward_on_prompts_never_seen(base: Path, tmp_path: Path) -> None:
    recipe = Recipe(learning_rate=1e-2, batch_size=4, r=4, max_steps=40)
    report = train_with_reward(
        base, ROWS[:24], vowels, tmp_path, name="vowels", eval_rows=ROWS[24:], recipe=recipe, max_new_tokens=6, group=8
    )
    assert report.after["reward"] > report.before["reward"] + 0.4
    manifest = Registry(tmp_path).versions("vowels")[0].manifest
    assert manifest.method == "grpo"
    assert manifest.metrics["reward_after"] == pytest.approx(report.after["reward"])
    drawn = [h["reward"] for h in report.history if "reward" in h]
    assert sum(drawn[-5:]) > sum(drawn[:5])


def test_a_reward_that_never_differs_stops_the_training_with_advice(base: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="every answer to a prompt had the same reward"):
        train_with_reward(
            base,
            ROWS[:4],
            lambda answer, row: 0.0,
            tmp_path,
            name="flat",
            recipe=Recipe(batch_size=1, max_steps=30),
            max_new_tokens=2,
            group=2,
        )


def test_rewards_are_numbers() -> None:
    row = TrainingRow(Prompt("a"), "b")
    assert checked_reward(lambda answer, row: True, "x", row) == 1.0
    for bad in (None, "1", math.nan, [1]):
        with pytest.raises(DataError, match="returns a finite number"):
            checked_reward(lambda answer, row, bad=bad: bad, "x", row)  # type: ignore[misc]
    with pytest.raises(ConfigError, match="group must be at least 2"):
        train_with_reward("base", ROWS, vowels, "out", name="x", group=1)
