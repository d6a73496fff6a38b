"""The files of a router: ``router.json`` and ``arrays.npz`` in a directory with a version. No pickle, no code.

A stranger's router is data to be doubted: sizes, names and number types are checked, and a member that is not a plain
array is refused by numpy itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ragft_plugin.errors import RouterError
from ragft_plugin.routing.router_state import RouterState

FORMAT = "ragft-router"
VERSION = 1
SETTINGS = "router.json"
ARRAYS = "arrays.npz"
MAX_SETTINGS_BYTES = 64 * 1024 * 1024
MAX_ARRAY_BYTES = 1024 * 1024 * 1024


def read_state(place: Path) -> RouterState:
    """Read and check ``router.json`` of a directory."""
    file = place / SETTINGS
    try:
        if file.stat().st_size > MAX_SETTINGS_BYTES:
            raise RouterError(f"{file}: larger than {MAX_SETTINGS_BYTES:,} bytes; this is not a router")
        fields = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise RouterError(f"{place}: there is no router here (no {SETTINGS})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RouterError(f"{file}: cannot be read: {error}") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise RouterError(f"{file}: not a router")
    if fields.get("version") != VERSION:
        raise RouterError(f"{file}: version {fields.get('version')!r}, this package reads {VERSION}; fit it anew")
    try:
        return RouterState.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RouterError(f"{file}: {where}: {first['msg']}") from None


def read_arrays(place: Path, digest: str) -> dict[str, np.ndarray]:
    """Read the arrays of a directory if their checksum is ``digest``; numbers only."""
    file = place / ARRAYS
    try:
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise RouterError(f"{file}: damaged, or of another router; its checksum differs")
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            size = sum(m.file_size for m in members.infolist())
        if size > MAX_ARRAY_BYTES:
            raise RouterError(f"{file}: {size:,} bytes of arrays, at most {MAX_ARRAY_BYTES:,} are read")
        with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RouterError(f"{file}: cannot be read: {error}") from None
    for name, array in arrays.items():
        if array.dtype.kind not in "fbiu":
            raise RouterError(f"{file}: the array {name!r} has type {array.dtype}, expected numbers")
    return arrays


def _write(file: Path, data: bytes) -> None:
    with open(file, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def write_router(path: str | os.PathLike[str], state: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a directory of state and arrays; it appears whole or not at all."""
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    data = packed.getvalue()
    state = {"format": FORMAT, "version": VERSION, **state, "arrays_sha256": hashlib.sha256(data).hexdigest()}
    RouterState.model_validate(state)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write(beside / ARRAYS, data)
        _write(beside / SETTINGS, json.dumps(state, ensure_ascii=False).encode())
        _swap(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _swap(beside: Path, target: Path) -> None:
    """Put the new directory in the old one's place; a reader finds one or the other."""
    if target.exists():
        if not (target / SETTINGS).exists():
            raise RouterError(f"{target}: there is something else here, not a router; choose another path")
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        os.rename(target, old / "router")
        try:
            os.rename(beside, target)
        except BaseException:
            os.rename(old / "router", target)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(beside, target)
