"""The encoder that a knowledge base is bound to: the one whose fingerprint it was created with, and no other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError, StoreError
from ragft_plugin.retrieval.encoders import checked_vectors, restored_encoder
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
        self, texts: Sequence[str], given: NDArray[Any] | None, asked: Sequence[int], dim: int
    ) -> NDArray[np.float32]:
        """Return the vectors of queries, shape (len(asked), dim).

        Args:
            texts: the queries that are asked.
            given: vectors of all queries where they are known already.
            asked: which of all queries the texts are.
            dim: of the stored vectors.
        """
        if given is None:
            return checked_vectors(self.needed(), texts, dim)
        vectors = np.asarray(given, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != dim or len(vectors) <= asked[-1] or not np.isfinite(vectors).all():
            raise ConfigError(f"vectors must be finite, of shape (queries, {dim}); got {vectors.shape}")
        return np.ascontiguousarray(vectors if len(asked) == len(vectors) else vectors[asked])
