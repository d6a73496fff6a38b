"""Parents: small chunks are searched, the larger text around them is returned.

A small chunk is found more exactly; a reader understands a larger one. ``ParentChunker`` cuts a document into parents
and each parent into children, which are the passages of the knowledge base; they cover their parent without a gap, so
``ParentRetriever`` puts a parent together from them and nothing is stored twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Protocol

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from ragft_plugin.errors import ConfigError
from ragft_plugin.retrieval.chunking import Chunker, Document
from ragft_plugin.retrieval.filters import matches
from ragft_plugin.types import Filter, Passage

PARENT_KEY, CHILDREN_KEY = "parent", "children"
_KB_KEY = "kb"


@dataclass(frozen=True, slots=True)
class ParentChunker:
    """Cuts documents into children that know their parents; goes wherever a ``Chunker`` goes.

    A child's ``metadata["parent"]`` is ``{"id", "start", "end", "children"}``: where the parent stands in the document
    and how many children it has; they are called ``<parent's id>/1``, ``/2``, ...

    Args:
        parents: how to cut parents; without overlap, so that no text is found twice.
        size: at most this many characters in a child, white space at its end aside.

    Example:
        >>> cut = ParentChunker(size=20)
        >>> [p.text for p in cut.split([Document("Brelkon stands there. It is old.", {"source": "a.md"})])]
        ['Brelkon stands ', 'there. It is old.']
    """

    parents: Chunker = field(default_factory=lambda: Chunker(2000, 0))
    size: int = 400

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.parents.size:
            raise ConfigError(f"children need 1 <= size <= {self.parents.size}, the parents' size; got {self.size}")

    @property
    def fingerprint(self) -> str:
        """Names the way of cutting; passages cut another way are cut again."""
        return f"{self.parents.fingerprint}-children-1-{self.size}"

    def split(self, documents: Iterable[Document]) -> list[Passage]:
        """Return the children of the documents of one source, in order."""
        kept = list(documents)
        children = []
        for document in kept:
            if PARENT_KEY in document.metadata or CHILDREN_KEY in document.metadata:
                raise ConfigError(f'documents cut into parents and children cannot have metadata "{PARENT_KEY}"')
        for parent, markdown in _parents(self.parents, kept):
            pieces = _tiles(parent.text, self.size, markdown=markdown)
            start = int(parent.metadata["start"])
            place = {"id": parent.id, "start": start, "end": parent.metadata["end"], "children": len(pieces)}
            for number, (offset, text) in enumerate(pieces, start=1):
                span = {"start": start + offset, "end": start + offset + len(text), PARENT_KEY: place}
                children.append(Passage(f"{parent.id}/{number}", text, metadata={**parent.metadata, **span}))
        return children


class Searchable(Protocol):
    """What holds children: a ``KnowledgeBase``."""

    def retrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None, **options: Any) -> Any:
        """Return up to ``k`` passages per query, best first."""
        ...

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """Return the passages of these ids."""
        ...


class ParentRetriever:
    """Finds children and returns their parents, each once, at the place of its best child.

    A parent's score is that of its best child; ``metadata["children"]`` tells every child that was found, best first,
    as ``{"id", "start", "end", "score"}``, so that a citation can point to the lines that matter. Passages without a
    parent are returned as they are. Of a parent, only children within the filter are shown. A child whose siblings
    have just been deleted is returned alone.

    Args:
        children: a knowledge base whose passages come from a ``ParentChunker``.
        breadth: children to ask for per parent wanted; more are asked for as long as parents are lacking.

    Example:
        >>> import tempfile
        >>> from ragft_plugin.retrieval import KnowledgeBase
        >>> document = Document("Brelkon stands in Tarmora. It was built in 1911.", {"source": "a.md"})
        >>> with KnowledgeBase.create(tempfile.mkdtemp() + "/kb") as kb:
        ...     changes = kb.add(ParentChunker(size=30).split([document]))
        ...     ParentRetriever(kb).retrieve(["When was it built?"], k=1)[0][0].text
        'Brelkon stands in Tarmora. It was built in 1911.'
    """

    def __init__(self, children: Searchable, *, breadth: int = 4) -> None:
        if breadth < 1:
            raise ConfigError(f"breadth must be 1 or more; got {breadth}")
        self.children = children
        self._breadth = breadth

    @property
    def fingerprint(self) -> str:
        """As that of the knowledge base."""
        return str(getattr(self.children, "fingerprint", ""))

    def retrieve(
        self, queries: Sequence[str], k: int, filter: Filter | None = None, **options: Any
    ) -> list[list[Passage]]:
        """Return up to ``k`` parents per query, best first.

        Args:
            queries: texts.
            k: at most this many per query.
            filter: condition on the metadata of children.
            **options: of ``KnowledgeBase.retrieve``, but for ``vectors``.
        """
        asked = max(k, 0) * self._breadth
        found: list[list[Passage]] = self.children.retrieve(queries, asked, filter, **options)
        while lacking := [i for i, hits in enumerate(found) if len(hits) == asked and 0 < len(_grouped(hits)) < k]:
            asked *= 4
            more = self.children.retrieve([queries[i] for i in lacking], asked, filter, **options)
            for i, hits in zip(lacking, more, strict=True):
                found[i] = hits
        groups = [list(_grouped(hits).values())[:k] for hits in found]
        siblings = {p.id: p for p in self.children.get(sorted(_sibling_ids(chain.from_iterable(groups))))}
        return [[_parent(group, siblings, filter) for group in one] for one in groups]

    async def aretrieve(
        self, queries: Sequence[str], k: int, filter: Filter | None = None, **options: Any
    ) -> list[list[Passage]]:
        """As ``retrieve``, in a thread."""
        return await asyncio.to_thread(self.retrieve, queries, k, filter, **options)


def _parents(chunker: Chunker, documents: Sequence[Document]) -> Iterator[tuple[Passage, bool]]:
    """Yield each parent, and whether it is Markdown; ids differ as if all were cut at once."""
    markdown: dict[int, bool] = {}
    marked = []
    for number, document in enumerate(documents):
        markdown[number] = document.markdown
        marked.append(replace(document, metadata={**document.metadata, CHILDREN_KEY: number}))
    for parent in chunker.split(marked):
        metadata = dict(parent.metadata)
        yield replace(parent, metadata=metadata), markdown[metadata.pop(CHILDREN_KEY)]


def _tiles(text: str, size: int, *, markdown: bool) -> list[tuple[int, str]]:
    """Cut a text into pieces that cover it; blank ones go to the piece before."""
    splitter = (MarkdownSplitter if markdown else TextSplitter)(size, trim=False)
    pieces: list[tuple[int, str]] = []
    for start, piece in splitter.chunk_indices(text):
        if pieces and (not piece.strip() or not pieces[-1][1].strip()):
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + piece)
        else:
            pieces.append((start, piece))
    return pieces


def _place(passage: Passage) -> Mapping[str, Any] | None:
    place = passage.metadata.get(PARENT_KEY)
    return place if isinstance(place, Mapping) and isinstance(place.get("children"), int) else None


def _grouped(hits: Iterable[Passage]) -> dict[str, list[Passage]]:
    """Return the hits of each parent, best first, in order of the parents' best."""
    groups: dict[str, list[Passage]] = {}
    for hit in hits:
        place = _place(hit)
        groups.setdefault(hit.id if place is None else f"parent {place['id']}", []).append(hit)
    return groups


def _sibling_ids(groups: Iterable[Sequence[Passage]]) -> set[str]:
    places = [place for group in groups if (place := _place(group[0])) is not None]
    return {f"{place['id']}/{n}" for place in places for n in range(1, place["children"] + 1)}


def _parent(group: Sequence[Passage], siblings: Mapping[str, Passage], filter: Filter | None) -> Passage:
    best = group[0]
    place = _place(best)
    if place is None:
        return best
    wanted = [f"{place['id']}/{n}" for n in range(1, place["children"] + 1)]
    if any(id not in siblings for id in wanted):
        return best
    shown = [siblings[id] for id in wanted if not filter or matches(filter, siblings[id].metadata)]
    metadata = {key: value for key, value in best.metadata.items() if key != PARENT_KEY}
    metadata["start"], metadata["end"] = shown[0].metadata["start"], shown[-1].metadata["end"]
    metadata[CHILDREN_KEY] = [
        {"id": hit.id, "start": hit.metadata["start"], "end": hit.metadata["end"], "score": hit.score} for hit in group
    ]
    return Passage(str(place["id"]), "".join(child.text for child in shown), best.score, metadata)
