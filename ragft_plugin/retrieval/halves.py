"""Halves: a copy of vectors in 16 bits. It is read in half the time, and the neighbours it finds are exact.

Searching few vectors is waiting for memory. Rounding a component to 16 bits (11 of them significant) changes it by at
most 2^-11 of itself, so the product of unit vectors by at most 2^-11, by Cauchy and Schwarz. Where the scores of the
k-th and of the last candidate lie further apart than twice that, no vector that is no candidate can be among the k
nearest; else more candidates are taken, or all vectors compared.
"""

from __future__ import annotations

import threading
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
LEAST = 2000  # vectors that are worth a copy
_APART = 2 * (2.0**-11 + 2.0**-14)  # with room for components too small for 16 bits, and for sums in float32
_MOST = 1024  # candidates


class Halves:
    """The copy, made when it is first needed.

    Args:
        vectors: unit vectors, shape (n, dim).
    """

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._index: Any = None
        self._making = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes in memory, once it is made."""
        return 2 * self._vectors.size

    def candidates(self, queries: Vectors, k: int) -> NDArray[np.int64] | None:
        """Return positions among which the k nearest of each query surely are, shape (n, more than k).

        Args:
            queries: unit vectors, shape (n, dim).
            k: less than the number of vectors.

        Returns:
            None where too many are too close to each other to tell.
        """
        index = self._made()
        count = max(k + 16, 2 * k)
        while count <= min(_MOST, index.ntotal):
            scores, positions = index.search(queries, count)
            if (scores[:, k - 1] - scores[:, -1] > _APART).all():
                return np.asarray(positions, np.int64)
            count *= 4
        return None

    def _made(self) -> Any:
        if self._index is None:
            with self._making:
                if self._index is None:
                    kind = faiss.ScalarQuantizer.QT_fp16
                    index = faiss.IndexScalarQuantizer(self._vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
                    index.add(np.ascontiguousarray(self._vectors))
                    self._index = index
        return self._index
