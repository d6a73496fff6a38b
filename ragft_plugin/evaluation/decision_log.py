"""Decision log: what was decided, with which probabilities, and what it turned out to be worth.

It is a database, because several processes write and rewards come late: SQLite in WAL mode unless another
SQLAlchemy URL is given (PostgreSQL when several machines write). A row is there once ``append`` has returned, also
if the process is killed next. It holds hashes and ids; texts only if asked for.
"""

from __future__ import annotations

import os
import threading
import time as clock
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from hashlib import blake2b
from typing import Any, Self

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from ragft_plugin.errors import DataError, StoreError
from ragft_plugin.evaluation.decision_database import open_engine, prepare, reason
from ragft_plugin.evaluation.decision_rows import (
    DECISIONS,
    REWARDS,
    LoggedDecision,
    from_record,
    to_record,
)
from ragft_plugin.evaluation.outcome import normalized_query
from ragft_plugin.evaluation.outcomes import Outcomes, join_rewards
from ragft_plugin.types import Decision, Evidence

BATCH = 500  # ids per SQL statement: below every database's limit on parameters


class DecisionLog:
    """Decisions and their rewards, in a database.

    Safe to use from many threads and processes. After a fork each process opens connections of its own.

    Args:
        url: path of an SQLite file, or an SQLAlchemy URL such as "postgresql+psycopg://host/db".
        texts: store queries, passages and drafts too. Learning from the log needs them; without them one can
            still estimate what another policy would have earned.
        hash_key: secret that makes hashes of short queries useless to those without it.
        durable: SQLite only: wait for the disk at every commit, so that a power cut loses no row either.

    Raises:
        StoreError: if the database cannot be opened, or was written by a newer version.

    Example:
        >>> log = DecisionLog("sqlite://")
        >>> d = Decision("d1", "rag", {"rag": 0.9, "base": 0.1})
        >>> log.append(d, query="Who?", cost=1.0)
        >>> log.attach_rewards({"d1": 1.0})
        >>> log.outcomes(require_texts=False).reward.tolist()
        [[1.0, nan]]
    """

    def __init__(
        self, url: str | os.PathLike[str], *, texts: bool = False, hash_key: bytes = b"", durable: bool = False
    ) -> None:
        self.texts = texts
        self._hash_key = hash_key[:64]
        self._pid = os.getpid()
        self._engine = open_engine(os.fspath(url), durable)
        self._lock = threading.Lock()
        try:
            with self._connection(write=True) as connection:
                prepare(connection, self._name)
        except IntegrityError:  # another process made the tables at the same moment; look again
            with self._connection(write=True) as connection:
                prepare(connection, self._name)

    def append(
        self,
        decision: Decision,
        *,
        query: str,
        cost: float,
        passage_ids: Sequence[str] = (),
        evidence: Evidence | None = None,
        arm_costs: Mapping[str, float] | None = None,
        shadow_of: str | None = None,
        time: float | None = None,
    ) -> None:
        """Record one decision.

        Args:
            decision: with the propensities of all arms.
            query: its text; only a hash of it is kept unless the log was opened with ``texts``.
            cost: what the query cost in all, in the user's unit.
            passage_ids: passages that were retrieved.
            evidence: what the decision was made on; kept only with ``texts``.
            arm_costs: price of every arm. Then the cost of an outcome is that of the arm alone and the stages
                stand beside it; without it, it is ``cost``.
            shadow_of: id of the live decision beside which this one was made without being carried out.
            time: seconds since 1970, None for now.

        Raises:
            DataError: if the id is already there, or a value is not a number.
            StoreError: if the database fails.
        """
        row = LoggedDecision.of(
            decision,
            time=clock.time() if time is None else time,
            query_hash=self.hash(query),
            query=query.encode("utf-8", "replace").decode() if self.texts else None,
            cost=cost,
            passage_ids=tuple(passage_ids),
            evidence=evidence if self.texts else None,
            arm_costs=arm_costs,
            shadow_of=shadow_of,
        )
        self.extend([row])

    def extend(self, rows: Iterable[LoggedDecision]) -> None:
        """Record many decisions at once; all of them or, on an error, none."""
        records = [to_record(row) for row in rows]
        if not records:
            return
        try:
            with self._connection(write=True) as connection:
                connection.execute(DECISIONS.insert(), records)
        except IntegrityError as error:
            first = ", ".join(str(record["id"]) for record in records[:3])
            raise DataError(f"a decision with one of these ids was logged before: {first}") from error

    def attach_rewards(self, rewards: Mapping[str, float]) -> None:
        """Record the rewards of decisions, whenever they come; a later reward replaces an earlier one.

        Args:
            rewards: decision id -> reward in [0, 1].

        Raises:
            DataError: for an unknown decision or a reward outside [0, 1]; then nothing is recorded.
        """
        for id, reward in rewards.items():
            if not 0.0 <= reward <= 1.0:
                raise DataError(f"reward must be in [0, 1]; that of decision {id!r} is {reward}")
        unknown = set(rewards) - self._known(DECISIONS.c.id, list(rewards))
        if unknown:
            raise DataError(f"{len(unknown)} rewards are of unknown decisions, first {min(unknown)!r}")
        now = clock.time()
        records = [{"decision_id": id, "reward": float(r), "time": now} for id, r in rewards.items()]
        try:
            self._replace_rewards(records)
        except IntegrityError:  # another writer came in between; ours is the later one
            self._replace_rewards(records)

    def decisions(
        self, *, since: float | None = None, until: float | None = None, shadow: bool = False
    ) -> Iterator[LoggedDecision]:
        """Decisions in the order they were written, with their rewards where these have come.

        Args:
            since: not before this time, seconds since 1970.
            until: before this time.
            shadow: decisions made in shadow instead of the live ones.
        """
        query = sql.select(DECISIONS, REWARDS.c.reward).select_from(
            DECISIONS.outerjoin(REWARDS, REWARDS.c.decision_id == DECISIONS.c.id)
        )
        query = query.where(DECISIONS.c.shadow_of.is_not(None) if shadow else DECISIONS.c.shadow_of.is_(None))
        if since is not None:
            query = query.where(DECISIONS.c.time >= since)
        if until is not None:
            query = query.where(DECISIONS.c.time < until)
        last = 0
        # Page by page: a reader that stops half-way holds no transaction open.
        while True:
            page = query.where(DECISIONS.c.ordinal > last).order_by(DECISIONS.c.ordinal).limit(BATCH)
            with self._connection() as connection:
                records = connection.execute(page).mappings().all()
            for record in records:
                yield from_record(record)
            if len(records) < BATCH:
                return
            last = records[-1]["ordinal"]

    def outcomes(
        self, *, since: float | None = None, until: float | None = None, require_texts: bool = True
    ) -> Outcomes:
        """The decisions whose reward has come, as a log to learn from (partial feedback).

        Args:
            since: as in ``decisions``.
            until: likewise.
            require_texts: refuse rows without the query's text. Without it the hash stands in its place: equal
                queries still fall on one side of a split, but nothing can be learnt from words.

        Raises:
            DataError: if there are none, or if texts are missing.
        """
        rows = [row for row in self.decisions(since=since, until=until) if row.reward is not None]
        if not rows:
            raise DataError(f"{self._name} holds no decision with a reward; attach some with attach_rewards")
        if require_texts and any(row.query is None for row in rows):
            raise DataError(
                f"{self._name} holds hashes of queries, not their texts; open it with texts=True to learn from it"
            )
        rewards = {row.id: row.reward for row in rows if row.reward is not None}
        return Outcomes.from_rows(join_rewards((row.outcome_fields() for row in rows), rewards))

    def prune(self, before: float) -> int:
        """Delete decisions older than ``before`` (seconds since 1970) and their rewards; returns how many."""
        old = sql.select(DECISIONS.c.id).where(DECISIONS.c.time < before)
        with self._connection(write=True) as connection:
            connection.execute(REWARDS.delete().where(REWARDS.c.decision_id.in_(old)))
            return int(connection.execute(DECISIONS.delete().where(DECISIONS.c.time < before)).rowcount)

    def hash(self, query: str) -> str:
        """The hash under which a query is logged; equal for texts that count as the same query."""
        return blake2b(
            normalized_query(query).encode("utf-8", "replace"), digest_size=16, key=self._hash_key
        ).hexdigest()

    def __len__(self) -> int:
        with self._connection() as connection:
            return int(connection.execute(sql.select(sql.func.count()).select_from(DECISIONS)).scalar_one())

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _name(self) -> str:
        return self._engine.url.render_as_string(hide_password=True)

    @contextmanager
    def _connection(self, write: bool = False) -> Iterator[sql.Connection]:
        """One transaction, committed at the end."""
        if os.getpid() != self._pid:
            # Connections and locks must not cross a fork: this process leaves those of its parent alone.
            self._engine.dispose(close=False)
            self._lock = threading.Lock()
            self._pid = os.getpid()
        # SQLite has one writer at a time; waiting here is cheaper than its busy loop. In memory there is one
        # connection for all threads, so that even readers take turns.
        alone = isinstance(self._engine.pool, StaticPool)
        turn = self._lock if alone or (write and self._engine.dialect.name == "sqlite") else nullcontext()
        try:
            with turn, self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise StoreError(f"decision log {self._name}: {reason(error)}") from error

    def _replace_rewards(self, records: list[dict[str, Any]]) -> None:
        with self._connection(write=True) as connection:
            for start in range(0, len(records), BATCH):
                batch = records[start : start + BATCH]
                ids = [record["decision_id"] for record in batch]
                connection.execute(REWARDS.delete().where(REWARDS.c.decision_id.in_(ids)))
                connection.execute(REWARDS.insert(), batch)

    def _known(self, column: sql.Column[Any], values: Sequence[str]) -> set[str]:
        found: set[str] = set()
        with self._connection() as connection:
            for start in range(0, len(values), BATCH):
                part = values[start : start + BATCH]
                found.update(connection.execute(sql.select(column).where(column.in_(part))).scalars())
        return found
