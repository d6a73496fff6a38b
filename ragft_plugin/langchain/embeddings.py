"""Encoders of the package <-> embeddings of LangChain."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from ragft_plugin.retrieval.wrappers import EmbeddingsEncoder, encode_queries
from ragft_plugin.types import Encoder

__all__ = ["EmbeddingsEncoder", "EncoderEmbeddings"]


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

    @property
    def wrapped_encoder(self) -> Encoder | None:
        """The encoder, where these are its vectors unchanged; a class derived from this one may change them."""
        return self.encoder if type(self) is EncoderEmbeddings else None

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text, all encoded as one batch."""
        return [[float(x) for x in vector] for vector in self.encoder.encode(texts)] if texts else []

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        return [float(x) for x in encode_queries(self.encoder, [text])[0]]
