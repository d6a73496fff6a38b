"""Re-ranking of nodes by any function of a query and texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import Field, PrivateAttr

from ragft_plugin.errors import ConfigError
from ragft_plugin.llama_index.events import dispatcher

Score = Callable[[str, Sequence[str]], Sequence[float]]


class RoutedReranker(BaseNodePostprocessor):
    """Orders nodes by a score of query and text, and keeps the best; equal scores keep their order.

    Args:
        score: ``(query, texts) -> scores``, higher is better; a cross-encoder's ``predict`` over pairs, for one.
        top_n: nodes to keep.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> nodes = [NodeWithScore(node=TextNode(text=text)) for text in ("a", "bbb", "cc")]
        >>> longest = RoutedReranker(lambda query, texts: [len(text) for text in texts], top_n=2)
        >>> [n.text for n in longest.postprocess_nodes(nodes, query_str="?")]
        ['bbb', 'cc']
    """

    top_n: int = Field(default=3, description="Nodes to keep.", ge=0)
    _score: Score = PrivateAttr()

    def __init__(self, score: Score, **settings: Any) -> None:
        super().__init__(**settings)
        self._score = score

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex writes the class down."""
        return "RoutedReranker"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ConfigError("re-ranking needs the query; pass query_bundle or query_str")
        if not nodes:
            return []
        query = query_bundle.query_str
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=self.top_n, model_name="score"))
        with self.callback_manager.event(
            CBEventType.RERANKING,
            payload={EventPayload.NODES: nodes, EventPayload.QUERY_STR: query, EventPayload.TOP_K: self.top_n},
        ) as event:
            scores = self._score(query, [n.node.get_content(metadata_mode=MetadataMode.EMBED) for n in nodes])
            if len(scores) != len(nodes):
                raise ConfigError(f"the score function returned {len(scores)} scores for {len(nodes)} texts")
            ranked = sorted(zip(scores, nodes, strict=True), key=lambda pair: -pair[0])
            best = [NodeWithScore(node=n.node, score=float(s)) for s, n in ranked[: self.top_n]]
            event.on_end(payload={EventPayload.NODES: best})
        dispatcher.event(ReRankEndEvent(nodes=best))
        return best
