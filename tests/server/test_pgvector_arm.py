"""A real PostgreSQL with pgvector as the retrieval arm: started here, filled through LangChain, stopped at the end.

Run with ``pip install -r requirements-server.txt`` and ``pytest -m server tests/server``.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ragft_plugin.retrieval import HashingEncoder, Reranked
from ragft_plugin.retrieval.filters import matches
from ragft_plugin.types import Filter, Generation, Passage, Prompt, Retriever

pytestmark = [
    pytest.mark.server,
    # Not ours: pgserver asks for a runtime directory, drivers leave connections to the end of the process.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SITES = "Avel Brin Corda Delo Esk Fars Glask Hult Irm Jorn Kelk Lume Mord Nask Oste Plom Quar Rend Stel Torm".split()
ROWS = [
    {"id": f"site-{i}", "text": f"The plant of {name} makes part {i * 7 % 90 + 10}.", "year": 1990 + i, "team": i % 3}
    for i, name in enumerate(SITES)
]


class Reader:
    """A generator that says what it has read."""

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        return [Generation(p.passages[0].text if p.passages else "nothing") for p in prompts]

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        yield self.generate([prompt])[0].text


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    pgserver = pytest.importorskip("pgserver", reason="needs requirements-server.txt")
    # Sockets have short paths, and the server's own user must be able to enter: not pytest's folder.
    with tempfile.TemporaryDirectory(prefix="pg-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            started.psql("CREATE EXTENSION vector")
            yield started
        finally:
            started.cleanup()


@pytest.fixture(scope="module")
def store(server: Any) -> Iterator[Any]:
    postgres = pytest.importorskip("langchain_postgres", reason="needs requirements-server.txt")
    from ragft_plugin.langchain import EncoderEmbeddings

    encoder = HashingEncoder(256)
    engine = postgres.PGEngine.from_connection_string(server.get_uri().replace("postgresql:", "postgresql+psycopg:"))
    columns = [postgres.Column("year", "INTEGER"), postgres.Column("team", "INTEGER")]
    engine.init_vectorstore_table(
        "sites", encoder.dim, metadata_columns=columns, id_column=postgres.Column("id", "TEXT")
    )
    made = postgres.PGVectorStore.create_sync(
        engine, EncoderEmbeddings(encoder), "sites", metadata_columns=["year", "team"], id_column="id"
    )
    made.add_texts(
        [row["text"] for row in ROWS],
        [{"year": row["year"], "team": row["team"]} for row in ROWS],
        ids=[row["id"] for row in ROWS],
    )
    yield made
    import asyncio

    asyncio.run_coroutine_threadsafe(engine._pool.dispose(), engine._loop).result(10)


class PgVectorRetriever:
    """The same table without any framework: the whole protocol in one method."""

    def __init__(self, uri: str, encoder: HashingEncoder) -> None:
        self._uri, self._encoder = uri, encoder

    def retrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        import psycopg

        # Equality only, each key a column; what this adapter cannot say, it must refuse.
        assert all(key in ("year", "team") and isinstance(value, int) for key, value in (filter or {}).items())
        where = " AND ".join(f"{key} = %({key})s" for key in filter or {}) or "TRUE"
        ask = (
            f"SELECT id, content, 1 - (embedding <=> %(vector)s::vector), year, team FROM sites WHERE {where} "
            "ORDER BY embedding <=> %(vector)s::vector LIMIT %(k)s"
        )
        found = []
        with psycopg.connect(self._uri) as connection:
            for vector in self._encoder.encode(queries):
                rows = connection.execute(ask, {**(filter or {}), "vector": str(vector.tolist()), "k": k}).fetchall()
                found.append([Passage(id, text, score, {"year": y, "team": t}) for id, text, score, y, t in rows])
        return found


def exact(query: str, k: int, filter: Filter | None = None) -> list[tuple[str, float]]:
    """What a search must find, computed from the rows themselves."""
    encoder = HashingEncoder(256)
    rows = [row for row in ROWS if not filter or matches(filter, {"year": row["year"], "team": row["team"]})]
    scores = encoder.encode([str(row["text"]) for row in rows]) @ encoder.encode([query])[0]
    ranked = sorted(zip(rows, scores, strict=True), key=lambda pair: -pair[1])[:k]
    return [(str(row["id"]), float(score)) for row, score in ranked]


FILTERS: list[Filter | None] = [
    None,
    {"team": 1},
    {"year": {"$gte": 2003}, "team": 2},
    {"$or": [{"year": {"$lt": 1992}}, {"team": {"$in": [0]}}]},
]


@pytest.mark.parametrize("filter", FILTERS)
def test_the_arm_reads_what_an_exact_search_of_the_permitted_rows_finds(store: Any, filter: Filter | None) -> None:
    from ragft_plugin.langchain import pipeline_from

    pipeline = pipeline_from(models=Reader(), retriever=store, k=4)
    for name in ("Glask", "Torm"):
        query = f"Which part does the plant of {name} make?"
        answer = pipeline.answer(query, arm="rag", scope=filter)
        want = exact(query, 4, filter)
        assert [p.id for p in answer.passages] == [id for id, _ in want]
        assert [p.score for p in answer.passages] == pytest.approx([score for _, score in want], abs=1e-4)
        assert answer.text == answer.passages[0].text
        assert not filter or all(matches(filter, p.metadata) for p in answer.passages)


async def test_waiting_for_the_server_gives_the_same_and_several_questions_go_together(store: Any) -> None:
    from ragft_plugin.langchain import from_retriever

    found = from_retriever(store)
    queries = [f"The plant of {name}" for name in SITES[:5]]
    waited = await found.aretrieve(queries, 3, {"team": {"$ne": 1}})  # type: ignore[attr-defined]
    assert waited == found.retrieve(queries, 3, {"team": {"$ne": 1}})
    assert [[p.id for p in one] for one in waited] == [
        [id for id, _ in exact(query, 3, {"team": {"$ne": 1}})] for query in queries
    ]


def test_a_plain_adapter_is_an_arm_as_well_and_can_be_reranked(store: Any, server: Any) -> None:
    plain = PgVectorRetriever(server.get_uri(), HashingEncoder(256))
    assert isinstance(plain, Retriever)
    query = "Which part does the plant of Lume make?"
    [found] = plain.retrieve([query], 3, {"team": 2})
    assert [(p.id, p.score) for p in found] == [
        (id, pytest.approx(score, abs=1e-4)) for id, score in exact(query, 3, {"team": 2})
    ]
    newest = Reranked(plain, lambda question, passages: [p.metadata["year"] for p in passages], candidates=20)
    assert [p.metadata["year"] for p in newest.retrieve([query], 2, {"team": 2})[0]] == [2007, 2004]
