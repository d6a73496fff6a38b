"""Connections: one to the catalogue's database for every thread that asks, closed when it ends or the catalogue does.

SQLite ends the process if a connection is closed while another thread steps through it, and forbids to use or close
in a forked child what its parent has opened. So a connection has a lock, held while it is used, and knows its process.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from ragft_plugin.errors import StoreError
from ragft_plugin.retrieval.records import State

_PATIENCE = 0.5  # seconds for a writer that opens or closes: between its files there is a moment without shared memory
_PROBE = "SELECT 1 FROM sqlite_master LIMIT 1"  # reads the file, and runs nothing that a stranger has put into it
_inherited: list[sqlite3.Connection] = []  # of a parent process: kept, since to drop one would close it

Seen = tuple[int, ...]  # inode, mtime in ns and size of the database, and whether committed pages lie in its WAL
_Entry = tuple[sqlite3.Connection, threading.RLock, int]


@dataclass(slots=True, weakref_slot=True, eq=False)
class Held:
    """The connection of a thread.

    Attributes:
        connection: to be used while ``using`` is held.
        path: of the database.
        seen: the files when they were opened as ones that nobody writes; None where SQLite's locks are in force.
        using: keeps ``close`` away.
        pid: of the process that has opened it.
        known: SQLite's ``data_version`` and the state that was read at it.
    """

    connection: sqlite3.Connection
    path: Path
    seen: Seen | None
    using: threading.RLock = field(default_factory=threading.RLock)
    pid: int = field(default_factory=os.getpid)
    known: tuple[int, State] | None = None

    def outdated(self) -> bool:
        """Say whether somebody has written although nobody could: what was read may be a mixture, and stays one."""
        return self.seen is not None and self.seen != _look(self.path)


class Connections:
    """The connections of a database, made when they are needed.

    Args:
        path: the database file.
        read_only: never write, not even SQLite's own side files where the directory does not allow it.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.closed = False
        self._path = path
        self._read_only = read_only
        self._name = f"file:{quote(os.fsencode(path.resolve()))}"
        self._local = threading.local()
        self._open: dict[int, _Entry] = {}  # its operations are atomic, no lock is left behind by a fork

    def mine(self) -> Held:
        """Return the connection of this thread.

        Raises:
            StoreError: closed.
            sqlite3.Error: it cannot be opened.
        """
        held: Held | None = getattr(self._local, "held", None)
        if held is not None and held.pid == os.getpid() and not self.closed and not held.outdated():
            return held
        self._refuse_if_closed()
        held = Held(*self._connect())
        key = id(held.connection)
        self._open[key] = (held.connection, held.using, held.pid)
        # Nothing but the thread keeps ``held``, so it ends with the thread. Not at exit: daemons may still be reading.
        weakref.finalize(held, _let_go, self._open, key).atexit = False
        if self.closed:  # meanwhile: ``close`` may have missed it
            _let_go(self._open, key)
        self._refuse_if_closed()
        self._local.held = held
        return held

    def connect(self) -> sqlite3.Connection:
        """Return a connection of the caller's own, who closes it.

        Raises:
            sqlite3.Error: it cannot be opened.
        """
        return self._connect()[0]

    def close(self) -> None:
        """Close the connection of every thread, once what it is just asked is answered."""
        self.closed = True
        for key in list(self._open):
            _let_go(self._open, key)

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise StoreError(f"the knowledge base {self._path.parent} is closed; open it again")

    def _connect(self) -> tuple[sqlite3.Connection, Path, Seen | None]:
        if not self._read_only:
            return self._opened("mode=rw", "PRAGMA synchronous=FULL"), self._path, None
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._opened("mode=ro", _PROBE), self._path, None
            except sqlite3.OperationalError:
                # A directory that may not be written cannot hold the shared memory of a WAL. As long as nobody writes
                # there, the file may be read as it is - unless a WAL with committed pages lies beside it.
                *_, wal = seen = _look(self._path)
                if not wal:
                    return self._opened("mode=ro&immutable=1", _PROBE), self._path, seen
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.01)

    def _opened(self, options: str, first: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._name}?{options}", uri=True, isolation_level=None, check_same_thread=False, timeout=30
        )
        try:
            connection.execute("PRAGMA trusted_schema=OFF")  # a stranger's triggers and views call no functions
            connection.execute(first).fetchall()
        except BaseException:
            connection.close()
            raise
        return connection


def _let_go(entries: dict[int, _Entry], key: int) -> None:
    """Close a connection, at most once."""
    entry = entries.pop(key, None)
    if entry is None:
        return
    connection, using, pid = entry
    if pid != os.getpid():
        _inherited.append(connection)
        return
    with using:
        connection.close()


def _look(path: Path) -> Seen:
    try:
        about = path.stat()
    except OSError:
        return (0, 0, 0, 0)  # opening it will say what is wrong
    try:
        wal = Path(f"{path}-wal").stat().st_size
    except OSError:
        wal = 0
    return about.st_ino, about.st_mtime_ns, about.st_size, int(wal > 0)
