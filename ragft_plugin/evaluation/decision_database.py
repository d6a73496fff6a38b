"""The decision log's database: connections and tables, whatever the dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from ragft_plugin.errors import StoreError
from ragft_plugin.evaluation.decision_rows import META, SCHEMA_VERSION, TABLES


def open_engine(url: str, durable: bool) -> sql.Engine:
    """Connections to a database, made when they are needed; a path is that of an SQLite file."""
    if "://" not in url:
        Path(url).absolute().parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{Path(url).absolute()}"
    try:
        parsed = sql.make_url(url)
    except SQLAlchemyError:
        raise StoreError("the URL of the decision log cannot be parsed; expected a path or dialect://...") from None
    if parsed.get_backend_name() != "sqlite":
        try:
            return sql.create_engine(parsed, pool_pre_ping=True)
        except (SQLAlchemyError, ImportError) as error:
            raise StoreError(f"decision log {parsed.render_as_string()}: {reason(error)}") from error
    arguments = {"timeout": 30, "check_same_thread": False}
    if parsed.database in (None, "", ":memory:"):
        return sql.create_engine(parsed, connect_args=arguments, poolclass=StaticPool)
    engine = sql.create_engine(parsed, connect_args=arguments)

    @sql.event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        # NORMAL survives the death of the process; FULL survives that of the machine.
        cursor.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        cursor.close()

    return engine


def prepare(connection: sql.Connection, name: str) -> None:
    """Make the tables, unless another process just did, and check their version."""
    for table in TABLES.sorted_tables:
        connection.execute(sql.schema.CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            connection.execute(sql.schema.CreateIndex(index, if_not_exists=True))
    version = connection.execute(sql.select(META.c.value).where(META.c.key == "version")).scalar()
    if version is None:
        connection.execute(META.insert().values(key="version", value=str(SCHEMA_VERSION)))
    elif version != str(SCHEMA_VERSION):
        raise StoreError(
            f"decision log {name} has version {version}, expected {SCHEMA_VERSION}; it was written by another "
            "version of ragft-plugin"
        )


def reason(error: Exception) -> str:
    """First line of what the driver said."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]
