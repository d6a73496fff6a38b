"""Encoders of the package <-> embedding models of LlamaIndex."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.embeddings import BaseEmbedding
from pydantic import PrivateAttr

from ragft_plugin.retrieval.wrappers import EmbeddingEncoder, encode_queries
from ragft_plugin.types import Encoder

__all__ = ["EmbeddingEncoder", "EncoderEmbedding"]


class EncoderEmbedding(BaseEmbedding):
    """An embedding model of LlamaIndex over an encoder; texts are encoded in batches, async in a thread.

    Args:
        encoder: turns texts into unit vectors.
        **settings: of ``BaseEmbedding`` (``embed_batch_size``, ``callback_manager``, ...).
    """

    _encoder: Encoder = PrivateAttr()

    def __init__(self, encoder: Encoder, **settings: Any) -> None:
        settings.setdefault("model_name", encoder.fingerprint)
        super().__init__(**settings)
        self._encoder = encoder

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex writes the class down."""
        return "EncoderEmbedding"

    @property
    def wrapped_encoder(self) -> Encoder | None:
        """The encoder, where these are its vectors unchanged; a class derived from this one may change them."""
        return self._encoder if type(self) is EncoderEmbedding else None

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [[float(x) for x in vector] for vector in self._encoder.encode(texts)]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return [float(x) for x in encode_queries(self._encoder, [query])[0]]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)
