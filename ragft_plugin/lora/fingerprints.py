"""Fingerprints: short hashes that bind an adapter to the base, tokenizer and template it was trained with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ragft_plugin.errors import ConfigError

_WHOLE = 64 << 20  # files up to this many bytes are hashed whole
_BLOCKS, _BLOCK = 256, 64 << 10
# What says nothing about the numbers that a model computes.
_IRRELEVANT = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}


class Fingerprints(BaseModel):
    """What an adapter was trained on.

    Attributes:
        base: of the base's configuration and weights.
        tokenizer: of vocabulary, merges and pre-tokenizer.
        template: of the chat template.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    tokenizer: str
    template: str


def fingerprints(folder: Path, tokenizer: Any, template: str) -> Fingerprints:
    """Fingerprints of a base folder with its tokenizer and template."""
    return Fingerprints(
        base=base_fingerprint(folder),
        tokenizer=tokenizer_fingerprint(tokenizer),
        template=digest(template.encode()),
    )


def base_fingerprint(folder: Path) -> str:
    """Hash of a base's configuration and weight files.

    A weight file of more than 64 MiB is sampled: its header (names, shapes, types of all tensors), its size, and 256
    blocks of 64 KiB spread evenly over it. Fine-tuning changes every block; a few seconds do for 100 GB.

    Raises:
        ConfigError: if the folder holds no safetensors.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder} holds no *.safetensors; save the base in that format")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = {k: v for k, v in config.items() if k not in _IRRELEVANT}
    whole = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for file in files:
        size = file.stat().st_size
        whole.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            if size <= _WHOLE:
                whole.update(stream.read())
                continue
            header = int.from_bytes(stream.read(8), "little")
            whole.update(stream.read(min(header, _WHOLE)))
            for i in range(_BLOCKS):
                stream.seek(8 + header + (size - 8 - header - _BLOCK) * i // (_BLOCKS - 1))
                whole.update(stream.read(_BLOCK))
    return whole.hexdigest()[:32]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of everything by which a tokenizer turns text into ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    state = json.loads(backend.to_str())
    state.pop("padding", None)  # settings of the last call
    state.pop("truncation", None)
    return digest(json.dumps(state, sort_keys=True).encode())


def digest(content: bytes) -> str:
    """SHA-256, its first 32 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:32]
