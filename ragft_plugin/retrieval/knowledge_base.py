"""The knowledge base: passages in a directory, found by meaning, by words, or by both.

    kb/
      knowledge.db        passages, metadata, versions (SQLite); its commit is the only commit
      segments/           vectors, immutable, named and checksummed by the catalogue
      bm25.json, bm25-*/  BM25, derived, rebuilt when in doubt
      write.lock          held by the one process that writes

Any number of threads and processes read, each a complete state, while one writes. A process may be killed at any
moment: what was committed is there, what was not is not.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError, DataError, StoreError
from ragft_plugin.retrieval import filters
from ragft_plugin.retrieval.catalogue import Catalogue, Record, SegmentRecord, Settings, State
from ragft_plugin.retrieval.encoders import checked_vectors, named_encoder, restored_encoder
from ragft_plugin.retrieval.lexical import LexicalIndex, Lexicon, analyzer
from ragft_plugin.retrieval.lock import WriterLock
from ragft_plugin.retrieval.segments import (
    Segment,
    SegmentMissing,
    open_segment,
    remove_strangers,
    sync_folder,
    write_segment,
)
from ragft_plugin.retrieval.view import MODES, Hit, Mode, StaleView, View
from ragft_plugin.types import Encoder, Filter, Passage

logger = logging.getLogger(__name__)

KB_KEY = "kb"
_DATABASE, _SEGMENTS, _LOCK = "knowledge.db", "segments", "write.lock"
_MERGE_LIMIT = 65_536  # rows; larger segments are merged by compact() only
_PATIENCE = 2.0  # seconds for another process to finish writing before BM25 is built in memory


@dataclass(frozen=True, slots=True)
class Changes:
    """What a call has changed.

    Attributes:
        added, updated, unchanged, deleted: numbers of passages.
        version: of the knowledge base afterwards.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    version: int = 0


class KnowledgeBase:
    """Passages in a directory. Made by ``create`` or ``open``; satisfies ``types.Retriever``.

    Retrieved passages carry ``metadata["kb"] = {"version", "dense"?, "bm25"?}``: the snapshot they come from, the
    cosine with the query and the BM25 score, as far as the mode computes them. It is dropped when they are added.

    Example:
        >>> import tempfile
        >>> from ragft_plugin.types import Passage
        >>> with KnowledgeBase.create(tempfile.mkdtemp() + "/kb") as kb:
        ...     changes = kb.add([Passage("1", "Brelkon stands in Tarmora."), Passage("2", "Ovens are hot.")])
        ...     kb.retrieve(["Where is Brelkon?"], k=1)[0][0].id
        '1'
    """

    def __init__(self, path: Path, encoder: Encoder | None, *, read_only: bool, require_filter: bool | None) -> None:
        self._path = path
        self._writable = os.access(path, os.W_OK)
        self._read_only = read_only or not self._writable
        self._catalogue = Catalogue(path / _DATABASE, read_only=self._read_only)
        self._settings = self._catalogue.settings()
        self._encoder = self._bound(encoder)
        required = self._settings.require_filter
        self._require_filter = required if require_filter is None else required or require_filter
        self._lexical = LexicalIndex(path, self._settings.language)
        self._lock = WriterLock(path / _LOCK)
        self._writing = threading.RLock()
        self._swapping = threading.Lock()
        self._columns: dict[tuple[str, str], filters.Column] = {}
        self._passages: dict[int, Passage] = {}
        self._behind: dict[int, float] = {}  # version of a commit whose BM25 is not there yet: until when to wait
        self._view = self._make_view(None)

    @classmethod
    def create(
        cls,
        path: str | Path,
        encoder: Literal["hashing", "minilm"] | Encoder | None = "hashing",
        *,
        require_filter: bool = False,
        language: str = "english",
    ) -> Self:
        """Make an empty knowledge base in a directory that does not exist or is empty.

        Args:
            path: the directory.
            encoder: "hashing" (no model needed), "minilm" (extra ``embedded``), your own, or None for BM25 only.
            require_filter: refuse every retrieval without a filter; for access rules that must not be forgotten.
            language: of the BM25 stemmer, as tantivy names it; "" for no stemming.

        Raises:
            StoreError: there is something in the directory, or it cannot be written.
            ConfigError: unknown encoder or language.
        """
        folder = Path(path)
        chosen = named_encoder(encoder) if isinstance(encoder, str) else encoder
        analyzer(language)
        if (folder / _DATABASE).exists():
            raise StoreError(f"{folder} is a knowledge base already; open it with KnowledgeBase.open")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f"{folder} is not empty; give a new or an empty directory")
        settings = Settings(
            fingerprint=chosen.fingerprint if chosen is not None else "",
            require_filter=require_filter,
            language=language,
        )
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Made beside and renamed: there is a whole knowledge base or none.
            temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                (temporary / _SEGMENTS).mkdir()
                Catalogue.create(temporary / _DATABASE, settings)
                temporary.chmod(0o755)
                os.replace(temporary, folder)
                sync_folder(folder.parent)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        except OSError as error:
            raise StoreError(f"{folder} cannot be made: {error.strerror or error}") from error
        return cls(folder, chosen, read_only=False, require_filter=None)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        encoder: Literal["hashing", "minilm"] | Encoder | None = None,
        read_only: bool = False,
        require_filter: bool | None = None,
    ) -> Self:
        """Open a knowledge base.

        Args:
            path: the directory.
            encoder: needed only for one made with an encoder of your own; it must have the same fingerprint.
            read_only: never write, for directories that cannot be written and for readers beside a writer.
            require_filter: True to require a filter in this process even if it was not created so.

        Raises:
            StoreError: no knowledge base there, damaged (names the file), of another encoder or format.
        """
        folder = Path(path)
        if not (folder / _DATABASE).is_file():
            raise StoreError(f"{folder} is no knowledge base; make one with KnowledgeBase.create")
        for name in (_DATABASE, f"{_DATABASE}-wal", f"{_DATABASE}-shm", _SEGMENTS):
            if (folder / name).is_symlink():
                raise StoreError(f"{folder / name} is a link; a knowledge base holds none")
        chosen = named_encoder(encoder) if isinstance(encoder, str) else encoder
        return cls(folder, chosen, read_only=read_only, require_filter=require_filter)

    @staticmethod
    def exists(path: str | Path) -> bool:
        """Say whether there is a knowledge base in a directory."""
        return (Path(path) / _DATABASE).is_file()

    def close(self) -> None:
        """Let go of all files and of the writer's lock. A closed knowledge base cannot be used."""
        with self._writing:
            self._lexical.close()
            self._catalogue.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._current().state.live

    def __repr__(self) -> str:
        return f"KnowledgeBase({str(self._path)!r}, version={self._view.state.version})"

    @property
    def path(self) -> Path:
        """The directory."""
        return self._path

    @property
    def encoder(self) -> Encoder | None:
        """The encoder, None for BM25 only or where one of your own was not given."""
        return self._encoder

    @property
    def version(self) -> int:
        """Number of the current snapshot: goes up by one with every change."""
        return self._current().state.version

    @property
    def fingerprint(self) -> str:
        """Encoder and content: equal passages and encoder, equal fingerprint, however they came there."""
        return f"{self._settings.fingerprint or 'bm25'}@{self._current().state.digest[:16]}"

    def add(self, passages: Sequence[Passage]) -> Changes:
        """Add passages; one whose id is there already replaces it, one that has not changed is skipped.

        All or nothing, and lasting when it returns. Of passages with the same id the last one counts.

        Args:
            passages: scores are ignored.

        Raises:
            DataError: a passage without id, not Unicode, or with metadata that is not JSON.
            StoreError: read-only, locked by another writer, disk full; nothing has changed then.
        """
        records = {record.id: record for record in map(Record.of, map(_plain, passages))}
        with self._writing:
            self._start_writing()
            return self._replace(records, self._catalogue.live(list(records)), {})

    def delete(self, ids: Sequence[str]) -> int:
        """Delete passages; ids that are not there are ignored. Returns how many were deleted."""
        with self._writing:
            self._start_writing()
            found = self._catalogue.live(list(dict.fromkeys(ids)))
            return self._replace({}, {}, dict(found.values())).deleted

    def delete_source(self, source: str) -> int:
        """Delete every passage whose ``metadata["source"]`` is this. Returns how many."""
        return self.replace_source(source, [], digest=None).deleted

    def replace_source(self, source: str, passages: Sequence[Passage], *, digest: str | None) -> Changes:
        """Make these the passages of a source, in one step: new ones come, changed ones change, others go.

        Args:
            source: every passage must have it as ``metadata["source"]``.
            passages: all passages of the source.
            digest: of the file and the way it was cut, to be found in ``sources`` later; None forgets it.
        """
        return self.replace_sources({source: (passages, digest)})

    def replace_sources(self, sources: Mapping[str, tuple[Sequence[Passage], str | None]]) -> Changes:
        """As ``replace_source`` for several sources at once, in one commit: {source: (passages, digest)}.

        Raises:
            DataError: an id stands in two sources.
        """
        records: dict[str, Record] = {}
        for source, (passages, _) in sources.items():
            for record in map(Record.of, map(_plain, passages)):
                if record.source != source:
                    raise ConfigError(f"passage {record.id!r} has the source {record.source!r}, expected {source!r}")
                first = records.setdefault(record.id, record).source
                if first != source:
                    raise _id_twice(record.id, first, source)
                records[record.id] = record
        with self._writing:
            self._start_writing()
            before = {id: found for source in sources for id, found in self._catalogue.rows_of_source(source).items()}
            live = self._catalogue.live(list(records))
            for passage in self._catalogue.passages(
                [live[id][0] for id in records if id in live and id not in before]
            ).values():
                raise _id_twice(passage.id, passage.metadata.get("source"), str(records[passage.id].source))
            gone = {row: hash for id, (row, hash) in before.items() if id not in records}
            digests = {source: digest for source, (_, digest) in sources.items()}
            return self._replace(records, live, gone, digests)

    def source_sizes(self) -> dict[str, int]:
        """Return {source: number of passages}."""
        return self._catalogue.source_sizes()

    def sources(self) -> dict[str, str]:
        """Return {source: digest} of what ``replace_source`` has stored."""
        return self._catalogue.sources()

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """Return the passages of these ids, in their order; unknown ids are left out."""
        found = self._catalogue.live(list(dict.fromkeys(ids)))
        passages = self._catalogue.passages([row for row, _ in found.values()])
        wanted = (found[id][0] for id in ids if id in found)
        return [passages[row] for row in wanted if row in passages]

    def ids(self) -> list[str]:
        """Return all ids, in order of insertion."""
        return self._catalogue.ids()

    def retrieve(
        self,
        queries: Sequence[str],
        k: int,
        filter: Filter | None = None,
        *,
        mode: Mode | None = None,
        threshold: float | None = None,
        vectors: NDArray[Any] | None = None,
    ) -> list[list[Passage]]:
        """Return up to ``k`` passages per query, best first.

        Args:
            queries: texts; an empty one finds nothing.
            k: at most this many per query.
            filter: condition on metadata that every passage satisfies (grammar in ``retrieval.filters``); applied
                before the search: if ``k`` passages satisfy it, the dense search returns ``k``.
            mode: how to rank, and so what the score means; higher is better:
                "hybrid" (default)  both halves, weighted; 0 to 1, the best possible is 1
                "rrf"               both halves by rank; up to 2/61
                "dense"             cosine, -1 to 1
                "bm25" (default without an encoder)  only passages that share a word with the query; 0 and up
                "mmr"               nearest, but unlike each other; the score is the cosine, the order is not by it
            threshold: drop passages with a lower score.
            vectors: of the queries, shape (n, dim), where they are known already.

        Raises:
            ConfigError: bad filter, mode or k; no filter although this knowledge base requires one.
            StoreError: damaged; or no encoder for a mode that needs one.
        """
        texts = self._checked(queries, k, filter)
        chosen: Mode = mode or ("hybrid" if self._settings.fingerprint else "bm25")
        if chosen not in _SEARCHABLE:
            raise ConfigError(f"unknown mode {chosen!r}; known: {', '.join(MODES)}")
        asked = [i for i, text in enumerate(texts) if text.strip()]
        results: list[list[Passage]] = [[] for _ in texts]
        view = self._current()
        if not asked or not k or not view.state.live:
            return results
        encoded = None
        if chosen != "bm25":
            encoded = self._query_vectors([texts[i] for i in asked], vectors, asked, view.state.dim)
        found = self._search(chosen, [texts[i] for i in asked], encoded, k, filter, threshold)
        for i, passages in zip(asked, found, strict=True):
            results[i] = passages
        return results

    async def aretrieve(
        self, queries: Sequence[str], k: int, filter: Filter | None = None, **options: Any
    ) -> list[list[Passage]]:
        """As ``retrieve``, in a thread: searching is computing, which has no async form."""
        return await asyncio.to_thread(self.retrieve, queries, k, filter, **options)

    def encode(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of queries, shape (n, dim), for ``retrieve(..., vectors=...)``."""
        return checked_vectors(self._needed_encoder(), queries, self._current().state.dim or None)

    def compact(self) -> Changes:
        """Drop removed passages for good and merge segments. Searches go on meanwhile; contents do not change."""
        with self._writing:
            self._start_writing()
            view = self._make_view(None)
            purged = len(view.dead)
            names = [segment.name for segment in view.segments]
            live = self._merged(view.segments, view.dead)
            fresh = [write_segment(self._path / _SEGMENTS, *live)] if len(live[0]) else []
            if purged or len(names) > 1:
                self._catalogue.commit([], {}, segments=(fresh, names), purge=True)
            with self._catalogue.errors():
                self._catalogue.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._lexical.rebuild(self._catalogue, self._catalogue.state())
            self._finish_writing()
            return Changes(deleted=purged, version=self._view.state.version)

    def stats(self) -> dict[str, Any]:
        """Return counts, sizes in bytes, and how it is indexed."""
        view = self._current()
        size = sum(path.stat().st_size for path in self._path.rglob("*") if path.is_file())
        return {
            "passages": view.state.live,
            "removed": len(view.dead),
            "segments": len(view.segments),
            "dim": view.state.dim,
            "encoder": self._settings.fingerprint,
            "index": "flat",
            "version": view.state.version,
            "bytes_on_disk": size,
            "bytes_of_vectors": sum(segment.vectors.nbytes for segment in view.segments),
        }

    def verify(self) -> list[str]:
        """Check every byte; return what is wrong, file by file (nothing: an empty list)."""
        with self._catalogue.errors():
            problems = self._catalogue.problems()
        with self._catalogue.snapshot() as (_, records, _removed):
            pass
        for record in records:
            try:
                open_segment(self._path / _SEGMENTS, record)
            except SegmentMissing as error:
                problems.append(f"{error} is missing")
            except StoreError as error:
                problems.append(str(error))
        return problems + [f"{path} is damaged; it is derived and will be rebuilt" for path in self._lexical.damaged()]

    # Reading

    def _current(self) -> View:
        """Return a view of the last commit that is complete, whoever made it."""
        view, state = self._view, self._catalogue.state()
        if (state.version, state.layout) == (view.state.version, view.state.layout):
            return view
        with self._swapping:
            if self._view is view:
                self._view = self._make_view(view)
            return self._view

    def _make_view(self, old: View | None, *, patience: float = _PATIENCE) -> View:
        """Read the current state; with an old view, keep that one while another process is half-way."""
        deadline = time.monotonic() + patience
        while True:
            with self._catalogue.snapshot() as (state, records, removed):
                pass
            lexicon = self._lexicon(state, old, deadline)
            if lexicon is None:
                if old is not None and time.monotonic() < self._behind.setdefault(state.version, deadline):
                    return old
                time.sleep(0.005)
                continue
            self._behind.clear()
            known = {s.name: s for s in (old.segments if old is not None else ())}
            try:
                segments = tuple(
                    known.get(record.name) or open_segment(self._path / _SEGMENTS, record) for record in records
                )
            except SegmentMissing as error:
                if self._catalogue.state() == state:
                    raise StoreError(
                        f"{error} is missing; restore it from a copy or index the documents again"
                    ) from error
                continue
            held = np.sort(np.asarray(removed, np.int64))
            names = {segment.name for segment in segments}
            for key in [key for key in self._columns if key[0] not in names]:
                self._columns.pop(key, None)
            return View(state, segments, held, lexicon, self._catalogue, self._columns)

    def _lexicon(self, state: State, old: View | None, deadline: float) -> Lexicon | None:
        if old is not None and (old.state.version, old.state.next_row) == (state.version, state.next_row):
            return old.lexicon
        lexicon = self._lexical.pinned(state)
        if lexicon is not None:
            return lexicon
        if state.next_row == 0:
            return self._lexical.in_memory(self._catalogue, state)
        if not self._read_only and self._repair(state):
            lexicon = self._lexical.pinned(state)
            if lexicon is not None:
                return lexicon
        if time.monotonic() < self._behind.get(state.version, deadline):
            return None
        logger.warning("BM25 of %s is behind and cannot be written; building it in memory", self._path)
        return self._lexical.in_memory(self._catalogue, state)

    def _repair(self, state: State) -> bool:
        """Catch up where the writer died between its two commits; False if a writer is alive."""
        borrowed = WriterLock(self._path / _LOCK)
        try:
            borrowed.acquire()
        except StoreError:
            return False
        try:
            self._lexical.catch_up(self._catalogue, state)
        except StoreError as error:
            logger.warning("%s", error)
            return False
        finally:
            self._lexical.close()
            borrowed.release()
        return True

    def _search(
        self,
        mode: Mode,
        texts: list[str],
        vectors: NDArray[np.float32] | None,
        k: int,
        filter: Filter | None,
        threshold: float | None,
    ) -> list[list[Passage]]:
        for _ in range(5):
            view = self._current()
            try:
                hits = view.search(mode, texts, vectors, k, filter)
                if threshold is not None:
                    hits = [[hit for hit in found if hit.score >= threshold] for found in hits]
                return self._fetched(view, hits)
            except StaleView:
                with self._swapping:
                    self._view = self._make_view(None)
        raise StoreError(f"{self._path}: rows are missing from {_DATABASE}; it is damaged. Index the documents again")

    def _fetched(self, view: View, hits: list[list[Hit]]) -> list[list[Passage]]:
        cache = self._passages
        rows = {hit.row for found in hits for hit in found}
        known = {row: cache[row] for row in rows if row in cache}
        missing = [row for row in rows if row not in known]
        if missing:
            fresh = self._catalogue.passages(missing)
            if len(fresh) < len(missing):
                raise StaleView
            if len(cache) > _CACHED:
                cache.clear()
            cache.update(fresh)
            known |= fresh
        version = view.state.version
        return [
            [
                replace(
                    known[hit.row],
                    score=hit.score,
                    metadata={**known[hit.row].metadata, KB_KEY: {"version": version, **hit.parts}},
                )
                for hit in found
            ]
            for found in hits
        ]

    def _checked(self, queries: Sequence[str], k: int, filter: Filter | None) -> list[str]:
        if isinstance(queries, str):
            raise ConfigError("queries must be a list of texts, got one text; write [query]")
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 0:
            raise ConfigError(f"k must be a number of passages, 0 or more; got {k!r}")
        if filter is not None:
            filters.check(filter)
        if self._require_filter and not filter:
            raise ConfigError(f"{self._path} requires a filter for every retrieval, and none was given")
        return list(queries)

    def _query_vectors(
        self, texts: list[str], vectors: NDArray[Any] | None, asked: list[int], dim: int
    ) -> NDArray[np.float32]:
        if vectors is None:
            return checked_vectors(self._needed_encoder(), texts, dim)
        given = np.asarray(vectors, dtype=np.float32)
        if given.ndim != 2 or given.shape[1] != dim or len(given) <= max(asked) or not np.isfinite(given).all():
            raise ConfigError(f"vectors must be finite, of shape (queries, {dim}); got {given.shape}")
        return np.ascontiguousarray(given[asked])

    # Writing

    def _start_writing(self) -> None:
        if not self._writable:
            raise StoreError(f"{self._path} may not be written by this user; change its permissions or copy it")
        if self._read_only:
            raise StoreError(f"{self._path} was opened with read_only=True; open it without to change it")
        self._catalogue.connection  # noqa: B018 - says that it is closed before a lock is taken
        self._lock.acquire()
        state = self._catalogue.state()
        try:
            self._lexical.catch_up(self._catalogue, state)
        except StoreError as error:
            logger.warning("%s", error)
        self._current()

    def _replace(
        self,
        records: Mapping[str, Record],
        live: Mapping[str, tuple[int, bytes]],
        gone: Mapping[int, bytes],
        sources: Mapping[str, str | None] | None = None,
    ) -> Changes:
        fresh = [r for r in records.values() if r.id not in live or live[r.id][1] != r.hash]
        updated = {live[r.id][0]: live[r.id][1] for r in fresh if r.id in live}
        changes = Changes(
            len(fresh) - len(updated), len(updated), len(records) - len(fresh), len(gone), self._view.state.version
        )
        if not (fresh or gone or sources):
            return changes
        vectors = self._encoded(fresh, updated)
        state = self._catalogue.state()
        come: list[SegmentRecord] = []
        go: list[str] = []
        folder = self._path / _SEGMENTS
        if fresh:
            rows = np.arange(state.next_row, state.next_row + len(fresh), dtype=np.int64)
            go, block = self._absorbed(rows, vectors)
            come = [write_segment(folder, *block)]
        try:
            self._catalogue.commit(
                fresh, {**updated, **gone}, sources=sources, segments=(come, go), dim=vectors.shape[1]
            )
        except StoreError:
            remove_strangers(folder, {segment.name for segment in self._view.segments})
            raise
        self._finish_writing()
        return replace(changes, version=self._view.state.version)

    def _absorbed(
        self, rows: NDArray[np.int64], vectors: NDArray[np.float32]
    ) -> tuple[list[str], tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Take in the last segments while they are not larger than what there is, so that there stay few.

        Sizes then fall by halves: of n rows there are about log2(n) small segments, and a row is rewritten about
        log2(n) times in its life.
        """
        taken: list[Segment] = []
        total = len(rows)
        for segment in reversed(self._view.segments):
            if len(segment) > 2 * total or total + len(segment) > _MERGE_LIMIT:
                break
            taken.insert(0, segment)
            total += len(segment)
        if not taken:
            return [], (rows, vectors)
        block = Segment("", rows, vectors)
        return [segment.name for segment in taken], self._merged((*taken, block), np.empty(0, np.int64))

    def _merged(
        self, segments: Sequence[Segment], without: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if not segments:
            return np.empty(0, np.int64), np.empty((0, 0), np.float32)
        rows = np.concatenate([segment.rows for segment in segments])
        vectors = np.concatenate([segment.vectors for segment in segments])
        if len(without):
            keep = ~np.isin(rows, without, assume_unique=True)
            rows, vectors = rows[keep], vectors[keep]
        return rows, vectors

    def _encoded(self, fresh: list[Record], updated: Mapping[int, bytes]) -> NDArray[np.float32]:
        if not self._settings.fingerprint:
            return np.empty((len(fresh), 0), np.float32)
        dim = self._catalogue.state().dim
        if not fresh:
            return np.empty((0, dim), np.float32)
        # New metadata on an old text keeps its vector: encoding is by far the dearest step.
        old = {p.id: (row, p.text) for row, p in self._catalogue.passages(list(updated)).items()}
        same = [i for i, r in enumerate(fresh) if r.id in old and old[r.id][1] == r.text]
        known = set(same)
        new = [i for i in range(len(fresh)) if i not in known]
        parts = {}
        if new:
            parts[0] = (new, checked_vectors(self._needed_encoder(), [fresh[i].text for i in new], dim or None))
        if same:
            view = self._current()
            parts[1] = (same, view.vectors_of(np.asarray([old[fresh[i].id][0] for i in same], np.int64)))
        vectors = np.empty((len(fresh), next(iter(parts.values()))[1].shape[1]), np.float32)
        for at, found in parts.values():
            vectors[at] = found
        return vectors

    def _finish_writing(self) -> None:
        """The change is committed; bring what is derived from it up to date and show it."""
        state = self._catalogue.state()
        patience = _PATIENCE
        try:
            self._lexical.catch_up(self._catalogue, state)
        except StoreError as error:
            logger.warning("%s", error)
            patience = 0.0
        with self._swapping:
            self._view = self._make_view(self._view, patience=patience)
        remove_strangers(self._path / _SEGMENTS, {segment.name for segment in self._view.segments})

    def _needed_encoder(self) -> Encoder:
        if self._encoder is not None:
            return self._encoder
        if not self._settings.fingerprint:
            raise StoreError(f"{self._path} was created without an encoder; use mode='bm25'")
        raise StoreError(
            f"{self._path} was made with the encoder {self._settings.fingerprint}; "
            "give it: KnowledgeBase.open(path, encoder=...)"
        )

    def _bound(self, encoder: Encoder | None) -> Encoder | None:
        wanted = self._settings.fingerprint
        if encoder is None:
            return restored_encoder(wanted)
        if encoder.fingerprint != wanted:
            raise StoreError(
                f"{self._path} holds vectors of {wanted or 'no encoder'}, not of {encoder.fingerprint}; "
                "open it with that one, or create a new knowledge base"
            )
        return encoder


_SEARCHABLE = frozenset(MODES)
_CACHED = 10_000  # passages kept in memory


def _plain(passage: Passage) -> Passage:
    """Drop what retrieval has put into the metadata."""
    if KB_KEY not in passage.metadata:
        return passage
    return replace(passage, metadata={k: v for k, v in passage.metadata.items() if k != KB_KEY})


def _id_twice(id: str, first: object, second: str) -> DataError:
    return DataError(f"the id {id!r} stands in {first!r} and in {second!r}; ids must differ between sources")
