"""Ranking measures against ir_measures, and by hand."""

from math import log2

import ir_measures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, R, Success, nDCG

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.metrics import hit, ndcg, recall, reciprocal_rank

ids = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)
gains = st.dictionaries(st.sampled_from("abcdefghij"), st.integers(1, 3), min_size=1, max_size=5)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(ids, gains, st.integers(1, 6))
def test_values_equal_those_of_ir_measures(ranked, relevant, k):
    qrels = [ir_measures.Qrel("q", id, gain) for id, gain in relevant.items()]
    run = [ir_measures.ScoredDoc("q", id, -float(i)) for i, id in enumerate(ranked)]
    # An empty run is what ir_measures scores as its default, 0.
    run = run or [ir_measures.ScoredDoc("q", "none of these", 0.0)]
    expected = ir_measures.calc_aggregate([nDCG @ k, R @ k, RR @ k, Success @ k], qrels, run)
    assert ndcg(ranked, relevant, k) == pytest.approx(expected[nDCG @ k], abs=1e-6)
    assert recall(ranked, relevant, k) == pytest.approx(expected[R @ k], abs=1e-6)
    assert reciprocal_rank(ranked, relevant, k) == pytest.approx(expected[RR @ k], abs=1e-6)
    assert hit(ranked, relevant, k) == expected[Success @ k]


def test_ndcg_is_the_written_out_sum():
    ideal = 1 / log2(2) + 1 / log2(3)
    assert ndcg(["x", "a", "y", "b"], {"a", "b"}) == pytest.approx((1 / log2(3) + 1 / log2(5)) / ideal)


def test_a_repeated_id_counts_where_it_stands_first():
    assert ndcg(["a", "a", "b"], {"a", "b"}) == 1.0
    assert recall(["x", "x", "a"], ["a"], 2) == 1.0


def test_silence_scores_zero():
    assert hit([], ["a"], 3) == recall([], ["a"], 3) == reciprocal_rank([], ["a"]) == ndcg([], ["a"]) == 0.0


def test_a_query_without_relevant_passages_is_an_error():
    with pytest.raises(DataError, match="expected ids"):
        recall(["a"], [], 3)
    with pytest.raises(DataError, match="positive gain"):
        ndcg(["a"], {"a": 0.0})
    with pytest.raises(ValueError, match="k must be"):
        hit(["a"], ["a"], 0)
