"""What every retriever does."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

from ragft_plugin.llama_index.testing.probes import (
    DELAY,
    PATIENCE,
    assert_prompts_can_be_replaced,
    longest_stall,
    recorded,
)


class RetrieverConformance:
    """Subclass and implement ``component``, over a store of at least two and fewer than a thousand nodes.

    Attributes:
        question: one that finds something.
    """

    question: ClassVar[str] = "Where is Brelkon?"

    def component(self, *, k: int = 2, delay: float = 0.0, empty: bool = False) -> BaseRetriever:
        """Make a fresh retriever of ``k`` nodes, over an empty store if ``empty``."""
        raise NotImplementedError

    def test_is_a_retriever(self) -> None:
        """The base class is in the MRO."""
        assert "BaseRetriever" in [base.__name__ for base in type(self.component()).__mro__]

    def test_sync_and_async_agree(self) -> None:
        """``retrieve`` and ``aretrieve`` find the same nodes with the same scores, in the same order."""
        sync = self.component().retrieve(self.question)
        assert sync, "the question of the suite finds nothing"
        assert _found(sync) == _found(_aretrieved(self.component(), self.question))

    def test_query_bundles_are_taken_as_strings_are(self) -> None:
        """A ``QueryBundle`` finds what its string finds."""
        assert _found(self.component().retrieve(QueryBundle(self.question))) == _found(
            self.component().retrieve(self.question)
        )

    def test_finds_at_most_k_best_first(self) -> None:
        """No more than ``k``; scores, where there are any, fall; no node twice."""
        for k in (1, 2):
            nodes = self.component(k=k).retrieve(self.question)
            assert len(nodes) <= k
            scores = [node.score for node in nodes if node.score is not None]
            assert scores == sorted(scores, reverse=True)
            assert len({node.node_id for node in nodes}) == len(nodes)

    def test_a_larger_k_extends_the_list(self) -> None:
        """What k = 1 finds is the head of what k = 2 finds."""
        one, two = (self.component(k=k).retrieve(self.question) for k in (1, 2))
        assert _found(one) == _found(two)[: len(one)]

    def test_k_larger_than_the_store_finds_what_there_is(self) -> None:
        """No padding, no error."""
        nodes = self.component(k=1000).retrieve(self.question)
        assert 0 < len(nodes) < 1000
        assert len({node.node_id for node in nodes}) == len(nodes)

    def test_k_of_zero_finds_nothing_or_is_refused(self) -> None:
        """Never everything, never a crash in the middle."""
        try:
            retriever = self.component(k=0)
        except ValueError:
            return
        assert retriever.retrieve(self.question) == []

    def test_an_empty_store_gives_no_nodes(self) -> None:
        """Nothing there, nothing found, no error; sync and async."""
        assert self.component(empty=True).retrieve(self.question) == []
        assert _aretrieved(self.component(empty=True), self.question) == []

    def test_does_not_hold_the_event_loop(self) -> None:
        """Other tasks run while ``aretrieve`` waits."""
        retriever = self.component(delay=DELAY)
        stall = longest_stall(lambda: retriever.aretrieve(self.question))
        assert stall < PATIENCE, f"aretrieve held the event loop for {stall * 1000:.0f} ms"

    def test_prompts_can_be_seen_and_replaced(self) -> None:
        """What ``get_prompts`` shows, ``update_prompts`` replaces."""
        assert_prompts_can_be_replaced(self.component())

    def test_events_are_in_order(self) -> None:
        """Retrieval events enclose all others; every span is closed."""
        for find in (lambda r: r.retrieve(self.question), lambda r: _aretrieved(r, self.question)):
            retriever = self.component()
            with recorded() as (events, spans):
                find(retriever)
            assert (events.names[0], events.names[-1]) == ("RetrievalStartEvent", "RetrievalEndEvent")
            events.assert_pair("Retrieval")
            assert not spans.open_spans
            assert not spans.dropped_spans


def _aretrieved(retriever: BaseRetriever, question: str) -> list[NodeWithScore]:
    async def find() -> list[NodeWithScore]:
        return await retriever.aretrieve(question)

    return asyncio.run(find())


def _found(nodes: list[NodeWithScore]) -> list[tuple[str, str, float | None]]:
    return [(node.node_id, node.text, node.score) for node in nodes]
