"""A retriever or an index of LlamaIndex as a retriever of the package."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.indices.base import BaseIndex
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    MetadataFilter,
    MetadataFilters,
)

from ragft_plugin.errors import ConfigError
from ragft_plugin.llama_index.filters import metadata_filters_from
from ragft_plugin.llama_index.nodes import passage_from
from ragft_plugin.llama_index.waiting import inherits
from ragft_plugin.retrieval.filters import check, matches
from ragft_plugin.types import Filter, Passage, Retriever


class NodeRetriever:
    """Finds passages with a retriever of LlamaIndex; async where that one is, in threads where it is not.

    ``k`` sets ``similarity_top_k`` (on a copy) where the retriever has one. Of an access filter, the comparisons that
    must all hold go down to the vector store; the whole of it is checked on what comes back, so a store that reads it
    otherwise, or not at all, never leaks a passage.

    Args:
        retriever: what to ask; it is not changed.
        node_postprocessors: rerankers and the like, applied in order to what was found.
    """

    def __init__(self, retriever: BaseRetriever, *, node_postprocessors: Sequence[BaseNodePostprocessor] = ()) -> None:
        self.retriever = retriever
        self.node_postprocessors = tuple(node_postprocessors)

    def retrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        """Return up to ``k`` passages per query, best first.

        Raises:
            ConfigError: if the filter does not follow the grammar.
        """
        check(filter or {})
        return [self._find(query, k, filter) for query in queries]

    async def aretrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        """As ``retrieve``, all queries at once, without blocking the event loop."""
        check(filter or {})
        return list(await asyncio.gather(*(self._afind(query, k, filter) for query in queries)))

    def _find(self, query: str, k: int, filter: Filter | None) -> list[Passage]:
        bundle = QueryBundle(query)
        nodes = _narrowed(self.retriever, k, filter).retrieve(bundle) if k > 0 else []
        for postprocessor in self.node_postprocessors:
            nodes = postprocessor.postprocess_nodes(nodes, query_bundle=bundle)
        return _passages(nodes, k, filter)

    async def _afind(self, query: str, k: int, filter: Filter | None) -> list[Passage]:
        bundle = QueryBundle(query)
        retriever = _narrowed(self.retriever, k, filter)
        if k <= 0:
            nodes: list[NodeWithScore] = []
        elif _waits(retriever):
            nodes = await retriever.aretrieve(bundle)
        else:
            nodes = await asyncio.to_thread(retriever.retrieve, bundle)
        for postprocessor in self.node_postprocessors:
            nodes = await postprocessor.apostprocess_nodes(nodes, query_bundle=bundle)
        return _passages(nodes, k, filter)


def from_retriever(
    source: BaseRetriever | BaseIndex[Any] | Retriever, *, node_postprocessors: Sequence[BaseNodePostprocessor] = ()
) -> Retriever:
    """A retriever of the package made of one of LlamaIndex, or of an index; one of the package is returned as it is.

    Raises:
        ConfigError: if it is none of these, or routes already.
    """
    # Routing twice in one graph is how two decisions come to disagree.
    if hasattr(source, "pipeline"):
        raise ConfigError(
            f"{type(source).__name__} routes already; pass the retriever below it, or give its pipeline to "
            "RoutedQueryEngine"
        )
    if isinstance(source, BaseIndex):
        source = source.as_retriever()
    if isinstance(source, BaseRetriever):
        return NodeRetriever(source, node_postprocessors=node_postprocessors)
    if not isinstance(source, Retriever):
        raise ConfigError(f"expected a LlamaIndex retriever or index, got {type(source).__name__}")
    if node_postprocessors:
        raise ConfigError("node_postprocessors need a LlamaIndex retriever; this retriever finds passages, not nodes")
    return source


def _waits(retriever: BaseRetriever) -> bool:
    """Whether the retriever's async twin is real, not the sync method run in the event loop."""
    if isinstance(retriever, VectorIndexRetriever):
        return not inherits(retriever._vector_store, "aquery", BasePydanticVectorStore)
    return not inherits(retriever, "_aretrieve", BaseRetriever)


def _narrowed(retriever: BaseRetriever, k: int, filter: Filter | None) -> BaseRetriever:
    """The retriever, or a copy of it that is asked for k passages within the filter."""
    narrowed = copy(retriever)
    if hasattr(narrowed, "similarity_top_k"):
        narrowed.similarity_top_k = k
    if isinstance(narrowed, VectorIndexRetriever) and (pushed := _comparisons(filter or {})):
        own = narrowed._filters
        if own is not None and own.condition == FilterCondition.AND:
            pushed = [*own.filters, *pushed]
        elif own is not None:
            pushed = [own, *pushed]
        narrowed._filters = MetadataFilters(filters=pushed, condition=FilterCondition.AND)
    return narrowed


def _comparisons(filter: Filter) -> list[MetadataFilter | MetadataFilters]:
    """The comparisons that must all hold and that LlamaIndex can say; many of its stores take no nested filters."""
    found: list[MetadataFilter | MetadataFilters] = []
    for key, condition in filter.items():
        if key == "$and":
            found += [one for part in condition for one in _comparisons(part)]
        elif not key.startswith("$"):
            with suppress(ConfigError):  # cannot be said; it is checked on what comes back
                said = metadata_filters_from({key: condition})
                found += [] if said is None else said.filters
    return found


def _passages(nodes: Sequence[NodeWithScore], k: int, filter: Filter | None) -> list[Passage]:
    found = [passage_from(node) for node in nodes]
    if filter:
        found = [passage for passage in found if matches(filter, passage.metadata)]
    return found[: max(k, 0)]
