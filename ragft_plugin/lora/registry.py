"""The registry: a folder of adapters, each with its versions, one of them current.

    adapters/
      legal/
        current.json        which version answers, and which answered before
        1/  2/              adapter_config.json, adapter_model.safetensors, manifest.json, coverage.npz

A version appears whole or not at all, and never changes again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ragft_plugin.errors import AdapterError
from ragft_plugin.lora.manifest import MANIFEST, Manifest, write_json
from ragft_plugin.lora.names import check_name

_CURRENT = "current.json"


class _Current(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: int = 1
    current: str
    history: list[str] = []


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One version of an adapter.

    Attributes:
        name, version: which.
        folder: where its files lie.
        current: it is the one that answers.
        manifest: what is known of it.
    """

    name: str
    version: str
    folder: Path
    current: bool
    manifest: Manifest


class Registry:
    """Adapters in a folder.

    Args:
        root: the folder; made when the first adapter comes.

    Example:
        >>> registry = Registry("adapters")  # doctest: +SKIP
        >>> registry.promote("legal", "2")  # doctest: +SKIP
        >>> registry.rollback("legal")  # doctest: +SKIP
        '1'
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def versions(self, name: str | None = None) -> list[AdapterVersion]:
        """All versions, of one adapter or of all, by name and age."""
        names = [check_name(name)] if name is not None else self._names()
        found = []
        for each in names:
            current = self._current(each)
            for version in self._versions(each):
                folder = self.root / each / version
                manifest = Manifest.read(folder)
                if manifest is not None:
                    is_current = current is not None and current.current == version
                    found.append(AdapterVersion(each, version, folder, is_current, manifest))
        return found

    def folder(self, name: str, version: str | None = None) -> Path:
        """Where a version lies; the current one if none is named.

        Raises:
            AdapterError: if there is no such adapter or version.
        """
        check_name(name)
        if version is None:
            current = self._current(name)
            if current is None:
                known = ", ".join(self._names()) or "none"
                raise AdapterError(f"{self.root} has no adapter {name!r} (it has: {known}); train one")
            version = current.current
        if version not in self._versions(name):
            raise AdapterError(
                f"{self.root} has no version {version!r} of {name!r} (it has: "
                f"{', '.join(self._versions(name)) or 'none'})"
            )
        return self.root / name / version

    def add(self, manifest: Manifest, write: Callable[[Path], None], *, promote: bool = True) -> AdapterVersion:
        """Add a version.

        Args:
            manifest: its name says of which adapter; version and files are filled in here.
            write: writes the adapter's files into the folder it is given.
            promote: let it answer from now on. The first version always does.

        If anything fails, or the process is killed, the registry is as it was.
        """
        name = check_name(manifest.name)
        home = self.root / name
        home.mkdir(parents=True, exist_ok=True)
        incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=home))
        try:
            write(incoming)
            files = {p.name: _sha256(p) for p in sorted(incoming.iterdir()) if p.is_file()}
            version = int((self._versions(name) or ["0"])[-1]) + 1
            while True:
                full = manifest.model_copy(update={"version": str(version), "files": files})
                write_json(incoming / MANIFEST, full.model_dump(mode="json"))
                for path in [*incoming.iterdir(), incoming]:
                    _sync(path)
                try:
                    os.rename(incoming, home / str(version))
                    break
                except OSError:
                    if not (home / str(version)).exists():
                        raise
                    version += 1  # another process was faster
        except BaseException:
            shutil.rmtree(incoming, ignore_errors=True)
            raise
        _sync(home)
        if promote or self._current(name) is None:
            self.promote(name, str(version))
        current = self._current(name)
        return AdapterVersion(
            name,
            str(version),
            home / str(version),
            current is not None and current.current == str(version),
            full,
        )

    def promote(self, name: str, version: str) -> None:
        """Let a version answer; the one before is remembered for ``rollback``.

        Raises:
            AdapterError: if there is no such version.
        """
        self.folder(name, version)
        before = self._current(name)
        history = [] if before is None else before.history
        if before is not None and before.current != version:
            history = [*history, before.current]
        self._write(name, _Current(current=version, history=history))

    def rollback(self, name: str) -> str:
        """Return to the version that answered before, and say which it is.

        Raises:
            AdapterError: if there is none.
        """
        self.folder(name)
        now = self._current(name)
        history = [v for v in (now.history if now else []) if v in self._versions(name)]
        if not history:
            raise AdapterError(f"{name!r} has no earlier version to return to; promote one by name")
        self._write(name, _Current(current=history[-1], history=history[:-1]))
        return history[-1]

    def remove(self, name: str, version: str) -> None:
        """Delete a version.

        Raises:
            AdapterError: if it is the current one, or there is no such version.
        """
        folder = self.folder(name, version)
        current = self._current(name)
        if current is not None and current.current == version:
            if len(self._versions(name)) > 1:
                raise AdapterError(f"version {version} of {name!r} is the one that answers; promote another first")
            (self.root / name / _CURRENT).unlink()
        gone = folder.with_name(f".removed-{version}-{os.getpid()}")
        os.rename(folder, gone)
        shutil.rmtree(gone)
        if not self._versions(name):
            shutil.rmtree(self.root / name)

    def _names(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and self._versions(p.name))

    def _versions(self, name: str) -> list[str]:
        home = self.root / name
        if not home.is_dir():
            return []
        found = [p.name for p in home.iterdir() if p.is_dir() and p.name.isascii() and p.name.isdigit()]
        return sorted(found, key=int)

    def _current(self, name: str) -> _Current | None:
        path = self.root / name / _CURRENT
        try:
            return _Current.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            raise AdapterError(f"{path} is damaged; promote a version of {name!r} again") from None

    def _write(self, name: str, current: _Current) -> None:
        write_json(self.root / name / _CURRENT, current.model_dump())


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check an adapter's files against its manifest.

    Raises:
        AdapterError: if one is missing or has changed.
    """
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or _sha256(path) != expected:
            raise AdapterError(f"{path} is missing or not as it was saved; copy the adapter again or train it again")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
