from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import WORDS, make_adapter, make_base
from transformers import LlamaForCausalLM

from ragft_plugin.errors import AdapterError, ConfigError, DataError
from ragft_plugin.lora import LoraModel, Recipe, Registry, train_adapter
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.lora.recipe import default_learning_rate, linear_modules
from ragft_plugin.lora.watch import check_loss
from ragft_plugin.prompts import closed_book

ROWS = [
    {"question": f"what is the {x} pump?", "answer": f"{y} {z}"}
    for x, y, z in zip(WORDS[::2], WORDS[1::2], WORDS[5::2], strict=False)
]
QUICK: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 4, "r": 4}


def exact(given: str, wanted: str) -> float:
    return float(given == wanted)


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("wide"), hidden=64)


def test_an_adapter_learns_its_rows_and_is_served_as_it_was_scored(wide_base: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = train_adapter(
        wide_base,
        ROWS,
        tmp_path,
        name="facts",
        eval_rows=ROWS[:6],
        allow_leak=True,
        scorer=exact,
        max_steps=50,
        progress=lambda done, total: seen.append((done, total)),
        learning_rate=1e-2,
        batch_size=8,
    )
    assert seen == [(i, 50) for i in range(1, 51)]
    assert (report.stopped, report.steps, report.version) == ("done", 50, "1")
    assert report.eval_losses[0][0] == 0
    assert report.eval_losses[-1][1] < report.eval_losses[0][1] / 4
    assert report.score_before == 0.0
    assert report.score_after is not None
    assert report.score_after >= 0.5
    with LoraModel.load(wide_base) as model:
        model.load_adapter("facts", tmp_path / "facts")  # the registry's current version
        answers = model.generator("facts", max_new_tokens=16).generate(
            [closed_book(row["question"]) for row in ROWS[:6]]
        )
    hits = [exact(a.text, row["answer"]) for a, row in zip(answers, ROWS, strict=False)]
    assert sum(hits) / 6 == pytest.approx(report.score_after)
    assert not list(tmp_path.glob(".training-*"))
    manifest = Registry(tmp_path).versions("facts")[0].manifest
    assert manifest.metrics["score_after"] == report.score_after
    assert manifest.data.rows == len(ROWS)
    assert ROWS[0]["question"] not in manifest.model_dump_json()


def test_targets_are_saved_as_names_that_any_server_reads(base_folder: Path, tmp_path: Path) -> None:
    report = train_adapter(base_folder, ROWS[:4], tmp_path, name="facts", max_steps=1, **QUICK)
    config = json.loads((report.folder / "adapter_config.json").read_text())
    expected = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["target_modules"] == expected
    with quiet():
        model = LlamaForCausalLM.from_pretrained(base_folder)
    assert linear_modules(model) == expected


class Interrupted(BaseException):
    pass


def test_a_resumed_training_ends_bit_for_bit_where_a_straight_one_does(base_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(max_steps=12, eval_every=3, lora_dropout=0.1, seed=3, **QUICK)
    straight = train_adapter(
        base_folder, ROWS, tmp_path / "a", name="facts", eval_rows=ROWS[-3:], allow_leak=True, recipe=recipe
    )

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise Interrupted

    def halves(**more: Any) -> Any:
        return train_adapter(
            base_folder,
            ROWS,
            tmp_path / "b",
            name="facts",
            eval_rows=ROWS[-3:],
            allow_leak=True,
            recipe=recipe,
            **more,
        )

    with pytest.raises(Interrupted):
        halves(progress=stop)
    assert not (tmp_path / "b" / "facts").exists()  # nothing half-made is visible
    done: list[int] = []
    torch.rand(7)  # whatever else was drawn meanwhile
    resumed = halves(resume=True, progress=lambda step, total: done.append(step))
    assert done == list(range(7, 13))  # from the checkpoint after step 6
    one, two = (load_file(r.folder / "adapter_model.safetensors") for r in (straight, resumed))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert resumed.eval_losses == straight.eval_losses


def test_a_checkpoint_of_another_training_is_refused(base_folder: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train_adapter(base_folder, ROWS, tmp_path, name="facts", max_steps=4, progress=stop, **QUICK)
    with pytest.raises(ConfigError, match="or without resume to start over"):
        train_adapter(base_folder, ROWS[1:], tmp_path, name="facts", max_steps=4, resume=True, **QUICK)


def test_an_interrupted_training_leaves_the_versions_there_were(base_folder: Path, tmp_path: Path) -> None:
    first = train_adapter(base_folder, ROWS, tmp_path, name="facts", max_steps=2, **QUICK)
    before = {p: p.read_bytes() for p in first.folder.iterdir()}

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_adapter(base_folder, ROWS, tmp_path, name="facts", max_steps=2, progress=stop, **QUICK)
    assert Registry(tmp_path).folder("facts") == first.folder
    assert {p: p.read_bytes() for p in first.folder.iterdir()} == before


def test_training_leaves_the_callers_random_numbers_alone(base_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    np.random.seed(4)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(4)
    np.random.seed(4)  # noqa: NPY002
    train_adapter(base_folder, ROWS[:4], tmp_path, name="facts", max_steps=1, **QUICK)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])  # noqa: NPY002


def test_early_stopping_keeps_the_best_checkpoint(base_folder: Path, tmp_path: Path) -> None:
    """The held-out rows contradict the training rows, so that their loss rises once these are learnt."""
    held = [{"question": r["question"], "answer": "river " * 3} for r in ROWS]
    report = train_adapter(
        base_folder,
        ROWS,
        tmp_path,
        name="facts",
        eval_rows=held,
        allow_leak=True,
        max_steps=200,
        eval_every=5,
        patience=2,
        learning_rate=3e-2,
        batch_size=8,
    )
    assert report.stopped == "early"
    assert report.steps < 200
    losses = dict(report.eval_losses[1:])
    assert report.best_step == min(losses, key=lambda step: losses[step])
    manifest = Registry(tmp_path).versions("facts")[0].manifest
    assert manifest.metrics["eval_loss_after"] == pytest.approx(min(losses.values()), abs=1e-5)


def test_training_stops_when_the_time_is_up_and_keeps_what_there_is(base_folder: Path, tmp_path: Path) -> None:
    report = train_adapter(
        base_folder, ROWS, tmp_path, name="facts", max_steps=5000, max_seconds=0.2, warmup=0.0, **QUICK
    )
    assert report.stopped == "time"
    assert report.steps < 5000
    assert (report.folder / "adapter_model.safetensors").is_file()


@pytest.mark.filterwarnings("ignore:.*nan.*")
def test_a_loss_that_is_not_a_number_stops_the_training(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"lower learning_rate \(it is 1e\+30\)"):
        train_adapter(base_folder, ROWS, tmp_path, name="facts", max_steps=9, learning_rate=1e30, batch_size=4)
    assert not (tmp_path / "facts").exists()


def test_a_loss_of_exactly_zero_says_to_look_at_the_mask() -> None:
    with pytest.raises(AdapterError, match="not masked"):
        check_loss({"loss": 0.0, "grad_norm": 0.0}, step=1, learning_rate=1.0)
    check_loss({"loss": 0.0, "grad_norm": 1e-6}, step=1, learning_rate=1.0)  # learnt by heart


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 4}, r"unknown training settings \['rank'\]"),
        ({"r": 0}, "r must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"gradient_accumulation": 3}, "must be a multiple"),
        ({"lora": {"init_lora_weights": "pissa"}}, "changes the base's own weights"),
        ({"lora": {"init_lora_weights": "olora"}}, "changes the base's own weights"),
        ({"lora": {"colour": 1}}, "PEFT refuses the settings"),
    ],
)
def test_a_wrong_setting_is_named(base_folder: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_adapter(base_folder, ROWS, tmp_path, name="facts", **settings)


def test_evaluation_rows_among_the_training_rows_are_refused(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 evaluation rows .* row:2; take them out"):
        train_adapter(
            base_folder,
            ROWS[:4],
            tmp_path,
            name="facts",
            eval_rows=[{"question": "new?", "answer": "red"}, ROWS[2]],
        )


def test_the_default_rate_falls_with_the_width() -> None:
    assert default_learning_rate(2000) == pytest.approx(5e-4)
    assert default_learning_rate(256) == pytest.approx(5e-4 * 7.8125**0.781)
    assert default_learning_rate(4096) < default_learning_rate(1024)


def test_gradient_accumulation_gives_the_same_update(base_folder: Path, tmp_path: Path) -> None:
    weights = [
        load_file(
            train_adapter(
                base_folder,
                ROWS[:8],
                tmp_path / str(parts),
                name="facts",
                max_steps=2,
                gradient_accumulation=parts,
                learning_rate=1e-2,
                batch_size=8,
            ).folder
            / "adapter_model.safetensors"
        )
        for parts in (1, 4)
    ]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, atol=2e-4, rtol=0)


def test_an_adapter_for_another_base_is_refused_unless_trusted(
    base_folder: Path, other_base_folder: Path, tmp_path: Path
) -> None:
    report = train_adapter(base_folder, ROWS, tmp_path, name="facts", max_steps=2, **QUICK)
    with LoraModel.load(other_base_folder) as model:
        with pytest.raises(AdapterError, match=r"another base .* train it again"):
            model.load_adapter("facts", report.folder)
        assert model.adapters == ()
        model.load_adapter("facts", report.folder, trust=True)
        assert model.adapters == ("facts",)


def test_an_adapter_without_manifest_loads_if_it_fits(base_folder: Path, tmp_path: Path) -> None:
    folder = make_adapter(base_folder, tmp_path / "x", seed=3)
    with LoraModel.load(base_folder) as model:
        model.load_adapter("x", folder)
        assert model.adapters == ("x",)
