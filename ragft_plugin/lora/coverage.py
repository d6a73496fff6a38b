"""Coverage: how close a question is to those an adapter was trained on.

Kept with the adapter for the time before there are outcomes. Words are stored as hashes, so the file does not give
the training questions away.

    closeness(q) = max over training questions t of  sum of idf(w) over w in q and t / sum of idf(w) over w in q

    idf(w) = log(1 + n / (1 + number of training questions with w))

1 says that one training question has every word of ``q``; rare words (names) weigh most.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import AdapterError

_WORD = re.compile(r"\w+")
_FORMAT = 1


class CoverageIndex:
    """Hashed words of training questions.

    Args:
        words: sorted hashes of all words, shape (w,).
        lists: positions of questions, one list after another, in the order of ``words``.
        ends: where each word's list ends in ``lists``, shape (w,).
        n: number of questions.
    """

    def __init__(
        self,
        words: NDArray[np.uint64],
        lists: NDArray[np.int32],
        ends: NDArray[np.int64],
        n: int,
    ) -> None:
        self._words, self._lists, self._ends, self._n = words, lists, ends, n

    @classmethod
    def fit(cls, questions: Sequence[str]) -> Self:
        """Index training questions.

        Example:
            >>> index = CoverageIndex.fit(["Who runs Orsk?", "Who built Tirk?"])
            >>> index.closeness(["who runs Orsk"]).round(2).tolist()
            [1.0]
        """
        pairs = [(word, i) for i, question in enumerate(questions) for word in _hashes(question)]
        pairs.sort()
        words, counts = np.unique(np.array([w for w, _ in pairs], np.uint64), return_counts=True)
        lists = np.array([i for _, i in pairs], np.int32)
        return cls(words, lists, np.cumsum(counts, dtype=np.int64), len(questions))

    def closeness(self, questions: Sequence[str]) -> NDArray[np.float64]:
        """Closeness to the nearest training question, in [0, 1], shape (len(questions),)."""
        return np.array([self._one(question) for question in questions], np.float64)

    def save(self, path: Path) -> None:
        """Write an .npz file."""
        np.savez_compressed(
            path,
            format=np.int64(_FORMAT),
            words=self._words,
            lists=self._lists,
            ends=self._ends,
            n=np.int64(self._n),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            AdapterError: if the file is damaged or of another format.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                if int(file["format"]) != _FORMAT:
                    raise ValueError(f"format {int(file['format'])}, expected {_FORMAT}")
                return cls(file["words"], file["lists"], file["ends"], int(file["n"]))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise AdapterError(f"{path} cannot be read: {error}; train the adapter again") from error

    def _one(self, question: str) -> float:
        asked = np.array(sorted(_hashes(question)), np.uint64)
        if not len(asked) or not self._n:
            return 0.0
        at = np.searchsorted(self._words, asked)
        shared = np.zeros(self._n)
        total = 0.0
        for word, place in zip(asked, at, strict=True):
            questions = self._lists[:0]
            if place < len(self._words) and self._words[place] == word:
                start = int(self._ends[place - 1]) if place else 0
                questions = self._lists[start : self._ends[place]]
            weight = float(np.log1p(self._n / (1 + len(questions))))
            shared[questions] += weight
            total += weight
        return float(shared.max() / total)


def _hashes(text: str) -> set[int]:
    return {
        int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        for word in _WORD.findall(text.casefold())
    }
