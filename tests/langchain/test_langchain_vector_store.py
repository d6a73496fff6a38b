"""The vector store beyond LangChain's own suite: indexing, persistence, filters, bad input."""

import json

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.load import dumpd
from langchain_stubs import DOCUMENTS, Echo, WordRouter

from ragft_plugin.errors import ConfigError, DataError, StoreError
from ragft_plugin.langchain import (
    EmbeddingsEncoder,
    EncoderEmbeddings,
    KnowledgeBaseVectorStore,
    RoutedChain,
    ScoringReranker,
)


@pytest.fixture
def store(tmp_path):
    made = KnowledgeBaseVectorStore.create(tmp_path / "kb")
    yield made
    made.knowledge_base.close()


def documents(*texts, source="a.md"):
    return [Document(text, metadata={"source": source}) for text in texts]


def contents(store):
    return sorted(one.text for one in store.knowledge_base.get(store.knowledge_base.ids()))


def indexed(store, records, docs, cleanup):
    found = index(docs, records, store, cleanup=cleanup, source_id_key="source", key_encoder="blake2b")
    return found["num_added"], found["num_skipped"], found["num_deleted"]


@pytest.mark.parametrize(
    ("cleanup", "second", "left"),
    [
        (None, (1, 1, 0), ["one", "other", "three", "two"]),
        ("incremental", (1, 1, 1), ["one", "other", "three"]),
        ("scoped_full", (1, 1, 1), ["one", "other", "three"]),
        ("full", (1, 1, 2), ["one", "three"]),
    ],
)
def test_indexing_cleans_up_as_asked(store, cleanup, second, left):
    records = InMemoryRecordManager(namespace="kb")
    records.create_schema()
    assert indexed(store, records, documents("one", "two"), cleanup) == (2, 0, 0)
    index(documents("other", source="b.md"), records, store, key_encoder="blake2b", cleanup=None)
    assert indexed(store, records, documents("one", "three"), cleanup) == second
    assert contents(store) == left


async def test_indexing_again_changes_nothing_and_forced_indexing_updates(store):
    records = InMemoryRecordManager(namespace="kb")
    await records.acreate_schema()
    docs = documents("one", "two")
    await aindex(docs, records, store, key_encoder="blake2b")
    version = store.knowledge_base.version
    again = await aindex(docs, records, store, key_encoder="blake2b", force_update=True)
    assert again["num_updated"] == 2
    assert (store.knowledge_base.version, len(store.knowledge_base)) == (version, 2)


def test_what_was_added_is_there_after_opening_again(tmp_path):
    embedding = DeterministicFakeEmbedding(size=6)
    store = KnowledgeBaseVectorStore.create(tmp_path / "kb", embedding)
    store.add_documents(DOCUMENTS)
    found = store.similarity_search_with_score("Avel")
    store.knowledge_base.close()
    again = KnowledgeBaseVectorStore.open(tmp_path / "kb", embedding)
    assert again.similarity_search_with_score("Avel") == found
    again.knowledge_base.close()
    with pytest.raises(StoreError):
        KnowledgeBaseVectorStore.open(tmp_path / "kb", Named(size=6)).similarity_search("Avel")


class Named(DeterministicFakeEmbedding):
    model: str = "another"


def test_a_filter_finds_the_needle_that_a_late_filter_misses(store):
    store.add_documents([Document(f"word {i}", id=str(i), metadata={"rare": i == 199}) for i in range(200)])
    assert [one.id for one in store.similarity_search("word 5", k=5, filter={"rare": True})] == ["199"]


def test_scores_grow_with_relevance_in_every_mode(tmp_path):
    store = KnowledgeBaseVectorStore.from_texts(
        ["Brelkon stands in Tarmora.", "Ovens are hot."], None, path=tmp_path / "kb"
    )
    for mode in ("hybrid", "dense", "bm25", "rrf"):
        store.mode = mode
        found = store.similarity_search_with_relevance_scores("Where is Brelkon?", k=2)
        assert found[0][0].page_content == "Brelkon stands in Tarmora."
        assert all(0.0 <= score <= 1.0 for _, score in found)
    store.knowledge_base.close()


async def test_max_marginal_relevance_prefers_what_is_new(tmp_path):
    texts = ["the pump is red", "the pump is red indeed", "the pump stands in Sulm"]
    store = KnowledgeBaseVectorStore.from_texts(texts, None, path=tmp_path / "kb")
    found = await store.amax_marginal_relevance_search("the pump is red", k=2, lambda_mult=0.2)
    assert [one.page_content for one in found] == [texts[0], texts[2]]
    vector = store.embeddings.embed_query("the pump is red")
    assert store.max_marginal_relevance_search_by_vector(vector, k=2, lambda_mult=0.2) == found
    nearest = store.max_marginal_relevance_search("the pump is red", k=2, lambda_mult=1.0)
    assert [one.page_content for one in nearest] == texts[:2]
    assert len(store.max_marginal_relevance_search("the pump is red", k=2, fetch_k=1)) == 1
    assert store.similarity_search_by_vector(vector, k=1)[0].page_content == texts[0]
    store.knowledge_base.close()


def test_bad_input_is_named(store, tmp_path):
    store.add_documents(DOCUMENTS)
    with pytest.raises(ConfigError, match=r"of shape \(queries, 512\); got \(1, 3\)"):
        store.similarity_search_by_vector([0.1, 0.2, 0.3])
    with pytest.raises(ConfigError, match="3 texts came with 1 ids"):
        store.add_texts(["a", "b", "c"], ids=["1"])
    with pytest.raises(DataError):
        store.add_texts(["a"], [{"when": object()}])
    with pytest.raises(ConfigError, match="path="):
        KnowledgeBaseVectorStore.from_texts(["a"], None)
    with pytest.raises(ConfigError, match="unknown operator"):
        store.similarity_search("Avel", filter={"land": {"$like": "A"}})
    assert len(store.knowledge_base) == len(DOCUMENTS)


def test_the_store_is_the_retriever_of_a_chain_and_so_is_its_knowledge_base(store):
    store.add_documents(DOCUMENTS)
    for source in (store, store.as_retriever(), store.knowledge_base):
        chain = RoutedChain.from_parts(router=WordRouter(otherwise="rag"), models=Echo(), retriever=source)
        answer = chain.invoke("the capital of Corda", k=1, filter={"land": {"$ne": "Esk"}})
        assert [one.id for one in answer["context"]] == ["Corda"]
        assert answer["context"][0].metadata["source"] == "Corda.md"
        json.dumps(dumpd(answer))


def test_models_that_encode_questions_otherwise_are_asked_their_way(tmp_path):
    class Asymmetric(Embeddings):
        def embed_documents(self, texts):
            return [[3.0, 0.0] if "fire" in text else [0.0, 2.0] for text in texts]

        def embed_query(self, text):
            return [1.0, 0.0]

    encoder = EmbeddingsEncoder(Asymmetric())
    np.testing.assert_allclose(encoder.encode(["fire", "water"]), [[1.0, 0.0], [0.0, 1.0]])
    store = KnowledgeBaseVectorStore.create(tmp_path / "kb", Asymmetric(), mode="dense")
    store.add_texts(["fire", "water"])
    assert store.similarity_search("what is hot", k=1)[0].page_content == "fire"
    assert isinstance(store.embeddings, Asymmetric)
    store.knowledge_base.close()


def test_embeddings_are_those_of_the_encoder():
    embeddings = EncoderEmbeddings("hashing")
    np.testing.assert_allclose(embeddings.embed_query("a b"), embeddings.encoder.encode(["a b"])[0])
    assert embeddings.embed_documents([]) == []


def test_a_reranker_orders_cuts_and_changes_nothing():
    reranker = ScoringReranker(scorer=lambda question, texts: [len(text) for text in texts], top_n=2)
    docs = documents("a", "ccc", "bb")
    assert [one.page_content for one in reranker.compress_documents(docs, "?")] == ["ccc", "bb"]
    assert all("relevance_score" not in one.metadata for one in docs)
    assert reranker.compress_documents([], "?") == []
    with pytest.raises(DataError, match="1 scores for 3 documents"):
        ScoringReranker(scorer=lambda question, texts: [1.0]).compress_documents(docs, "?")
