"""The encoder that a knowledge base is bound to: the one whose fingerprint it was created with, and no other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError, DataError, StoreError
from ragft_plugin.retrieval.encoders import checked_vectors, restored_encoder, unit
from ragft_plugin.types import Encoder


class BoundEncoder:
    """An encoder that must match what was stored.

    Args:
        path: of the knowledge base, for messages.
        fingerprint: stored when it was created; "" for a knowledge base without vectors.
        encoder: given by the user, None to make it from the fingerprint where that is possible.

    Raises:
        StoreError: the given one is another.
    """

    def __init__(self, path: Path, fingerprint: str, encoder: Encoder | None) -> None:
        if encoder is not None and encoder.fingerprint != fingerprint:
            raise StoreError(
                f"{path} holds vectors of {fingerprint or 'no encoder'}, not of {encoder.fingerprint}; "
                "open it with that one, or create a new knowledge base"
            )
        self.fingerprint = fingerprint
        self.encoder = restored_encoder(fingerprint) if encoder is None else encoder
        self._path = path

    def needed(self) -> Encoder:
        """Return the encoder.

        Raises:
            StoreError: there is none.
        """
        if self.encoder is not None:
            return self.encoder
        if not self.fingerprint:
            raise StoreError(f"{self._path} was created without an encoder; use mode='bm25'")
        raise StoreError(
            f"{self._path} was made with the encoder {self.fingerprint}; give it: KnowledgeBase.open(path, encoder=...)"
        )

    def query_vectors(
        self, texts: Sequence[str], given: NDArray[Any] | None, asked: Sequence[int], count: int, dim: int
    ) -> NDArray[np.float32]:
        """Return the vectors of queries, shape (len(asked), dim).

        Args:
            texts: the queries that are asked.
            given: vectors of all queries where they are known already.
            asked: which of all queries the texts are.
            count: number of all queries.
            dim: of the stored vectors.
        """
        if given is None:
            return checked_vectors(self.needed(), texts, dim, queries=True)
        vectors = np.asarray(given, dtype=np.float32)
        if vectors.shape != (count, dim):
            raise ConfigError(f"vectors must be of shape ({count}, {dim}), one row per query; got {vectors.shape}")
        if len(asked) < len(vectors):
            vectors = vectors[asked]
        if not all(abs(float(vector @ vector) - 1.0) <= 2e-6 for vector in vectors):  # neither for NaN
            if not np.isfinite(vectors).all():
                raise ConfigError("vectors must be finite; got NaN or infinity")
            vectors = np.asarray(unit(vectors.astype(np.float64)), dtype=np.float32)
        return np.ascontiguousarray(vectors)

    def passage_vectors(self, ids: Sequence[str], given: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Return {id: unit vector} of passages whose vectors are known already; of equal ids the last one counts.

        Args:
            ids: of the passages.
            given: shape (n, dim).

        Raises:
            StoreError: a knowledge base without vectors.
            DataError: wrong shape, NaN or infinity.
        """
        if not self.fingerprint:
            raise StoreError(f"{self._path} was created without an encoder and keeps no vectors")
        vectors = np.asarray(given, dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(ids) or not vectors.shape[1]:
            raise DataError(f"vectors must be of shape ({len(ids)}, dim), one row per passage; got {vectors.shape}")
        dim = getattr(self.encoder, "dim", None)
        if isinstance(dim, int) and vectors.shape[1] != dim:
            raise DataError(f"the vectors have {vectors.shape[1]} dimensions, those of {self.fingerprint} have {dim}")
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise DataError(f"the vector of passage {ids[int(np.argmin(finite))]!r} holds NaN or infinity")
        return dict(zip(ids, np.asarray(unit(vectors.astype(np.float64)), dtype=np.float32), strict=True))
