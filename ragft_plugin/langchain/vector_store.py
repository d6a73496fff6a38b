"""The knowledge base as a vector store: hybrid, filtered before the search, durable, without pickle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from ragft_plugin.errors import ConfigError
from ragft_plugin.langchain.embeddings import EmbeddingsEncoder, EncoderEmbeddings
from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.retrieval.fusion import mmr
from ragft_plugin.types import Filter, Passage


class KnowledgeBaseVectorStore(VectorStore):
    """A vector store of LangChain over a ``KnowledgeBase``; ``index()`` and ``as_retriever()`` work as with any other.

    Adding a document whose id is there already replaces it; deleting ids that are not there does nothing. A filter is
    a condition on metadata (grammar in ``ragft_plugin.retrieval.filters``) that holds for every document returned.
    Scores are higher for better; what they mean depends on the mode.

    Args:
        knowledge_base: opened or just created.
        mode: how to rank: "hybrid", "dense", "bm25", "rrf" or "mmr"; None means the knowledge base's default.

    Example:
        >>> import tempfile
        >>> store = KnowledgeBaseVectorStore.from_texts(
        ...     ["Brelkon stands in Tarmora.", "Ovens are hot."], None, path=tempfile.mkdtemp() + "/kb"
        ... )
        >>> store.similarity_search("Where is Brelkon?", k=1)[0].page_content
        'Brelkon stands in Tarmora.'
    """

    def __init__(self, knowledge_base: KnowledgeBase, *, mode: Any = None) -> None:
        self.knowledge_base = knowledge_base
        self.mode = mode

    @classmethod
    def create(cls, path: str | Path, embedding: Embeddings | None = None, **options: Any) -> Self:
        """Make an empty store in a new directory.

        Args:
            path: the directory.
            embedding: makes the vectors; None takes the hashing encoder, which needs no model.
            **options: ``mode``; the rest is for ``KnowledgeBase.create``.
        """
        mode = options.pop("mode", None)
        return cls(KnowledgeBase.create(path, "hashing" if embedding is None else embedding, **options), mode=mode)

    @classmethod
    def open(cls, path: str | Path, embedding: Embeddings | None = None, **options: Any) -> Self:
        """Open the store in a directory.

        Args:
            path: the directory.
            embedding: the one it was created with, if it was; any that makes the same vectors will do.
            **options: ``mode``; the rest is for ``KnowledgeBase.open``.

        Raises:
            StoreError: if there is none, or it was made with other embeddings.
        """
        mode = options.pop("mode", None)
        return cls(KnowledgeBase.open(path, encoder=embedding, **options), mode=mode)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None,  # none is needed
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        path: str | Path | None = None,
        **options: Any,
    ) -> Self:
        """Make a store of texts in a new directory, ``path``."""
        if path is None:
            raise ConfigError("a knowledge base lies in a directory; pass path= (a new one)")
        store = cls.create(path, embedding, **options)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @property
    def embeddings(self) -> Embeddings | None:
        """What makes the vectors; None for a knowledge base that ranks by words alone."""
        encoder = self.knowledge_base.encoder
        if encoder is None:
            return None
        return encoder.embeddings if isinstance(encoder, EmbeddingsEncoder) else EncoderEmbeddings(encoder)

    # ------------------------------------------------------------------------------------------------------ writing

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts; returns their ids, made up where none are given.

        Raises:
            ConfigError: if there are not as many metadata or ids as texts.
            DataError: if metadata are not JSON.
        """
        listed = list(texts)
        for name, given in (("metadatas", metadatas), ("ids", ids)):
            if given is not None and len(given) != len(listed):
                raise ConfigError(f"{len(listed)} texts came with {len(given)} {name}; give one for each, or none")
        names = [one or str(uuid4()) for one in (ids or [""] * len(listed))]
        rows = zip(names, listed, metadatas or [{}] * len(listed), strict=True)
        self.knowledge_base.add([Passage(id, text, metadata=dict(metadata)) for id, text, metadata in rows])
        return names

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As ``add_texts``, in a thread."""
        return await asyncio.to_thread(lambda: self.add_texts(texts, metadatas, ids=ids, **kwargs))

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents by id; None deletes all. Ids that are not there are ignored."""
        self.knowledge_base.delete(self.knowledge_base.ids() if ids is None else ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of these ids that are there, in their order."""
        return [_document(passage) for passage in self.knowledge_base.get(ids)]

    # ---------------------------------------------------------------------------------------------------- searching

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Documents for a question with their scores, best first.

        Args:
            query: the question.
            k: at most so many.
            filter: condition on metadata.
            **kwargs: ``mode`` and ``threshold`` of ``KnowledgeBase.retrieve``.
        """
        (found,) = self.knowledge_base.retrieve([query], k, filter, **{"mode": self.mode, **kwargs})
        return [(_document(passage), passage.score) for passage in found]

    def similarity_search(self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any) -> list[Document]:
        """As ``similarity_search_with_score``, without the scores."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Documents nearest to a vector, nearest first.

        Raises:
            ConfigError: if the vector is of another dimension than the store's.
        """
        return [_document(passage) for passage in self._nearest(embedding, k, filter, **kwargs)]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Documents near to the question but unlike each other.

        Args:
            query: the question.
            k: how many.
            fetch_k: from how many of the nearest they are chosen.
            lambda_mult: 1 looks at nearness alone, 0 at difference alone.
            **kwargs: ``filter``.
        """
        if self.knowledge_base.encoder is None:
            raise ConfigError("this knowledge base has no vectors, so nothing tells which documents are alike")
        (vector,) = self.knowledge_base.encode([query]).tolist()
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """As ``max_marginal_relevance_search``, for a vector."""
        found = self._nearest(embedding, fetch_k, kwargs.get("filter"))
        vectors = self.knowledge_base.vectors([passage.id for passage in found])
        relevance = np.array([passage.score for passage in found])
        return [_document(found[i]) for i in mmr(relevance, vectors, k, weight=lambda_mult)]

    def _nearest(self, embedding: list[float], k: int, filter: Filter | None, **options: Any) -> list[Passage]:
        # The text is not looked at in this mode, but an empty one would find nothing.
        vectors = np.asarray([embedding], dtype=np.float64)
        options = {**options, "mode": "dense", "vectors": vectors}
        return self.knowledge_base.retrieve(["(a vector)"], k, filter, **options)[0]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        # The inherited method takes the scale before it looks at the call, which may name another mode than the store.
        found = self.similarity_search_with_score(query, k, **kwargs)
        scaled = self._scale(kwargs.get("mode", self.mode))
        return [(document, scaled(score)) for document, score in found]

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return await asyncio.to_thread(self._similarity_search_with_relevance_scores, query, k, **kwargs)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return self._scale(self.mode)

    def _scale(self, mode: str | None) -> Callable[[float], float]:
        return _SCALES[mode or ("bm25" if self.knowledge_base.encoder is None else "hybrid")]


# Scores of each mode -> relevance from 0 to 1, as LangChain wants it.
_SCALES: dict[str, Callable[[float], float]] = {
    "hybrid": lambda score: score,
    "dense": lambda cosine: (1.0 + cosine) / 2.0,
    "mmr": lambda cosine: (1.0 + cosine) / 2.0,
    "rrf": lambda score: score * 61.0 / 2.0,
    "bm25": lambda score: score / (1.0 + score),
}


def _document(passage: Passage) -> Document:
    """The document as it was added; how it was found does not belong to it."""
    metadata = {name: value for name, value in passage.metadata.items() if name != "kb"}
    return Document(passage.text, id=passage.id, metadata=metadata)
