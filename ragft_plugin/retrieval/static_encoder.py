"""StaticEncoder: a vector per token, distilled from the main encoder; a text is their mean. Extra: ``static``.

A hundred times as fast as a transformer, and less exact: good for the router's question signal or a first draft of a
knowledge base. Distilling needs no network and no data: every token of the vocabulary is run through the encoder once,

    v_t = w_t * P (m(t) - mean m),   w_t = a / (a + p_t),   p_t proportional to 1 / (rank of t + 2)

where m(t) is what the encoder makes of token t alone, P projects on the leading principal axes, and w_t plays down
frequent tokens (a vocabulary is sorted by frequency, so Zipf's law gives p).

Source: Tulkens and van Dongen, "Model2Vec: Fast State-of-the-Art Static Embeddings", 2024; the weight is that of Arora,
Liang and Ma, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings", 2017. The folder is one of ``model2vec``
and can be read by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError, MissingExtraError, StoreError
from ragft_plugin.retrieval.encoders import MiniLMEncoder, unit
from ragft_plugin.retrieval.onnx_encoder import write_folder
from ragft_plugin.types import FloatArray

_SIF = 1e-4
_MODEL, _TOKENIZER, _CONFIG = "model.safetensors", "tokenizer.json", "config.json"


class TokenEncoder(Protocol):
    """What can be distilled: an encoder that tells its tokenizer and the vectors of single tokens."""

    @property
    def fingerprint(self) -> str:
        """Name and version of the vectors."""
        ...

    def tokenizer_json(self) -> str:
        """Return the tokenizer, as the library ``tokenizers`` writes it down."""
        ...

    def token_vectors(self, ids: Sequence[int]) -> FloatArray:
        """Return vectors of single tokens, shape (n, dim)."""
        ...


class StaticEncoder:
    """An encoder without a network. Made by ``distil`` or ``load``.

    Args:
        embeddings: a vector per token, shape (vocabulary, dim).
        tokenizer: as the library ``tokenizers`` writes it down.
        of: fingerprint of the encoder that it was distilled from.

    Raises:
        StoreError: the parts do not fit.
        MissingExtraError: without tokenizers.
    """

    name = "static"

    def __init__(self, embeddings: NDArray[Any], tokenizer: str, *, of: str) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtraError("tokenizers", "static") from error
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer)
        except Exception as error:  # tokenizers raises plain exceptions
            raise StoreError(f"the tokenizer cannot be read: {error}; distil the encoder again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._json, self._of = tokenizer, of
        self._embeddings = np.ascontiguousarray(embeddings, dtype=np.float16)
        if self._embeddings.ndim != 2 or len(self._embeddings) != self._tokenizer.get_vocab_size():
            raise StoreError(
                f"embeddings have shape {self._embeddings.shape}, expected ({self._tokenizer.get_vocab_size()}, dim): "
                "one for every token"
            )
        if not np.isfinite(self._embeddings).all():
            raise StoreError("embeddings hold NaN or infinity; distil the encoder again")
        self.dim = self._embeddings.shape[1]
        digest = hashlib.sha256(self._embeddings.tobytes())
        digest.update(tokenizer.encode("utf-8"))
        self._fingerprint = f"static-{self.dim}-{digest.hexdigest()[:12]}"

    @classmethod
    def distil(cls, encoder: TokenEncoder | None = None, *, dim: int = 256) -> Self:
        """Distil an encoder: half a minute for all-MiniLM-L6-v2, which is the default.

        Args:
            encoder: what to distil.
            dim: length of the vectors, at most that of the encoder's.

        Raises:
            ConfigError: the encoder's vectors are shorter than ``dim``.
        """
        source: TokenEncoder = encoder or MiniLMEncoder()
        tokenizer = source.tokenizer_json()
        tokens, size = _tokens(tokenizer)
        vectors = np.asarray(source.token_vectors(tokens), dtype=np.float64)
        if not 1 <= dim <= min(vectors.shape):
            raise ConfigError(f"dim must be 1 to {min(vectors.shape)} for {source.fingerprint}; got {dim}")
        embeddings = np.zeros((size, dim))
        embeddings[tokens] = _projected(vectors, dim) * _frequency_weights(len(tokens))[:, None]
        return cls(embeddings, tokenizer, of=source.fingerprint)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open a folder that ``save`` has written.

        Raises:
            StoreError: a file is missing or damaged.
            MissingExtraError: without safetensors and tokenizers.
        """
        try:
            from safetensors import SafetensorError
            from safetensors.numpy import load
        except ImportError as error:
            raise MissingExtraError("safetensors", "static") from error
        place = Path(folder)
        try:
            config = json.loads((place / _CONFIG).read_bytes())
            tokenizer = (place / _TOKENIZER).read_text(encoding="utf-8")
            arrays = load((place / _MODEL).read_bytes())
        except (OSError, ValueError, SafetensorError) as error:
            raise StoreError(f"{place} is no static encoder: {error}; make one with StaticEncoder.distil") from error
        if not isinstance(config, dict) or "embeddings" not in arrays:
            raise StoreError(f"{place} is no static encoder; make one with StaticEncoder.distil")
        try:
            made = cls(arrays["embeddings"], tokenizer, of=str(config.get("distilled_from", "")))
        except StoreError as error:
            raise StoreError(f"{place}: {error}") from error
        if config.get("fingerprint", made.fingerprint) != made.fingerprint:
            raise StoreError(f"{place} was changed: it is not {config['fingerprint']}; distil the encoder again")
        return made

    def save(self, folder: str | Path) -> None:
        """Write it into a new folder, which appears whole or not at all.

        Raises:
            ConfigError: the folder is there already.
        """
        from safetensors.numpy import save

        place = Path(folder)
        if place.exists():
            raise ConfigError(f"{place} is there already; give a new folder")
        config = {
            "model_type": "model2vec",
            "architectures": ["StaticModel"],
            "normalize": True,
            "hidden_dim": self.dim,
            "distilled_from": self._of,
            "fingerprint": self._fingerprint,
        }
        files = {
            _MODEL: save({"embeddings": self._embeddings}),
            _TOKENIZER: self._json.encode("utf-8"),
            _CONFIG: (json.dumps(config, indent=1) + "\n").encode("utf-8"),
        }
        write_folder(place, files)

    @property
    def fingerprint(self) -> str:
        """Dimension and the start of the checksum of vectors and tokenizer."""
        return self._fingerprint

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return unit vectors, shape (n, dim); a text without a known token gives the zero vector."""
        vectors = np.zeros((len(texts), self.dim))
        for row, encoding in enumerate(self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)):
            if encoding.ids:
                vectors[row] = self._embeddings[encoding.ids].sum(axis=0, dtype=np.float32)
        return unit(vectors)


def _tokens(tokenizer: str) -> tuple[list[int], int]:
    """Return the ids of tokens that carry meaning, in order, and the size of the vocabulary."""
    from tokenizers import Tokenizer

    read = Tokenizer.from_str(tokenizer)
    special = {id for id, token in read.get_added_tokens_decoder().items() if token.special}
    vocabulary = read.get_vocab()
    kept = sorted(id for token, id in vocabulary.items() if id not in special and not token.startswith("[unused"))
    return kept, read.get_vocab_size()


def _projected(vectors: FloatArray, dim: int) -> FloatArray:
    """Project centred rows on their leading axes; each axis points to its largest coordinate, so that it is unique."""
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    scores = centred @ axes[:, ::-1][:, :dim]
    largest = np.abs(scores).argmax(axis=0)
    found: FloatArray = scores * np.where(scores[largest, np.arange(dim)] < 0, -1.0, 1.0)
    return found


def _frequency_weights(n: int) -> FloatArray:
    inverse = 1.0 / np.arange(2, n + 2)
    weights: FloatArray = _SIF / (_SIF + inverse / inverse.sum())
    return weights
