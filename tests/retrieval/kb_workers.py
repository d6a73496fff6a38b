"""Processes that the tests of faults start and kill, and the model they are compared with."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from ragft_plugin.retrieval import HashingEncoder, KnowledgeBase
from ragft_plugin.types import Passage

Model = dict[str, tuple[str, int]]  # id -> text, metadata["n"]
PATIENCE = 120.0  # seconds more on a machine that is busy with other things
WORDS = "lamp gear wheel hinge bolt lens pipe cable".split()


def step(number: int) -> tuple[str, list[Passage] | list[str]]:
    """Return the change number ``number`` of an endless, reproducible series."""
    draw = random.Random(number)
    kind = draw.choice(["add", "add", "add", "delete", "delete", "source", "compact"])
    if kind == "delete":
        return kind, [f"p{draw.randrange(60)}" for _ in range(draw.randrange(1, 12))]
    if kind == "compact":
        return kind, []
    source = f"s{draw.randrange(3)}"
    prefix = source if kind == "source" else "p"
    passages = [
        Passage(f"{prefix}{i}", f"common {draw.choice(WORDS)} {draw.randrange(50)}", metadata={"n": draw.randrange(5)})
        for i in draw.sample(range(60), draw.randrange(0 if kind == "source" else 1, 20))
    ]
    if kind == "source":
        passages = [Passage(p.id, p.text, metadata={**p.metadata, "source": source}) for p in passages]
        return source, passages
    return kind, passages


def apply_to_model(model: Model, number: int) -> Model:
    """Return what a plain dict says after a change."""
    kind, what = step(number)
    after = dict(model)
    if kind == "delete":
        for id in what:
            after.pop(str(id), None)
    elif kind != "compact":
        if kind != "add":
            after = {id: value for id, value in after.items() if not id.startswith(kind)}
        for passage in what:
            assert isinstance(passage, Passage)
            after[passage.id] = (passage.text, passage.metadata["n"])
    return after


def apply_to_kb(kb: KnowledgeBase, number: int) -> None:
    """Make the change."""
    kind, what = step(number)
    if kind == "delete":
        kb.delete([str(id) for id in what])
    elif kind == "compact":
        kb.compact()
    elif kind == "add":
        kb.add([p for p in what if isinstance(p, Passage)])
    else:
        kb.replace_source(kind, [p for p in what if isinstance(p, Passage)], digest=str(number))


def check_against(kb: KnowledgeBase, model: Model) -> None:
    """Say that a knowledge base holds exactly the model, in every way to look at it."""
    assert {p.id: (p.text, p.metadata["n"]) for p in kb.get(kb.ids())} == model
    assert len(kb) == len(model)
    assert kb.verify() == []
    for mode in ("bm25", "dense"):
        [found] = kb.retrieve(["common"], 1000, mode=mode)  # type: ignore[arg-type]
        assert sorted(p.id for p in found) == sorted(model), mode
    [found] = kb.retrieve(["common"], 1000, {"n": 3}, mode="bm25")
    assert sorted(p.id for p in found) == sorted(id for id, (_, n) in model.items() if n == 3)


def churn(path: str, journal: str, first: int) -> None:
    """Change a knowledge base without end, noting each change that has returned. To be killed."""
    with KnowledgeBase.open(path) as kb, Path(journal).open("a") as notes:
        while True:
            apply_to_kb(kb, first)
            notes.write(f"{first}\n")
            notes.flush()
            first += 1


def rewrite(path: str, stop: str) -> None:
    """Give all passages a new generation at once, again and again, until there is a file ``stop``."""
    with KnowledgeBase.open(path) as kb:
        generation = 1
        while not Path(stop).exists():
            kb.add(generation_of(generation))
            if generation % 10 == 0:
                kb.compact()
            generation += 1


def generation_of(number: int) -> list[Passage]:
    """Return 40 passages that all say the same number."""
    return [Passage(f"p{i}", f"common {WORDS[i % 8]}", metadata={"generation": number}) for i in range(40)]


def read_generations(path: str, seconds: float, answers: str) -> None:
    """Retrieve again and again; note every answer that mixes generations or lacks passages."""
    end = time.monotonic() + seconds
    reads, wrong, seen = 0, [], set()
    with KnowledgeBase.open(path, read_only=True) as kb:
        while (now := time.monotonic()) < end or ((len(seen) <= 3 or reads <= 20) and now < end + PATIENCE):
            mode = ("bm25", "dense", "hybrid")[reads % 3]
            [found] = kb.retrieve(["common lamp"], 100, mode=mode)  # type: ignore[arg-type]
            generations = {p.metadata["generation"] for p in found}
            versions = {p.metadata["kb"]["version"] for p in found}
            if len(found) != 40 or len(generations) != 1 or len(versions) != 1:
                wrong.append((mode, len(found), sorted(generations)))
            seen |= generations
            reads += 1
    Path(answers).write_text(f"{reads} {len(seen)} {wrong}")


def read_without_permission(path: str, answers: str) -> None:
    """As an ordinary user, read a directory that may not be written."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    lines = []
    with KnowledgeBase.open(path, read_only=True) as kb:
        lines.append(" ".join(p.id for p in kb.retrieve(["lamp"], 1)[0]))
    try:
        with KnowledgeBase.open(path) as kb:
            lines.append(" ".join(p.id for p in kb.retrieve(["lamp"], 1)[0]))
            kb.add([Passage("x", "y")])
    except Exception as error:
        lines.append(f"{type(error).__name__}: {error}")
    os.write(1, b"")
    Path(answers).write_text("\n".join(lines))


def hold(path: str, ready: str) -> None:
    """Write something and keep the knowledge base open. To be killed."""
    kb = KnowledgeBase.open(path, encoder=HashingEncoder())
    kb.add([Passage("held", "common held", metadata={"n": 0})])
    Path(ready).write_text("ready")
    time.sleep(60)


def close_and_truncate(path: str) -> None:
    """Leave BM25 much to merge, close the knowledge base, and shorten its files in place."""
    draw = random.Random(1)
    words = [f"w{i}" for i in range(3000)]
    with KnowledgeBase.create(path, HashingEncoder(32)) as kb:
        for round in range(8):
            kb.add([Passage(f"{round}-{i}", " ".join(draw.choices(words, k=60))) for i in range(600)])
    for file in Path(path).rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 3)
    time.sleep(2)  # for what may still be reading
