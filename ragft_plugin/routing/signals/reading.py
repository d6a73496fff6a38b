"""A reading: evidence with its texts split into words once, shared by all signals."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property

from ragft_plugin.routing.text import Sparse, Tfidf, cosine, words
from ragft_plugin.types import Answer, Evidence

# Where reasoning comes first, the answer follows one of these. The last match counts.
_ANSWER = re.compile(
    r"""(?:answer(?:[ _]choice)?["']?(?:\s*(?:is\b|:|=))+|\#\#\#\#|final[ ]answer)\s*["'(]*\s*(.+)""", re.I | re.S
)
WEIGHED = 3  # passages compared by weighed vectors; those below are rarely read and cost as much to compare
_QUESTION_KEYS = ("words", "word_set", "query_vector", "_rarest")
_PASSAGE_KEYS = ("passage_words", "passage_sets", "passage_vectors")
_CLOSING = " \t\r\n\"'.}])"


def final_answer(text: str) -> str:
    """The answer at the end of a reasoned text, or the text itself.

    Example:
        >>> final_answer("He was born in Bergen. So the answer is: Bergen.")
        'Bergen'
        >>> final_answer("Bergen")
        'Bergen'
    """
    found = _ANSWER.search(text)
    while found and (later := _ANSWER.search(found.group(1))):
        found = later
    kept = found.group(1) if found else text
    return kept.strip().splitlines()[0].strip(_CLOSING) if kept.strip() else ""


def metadata_text(value: object) -> str:
    """Short metadata as words; long values are left to the passage's own text."""
    return json.dumps(value, default=str)[:500] if value else ""


class Reading:
    """Evidence as signals see it.

    Args:
        evidence: what is known of the query.
        draft_arm: whose answer is the draft.
        agreement_arm: whose answer is compared with it.
        answers: arm -> bare answer, where it is known apart from the draft's text.
        tfidf: word weights that were learnt; None means all words weigh the same.
    """

    def __init__(
        self,
        evidence: Evidence,
        *,
        draft_arm: str | None = None,
        agreement_arm: str | None = None,
        answers: Mapping[str, str] | None = None,
        tfidf: Tfidf | None = None,
    ) -> None:
        self.evidence = evidence
        self.draft_arm = draft_arm
        self.agreement_arm = agreement_arm
        self._answers = answers or {}
        self._tfidf = tfidf

    def borrow(self, before: Reading) -> None:
        """Take over what an earlier stage's reading has split and weighed already."""
        for key in _QUESTION_KEYS:
            if key in before.__dict__:
                self.__dict__[key] = before.__dict__[key]
        if before.evidence.passages is self.evidence.passages:
            for key in _PASSAGE_KEYS:
                if key in before.__dict__:
                    self.__dict__[key] = before.__dict__[key]

    @cached_property
    def words(self) -> list[str]:
        """Words of the query."""
        return words(self.evidence.query)

    @cached_property
    def word_set(self) -> frozenset[str]:
        """Distinct words of the query."""
        return frozenset(self.words)

    @cached_property
    def passage_words(self) -> list[list[str]]:
        """Words of each passage."""
        return [words(p.text) for p in self.evidence.passages or ()]

    @cached_property
    def passage_sets(self) -> list[frozenset[str]]:
        """Distinct words of each passage."""
        return [frozenset(w) for w in self.passage_words]

    @property
    def draft(self) -> Answer | None:
        """The draft, if it was made."""
        return None if self.draft_arm is None else self.evidence.drafts.get(self.draft_arm)

    @property
    def second(self) -> Answer | None:
        """The answer that the draft is compared with, if it was made."""
        return None if self.agreement_arm is None else self.evidence.drafts.get(self.agreement_arm)

    @cached_property
    def draft_words(self) -> list[str]:
        """Words of the draft."""
        return [] if self.draft is None else words(self.draft.text)

    def final(self, arm: str) -> str:
        """The bare answer of an arm that has run."""
        known = self._answers.get(arm)
        return known if known is not None else final_answer(self.evidence.drafts[arm].text)

    @cached_property
    def query_vector(self) -> Sparse:
        """TF-IDF vector of the query."""
        return self._vector(self.words)

    @cached_property
    def passage_vectors(self) -> list[Sparse]:
        """TF-IDF vector of each of the first passages."""
        return [self._vector(w) for w in self.passage_words[:WEIGHED]]

    @cached_property
    def draft_vector(self) -> Sparse:
        """TF-IDF vector of the draft."""
        return self._vector(self.draft_words)

    def similarity(self, a: Sparse, b: Sparse) -> float:
        """Cosine of two TF-IDF vectors."""
        return cosine(a, b)

    def weight(self, word: str) -> float:
        """How much a word says: its inverse document frequency; unknown words count as the rarest."""
        if self._tfidf is None or not len(self._tfidf.idf):
            return 1.0
        i = self._tfidf.vocabulary.get(word)
        return self._rarest if i is None else float(self._tfidf.idf[i])

    @cached_property
    def _rarest(self) -> float:
        return 1.0 if self._tfidf is None else self._tfidf.highest

    def _vector(self, tokens: list[str]) -> Sparse:
        return (self._tfidf or _EMPTY).transform(tokens)


def _empty() -> Tfidf:
    import numpy as np

    return Tfidf({}, np.empty(0))


_EMPTY = _empty()
