"""The demo's frozen material: documents, what the adapter is taught, and questions of seven kinds.

``data/`` was drawn once by ``python -m ragft_plugin.demo.questions`` and is committed, so that a change of the code
cannot change the exam. No entity stands in both splits. All question kinds share their wordings, and so do the two
kinds of tickets: only evidence can tell them apart.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from ragft_plugin.demo.world import (
    RELATIONS,
    UNKNOWN,
    Site,
    draw_site,
    is_held_out,
    is_site_name,
    passage,
    question,
    site_name,
    ticket,
)
from ragft_plugin.types import Passage

Kind = Literal["adapter only", "documents only", "changed", "both", "unknown", "plain ticket", "lookup ticket"]
KINDS: tuple[Kind, ...] = (
    "adapter only", "documents only", "changed", "both", "unknown", "plain ticket", "lookup ticket",
)  # fmt: skip
Split = Literal["calibration", "test"]
PER_KIND = 60
TAUGHT_ON = "2026-01-31"  # the facts adapter knows the world as it was on this day


@dataclass(frozen=True, slots=True)
class Question:
    """One question of the exam. ``kind`` is for tables only and never a feature."""

    id: str
    query: str
    answer: str
    kind: Kind
    split: Split


def documents() -> list[Passage]:
    """The passages of the demo's knowledge base."""
    return [Passage(row["id"], row["text"], metadata=row["metadata"]) for row in _rows("documents.jsonl")]


def questions(split: Split) -> list[Question]:
    """The questions of one split, kinds in turn."""
    return [Question(**row) for row in _rows("questions.jsonl") if row["split"] == split]


def taught_facts() -> list[Site]:
    """The sites, with their values at the time, that the facts adapter is taught."""
    return [Site(row["name"], row["facts"]) for row in _rows("taught.jsonl")]


def exam_names() -> frozenset[str]:
    """Every site name that occurs in the exam; training must not meet one it was not taught."""
    texts = [row["query"] for row in _rows("questions.jsonl")] + [paper.text for paper in documents()]
    words = {word for text in texts for word in re.findall(r"[A-Z][a-z]+", text)}
    return frozenset(word for word in words if is_site_name(word) and is_held_out(word))


def _rows(name: str) -> Iterator[dict[str, Any]]:
    text = resources.files("ragft_plugin.demo").joinpath("data", name).read_text(encoding="utf-8")
    return (json.loads(line) for line in text.splitlines())


def draw(folder: Path, seed: int = 7) -> None:
    """Draw the material anew and write it to ``folder``."""
    rng = random.Random(seed)
    used: set[str] = set()

    def sites(count: int) -> list[Site]:
        drawn: list[Site] = []
        while len(drawn) < count:
            name = site_name(rng, held_out=True)
            if name not in used:
                used.add(name)
                drawn.append(draw_site(rng, held_out=True, name=name))
        return drawn

    asked: list[dict[str, Any]] = []
    papers: list[dict[str, Any]] = []
    taught: list[dict[str, Any]] = []
    for split in ("calibration", "test"):
        groups = {
            "adapter only": sites(12), "documents only": sites(14), "changed": sites(10), "both": sites(10),
            "unknown": sites(20), "plain ticket": sites(30), "lookup ticket": sites(20),
        }  # fmt: skip
        for kind in ("adapter only", "changed", "both"):
            taught += [{"name": site.name, "facts": site.facts} for site in groups[kind]]
        groups["changed"] = [_changed(rng, site) for site in groups["changed"]]
        for kind in ("documents only", "changed", "both", "lookup ticket"):
            for site in groups[kind]:
                papers += _papers(rng, site, "2026-06-15" if kind == "changed" else "2025-11-20")
        drawn = {kind: _ask(rng, kind, groups[kind]) for kind in groups}
        for i in range(PER_KIND):
            for kind in groups:
                query, answer = drawn[kind][i]
                asked.append(
                    {"id": f"{split}-{len(asked):04d}", "query": query, "answer": answer, "kind": kind, "split": split}
                )
    rng.shuffle(papers)
    rng.shuffle(taught)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("questions.jsonl", asked), ("documents.jsonl", papers), ("taught.jsonl", taught)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _changed(rng: random.Random, site: Site) -> Site:
    """The same site later: every value another."""
    later = draw_site(rng, held_out=True, name=site.name)
    while any(later.facts[relation] == site.facts[relation] for relation in RELATIONS):
        later = draw_site(rng, held_out=True, name=site.name)
    return later


def _papers(rng: random.Random, site: Site, updated: str) -> list[dict[str, Any]]:
    """Two passages that together state all eight relations of a site."""
    order = rng.sample(list(RELATIONS), len(RELATIONS))
    return [
        {
            "id": f"{site.name.lower()}-{part}",
            "text": passage(rng, site, half),
            "metadata": {"source": f"{site.name.lower()}.md", "title": site.name, "updated": updated},
        }
        for part, half in enumerate((order[:4], order[4:]), 1)
    ]


def _ask(rng: random.Random, kind: str, sites: list[Site]) -> list[tuple[str, str]]:
    """``PER_KIND`` different questions of one kind, half of them in wordings kept out of training."""
    drawn: dict[str, str] = {}
    while len(drawn) < PER_KIND:
        site = rng.choice(sites)
        if kind.endswith("ticket"):
            query, answer = ticket(rng, site, documented=kind == "lookup ticket")
        else:
            relation = rng.choice(list(RELATIONS))
            query = question(rng, site, relation, unseen=len(drawn) % 2 == 1)
            answer = UNKNOWN if kind == "unknown" else site.facts[relation]
        drawn.setdefault(query, answer)
    return list(drawn.items())


if __name__ == "__main__":
    draw(Path(__file__).with_name("data"))
