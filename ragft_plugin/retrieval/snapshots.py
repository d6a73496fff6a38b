"""Snapshots: the current view of a knowledge base, whoever has changed it.

SQLite commits first, BM25 follows. A reader moves on to a new version only when both are there, so it may lag by the
milliseconds in between, but never mixes two versions. Where a writer has died in between, the next process that may
write finishes its work; one that may not builds BM25 in memory. A writer never lags: what it merges and removes
follows from what it sees.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import numpy as np

from ragft_plugin.errors import StoreError
from ragft_plugin.retrieval.bm25 import Lexicon
from ragft_plugin.retrieval.catalogue import Catalogue
from ragft_plugin.retrieval.filters import Column
from ragft_plugin.retrieval.lexical import LexicalIndex
from ragft_plugin.retrieval.lock import WriterLock
from ragft_plugin.retrieval.records import State
from ragft_plugin.retrieval.segments import Segment, SegmentMissing, open_segment
from ragft_plugin.retrieval.view import View

logger = logging.getLogger(__name__)

_MOMENT = 0.5  # seconds in which a merge of another process ends, which may look like damage
PATIENCE = 2.0  # seconds for another process to finish writing before BM25 is built in memory


class Snapshots:
    """Makes views and swaps them in.

    Args:
        folder: of the segments.
        catalogue: says what there is.
        lexical: BM25 on disk.
        lock: of the writer, to finish what a dead one has left; None to write nothing.
        writing: held by this process while it writes itself.
    """

    def __init__(
        self,
        folder: Path,
        catalogue: Catalogue,
        lexical: LexicalIndex,
        lock: WriterLock | None,
        writing: threading.RLock,
    ) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self._lexical = lexical
        self._lock = lock
        self._writing = writing
        self._swapping = threading.Lock()
        self._columns: dict[tuple[str, str], Column] = {}
        self._behind: dict[int, float] = {}  # version of a commit whose BM25 is not there yet: until when to wait
        self.last = self._make(None, PATIENCE)

    def close(self) -> None:
        """Stop what checks large files in the background."""
        for segment in self.last.segments:
            if segment.check is not None:
                segment.check.stop()

    def current(self) -> View:
        """Return a view of the last commit that is complete, whoever made it."""
        view, state = self.last, self._catalogue.state()
        if (state.version, state.layout) == (view.state.version, view.state.layout):
            return view
        with self._swapping:
            if self.last is view:
                self.last = self._make(view, PATIENCE)
            return self.last

    def renewed(self, *, patience: float = PATIENCE, afresh: bool = False) -> View:
        """Make a view of the last commit in any case and return it.

        Args:
            patience: seconds to wait for BM25 before it is built in memory.
            afresh: read everything anew, nothing taken over from the last view.
        """
        with self._swapping:
            self.last = self._make(None if afresh else self.last, patience, may_lag=False)
            return self.last

    def _make(self, old: View | None, patience: float, *, may_lag: bool = True) -> View:
        deadline = time.monotonic() + patience
        while True:
            state, records, removed = self._catalogue.snapshot()
            until = self._behind.setdefault(state.version, deadline) if may_lag else deadline
            lexicon = self._lexicon(state, old, until)
            if lexicon is None:
                if may_lag and old is not None:
                    return old
                time.sleep(0.005)
                continue
            self._behind.clear()
            known = {segment.name: segment for segment in (old.segments if old is not None else ())}
            try:
                segments = tuple(known.get(record.name) or open_segment(self._folder, record) for record in records)
            except SegmentMissing as error:
                if self._catalogue.state() == state:
                    raise StoreError(
                        f"{error} is missing; restore it from a copy or index the documents again"
                    ) from error
                continue
            self._forget_columns(segments)
            dead = np.sort(np.asarray(removed, np.int64))
            return View(state, segments, dead, lexicon, self._catalogue, self._columns)

    def _forget_columns(self, segments: tuple[Segment, ...]) -> None:
        names = {segment.name for segment in segments}
        for key in [key for key in list(self._columns) if key[0] not in names]:
            self._columns.pop(key, None)

    def _lexicon(self, state: State, old: View | None, until: float) -> Lexicon | None:
        """Return BM25 of a state; None, up to a time, where it is behind."""
        if old is not None and (old.state.version, old.state.next_row) == (state.version, state.next_row):
            return old.lexicon
        lexicon = self._lexical.pinned(state)
        if lexicon is None and state.next_row and self._repair():
            lexicon = self._lexical.pinned(state)
        if lexicon is not None:
            return lexicon
        if state.next_row:
            problem = self._lexical.problem
            if time.monotonic() < (until if problem is None else until - PATIENCE + _MOMENT):
                return None
            told = problem or "is behind and cannot be written"
            logger.warning("BM25 of %s: %s; building it in memory", self._folder.parent, told)
        return self._lexical.in_memory(self._catalogue, state)

    def _repair(self) -> bool:
        """Catch up where a writer died between its two commits; False if one is alive or nothing may be written."""
        if self._lock is None or not self._writing.acquire(blocking=False):
            return False
        ours = self._lock.held  # and the change that is to be finished may be one of ours that was interrupted
        try:
            self._lock.acquire(patience=0.0)
            self._lexical.catch_up(self._catalogue, self._catalogue.state())
            if not ours:
                self._lexical.stop_writing()
        except StoreError as error:
            logger.debug("BM25 of %s: %s", self._folder.parent, error)
            return False
        finally:
            if not ours:
                self._lock.release()
            self._writing.release()
        return True
