"""Manifests: what an adapter was trained on, with and how well, kept beside its weights."""

from __future__ import annotations

import json
import os
import threading
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ragft_plugin.errors import AdapterError
from ragft_plugin.lora.fingerprints import Fingerprints

MANIFEST = "manifest.json"
COVERAGE = "coverage.npz"


class Probe(BaseModel):
    """A short text and what the adapter thought of it when it was saved.

    Attributes:
        ids: a prompt with an answer.
        start: position of the answer's first token.
        logprobs: natural log-probability of each token from ``start`` on, with the adapter.
        tolerance: largest difference that another machine or number type may make.
    """

    model_config = ConfigDict(extra="forbid")

    ids: list[int] = Field(min_length=2)
    start: int = Field(ge=1)
    logprobs: list[float]
    tolerance: float = 0.02


class TrainedOn(BaseModel):
    """The data, without showing it.

    Attributes:
        rows, eval_rows: how many.
        sha256, eval_sha256: hashes of the rows.
        passages: id of each passage in the rows -> hash of its text.
    """

    model_config = ConfigDict(extra="forbid")

    rows: int
    sha256: str
    eval_rows: int = 0
    eval_sha256: str | None = None
    passages: dict[str, str] = Field(default_factory=dict)


class Manifest(BaseModel):
    """All that is known of one version of an adapter.

    Attributes:
        format: version of this file's layout.
        name, version: of the adapter.
        method: how it was trained: "lora", "dora", "rslora", ...
        trained_at: when, with time zone.
        base: the base as it was named.
        fingerprints: of base, tokenizer and template.
        settings: what the training was called with.
        data: what it was trained on.
        metrics: losses and scores, before and after.
        probe: checked on loading.
        files: file name -> SHA-256.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    name: str
    version: str = ""
    method: str = "lora"
    trained_at: datetime
    base: str
    fingerprints: Fingerprints
    settings: dict[str, Any] = Field(default_factory=dict)
    data: TrainedOn
    metrics: dict[str, float] = Field(default_factory=dict)
    probe: Probe | None = None
    files: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest in an adapter's folder, or None if it has none.

        Raises:
            AdapterError: if it is damaged or written by a later version of this package.
        """
        path = folder / MANIFEST
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            raise AdapterError(
                f"{path} cannot be read: {'.'.join(map(str, first['loc']))}: {first['msg']}; update ragft-plugin, or "
                "train the adapter again"
            ) from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, whatever happens meanwhile."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with beside.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(beside, path)
