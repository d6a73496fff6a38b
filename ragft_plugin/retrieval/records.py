"""Records: what the catalogue stores, as values.

A passage is stored with canonical metadata (sorted JSON) and a hash of its content, so that an unchanged passage is
recognised, equal knowledge bases have equal digests, and a text changed on disk is never returned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from ragft_plugin.errors import DataError
from ragft_plugin.types import Metadata, Passage

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Settings:
    """What is fixed when a knowledge base is created.

    Attributes:
        fingerprint: of the encoder; "" for none.
        require_filter: refuse retrieval without a filter.
        language: of the BM25 stemmer.
    """

    fingerprint: str
    require_filter: bool
    language: str


@dataclass(frozen=True, slots=True)
class State:
    """What every commit moves on.

    Attributes:
        version: number of changes so far; names a snapshot.
        layout: number of compactions and merges so far.
        next_row: the row number that comes next.
        purged: version up to which removed rows are gone.
        digest: sum of the content hashes of live passages modulo 2^128, in hex; equal content, equal digest.
        live: number of live passages.
        dim: length of the vectors, 0 while there are none.
    """

    version: int = 0
    layout: int = 0
    next_row: int = 0
    purged: int = 0
    digest: str = "0" * 32
    live: int = 0
    dim: int = 0

    def __post_init__(self) -> None:
        int(self.digest, 16)  # a ValueError now, not in the middle of the next commit


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """A segment as the catalogue knows it: file name, rows, and the checksums of its two files."""

    name: str
    first: int
    count: int
    dim: int
    rows_sha256: str
    vectors_sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """A passage ready to be stored: checked, with canonical metadata and content hash."""

    id: str
    text: str
    metadata: str
    source: str | None
    hash: bytes

    @classmethod
    def of(cls, passage: Passage) -> Record:
        """Check a passage and make its record.

        Raises:
            DataError: no id, text that is not Unicode, metadata that JSON cannot hold.
        """
        if not isinstance(passage.id, str) or not passage.id or not isinstance(passage.text, str):
            raise DataError(
                f"a passage needs a non-empty string as id and a string as text; got id {passage.id!r} and "
                f"text of type {type(passage.text).__name__}"
            )
        metadata = canonical(passage.id, passage.metadata)
        source = passage.metadata.get("source")
        try:
            digest = content_hash(passage.id, passage.text, metadata)
        except UnicodeEncodeError as error:
            raise DataError(
                f"passage {passage.id!r} is not valid Unicode (lone surrogate at {error.start}); decode it properly"
            ) from error
        return cls(passage.id, passage.text, metadata, source if isinstance(source, str) else None, digest)


def restored(kind: type[_T], value: Any) -> _T:
    """Make settings or a state again from what JSON gave back.

    Raises:
        ValueError: an entry is missing, unknown, or of another type.
    """
    wanted = get_type_hints(kind)
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.80} is no object")
    odd = [key for key in wanted.keys() | value.keys() if type(value.get(key)) is not wanted.get(key)]
    if odd:
        raise ValueError(f"{', '.join(sorted(odd))} missing, unknown or of another type in {value!r:.200}")
    return kind(**value)


def canonical(id: str, metadata: Metadata) -> str:
    """Return metadata as canonical JSON: sorted keys, finite numbers.

    Raises:
        DataError: it is no mapping from strings to what JSON can hold.
    """
    if not isinstance(metadata, Mapping):
        raise DataError(f"metadata of passage {id!r} is {metadata!r:.80}; give a dictionary, an empty one for none")
    try:
        plain = json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"metadata of passage {id!r} is not JSON: {error}; give strings, numbers, lists") from error
    odd = next((key for key in metadata if not isinstance(key, str)), None)
    if odd is not None:
        raise DataError(f"metadata of passage {id!r} has the key {odd!r}; keys must be strings")
    return plain


def content_hash(id: str, text: str, metadata: str) -> bytes:
    """Return 16 bytes that name the content of a passage."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (id, text, metadata):
        raw = part.encode("utf-8")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.digest()
