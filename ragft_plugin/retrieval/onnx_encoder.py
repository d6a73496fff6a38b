"""OnnxEncoder: the main encoder through onnxruntime, with weights of 8 bits. Extra: ``onnx``; to export: ``export``.

A folder holds ``model.onnx``, ``tokenizer.json`` and ``encoder.json`` (what it was made from, checksums). Using it
needs onnxruntime and tokenizers, neither torch nor transformers.

Quantisation is dynamic: the range of activations is taken from what is computed together, so a text's vector would
depend on its neighbours in a batch. Texts are therefore run one by one, which also computes no padding.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ragft_plugin.errors import ConfigError, MissingExtraError, StoreError
from ragft_plugin.retrieval.encoders import MiniLMEncoder, mean_pooled, unit
from ragft_plugin.types import FloatArray

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = 1
CARD = "encoder.json"
_MODEL, _TOKENIZER = "model.onnx", "tokenizer.json"
Weights = Literal["int8", "float32"]


class OnnxEncoder:
    """An encoder in a folder that ``export_onnx`` has made.

    Files are checked against their checksums and read into memory before anything is made of them. A model with weights
    in other files, as ONNX allows, is refused: no checksum covers those, and onnxruntime would look for them in the
    current directory.

    Args:
        folder: of the encoder.
        threads: that one text may use.

    Raises:
        StoreError: a file is missing, damaged or of another version, or the model names other files.
        MissingExtraError: without onnxruntime and tokenizers.
    """

    name = "onnx"

    def __init__(self, folder: str | Path, *, threads: int = 1) -> None:
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtraError(error.name or "onnxruntime", "onnx") from error
        place = Path(folder)
        card = _read_card(place)
        model, tokenizer = (_checked_file(place / name, card["sha256"][name]) for name in (_MODEL, _TOKENIZER))
        if _names_files(model):
            raise StoreError(f"{place / _MODEL} keeps weights in other files; export it again with export_onnx")
        self._fingerprint = f"{card['of']}-onnx-{card['weights']}-{hashlib.sha256(model).hexdigest()[:12]}"
        self.dim = int(card["dim"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self._tokenizer = Tokenizer.from_str(tokenizer.decode("utf-8"))
        except Exception as error:  # both libraries raise plain exceptions of their own
            raise StoreError(f"{place} cannot be loaded: {error}; export it again with export_onnx") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(int(card["max_tokens"]))

    @property
    def fingerprint(self) -> str:
        """What it was made from, the kind of weights, and the start of the model's checksum."""
        return self._fingerprint

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return unit vectors, shape (n, dim); a text's vector does not depend on the others."""
        vectors = np.zeros((len(texts), self.dim))
        for row, encoding in enumerate(self._tokenizer.encode_batch_fast(list(texts))):
            ids = np.array([encoding.ids], dtype=np.int64)
            vectors[row] = self._session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]
        return unit(vectors)


def export_onnx(folder: str | Path, *, encoder: MiniLMEncoder | None = None, weights: Weights = "int8") -> OnnxEncoder:
    """Write the main encoder as ONNX into a new folder, and open it. Takes a minute or two; needs no network.

    Args:
        folder: must not exist; it appears whole or not at all.
        encoder: what to export; all-MiniLM-L6-v2 by default.
        weights: "int8" (a quarter of the size, faster, cosine with the original about 0.99) or "float32" (the same
            vectors).

    Raises:
        ConfigError: the folder is there already.
        MissingExtraError: without the packages that export.
    """
    place, source = Path(folder), encoder or MiniLMEncoder()
    if place.exists():
        raise ConfigError(f"{place} is there already; give a new folder, or open it with OnnxEncoder")
    model = source.torch_model()
    return write_encoder(place, _exported(model, weights), source, weights=weights, max_tokens=source.MAX_TOKENS)


def write_encoder(place: Path, model: bytes, source: Any, *, weights: str, max_tokens: int) -> OnnxEncoder:
    """Write a model and its tokenizer as a folder, and open it.

    Args:
        place: the new folder.
        model: ONNX, from ``input_ids`` and ``attention_mask``, shape (n, tokens), to vectors, shape (n, dim).
        source: the encoder that it was made from: ``fingerprint``, ``dim`` and ``tokenizer_json()``.
        weights: what kind they are.
        max_tokens: longer texts are cut.
    """
    files = {_MODEL: model, _TOKENIZER: source.tokenizer_json().encode("utf-8")}
    card = {
        "version": VERSION,
        "of": source.fingerprint,
        "weights": weights,
        "dim": source.dim,
        "max_tokens": max_tokens,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    files[CARD] = (json.dumps(card, indent=1) + "\n").encode("utf-8")
    write_folder(place, files)
    return OnnxEncoder(place)


def write_folder(place: Path, files: dict[str, bytes]) -> None:
    """Write files into a new folder that appears whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        try:
            for name, content in files.items():
                with (temporary / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            temporary.chmod(0o755)
            os.replace(temporary, place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise StoreError(f"{place} cannot be written: {error.strerror or error}") from error


def _exported(model: Any, weights: Weights) -> bytes:
    try:
        import onnxscript  # noqa: F401 - torch exports with it, and says so only when it fails
        import torch
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", "export") from error

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return mean_pooled(self.model, input_ids=input_ids, attention_mask=attention_mask)

    ids = torch.tensor([[101, 2003, 2003, 102], [101, 2003, 102, 0]]) % model.config.vocab_size
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        whole, small = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        torch.onnx.export(
            Pooled().eval(),
            (ids, mask),
            str(whole),
            input_names=["input_ids", "attention_mask"],
            output_names=["vectors"],
            dynamic_shapes=(free, free),
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        if weights == "float32":
            return whole.read_bytes()
        quantize_dynamic(whole, small, weight_type=QuantType.QInt8, per_channel=True)
        return small.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell on the root logger and in warnings what no user can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _read_card(place: Path) -> dict[str, Any]:
    path = place / CARD
    try:
        card = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}; make the encoder with export_onnx") from error
    wanted = {"of": str, "weights": str, "dim": int, "max_tokens": int, "sha256": dict}
    if not isinstance(card, dict) or card.get("version") != VERSION:
        raise StoreError(f"{path} is not an encoder of version {VERSION}; export it again with export_onnx")
    for key, kind in wanted.items():
        if not isinstance(card.get(key), kind):
            raise StoreError(f"{path} has no valid {key!r}; export it again with export_onnx")
    for name in (_MODEL, _TOKENIZER):
        if not isinstance(card["sha256"].get(name), str):
            raise StoreError(f"{path} has no valid 'sha256' of {name}; export it again with export_onnx")
    return card


def _names_files(model: bytes) -> bool:
    """Say whether weights of an ONNX model lie in other files.

    They then have an entry with the key "location". In protobuf its eight characters follow their number, the byte 8,
    or the zero that ends a longer way to write that number; so none is missed, and hardly anything else is found.
    """
    return re.search(rb"[\x00\x08]location", model) is not None


def _checked_file(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}; export it again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise StoreError(
            f"{path} is damaged or was changed: its SHA-256 is {found}, expected {sha256}; export it again"
        )
    return content
