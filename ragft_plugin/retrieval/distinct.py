"""Distinct texts: of passages with the same text in a folder, one is kept.

The file that keeps a text is its owner. What a file has left out is remembered with it, as the owners' names and
checksums, so that it is read again when an owner changes or goes: a text is gone only when no file says it any more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ragft_plugin.retrieval.chunking import text_digest
from ragft_plugin.types import Passage

if TYPE_CHECKING:
    from ragft_plugin.retrieval.knowledge_base import KnowledgeBase

_BATCH = 1024


class DistinctTexts:
    """Says which files need no reading, and which passages of the others are new.

    Args:
        kb: the knowledge base.
        mark: what the remembered digest of a file starts with: how it was cut.
        before: {source: remembered digest}.
        checksums: {source: checksum of the file} of all files that can be read.
    """

    def __init__(self, kb: KnowledgeBase, mark: str, before: Mapping[str, str], checksums: Mapping[str, str]) -> None:
        self._mark, self._checksums, self._before = mark, checksums, before
        self._unchanged = {source for source in checksums if self._stands(source, before.get(source, ""))}
        self._owners: dict[bytes, str] = {}
        self.left_out = 0
        if len(self._unchanged) < len(checksums):
            ids = kb.ids()
            for start in range(0, len(ids), _BATCH):
                for passage in kb.get(ids[start : start + _BATCH]):
                    if passage.metadata.get("source") in self._unchanged:
                        self._owners.setdefault(text_digest(passage.text), passage.metadata["source"])

    def unchanged(self, source: str) -> bool:
        """Say whether a file need not be read: neither it nor an owner of what it left out has changed."""
        return source in self._unchanged

    def taken(self, source: str, passages: Sequence[Passage]) -> tuple[list[Passage], str]:
        """Return the passages whose texts no other file keeps, and the digest to remember."""
        kept: list[Passage] = []
        own: set[bytes] = set()
        owners: dict[str, str] = {}
        for passage in passages:
            digest = text_digest(passage.text)
            owner = self._owners.setdefault(digest, source)
            if owner != source:
                owners[owner] = self._checksums.get(owner, "")
            elif digest not in own:
                own.add(digest)
                kept.append(passage)
        self.left_out += len(passages) - len(kept)
        return kept, f"{self._mark}{self._checksums.get(source, '')}|{json.dumps(owners, sort_keys=True)}"

    def _stands(self, source: str, remembered: str) -> bool:
        start = f"{self._mark}{self._checksums[source]}|"
        if not remembered.startswith(start):
            return False
        owners = json.loads(remembered[len(start) :])
        return all(
            # An owner that was refused in the end keeps nothing.
            self._checksums.get(owner) == checksum and self._before.get(owner, "").startswith(self._mark + checksum)
            for owner, checksum in owners.items()
        )
