"""LangChain's retrievers and vector stores as retrievers of the pipeline."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

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

    An access filter always holds: it is checked on whatever comes back, handed down or not. From outside nothing tells
    a source that obeys a filter from one that drops it, as LangChain does with keywords that a retriever lacks, and
    many a store with filters that it does not know. Where that leaves fewer than ``k`` and there is more, more is asked
    for, twice at most.

    Args:
        source: asked through ``batch`` and ``abatch``, with the callbacks of the run that asks. ``k`` and ``filter``
            are handed over if it takes them. A filter of its own stays in force beside the caller's.
    """

    def __init__(self, source: Runnable[str, list[Document]]) -> None:
        self.source = source
        self._takes = _keywords(source, "_get_relevant_documents")
        # Where only the sync method takes keywords, LangChain hands them to the async one all the same, which fails.
        self._waits = self._takes <= _keywords(source, "_aget_relevant_documents")

    def retrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        """Up to ``k`` passages per query, best first.

        Raises:
            ConfigError: if the filter does not follow the grammar.
            GenerationError: if the source returns something else than a list of documents.
        """
        search = _Search(self.source, self._takes, queries, k, filter)
        while asked := search.queries:
            search.take(self.source.batch(asked, configs_of(asked), **search.options))
        return search.found

    async def aretrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        """As ``retrieve``, without blocking the event loop."""
        if not self._waits:
            return await asyncio.to_thread(self.retrieve, queries, k, filter)
        search = _Search(self.source, self._takes, queries, k, filter)
        while asked := search.queries:
            search.take(await self.source.abatch(asked, configs_of(asked), **search.options))
        return search.found


# How many times k is asked for, as long as the filter leaves fewer than k.
_DEPTHS = (1, 8, 64)


class _Search:
    """One retrieval under way: what to ask next, and what has been found so far.

    Attributes:
        found: passages of every query.
    """

    def __init__(
        self,
        source: Runnable[str, list[Document]],
        takes: frozenset[str],
        queries: Sequence[str],
        k: int,
        filter: Filter | None,
    ) -> None:
        if filter:
            check(filter)
        self.found: list[list[Passage]] = [[] for _ in queries]
        self._source, self._takes, self._k, self._filter = source, takes, k, filter
        self._open = dict(enumerate(queries))
        self._depths = [times * k for times in (_DEPTHS if "k" in takes else _DEPTHS[:1])]

    @property
    def queries(self) -> list[str]:
        """What is not answered yet."""
        return list(self._open.values())

    @property
    def options(self) -> dict[str, Any]:
        """What the source is told beside the queries."""
        inner, depth = _innermost(self._source), self._depths[0]
        own = getattr(inner, "search_kwargs", None) or {}
        options: dict[str, Any] = {"k": depth} if "k" in self._takes else {}
        if depth > self._k and getattr(inner, "search_type", None) == "mmr":
            # Or the store would choose among its few nearest, however many are asked for.
            options["fetch_k"] = max(depth, own.get("fetch_k", 0))
        # A filter at the call would replace the retriever's own, and let through what that keeps back.
        if self._filter and "filter" in self._takes and own.get("filter") is None:
            in_memory = isinstance(getattr(inner, "vectorstore", None), InMemoryVectorStore)
            options["filter"] = self._permits if in_memory else self._filter
        return options

    def take(self, answers: Sequence[object]) -> None:
        """Keep what came back for ``queries``, as far as the filter permits."""
        depth, *self._depths = self._depths
        short: dict[int, str] = {}
        for (i, query), documents in zip(self._open.items(), answers, strict=True):
            if not isinstance(documents, list) or not all(isinstance(one, Document) for one in documents):
                raise GenerationError(
                    f"{type(self._source).__name__} returned {type(documents).__name__} instead of a list of documents"
                )
            kept = [one for one in documents if self._permits(one)]
            # Without scores of its own, the order tells the relevance: 1, 1/2, 1/3, ...
            self.found[i] = [passage_from(one, score=1.0 / rank) for rank, one in enumerate(kept[: self._k], 1)]
            if self._depths and len(kept) < self._k and len(documents) >= depth:
                short[i] = query
        self._open = short

    def _permits(self, document: Document) -> bool:
        return not self._filter or matches(self._filter, _comparable(document.metadata))


def _innermost(source: Runnable[str, list[Document]]) -> Runnable[str, list[Document]]:
    """The retriever that those around it, which compress or re-rank, hand their keywords down to."""
    while isinstance(inner := getattr(source, "base_retriever", None), BaseRetriever):
        source = inner
    return source


def _comparable(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata with values that filters can compare: stores also return what numpy or their database made of them."""
    return {key: _plain(value) for key, value in metadata.items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value


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


def _keywords(source: Runnable[str, list[Document]], method: str) -> frozenset[str]:
    """Which of ``k`` and ``filter`` a method of the source takes at call time."""
    if not isinstance(source, BaseRetriever):
        return frozenset()
    parameters = inspect.signature(getattr(source, method)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return frozenset({"k", "filter"})
    return frozenset({"k", "filter"} & set(parameters))
