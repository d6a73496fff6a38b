from __future__ import annotations

import random
from pathlib import Path

import pytest

from ragft_plugin.demo import extraction, long_form
from ragft_plugin.demo.reading import compare_reading, draw_world
from ragft_plugin.demo.task_trial import TASKS, measure_task, task_rows
from ragft_plugin.demo.world import RELATIONS, Site, draw_site, is_held_out, passage, value
from ragft_plugin.evaluation.answers import contains
from ragft_plugin.evaluation.extraction import score_extraction
from ragft_plugin.lora import Recipe


def sites(n: int) -> list[tuple[Site, list[str]]]:
    rng = random.Random(3)
    drawn = [draw_site(rng, held_out=True) for _ in range(n)]
    return [(site, [passage(rng, site, list(RELATIONS))]) for site in drawn]


def test_the_wanted_text_covers_everything_and_is_faithful() -> None:
    for site, passages in sites(20):
        told = long_form.score_telling(long_form.wanted(site), site, passages)
        assert (told.coverage, told.exact) == (1.0, 1.0)
        assert told.faithfulness >= 0.75
        assert long_form.score_telling("", site, passages).balanced == 0.0


def test_a_text_about_other_values_is_neither_faithful_nor_covering() -> None:
    for (site, passages), (other, _) in zip(sites(20), sites(21)[1:], strict=True):
        false = long_form.wanted(Site(site.name, other.facts))
        told = long_form.score_telling(false, site, passages)
        assert told.exact <= 0.25  # two sites may share a colour or a product
        assert told.faithfulness <= 0.375
        assert told.coverage <= 0.25


def test_the_lexical_scorer_agrees_with_the_worlds_grammar() -> None:
    rng = random.Random(4)
    drawn = sites(40)
    answers = []
    for site, _ in drawn:
        facts = {r: v if rng.random() < 0.5 else value(rng, r) for r, v in site.facts.items()}
        answers.append(long_form.wanted(Site(site.name, facts)))
    agreed = long_form.agreement(answers, [s for s, _ in drawn], [p for _, p in drawn])
    assert agreed >= 0.85


def test_the_wanted_record_is_a_right_record() -> None:
    given = [site for site, _ in sites(5)]
    score = score_extraction([extraction.wanted(s) for s in given], [s.facts for s in given], extraction.SCHEMA)
    assert (score.micro.f1, score.exact, score.foreign) == (1.0, 1.0, 0)
    partial = Site("Brelkon", {"city": "Rome"})
    assert score_extraction([extraction.wanted(partial)], [partial.facts], extraction.SCHEMA).micro.predicted == 1


@pytest.mark.parametrize("name", sorted(TASKS))
def test_rows_of_a_task_hold_what_their_answer_says(name: str) -> None:
    for row in task_rows(TASKS[name], 20, seed=1):
        text = " ".join(p.text for p in row.prompt.passages or ())
        words = row.prompt.question.rstrip("?.").split()
        assert not is_held_out(words[-1])
        values = [line.partition(":")[2] for line in row.answer.splitlines()] if name == "extraction" else []
        assert all(contains(text, v) for v in values)


def test_the_world_of_look_alikes_is_new_to_the_model_and_to_the_exam() -> None:
    world = draw_world(sites=40, strangers=10)
    assert len(world.passages) == 80
    assert len(world.questions) == 320
    assert all(contains(q.passages[0].text, q.answers[0]) for q in world.questions)
    names = {p.metadata["source"].removesuffix(".md").capitalize() for p in world.passages}
    assert all(is_held_out(name) for name in names)
    assert not any(name in question for name in names for question in world.strangers)


@pytest.mark.slow
def test_retrieval_aware_tuning_reads_better_than_plain_tuning(tmp_path: Path) -> None:
    result = compare_reading(tmp_path, methods=("gold passage", "retrieval-aware"), seed=2)
    assert result.retrieved > 0.9
    assert result.gain().value > 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TASKS))
def test_an_adapter_with_retrieval_does_the_task_best(name: str, tmp_path: Path) -> None:
    recipe = Recipe(r=32, learning_rate=3e-3, batch_size=16, max_steps=40, bf16=True)
    result = measure_task(TASKS[name], tmp_path, recipe=recipe, sites=30)
    figure = "balanced" if name == "long-form" else "f1"
    best = max(result.lines, key=lambda way: result.lines[way][figure].value)
    assert best == "adapter+retrieval"
