"""Retrieval-aware tuning against plain supervised tuning, where the documents are full of look-alikes.

A world is drawn in which four sites each share the beginning of their name, so that retrieval brings passages of the
wrong site. The same questions then train the base three times with equally many steps: without passages, with the gold
passage alone, and retrieval-aware. All are asked about documents that no training saw, with the passages that the
knowledge base really returns, and about sites that it knows nothing of.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ragft_plugin.demo.pocket import BASE
from ragft_plugin.demo.questions import exam_names
from ragft_plugin.demo.world import (
    RELATIONS,
    SITE_HEADS,
    SITE_TAILS,
    UNKNOWN,
    Site,
    draw_site,
    is_held_out,
    passage,
    question,
)
from ragft_plugin.evaluation.intervals import Interval, bootstrap_mean, paired_bootstrap
from ragft_plugin.lora import LoraModel, Recipe, TrainingRow, train_adapter
from ragft_plugin.lora.retrieval_aware import GoldQuestion, RetrievalAwareRows, RowCounts, retrieval_aware_rows
from ragft_plugin.prompts import closed_book, open_book
from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.types import FloatArray, Passage, Prompt

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
RECIPE = Recipe(r=16, learning_rate=2e-3, batch_size=16, max_steps=80, bf16=True)
PER_HEAD = 4  # sites whose names begin alike
METHODS = ("closed-book", "gold passage", "retrieval-aware")


@dataclass(frozen=True, slots=True)
class World:
    """Documents full of look-alikes.

    Attributes:
        passages: two per site.
        questions: one per site and relation, with its gold passage.
        strangers: questions about sites that no document mentions, whose names look like those of the others.
    """

    passages: list[Passage]
    questions: list[GoldQuestion]
    strangers: list[str]


@dataclass(frozen=True, slots=True)
class ReadingLine:
    """One way of tuning, on the held-out questions.

    Attributes:
        name: "base" or one of ``METHODS``.
        documented: 1 or 0 per question about a held-out document, shape (n,).
        strangers: 1 or 0 per question about a stranger; right is to say that nothing is known. Shape (m,).
        seconds: of training.
    """

    name: str
    documented: FloatArray
    strangers: FloatArray
    seconds: float

    @property
    def every(self) -> FloatArray:
        """Both kinds together, shape (n + m,)."""
        return np.concatenate([self.documented, self.strangers])


@dataclass(frozen=True, slots=True)
class ReadingResult:
    """What was measured.

    Attributes:
        lines: base and methods.
        retrieved: share of the documented questions whose gold passage was retrieved; no line can do better.
        counts: of the retrieval-aware rows.
    """

    lines: list[ReadingLine]
    retrieved: float
    counts: RowCounts

    def line(self, name: str) -> ReadingLine:
        """The line of one method."""
        return next(line for line in self.lines if line.name == name)

    def gain(self, method: str = "retrieval-aware", over: str = "gold passage") -> Interval:
        """How much more one method answers right than another, question by question, with its 95 % interval."""
        return paired_bootstrap(self.line(method).every, self.line(over).every)

    def __str__(self) -> str:
        lines = [f"{'tuned on':<18}{'documented':>24}{'strangers':>24}{'seconds':>9}"]
        for line in self.lines:
            figures = "".join(f"{bootstrap_mean(v)!s:>24}" for v in (line.documented, line.strangers))
            lines.append(f"{line.name:<18}{figures}{line.seconds:>9.1f}")
        lines.append(f"gold passage retrieved: {self.retrieved:.3f}")
        lines += [f"retrieval-aware minus {name}: {self.gain(over=name)}" for name in ("gold passage", "base")]
        return "\n".join(lines)


def draw_world(sites: int = 120, strangers: int = 80, seed: int = 0) -> World:
    """Draw documents of sites that never occurred in pretraining nor in the demo's exam.

    Args:
        sites: documented ones.
        strangers: questions about undocumented ones.
        seed: of everything.
    """
    rng, taken = random.Random(seed), exam_names()
    heads = rng.sample(SITE_HEADS, len(SITE_HEADS))
    families = []
    for head in heads:
        names = [(head + tail).capitalize() for tail in SITE_TAILS]
        names = [name for name in names if is_held_out(name) and name not in taken]
        if len(names) > PER_HEAD:
            families.append(rng.sample(names, PER_HEAD + 1))
    documented = [name for family in families for name in family[:PER_HEAD]][:sites]
    unknown = [family[PER_HEAD] for family in families[: max(1, len(documented) // PER_HEAD)]]
    passages: list[Passage] = []
    questions: list[GoldQuestion] = []
    for name in documented:
        site: Site = draw_site(rng, held_out=True, name=name)
        order = rng.sample(list(RELATIONS), len(RELATIONS))
        for part, told in enumerate((order[:4], order[4:]), 1):
            source = {"source": f"{name.lower()}.md"}
            paper = Passage(f"{name.lower()}-{part}", passage(rng, site, told), metadata=source)
            passages.append(paper)
            questions += [GoldQuestion(question(rng, site, r), (site.facts[r],), (paper,)) for r in told]
    asked = [question(rng, rng.choice(unknown), rng.choice(list(RELATIONS))) for _ in range(strangers)]
    return World(passages, questions, asked)


def compare_reading(
    folder: Path,
    *,
    base: Path = BASE,
    methods: Sequence[str] = METHODS,
    recipe: Recipe = RECIPE,
    sites: int = 120,
    strangers: int = 80,
    k: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> ReadingResult:
    """Train and compare.

    Args:
        folder: new or empty; gets the knowledge base and the adapters.
        base: to train over.
        methods: which of ``METHODS`` to compare with the base.
        recipe: the settings of all of them.
        sites: documented ones, see ``draw_world``.
        strangers: questions about others.
        k: passages per prompt, in training and in answering.
        seed: of world and rows.
        progress: makes a progress callback for a step with a label.
    """
    world = draw_world(sites, strangers, seed)
    with KnowledgeBase.create(folder / "knowledge_base", "hashing") as kb:
        kb.add(world.passages)
        rows = retrieval_aware_rows(world.questions, kb, distractors=k - 1, gold_share=0.8, eval_share=0.4, seed=seed)
        held = {row.prompt.question for row in rows.evaluation}
        asked = [q for q in world.questions if q.question in held]
        found = kb.retrieve([q.question for q in asked], k)
        strange = kb.retrieve(world.strangers, k)
    prompts = [open_book(q.question, p) for q, p in zip(asked, found, strict=True)]
    prompts += [open_book(q, p) for q, p in zip(world.strangers, strange, strict=True)]
    wanted = [q.answers[0] for q in asked] + [UNKNOWN] * len(world.strangers)
    seconds = {"base": 0.0}
    for name, training in _rows_of(rows, world, methods).items():
        if progress is None:
            report = train_adapter(base, training, folder / "adapters", name=_adapter(name), recipe=recipe)
        else:
            with progress(f"tuning: {name}") as advance:
                report = train_adapter(
                    base, training, folder / "adapters", name=_adapter(name), recipe=recipe, progress=advance
                )
        seconds[name] = report.seconds
    lines = []
    with LoraModel.load(base) as model:
        for name, spent in seconds.items():
            adapter = None if name == "base" else _adapter(name)
            if adapter is not None:
                model.load_adapter(adapter, folder / "adapters" / adapter)
            right = _right(model, adapter, prompts, wanted)
            lines.append(ReadingLine(name, right[: len(asked)], right[len(asked) :], spent))
    hits = [q.passages[0].id in {p.id for p in passages} for q, passages in zip(asked, found, strict=True)]
    return ReadingResult(lines, float(np.mean(hits)), rows.counts)


def _rows_of(rows: RetrievalAwareRows, world: World, methods: Sequence[str]) -> dict[str, list[TrainingRow]]:
    trained = {row.prompt.question for row in rows.train}
    gold = [q for q in world.questions if q.question in trained]
    made = {
        "closed-book": [TrainingRow(closed_book(q.question), q.answers[0]) for q in gold],
        "gold passage": [TrainingRow(open_book(q.question, q.passages), q.answers[0]) for q in gold],
        "retrieval-aware": rows.train,
    }
    return {name: made[name] for name in methods}


def _right(model: LoraModel, adapter: str | None, prompts: Sequence[Prompt], wanted: Sequence[str]) -> FloatArray:
    given = model.generator(adapter, max_new_tokens=24).generate(list(prompts))
    return np.array([float(g.text.strip() == w) for g, w in zip(given, wanted, strict=True)])


def _adapter(name: str) -> str:
    return name.replace(" ", "-")
