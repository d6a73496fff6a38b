"""Faults: killed processes, damaged files, full disks, several processes at once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import sqlite3
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kb_workers as workers
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ragft_plugin.errors import StoreError
from ragft_plugin.retrieval import HashingEncoder, KnowledgeBase, segments
from ragft_plugin.retrieval.lexical import LexicalIndex
from ragft_plugin.types import Passage

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses signals and permissions of POSIX")


def passages(count: int) -> list[Passage]:
    return [Passage(f"p{i}", f"common {workers.WORDS[i % 8]} {i}", metadata={"n": i % 5}) for i in range(count)]


def kill_again_and_again(path: Path, spawn: Callable[..., multiprocessing.Process], kills: int) -> int:
    KnowledgeBase.create(path, HashingEncoder(32)).close()
    journal = path.with_suffix(".journal")
    journal.touch()
    draw = random.Random(5)
    model: workers.Model = {}
    following = torn = 0
    for _ in range(kills):
        child = spawn(workers.churn, str(path), str(journal), following)
        before = journal.stat().st_size
        while child.is_alive() and journal.stat().st_size == before:
            time.sleep(0.002)  # until the first change has returned
        time.sleep(draw.random() * 0.4)
        child.kill()
        child.join()
        assert child.exitcode == -9
        done = len(journal.read_text().split())
        for number in range(following, done):
            model = workers.apply_to_model(model, number)
        following = done
        with KnowledgeBase.open(path) as kb:
            held = {p.id: (p.text, p.metadata["n"]) for p in kb.get(kb.ids())}
            if held != model:  # the change during which it died has happened after all
                torn += 1
                model = workers.apply_to_model(model, following)
                following += 1
                with journal.open("a") as notes:
                    notes.write("committed before the kill\n".replace(" ", "_"))
            workers.check_against(kb, model)
    return torn


def test_a_killed_writer_leaves_the_old_or_the_new_state(
    tmp_path: Path, spawn: Callable[..., multiprocessing.Process]
) -> None:
    kill_again_and_again(tmp_path / "kb", spawn, 8)


@pytest.mark.slow
def test_two_hundred_killed_writers_leave_the_old_or_the_new_state(
    tmp_path: Path, spawn: Callable[..., multiprocessing.Process]
) -> None:
    torn = kill_again_and_again(tmp_path / "kb", spawn, 200)
    assert torn > 0  # the kills have hit the interesting moments


class AgainstADict(RuleBasedStateMachine):
    """Any series of changes leaves what a plain dict would hold."""

    @initialize()
    def create(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "kb"
        self.kb = KnowledgeBase.create(self.path, HashingEncoder(32))
        self.model: workers.Model = {}

    @rule(number=st.integers(0, 10_000))
    def change(self, number: int) -> None:
        version = self.kb.version
        self.model, before = workers.apply_to_model(self.model, number), self.model
        workers.apply_to_kb(self.kb, number)
        assert self.kb.version >= version
        assert (self.kb.version > version) or self.model == before

    @rule()
    def reopen(self) -> None:
        fingerprint = self.kb.fingerprint
        self.kb.close()
        self.kb = KnowledgeBase.open(self.path)
        assert self.kb.fingerprint == fingerprint

    @rule()
    def lose_what_is_derived(self) -> None:
        self.kb.close()
        (self.path / "bm25.json").unlink(missing_ok=True)
        self.kb = KnowledgeBase.open(self.path)

    @invariant()
    def holds_the_model(self) -> None:
        if hasattr(self, "model"):
            workers.check_against(self.kb, self.model)

    def teardown(self) -> None:
        if hasattr(self, "kb"):
            self.kb.close()
            self.folder.cleanup()


AgainstADict.TestCase.settings = settings(max_examples=12, stateful_step_count=10, deadline=None, derandomize=True)
TestAgainstADict = AgainstADict.TestCase


def test_equal_contents_have_equal_fingerprints_whatever_their_history(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "a") as a, KnowledgeBase.create(tmp_path / "b") as b:
        a.add(passages(20))
        b.add(passages(30)[::-1])
        assert a.fingerprint != b.fingerprint
        b.delete([f"p{i}" for i in range(20, 30)])
        b.add([Passage("p3", "else")])
        b.add([passages(4)[3]])
        assert a.fingerprint == b.fingerprint


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        kb.add(passages(60))
        kb.delete(["p7"])
    return tmp_path / "kb"


def flip(path: Path, at: float) -> None:
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * at)] ^= 0x10
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("part", ["rows", "vectors"])
@pytest.mark.parametrize("how", ["flip", "truncate", "remove", "link"])
def test_a_damaged_segment_is_detected_and_named(closed: Path, part: str, how: str) -> None:
    [path] = (closed / "segments").glob(f"*.{part}.npy")
    if how == "flip":
        flip(path, 0.9)
    elif how == "truncate":
        path.write_bytes(path.read_bytes()[:-3])
    elif how == "remove":
        path.unlink()
    else:
        copy = path.rename(closed.parent / "elsewhere.npy")
        path.symlink_to(copy)
    with pytest.raises(StoreError, match=path.name.replace(".", r"\.")):
        KnowledgeBase.open(closed)


def test_a_text_changed_on_disk_is_never_returned(closed: Path) -> None:
    raw = (closed / "knowledge.db").read_bytes()
    assert raw.count(b"common wheel 10") == 1
    (closed / "knowledge.db").write_bytes(raw.replace(b"common wheel 10", b"common wheel 19"))
    with KnowledgeBase.open(closed) as kb:
        assert kb.retrieve(["hinge"], 1, mode="bm25")[0]
        with pytest.raises(StoreError, match=r"knowledge\.db: passage 'p10' was changed on disk"):
            kb.get(["p10"])
        with pytest.raises(StoreError, match="p10"):
            kb.retrieve(["common"], 100)
        assert any("p10" in problem for problem in kb.verify())


@pytest.mark.parametrize("how", ["truncate", "garbage", "empty"])
def test_a_damaged_database_is_named(closed: Path, how: str) -> None:
    path = closed / "knowledge.db"
    raw = path.read_bytes()
    path.write_bytes({"truncate": raw[: len(raw) // 3], "garbage": b"x" * len(raw), "empty": b""}[how])
    with pytest.raises(StoreError, match=r"knowledge\.db"), KnowledgeBase.open(closed) as kb:
        kb.get(kb.ids())


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("how", ["flip", "truncate", "remove", "stamp"])
def test_a_damaged_bm25_index_is_noticed_and_made_again(
    closed: Path, how: str, read_only: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with KnowledgeBase.open(closed) as kb:
        before = {p.id for p in kb.retrieve(["wheel 10"], 50, mode="bm25")[0]}
    [folder] = closed.glob("bm25-*")
    path = max(folder.glob("*.idx"), key=lambda p: p.stat().st_size)
    if how == "flip":
        flip(path, 0.3)
    elif how == "truncate":
        path.write_bytes(path.read_bytes()[:-3])
    elif how == "remove":
        path.unlink()
    else:
        (closed / "bm25.json").write_text('{"folder": "../../etc", "version": 2, "next_row": 60, "opstamp": 1}')
    with KnowledgeBase.open(closed, read_only=read_only) as kb:
        assert {p.id for p in kb.retrieve(["wheel 10"], 50, mode="bm25")[0]} == before
        if not read_only:
            assert kb.verify() == []
    if how in ("flip", "truncate"):
        assert path.name in caplog.text


def test_a_strangers_directory_names_no_file_outside_and_unpickles_nothing(closed: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(closed / "evil"),)

    [path] = (closed / "segments").glob("*.vectors.npy")
    array = np.empty(1, object)
    array[0] = Evil()
    np.save(path, array, allow_pickle=True)
    assert pickle.dumps(Evil())
    with pytest.raises(StoreError, match=r"vectors\.npy"):
        KnowledgeBase.open(closed)
    digest = __import__("hashlib").sha256(path.read_bytes()).hexdigest()
    with sqlite3.connect(closed / "knowledge.db") as database:
        database.execute("UPDATE segments SET vectors_sha256=?", (digest,))
    with pytest.raises(StoreError, match=r"vectors\.npy cannot be read"):
        KnowledgeBase.open(closed)
    assert not (closed / "evil").exists()
    with sqlite3.connect(closed / "knowledge.db") as database:
        database.execute("UPDATE segments SET name='../../other'")
    with pytest.raises(StoreError, match="which is no segment's name"):
        KnowledgeBase.open(closed)
    database.close()


def test_a_full_disk_keeps_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with KnowledgeBase.create(tmp_path / "kb", HashingEncoder(32)) as kb:
        kb.add(passages(10))
        with monkeypatch.context() as patch:
            patch.setattr(segments.os, "fsync", full)
            with pytest.raises(StoreError, match="No space left"):
                kb.add(passages(20))
        pages = kb._catalogue.connection.execute("PRAGMA page_count").fetchone()[0]
        kb._catalogue.connection.execute(f"PRAGMA max_page_count={pages + 1}")
        with pytest.raises(StoreError, match=r"knowledge\.db: database or disk is full"):
            kb.add([Passage("big", "word " * 20_000)])
        kb._catalogue.connection.execute("PRAGMA max_page_count=1000000")
        workers.check_against(kb, {p.id: (p.text, p.metadata["n"]) for p in passages(10)})
        assert len(list((tmp_path / "kb" / "segments").iterdir())) == 2  # nothing is left over
        kb.add(passages(20))
        workers.check_against(kb, {p.id: (p.text, p.metadata["n"]) for p in passages(20)})


def test_bm25_that_cannot_be_written_loses_nothing_and_catches_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: LexicalIndex, writer: object) -> int:
        raise OSError(28, "No space left on device")

    with KnowledgeBase.create(tmp_path / "kb", HashingEncoder(32)) as kb:
        kb.add(passages(10))
        with monkeypatch.context() as patch:
            patch.setattr(LexicalIndex, "_commit", full)
            kb.add(passages(20))
            assert "No space left" in caplog.text
            workers.check_against(kb, {p.id: (p.text, p.metadata["n"]) for p in passages(20)})
        kb.add(passages(30))
        workers.check_against(kb, {p.id: (p.text, p.metadata["n"]) for p in passages(30)})


def test_a_directory_that_may_not_be_written_can_be_read(spawn: Callable[..., multiprocessing.Process]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "kb"
        with KnowledgeBase.create(path) as kb:
            kb.add([Passage("a", "lamp"), Passage("b", "gear")])
        writable = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
        everything = [path, *path.rglob("*")]
        for file in everything:
            file.chmod((0o755 if file.is_dir() else 0o644) & ~writable)
        answers = Path(tempfile.mkdtemp()) / "answers"
        answers.parent.chmod(0o777)
        process = spawn(workers.read_without_permission, str(path), str(answers))
        process.join()
        for file in everything:
            file.chmod(0o755)
        first, second, *rest = answers.read_text().split("\n")
        assert (first, second) == ("a", "a")
        assert "StoreError" in rest[0]
        assert "may not be written" in rest[0]


def test_the_lock_of_a_killed_writer_is_free(
    closed: Path, spawn: Callable[..., multiprocessing.Process], tmp_path: Path
) -> None:
    child = spawn(workers.hold, str(closed), str(tmp_path / "ready"))
    while not (tmp_path / "ready").exists():
        assert child.is_alive()
        time.sleep(0.01)
    with KnowledgeBase.open(closed) as kb:
        assert kb.retrieve(["held"], 1, mode="bm25")[0][0].id == "held"  # readers see what it has written
        with pytest.raises(StoreError, match=f"process {child.pid}"):
            kb.delete(["held"])
        child.kill()
        child.join()
        assert kb.delete(["held"]) == 1


def test_nothing_reads_the_files_any_more_once_it_is_closed(
    spawn: Callable[..., multiprocessing.Process], tmp_path: Path
) -> None:
    child = spawn(workers.close_and_truncate, str(tmp_path / "kb"))
    child.join()
    assert child.exitcode == 0  # a merge in the background would meet the end of a mapped file: -7, a bus error


def test_threads_never_see_half_a_change(tmp_path: Path) -> None:
    read_while_writing(tmp_path / "kb", seconds=3.0, readers=4)


def read_while_writing(path: Path, *, seconds: float, readers: int) -> None:
    wrong: list[object] = []
    seen: set[int] = set()
    with KnowledgeBase.create(path, HashingEncoder(32)) as kb:
        kb.add(workers.generation_of(0))
        end = time.monotonic() + seconds

        def unfinished() -> bool:  # on a busy machine it takes longer until enough has happened
            now = time.monotonic()
            return now < end or (len(seen) <= 3 and now < end + workers.PATIENCE)

        def read(mode: str) -> None:
            while unfinished():
                try:
                    [found] = kb.retrieve(["common lamp"], 100, mode=mode)  # type: ignore[arg-type]
                except Exception as error:
                    wrong.append(error)
                    return
                generations = {p.metadata["generation"] for p in found}
                versions = {p.metadata["kb"]["version"] for p in found}
                if len(found) != 40 or len(generations) != 1 or len(versions) != 1:
                    wrong.append((mode, len(found), generations, versions))
                seen.update(generations)

        modes = ("bm25", "dense", "hybrid", "rrf")
        threads = [threading.Thread(target=read, args=(modes[i % 4],)) for i in range(readers)]
        for thread in threads:
            thread.start()
        generation = 1
        while unfinished() and not wrong:
            kb.add(workers.generation_of(generation))
            if generation % 10 == 0:
                kb.compact()
            generation += 1
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(seen) > 3


def test_processes_never_see_half_a_change(tmp_path: Path, spawn: Callable[..., multiprocessing.Process]) -> None:
    read_beside_a_writer(tmp_path, spawn, seconds=3.0, readers=2)


@pytest.mark.slow
def test_eight_readers_and_a_writer_for_a_minute(tmp_path: Path, spawn: Callable[..., multiprocessing.Process]) -> None:
    read_beside_a_writer(tmp_path, spawn, seconds=60.0, readers=8)
    read_while_writing(tmp_path / "threads", seconds=60.0, readers=8)


def read_beside_a_writer(
    tmp_path: Path, spawn: Callable[..., multiprocessing.Process], *, seconds: float, readers: int
) -> None:
    path = str(tmp_path / "kb")
    with KnowledgeBase.create(path, HashingEncoder(32)) as kb:
        kb.add(workers.generation_of(0))
    answers = [tmp_path / f"answers{i}" for i in range(readers)]
    stop = tmp_path / "stop"
    writer = spawn(workers.rewrite, path, str(stop))
    children = [spawn(workers.read_generations, path, seconds, str(file)) for file in answers]
    for child in children:
        child.join()
    stop.touch()
    writer.join()
    assert [child.exitcode for child in (writer, *children)] == [0] * (1 + readers)
    for file in answers:
        reads, seen, wrong = file.read_text().split(" ", 2)
        assert wrong == "[]"
        assert int(reads) > 20
        assert int(seen) > 3


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threading.active_count() < 20
