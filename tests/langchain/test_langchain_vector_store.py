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
from ragft_plugin.retrieval import HashingEncoder, KnowledgeBase


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


def test_scores_are_relevant_on_the_scale_of_the_mode_of_the_call(tmp_path):
    texts = ["Brelkon stands in Tarmora.", "Ovens are hot."]
    store = KnowledgeBaseVectorStore.from_texts(texts, None, path=tmp_path / "kb", mode="mmr")
    (cosine,) = [score for _, score in store.similarity_search_with_score(texts[0], k=1)]
    assert cosine == pytest.approx(1.0)
    assert store.similarity_search_with_relevance_scores("Ovens", k=1)[0][1] > 0.5
    for mode, scaled in [
        ("hybrid", lambda score: score),
        ("dense", lambda score: (1 + score) / 2),
        ("mmr", lambda score: (1 + score) / 2),
        ("rrf", lambda score: score * 61 / 2),
        ("bm25", lambda score: score / (1 + score)),
    ]:
        plain = store.similarity_search_with_score("Where is Brelkon?", k=2, mode=mode)
        found = store.similarity_search_with_relevance_scores("Where is Brelkon?", k=2, mode=mode)
        assert found == [(document, pytest.approx(scaled(score))) for document, score in plain]
    with pytest.raises(ConfigError, match="unknown mode 'near'"):
        store.similarity_search_with_relevance_scores("Where is Brelkon?", mode="near")
    store.knowledge_base.close()


async def test_scores_are_relevant_without_holding_the_event_loop_just_as_well(store):
    store.add_documents(DOCUMENTS)
    found = await store.asimilarity_search_with_relevance_scores("Avel", k=2, mode="bm25")
    assert found == store.similarity_search_with_relevance_scores("Avel", k=2, mode="bm25")


class Asymmetric(HashingEncoder):
    """Encodes questions in a way of its own, and counts the passages that it encodes."""

    passages = 0

    def encode(self, texts):
        self.passages += len(texts)
        return super().encode(texts)

    def encode_queries(self, texts):
        return super().encode([text.removeprefix("query: ") for text in texts])


def test_questions_are_encoded_as_questions_and_documents_only_once(tmp_path):
    encoder = Asymmetric(64)
    texts = ["the pump is red", "the pump is red indeed", "the pump stands in Sulm"]
    store = KnowledgeBaseVectorStore(KnowledgeBase.create(tmp_path / "kb", encoder))
    store.add_texts(texts)
    encoder.passages = 0
    vector = store.embeddings.embed_query("query: the pump is red")
    assert vector == HashingEncoder(64).encode([texts[0]])[0].tolist()
    found = store.max_marginal_relevance_search("query: the pump is red", k=2, lambda_mult=0.2)
    assert [one.page_content for one in found] == [texts[0], texts[2]]
    assert store.max_marginal_relevance_search_by_vector(vector, k=2, lambda_mult=0.2) == found
    assert encoder.passages == 0
    store.knowledge_base.close()


def test_stored_vectors_are_those_of_the_encoder_in_the_order_asked_for(tmp_path):
    encoder = HashingEncoder(64)
    with KnowledgeBase.create(tmp_path / "kb", encoder) as kb:
        assert kb.vectors(["a"]).shape == (1, 0)
        KnowledgeBaseVectorStore(kb).add_texts(["red", "blue", "old"], ids=["a", "b", "c"])
        KnowledgeBaseVectorStore(kb).add_texts(["new"], ids=["c"])
        kb.delete(["b"])
        expected = [*encoder.encode(["new", "red"]), np.zeros(64), np.zeros(64), encoder.encode(["new"])[0]]
        np.testing.assert_allclose(kb.vectors(["c", "a", "b", "nobody", "c"]), expected, atol=1e-6)
        assert kb.vectors([]).shape == (0, 64)
        kb.compact()
        np.testing.assert_allclose(kb.vectors(["a"]), encoder.encode(["red"]), atol=1e-6)
    with KnowledgeBase.create(tmp_path / "words", None) as kb:
        KnowledgeBaseVectorStore(kb).add_texts(["red"], ids=["a"])
        assert kb.vectors(["a"]).shape == (1, 0)


def test_the_encoder_behind_embeddings_is_what_a_store_is_bound_to(tmp_path):
    with KnowledgeBase.create(tmp_path / "native", "hashing") as kb:
        KnowledgeBaseVectorStore(kb).add_texts(["red lamps"], ids=["a"])
    with KnowledgeBaseVectorStore.open(tmp_path / "native", EncoderEmbeddings("hashing")).knowledge_base as kb:
        assert kb.retrieve(["lamps"], 1)[0][0].id == "a"
    KnowledgeBaseVectorStore.create(tmp_path / "made", EncoderEmbeddings("hashing")).knowledge_base.close()
    with KnowledgeBase.open(tmp_path / "made") as kb:
        assert isinstance(kb.encoder, HashingEncoder)
    with pytest.raises(StoreError, match="holds vectors of hashing-1-512, not of hashing-1-64"):
        KnowledgeBaseVectorStore.open(tmp_path / "made", EncoderEmbeddings(HashingEncoder(64)))
    # Also where the wrapper stands around them.
    assert EmbeddingsEncoder(EncoderEmbeddings(HashingEncoder(64))).fingerprint == "hashing-1-64"


def test_embeddings_that_change_the_vectors_are_not_taken_for_the_encoder_behind_them():
    class Shouting(EncoderEmbeddings):
        def embed_documents(self, texts):
            return super().embed_documents([f"{text} shouted" for text in texts])

    made = EmbeddingsEncoder(Shouting("hashing")).fingerprint
    assert made.startswith("langchain:Shouting:probe-")
    assert made != EmbeddingsEncoder(Shouting(HashingEncoder(64))).fingerprint


def test_bad_input_is_named(store, tmp_path):
    store.add_documents(DOCUMENTS)
    with pytest.raises(ConfigError, match=r"of shape \(\w+, 512\).*; got \(1, 3\)"):
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
