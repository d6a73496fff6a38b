"""Encoders over what a user has already: embeddings of LangChain, of LlamaIndex, models of sentence-transformers.

Frameworks are known by the methods of their objects and never imported here, so a knowledge base takes such an object
as it is: ``KnowledgeBase.create(path, embeddings)``. Where a model encodes questions otherwise than passages, the
wrapper has ``encode_queries``, and a knowledge base uses it.

The package's own embeddings for these frameworks name the encoder behind them as ``wrapped_encoder``. It is what they
are known by here, so the same vectors have the same fingerprint whichever way they came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ragft_plugin.errors import ConfigError, DataError, MissingExtraError
from ragft_plugin.retrieval.encoders import named_encoder, unit
from ragft_plugin.types import Encoder, FloatArray


class EmbeddingsEncoder:
    """An encoder over embeddings of LangChain; vectors are scaled to length 1.

    Args:
        embeddings: an object with ``embed_documents(texts)`` and ``embed_query(text)``.
        fingerprint: name and version of the vectors, so that those of different models are never compared; by default
            the model's class and name or, where it has no name, a checksum of the vector of one fixed text.

    Example:
        >>> class Lengths:
        ...     model = "lengths-1"
        ...
        ...     def embed_documents(self, texts):
        ...         return [[float(len(text)), 1.0] for text in texts]
        ...
        ...     def embed_query(self, text):
        ...         return [float(len(text)), 1.0]
        >>> EmbeddingsEncoder(Lengths()).fingerprint
        'langchain:Lengths:lengths-1'
    """

    def __init__(self, embeddings: Any, *, fingerprint: str | None = None) -> None:
        self.embeddings = embeddings
        self._fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        """Name and version of the vectors."""
        if not self._fingerprint:
            names = [getattr(self.embeddings, attribute, None) for attribute in ("model", "model_name")]
            self._fingerprint = _fingerprint(
                self, self.embeddings, f"langchain:{type(self.embeddings).__name__}", names
            )
        return self._fingerprint

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors of passages, shape (n, dim)."""
        return _unit_rows(self.embeddings.embed_documents(list(texts)) if texts else [])

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors of questions, shape (n, dim): some models encode them otherwise than passages."""
        return _unit_rows([self.embeddings.embed_query(text) for text in texts])


class EmbeddingEncoder:
    """An encoder over an embedding model of LlamaIndex; vectors are scaled to length 1.

    Args:
        embedding: an object with ``get_text_embedding_batch(texts)`` and ``get_query_embedding(text)``.
        fingerprint: name and version of the vectors; by default as of ``EmbeddingsEncoder``.
    """

    def __init__(self, embedding: Any, *, fingerprint: str | None = None) -> None:
        self.embedding = embedding
        self._fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        """Name and version of the vectors."""
        if not self._fingerprint:
            name = getattr(self.embedding, "model_name", None)
            # What LlamaIndex fills in where its user gave none.
            names = [] if name == "unknown" else [name]
            self._fingerprint = _fingerprint(self, self.embedding, self.embedding.class_name(), names)
        return self._fingerprint

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors of passages, shape (n, dim); a text without any signal gives the zero vector."""
        return _unit_rows(self.embedding.get_text_embedding_batch(list(texts)) if texts else [])

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors of questions, shape (n, dim): some models put an instruction before them."""
        return _unit_rows([self.embedding.get_query_embedding(text) for text in texts])


class SentenceTransformersEncoder:
    """Any sentence-transformers model, or one given by name or folder. Extra: ``sentence-transformers``.

    Prompts that the model has for questions and for documents are used.

    Args:
        model: a ``SentenceTransformer`` or what its constructor takes.
        fingerprint: name and version of the vectors; by default the checksum of the model's weights, which costs
            about a second per gigabyte.
        batch_size: texts per forward pass.
    """

    name = "custom"

    def __init__(self, model: Any, *, fingerprint: str | None = None, batch_size: int = 32) -> None:
        if isinstance(model, (str, Path)):
            try:
                from sentence_transformers import SentenceTransformer
            except ImportError as error:
                raise MissingExtraError("sentence-transformers", "sentence-transformers") from error
            model = SentenceTransformer(str(model))
        self._model = model
        self._fingerprint = fingerprint or f"sentence-transformers-{_weights_sha256(model)[:12]}"
        self._batch_size = batch_size

    @property
    def fingerprint(self) -> str:
        """As given, or by the weights."""
        return self._fingerprint

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return unit vectors of passages, shape (n, dim)."""
        return self._vectors("encode_document", texts)

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Return unit vectors of questions, shape (n, dim)."""
        return self._vectors("encode_query", texts)

    def _vectors(self, method: str, texts: Sequence[str]) -> FloatArray:
        encode = getattr(self._model, method, None) or self._model.encode
        rows = encode(list(texts), batch_size=self._batch_size, convert_to_numpy=True, show_progress_bar=False)
        return unit(np.asarray(rows, dtype=np.float64))


def as_encoder(model: Any, *, fingerprint: str | None = None) -> Encoder:
    """Whatever turns texts into vectors, as an encoder.

    Args:
        model: "hashing" or "minilm", an encoder, embeddings of LangChain, an embedding model of LlamaIndex, or a
            ``SentenceTransformer``.
        fingerprint: name and version of the vectors, instead of the one that the model's class and name make. An
            encoder keeps its own. Embeddings that the package has made of an encoder are that encoder again, unless
            this names them otherwise.

    Raises:
        ConfigError: if it is none of these.
    """
    if isinstance(model, str):
        return named_encoder(model)
    if isinstance(model, Encoder):
        return model
    own = _wrapped(model)
    if own is not None and not fingerprint:
        return own
    for method, wrapper in _WRAPPERS.items():
        if hasattr(model, method):
            made: Encoder = wrapper(model, fingerprint=fingerprint)
            return made
    raise ConfigError(
        f"{type(model).__name__} turns no texts into vectors; an encoder has encode(texts) and fingerprint; embeddings "
        "of LangChain or LlamaIndex and models of sentence-transformers are taken as well"
    )


# In this order: what tells each kind of model from the others.
_WRAPPERS: dict[str, Any] = {
    "embed_documents": EmbeddingsEncoder,
    "get_text_embedding_batch": EmbeddingEncoder,
    "encode": SentenceTransformersEncoder,
}


def encode_queries(encoder: Encoder, texts: Sequence[str]) -> FloatArray:
    """Unit vectors of questions, shape (n, dim), by the encoder's own way for questions where it has one."""
    encode = getattr(encoder, "encode_queries", None) or encoder.encode
    vectors: FloatArray = encode(texts)
    return vectors


_PROBE = "A red lamp stands on the table of the old library."


def _fingerprint(encoder: Encoder, model: Any, kind: str, names: Sequence[object]) -> str:
    """Name and version of a model's vectors: those of the encoder within; or its kind and name; or by what it makes."""
    own = _wrapped(model)
    if own is not None:
        return own.fingerprint
    for name in names:
        if isinstance(name, str) and name:
            return f"{kind}:{name}"
    # A client or a network under the name of a model shows as an address in memory, another one in every process.
    # Two digits: the last ones differ between machines. Plus zero: there is a zero below zero.
    digits = np.round(encoder.encode([_PROBE])[0], 2) + 0.0
    return f"{kind}:probe-{hashlib.sha256(digits.astype('<f8').tobytes()).hexdigest()[:12]}"


def _wrapped(model: Any) -> Encoder | None:
    own = getattr(model, "wrapped_encoder", None)
    return own if isinstance(own, Encoder) else None


def _unit_rows(rows: Iterable[Sequence[float]]) -> FloatArray:
    listed = list(rows)
    if not listed:
        return np.zeros((0, 0))
    try:
        vectors = np.asarray(listed, dtype=np.float64)
    except ValueError as error:
        raise DataError(f"the embeddings returned vectors of different lengths: {error}") from error
    if vectors.ndim != 2:
        raise DataError(f"the embeddings returned an array of shape {vectors.shape}, expected (n, dim)")
    return unit(vectors)


def _weights_sha256(model: Any) -> str:
    state = getattr(model, "state_dict", None)
    if state is None:
        raise ConfigError(f"{type(model).__name__} does not tell its weights; pass fingerprint=")
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(state().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes: numpy does not know every type of torch's.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
