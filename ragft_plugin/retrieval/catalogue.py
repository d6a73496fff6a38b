"""The catalogue: passages, metadata, versions and the list of segments in SQLite. Its commit is the commit.

Rows are never changed and their numbers never reused. A change adds rows and marks others as removed, each with the
version it happened in, so that a reader at version v sees exactly the rows with ``added <= v < removed``, whatever
is written meanwhile. Only compaction purges removed rows; a reader that misses one starts again at the newer version.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ragft_plugin.errors import StoreError
from ragft_plugin.retrieval.integrity import Check
from ragft_plugin.retrieval.records import Record, SegmentRecord, Settings, State, content_hash
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


class Catalogue:
    """SQLite behind a small set of questions and one way to commit. Threads have a connection each.

    Args:
        path: the database file.
        read_only: never write, not even SQLite's own side files where the directory does not allow it.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._read_only = read_only
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._closed = False
        self.check: Check | None = None  # in progress; from the moment it finds damage, every question is an error

    @staticmethod
    def create(path: Path, settings: Settings) -> None:
        """Make an empty catalogue."""
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript("BEGIN;" + SCHEMA)
            rows = {"format": FORMAT, "settings": asdict(settings), "state": asdict(State())}
            connection.executemany("INSERT INTO meta VALUES(?,?)", [(k, json.dumps(v)) for k, v in rows.items()])
            connection.execute("COMMIT")
        finally:
            connection.close()

    def close(self) -> None:
        """Close every connection of every thread."""
        if self.check is not None:
            self.check.stop()
        with self._guard:
            self._closed = True
            for connection in self._all:
                connection.close()
            self._all.clear()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn SQLite's errors into ``StoreError`` naming the file."""
        try:
            yield
        except sqlite3.Error as error:
            if self._closed:
                raise StoreError(f"the knowledge base {self.path.parent} is closed") from error
            hint = {
                "database or disk is full": "free some space; the last complete state is kept",
                "disk I/O error": "check the disk and its free space; the last complete state is kept",
            }.get(str(error), "restore it from a copy or index the documents again")
            raise StoreError(f"{self.path}: {error}; {hint}") from error

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection of this thread."""
        if self.check is not None:
            self.check.so_far()
        mine: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if mine is not None and self._local.pid == os.getpid() and not self._closed:
            return mine
        if self._closed:
            raise StoreError(f"the knowledge base {self.path.parent} is closed; open it again")
        mine = self.connect()
        self._local.connection, self._local.pid = mine, os.getpid()
        with self._guard:
            self._all.append(mine)
        return mine

    def connect(self) -> sqlite3.Connection:
        """Return a connection of the caller's own, who closes it."""
        name = f"file:{quote(str(self.path.resolve()))}"
        options: dict[str, Any] = {"uri": True, "isolation_level": None, "check_same_thread": False, "timeout": 30}
        if not self._read_only:
            connection: sqlite3.Connection = sqlite3.connect(name + "?mode=rw", **options)
            connection.execute("PRAGMA synchronous=FULL")
            return connection
        connection = sqlite3.connect(name + "?mode=ro", **options)
        try:
            connection.execute("SELECT 1 FROM meta").fetchone()
        except sqlite3.OperationalError:
            # A directory that may not be written cannot hold the shared memory of a WAL. Nobody writes there, so
            # the file may be read as it is - unless a WAL with committed pages lies beside it.
            connection.close()
            wal = Path(str(self.path) + "-wal")
            if wal.exists() and wal.stat().st_size:
                raise
            connection = sqlite3.connect(name + "?mode=ro&immutable=1", **options)
        return connection

    def meta(self, key: str) -> Any:
        """Return a value of the table ``meta``."""
        with self.errors():
            found = self.connection.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        if found is None:
            raise StoreError(f"{self.path} has no entry {key!r}; it is damaged or no knowledge base")
        return json.loads(found[0])

    def settings(self) -> Settings:
        """Return the settings, after a look at the format."""
        found = self.meta("format")
        if found != FORMAT:
            raise StoreError(f"{self.path} has format {found}, this version of ragft-plugin reads {FORMAT}")
        return Settings(**self.meta("settings"))

    def state(self) -> State:
        """Return the state of the last commit.

        Every search asks for it. SQLite's ``data_version`` changes whenever another connection has committed, and is
        quicker to read than the state itself.
        """
        with self.errors():
            connection = self.connection
            (version,) = connection.execute("PRAGMA data_version").fetchone()
        known: tuple[sqlite3.Connection, int, State] | None = getattr(self._local, "known", None)
        if known is not None and known[0] is connection and known[1] == version:
            return known[2]
        state = State(**self.meta("state"))
        self._local.known = (connection, version, state)
        return state

    @contextmanager
    def snapshot(self) -> Iterator[tuple[State, list[SegmentRecord], list[int]]]:
        """Read state, segments and removed rows of one and the same commit."""
        with self.errors():
            connection = self.connection
            connection.execute("BEGIN")
            try:
                state = self.state()
                segments = [
                    SegmentRecord(*found)
                    for found in connection.execute(f"SELECT {SEGMENT_COLUMNS} FROM segments ORDER BY first")
                ]
                removed = [
                    found[0] for found in connection.execute("SELECT row FROM passages WHERE removed IS NOT NULL")
                ]
                yield state, segments, removed
            finally:
                connection.execute("COMMIT")

    def live(self, ids: Sequence[str]) -> dict[str, tuple[int, bytes]]:
        """Return {id: (row, hash)} of the ids that are there."""
        return {
            id: (row, digest)
            for id, row, digest in self._many("SELECT id, row, hash FROM passages WHERE removed IS NULL AND id IN", ids)
        }

    def rows_of_source(self, source: str) -> dict[str, tuple[int, bytes]]:
        """Return {id: (row, hash)} of the passages of a source."""
        with self.errors():
            found = self.connection.execute(
                "SELECT id, row, hash FROM passages WHERE removed IS NULL AND source=?", (source,)
            )
            return {id: (row, digest) for id, row, digest in found}

    def passages(self, rows: Sequence[int]) -> dict[int, Passage]:
        """Return {row: passage}, each checked against its hash.

        Raises:
            StoreError: a passage was changed on disk.
        """
        found = self._many("SELECT row, id, text, metadata, hash FROM passages WHERE row IN", rows)
        return {row: self._decode(id, text, metadata, digest) for row, id, text, metadata, digest in found}

    def texts(self, first: int, last: int) -> Iterator[tuple[int, str]]:
        """Yield (row, text) of the live rows from ``first`` to ``last`` inclusive."""
        with self.errors():
            yield from self.connection.execute(
                "SELECT row, text FROM passages WHERE removed IS NULL AND row BETWEEN ? AND ?", (first, last)
            )

    def all_metadata(self, first: int, last: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (row, metadata) of all rows from ``first`` to ``last`` inclusive, in order."""
        with self.errors():
            for row, metadata in self.connection.execute(
                "SELECT row, metadata FROM passages WHERE row BETWEEN ? AND ? ORDER BY row", (first, last)
            ):
                yield row, json.loads(metadata)

    def removed_since(self, version: int) -> list[int]:
        """Return the rows removed after a version."""
        with self.errors():
            return [row for (row,) in self.connection.execute("SELECT row FROM passages WHERE removed > ?", (version,))]

    def ids(self) -> list[str]:
        """Return the live ids in order of insertion."""
        with self.errors():
            found = self.connection.execute("SELECT id FROM passages WHERE removed IS NULL ORDER BY row")
            return [id for (id,) in found]

    def source_sizes(self) -> dict[str, int]:
        """Return {source: number of live passages}."""
        with self.errors():
            found = self.connection.execute(
                "SELECT source, count(*) FROM passages WHERE removed IS NULL AND source IS NOT NULL GROUP BY source"
            )
            return dict(found.fetchall())

    def sources(self) -> dict[str, str]:
        """Return {source: digest of the file it was read from} of indexed files."""
        with self.errors():
            return dict(self.connection.execute("SELECT source, digest FROM sources"))

    def commit(
        self,
        records: Sequence[Record],
        removed: Mapping[int, bytes],
        *,
        sources: Mapping[str, str | None] | None = None,
        segments: tuple[Iterable[SegmentRecord], Iterable[str]] = ((), ()),
        purge: bool = False,
        dim: int = 0,
    ) -> State:
        """Commit a change: the one moment at which anything happens.

        Args:
            records: new passages; they get the rows from ``state.next_row`` on.
            removed: {row: hash} of rows that go.
            sources: digests of files to remember, None to forget.
            segments: records that come and names that go.
            purge: drop removed rows for good.
            dim: length of the vectors, once it is known.
        """
        with self.errors():
            connection = self.connection
            self._local.known = None  # a connection's own commits do not change its data_version
            connection.execute("BEGIN IMMEDIATE")
            try:
                before = self.state()
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
                self._local.known = None
                return after
            except BaseException:
                self._local.known = None
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _many(self, select: str, values: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        with self.errors():
            for start in range(0, len(values), _CHUNK):
                part = list(values[start : start + _CHUNK])
                found += self.connection.execute(f"{select} ({','.join('?' * len(part))})", part).fetchall()
        return found

    def _decode(self, id: str, text: str, metadata: str, digest: bytes) -> Passage:
        try:
            intact = content_hash(id, text, metadata) == digest
        except (AttributeError, UnicodeError):
            intact = False
        if not intact:
            raise StoreError(f"{self.path}: passage {id!r} was changed on disk; index its document again")
        return Passage(id, text, metadata=json.loads(metadata))
