"""Half of the memory, and the same neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.retrieval.halves import LEAST, Halves
from ragft_plugin.types import Passage


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 1e-6, 1e-4, 1e-2, 1.0]), st.integers(2, 48), st.integers(1, 20))
def test_the_nearest_are_among_the_candidates_however_close_they_are(
    seed: int, spread: float, dim: int, k: int
) -> None:
    draw = np.random.default_rng(seed)
    vectors = unit(draw.standard_normal((5, dim))[draw.integers(0, 5, 600)] + spread * draw.standard_normal((600, dim)))
    queries = unit(draw.standard_normal((3, dim)))
    found = Halves(vectors).candidates(queries, k)
    if found is not None:
        for query, positions in zip(queries.astype(np.float64), found, strict=True):
            cosines = vectors.astype(np.float64) @ query
            least = np.sort(cosines)[-k]
            assert set(np.flatnonzero(cosines >= least)) <= set(positions.tolist())


def test_vectors_too_close_to_tell_are_left_to_the_exact_search() -> None:
    vectors = np.tile(unit(np.ones((1, 8))), (3000, 1))
    assert Halves(vectors).candidates(vectors[:1], 5) is None


class Given:
    fingerprint = "given"

    def __init__(self) -> None:
        self.vectors = unit(np.random.default_rng(1).standard_normal((LEAST + 600, 16)))

    def encode(self, texts: list[str]) -> np.ndarray:
        return self.vectors[[int(text) for text in texts]]


@pytest.mark.parametrize("gone", [0, 40, 300])
def test_a_knowledge_base_finds_what_comparing_all_finds(tmp_path: Path, gone: int) -> None:
    encoder = Given()
    with KnowledgeBase.create(tmp_path / "kb", encoder) as kb:
        kb.add([Passage(str(n), str(n)) for n in range(LEAST + 500)])
        kb.delete([str(n) for n in range(gone)])
        cosines = encoder.vectors[LEAST + 500 :].astype(np.float64) @ encoder.vectors[: LEAST + 500].T
        cosines[:, :gone] = -2
        for row, truth in enumerate(np.argsort(-cosines.round(6), axis=1, kind="stable")[:, :7].tolist()):
            [found] = kb.retrieve([str(LEAST + 500 + row)], 7, mode="dense")
            assert [int(p.id) for p in found] == truth
            assert [p.score for p in found] == cosines[row, truth].round(6).tolist()
