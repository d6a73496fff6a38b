"""Documents of LangChain <-> passages: one function per direction, each the other's inverse."""

from __future__ import annotations

from hashlib import blake2b

from langchain_core.documents import Document

from ragft_plugin.types import Passage

# Where LangChain's own rerankers and stores leave a document's score.
SCORE_KEY = "relevance_score"


def document_from(passage: Passage, **extra: object) -> Document:
    """A LangChain document of a passage; its score stands in the metadata under ``relevance_score``.

    Args:
        passage: what to convert; it is not changed.
        **extra: further metadata.

    Example:
        >>> document_from(Passage("7", "In Rome.", 0.5, {"source": "a.md"}))
        Document(id='7', metadata={'source': 'a.md', 'relevance_score': 0.5}, page_content='In Rome.')
    """
    return Document(passage.text, id=passage.id, metadata={**passage.metadata, SCORE_KEY: passage.score, **extra})


def passage_from(document: Document, *, score: float = 0.0) -> Passage:
    """A passage of a LangChain document; the document is not changed.

    Args:
        document: what a retriever returned.
        score: relevance, if the metadata tell none; higher is better.

    A document without an id gets one made of its source and text, the same in every process.
    """
    metadata = dict(document.metadata)
    found = metadata.pop(SCORE_KEY, None)
    return Passage(
        id=document.id or str(metadata.get("id") or _fingerprint(document)),
        text=document.page_content,
        score=float(score if found is None else found),
        metadata=metadata,
    )


def _fingerprint(document: Document) -> str:
    source = str(document.metadata.get("source", ""))
    return blake2b(f"{source}\0{document.page_content}".encode(), digest_size=8).hexdigest()
