"""BM25 over the rows of the catalogue, by tantivy: derived, incremental, and rebuilt whenever in doubt.

The index may only be behind the catalogue, never ahead. ``bm25.json`` beside it tells a version at which it surely
was complete and the stamp of tantivy's commit; catching up deletes and adds rows by number, which may be repeated
without harm. So a process may die between the two commits at any point.

    score(q, d) = sum over terms t of q:  qtf(t) * ln(1 + (N - n_t + .5) / (n_t + .5))
                  * tf * (k1 + 1) / (tf + k1 * (1 - b + b * |d| / avgdl)),   k1 = 1.2, b = .75

tantivy keeps |d| in one byte (about 6 % steps) and counts deleted passages in N and n_t until it merges them away.

Source: Robertson & Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tantivy
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError, StoreError
from ragft_plugin.retrieval.catalogue import Catalogue, State

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]
MAX_TERMS = 256  # of a query; a question of 100 kB costs no more than one of 256 different words
_TERM_SET = 4096  # up to so many allowed rows become a query of their own
_FOLDER = re.compile(r"bm25-[0-9a-f]{8}")
_HEAP = 32_000_000
_PARTS = ("fast", "fieldnorm", "idx", "pos", "store", "term")  # every segment of tantivy has these files
_MAGIC = 1337  # ends every file of tantivy, before it the length of a JSON footer with the CRC-32 of the rest


@dataclass(frozen=True, slots=True)
class Stamp:
    """What ``bm25.json`` tells: folder, a version that is surely in it, the row after it, tantivy's commit."""

    folder: str
    version: int
    next_row: int
    opstamp: int


def analyzer(language: str) -> Any:
    """Return the tokenizer: words, lower case, stemmed; words over 40 characters are left out."""
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    builder = builder.filter(tantivy.Filter.remove_long(40)).filter(tantivy.Filter.lowercase())
    if language:
        try:
            builder = builder.filter(tantivy.Filter.stemmer(language))
        except ValueError as error:
            raise ConfigError(
                f"no stemmer for the language {language!r}; give one like 'english' or 'german', or '' for none"
            ) from error
    return builder.build()


def _schema() -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", stored=False, tokenizer_name="ragft", index_option="freq")
    builder.add_unsigned_field("row", stored=False, indexed=True, fast=True)
    return builder.build()


class Lexicon:
    """A pinned state of the index: what is committed later does not change it.

    Args:
        searcher: tantivy's.
        schema: of the index.
        analyzer: as for the documents.
        size: number of passages in it.
    """

    def __init__(self, searcher: Any, schema: Any, analyzer: Any) -> None:
        self._searcher, self._schema, self._analyzer = searcher, schema, analyzer

    def search(self, query: str, k: int, allowed: Rows | None = None) -> tuple[Scores, Rows]:
        """Return scores and rows of the best passages that share a word with the query, best first.

        Args:
            query: free text; no syntax.
            k: at most this many.
            allowed: rows that may be returned, sorted; None for all.
        """
        counts = Counter(self._analyzer.analyze(query))
        if not counts or k == 0 or (allowed is not None and not len(allowed)):
            return np.empty(0), np.empty(0, np.int64)
        clauses = [(tantivy.Occur.Should, self._term(term, count)) for term, count in list(counts.items())[:MAX_TERMS]]
        words = tantivy.Query.boolean_query(clauses)
        if allowed is None:
            return self._run(words, k)
        if len(allowed) <= _TERM_SET:
            rows = tantivy.Query.term_set_query(self._schema, "row", allowed.tolist())
            only = tantivy.Query.const_score_query(rows, 0.0)
            return self._run(tantivy.Query.boolean_query([(tantivy.Occur.Must, q) for q in (words, only)]), k)
        return self._run_widening(words, k, allowed)

    def _term(self, term: str, count: int) -> Any:
        query = tantivy.Query.term_query(self._schema, "text", term, "freq")
        return query if count == 1 else tantivy.Query.boost_query(query, float(count))

    def _run(self, query: Any, k: int) -> tuple[Scores, Rows]:
        hits = self._searcher.search(query, k, count=False).hits
        rows = np.asarray(self._searcher.fast_field_values("row", [address for _, address in hits]), np.int64)
        scores = np.asarray([score for score, _ in hits], np.float64)
        order = np.lexsort((rows, -scores))  # equal scores in order of rows, not of tantivy's segments
        return scores[order], rows[order]

    def _run_widening(self, query: Any, k: int, allowed: Rows) -> tuple[Scores, Rows]:
        # Many rows are allowed: ask for more and drop the others, until k are found or no match is left.
        total = max(1, self._searcher.num_docs)
        limit = min(total, 2 * k * total // len(allowed) + 16)
        while True:
            scores, rows = self._run(query, limit)
            keep = np.isin(rows, allowed, assume_unique=True)
            if keep.sum() >= k or len(rows) < limit or limit >= total:
                return scores[keep][:k], rows[keep][:k]
            limit = min(total, 4 * limit)


class LexicalIndex:
    """The index of a knowledge base on disk.

    Args:
        folder: of the knowledge base.
        language: of the stemmer, "" for none.
    """

    def __init__(self, folder: Path, language: str) -> None:
        self._folder = folder
        self._stamp_path = folder / "bm25.json"
        self._analyzer = analyzer(language)
        self._schema = _schema()
        self._writer: Any = None
        self._index: Any = None
        self._opened = ""
        self._aside: tempfile.TemporaryDirectory[str] | None = None
        self._checked = ""
        self._bad: Stamp | None = None

    def pinned(self, state: State) -> Lexicon | None:
        """Return the index exactly at a state, or None where it is behind, being written, or damaged."""
        stamp = self._stamp()
        if stamp is None or (stamp.version, stamp.next_row) != (state.version, state.next_row):
            return None
        try:
            writable = os.access(self._folder / stamp.folder, os.W_OK)
            index = self._open(stamp) if writable else self._linked_aside(stamp)
            index.reload()
            searcher = index.searcher()
        except (OSError, ValueError) as error:
            logger.warning("BM25 index %s: %s; it will be rebuilt", stamp.folder, error)
            return None
        # tantivy has no version in its snapshot: the same stamp before and after taking it stands for one.
        if self._opstamp(stamp.folder) != stamp.opstamp or self._stamp() != stamp:
            return None
        return Lexicon(searcher, self._schema, self._analyzer)

    def in_memory(self, catalogue: Catalogue, state: State) -> Lexicon:
        """Build the index of a state in memory, for a process that may not write the one on disk."""
        index = tantivy.Index(self._schema)
        index.register_tokenizer("ragft", self._analyzer)
        writer = index.writer(heap_size=_HEAP, num_threads=1)
        self._add(writer, catalogue.texts(0, state.next_row - 1))
        writer.commit()
        index.reload()
        return Lexicon(index.searcher(), self._schema, self._analyzer)

    def catch_up(self, catalogue: Catalogue, state: State) -> None:
        """Bring the index on disk to the state of the last commit. For the holder of the writer's lock only.

        Raises:
            StoreError: it cannot be written.
        """
        stamp = self._stamp()
        if (
            stamp is not None
            and (stamp.version, stamp.next_row) == (state.version, state.next_row)
            and self._opstamp(stamp.folder) == stamp.opstamp
            and self._sound(stamp)
        ):
            return
        if stamp is None or stamp.version < state.purged or not self._sound(stamp):
            self.rebuild(catalogue, state)
            return
        try:
            writer = self._open_writer(stamp)
            self._remove(writer, catalogue.removed_since(stamp.version))
            fresh = list(catalogue.texts(stamp.next_row, state.next_row - 1))
            if self._opstamp(stamp.folder) != stamp.opstamp:  # somebody died in between: some are there already
                self._remove(writer, range(stamp.next_row, state.next_row))
            self._add(writer, fresh)
            self._write_stamp(Stamp(stamp.folder, state.version, state.next_row, self._commit(writer)))
        except (OSError, ValueError) as error:
            # tantivy's lock is free when the writer is gone; the frames of a kept traceback would keep it.
            self._writer = writer = None
            raise StoreError(
                f"{self._folder / stamp.folder}: {error}; no passage is lost, BM25 catches up at the next change"
            ) from error.with_traceback(None)

    def rebuild(self, catalogue: Catalogue, state: State) -> None:
        """Write the whole index anew in a folder of its own, and swap it in."""
        stale = self._stamp()
        if stale is not None:
            logger.info("rebuilding the BM25 index of %s", self._folder)
        self.close()
        name = f"bm25-{secrets.token_hex(4)}"
        try:
            (self._folder / name).mkdir()
            writer = self._open_writer(Stamp(name, 0, 0, 0))
            self._add(writer, catalogue.texts(0, state.next_row - 1))
            self._write_stamp(Stamp(name, state.version, state.next_row, self._commit(writer)))
        except (OSError, ValueError) as error:
            self.close()
            raise StoreError(f"{self._folder / name}: {error}; no passage is lost") from error
        self._checked = name
        for path in self._folder.glob("bm25-*"):
            if path.name != name and _FOLDER.fullmatch(path.name) and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)

    def damaged(self) -> list[str]:
        """Return the files of the index that are damaged, by tantivy's own checksums."""
        stamp = self._stamp()
        if stamp is None:
            return []
        folder = self._folder / stamp.folder
        for _ in range(5):
            try:
                meta = self._tantivy_meta(folder)
                listed = {segment["segment_id"].replace("-", "") for segment in meta["segments"]}
                there = [path for path in folder.iterdir() if path.name.split(".", 1)[0] in listed]
                whole = {folder / f"{name}.{part}" for name in listed for part in _PARTS}
                bad = [str(path) for path in sorted(whole.union(there)) if not _crc_holds(path)]
                if not bad or self._tantivy_meta(folder) == meta:
                    return bad
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return [str(folder / "meta.json")]
        return []  # a writer is merging all the time, so it is alive and well

    def close(self) -> None:
        """Let go of the files."""
        self._writer = self._index = None
        self._opened = ""
        if self._aside is not None:
            self._aside.cleanup()
            self._aside = None

    def _sound(self, stamp: Stamp) -> bool:
        # Once per folder and process: afterwards only this process writes it.
        if self._checked != stamp.folder:
            if self._bad == stamp:
                return False
            bad = self.damaged()
            if bad:
                logger.warning("BM25 index is damaged: %s; rebuilding it from the catalogue", ", ".join(bad))
                self._bad = stamp
                return False
            self._checked = stamp.folder
        return True

    def _stamp(self) -> Stamp | None:
        try:
            stamp = Stamp(**json.loads(self._stamp_path.read_text("utf-8")))
            numbers = (stamp.version, stamp.next_row, stamp.opstamp)
        except (OSError, ValueError, TypeError):
            return None
        sound = isinstance(stamp.folder, str) and _FOLDER.fullmatch(stamp.folder)
        linked = (self._folder / str(stamp.folder)).is_symlink()
        return stamp if sound and not linked and all(isinstance(n, int) for n in numbers) else None

    def _write_stamp(self, stamp: Stamp) -> None:
        temporary = self._stamp_path.with_suffix(".json.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(stamp), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._stamp_path)

    def _tantivy_meta(self, folder: Path) -> Any:
        return json.loads((folder / "meta.json").read_text("utf-8"))

    def _opstamp(self, folder: str) -> int | None:
        try:
            found = self._tantivy_meta(self._folder / folder)["opstamp"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, int) else None

    def _open(self, stamp: Stamp) -> Any:
        if self._opened != stamp.folder:
            if not self._sound(stamp):
                raise ValueError("damaged")
            self._index, self._opened = self._index_in(self._folder / stamp.folder), stamp.folder
        return self._index

    def _index_in(self, folder: Path) -> Any:
        index = tantivy.Index(self._schema, path=str(folder), reuse=True)
        index.register_tokenizer("ragft", self._analyzer)
        return index

    def _linked_aside(self, stamp: Stamp) -> Any:
        """Open an index in a directory that may not be written, where tantivy cannot make its lock files."""
        if not self._sound(stamp):
            raise ValueError("damaged")
        self._aside = tempfile.TemporaryDirectory(prefix="ragft-bm25-")
        for path in (self._folder / stamp.folder).resolve().iterdir():
            if not path.name.endswith(".lock"):
                os.symlink(path, Path(self._aside.name, path.name))
        return self._index_in(Path(self._aside.name))

    def _open_writer(self, stamp: Stamp) -> Any:
        if self._writer is None or self._opened != stamp.folder:
            if self._opened != stamp.folder:
                self._index, self._opened = self._index_in(self._folder / stamp.folder), stamp.folder
            self._writer = self._index.writer(heap_size=_HEAP, num_threads=1)
        return self._writer

    def _commit(self, writer: Any) -> int:
        return int(writer.commit())

    def _remove(self, writer: Any, rows: Iterable[int]) -> None:
        # Not delete_documents_by_term: it makes a signed term, which matches no row, and says nothing.
        numbers = list(rows)
        if numbers:
            writer.delete_documents_by_query(tantivy.Query.term_set_query(self._schema, "row", numbers))

    def _add(self, writer: Any, texts: Iterable[tuple[int, str]]) -> None:
        for row, text in texts:
            writer.add_document(tantivy.Document.from_dict({"text": text, "row": row}, self._schema))


def _crc_holds(path: Path) -> bool:
    """Say whether a file is there and whole."""
    try:
        raw = path.read_bytes()
        size, magic = struct.unpack("<II", raw[-8:])
        footer = json.loads(raw[-8 - size : -8])
        return bool(magic == _MAGIC and footer["crc"] == zlib.crc32(raw[: -8 - size]))
    except (OSError, ValueError, struct.error, KeyError, TypeError):
        return False
