"""LangChain's retrievers and vector stores as retrievers of the pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore, VectorStoreRetriever

from ragft_plugin.errors import ConfigError, GenerationError
from ragft_plugin.langchain.documents import SCORE_KEY, passage_from
from ragft_plugin.langchain.runs import configs_of
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.retrieval.filters import check, matches
from ragft_plugin.types import Filter, Passage, Retriever


def from_retriever(source: BaseRetriever | VectorStore | Runnable[str, list[Document]] | Retriever) -> Retriever:
    """Anything of LangChain's that finds documents, as a retriever of the pipeline.

    Args:
        source: a retriever, a vector store (asked for scores), any Runnable from a question to documents, or a
            retriever of the pipeline already. A ``RoutedRetriever`` is unwrapped, so that nothing is routed twice.

    Raises:
        ConfigError: if it is none of these.

    Example:
        >>> from langchain_core.runnables import RunnableLambda
        >>> found = from_retriever(RunnableLambda(lambda question: [Document("In Rome.", id="7")]))
        >>> found.retrieve(["Where?"], k=3)
        [[Passage(id='7', text='In Rome.', score=1.0, metadata={})]]
    """
    pipeline = getattr(source, "pipeline", None)
    if isinstance(pipeline, Pipeline):
        if pipeline.retriever is None:
            raise ConfigError(f"{type(source).__name__} has a pipeline without a retriever")
        return pipeline.retriever
    if isinstance(source, VectorStore):
        return RunnableRetriever(ScoredStoreRetriever(vectorstore=source))
    if type(source) is VectorStoreRetriever and source.search_type == "similarity":
        return RunnableRetriever(ScoredStoreRetriever(**dict(source)))
    if isinstance(source, Runnable):
        return RunnableRetriever(source)
    if isinstance(source, Retriever):
        return source
    raise ConfigError(
        f"{type(source).__name__} finds no documents: a retriever is a LangChain retriever, a vector store, a Runnable "
        "from a question to documents, or has a method retrieve(queries, k, filter)"
    )


class RunnableRetriever:
    """A Runnable from a question to documents, as a retriever of the pipeline.

    Args:
        source: asked through ``batch`` and ``abatch``, with the callbacks of the run that asks. ``k`` and ``filter``
            are handed over if it takes them; if not, what it finds is cut to ``k`` and sieved by the filter.
    """

    def __init__(self, source: Runnable[str, list[Document]]) -> None:
        self.source = source
        self._takes = _keywords(source)

    def retrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        """Up to ``k`` passages per query, best first.

        Raises:
            GenerationError: if the source returns something else than a list of documents.
        """
        found = self.source.batch(list(queries), configs_of(queries), **self._options(k, filter))
        return [self._passages(documents, k, filter) for documents in found]

    async def aretrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        """As ``retrieve``, without blocking the event loop."""
        found = await self.source.abatch(list(queries), configs_of(queries), **self._options(k, filter))
        return [self._passages(documents, k, filter) for documents in found]

    def _options(self, k: int, filter: Filter | None) -> dict[str, Any]:
        asked = {"k": k, "filter": filter or None}
        return {name: value for name, value in asked.items() if name in self._takes and value is not None}

    def _passages(self, documents: object, k: int, filter: Filter | None) -> list[Passage]:
        if not isinstance(documents, list) or not all(isinstance(one, Document) for one in documents):
            raise GenerationError(
                f"{type(self.source).__name__} returned {type(documents).__name__} instead of a list of documents"
            )
        if filter and "filter" not in self._takes:
            # An access filter that is ignored would show documents to those who may not see them.
            check(filter)
            documents = [one for one in documents if matches(filter, one.metadata)]
        # Without scores of its own, the order tells the relevance: 1, 1/2, 1/3, ...
        return [passage_from(one, score=1.0 / rank) for rank, one in enumerate(documents[:k], 1)]


class ScoredStoreRetriever(VectorStoreRetriever):
    """A vector store's similarity search, with the scores in the documents' metadata; higher is better."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        options = self._search_options(kwargs)
        try:
            return _scored(self._search()(query, **options))
        except NotImplementedError:
            return self.vectorstore.similarity_search(query, **options)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        options = self._search_options(kwargs)
        try:
            return _scored(await self._asearch()(query, **options))
        except NotImplementedError:
            return await self.vectorstore.asimilarity_search(query, **options)

    def _search(self) -> Callable[..., Any]:
        # The store in langchain-core returns cosines, but does not say so.
        if isinstance(self.vectorstore, InMemoryVectorStore):
            return self.vectorstore.similarity_search_with_score
        # The public method is this one and a warning when a store's scores are not within 0 and 1. Only their order
        # matters here.
        return self.vectorstore._similarity_search_with_relevance_scores

    def _asearch(self) -> Callable[..., Any]:
        if isinstance(self.vectorstore, InMemoryVectorStore):
            return self.vectorstore.asimilarity_search_with_score
        return self.vectorstore._asimilarity_search_with_relevance_scores

    def _search_options(self, given: dict[str, Any]) -> dict[str, Any]:
        options = {**self.search_kwargs, **given}
        wanted = options.get("filter")
        if isinstance(self.vectorstore, InMemoryVectorStore) and isinstance(wanted, dict):
            check(wanted)
            options["filter"] = lambda document: matches(wanted, document.metadata)
        return options


def _scored(pairs: Sequence[tuple[Document, float]]) -> list[Document]:
    return [
        Document(document.page_content, id=document.id, metadata={**document.metadata, SCORE_KEY: float(score)})
        for document, score in pairs
    ]


def _keywords(source: Runnable[str, list[Document]]) -> frozenset[str]:
    """Which of ``k`` and ``filter`` the source takes at call time."""
    if not isinstance(source, BaseRetriever):
        return frozenset()
    parameters = inspect.signature(source._get_relevant_documents).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return frozenset({"k", "filter"})
    return frozenset({"k", "filter"} & set(parameters))
