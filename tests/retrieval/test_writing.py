"""Writing: what a writer sees decides what it keeps, so it never sees an old state."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import kb_workers as workers
import pytest

from ragft_plugin.errors import StoreError
from ragft_plugin.retrieval import HashingEncoder, KnowledgeBase, segments
from ragft_plugin.retrieval.lexical import LexicalIndex
from ragft_plugin.types import Passage


def passages(count: int) -> list[Passage]:
    return [Passage(f"p{i}", f"common {workers.WORDS[i % 8]} {i}", metadata={"n": i % 5}) for i in range(count)]


def model(count: int) -> workers.Model:
    return {p.id: (p.text, p.metadata["n"]) for p in passages(count)}


@pytest.fixture
def no_room_for_bm25(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    def full(self: LexicalIndex, writer: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LexicalIndex, "_commit", full)
    return monkeypatch


def test_a_change_after_one_whose_bm25_failed_loses_nothing(
    tmp_path: Path, no_room_for_bm25: pytest.MonkeyPatch
) -> None:
    no_room_for_bm25.undo()
    path = tmp_path / "kb"
    with KnowledgeBase.create(path, HashingEncoder(32)) as kb:
        kb.add(passages(100))
    with KnowledgeBase.open(path) as late:  # opened before the other has written
        no_room_for_bm25.setattr(LexicalIndex, "_commit", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with KnowledgeBase.open(path) as early:
            early.add(passages(160))
        late.add([Passage("p150", passages(160)[150].text, metadata={"n": 9})])  # its vector is there already
        late.delete(["p0"])
        no_room_for_bm25.undo()
        expected = {**model(160), "p150": (passages(160)[150].text, 9)}
        del expected["p0"]
        workers.check_against(late, expected)
        [found] = late.retrieve([passages(160)[150].text], 1, mode="dense")
        assert found[0].score == pytest.approx(1.0)
    with KnowledgeBase.open(path) as again:
        workers.check_against(again, expected)


def test_a_commit_that_fails_keeps_what_another_process_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kb"
    with KnowledgeBase.create(path, HashingEncoder(32)) as kb:
        kb.add(passages(50))
    with KnowledgeBase.open(path) as late:
        with KnowledgeBase.open(path) as early:
            early.add(passages(90))
        monkeypatch.setattr(late._catalogue, "commit", lambda *_, **__: (_ for _ in ()).throw(StoreError("disk full")))
        with pytest.raises(StoreError, match="disk full"):
            late.add(passages(95))
    with KnowledgeBase.open(path) as again:
        workers.check_against(again, model(90))
        assert len(list((path / "segments").iterdir())) == 2  # nothing is left over


def test_an_interrupted_write_leaves_no_file_and_the_next_change_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with KnowledgeBase.create(tmp_path / "kb", HashingEncoder(32)) as kb:
        kb.add(passages(20))
        for place in ("_add", "_commit"):
            with monkeypatch.context() as patch:
                patch.setattr(LexicalIndex, place, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    kb.add(passages(30))  # committed, before BM25 follows
            workers.check_against(kb, model(30))
            kb.delete([f"p{i}" for i in range(20, 30)])
        with monkeypatch.context() as patch:
            patch.setattr(segments.os, "fsync", interrupted)
            with pytest.raises(KeyboardInterrupt):
                kb.add(passages(40))
        workers.check_against(kb, model(20))
        names = {path.name.split(".")[0] for path in (tmp_path / "kb" / "segments").iterdir()}
        assert len(names) == kb.stats()["segments"]  # nothing is left over


def test_a_damaged_passage_is_mended_by_adding_it_again(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb", HashingEncoder(32)) as kb:
        kb.add(passages(20))
    with sqlite3.connect(tmp_path / "kb" / "knowledge.db") as database:
        database.execute("UPDATE passages SET text='common wheel 99' WHERE id='p10'")
    database.close()
    with KnowledgeBase.open(tmp_path / "kb") as kb:
        assert any("p10" in problem for problem in kb.verify())
        changes = kb.add(passages(20))
        assert (changes.updated, changes.unchanged) == (1, 19)
        kb.compact()  # until then the damaged row is kept for readers of the old state
        workers.check_against(kb, model(20))


def test_vectors_that_are_not_those_of_the_passages_are_told(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb", HashingEncoder(32)) as kb:
        kb.add(passages(20))
        kb.delete(["p3"])
        assert kb.verify() == []
    with sqlite3.connect(tmp_path / "kb" / "knowledge.db") as database:
        database.execute("DELETE FROM segments")
    database.close()
    with KnowledgeBase.open(tmp_path / "kb") as kb:
        assert any("holds vectors of 0 rows, knowledge.db has 20" in problem for problem in kb.verify())
