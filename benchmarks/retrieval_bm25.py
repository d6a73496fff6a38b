"""BM25 engines at two sizes: build, search, add, delete. Why the knowledge base uses tantivy.

    python benchmarks/retrieval_bm25.py [--sizes 100000 1000000] [--queries 200] [--json FILE]

Passages are drawn word by word from the word frequencies of the public passages (about 59 words each, seed 0); the
questions are real ones. Reads ``nq_retrieval.json.gz`` from RAGFT_BENCH_DATA (default ../shared/bench). bm25s is
measured where it is installed (``pip install bm25s``). One thread.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import re
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tantivy

from ragft_plugin.retrieval.bm25 import Lexicon, analyzer, schema

K = 10
WORD = re.compile(r"[a-z0-9]+")


class Engine(Protocol):
    """What is measured."""

    def build(self, texts: Sequence[str]) -> None:
        """Index texts as rows 0, 1, ..."""

    def search(self, question: str) -> list[int]:
        """Return the best rows."""

    def add(self, first: int, texts: Sequence[str]) -> None:
        """Add texts as rows ``first``, ..., lasting and visible."""

    def delete(self, rows: Sequence[int]) -> None:
        """Delete rows, lasting and visible."""


class Tantivy:
    """As the knowledge base uses it."""

    def __init__(self, folder: Path) -> None:
        self._schema, self._analyzer = schema(), analyzer("english")
        self._index = tantivy.Index(self._schema, path=str(folder))
        self._index.register_tokenizer("ragft", self._analyzer)
        self._writer = self._index.writer(heap_size=64_000_000, num_threads=1)

    def build(self, texts: Sequence[str]) -> None:
        """Index all."""
        self.add(0, texts)

    def search(self, question: str) -> list[int]:
        """Return rows."""
        return self._lexicon.search(question, K)[1].tolist()

    def add(self, first: int, texts: Sequence[str]) -> None:
        """Add and commit."""
        for row, text in enumerate(texts, start=first):
            self._writer.add_document(tantivy.Document.from_dict({"text": text, "row": row}, self._schema))
        self._commit()

    def delete(self, rows: Sequence[int]) -> None:
        """Delete and commit."""
        self._writer.delete_documents_by_query(tantivy.Query.term_set_query(self._schema, "row", list(rows)))
        self._commit()

    def _commit(self) -> None:
        self._writer.commit()
        self._index.reload()
        self._lexicon = Lexicon(self._index.searcher(), self._schema, self._analyzer)


class Fts5:
    """SQLite's full-text search, without a copy of the texts; any word of the question may match."""

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(folder / "fts.db")
        self._database.execute("CREATE VIRTUAL TABLE f USING fts5(text, tokenize='porter unicode61')")

    def build(self, texts: Sequence[str]) -> None:
        """Index all."""
        self.add(0, texts)
        with self._database:
            self._database.execute("INSERT INTO f(f) VALUES('optimize')")

    def search(self, question: str) -> list[int]:
        """Return rows."""
        words = " OR ".join(f'"{word}"' for word in dict.fromkeys(WORD.findall(question.lower())))
        found = self._database.execute("SELECT rowid FROM f WHERE f MATCH ? ORDER BY rank LIMIT ?", (words, K))
        return [row for (row,) in found]

    def add(self, first: int, texts: Sequence[str]) -> None:
        """Add and commit."""
        with self._database:
            self._database.executemany("INSERT INTO f(rowid, text) VALUES(?,?)", enumerate(texts, start=first))

    def delete(self, rows: Sequence[int]) -> None:
        """Delete and commit."""
        with self._database:
            self._database.executemany("DELETE FROM f WHERE rowid=?", [(row,) for row in rows])


class Bm25s:
    """bm25s; it can neither add nor delete."""

    def __init__(self, folder: Path) -> None:
        import bm25s

        self._bm25s, self._index = bm25s, bm25s.BM25()

    def _tokens(self, texts: list[str]) -> Any:
        return self._bm25s.tokenize(texts, stopwords="en", show_progress=False)

    def build(self, texts: Sequence[str]) -> None:
        """Index all."""
        self._index.index(self._tokens(list(texts)), show_progress=False)

    def search(self, question: str) -> list[int]:
        """Return rows."""
        found, _ = self._index.retrieve(self._tokens([question]), k=K, show_progress=False)
        return found[0].tolist()

    def add(self, first: int, texts: Sequence[str]) -> None:
        """Not possible."""
        raise NotImplementedError

    def delete(self, rows: Sequence[int]) -> None:
        """Not possible."""
        raise NotImplementedError


ENGINES: dict[str, Callable[[Path], Engine]] = {"tantivy": Tantivy, "bm25s": Bm25s, "fts5": Fts5}


def drawn(count: int, frequencies: Counter[str]) -> Iterator[str]:
    """Yield texts of about 59 words."""
    draw = np.random.default_rng(0)
    words = np.array(list(frequencies))
    chances = np.array([frequencies[word] for word in words], float)
    for start in range(0, count, 10_000):
        lengths = draw.poisson(59, min(10_000, count - start))
        parts = np.split(draw.choice(words, lengths.sum(), p=chances / chances.sum()), np.cumsum(lengths)[:-1])
        yield from (" ".join(part) for part in parts)


def timed(run: Callable[[], Any]) -> float | None:
    """Return milliseconds, None where it is not possible."""
    started = time.perf_counter()
    try:
        run()
    except NotImplementedError:
        return None
    return 1e3 * (time.perf_counter() - started)


def measure(name: str, texts: list[str], more: list[str], questions: list[str]) -> dict[str, Any]:
    """Build one engine and search, add one passage and a hundred, delete them."""
    with tempfile.TemporaryDirectory() as folder:
        engine = ENGINES[name](Path(folder))
        seconds = (timed(lambda: engine.build(texts)) or 0) / 1e3
        engine.search(questions[0])
        taken = []
        deadline = time.monotonic() + 60
        for question in questions:
            taken.append(timed(lambda question=question: engine.search(question)))
            if time.monotonic() > deadline:
                break
        n = len(texts)
        marked = [f"zyxwvut {text}" for text in more]
        result: dict[str, Any] = {
            "passages": n,
            "build s": seconds,
            "queries": len(taken),
            "p50 ms": float(np.quantile(taken, 0.5)),
            "p95 ms": float(np.quantile(taken, 0.95)),
            "add 1 ms": timed(lambda: engine.add(n, marked[:1])),
            "add 100 ms": timed(lambda: engine.add(n + 1, marked[1:101])),
        }
        if result["add 1 ms"] is not None:
            assert set(engine.search("zyxwvut")) <= set(range(n, n + 101)), "what was added is not found"
        result["delete 101 ms"] = timed(lambda: engine.delete(range(n, n + 101)))
        if result["delete 101 ms"] is not None:
            assert engine.search("zyxwvut") == [], "what was deleted is found"
        return result


def main() -> None:
    """Measure every engine at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    path = Path(os.environ.get("RAGFT_BENCH_DATA", "../shared/bench")) / "nq_retrieval.json.gz"
    if not path.exists():
        sys.exit(f"{path} is not there; set RAGFT_BENCH_DATA")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        data = json.load(file)
    frequencies = Counter(word for text in data["docs"].values() for word in WORD.findall(text.lower()))
    questions = [query["question"] for query in data["queries"]][: options.queries]
    results: dict[str, list[dict[str, Any]]] = {}
    for size in options.sizes:
        texts = list(drawn(size + 101, frequencies))
        for name in ENGINES:
            if name == "bm25s" and importlib.util.find_spec("bm25s") is None:
                print("bm25s is not installed; left out")
                continue
            row = measure(name, texts[:size], texts[size:], questions)
            results.setdefault(name, []).append(row)
            print(name, json.dumps(row), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
