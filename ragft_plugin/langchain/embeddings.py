"""Encoders of the package <-> embeddings of LangChain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from langchain_core.embeddings import Embeddings

from ragft_plugin.errors import DataError
from ragft_plugin.types import Encoder, FloatArray


class EncoderEmbeddings(Embeddings):
    """Embeddings of LangChain over an encoder; the async methods run in a thread.

    Args:
        encoder: turns texts into unit vectors; its name ("hashing", "minilm") will do.

    Example:
        >>> len(EncoderEmbeddings("hashing").embed_query("Where is Rome?")) > 0
        True
    """

    def __init__(self, encoder: Encoder | str = "hashing") -> None:
        if isinstance(encoder, str):
            from ragft_plugin.retrieval.encoders import named_encoder

            encoder = named_encoder(encoder)
        self.encoder: Encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text, all encoded as one batch."""
        return [[float(x) for x in vector] for vector in self.encoder.encode(texts)] if texts else []

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        return self.embed_documents([text])[0]


class EmbeddingsEncoder:
    """An encoder over embeddings of LangChain; vectors are scaled to length 1.

    Args:
        embeddings: the model.
        fingerprint: name and version of the vectors, so that those of different models are never compared; by default
            the model's class and name.
    """

    def __init__(self, embeddings: Embeddings, *, fingerprint: str | None = None) -> None:
        name = getattr(embeddings, "model", None) or getattr(embeddings, "model_name", "")
        self.embeddings = embeddings
        self._fingerprint = fingerprint or f"langchain:{type(embeddings).__name__}:{name}"

    @property
    def fingerprint(self) -> str:
        """Name and version of the vectors."""
        return self._fingerprint

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors of passages, shape (n, dim)."""
        return _unit(self.embeddings.embed_documents(list(texts)))

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors of questions, shape (n, dim): some models encode them otherwise than passages."""
        return _unit([self.embeddings.embed_query(text) for text in texts])


def _unit(rows: list[list[float]]) -> FloatArray:
    vectors = np.asarray(rows, dtype=np.float64)
    if vectors.ndim != 2:
        raise DataError(f"the embeddings returned an array of shape {vectors.shape}, expected (n, dim)")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: FloatArray = vectors / np.where(norms == 0.0, 1.0, norms)
    return scaled
