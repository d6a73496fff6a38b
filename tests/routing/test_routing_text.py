"""Vectors of texts, against scikit-learn."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from ragft_plugin.routing.signals.reading import final_answer
from ragft_plugin.routing.text import Tfidf, cosine, principal_axes, project, words

TEXTS = [
    "Who wrote Emma? Jane Austen wrote it.",
    "Emma is a novel, written by Jane Austen; it's set in Surrey.",
    "A cat sat on the mat. The mat was flat.",
    "Größe und Straße: naïve café 2024, C3PO!",
    "the the the cat",
    "",
]


def test_vectors_equal_those_of_scikit_learn() -> None:
    oracle = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=1).fit(TEXTS)
    ours = Tfidf.fit((words(t) for t in TEXTS), min_df=1)
    assert ours.vocabulary == oracle.vocabulary_
    np.testing.assert_allclose(ours.idf, oracle.idf_, rtol=1e-14)
    expected = oracle.transform(TEXTS).toarray()
    for text, row in zip(TEXTS, expected, strict=True):
        index, weight = ours.transform(words(text))
        dense = np.zeros(len(ours.idf))
        dense[index] = weight
        np.testing.assert_allclose(dense, row, rtol=1e-12, atol=1e-15)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_words_are_those_of_scikit_learn(texts: list[str]) -> None:
    split = TfidfVectorizer().build_analyzer()
    assert [words(t) for t in texts] == [split(t) for t in texts]


def test_cosine_of_disjoint_empty_and_equal_texts() -> None:
    tfidf = Tfidf.fit((words(t) for t in TEXTS), min_df=1)
    a, b, none = (tfidf.transform(words(t)) for t in (TEXTS[0], TEXTS[2], "zzz"))
    assert cosine(a, b) == 0.0
    assert cosine(a, none) == cosine(none, a) == 0.0
    assert abs(cosine(a, a) - 1.0) < 1e-12
    shared = tfidf.transform(words("Jane Austen sat"))
    assert abs(cosine(a, shared) - cosine(shared, a)) < 1e-15


def test_all_axes_keep_all_inner_products() -> None:
    tfidf = Tfidf.fit((words(t) for t in TEXTS), min_df=1)
    vectors = [tfidf.transform(words(t)) for t in TEXTS]
    axes = principal_axes(vectors, len(tfidf.idf), 100, seed=0)
    placed = np.stack([project(v, axes) for v in vectors])
    expected = np.array([[cosine(a, b) for b in vectors] for a in vectors])
    np.testing.assert_allclose(placed @ placed.T, expected, atol=1e-6)


def test_final_answer_is_found_after_reasoning() -> None:
    assert final_answer('{"step_by_step": "x is y", "answer_choice": "B"}') == "B"
    assert final_answer("First this. So the answer is: Paris.\nBye") == "Paris"
    assert final_answer("#### 42") == "42"
    assert final_answer("  Paris \n") == "Paris"
    assert final_answer("") == ""


def test_terms_never_seen_count_in_the_length_as_those_seen_once_did() -> None:
    tfidf = Tfidf.fit((words(t) for t in ["alpha beta", "alpha gamma", "delta"]), min_df=1)
    # idf of alpha: ln(4 / 3) + 1; of a term in one text: ln(4 / 2) + 1. The pairs "alpha zeta" and "zeta" are new.
    seen, once = np.log(4 / 3) + 1, np.log(4 / 2) + 1
    index, weight = tfidf.transform(words("alpha zeta"))
    assert index.tolist() == [tfidf.vocabulary["alpha"]]
    assert abs(weight[0] - seen / np.sqrt(seen**2 + 2 * once**2)) < 1e-12
    # A training text of the same shape has its own terms instead, and alpha weighs the same in it.
    index, weight = tfidf.transform(words("alpha beta"))
    assert abs(weight[index.tolist().index(tfidf.vocabulary["alpha"])] - seen / np.sqrt(seen**2 + 2 * once**2)) < 1e-12


def test_where_terms_seen_once_are_left_out_unseen_ones_count_nothing() -> None:
    tfidf = Tfidf.fit((words(t) for t in ["alpha beta", "alpha gamma"]), min_df=2)
    assert tfidf.transform(words("alpha zeta"))[1].tolist() == [1.0]
    assert tfidf.transform(words("alpha beta"))[1].tolist() == [1.0]
