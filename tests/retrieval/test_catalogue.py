"""The catalogue: threads and forks, several writers, damaged entries, files that change underneath."""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from string import ascii_letters
from typing import Any

import pytest

from ragft_plugin.errors import DataError, StoreError
from ragft_plugin.retrieval import catalogue as module
from ragft_plugin.retrieval.catalogue import Catalogue
from ragft_plugin.retrieval.records import Record, Settings, State, content_hash
from ragft_plugin.types import Passage

posix = pytest.mark.skipif(sys.platform == "win32", reason="uses processes, limits and permissions of POSIX")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Catalogue.create(tmp_path / "knowledge.db", Settings("", False, "english"))
    return tmp_path / "knowledge.db"


@pytest.fixture
def catalogue(path: Path) -> Iterator[Catalogue]:
    with closing(Catalogue(path)) as catalogue:
        yield catalogue


def records(ids: str, text: str = "lamp") -> list[Record]:
    return [Record.of(Passage(id, f"{text} {id}", metadata={"n": 1})) for id in ids]


def replaced(catalogue: Catalogue, ids: str, text: str) -> State:
    return catalogue.commit(records(ids, text), dict(catalogue.live(ids).values()))


def files_open() -> int:
    return len(os.listdir("/dev/fd"))


def damage(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(statement, values).rowcount == 1


# Threads and processes


def close_beside_readers(path: Path) -> None:
    ids = [str(i) for i in range(400)]

    def read(catalogue: Catalogue) -> None:
        for count in itertools.cycle(range(1, len(ids))):  # so many statements that each is prepared anew
            try:
                catalogue.live(ids[:count])
                catalogue.state()
            except StoreError as error:
                closed.append("is closed" in str(error))
                return

    for _ in range(20):
        closed: list[bool] = []
        catalogue = Catalogue(path)
        threads = [threading.Thread(target=read, args=(catalogue,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        catalogue.close()
        for thread in threads:
            thread.join()
        assert closed == [True] * 4


@posix
def test_closing_beside_readers_is_an_error_for_them_and_no_crash(
    path: Path, catalogue: Catalogue, spawn: Callable[..., multiprocessing.Process]
) -> None:
    catalogue.commit([Record.of(Passage(str(i), f"lamp {i}")) for i in range(3000)], {})
    child = spawn(close_beside_readers, path)
    child.join()
    assert child.exitcode == 0


@pytest.mark.parametrize("read", ["texts", "all_metadata"])
def test_closing_does_not_wait_for_whoever_has_stopped_reading_halfway(
    catalogue: Catalogue, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 2)
    catalogue.commit(records("abcde"), {})
    started, finish, errors = threading.Event(), threading.Event(), []

    def read_on() -> None:
        rows = getattr(catalogue, read)(0, 4)
        next(rows)
        started.set()
        finish.wait(30)
        try:
            list(rows)
        except StoreError as error:
            errors.append(str(error))

    thread = threading.Thread(target=read_on)
    thread.start()
    started.wait()
    catalogue.close()
    finish.set()
    thread.join()
    assert len(errors) == 1
    assert "is closed" in errors[0]


def test_what_is_read_halfway_is_of_one_commit(
    path: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 2)
    catalogue.commit(records("abcde"), {})
    rows = catalogue.texts(0, 20)
    first = next(rows)
    with closing(Catalogue(path)) as other:
        replaced(other, "abcde", "gear")
    assert [first, *rows] == [(i, f"lamp {id}") for i, id in enumerate("abcde")]


@posix
def test_the_connection_of_a_thread_ends_with_it(catalogue: Catalogue) -> None:
    catalogue.state()
    counts = set()
    for _ in range(20):
        thread = threading.Thread(target=catalogue.state)
        thread.start()
        thread.join()
        counts.add(files_open())
    assert len(counts) == 1
    assert catalogue.state() == State()


@posix
def test_a_catalogue_that_is_dropped_lets_its_files_go(path: Path) -> None:
    gc.collect()
    before = files_open()
    catalogue = Catalogue(path)
    catalogue.state()
    assert files_open() > before
    del catalogue
    gc.collect()
    assert files_open() == before


def ask_and_close_in_a_fork(path: Path) -> None:
    catalogue = Catalogue(path)
    catalogue.state()
    before = files_open()
    pid = os.fork()
    if pid == 0:
        assert catalogue.state() == State()
        catalogue.close()
        os._exit(0 if files_open() >= before else 1)  # SQLite may keep one of the child's own open a while
    assert os.waitpid(pid, 0)[1] == 0
    catalogue.commit(records("a"), {})
    catalogue.close()


@posix
def test_a_fork_has_connections_of_its_own_and_leaves_its_parents_alone(
    path: Path, spawn: Callable[..., multiprocessing.Process]
) -> None:
    child = spawn(ask_and_close_in_a_fork, path)
    child.join()
    assert child.exitcode == 0


@posix
def test_too_many_open_files_is_an_error_that_says_so(path: Path, catalogue: Catalogue) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reader = Catalogue(path, read_only=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        for ask in (catalogue.state, reader.state, lambda: catalogue.connection):
            with pytest.raises(StoreError, match=r"knowledge\.db: unable to open database file; .*how many files"):
                ask()
        with pytest.raises(StoreError, match=r"new\.db: unable to open"):
            Catalogue.create(path.with_name("new.db"), Settings("", False, ""))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert catalogue.state() == reader.state() == State()
    reader.close()


# Commits


def test_a_change_computed_from_another_state_is_refused(path: Path, catalogue: Catalogue) -> None:
    before = catalogue.state()
    with closing(Catalogue(path)) as other:
        theirs = other.commit(records("a"), {}, based_on=before)
    with pytest.raises(StoreError, match=r"knowledge\.db was changed by another writer, from version 0 to 1"):
        catalogue.commit(records("b"), {}, based_on=before)
    assert catalogue.state() == theirs
    assert catalogue.ids() == ["a"]
    assert catalogue.commit(records("b"), {}, based_on=theirs).version == 2
    assert catalogue.commit(records("c"), {}).version == 3


@pytest.mark.parametrize("ask", ["live", "passages"])
def test_an_answer_of_many_parts_is_of_one_commit(
    path: Path, catalogue: Catalogue, ask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2)
    catalogue.commit(records("abcd"), {})
    other = Catalogue(path)
    statements: list[str] = []

    def write_before_the_second_part(statement: str) -> None:
        statements.append(statement)
        if len([s for s in statements if s.startswith("SELECT")]) == 2 and other.state().version == 1:
            replaced(other, "abcd", "gear")
            other.commit([], {}, purge=True)

    catalogue.connection.set_trace_callback(write_before_the_second_part)
    found = catalogue.live("abcd") if ask == "live" else catalogue.passages(range(4))
    catalogue.connection.set_trace_callback(None)
    assert other.state().version == 2
    other.close()
    if ask == "live":
        assert {id: row for id, (row, _) in found.items()} == {"a": 0, "b": 1, "c": 2, "d": 3}
    else:
        assert [found[row].id for row in range(4)] == list("abcd")


def test_texts_of_a_version_hold_what_was_removed_since(catalogue: Catalogue) -> None:
    catalogue.commit(records("abc"), {})
    replaced(catalogue, "b", "gear")
    assert dict(catalogue.texts(0, 9)) == {0: "lamp a", 2: "lamp c", 3: "gear b"}
    assert dict(catalogue.texts(0, 9, version=1)) == {0: "lamp a", 1: "lamp b", 2: "lamp c"}
    assert dict(catalogue.texts(0, 9, version=2)) == dict(catalogue.texts(0, 9))
    assert dict(catalogue.texts(1, 1, version=1)) == {1: "lamp b"}
    assert dict(catalogue.texts(0, 9, version=0)) == {}


# Damage


STATE = asdict(State())
SETTINGS = asdict(Settings("", False, ""))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "{"),
        ("settings", json.dumps(SETTINGS).replace("false", "falsd")),
        ("settings", json.dumps({**SETTINGS, "require_filter": 0})),
        ("settings", json.dumps({"fingerprint": "", "language": ""})),
        ("settings", "[]"),
        ("state", "{"),
        ("state", "[" * 100_000),
        ("state", b"\xff"),
        ("state", json.dumps({**STATE, "dim": "32"})),
        ("state", json.dumps({**STATE, "digest": "g" * 32})),
        ("state", json.dumps({**STATE, "odd": 1})),
    ],
)
def test_a_damaged_entry_is_named(path: Path, catalogue: Catalogue, key: str, value: Any) -> None:
    damage(path, "UPDATE meta SET value=? WHERE key=?", value, key)
    damaged = rf"knowledge\.db: the entry '{key}' is damaged: .*; restore it"
    if key != "state":
        with pytest.raises(StoreError, match=damaged):
            catalogue.settings()
        return
    with pytest.raises(StoreError, match=damaged):
        catalogue.state()
    with pytest.raises(StoreError, match=damaged):
        catalogue.snapshot()
    with pytest.raises(StoreError, match=damaged):
        catalogue.commit(records("a"), {})


@pytest.mark.parametrize("metadata", ['{"n": 1', "7", "null", '["n"]', b"\xff", "[" * 100_000])
def test_damaged_metadata_hides_no_passage_from_a_filter(path: Path, catalogue: Catalogue, metadata: Any) -> None:
    catalogue.commit(records("abc"), {})
    damage(path, "UPDATE passages SET metadata=? WHERE row=1", metadata)
    rows = catalogue.all_metadata(0, 2)
    assert next(rows) == (0, {"n": 1})
    with pytest.raises(StoreError, match=r"knowledge\.db: the metadata of the passage in row 1 is damaged: "):
        next(rows)
    with pytest.raises(StoreError, match=r"knowledge\.db: passage 'b' was changed on disk"):
        catalogue.passages([1])


def test_metadata_that_is_no_object_is_an_error_even_with_the_right_hash(path: Path, catalogue: Catalogue) -> None:
    catalogue.commit(records("a"), {})
    damage(path, "UPDATE passages SET metadata='7', hash=?", content_hash("a", "lamp a", "7"))
    with pytest.raises(StoreError, match=r"knowledge\.db: the metadata of passage 'a' is damaged: '7' is no object"):
        catalogue.passages([0])


@pytest.mark.parametrize("read_only", [False, True])
def test_a_strangers_schema_is_not_trusted(path: Path, read_only: bool) -> None:
    with (
        closing(Catalogue(path, read_only=read_only)) as catalogue,
        closing(catalogue.connect()) as own,
    ):
        for connection in (catalogue.connection, own):
            assert connection.execute("PRAGMA trusted_schema").fetchone() == (0,)


# Names


def test_what_is_no_unicode_is_not_there_and_cannot_be_stored(catalogue: Catalogue) -> None:
    catalogue.commit(records("a"), {})
    assert list(catalogue.live(["\ud800", "a"])) == ["a"]
    with pytest.raises(DataError, match=r"'s\\ud800' is not valid Unicode \(lone surrogate at 1\); decode"):
        catalogue.rows_of_source("s\ud800")
    with pytest.raises(DataError, match=r"'\\ud800' is not valid Unicode"):
        catalogue.commit(records("b"), {}, sources={"\ud800": "digest"})
    assert catalogue.ids() == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are Unicode")
def test_the_directory_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / (os.fsdecode(b"bad\xff") + "a b%20?x#y")
    folder.mkdir()
    Catalogue.create(folder / "knowledge.db", Settings("", False, ""))
    for read_only in (False, True):
        with closing(Catalogue(folder / "knowledge.db", read_only=read_only)) as catalogue:
            assert catalogue.state() == State()


@pytest.mark.parametrize("metadata", [None, [("n", 1)], "n"])
def test_metadata_must_be_a_mapping(metadata: Any) -> None:
    with pytest.raises(DataError, match=r"metadata of passage 'a' is .*; give a dictionary, an empty one for none"):
        Record.of(Passage("a", "lamp", metadata=metadata))


# Files that nobody can lock


def read_without_permission(path: Path, pipe: Connection) -> None:
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    with closing(Catalogue(path, read_only=True)) as catalogue:
        while pipe.recv():
            try:
                rows = [row for row, _ in catalogue.all_metadata(0, 10**6)]
                found = {passage.text[:4] for passage in catalogue.passages(rows).values()}
                pipe.send((catalogue.state().version, len(catalogue.ids()), found))
            except Exception as error:
                pipe.send(f"{type(error).__name__}: {error}")


@posix
def test_a_reader_who_may_not_write_sees_what_the_owner_writes(spawn: Callable[..., multiprocessing.Process]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "knowledge.db")
        Catalogue.create(path, Settings("", False, ""))
        ours, theirs = multiprocessing.Pipe()

        def ask() -> Any:
            ours.send(True)
            assert ours.poll(60)
            return ours.recv()

        def write(owner: Catalogue, generation: str) -> None:
            replaced(owner, ascii_letters, generation + 3000 * ".")
            owner.commit([], {}, purge=True)

        def allow(writing: int) -> None:
            for file in (path.parent, *path.parent.iterdir()):
                file.chmod((0o555 if file.is_dir() else 0o444) | writing)

        for generation in ("gen1", "gen2", "gen3", "gen4"):
            allow(0o200)
            with closing(Catalogue(path)) as owner:
                write(owner, generation)
                if generation == "gen3":  # the owner is at it
                    allow(0)
                    assert ask() == (3, len(ascii_letters), {"gen3"})
                    allow(0o200)
            allow(0)
            if generation == "gen1":
                reader = spawn(read_without_permission, path, theirs)
            assert ask() == (int(generation[-1]), len(ascii_letters), {generation})
        allow(0o200)
        ours.send(False)
        reader.join()
        assert reader.exitcode == 0
