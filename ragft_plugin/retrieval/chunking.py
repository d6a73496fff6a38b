"""Chunking: documents -> passages that say where they stand.

The cutting itself is done by ``semantic-text-splitter`` (Rust, no dependencies): it prefers headings, paragraphs,
sentences and words, in this order, and tells offsets. What is added here are ids that stay the same as long as source
and text do, and metadata: ``source``, ``start``, ``end`` (characters of the document's text), ``title`` and ``page``
where the reader knows them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from ragft_plugin.errors import ConfigError
from ragft_plugin.types import Metadata, Passage

_LINE = 50_000  # characters
_LONG_LINE = re.compile(rf"[^\n]{{{_LINE + 1},}}")


@dataclass(frozen=True, slots=True)
class Document:
    """A text with a source of its own: a file, a page of one, or a row of one.

    Attributes:
        text: the text that offsets refer to.
        metadata: ``source`` (needed) and whatever is known of it.
        id: stable id given by the source, or None.
        markdown: cut at headings.
    """

    text: str
    metadata: Metadata = field(default_factory=dict)
    id: str | None = None
    markdown: bool = False


class Splitter(Protocol):
    """Cuts documents into passages: ``Chunker``, ``ParentChunker``, or your own."""

    @property
    def fingerprint(self) -> str:
        """Names the way of cutting; passages cut another way are cut again."""
        ...

    def split(self, documents: Iterable[Document]) -> list[Passage]:
        """Return the passages of the documents of one source, in order, each with that ``metadata["source"]``."""
        ...


@dataclass(frozen=True, slots=True)
class Chunker:
    """Cuts documents into passages.

    Args:
        size: at most this many characters in a passage; MiniLM reads about 1,000.
        overlap: at most this many characters that neighbours share, at sentence or word borders.

    Example:
        >>> [p] = Chunker().split([Document("Brelkon stands in Tarmora.", {"source": "sites.md"})])
        >>> p.metadata["start"], p.metadata["end"]
        (0, 26)
    """

    size: int = 1000
    overlap: int = 100

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.overlap < self.size:
            raise ConfigError(f"chunks need 0 <= overlap < size; got size {self.size}, overlap {self.overlap}")

    @property
    def fingerprint(self) -> str:
        """Names the way of cutting; passages cut another way are cut again."""
        return f"chunks-1-{self.size}-{self.overlap}"

    def split(self, documents: Iterable[Document]) -> list[Passage]:
        """Return the passages of the documents of one source, in order, blank ones left out."""
        splitters: dict[bool, MarkdownSplitter | TextSplitter] = {
            True: MarkdownSplitter(self.size, overlap=self.overlap),
            False: TextSplitter(self.size, overlap=self.overlap),
        }
        repeats: Counter[str] = Counter()
        passages = []
        for document in documents:
            chunks = [
                (offset + start, text)
                for offset, part in _manageable(document.text)
                for start, text in splitters[document.markdown].chunk_indices(part)
            ]
            for number, (start, text) in enumerate(chunks, start=1):
                place = {"start": start, "end": start + len(text)}
                if document.id is None:
                    id = _content_id(str(document.metadata.get("source", "")), text, repeats)
                else:
                    id = document.id if len(chunks) == 1 else f"{document.id}#{number}"
                passages.append(Passage(id, text, metadata={**document.metadata, **place}))
        return passages


def _manageable(text: str) -> Iterator[tuple[int, str]]:
    """Yield a text with its offset, cut at spaces within lines so long that the splitter takes quadratic time."""
    begin = 0
    for line in _LONG_LINE.finditer(text):
        at = line.start()
        while line.end() - at > _LINE:
            cut = text.rfind(" ", at, at + _LINE) + 1 or at + _LINE
            yield begin, text[begin:cut]
            begin = at = cut
    yield begin, text[begin:]


def _content_id(source: str, text: str, repeats: Counter[str]) -> str:
    id = f"{source}#{hashlib.blake2b(text.encode('utf-8', 'replace'), digest_size=8).hexdigest()}"
    repeats[id] += 1
    return id if repeats[id] == 1 else f"{id}-{repeats[id]}"


def deduplicated(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Yield passages whose text, white space and case aside, has not come before."""
    seen: set[bytes] = set()
    for passage in passages:
        digest = text_digest(passage.text)
        if digest not in seen:
            seen.add(digest)
            yield passage


def text_digest(text: str) -> bytes:
    """Return 16 bytes that are the same for texts that differ in white space and case only."""
    plain = " ".join(text.casefold().split())
    return hashlib.blake2b(plain.encode("utf-8", "replace"), digest_size=16).digest()
