"""A retriever that routes: it finds passages for the questions that need them, and none for the others."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle

from ragft_plugin.llama_index.events import announce
from ragft_plugin.llama_index.nodes import node_from
from ragft_plugin.llama_index.traced import watched
from ragft_plugin.pipeline import Pipeline


class RoutedRetriever(BaseRetriever):
    """Finds what the chosen arm reads. A question that is answered closed-book gets no nodes.

    Each node carries the decision in ``metadata["decision"]``, hidden from LLMs. A chain that must know the decision
    even when no node returns wants ``RoutedQueryEngine``, which takes this retriever's pipeline.

    Args:
        pipeline: decides and retrieves.
        callback_manager: told of retrievals.
        objects, object_map, verbose: as in ``BaseRetriever``.
        **request: ``scope``, ``k``, ``cost_weight``, ``arm`` for every query; see ``ragft_plugin.course.Request``.

    Raises:
        ConfigError: if ``k`` is less than 1 or there is no such arm.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        callback_manager: CallbackManager | None = None,
        objects: list[IndexNode] | None = None,
        object_map: dict[str, Any] | None = None,
        verbose: bool = False,
        **request: Any,
    ) -> None:
        super().__init__(callback_manager, object_map, objects, verbose)
        self.pipeline = pipeline
        self._request = request
        pipeline.stream("", **request)  # runs nothing, but checks the request now and not at the first query

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        pipeline = watched(self.pipeline)  # of callbacks, the base class tells this retrieval already
        routed = pipeline.decide([query_bundle.query_str], **self._request)
        announce(routed[0].decision)
        (passages,) = pipeline.passages(routed, **self._request)
        return [node_from(passage, routed[0].decision) for passage in passages]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        pipeline = watched(self.pipeline)
        routed = await pipeline.adecide([query_bundle.query_str], **self._request)
        announce(routed[0].decision)
        (passages,) = await pipeline.apassages(routed, **self._request)
        return [node_from(passage, routed[0].decision) for passage in passages]
