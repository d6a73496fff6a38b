"""Approximate indexes: candidates are approximate, scores, filters and counts are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragft_plugin.errors import ConfigError
from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.retrieval.approximate import AIM, build, kind_for
from ragft_plugin.types import Passage

COUNT, DIM = 3000, 32


class Clustered:
    """Gives text "n" the n-th of a fixed series of clustered vectors."""

    fingerprint = "clustered"

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        centres = draw.standard_normal((40, DIM))
        vectors = centres[draw.integers(0, 40, 2 * COUNT)] + 0.5 * draw.standard_normal((2 * COUNT, DIM))
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode(self, texts: Sequence[str]) -> Any:
        return self.vectors[[int(text.split()[-1]) for text in texts]]


def passage(n: int) -> Passage:
    return Passage(f"p{n}", f"passage {n}", metadata={"n": n})


@pytest.fixture(params=["pq", "hnsw", "ivf"])
def kb(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    with KnowledgeBase.create(tmp_path / "kb", Clustered()) as made:
        made.add([passage(n) for n in range(COUNT)])
        made.compact(index=request.param)
        assert [i["kind"] for i in made.stats()["indexes"]] == [request.param]
        yield made


def recall(kb: KnowledgeBase, gone: set[int]) -> float:
    vectors = Clustered().vectors
    queries = np.arange(COUNT, COUNT + 100)
    cosines = vectors[queries] @ vectors[:COUNT].T
    cosines[:, sorted(gone)] = -2
    truth = np.argsort(-cosines, axis=1)[:, :10]
    hits = 0
    for row, wanted, found in zip(
        cosines, truth, kb.retrieve([f"q {q}" for q in queries], 10, mode="dense"), strict=True
    ):
        numbers = [p.metadata["n"] for p in found]
        assert len(set(numbers)) == 10
        assert [p.score for p in found] == pytest.approx(row[numbers].tolist(), abs=2e-6)
        hits += len(set(numbers) & set(wanted.tolist()))
    return hits / 1000


def test_recall_is_what_was_measured_and_scores_are_exact(kb: KnowledgeBase) -> None:
    [index] = kb.stats()["indexes"]
    assert index["recall@10"] >= 0.95
    assert recall(kb, set()) >= 0.95


def test_deleted_passages_do_not_come_back_and_new_ones_are_found(kb: KnowledgeBase) -> None:
    few, many = set(range(0, 30)), set(range(0, 1500))
    kb.delete([f"p{n}" for n in few])
    assert recall(kb, few) >= 0.95
    kb.delete([f"p{n}" for n in many])
    assert recall(kb, many) >= 0.95
    kb.add([passage(COUNT + 7)])
    assert kb.retrieve([f"q {COUNT + 7}"], 1, mode="dense")[0][0].id == f"p{COUNT + 7}"


def test_filters_are_exact_beside_an_index(kb: KnowledgeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragft_plugin.retrieval.segments._EXACT", 100)
    vectors = Clustered().vectors
    for low, k in ((COUNT - 10, 5), (COUNT - 90, 50), (1000, 10), (5, 1000)):
        [found] = kb.retrieve([f"q {COUNT}"], k, {"n": {"$gte": low}}, mode="dense")
        assert len(found) == min(k, COUNT - low)
        assert all(p.metadata["n"] >= low for p in found)
        if COUNT - low <= 100:
            truth = low + np.argsort(-(vectors[COUNT] @ vectors[low:COUNT].T))[:k]
            assert [p.metadata["n"] for p in found] == truth.tolist()


def test_a_damaged_index_is_left_aside_with_a_warning(kb: KnowledgeBase, caplog: pytest.LogCaptureFixture) -> None:
    kb.close()
    [path] = (kb.path / "indexes").glob("*.faiss")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    with KnowledgeBase.open(kb.path, encoder=Clustered()) as again:
        assert path.name in caplog.text
        assert recall(again, set()) == 1.0
        again.compact()
        assert [i["kind"] for i in again.stats()["indexes"]] == ["flat"]
    with KnowledgeBase.open(kb.path, encoder=Clustered()) as again:
        assert recall(again, set()) == 1.0


def test_an_index_survives_reopening(kb: KnowledgeBase) -> None:
    before = kb.retrieve(["q 5000"], 10, mode="dense")
    kind = kb.stats()["indexes"]
    kb.close()
    with KnowledgeBase.open(kb.path, encoder=Clustered(), read_only=True) as again:
        assert again.stats()["indexes"] == kind
        assert again.retrieve(["q 5000"], 10, mode="dense") == before


def test_the_kind_follows_the_size() -> None:
    assert [kind_for(n) for n in (1, 50_000, 50_001, 4_000_000, 4_000_001)] == ["flat", "flat", "pq", "pq", "ivf"]


@pytest.mark.parametrize("dim", [2, 7, 12, 31])
def test_any_number_of_dimensions_can_be_quantised(dim: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((2000, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = build(vectors, "pq")
    assert index is not None
    assert index.recall >= AIM


def test_answers_are_the_same_alone_and_in_a_batch(kb: KnowledgeBase) -> None:
    questions = [f"q {COUNT + n}" for n in range(70)]
    for filter in (None, {"n": {"$gte": 100}}):
        alone = [kb.retrieve([question], 7, filter, mode="dense")[0] for question in questions]
        assert kb.retrieve(questions, 7, filter, mode="dense") == alone


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        kb.add([Passage("a", "b")])
        with pytest.raises(ConfigError, match="annoy"):
            kb.compact(index="annoy")  # type: ignore[arg-type]
        assert kb.ids() == ["a"]
