"""Searching: from checked questions to passages of one snapshot, whatever is written meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError, StoreError
from ragft_plugin.retrieval import filters
from ragft_plugin.retrieval.catalogue import Catalogue
from ragft_plugin.retrieval.snapshots import Snapshots
from ragft_plugin.retrieval.view import MODES, Hit, Mode, StaleView, View
from ragft_plugin.types import Filter, Passage

KB_KEY = "kb"  # metadata that retrieval adds
_CACHED = 10_000  # passages kept in memory


class Searching:
    """Searches the current view and fetches what was found.

    Args:
        path: of the knowledge base, for messages.
        catalogue: holds the passages.
        snapshots: give the views.
        require_filter: refuse a search without one.
    """

    def __init__(self, path: Path, catalogue: Catalogue, snapshots: Snapshots, *, require_filter: bool) -> None:
        self._path = path
        self._catalogue = catalogue
        self._snapshots = snapshots
        self._require_filter = require_filter
        self._passages: dict[int, Passage] = {}

    def check(self, queries: Sequence[str], k: int, filter: Filter | None, mode: str) -> None:
        """Refuse what cannot be searched for.

        Raises:
            ConfigError: naming what and why.
        """
        if isinstance(queries, str):
            raise ConfigError("queries must be a list of texts, got one text; write [query]")
        for query in queries:
            if not isinstance(query, str):
                raise ConfigError(f"queries must be texts, got {type(query).__name__}: {query!r:.80}")
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 0:
            raise ConfigError(f"k must be a number of passages, 0 or more; got {k!r}")
        if filter is not None:
            filters.check(filter)
        if self._require_filter and (filter is None or filters.says_nothing(filter)):
            raise ConfigError(
                f"{self._path} requires a filter for every retrieval; got none, or an empty part: {filter!r}"
            )
        if mode not in MODES:
            raise ConfigError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")

    def search(
        self,
        view: View,
        mode: Mode,
        texts: Sequence[str],
        vectors: NDArray[np.float32] | None,
        k: int,
        filter: Filter | None,
        threshold: float | None,
    ) -> list[list[Passage]]:
        """Return the best passages of each query; arguments as in ``View.search``, checked."""
        for _ in range(5):
            try:
                hits = view.search(mode, texts, vectors, k, filter)
                if threshold is not None:
                    hits = [[hit for hit in found if hit.score >= threshold] for found in hits]
                return self._fetched(view, hits)
            except StaleView:
                view = self._snapshots.renewed(afresh=True)
        raise StoreError(
            f"{self._path}: rows are missing from {self._catalogue.path.name}; it is damaged. Index the documents again"
        )

    def _fetched(self, view: View, hits: list[list[Hit]]) -> list[list[Passage]]:
        cache = self._passages
        rows = {hit.row for found in hits for hit in found}
        known = {row: passage for row in rows if (passage := cache.get(row)) is not None}
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
        return [[_hit_passage(known[hit.row], hit, version) for hit in found] for found in hits]


def _hit_passage(passage: Passage, hit: Hit, version: int) -> Passage:
    # The caller may change what it gets; what is kept for the next answer must not change with it.
    own = {k: deepcopy(v) if isinstance(v, (list, dict)) else v for k, v in passage.metadata.items()}
    metadata = {**own, KB_KEY: {"version": version, **hit.parts}}
    return Passage(passage.id, passage.text, hit.score, metadata)
