"""Text as numbers: tokens, and TF-IDF vectors with a truncated SVD on top.

Fitting and deciding run the same few lines, so what was learnt is what is used: no scikit-learn object is stored
and none is needed to decide. The vectors equal those of ``sklearn.feature_extraction.text.TfidfVectorizer(
ngram_range=(1, 2), sublinear_tf=True, min_df=min_df)``; a test holds them against it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.types import FloatArray

WORD = re.compile(r"(?u)\b\w\w+\b")
MAX_CHARS = 6000  # what a router reads of a text; the rest of a very long one tells little more
_SPACED = "".join(chr(c) if chr(c).isalnum() or c == ord("_") else " " for c in range(128))
EXACT_SVD_ROWS = 1500  # up to here the Gram matrix is decomposed exactly, beyond it by random projection

IntArray = NDArray[np.intp]
Sparse = tuple[IntArray, FloatArray]


def words(text: str) -> list[str]:
    """Lower-case words of two letters or more, as scikit-learn splits them.

    Example:
        >>> words("Who sang it? A-ha!")
        ['who', 'sang', 'it', 'ha']
    """
    text = text[:MAX_CHARS].lower()
    if text.isascii():
        # The same words three times as fast: two letters or more between what is no letter.
        return [word for word in text.translate(_SPACED).split() if len(word) > 1]
    return WORD.findall(text)


def terms(tokens: Sequence[str]) -> list[str]:
    """Words and pairs of neighbouring words."""
    return [*tokens, *map(" ".join, pairwise(tokens))]


@dataclass(frozen=True, eq=False)
class Tfidf:
    """TF-IDF vectors of unit length.

        weight(t) = (1 + ln count(t)) * idf(t),   idf(t) = ln((1 + n) / (1 + df(t))) + 1

    Where terms that occur in one text only are kept, nearly every training text has some. A text to come has terms
    that were never seen instead, and they count as much in its length: left out, they would make its other terms
    heavier than they ever were in training, and predictions too sure of themselves.

    Attributes:
        vocabulary: term -> index; indices follow the terms' alphabetical order.
        idf: shape (v,).
        unseen: weight in the length of each occurrence of a term that was never seen.
    """

    vocabulary: dict[str, int]
    idf: FloatArray
    unseen: float = 0.0

    @cached_property
    def highest(self) -> float:
        """Weight of the rarest term, given to words that were never seen."""
        return float(self.idf.max()) if len(self.idf) else 1.0

    @classmethod
    def fit(cls, texts: Iterable[Sequence[str]], *, min_df: int = 2, max_terms: int = 30_000) -> Tfidf:
        """Learn terms and their rarity from tokenised texts.

        Args:
            texts: tokens of each text.
            min_df: a term must occur in so many texts.
            max_terms: keep the most frequent ones.
        """
        found: Counter[str] = Counter()
        n = 0
        for tokens in texts:
            found.update(set(terms(tokens)))
            n += 1
        kept = [(-df, term) for term, df in found.items() if df >= min_df]
        if len(kept) > max_terms:
            kept = sorted(kept)[:max_terms]
        names = sorted(term for _, term in kept)
        df = np.array([found[t] for t in names], dtype=np.float64)
        unseen = math.log((1 + n) / 2) + 1.0 if min_df == 1 else 0.0
        return cls({t: i for i, t in enumerate(names)}, np.log((1 + n) / (1 + df)) + 1.0, unseen)

    def transform(self, tokens: Sequence[str]) -> Sparse:
        """The vector of one text: indices in rising order, and weights of unit length or, with unseen terms, less."""
        counts: Counter[int | None] = Counter(map(self.vocabulary.get, terms(tokens)))
        missing = counts.pop(None, 0)
        if not counts:
            return np.empty(0, np.intp), np.empty(0)
        index = np.fromiter(counts, np.intp, len(counts))
        order = np.argsort(index)
        index = index[order]
        tf = np.fromiter(counts.values(), np.float64, len(counts))[order]
        weight = (np.log(tf) + 1.0) * self.idf[index]
        return index, weight / math.sqrt(float(weight @ weight) + missing * self.unseen**2)


def cosine(a: Sparse, b: Sparse) -> float:
    """Cosine of two vectors of unit length (or less: unseen terms match nothing).

    Example:
        >>> cosine((np.array([0, 2]), np.array([0.6, 0.8])), (np.array([2]), np.array([1.0])))
        0.8
    """
    if not len(a[0]) or not len(b[0]):
        return 0.0
    if len(a[0]) > len(b[0]):
        a, b = b, a
    place = np.searchsorted(b[0], a[0])
    place[place == len(b[0])] = 0
    return float(a[1] @ np.where(b[0][place] == a[0], b[1][place], 0.0))


def principal_axes(vectors: Sequence[Sparse], n_terms: int, rank: int, seed: int) -> FloatArray:
    """Leading right singular vectors of a matrix of sparse rows.

    Args:
        vectors: its rows.
        n_terms: its width.
        rank: at most so many.
        seed: of the random projection that large matrices need.

    Returns:
        Axes as columns, shape (n_terms, r) with r <= rank, float32.
    """
    import scipy.sparse as sparse

    rank = min(rank, len(vectors) - 1, n_terms - 1)
    if rank < 1 or not any(len(index) for index, _ in vectors):
        return np.zeros((n_terms, 0), dtype=np.float32)
    sizes = [len(index) for index, _ in vectors]
    matrix = sparse.csr_matrix(
        (
            np.concatenate([weight for _, weight in vectors]),
            np.concatenate([index for index, _ in vectors]),
            np.concatenate([[0], np.cumsum(sizes)]),
        ),
        shape=(len(vectors), n_terms),
    )
    if len(vectors) <= EXACT_SVD_ROWS:
        values, left = np.linalg.eigh((matrix @ matrix.T).toarray())
        kept = np.argsort(-values)[:rank]
        kept = kept[values[kept] > 1e-9]
        axes = (matrix.T @ left[:, kept]) / np.sqrt(values[kept])
        return np.ascontiguousarray(axes, dtype=np.float32)
    from sklearn.utils.extmath import randomized_svd

    _, _, right = randomized_svd(matrix, rank, n_iter=3, random_state=seed)
    return np.ascontiguousarray(right.T, dtype=np.float32)


def project(vector: Sparse, axes: NDArray[np.float32]) -> FloatArray:
    """Coordinates of a sparse vector on axes, shape (r,)."""
    index, weight = vector
    projected: FloatArray = weight @ axes[index].astype(np.float64)
    return projected
