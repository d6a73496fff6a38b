"""Writing: from what shall change to one commit, and from the commit to what is derived from it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import DataError, StoreError
from ragft_plugin.retrieval.approximate import Kind, build, kind_for, save
from ragft_plugin.retrieval.catalogue import Catalogue
from ragft_plugin.retrieval.encoders import checked_vectors
from ragft_plugin.retrieval.lexical import LexicalIndex
from ragft_plugin.retrieval.lock import WriterLock
from ragft_plugin.retrieval.records import Record, SegmentRecord, State
from ragft_plugin.retrieval.segments import INDEXES, Segment, remove_strangers, write_segment
from ragft_plugin.retrieval.snapshots import PATIENCE, Snapshots
from ragft_plugin.retrieval.view import View
from ragft_plugin.types import Encoder, Passage

logger = logging.getLogger(__name__)

_MERGE_LIMIT = 65_536  # rows; larger segments are merged by compact() only


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


class Writer:
    """Changes a knowledge base. Its caller lets in one thread at a time.

    Args:
        folder: of the segments.
        catalogue: where changes are committed.
        lexical: BM25, brought up to date after each commit.
        snapshots: shown the new state after each commit.
        lock: keeps other processes out, from the first change on.
        encoder: gives the encoder, or raises.
        encoded_by: its fingerprint, "" for a knowledge base without vectors.
    """

    def __init__(
        self,
        folder: Path,
        catalogue: Catalogue,
        lexical: LexicalIndex,
        snapshots: Snapshots,
        lock: WriterLock,
        encoder: Callable[[], Encoder],
        encoded_by: str,
    ) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self._lexical = lexical
        self._snapshots = snapshots
        self._lock = lock
        self._encoder = encoder
        self._encoded_by = encoded_by
        self._based_on = State()

    def start(self) -> None:
        """Take the lock and finish what another writer may have left."""
        self._catalogue.connection  # noqa: B018 - says that it is closed before a lock is taken
        self._lock.acquire()
        state = self._catalogue.state()
        try:
            self._lexical.catch_up(self._catalogue, state)
        except StoreError as error:
            logger.warning("%s", error)
        self._based_on = self._view(patience=0.0).state

    def replace(
        self,
        records: Mapping[str, Record],
        live: Mapping[str, tuple[int, bytes]],
        gone: Mapping[int, bytes],
        sources: Mapping[str, str | None] | None = None,
        vectors: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> Changes:
        """Commit what differs.

        Args:
            records: passages that shall be there.
            live: {id: (row, hash)} of those ids that are there.
            gone: {row: hash} of passages that shall go.
            sources: digests to remember, None to forget.
            vectors: unit vectors by id, where they are known already; None to encode.
        """
        held = self._readable([row for id, (row, hash) in live.items() if records[id].hash == hash]) if records else {}
        fresh = [r for r in records.values() if r.id not in live or live[r.id][0] not in held]
        updated = {live[r.id][0]: live[r.id][1] for r in fresh if r.id in live}
        changes = Changes(
            len(fresh) - len(updated),
            len(updated),
            len(records) - len(fresh),
            len(gone),
            self._snapshots.last.state.version,
        )
        if not (fresh or gone or sources):
            return changes
        state = self._based_on
        encoded = self._encoded(fresh, [*updated, *gone]) if vectors is None else self._looked_up(fresh, vectors)
        come: list[SegmentRecord] = []
        go: list[str] = []
        with self._tidied():
            if fresh:
                rows = np.arange(state.next_row, state.next_row + len(fresh), dtype=np.int64)
                go, block = self._absorbed(rows, encoded)
                come = [self._written(*block, index="auto" if len(fresh) > _MERGE_LIMIT else "flat")]
            after = self._catalogue.commit(
                fresh,
                {**updated, **gone},
                sources=sources,
                segments=(come, go),
                dim=encoded.shape[1],
                based_on=state,
            )
        self._finish()
        return dataclasses.replace(changes, version=after.version)

    def compact(self, index: Kind | Literal["auto"]) -> Changes:
        """Purge removed rows, merge all segments, index the vectors, write BM25 anew."""
        view = self._snapshots.renewed(afresh=True)
        names = [segment.name for segment in view.segments]
        live = self._merged(view.segments, view.dead)
        have = [s.approximate.kind if s.approximate is not None else "flat" for s in view.segments]
        want = kind_for(len(live[0])) if index == "auto" else index
        if len(view.dead) or len(names) > 1 or (names and have != [want]):
            with self._tidied():
                fresh = [self._written(*live, index=want)] if len(live[0]) else []
                self._catalogue.commit([], {}, segments=(fresh, names), purge=True, based_on=self._based_on)
        with self._catalogue.errors():
            self._catalogue.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._lexical.rebuild(self._catalogue, self._catalogue.state())
        self._finish()
        return Changes(deleted=len(view.dead), version=self._snapshots.last.state.version)

    def _written(
        self, rows: NDArray[np.int64], vectors: NDArray[np.float32], *, index: Kind | Literal["auto"]
    ) -> SegmentRecord:
        """Write a segment, with its index, so that both are there when it is committed."""
        approximate = build(vectors, index)
        record = write_segment(self._folder, rows, vectors)
        if approximate is not None:
            try:
                save(approximate, self._folder.parent / INDEXES, record.name)
            except (OSError, RuntimeError) as error:
                raise StoreError(
                    f"{self._folder.parent / INDEXES} cannot be written: {error}; the last complete state is kept"
                ) from error
        return record

    def _absorbed(
        self, rows: NDArray[np.int64], vectors: NDArray[np.float32]
    ) -> tuple[list[str], tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Take in the last segments while they are not larger than what there is, so that there stay few.

        Sizes then fall by halves: of n rows there are about log2(n) small segments, and a row is rewritten about
        log2(n) times in its life.
        """
        taken: list[Segment] = []
        total = len(rows)
        for segment in reversed(self._snapshots.last.segments):
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
        for segment in segments:
            if segment.check is not None:
                segment.check.finish()  # damage must not be copied under a new checksum
        rows = np.concatenate([segment.rows for segment in segments])
        vectors = np.concatenate([segment.vectors for segment in segments])
        if len(without):
            keep = ~np.isin(rows, without, assume_unique=True)
            rows, vectors = rows[keep], vectors[keep]
        return rows, vectors

    def _encoded(self, fresh: list[Record], going: Sequence[int]) -> NDArray[np.float32]:
        if not self._encoded_by:
            return np.empty((len(fresh), 0), np.float32)
        dim = self._catalogue.state().dim
        if not fresh:
            return np.empty((0, dim), np.float32)
        # New metadata on an old text, or a new name for an old file, keep their vectors: encoding is the dearest step.
        rows = {passage.text: row for row, passage in self._readable(going).items()}
        old = [i for i, record in enumerate(fresh) if record.text in rows]
        new = [i for i, record in enumerate(fresh) if record.text not in rows]
        parts = []
        if new:
            parts.append((new, checked_vectors(self._encoder(), [fresh[i].text for i in new], dim or None)))
        if old:
            view = self._snapshots.current()
            parts.append((old, view.vectors_of(np.asarray([rows[fresh[i].text] for i in old], np.int64))))
        vectors = np.empty((len(fresh), parts[0][1].shape[1]), np.float32)
        for at, found in parts:
            vectors[at] = found
        return vectors

    def _readable(self, rows: Sequence[int]) -> dict[int, Passage]:
        """Return the passages of rows, those left out that are damaged: writing them again mends them."""
        try:
            return self._catalogue.passages(rows)
        except StoreError:
            found: dict[int, Passage] = {}
            for row in rows:
                with suppress(StoreError):
                    found |= self._catalogue.passages([row])
            return found

    def _looked_up(self, fresh: list[Record], vectors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        dim = self._catalogue.state().dim
        if not fresh:
            return np.empty((0, dim), np.float32)
        found = np.stack([vectors[record.id] for record in fresh])
        if dim and found.shape[1] != dim:
            raise DataError(f"the vectors have {found.shape[1]} dimensions, those in {self._folder.parent} have {dim}")
        return found

    def _view(self, *, patience: float) -> View:
        """Return the view of the last commit: what is merged, kept and removed follows from it."""
        view, state = self._snapshots.last, self._catalogue.state()
        if (view.state.version, view.state.layout) == (state.version, state.layout):
            return view
        return self._snapshots.renewed(patience=patience)

    def _finish(self) -> None:
        """The change is committed; bring what is derived from it up to date and show it, as far as that goes."""
        patience = PATIENCE
        try:
            self._lexical.catch_up(self._catalogue, self._catalogue.state())
        except StoreError as error:
            logger.warning("%s", error)
            patience = 0.0
        try:
            self._view(patience=patience)
        except (StoreError, OSError) as error:
            logger.warning("%s; the change is committed all the same", error)
        self._tidy()

    @contextmanager
    def _tidied(self) -> Iterator[None]:
        """Leave no file behind where a change is not committed."""
        try:
            yield
        except BaseException:
            self._tidy()
            raise

    def _tidy(self) -> None:
        """Delete files of segments that the catalogue does not name; what cannot be deleted now is the next time."""
        with suppress(StoreError, OSError):
            _, records, _ = self._catalogue.snapshot()
            remove_strangers(self._folder, {record.name for record in records})
