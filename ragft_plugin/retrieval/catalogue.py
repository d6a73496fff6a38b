"""The catalogue: passages, metadata, versions and the list of segments in SQLite. Its commit is the commit.

Rows are never changed and their numbers never reused. A change adds rows and marks others as removed, each with the
version it happened in, so that a reader at version v sees exactly the rows with ``added <= v < removed``, whatever
is written meanwhile. Only compaction purges removed rows; a reader that misses one starts again at the newer version.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from ragft_plugin.errors import DataError, StoreError
from ragft_plugin.retrieval.connections import Connections, Held
from ragft_plugin.retrieval.integrity import Check
from ragft_plugin.retrieval.records import Record, SegmentRecord, Settings, State, content_hash, restored
from ragft_plugin.types import Passage

FORMAT = 1
SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE passages(
    row INTEGER PRIMARY KEY, id TEXT NOT NULL, source TEXT, text TEXT NOT NULL, metadata TEXT NOT NULL,
    hash BLOB NOT NULL, added INTEGER NOT NULL, removed INTEGER);
CREATE UNIQUE INDEX live_id ON passages(id) WHERE removed IS NULL;
CREATE INDEX live_source ON passages(source) WHERE removed IS NULL AND source IS NOT NULL;
CREATE INDEX removed_rows ON passages(removed) WHERE removed IS NOT NULL;
CREATE TABLE segments(
    name TEXT PRIMARY KEY, first INTEGER NOT NULL, count INTEGER NOT NULL, dim INTEGER NOT NULL,
    rows_sha256 TEXT NOT NULL, vectors_sha256 TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sources(source TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
"""
SEGMENT_COLUMNS = "name, first, count, dim, rows_sha256, vectors_sha256"
_CHUNK = 500  # bound parameters per statement; every SQLite allows 999
_BATCH = 1000  # rows that are read at a time where there may be a million
_META = "SELECT value FROM meta WHERE key=?"
_RESTORE = "restore it from a copy or index the documents again"
_CURES = {
    "database or disk is full": "free some space; the last complete state is kept",
    "disk I/O error": "check the disk and its free space; the last complete state is kept",
    "database is locked": "somebody writes for a long time; try again",
    "unable to open database file": "check that this user may read it, and how many files this process has open",
}
_Question = tuple[str, Sequence[Any]]  # a statement and its values
_T = TypeVar("_T", Settings, State)


class Catalogue:
    """SQLite behind a small set of questions and one way to commit. Threads have a connection each.

    Args:
        path: the database file.
        read_only: never write, not even SQLite's own side files where the directory does not allow it.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._connections = Connections(path, read_only=read_only)
        self.check: Check | None = None  # in progress; from the moment it finds damage, every question is an error

    @staticmethod
    def create(path: Path, settings: Settings) -> None:
        """Make an empty catalogue."""
        try:
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript("BEGIN;" + SCHEMA)
                rows = {"format": FORMAT, "settings": asdict(settings), "state": asdict(State())}
                connection.executemany("INSERT INTO meta VALUES(?,?)", [(k, json.dumps(v)) for k, v in rows.items()])
                connection.execute("COMMIT")
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise _explained(path, error) from error

    def close(self) -> None:
        """Close every connection of every thread."""
        if self.check is not None:
            self.check.stop()
        self._connections.close()

    @contextmanager
    def errors(self, held: Held | None = None) -> Iterator[Held]:
        """Use a connection, this thread's by default, which ``close`` waits for; SQLite's errors become ours.

        Nothing may be yielded to a caller from inside it: ``close`` would wait for that caller.

        Raises:
            StoreError: naming the file.
            DataError: a text that is not Unicode.
        """
        if self.check is not None:
            self.check.so_far()
        try:
            held = held or self._connections.mine()
            with held.using:
                yield held
        except sqlite3.Error as error:
            if self._connections.closed:
                raise StoreError(f"the knowledge base {self.path.parent} is closed") from error
            raise _explained(self.path, error) from error
        except UnicodeEncodeError as error:
            raise DataError(
                f"{error.object[:100]!r} is not valid Unicode (lone surrogate at {error.start}); decode it properly"
            ) from error

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection of this thread, for use inside ``errors``."""
        with self.errors() as held:
            return held.connection

    def connect(self) -> sqlite3.Connection:
        """Return a connection of the caller's own, who closes it.

        Raises:
            sqlite3.Error: it cannot be opened.
        """
        return self._connections.connect()

    def meta(self, key: str) -> Any:
        """Return a value of the table ``meta``."""
        [found] = self._ask((_META, (key,)))
        return self._entry(key, found)

    def settings(self) -> Settings:
        """Return the settings, after a look at the format."""
        found = self.meta("format")
        if found != FORMAT:
            raise StoreError(f"{self.path} has format {found}, this version of ragft-plugin reads {FORMAT}")
        return self._restored(Settings, "settings", self.meta("settings"))

    def state(self) -> State:
        """Return the state of the last commit.

        Every search asks for it. SQLite's ``data_version`` changes whenever another connection has committed, and is
        quicker to read than the state itself.
        """
        if self.check is not None:
            self.check.so_far()
        try:
            held = self._connections.mine()
            with held.using:
                (version,) = held.connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            with self.errors() as held:  # once more, and the slower way, which explains what is the matter
                (version,) = held.connection.execute("PRAGMA data_version").fetchone()
        if held.known is not None and held.known[0] == version:
            return held.known[1]
        state = self._restored(State, "state", self.meta("state"))
        held.known = (version, state)
        return state

    def snapshot(self) -> tuple[State, list[SegmentRecord], list[int]]:
        """Return state, segments and removed rows of one and the same commit."""
        state, segments, removed = self._ask(
            (_META, ("state",)),
            (f"SELECT {SEGMENT_COLUMNS} FROM segments ORDER BY first", ()),
            ("SELECT row FROM passages WHERE removed IS NOT NULL", ()),
        )
        return (
            self._restored(State, "state", self._entry("state", state)),
            [SegmentRecord(*found) for found in segments],
            [row for (row,) in removed],
        )

    def live(self, ids: Sequence[str]) -> dict[str, tuple[int, bytes]]:
        """Return {id: (row, hash)} of the ids that are there."""
        select = "SELECT id, row, hash FROM passages WHERE removed IS NULL AND id IN"
        # What is no Unicode text was never stored.
        return {id: (row, digest) for id, row, digest in self._many(select, [id for id in ids if _is_unicode(id)])}

    def rows_of_source(self, source: str) -> dict[str, tuple[int, bytes]]:
        """Return {id: (row, hash)} of the passages of a source."""
        select = "SELECT id, row, hash FROM passages WHERE removed IS NULL AND source=?"
        return {id: (row, digest) for id, row, digest in self._one(select, source)}

    def passages(self, rows: Sequence[int]) -> dict[int, Passage]:
        """Return {row: passage} of one commit, each checked against its hash.

        Raises:
            StoreError: a passage was changed on disk.
        """
        found = self._many("SELECT row, id, text, metadata, hash FROM passages WHERE row IN", rows)
        return {row: self._decode(id, text, metadata, digest) for row, id, text, metadata, digest in found}

    def texts(self, first: int, last: int, *, version: int | None = None) -> Iterator[tuple[int, str]]:
        """Yield (row, text) of the rows from ``first`` to ``last`` inclusive that are live.

        Args:
            first: row.
            last: row.
            version: live then, as far as they are not purged; None for now.
        """
        then = () if version is None else (version, version)
        live = "added <= ? AND (removed IS NULL OR removed > ?)" if then else "removed IS NULL"
        yield from self._stream(
            f"SELECT row, text FROM passages WHERE {live} AND row BETWEEN ? AND ?", *then, first, last
        )

    def all_metadata(self, first: int, last: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (row, metadata) of all rows from ``first`` to ``last`` inclusive, in order.

        Raises:
            StoreError: metadata that is no JSON object; its passage would be hidden from every filter.
        """
        select = "SELECT row, metadata FROM passages WHERE row BETWEEN ? AND ? ORDER BY row"
        for row, metadata in self._stream(select, first, last):
            yield row, self._metadata(f"the passage in row {row}", metadata)

    def removed_since(self, version: int) -> list[int]:
        """Return the rows removed after a version."""
        return [row for (row,) in self._one("SELECT row FROM passages WHERE removed > ?", version)]

    def ids(self) -> list[str]:
        """Return the live ids in order of insertion."""
        return [id for (id,) in self._one("SELECT id FROM passages WHERE removed IS NULL ORDER BY row")]

    def source_sizes(self) -> dict[str, int]:
        """Return {source: number of live passages}."""
        select = "SELECT source, count(*) FROM passages WHERE removed IS NULL AND source IS NOT NULL GROUP BY source"
        return dict(self._one(select))

    def sources(self) -> dict[str, str]:
        """Return {source: digest of the file it was read from} of indexed files."""
        return dict(self._one("SELECT source, digest FROM sources"))

    def commit(
        self,
        records: Sequence[Record],
        removed: Mapping[int, bytes],
        *,
        sources: Mapping[str, str | None] | None = None,
        segments: tuple[Iterable[SegmentRecord], Iterable[str]] = ((), ()),
        purge: bool = False,
        dim: int = 0,
        based_on: State | None = None,
    ) -> State:
        """Commit a change: the one moment at which anything happens.

        Args:
            records: new passages; they get the rows from ``state.next_row`` on.
            removed: {row: hash} of rows that go.
            sources: digests of files to remember, None to forget.
            segments: records that come and names that go.
            purge: drop removed rows for good.
            dim: length of the vectors, once it is known.
            based_on: the state that the change was computed from; None for whatever it is now.

        Raises:
            StoreError: somebody has written since ``based_on``, in spite of the writer's lock; nothing has changed.
        """
        with self.errors() as held:
            connection = held.connection
            held.known = None  # a connection's own commits do not change its data_version
            connection.execute("BEGIN IMMEDIATE")
            try:
                found = connection.execute(_META, ("state",)).fetchall()
                before = self._restored(State, "state", self._entry("state", found))
                if based_on is not None and before != based_on:
                    raise StoreError(
                        f"{self.path} was changed by another writer, from version {based_on.version} to "
                        f"{before.version}, so nothing was written; do it again. Was {self.path.parent / 'write.lock'} "
                        "deleted, or does its file system not lock?"
                    )
                changed = bool(records or removed)
                version = before.version + changed
                connection.executemany("UPDATE passages SET removed=? WHERE row=?", [(version, row) for row in removed])
                connection.executemany(
                    "INSERT INTO passages(row, id, source, text, metadata, hash, added) VALUES(?,?,?,?,?,?,?)",
                    [
                        (row, r.id, r.source, r.text, r.metadata, r.hash, version)
                        for row, r in enumerate(records, start=before.next_row)
                    ],
                )
                come, go = segments
                connection.executemany("DELETE FROM segments WHERE name=?", [(name,) for name in go])
                connection.executemany(
                    "INSERT INTO segments VALUES(?,?,?,?,?,?)",
                    [(s.name, s.first, s.count, s.dim, s.rows_sha256, s.vectors_sha256) for s in come],
                )
                for source, digest in (sources or {}).items():
                    if digest is None:
                        connection.execute("DELETE FROM sources WHERE source=?", (source,))
                    else:
                        connection.execute("INSERT OR REPLACE INTO sources VALUES(?,?)", (source, digest))
                if purge:
                    connection.execute("DELETE FROM passages WHERE removed IS NOT NULL")
                total = int(before.digest, 16)
                total += sum(int.from_bytes(r.hash, "little") for r in records)
                total -= sum(int.from_bytes(digest, "little") for digest in removed.values())
                after = replace(
                    before,
                    version=version,
                    layout=before.layout + bool(go),
                    next_row=before.next_row + len(records),
                    purged=version if purge else before.purged,
                    digest=f"{total % (1 << 128):032x}",
                    live=before.live + len(records) - len(removed),
                    dim=dim or before.dim,
                )
                connection.execute("UPDATE meta SET value=? WHERE key='state'", (json.dumps(asdict(after)),))
                connection.execute("COMMIT")
                return after
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _ask(self, *questions: _Question) -> list[list[Any]]:
        """Return the rows of each question, all of one commit."""
        while True:
            with self.errors() as held:
                try:
                    answers = _answers(held.connection, questions)
                except sqlite3.Error:
                    if not held.outdated():
                        raise
                else:
                    if not held.outdated():
                        return answers

    def _one(self, select: str, *values: Any) -> list[Any]:
        [found] = self._ask((select, values))
        return found

    def _many(self, select: str, values: Sequence[Any]) -> list[Any]:
        parts = [values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK)]
        return [row for rows in self._ask(*((f"{select} ({_marks(part)})", part) for part in parts)) for row in rows]

    def _stream(self, select: str, *values: Any) -> Iterator[Any]:
        """Yield the rows of a question, which are of one commit although the connection is let go in between."""
        with self.errors() as held:
            cursor = held.connection.execute(select, values)
        while True:
            with self.errors(held):
                batch = cursor.fetchmany(_BATCH)
            if held.outdated():
                raise StoreError(f"{self.path} was written while it was being read; try again")
            if not batch:
                return
            yield from batch

    def _entry(self, key: str, found: Sequence[Any]) -> Any:
        """Return the value in the rows of a look into ``meta``."""
        if not found:
            raise StoreError(f"{self.path} has no entry {key!r}; it is damaged or no knowledge base")
        try:
            return json.loads(found[0][0])
        except (ValueError, TypeError, RecursionError) as error:
            raise StoreError(f"{self.path}: the entry {key!r} is damaged: {error}; {_RESTORE}") from error

    def _restored(self, kind: type[_T], key: str, value: Any) -> _T:
        try:
            return restored(kind, value)
        except ValueError as error:
            raise StoreError(f"{self.path}: the entry {key!r} is damaged: {error}; {_RESTORE}") from error

    def _decode(self, id: str, text: str, metadata: str, digest: bytes) -> Passage:
        try:
            intact = content_hash(id, text, metadata) == digest
        except (AttributeError, UnicodeError):
            intact = False
        if not intact:
            raise StoreError(f"{self.path}: passage {id!r} was changed on disk; index its document again")
        return Passage(id, text, metadata=self._metadata(f"passage {id!r}", metadata))

    def _metadata(self, owner: str, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise StoreError(f"{self.path}: the metadata of {owner} is damaged: {error}; {_RESTORE}") from error
        if not isinstance(found, dict):
            raise StoreError(f"{self.path}: the metadata of {owner} is damaged: {text!r:.80} is no object; {_RESTORE}")
        return found


def _answers(connection: sqlite3.Connection, questions: Sequence[_Question]) -> list[list[Any]]:
    if len(questions) < 2:  # a statement by itself sees one commit
        return [connection.execute(*question).fetchall() for question in questions]
    connection.execute("BEGIN")
    try:
        return [connection.execute(*question).fetchall() for question in questions]
    finally:
        connection.execute("COMMIT")


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


def _is_unicode(text: str) -> bool:
    try:
        str.encode(text, "utf-8")
    except (TypeError, UnicodeEncodeError):
        return False
    return True


def _explained(path: Path, error: sqlite3.Error) -> StoreError:
    return StoreError(f"{path}: {error}; {_CURES.get(str(error), _RESTORE)}")
