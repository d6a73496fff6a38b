"""What every vector store does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)

_TEXTS = {
    "a": ("doc1", "Brelkon stands in Tarmora.", {"year": 2020, "lang": "en"}),
    "b": ("doc1", "Brelkon has a relay and a port.", {"year": 2022, "lang": "en"}),
    "c": ("doc2", "Die Quelle von Sulm ist kalt.", {"year": 2024, "lang": "de"}),
}
_CASES: list[tuple[MetadataFilters, set[str]]] = [
    (MetadataFilters(filters=[MetadataFilter(key="lang", value="en")]), {"a", "b"}),
    (MetadataFilters(filters=[MetadataFilter(key="lang", value="en", operator=FilterOperator.NE)]), {"c"}),
    (MetadataFilters(filters=[MetadataFilter(key="year", value=2022, operator=FilterOperator.GTE)]), {"b", "c"}),
    (MetadataFilters(filters=[MetadataFilter(key="year", value=2022, operator=FilterOperator.LT)]), {"a"}),
    (MetadataFilters(filters=[MetadataFilter(key="year", value=[2020, 2024], operator=FilterOperator.IN)]), {"a", "c"}),
    (MetadataFilters(filters=[MetadataFilter(key="year", value=[2020, 2024], operator=FilterOperator.NIN)]), {"b"}),
    (
        MetadataFilters(
            filters=[MetadataFilter(key="lang", value="de"), MetadataFilter(key="year", value=2020)],
            condition=FilterCondition.OR,
        ),
        {"a", "c"},
    ),
    (
        MetadataFilters(filters=[MetadataFilter(key="lang", value="en"), MetadataFilter(key="year", value=2022)]),
        {"b"},
    ),
    (MetadataFilters(filters=[MetadataFilter(key="lang", value="xx")]), set()),
    (MetadataFilters(filters=[MetadataFilter(key="absent", value="en")]), set()),
]


class VectorStoreConformance:
    """Subclass and implement ``component`` and ``embed``.

    Attributes:
        gets: the store has ``get_nodes``, ``delete_nodes`` and ``clear``.
    """

    gets: ClassVar[bool] = True

    def component(self) -> BasePydanticVectorStore:
        """Make an empty store."""
        raise NotImplementedError

    def embed(self, text: str) -> list[float] | None:
        """The vector of a text; None for a store that encodes for itself."""
        raise NotImplementedError

    def reopened(self, store: BasePydanticVectorStore) -> BasePydanticVectorStore:
        """The same store, read from where it was saved."""
        pytest.skip("the store is not saved")

    def test_is_a_vector_store(self) -> None:
        """The base class is in the MRO."""
        assert "BasePydanticVectorStore" in [base.__name__ for base in type(self.component()).__mro__]

    def test_adds_and_finds(self) -> None:
        """``add`` returns ids; the nearest node comes first, with its id and a similarity that falls."""
        store = self.component()
        assert store.add(self._nodes()) == ["a", "b", "c"]
        found = store.query(self._query("Brelkon stands in Tarmora.", 3))
        assert found.ids is not None
        assert found.ids[0] == "a"
        assert found.similarities == sorted(found.similarities or (), reverse=True)
        if store.stores_text:
            assert found.nodes is not None
            assert [node.node_id for node in found.nodes] == found.ids
            assert found.nodes[0].get_content() == "Brelkon stands in Tarmora."

    def test_sync_and_async_agree(self) -> None:
        """``async_add`` adds and ``aquery`` finds what their twins do."""
        store, other = self.component(), self.component()
        store.add(self._nodes())
        assert _run(lambda: other.async_add(self._nodes())) == ["a", "b", "c"]
        query = self._query("Sulm", 2)
        awaited = _run(lambda: other.aquery(query))
        assert (awaited.ids, awaited.similarities) == (store.query(query).ids, store.query(query).similarities)

    def test_an_empty_store_finds_nothing(self) -> None:
        """No error."""
        assert _ids(self.component().query(self._query("Brelkon", 2))) == []

    def test_k_of_zero_finds_nothing(self) -> None:
        """Not everything."""
        store = self.component()
        store.add(self._nodes())
        assert _ids(store.query(self._query("Brelkon", 0))) == []

    def test_k_larger_than_the_store_finds_what_there_is(self) -> None:
        """Each node once."""
        store = self.component()
        store.add(self._nodes())
        assert sorted(_ids(store.query(self._query("Brelkon", 100)))) == ["a", "b", "c"]

    @pytest.mark.parametrize(("filters", "expected"), _CASES)
    def test_filters_are_exact(self, filters: MetadataFilters, expected: set[str]) -> None:
        """What passes is found, up to ``k``; what does not is not, however near."""
        store = self.component()
        store.add(self._nodes())
        query = self._query("Brelkon", 3)
        query.filters = filters
        assert set(_ids(store.query(query))) == expected

    def test_filters_come_before_k(self) -> None:
        """A filter on the farthest node finds it even with k = 1."""
        store = self.component()
        store.add(self._nodes())
        query = self._query("Brelkon stands in Tarmora.", 1)
        query.filters = MetadataFilters(filters=[MetadataFilter(key="lang", value="de")])
        assert _ids(store.query(query)) == ["c"]

    def test_node_ids_limit_the_search(self) -> None:
        """Only nodes that were named are found."""
        store = self.component()
        store.add(self._nodes())
        query = self._query("Brelkon stands in Tarmora.", 3)
        query.node_ids = ["b", "unknown"]
        assert _ids(store.query(query)) == ["b"]

    def test_deletes_by_document(self) -> None:
        """All nodes of a document go, those of others stay; an unknown document is no error."""
        store = self.component()
        store.add(self._nodes())
        store.delete("unknown")
        store.delete("doc1")
        assert _ids(store.query(self._query("Brelkon", 3))) == ["c"]
        _run(lambda: store.adelete("doc2"))
        assert _ids(store.query(self._query("Brelkon", 3))) == []

    def test_gets_and_deletes_by_id_and_filter(self) -> None:
        """Unknown ids are ignored; ids and filters hold together."""
        if not self.gets:
            pytest.skip("the store does not get nodes")
        store = self.component()
        store.add(self._nodes())
        english = MetadataFilters(filters=[MetadataFilter(key="lang", value="en")])
        assert {node.node_id for node in store.get_nodes(["a", "c", "unknown"])} == {"a", "c"}
        assert {node.node_id for node in store.get_nodes(filters=english)} == {"a", "b"}
        store.delete_nodes(["unknown"])
        store.delete_nodes(["a", "c"], filters=english)
        assert sorted(_ids(store.query(self._query("Brelkon", 3)))) == ["b", "c"]
        store.clear()
        assert _ids(store.query(self._query("Brelkon", 3))) == []

    def test_the_same_id_replaces(self) -> None:
        """Adding a node again changes it and does not double it."""
        store = self.component()
        store.add(self._nodes())
        store.add([self._node("a", "doc1", "Ovens are hot.", {"year": 1, "lang": "en"})])
        found = store.query(self._query("Ovens are hot.", 10))
        assert sorted(_ids(found)) == ["a", "b", "c"]
        assert _ids(found)[0] == "a"

    def test_nodes_come_back_whole(self) -> None:
        """Text, metadata, relationships and offsets survive."""
        store = self.component()
        if not store.stores_text:
            pytest.skip("the store keeps no text")
        node = self._node("a", "doc1", "Brelkon stands in Tarmora.", {"year": 2020, "lang": "en"})
        node.start_char_idx, node.end_char_idx = 3, 29
        node.relationships[NodeRelationship.NEXT] = RelatedNodeInfo(node_id="b")
        node.excluded_llm_metadata_keys = ["year"]
        store.add([node])
        found = store.query(self._query("Brelkon", 1))
        assert found.nodes
        back = found.nodes[0]
        assert isinstance(back, TextNode)
        assert (back.text, back.metadata, back.ref_doc_id) == (node.text, node.metadata, "doc1")
        assert back.relationships == node.relationships
        assert (back.start_char_idx, back.end_char_idx) == (3, 29)
        assert back.excluded_llm_metadata_keys == ["year"]

    def test_what_was_saved_is_read_back(self) -> None:
        """The same nodes with the same similarities, and deletions stay deleted."""
        store = self.component()
        store.add(self._nodes())
        store.delete("doc2")
        query = self._query("Brelkon", 3)
        before = store.query(query)
        after = self.reopened(store).query(query)
        assert _ids(after) == _ids(before)
        assert after.similarities == pytest.approx(before.similarities)

    def _nodes(self) -> list[TextNode]:
        return [self._node(id, doc, text, metadata) for id, (doc, text, metadata) in _TEXTS.items()]

    def _node(self, id: str, doc: str, text: str, metadata: dict[str, Any]) -> TextNode:
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=doc)}
        return TextNode(id_=id, text=text, metadata=metadata, relationships=source, embedding=self.embed(text))

    def _query(self, text: str, k: int) -> VectorStoreQuery:
        return VectorStoreQuery(query_str=text, query_embedding=self.embed(text), similarity_top_k=k)


def _ids(result: VectorStoreQueryResult) -> list[str]:
    return list(result.ids or ())


def _run(call: Callable[[], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        return await call()

    return asyncio.run(run())
