"""Tasks beyond short answers, measured: base, examples in the prompt, adapter, each with and without retrieval.

Training and evaluation draw their sites from names that share nothing. In evaluation the passages come from a
knowledge base of all evaluation sites; in training they stand among passages of other sites, in any order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ragft_plugin.demo import extraction, long_form
from ragft_plugin.demo.pocket import BASE
from ragft_plugin.demo.questions import exam_names
from ragft_plugin.demo.world import RELATIONS, Site, draw_site, passage
from ragft_plugin.evaluation.extraction import score_extraction
from ragft_plugin.evaluation.intervals import Interval, bootstrap_mean
from ragft_plugin.lora import LoraModel, Recipe, TrainingRow, train_adapter
from ragft_plugin.lora.scoring import answer_room, few_shot_prompts
from ragft_plugin.prompts import closed_book, open_book
from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.types import Passage, Prompt

RECIPE = Recipe(r=32, learning_rate=3e-3, batch_size=16, max_steps=80, bf16=True)
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Task:
    """A task: how it is asked, what is wanted, and how answers are scored.

    Attributes:
        name: of the task and its adapter.
        request: asks about a site.
        wanted: the wanted answer about a site all of whose relations are known.
        score: answers, sites and their passages -> figure -> one value per answer.
    """

    name: str
    request: Callable[[random.Random, Site], str]
    wanted: Callable[[Site], str]
    score: Callable[[Sequence[str], Sequence[Site], Sequence[Sequence[str]]], dict[str, list[float]]]


def _told(answers: Sequence[str], sites: Sequence[Site], passages: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    scores = [long_form.score_telling(*row) for row in zip(answers, sites, passages, strict=True)]
    names = ("faithfulness", "coverage", "exact", "balanced")
    return {name: [float(getattr(s, name)) for s in scores] for name in names}


def _extracted(answers: Sequence[str], sites: Sequence[Site], _: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    each = [score_extraction([a], [s.facts], extraction.SCHEMA) for a, s in zip(answers, sites, strict=True)]
    found = {name: [float(getattr(s.micro, name)) for s in each] for name in ("precision", "recall", "f1")}
    return {**found, "whole record": [s.exact for s in each]}


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "long-form": Task("long-form", long_form.request, long_form.wanted, _told),
        "extraction": Task("extraction", extraction.request, extraction.wanted, _extracted),
    }
)


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What was measured.

    Attributes:
        task: its name.
        lines: way of answering -> figure -> mean with its 95 % interval over the evaluation sites.
        answers: way of answering -> answers.
        seconds: of training.
    """

    task: str
    lines: Mapping[str, Mapping[str, Interval]]
    answers: Mapping[str, Sequence[str]]
    seconds: float

    def __str__(self) -> str:
        names = list(next(iter(self.lines.values())))
        table = [f"{self.task:<22}" + "".join(f"{name:>24}" for name in names)]
        table += [f"{way:<22}" + "".join(f"{v!s:>24}" for v in line.values()) for way, line in self.lines.items()]
        return "\n".join([*table, f"trained for {self.seconds:.0f} s"])


def task_rows(task: Task, n: int = 600, *, seed: int = 0) -> list[TrainingRow]:
    """Training rows: requests with the two passages of a site, in any order, among up to two of other sites."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        site = draw_site(rng, held_out=False)
        passages = _papers(rng, site)
        for _ in range(rng.choice((0, 1, 2))):
            passages.append(rng.choice(_papers(rng, draw_site(rng, held_out=False))))
        rng.shuffle(passages)
        rows.append(TrainingRow(open_book(task.request(rng, site), passages), task.wanted(site)))
    return rows


def measure_task(
    task: Task,
    folder: Path,
    *,
    base: Path = BASE,
    recipe: Recipe = RECIPE,
    rows: int = 600,
    sites: int = 60,
    k: int = 3,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TaskResult:
    """Train the task's adapter and measure every way of answering on sites that no training saw.

    Args:
        task: one of ``TASKS``.
        folder: new or empty; gets the knowledge base and the adapter.
        base: to train over.
        recipe: the settings.
        rows: training rows.
        sites: evaluation sites.
        k: passages per request.
        seed: of everything.
        progress: of the training.
    """
    training = task_rows(task, rows, seed=seed)
    report = train_adapter(base, training, folder / "adapters", name=task.name, recipe=recipe, progress=progress)
    rng, taken = random.Random(seed + 1), set(exam_names())
    drawn: list[Site] = []
    while len(drawn) < sites:
        site = draw_site(rng, held_out=True)
        if site.name not in taken:
            taken.add(site.name)
            drawn.append(site)
    papers = {site.name: _papers(rng, site) for site in drawn}
    asked = [task.request(rng, site) for site in drawn]
    with KnowledgeBase.create(folder / "knowledge_base", "hashing") as kb:
        kb.add([paper for own in papers.values() for paper in own])
        retrieved = kb.retrieve(asked, k)
    closed = [closed_book(question) for question in asked]
    opened = [open_book(q, p) for q, p in zip(asked, retrieved, strict=True)]
    answers: dict[str, list[str]] = {}
    with LoraModel.load(base) as model:
        model.load_adapter(task.name, report.folder)
        room = answer_room(model, training[:50])
        shots = few_shot_prompts(opened, training[:EXAMPLES], model.renderer, room=model.context - room)
        ways: list[tuple[str, str | None, list[Prompt]]] = [
            ("base", None, closed),
            ("base+retrieval", None, opened),
            ("few-shot+retrieval", None, shots),
            ("adapter", task.name, closed),
            ("adapter+retrieval", task.name, opened),
        ]
        for way, adapter, prompts in ways:
            answers[way] = [g.text for g in model.generator(adapter, max_new_tokens=room).generate(prompts)]
    texts = [[paper.text for paper in papers[site.name]] for site in drawn]
    lines: dict[str, Any] = {}
    for way, given in answers.items():
        lines[way] = {name: bootstrap_mean(values) for name, values in task.score(given, drawn, texts).items()}
    return TaskResult(task.name, lines, answers, report.seconds)


def _papers(rng: random.Random, site: Site) -> list[Passage]:
    order = rng.sample(list(RELATIONS), len(RELATIONS))
    return [
        Passage(f"{site.name.lower()}-{part}", passage(rng, site, told), metadata={"source": f"{site.name.lower()}.md"})
        for part, told in enumerate((order[:4], order[4:]), 1)
    ]
