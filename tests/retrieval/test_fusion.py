"""Fusion and BM25: arithmetic written out, and values against plain formulas."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.retrieval.fusion import mmr, relative, rrf, weighted
from ragft_plugin.retrieval.lexical import analyzer
from ragft_plugin.types import Passage


def test_rrf_adds_reciprocal_ranks() -> None:
    scores, rows = rrf([np.array([7, 3, 5]), np.array([5, 9])])
    assert rows.tolist() == [5, 7, 3, 9]
    expected = [1 / (60 + 3) + 1 / (60 + 1), 1 / (60 + 1), 1 / (60 + 2), 1 / (60 + 2)]
    assert scores.tolist() == expected


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=6), max_size=4), st.randoms())
def test_rrf_does_not_depend_on_the_order_of_the_rankings(rankings: list[list[int]], random) -> None:  # type: ignore[no-untyped-def]
    arrays = [np.array(r, dtype=np.int64) for r in rankings]
    scores, rows = rrf(arrays)
    random.shuffle(arrays)
    again, same = rrf(arrays)
    assert scores == pytest.approx(again)
    assert sorted(rows.tolist()) == sorted(same.tolist())


def test_relative_scores_start_at_the_floor_and_end_at_one() -> None:
    assert relative(np.array([0.5, -1.0, 0.0]), floor=-1.0).tolist() == [1.0, 0.0, 1 / 1.5]
    assert relative(np.zeros(2), floor=0.0).tolist() == [0.0, 0.0]
    assert relative(np.empty(0), floor=0.0).tolist() == []


def test_weighted_fusion_is_the_convex_combination_written_out() -> None:
    fused = weighted(np.array([0.6, 0.2]), np.array([2.0, 8.0]))
    assert fused.tolist() == pytest.approx([0.8 * 1.0 + 0.2 * 2 / 8, 0.8 * 1.2 / 1.6 + 0.2 * 1.0])


def test_a_sure_half_is_not_outvoted_by_an_indifferent_one() -> None:
    # By ranks the two halves disagree symmetrically; by scores the dense half is sure and BM25 is not.
    fused = weighted(np.array([0.9, 0.1]), np.array([4.99, 5.0]))
    assert fused[0] > fused[1]


def test_mmr_prefers_the_unlike_after_the_first() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert mmr(np.array([0.9, 0.89, 0.5]), vectors, 3, weight=0.5) == [0, 2, 1]
    assert mmr(np.array([0.9, 0.89, 0.5]), vectors, 3, weight=1.0) == [0, 1, 2]
    assert mmr(np.empty(0), np.empty((0, 2), np.float32), 3) == []


def plain_bm25(query: str, texts: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    tokens = analyzer("english")
    documents = [Counter(tokens.analyze(text)) for text in texts]
    lengths = [sum(d.values()) for d in documents]
    mean = sum(lengths) / len(lengths)
    total = [0.0] * len(texts)
    for term, times in Counter(tokens.analyze(query)).items():
        n = sum(term in d for d in documents)
        idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
        for i, d in enumerate(documents):
            tf = d[term]
            total[i] += times * idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * lengths[i] / mean))
    return total


def test_bm25_scores_are_those_of_the_plain_formula(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    words = [f"word{chr(97 + i)}" for i in range(26)]
    weights = 1 / np.arange(1, 27)
    texts = [
        # Up to 39 words: so long the one byte that tantivy keeps of a length is exact.
        " ".join(random.choice(words, size=random.integers(1, 40), p=weights / weights.sum()))
        for _ in range(200)
    ]
    queries = [" ".join(random.choice(words, size=4)) for _ in range(20)] + ["worda worda wordz"]
    with KnowledgeBase.create(tmp_path / "kb", None) as kb:
        kb.add([Passage(str(i), text) for i, text in enumerate(texts)])
        for query, found in zip(queries, kb.retrieve(queries, 200), strict=True):
            expected = plain_bm25(query, texts)
            assert {p.id: p.score for p in found} == pytest.approx(
                {str(i): s for i, s in enumerate(expected) if s > 0}, rel=1e-4
            )
            assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)


def test_words_unknown_to_all_passages_find_nothing_by_bm25(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb", None) as kb:
        kb.add([Passage("a", "lamps")])
        assert kb.retrieve(["zebra", "?!", "", 'AND "'], 5) == [[], [], [], []]


def test_dense_scores_are_cosines_in_order(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        assert kb.encoder is not None
        texts = [f"lamp {n} of {n % 5} houses" for n in range(50)]
        for start in range(0, 50, 7):  # several segments
            kb.add([Passage(str(i), texts[i]) for i in range(start, min(50, start + 7))])
        kb.delete(["3", "30"])
        cosines = kb.encoder.encode(["lamp 30 of 2 houses"]) @ kb.encoder.encode(texts).T
        [found] = kb.retrieve(["lamp 30 of 2 houses"], 50, mode="dense")
        expected = {str(i): c for i, c in enumerate(cosines[0].tolist()) if i not in (3, 30)}
        assert {p.id: p.score for p in found} == pytest.approx(expected, abs=1e-6)
        assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)


def test_one_query_alone_gives_what_it_gives_in_a_batch(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        kb.add([Passage(str(n), f"lamp {n} in house {n % 7}") for n in range(300)])
        queries = [f"house {n} lamp" for n in range(40)]
        for mode in ("hybrid", "dense", "bm25", "rrf", "mmr"):
            batch = kb.retrieve(queries, 5, mode=mode)  # type: ignore[arg-type]
            assert batch == [kb.retrieve([q], 5, mode=mode)[0] for q in queries]  # type: ignore[arg-type]
            assert batch == kb.retrieve(queries, 5, mode=mode, vectors=kb.encode(queries))  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [True, False])
def test_hybrid_is_the_weighted_sum_over_the_candidates_of_both_halves(tmp_path: Path, shared: bool) -> None:
    draw = np.random.default_rng(4)
    words = ["lamp", "gear", "wheel", "hinge", "bolt", "lens", "pipe", "cable"]
    texts = [
        ("common " if shared else "") + " ".join(draw.choice(words, draw.integers(1, 9))) + f" {n}" for n in range(400)
    ]
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        kb.add([Passage(str(n), text) for n, text in enumerate(texts)])
        query = "common bolt bolts lens 7" if shared else "hinge 7"
        cosine = {p.id: p.score for p in kb.retrieve([query], 400, mode="dense")[0]}
        bm25 = {p.id: p.score for p in kb.retrieve([query], 400, mode="bm25")[0]}
        candidates = set(list(cosine)[:100]) | set(list(bm25)[:100])
        top, best = max(cosine[c] for c in candidates), max(bm25.get(c, 0.0) for c in candidates)
        expected = {c: 0.8 * (cosine[c] + 1) / (top + 1) + 0.2 * bm25.get(c, 0.0) / best for c in candidates}
        [found] = kb.retrieve([query], 50)
        assert [p.score for p in found] == pytest.approx(sorted(expected.values(), reverse=True)[:50], abs=2e-6)
        for p in found:
            assert p.score == pytest.approx(expected[p.id], abs=2e-6)
            assert p.metadata["kb"]["dense"] == pytest.approx(cosine[p.id], abs=2e-6)
            assert p.metadata["kb"]["bm25"] == pytest.approx(bm25.get(p.id, 0.0))


def test_a_threshold_drops_lower_scores_only(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        kb.add([Passage(str(n), f"lamp {n}") for n in range(20)] + [Passage("far", "zebra")])
        everything = kb.retrieve(["lamp 7"], 50, mode="dense")[0]
        cut = everything[4].score
        kept = kb.retrieve(["lamp 7"], 50, mode="dense", threshold=cut)[0]
        assert kept == [p for p in everything if p.score >= cut]
