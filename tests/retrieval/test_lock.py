"""The writer's lock: it ends with its owner, and a fork has none."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ragft_plugin.errors import StoreError
from ragft_plugin.retrieval import HashingEncoder, KnowledgeBase, lock
from ragft_plugin.retrieval.lock import WriterLock
from ragft_plugin.types import Passage

posix = pytest.mark.skipif(sys.platform == "win32", reason="uses fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "write.lock"


def is_free(path: Path) -> bool:
    other = WriterLock(path)
    try:
        other.acquire(patience=0.0)
    except StoreError:
        return False
    other.release()
    return True


def test_it_is_held_until_it_is_released(path: Path) -> None:
    mine = WriterLock(path)
    mine.release()
    for _ in range(2):
        mine.acquire()
        mine.acquire()
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(StoreError, match=f"is being changed by process {os.getpid()}; only one"):
            WriterLock(path).acquire(patience=0.0)
        mine.release()
        assert is_free(path)


def test_it_is_released_when_it_is_dropped(path: Path) -> None:
    mine = WriterLock(path)
    mine.acquire()
    del mine
    gc.collect()
    assert is_free(path)


def test_a_knowledge_base_that_is_dropped_without_closing_can_be_written_again(tmp_path: Path) -> None:
    kb = KnowledgeBase.create(tmp_path / "kb", HashingEncoder(32))
    kb.add([Passage("a", "lamp")])
    del kb
    gc.collect()
    with KnowledgeBase.open(tmp_path / "kb") as kb:
        assert kb.add([Passage("b", "lamp")]).added == 1


def test_it_is_held_although_the_disk_is_too_full_to_note_who_holds_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    mine = WriterLock(path)
    with monkeypatch.context() as patch:
        patch.setattr(lock.os, "write", full)
        mine.acquire()
    assert not is_free(path)
    mine.acquire()
    mine.release()
    assert is_free(path)


def test_an_interrupted_attempt_holds_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int, patience: float) -> None:
        take(descriptor, patience)
        raise KeyboardInterrupt

    take = lock._lock_within
    mine = WriterLock(path)
    with monkeypatch.context() as patch:
        patch.setattr(lock, "_lock_within", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mine.acquire()
    assert is_free(path)
    mine.acquire()
    assert not is_free(path)
    mine.release()


def try_in_a_fork(path: Path) -> None:
    mine = WriterLock(path)
    mine.acquire()
    pid = os.fork()
    if pid == 0:
        try:
            mine.acquire()
        except StoreError as error:
            said = str(error)
        mine.release()  # of the copy; the parent goes on holding the lock
        assert not is_free(path)
        parent = f"by process {os.getppid()}, of which this one is a fork; open it again in this process"
        os._exit(0 if parent in said else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert not is_free(path)
    mine.release()
    assert is_free(path)


@posix
def test_a_fork_does_not_hold_what_its_parent_holds(path: Path, spawn: Callable[..., multiprocessing.Process]) -> None:
    child = spawn(try_in_a_fork, path)
    child.join()
    assert child.exitcode == 0


def release_beside_a_fork(path: Path) -> None:
    mine = WriterLock(path)
    mine.acquire()
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(theirs)
        os.read(ours, 1)  # until the parent has looked
        os._exit(0)
    mine.release()
    free = is_free(path)
    os.close(theirs)
    os.waitpid(pid, 0)
    assert free


@posix
def test_a_released_lock_is_free_although_a_fork_has_a_copy(
    path: Path, spawn: Callable[..., multiprocessing.Process]
) -> None:
    child = spawn(release_beside_a_fork, path)
    child.join()
    assert child.exitcode == 0


def write_in_a_fork(path: Path) -> None:
    kb = KnowledgeBase.create(path, HashingEncoder(32))
    kb.add([Passage("a", "lamp")])
    pid = os.fork()
    if pid == 0:
        try:
            kb.add([Passage("b", "lamp")])
        except StoreError as error:
            os._exit(0 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert kb.add([Passage("c", "lamp")]).version == 2
    kb.close()


@posix
def test_a_fork_cannot_write_beside_its_parent(tmp_path: Path, spawn: Callable[..., multiprocessing.Process]) -> None:
    child = spawn(write_in_a_fork, tmp_path / "kb")
    child.join()
    assert child.exitcode == 0
