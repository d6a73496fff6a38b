"""BM25: a query against one pinned state of the tantivy index.

    score(q, d) = sum over terms t of q:  qtf(t) * ln(1 + (N - n_t + .5) / (n_t + .5))
                  * tf * (k1 + 1) / (tf + k1 * (1 - b + b * |d| / avgdl)),   k1 = 1.2, b = .75

tantivy keeps |d| in one byte (about 6 % steps) and counts deleted passages in N and n_t until it merges them away.

Source: Robertson & Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tantivy
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError, StoreError

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]
MAX_TERMS = 256  # of a query; a question of 100 kB costs no more than one of 256 different words
_TERM_SET = 4096  # up to so many allowed rows become a query of their own


def analyzer(language: str) -> Any:
    """Return the tokenizer: words, lower case, stemmed; words over 40 characters are left out."""
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    builder = builder.filter(tantivy.Filter.remove_long(40)).filter(tantivy.Filter.lowercase())
    if language:
        try:
            builder = builder.filter(tantivy.Filter.stemmer(language))
        except ValueError as error:
            raise ConfigError(
                f"no stemmer for the language {language!r}; give one like 'english' or 'german', or '' for none"
            ) from error
    return builder.build()


def schema() -> Any:
    """Return the fields of the index: text, and the row of the catalogue."""
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", stored=False, tokenizer_name="ragft", index_option="freq")
    builder.add_unsigned_field("row", stored=False, indexed=True, fast=True)
    return builder.build()


@contextmanager
def panics_caught() -> Iterator[None]:
    """Turn a panic of tantivy into a ValueError: what pyo3 raises is no Exception, and cannot be imported."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"tantivy has panicked: {error}") from error


class Lexicon:
    """A pinned state of the index: what is committed later does not change it.

    Args:
        searcher: tantivy's.
        schema: of the index.
        analyzer: as for the documents.
    """

    def __init__(self, searcher: Any, schema: Any, analyzer: Any) -> None:
        self._searcher, self._schema, self._analyzer = searcher, schema, analyzer

    def search(self, query: str, k: int, allowed: Rows | None = None) -> tuple[Scores, Rows]:
        """Return scores and rows of the best passages that share a word with the query, best first.

        Args:
            query: free text; no syntax.
            k: at most this many.
            allowed: rows that may be returned, sorted; None for all.

        Raises:
            StoreError: the index is damaged.
        """
        k = min(k, self._searcher.num_docs)  # tantivy makes room for so many
        counts = Counter(self._analyzer.analyze(query.encode("utf-8", "replace").decode("utf-8")))
        if not counts or k == 0 or (allowed is not None and not len(allowed)):
            return np.empty(0), np.empty(0, np.int64)
        clauses = [(tantivy.Occur.Should, self._term(term, count)) for term, count in list(counts.items())[:MAX_TERMS]]
        words = tantivy.Query.boolean_query(clauses)
        if allowed is None:
            return self._run(words, k)
        if len(allowed) <= _TERM_SET:
            rows = tantivy.Query.term_set_query(self._schema, "row", allowed.tolist())
            only = tantivy.Query.const_score_query(rows, 0.0)
            return self._run(tantivy.Query.boolean_query([(tantivy.Occur.Must, q) for q in (words, only)]), k)
        return self._run_widening(words, k, allowed)

    def _term(self, term: str, count: int) -> Any:
        query = tantivy.Query.term_query(self._schema, "text", term, "freq")
        return query if count == 1 else tantivy.Query.boost_query(query, float(count))

    def _run(self, query: Any, k: int) -> tuple[Scores, Rows]:
        try:
            with panics_caught():
                hits = self._searcher.search(query, k, count=False).hits
                found = self._searcher.fast_field_values("row", [address for _, address in hits])
            rows = np.asarray(found, np.int64)
        except (ValueError, OverflowError) as error:
            raise StoreError(f"the BM25 index is damaged: {error}; compact() writes it anew") from error
        scores = np.asarray([score for score, _ in hits], np.float64)
        order = np.lexsort((rows, -scores))  # equal scores in order of rows, not of tantivy's segments
        return scores[order], rows[order]

    def _run_widening(self, query: Any, k: int, allowed: Rows) -> tuple[Scores, Rows]:
        # Many rows are allowed: ask for more and drop the others, until k are found or no match is left.
        total = max(1, self._searcher.num_docs)
        limit = min(total, 2 * k * total // len(allowed) + 16)
        while True:
            scores, rows = self._run(query, limit)
            keep = np.isin(rows, allowed, assume_unique=True)
            if keep.sum() >= k or len(rows) < limit or limit >= total:
                return scores[keep][:k], rows[keep][:k]
            limit = min(total, 4 * limit)
