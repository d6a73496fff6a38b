"""Other stores taken over: their passages, their vectors where they fit, and nothing unpickled."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from ragft_plugin.errors import ConfigError, DataError, StoreError
from ragft_plugin.retrieval import (
    HashingEncoder,
    KnowledgeBase,
    faiss_vectors,
    import_faiss_store,
    import_index,
)
from ragft_plugin.types import Passage

TEXTS = ["Red lamps.", "Blue gears.", "Tax law."]


class Counting(HashingEncoder):
    """Counts what it encodes."""

    texts = 0

    def encode(self, texts: Any) -> Any:
        self.texts += len(texts)
        return super().encode(texts)


class Docstore:
    """As LangChain's in-memory docstore: tells a missing document in words."""

    def __init__(self, documents: dict[str, Any]) -> None:
        self._documents = documents

    def search(self, id: str) -> Any:
        return self._documents.get(id, f"ID {id} not found.")


def faiss_store(encoder: HashingEncoder, *, ids: list[str] | None = None) -> Any:
    ids = ids or ["l", "g", "t"]
    index = faiss.IndexFlatL2(encoder.dim)
    index.add((3 * HashingEncoder(encoder.dim).encode(TEXTS)).astype(np.float32))
    documents = {
        id: SimpleNamespace(page_content=text, metadata={"n": n})
        for n, (id, text) in enumerate(zip(ids, TEXTS, strict=True))
    }
    # Rows out of order, as after deletions.
    return SimpleNamespace(
        index=index, docstore=Docstore(documents), index_to_docstore_id=dict(reversed(list(enumerate(ids))))
    )


@pytest.mark.parametrize("stated", [True, False])
def test_a_faiss_store_keeps_ids_and_metadata_and_its_vectors_if_they_are_stated_to_fit(
    tmp_path: Path, stated: bool
) -> None:
    encoder = Counting(64)
    with KnowledgeBase.create(tmp_path / "kb", encoder) as kb:
        steps: list[tuple[int, int]] = []
        changes = import_faiss_store(
            kb,
            faiss_store(encoder),
            fingerprint=encoder.fingerprint if stated else None,
            progress=lambda done, total: steps.append((done, total)),
        )
        assert (changes.added, changes.version, steps) == (3, kb.version, [(3, 3)])
        assert encoder.texts == (0 if stated else 3)
        assert [(p.id, p.text, p.metadata) for p in kb.get(kb.ids())] == [
            ("l", "Red lamps.", {"n": 0}),
            ("g", "Blue gears.", {"n": 1}),
            ("t", "Tax law.", {"n": 2}),
        ]
        for id, text in zip("lgt", TEXTS, strict=True):
            [best, *_] = kb.retrieve([text], 1, mode="dense")[0]
            assert (best.id, best.score) == (id, pytest.approx(1.0, abs=1e-6))
        # Importing again changes nothing.
        assert import_faiss_store(kb, faiss_store(encoder)).unchanged == 3


def test_vectors_of_another_encoder_are_refused(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb", HashingEncoder(64)) as kb:
        with pytest.raises(ConfigError, match="the vectors are of 'other'"):
            import_faiss_store(kb, faiss_store(HashingEncoder(64)), fingerprint="other")
        assert len(kb) == 0


def test_a_broken_store_is_refused_before_anything_is_added(tmp_path: Path) -> None:
    encoder = HashingEncoder(64)
    missing = faiss_store(encoder)
    missing.index_to_docstore_id[3] = "gone"
    # What adding an id twice leaves behind: more vectors than documents.
    broken = faiss_store(encoder)
    del broken.index_to_docstore_id[2]
    with KnowledgeBase.create(tmp_path / "kb", encoder) as kb:
        with pytest.raises(DataError, match="'gone' is missing"):
            import_faiss_store(kb, missing)
        with pytest.raises(DataError, match="2 documents, but 3 vectors"):
            import_faiss_store(kb, broken, fingerprint=encoder.fingerprint)
        with pytest.raises(ConfigError, match="pickles, which this package never opens"):
            import_faiss_store(kb, tmp_path / "faiss_index")
        assert len(kb) == 0
        assert import_faiss_store(kb, broken).added == 2


@pytest.mark.parametrize("kind", ["Flat", "HNSW8", "IVF2,Flat", "SQ8"])
def test_vectors_are_read_from_an_index_file(tmp_path: Path, kind: str) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    index = faiss.index_factory(8, kind)
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    assert faiss_vectors(tmp_path / "index.faiss") == pytest.approx(rows, abs=0.05 if kind == "SQ8" else 1e-6)
    assert faiss_vectors(faiss.IndexFlatIP(8)).shape == (0, 8)


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not there"):
        faiss_vectors(tmp_path / "index.faiss")
    (tmp_path / "index.faiss").write_bytes(b"cposix\nsystem\n(S'touch /tmp/x'\ntR.")
    with pytest.raises(StoreError, match="is no FAISS index"):
        faiss_vectors(tmp_path / "index.faiss")


def test_a_store_of_langchain_community_is_taken_over(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stores = pytest.importorskip("langchain_community.vectorstores")
        from ragft_plugin.langchain import EncoderEmbeddings

        encoder = Counting(64)
        store = stores.FAISS.from_texts(
            TEXTS, EncoderEmbeddings(encoder), [{"n": n} for n in range(3)], ids=list("lgt")
        )
        store.delete(["g"])
        store.save_local(str(tmp_path / "faiss"))
    spent = encoder.texts
    with KnowledgeBase.create(tmp_path / "kb", encoder) as kb:
        file = tmp_path / "faiss" / "index.faiss"
        assert import_faiss_store(kb, store, fingerprint=encoder.fingerprint, index=file).added == 2
        assert encoder.texts == spent
        assert [(p.id, p.metadata) for p in kb.get(kb.ids())] == [("l", {"n": 0}), ("t", {"n": 2})]
        assert kb.retrieve(["Tax law."], 1, mode="dense")[0][0].id == "t"


def test_an_index_of_llama_index_is_taken_over(tmp_path: Path) -> None:
    core = pytest.importorskip("llama_index.core")
    from ragft_plugin.llama_index import EncoderEmbedding

    encoder = Counting(64)
    nodes = [core.schema.TextNode(text=text, id_=id) for id, text in zip("lgt", TEXTS, strict=True)]
    nodes[0].metadata["n"] = 0
    nodes[0].start_char_idx, nodes[0].end_char_idx = 5, 15
    index = core.VectorStoreIndex(nodes, embed_model=EncoderEmbedding(encoder))
    spent = encoder.texts
    with KnowledgeBase.create(tmp_path / "kept", encoder) as kb:
        assert import_index(kb, index, fingerprint=encoder.fingerprint).added == 3
        assert encoder.texts == spent
        assert kb.get(["l"])[0].metadata == {"n": 0, "start": 5, "end": 15}
        assert kb.retrieve(["Blue gears."], 1, mode="dense")[0][0].id == "g"
    with KnowledgeBase.create(tmp_path / "again", HashingEncoder(128)) as kb:
        assert import_index(kb, index).added == 3
        with pytest.raises(ConfigError, match="the vectors are of"):
            import_index(kb, index, fingerprint=encoder.fingerprint)
        with pytest.raises(ConfigError, match="give a VectorStoreIndex"):
            import_index(kb, nodes)


def test_an_empty_index_of_llama_index_adds_nothing(tmp_path: Path) -> None:
    core = pytest.importorskip("llama_index.core")
    from ragft_plugin.llama_index import EncoderEmbedding, KnowledgeBaseVectorStore

    encoder = HashingEncoder(64)
    with KnowledgeBase.create(tmp_path / "kb", encoder) as kb, KnowledgeBase.create(tmp_path / "other", encoder) as old:
        empty = core.VectorStoreIndex([], embed_model=EncoderEmbedding(encoder))
        assert import_index(kb, empty, fingerprint=encoder.fingerprint).added == 0
        assert import_index(kb, empty).added == 0
        # A store that keeps the texts has nodes that the index' structure does not list.
        old.add([Passage("a", "Red lamps.")])
        store = KnowledgeBaseVectorStore(old)
        index = core.VectorStoreIndex.from_vector_store(store, embed_model=EncoderEmbedding(encoder))
        assert import_index(kb, index).added == 1


def test_a_node_with_a_source_of_its_own_keeps_its_document_beside_it(tmp_path: Path) -> None:
    core = pytest.importorskip("llama_index.core")
    from ragft_plugin.llama_index import EncoderEmbedding

    encoder = HashingEncoder(64)
    nodes = [core.schema.TextNode(text=text, id_=id) for id, text in zip("lgt", TEXTS, strict=True)]
    nodes[0].metadata["source"], nodes[1].metadata["source"] = "manual.pdf", "D1"
    for node in nodes:
        node.relationships[core.schema.NodeRelationship.SOURCE] = core.schema.RelatedNodeInfo(node_id="D1")
    index = core.VectorStoreIndex(nodes, embed_model=EncoderEmbedding(encoder))
    with KnowledgeBase.create(tmp_path / "kb", encoder) as kb:
        assert import_index(kb, index).added == 3
        assert [p.metadata for p in kb.get(["l", "g", "t"])] == [
            {"source": "manual.pdf", "_ref_doc_id": "D1"},
            {"source": "D1"},
            {"source": "D1"},
        ]


def test_a_store_that_tells_no_vectors_is_encoded_again_or_refused(tmp_path: Path) -> None:
    node = SimpleNamespace(
        node_id="a",
        metadata={},
        embedding=None,
        start_char_idx=None,
        end_char_idx=None,
        ref_doc_id="doc",
        get_content=lambda: "Red lamps.",
    )
    index = SimpleNamespace(vector_store=SimpleNamespace(get_nodes=lambda: [node]), docstore=SimpleNamespace(docs={}))
    with KnowledgeBase.create(tmp_path / "kb", HashingEncoder(64)) as kb:
        with pytest.raises(ConfigError, match="vector of node 'a' cannot be read"):
            import_index(kb, index, fingerprint="hashing-1-64")
        assert import_index(kb, index).added == 1
        assert kb.get(["a"])[0].metadata == {"source": "doc"}
        mute = SimpleNamespace(vector_store=SimpleNamespace(), docstore=SimpleNamespace(docs={}))
        with pytest.raises(ConfigError, match="does not tell its nodes"):
            import_index(kb, mute)
