"""Audit: is the database what was committed?

SQLite notices some damage while it reads; a flipped bit in one of its indexes it does not, and a passage would be
missing without a word. Its own ``integrity_check`` compares every index with its table, about a second for a million
passages: a small database is checked before it is used, a large one by a thread from then on. That its tables are ours
is looked at first, in any case.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

from ragft_plugin.errors import StoreError
from ragft_plugin.retrieval.catalogue import SCHEMA, SEGMENT_COLUMNS, Catalogue
from ragft_plugin.retrieval.integrity import Check, Stopped
from ragft_plugin.retrieval.records import SegmentRecord, State, content_hash

LARGE = 32 * 2**20  # bytes; about a tenth of a second to check


# A stranger's database could bring triggers and views of its own, a flipped bit another type of column.
EXPECTED = {statement.strip() for statement in SCHEMA.split(";")} - {""}


def check_tables(catalogue: Catalogue) -> None:
    """Refuse a database with other tables than ours, before anything is asked of it that could run what they bring.

    Raises:
        StoreError: naming the file.
    """
    with catalogue.errors() as held:
        found = {sql for (sql,) in held.connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
    if found != EXPECTED:
        raise StoreError(_told(catalogue, "its tables are not those of a knowledge base"))


def check_database(catalogue: Catalogue) -> Check | None:
    """Check SQLite's own structures now, or start to; the check in progress is returned.

    Raises:
        StoreError: naming the file.
    """

    def find(stopped: Stopped) -> str | None:
        try:
            with closing(catalogue.connect()) as connection:
                connection.set_progress_handler(stopped, 100_000)
                lines = [line for (line,) in connection.execute("PRAGMA integrity_check(3)") if line != "ok"]
        except sqlite3.Error as error:
            lines = [] if stopped() else [str(error)]
        return _told(catalogue, "; ".join(lines)) if lines else None

    check = Check(catalogue.path.name, find)
    if catalogue.path.stat().st_size < LARGE:
        check.finish()
        return None
    check.start()
    return check


def _told(catalogue: Catalogue, problem: str) -> str:
    return f"{catalogue.path} is damaged: {problem}. Restore it from a copy or index the documents again"


def audit(catalogue: Catalogue) -> tuple[list[str], list[SegmentRecord], list[int]]:
    """Look through the whole database, at one commit: SQLite's own check, every hash, the count and the digest.

    Returns:
        what is wrong, the segments that the database names, and its rows in order, removed ones too.
    """
    problems: list[str] = []
    rows: list[int] = []
    segments: list[SegmentRecord] = []
    try:
        with closing(catalogue.connect()) as connection:
            connection.execute("BEGIN")
            problems += [line for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"]
            segments += [SegmentRecord(*row) for row in connection.execute(f"SELECT {SEGMENT_COLUMNS} FROM segments")]
            [(text,)] = connection.execute("SELECT value FROM meta WHERE key='state'")
            problems += _contents(connection, State(**json.loads(text)))
            rows += [row for (row,) in connection.execute("SELECT row FROM passages ORDER BY row")]
    except (sqlite3.Error, ValueError, TypeError) as error:
        problems.append(str(error))
    return [f"{catalogue.path}: {problem}" for problem in problems], segments, rows


def _contents(connection: sqlite3.Connection, state: State) -> list[str]:
    found: list[str] = []
    total = live = 0
    for id, text, metadata, digest, removed in connection.execute(
        "SELECT id, text, metadata, hash, removed FROM passages"
    ):
        try:
            intact = content_hash(id, text, metadata) == digest
        except (AttributeError, UnicodeError):
            intact = False
        if not intact:
            found.append(f"passage {id!r} was changed on disk")
        elif removed is None:
            live += 1
            total += int.from_bytes(digest, "little")
    if live != state.live or total % (1 << 128) != int(state.digest, 16):
        found.append(f"{live} passages do not add up to the {state.live} of the last commit")
    return found
