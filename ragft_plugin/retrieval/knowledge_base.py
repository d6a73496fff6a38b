"""The knowledge base: passages in a directory, found by meaning, by words, or by both.

    kb/
      knowledge.db        passages, metadata, versions (SQLite); its commit is the only commit
      segments/           vectors, immutable, named and checksummed by the catalogue
      indexes/            approximate indexes of large segments, derived
      bm25.json, bm25-*/  BM25, derived, rebuilt when in doubt
      write.lock          held by the one process that writes

Any number of threads and processes read, each a complete state, while one writes. A process may be killed at any
moment: what was committed is there, what was not is not.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError, DataError, StoreError
from ragft_plugin.retrieval.approximate import Kind
from ragft_plugin.retrieval.audit import check_database, check_tables
from ragft_plugin.retrieval.binding import BoundEncoder
from ragft_plugin.retrieval.bm25 import analyzer
from ragft_plugin.retrieval.catalogue import Catalogue
from ragft_plugin.retrieval.encoders import checked_vectors
from ragft_plugin.retrieval.inspection import describe, find_damage
from ragft_plugin.retrieval.layout import DATABASE, LOCK, SEGMENTS, check_folder, is_knowledge_base, make_folder
from ragft_plugin.retrieval.lexical import LexicalIndex
from ragft_plugin.retrieval.lock import WriterLock
from ragft_plugin.retrieval.records import Record, Settings
from ragft_plugin.retrieval.searching import KB_KEY, Searching
from ragft_plugin.retrieval.snapshots import Snapshots
from ragft_plugin.retrieval.sources import exchange, records_of
from ragft_plugin.retrieval.view import Mode
from ragft_plugin.retrieval.wrappers import as_encoder
from ragft_plugin.retrieval.writing import Changes, Writer
from ragft_plugin.types import Encoder, Filter, Passage


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
        self._catalogue = Catalogue(path / DATABASE, read_only=self._read_only)
        try:
            check_tables(self._catalogue)
            settings = self._catalogue.settings()
            self._catalogue.check = check_database(self._catalogue)
            self._bound = BoundEncoder(path, settings.fingerprint, encoder)
            self._lexical = LexicalIndex(path, settings.language)
            self._lock = WriterLock(path / LOCK)
            self._writing = threading.RLock()
            self._snapshots = Snapshots(
                path / SEGMENTS,
                self._catalogue,
                self._lexical,
                None if self._read_only else self._lock,
                self._writing,
            )
            self._searching = Searching(
                path, self._catalogue, self._snapshots, require_filter=settings.require_filter or bool(require_filter)
            )
            self._writer = Writer(
                path / SEGMENTS,
                self._catalogue,
                self._lexical,
                self._snapshots,
                self._lock,
                self._bound.needed,
                settings.fingerprint,
            )
        except BaseException:
            self._catalogue.close()
            raise

    @classmethod
    def create(
        cls,
        path: str | Path,
        encoder: Literal["hashing", "minilm"] | Encoder | Any | None = "hashing",
        *,
        require_filter: bool = False,
        language: str = "english",
    ) -> Self:
        """Make an empty knowledge base in a directory that does not exist or is empty.

        Args:
            path: the directory.
            encoder: "hashing" (no model needed), "minilm" (extra ``embedded``), your own, embeddings of LangChain, an
                embedding model of LlamaIndex, a ``SentenceTransformer``, or None for BM25 only.
            require_filter: refuse every retrieval without a filter, or with one that has an empty part; for access
                rules that must not be forgotten. ``get`` and ``ids`` are for whoever keeps the knowledge base.
            language: of the BM25 stemmer, as tantivy names it; "" for no stemming.

        Raises:
            StoreError: there is something in the directory, or it cannot be written.
            ConfigError: unknown encoder or language.
        """
        folder = Path(path).absolute()
        chosen = None if encoder is None else as_encoder(encoder)
        analyzer(language)
        settings = Settings(
            fingerprint=chosen.fingerprint if chosen is not None else "",
            require_filter=require_filter,
            language=language,
        )
        make_folder(folder, settings)
        return cls(folder, chosen, read_only=False, require_filter=None)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        encoder: Literal["hashing", "minilm"] | Encoder | Any | None = None,
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
        folder = Path(path).absolute()
        check_folder(folder)
        chosen = None if encoder is None else as_encoder(encoder)
        return cls(folder, chosen, read_only=read_only, require_filter=require_filter)

    @staticmethod
    def exists(path: str | Path) -> bool:
        """Say whether there is a knowledge base in a directory."""
        return is_knowledge_base(Path(path))

    def close(self) -> None:
        """Let go of all files and of the writer's lock. A closed knowledge base cannot be used."""
        with self._writing:
            self._snapshots.close()
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
        return self._snapshots.current().state.live

    def __repr__(self) -> str:
        return f"KnowledgeBase({str(self._path)!r}, version={self._snapshots.last.state.version})"

    @property
    def path(self) -> Path:
        """The directory."""
        return self._path

    @property
    def encoder(self) -> Encoder | None:
        """The encoder, None for BM25 only or where one of your own was not given."""
        return self._bound.encoder

    @property
    def version(self) -> int:
        """Number of the current snapshot: goes up by one with every change."""
        return self._snapshots.current().state.version

    @property
    def fingerprint(self) -> str:
        """Encoder and content: equal passages and encoder, equal fingerprint, however they came there."""
        return f"{self._bound.fingerprint or 'bm25'}@{self._snapshots.current().state.digest[:16]}"

    def add(self, passages: Sequence[Passage], *, vectors: NDArray[Any] | None = None) -> Changes:
        """Add passages; one whose id is there already replaces it, one that has not changed is skipped.

        All or nothing, and lasting when it returns. Of passages with the same id the last one counts.

        Args:
            passages: scores are ignored.
            vectors: of the passages by this knowledge base's encoder, shape (n, dim), where they are known already;
                scaled to length 1. None to encode the texts.

        Raises:
            DataError: a passage without id, not Unicode, or with metadata that is not JSON; vectors of a wrong shape.
            StoreError: read-only, locked by another writer, disk full; nothing has changed then.
        """
        records = {record.id: record for record in map(Record.of, map(_plain, passages))}
        known = None if vectors is None else self._bound.passage_vectors([p.id for p in passages], vectors)
        with self._changing() as writer:
            return writer.replace(records, self._catalogue.live(list(records)), {}, vectors=known)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete passages; ids that are not there are ignored. Returns how many were deleted."""
        with self._changing() as writer:
            found = self._catalogue.live(_distinct(ids))
            return writer.replace({}, {}, dict(found.values())).deleted

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

    def replace_sources(
        self, sources: Mapping[str, tuple[Sequence[Passage], str | None]], *, partial: bool = False
    ) -> Changes:
        """As ``replace_source`` for several sources at once, in one commit: {source: (passages, digest)}.

        Args:
            sources: what they shall hold.
            partial: leave their other passages; for a source that comes in parts, the last one whole and without this.

        Raises:
            DataError: an id stands in two sources, or twice in one with different contents.
        """
        records = records_of({source: [_plain(p) for p in passages] for source, (passages, _) in sources.items()})
        with self._changing() as writer:
            digests = {source: digest for source, (_, digest) in sources.items()}
            return exchange(writer, self._catalogue, records, digests, partial=partial)

    def source_sizes(self) -> dict[str, int]:
        """Return {source: number of passages}."""
        return self._catalogue.source_sizes()

    def sources(self) -> dict[str, str]:
        """Return {source: digest} of what ``replace_source`` has stored."""
        return self._catalogue.sources()

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """Return the passages of these ids, in their order; unknown ids are left out."""
        found = self._catalogue.live(_distinct(ids))
        passages = self._catalogue.passages([row for row, _ in found.values()])
        wanted = (found[id][0] for id in ids if id in found)
        return [passages[row] for row in wanted if row in passages]

    def vectors(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the stored vectors of these ids, shape (n, dim): zeros for unknown ids, dim 0 while there are none."""
        view = self._snapshots.current()
        found = self._catalogue.live(list(dict.fromkeys(ids)))
        return view.vectors_of(np.asarray([found[id][0] if id in found else -1 for id in ids], np.int64))

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
        chosen: Mode = mode or ("hybrid" if self._bound.fingerprint else "bm25")
        self._searching.check(queries, k, filter, chosen)
        results: list[list[Passage]] = [[] for _ in queries]
        asked = [i for i, text in enumerate(queries) if text.strip()]
        view = self._snapshots.current()
        if not asked or not k or not view.state.live:
            return results
        texts = [queries[i] for i in asked]
        encoded = (
            None if chosen == "bm25" else self._bound.query_vectors(texts, vectors, asked, len(queries), view.state.dim)
        )
        found = self._searching.search(view, chosen, texts, encoded, k, filter, threshold)
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
        dim = self._snapshots.current().state.dim or None
        return checked_vectors(self._bound.needed(), queries, dim, queries=True)

    def compact(self, *, index: Kind | Literal["auto"] = "auto") -> Changes:
        """Drop removed passages for good and merge segments. Searches go on meanwhile; contents do not change.

        Args:
            index: of the vectors: "flat" (exact), "pq", "hnsw", "ivf", or "auto" by their number (see
                ``retrieval.approximate``). Passages added later are searched exactly until the next ``compact``.
        """
        with self._changing() as writer:
            return writer.compact(index)

    def stats(self) -> dict[str, Any]:
        """Return counts, sizes on disk and in memory in bytes, and how it is indexed, with the recall measured then."""
        return describe(self._path, self._bound.fingerprint, self._snapshots.current())

    def verify(self) -> list[str]:
        """Check every byte; return what is wrong, file by file (nothing: an empty list)."""
        return find_damage(self._path / SEGMENTS, self._catalogue, self._lexical)

    @contextmanager
    def _changing(self) -> Iterator[Writer]:
        """Let one thread change, once it is sure that this may be changed."""
        if not self._writable:
            raise StoreError(f"{self._path} may not be written by this user; change its permissions or copy it")
        if self._read_only:
            raise StoreError(f"{self._path} was opened with read_only=True; open it without to change it")
        with self._writing:
            self._writer.start()
            yield self._writer


def _distinct(ids: Sequence[str]) -> list[str]:
    if isinstance(ids, str):
        raise ConfigError(f"ids must be a list of ids, got one: {ids!r}; write [id]")
    return list(dict.fromkeys(ids))


def _plain(passage: Passage) -> Passage:
    """Drop what retrieval has put into the metadata.

    Raises:
        DataError: the entry there is the user's own, which retrieval would hide.
    """
    if KB_KEY not in passage.metadata:
        return passage
    ours = passage.metadata[KB_KEY]
    if not isinstance(ours, Mapping) or "version" not in ours:
        raise DataError(f"passage {passage.id!r} has metadata {KB_KEY!r}, where retrieval puts its scores; rename it")
    return replace(passage, metadata={k: v for k, v in passage.metadata.items() if k != KB_KEY})
