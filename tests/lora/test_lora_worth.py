"""Whether an adapter is worth keeping: base, examples in the prompt, forgetting, the card, the learning curve."""

from __future__ import annotations

import json
import logging
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from tiny_models import WORDS, make_base

from ragft_plugin.errors import AdapterError, ConfigError, DataError, MissingExtraError
from ragft_plugin.lora import LoraModel, Registry, TrainingRow, learning_curve, train_adapter, train_base
from ragft_plugin.lora.ability import Ability, answered_already, warn_of_forgetting
from ragft_plugin.lora.card import loss_chart
from ragft_plugin.lora.curve import row_counts
from ragft_plugin.lora.data import as_rows
from ragft_plugin.lora.scoring import Comparison, few_shot_prompts, pick_examples, require_gain, score_rows
from ragft_plugin.prompts import closed_book
from ragft_plugin.types import Passage, Prompt

ROWS = [
    {"question": f"what is the {x} pump?", "answer": f"{y} {z}"}
    for x, y, z in zip(WORDS[::2], WORDS[1::2], WORDS[5::2], strict=False)
]
QUICK: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 8, "r": 8}


def exact(given: str, wanted: str) -> float:
    return float(given == wanted)


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("wide"), hidden=64)


@pytest.fixture(scope="module")
def wide(wide_base: Path) -> Iterator[LoraModel]:
    with LoraModel.load(wide_base, device="cpu") as model:
        yield model


def test_the_gain_is_over_the_better_of_base_and_examples() -> None:
    comparison = Comparison(base=(0.0, 1.0), adapter=(1.0, 1.0), few_shot=(1.0, 0.5), examples=2)
    assert comparison.baseline == "few-shot"
    assert comparison.gain.value == (0.0 + 0.5) / 2
    assert comparison.metrics()["score_few_shot"] == 0.75
    assert Comparison(base=(1.0, 0.0), adapter=(0.0, 0.0), few_shot=(0.5, 0.5)).baseline == "base"  # a tie
    assert "score_few_shot" not in Comparison(base=(1.0,), adapter=(0.0,)).metrics()


def test_what_does_not_beat_the_examples_is_refused_with_all_three_scores(caplog: pytest.LogCaptureFixture) -> None:
    tied = Comparison(base=(0.0, 0.0), adapter=(1.0, 0.0), few_shot=(1.0, 0.0), examples=4)
    with pytest.raises(AdapterError, match=r"base 0.000, few-shot 0.500, adapter 0.500; 2 held-out rows.* 4 examples"):
        require_gain(tied)
    with caplog.at_level(logging.WARNING):
        require_gain(Comparison(base=(0.0,) * 20, adapter=(1.0,) * 20))
        assert not caplog.text
        require_gain(Comparison(base=(0.0, 0.0), adapter=(1.0, 0.0)))
    assert "on 2 held-out rows, so it may be chance; hold out more rows" in caplog.text


def test_examples_stand_before_the_question_as_earlier_turns(wide: LoraModel) -> None:
    examples = as_rows([ROWS[0], {**ROWS[1], "passages": ["the river"]}])
    asked = Prompt("who?", (Passage("1", "red"),), (("system", "be brief"), ("user", "a"), ("assistant", "b")))
    (prompt,) = few_shot_prompts([asked], examples, wide.renderer, room=200)
    assert prompt.passages == asked.passages
    assert prompt.turns == (
        ("system", "be brief"),
        ("user", "what is the the pump?"),
        ("assistant", ROWS[0]["answer"]),
        ("user", f"the river\n\n{ROWS[1]['question']}"),
        ("assistant", ROWS[1]["answer"]),
        ("user", "a"),
        ("assistant", "b"),
    )
    whole = len(wide.renderer.render(prompt))
    (shorter,) = few_shot_prompts([asked], examples, wide.renderer, room=whole - 1)
    assert shorter.turns == prompt.turns[:3] + prompt.turns[5:]
    assert few_shot_prompts([asked], examples, wide.renderer, room=1) == [asked]


def test_examples_are_different_and_drawn_by_seed() -> None:
    rows = as_rows([*ROWS, *ROWS])
    drawn = pick_examples(rows, 5, seed=3)
    assert len({r.prompt.question for r in drawn}) == 5
    assert drawn == pick_examples(rows, 5, seed=3) != pick_examples(rows, 5, seed=4)
    assert len(pick_examples(rows, 999)) == len(ROWS)


def test_all_three_are_scored_by_the_same_scorer_on_the_same_rows(
    wide_base: Path, wide: LoraModel, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    report = train_adapter(
        wide_base, ROWS, tmp_path, name="facts", eval_rows=ROWS[:6], allow_leak=True, scorer=exact, few_shot=3,
        max_steps=40, ability_rows=ROWS[6:9], licence="apache-2.0", tensorboard=tmp_path / "board", **QUICK,
    )  # fmt: skip
    found = report.comparison
    assert found is not None
    held, examples = as_rows(ROWS[:6]), pick_examples(as_rows(ROWS), 3, seed=0)
    asked = few_shot_prompts([r.prompt for r in held], examples, wide.renderer, room=200)
    given = wide.generator(max_new_tokens=24).generate(asked)
    assert found.few_shot == tuple(exact(g.text, r.answer) for g, r in zip(given, held, strict=True))
    assert (len(found.base), len(found.adapter), found.examples) == (6, 6, 3)
    assert fmean(found.adapter) > max(fmean(found.base), fmean(found.few_shot))
    metrics = Registry(tmp_path).versions("facts")[0].manifest.metrics
    assert metrics["score_few_shot"] == fmean(found.few_shot)
    assert (metrics["few_shot_examples"], metrics["score_rows"], metrics["ability_rows"]) == (3, 6, 3)
    assert report.ability is not None
    assert metrics["ability_after"] == fmean(report.ability.after)
    card_holds_what_the_next_user_needs(report.folder, metrics)
    assert list((tmp_path / "board").glob("events.out.tfevents.*"))
    with (report.folder / "README.md").open("a") as card:
        card.write("Edited by hand.\n")
    with LoraModel.load(wide_base, device="cpu") as model:  # an edited card is no damaged adapter
        model.load_adapter("facts", report.folder)


def card_holds_what_the_next_user_needs(folder: Path, metrics: dict[str, float]) -> None:
    card, manifest = (folder / "README.md").read_text(), json.loads((folder / "manifest.json").read_text())
    head = card.split("---")[1]
    assert "license: apache-2.0" in head
    assert "base_model:" in head
    for part in (
        f"| training | {len(ROWS)} | {manifest['data']['sha256']} |",
        f"| held out | 6 | {manifest['data']['eval_sha256']} |",
        f"| **adapter** | {metrics['score_after']:.3f} | 6 |",
        f"| base with examples in the prompt | {metrics['score_few_shot']:.3f} | 6 |",
        'model.load_adapter("facts"',
        "## Limits",
    ):
        assert part in card
    assert ROWS[0]["question"] not in card
    assert str(folder.parent.parent) not in card  # no path of the machine it was made on
    chart = ET.fromstring((folder / "loss.svg").read_text())
    lines = [e for e in chart.iter() if e.tag.endswith("polyline")]
    assert [len(e.attrib["points"].split()) for e in lines] == [40, 11]  # 40 steps; before, and ten looks


def test_a_refused_adapter_waits_and_can_be_kept_without_training_again(wide_base: Path, tmp_path: Path) -> None:
    def train(**more: Any) -> Any:
        return train_adapter(
            wide_base, ROWS, tmp_path, name="facts", eval_rows=ROWS[:4], allow_leak=True, scorer=lambda *_: 0.5,
            max_steps=2, progress=lambda *_: steps.append(1), **QUICK, **more,
        )  # fmt: skip

    steps: list[int] = []
    with pytest.raises(AdapterError, match=r"does not beat what needs no training .*resume with keep_anyway"):
        train()
    assert not (tmp_path / "facts").exists()
    steps.clear()
    report = train(resume=True, keep_anyway=True)
    assert not steps
    assert (report.version, report.steps, len(report.losses)) == ("1", 2, 2)
    assert report.comparison.gain.value == 0


def test_a_new_base_is_compared_and_refused_too(wide_base: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 1, "batch_size": 8, "eval_rows": ROWS[:4], "allow_leak": True}
    with pytest.raises(AdapterError, match="does not beat what needs no training"):
        train_base(wide_base, ROWS, tmp_path / "mine", scorer=lambda *_: 0.5, **settings)
    report = train_base(
        wide_base, ROWS, tmp_path / "mine", scorer=lambda *_: 0.5, keep_anyway=True, resume=True,
        ability_rows=ROWS[5:7], **settings,
    )  # fmt: skip
    assert report.ability == Ability((0.5, 0.5), (0.5, 0.5), chosen=False)
    assert "base: its folder" not in (report.folder / "README.md").read_text()
    assert 'LoraModel.load("mine")' in (report.folder / "README.md").read_text()


def test_forgetting_is_warned_of_above_a_tenth(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert warn_of_forgetting(Ability((1.0,) * 10, (1.0,) * 9 + (0.0,), chosen=True), "facts") is None
        assert not caplog.text
        warning = warn_of_forgetting(Ability((1.0,) * 10, (1.0,) * 8 + (0.0,) * 2, chosen=True), "facts")
    assert warning == caplog.records[0].getMessage()
    assert "the base scores 1.000 and the adapter 0.800; mix some of them into the training rows" in warning


def test_without_a_probe_set_it_is_what_the_base_answers_right(
    wide_base: Path, wide: LoraModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Trained on other answers to the very questions which the base could answer, it must be seen to forget."""
    asked = [f"who is {x}?" for x in ("near", "blue", "red")]
    own = wide.generator(max_new_tokens=4).generate([closed_book(q) for q in asked])
    known = [{"question": q, "answer": g.text.strip()} for q, g in zip(asked, own, strict=True)]
    rows = as_rows([row for row in known if row["answer"]])

    def same(given: str, wanted: str) -> float:
        return float(given.strip().startswith(wanted))

    assert answered_already(rows, score_rows(wide, None, rows, same)) == rows
    wrong = [TrainingRow(r.prompt, "steel bridge") for r in rows]
    report = train_adapter(
        wide_base, wrong, tmp_path, name="facts", eval_rows=rows, allow_leak=True, scorer=same, keep_anyway=True,
        max_steps=25, **QUICK,
    )  # fmt: skip
    assert report.ability is not None
    assert report.ability.chosen
    assert report.ability.before == (1.0,) * len(rows)
    assert fmean(report.ability.after) < 0.5
    assert "facts forgets" in caplog.text


def test_a_scorer_outside_of_its_range_is_refused(wide: LoraModel) -> None:
    with pytest.raises(DataError, match=r"the scorer returned 2.0; expected \[0, 1\]"):
        score_rows(wide, None, as_rows(ROWS[:1]), lambda *_: 2.0)


def test_the_learning_curve_scores_growing_parts_beside_base_and_examples(wide_base: Path) -> None:
    seen: list[tuple[int, int]] = []
    curve = learning_curve(
        wide_base, ROWS[:12], ROWS[12:], lambda given, wanted: float(given.split()[:1] == wanted.split()[:1]),
        counts=["1/4", "1"], epochs=2, batch_size=4, r=4, learning_rate=1e-2, few_shot=2,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert [(p.what, p.rows, p.steps) for p in curve.points] == [
        ("base", 0, 0), ("few-shot", 2, 0), ("adapter", 3, 2), ("adapter", 12, 6),
    ]  # fmt: skip
    assert seen == [(i, 8) for i in range(1, 9)]
    assert curve.held_out == len(ROWS[12:])
    assert all(p.seconds > 0 and p.eval_loss is not None for p in curve.points[2:])
    assert all(p.reward.low <= p.reward.value <= p.reward.high for p in curve.points)
    table = str(curve).splitlines()
    assert len(table) == 6
    assert table[4].split()[:3] == ["adapter", "12", "6"]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [(["1/8", "1/4", "1/2", "1"], [10, 20, 40, 80]), ([80, 1], [1, 80]), (["0.5", 40], [40]), (["1/100"], [1])],
)
def test_counts_are_numbers_or_shares(counts: list[int | str], expected: list[int]) -> None:
    assert row_counts(counts, 80) == expected


@pytest.mark.parametrize("count", ["many", "1/0", 0, -3, "-1/2", 81, "200"])
def test_a_count_that_is_none_is_named(count: int | str) -> None:
    with pytest.raises(ConfigError, match=str(count)):
        row_counts([count], 80)


def test_a_chart_of_nothing_is_still_a_chart() -> None:
    assert not list(ET.fromstring(loss_chart([], [])).iter("{http://www.w3.org/2000/svg}polyline"))


def test_tensorboard_is_asked_for_by_name(wide_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"tensorboard is not installed.*ragft-plugin\[train\]"):
        train_adapter(wide_base, ROWS, tmp_path, name="facts", max_steps=1, tensorboard=tmp_path / "b", **QUICK)
