"""What every node post-processor does."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from ragft_plugin.llama_index.testing.probes import DELAY, PATIENCE, longest_stall


class PostprocessorConformance:
    """Subclass and implement ``component``."""

    def component(self, *, delay: float = 0.0) -> BaseNodePostprocessor:
        """Make a fresh post-processor."""
        raise NotImplementedError

    def nodes(self) -> list[NodeWithScore]:
        """Nodes to process."""
        texts = ("Brelkon stands in Tarmora.", "Ovens are hot.", "A relay has a port.")
        return [NodeWithScore(node=TextNode(id_=f"n{i}", text=t), score=1.0 - i / 10) for i, t in enumerate(texts)]

    def test_is_a_postprocessor(self) -> None:
        """The base class is in the MRO."""
        assert "BaseNodePostprocessor" in [base.__name__ for base in type(self.component()).__mro__]

    def test_sync_and_async_agree(self) -> None:
        """Same nodes, same scores, same order."""
        sync = self.component().postprocess_nodes(self.nodes(), query_str="Where is Brelkon?")
        awaited = asyncio.run(self.component().apostprocess_nodes(self.nodes(), query_str="Where is Brelkon?"))
        assert [(n.node_id, n.score) for n in sync] == [(n.node_id, n.score) for n in awaited]

    def test_leaves_what_it_was_given(self) -> None:
        """The caller's nodes keep their order and scores."""
        nodes = self.nodes()
        before = [(node.node_id, node.score, node.text) for node in nodes]
        self.component().postprocess_nodes(nodes, query_str="Where is Brelkon?")
        assert [(node.node_id, node.score, node.text) for node in nodes] == before

    def test_gives_only_nodes_that_were_there(self) -> None:
        """Nothing is made up, nothing comes twice."""
        found = [n.node_id for n in self.component().postprocess_nodes(self.nodes(), query_str="Where?")]
        assert set(found) <= {node.node_id for node in self.nodes()}
        assert len(set(found)) == len(found)

    def test_no_nodes_stay_no_nodes(self) -> None:
        """An empty list is no error."""
        assert self.component().postprocess_nodes([], query_str="Where?") == []

    def test_a_query_given_twice_is_refused(self) -> None:
        """Either the string or the bundle."""
        with pytest.raises(ValueError, match="both"):
            self.component().postprocess_nodes(self.nodes(), QueryBundle("a"), "b")

    def test_does_not_hold_the_event_loop(self) -> None:
        """Other tasks run meanwhile."""
        component = self.component(delay=DELAY)
        stall = longest_stall(lambda: component.apostprocess_nodes(self.nodes(), query_str="Where?"))
        assert stall < PATIENCE, f"apostprocess_nodes held the event loop for {stall * 1000:.0f} ms"
