"""Intake: files into a knowledge base, several small ones in a commit, a large one in several.

One bad file costs itself alone: where a commit of several files is refused, each is tried by itself, and what is
refused for the sake of another (an id that the other is about to give up) is tried again at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.retrieval.knowledge_base import KnowledgeBase
from ragft_plugin.retrieval.sources import records_of
from ragft_plugin.types import Passage

_BATCH = 256  # passages per commit
_SLICE = 1024  # a file with more comes in several commits, so that an interruption costs little
_SECONDS = 5.0  # a commit at least so often


@dataclass(frozen=True, slots=True)
class Parcel:
    """What shall be known of one source.

    Attributes:
        source: its name.
        passages: all of them; none where the source is gone.
        digest: to remember; None forgets the source.
        size: what it counts in the progress, in bytes.
        replaces: a source that goes in the same commit, since this is its new name.
    """

    source: str
    passages: Sequence[Passage] = ()
    digest: str | None = None
    size: int = 0
    replaces: str | None = None


class Intake:
    """Takes parcels, and commits when it is worth its price.

    Args:
        kb: where they go.
        progress: called with the number of bytes that a commit has brought in.
    """

    def __init__(self, kb: KnowledgeBase, progress: Callable[[float], None]) -> None:
        self._kb, self._progress = kb, progress
        self._waiting: list[Parcel] = []
        self._passages = 0  # that are waiting
        self._refused: list[tuple[Parcel, str]] = []
        self._since = time.monotonic()
        self.added = self.updated = self.deleted = 0

    def put(self, parcel: Parcel) -> None:
        """Take a parcel.

        Raises:
            DataError: it can never be stored: metadata that are not JSON, text that is not Unicode, an id twice.
        """
        records_of({parcel.source: parcel.passages})
        if len(parcel.passages) > _SLICE:
            self.flush()
        self._waiting.append(parcel)
        self._passages += len(parcel.passages)
        if self._passages >= _BATCH or time.monotonic() - self._since > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit what is waiting."""
        waiting, self._waiting, self._passages = self._waiting, [], 0
        self._store(waiting)
        self._since = time.monotonic()

    def finish(self) -> list[tuple[str, str]]:
        """Commit all that is left; return (source, reason) of what was refused."""
        self.flush()
        while self._refused:
            again, self._refused = self._refused, []
            for parcel, _ in again:
                self._store([parcel])
            if len(self._refused) == len(again):
                break
        return [(parcel.source, reason) for parcel, reason in self._refused]

    def _store(self, parcels: Sequence[Parcel]) -> None:
        try:
            if len(parcels) == 1 and len(parcels[0].passages) > _SLICE and parcels[0].replaces is None:
                self._slice(parcels[0])
            shall: dict[str, tuple[Sequence[Passage], str | None]] = {}
            for parcel in parcels:
                if parcel.replaces is not None:
                    shall[parcel.replaces] = ((), None)
                shall[parcel.source] = (parcel.passages, parcel.digest)
            self._commit(shall)
            self._progress(sum(parcel.size for parcel in parcels))
        except (DataError, ConfigError) as error:
            if len(parcels) == 1:
                self._refused.append((parcels[0], str(error)))
                return
            for parcel in parcels:
                self._store([parcel])

    def _slice(self, parcel: Parcel) -> None:
        """Store the passages of a large file bit by bit; the commit of the whole then finds most of them there."""
        taken = self._kb.get([passage.id for passage in parcel.passages])
        if any(passage.metadata.get("source") != parcel.source for passage in taken):
            return  # will be refused, so nothing of it shall be there
        for start in range(0, len(parcel.passages), _SLICE):
            part = parcel.passages[start : start + _SLICE]
            self._commit({parcel.source: (part, None)}, partial=True)
            self._progress(parcel.size * len(part) / len(parcel.passages))

    def _commit(self, shall: Mapping[str, tuple[Sequence[Passage], str | None]], *, partial: bool = False) -> None:
        if shall:
            changes = self._kb.replace_sources(shall, partial=partial)
            self.added += changes.added
            self.updated += changes.updated
            self.deleted += changes.deleted
