"""The registry: a folder of adapters, each with its versions, one of them current.

    adapters/
      legal/
        current.json        which version answers, and which answered before
        1/  2/              adapter_config.json, adapter_model.safetensors, manifest.json, coverage.npz

A version appears whole or not at all, and never changes again. Any number of processes may read and write one registry;
what changes a ``current.json`` holds the registry's lock. What a killed process leaves behind starts with a dot, is
never read, and goes with the first addition after a day.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ragft_plugin.errors import AdapterError
from ragft_plugin.lora.disk import locked, sha256, sweep, sync
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
                if self._versions(name):
                    raise AdapterError(f"no version of {name!r} in {self.root} answers yet; promote one")
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
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root):  # the folder could go with the last version in it
            home.mkdir(exist_ok=True)
            sweep(home)
            incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=home))
        try:
            write(incoming)
            # What people read, such as a card, may be edited later; what computes may not.
            kept = [p for p in sorted(incoming.iterdir()) if p.is_file() and p.suffix not in (".md", ".svg")]
            files = {p.name: sha256(p) for p in kept}
            version = int((self._versions(name) or ["0"])[-1]) + 1
            while True:
                full = manifest.model_copy(update={"version": str(version), "files": files})
                write_json(incoming / MANIFEST, full.model_dump(mode="json"))
                for path in [*incoming.iterdir(), incoming]:
                    sync(path)
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
        sync(home)
        with locked(self.root):
            current = self._current(name)
            if promote or current is None:
                current = self._promote(name, str(version), current)
        return AdapterVersion(
            name,
            str(version),
            home / str(version),
            current.current == str(version),
            full,
        )

    def promote(self, name: str, version: str) -> None:
        """Let a version answer; the one before is remembered for ``rollback``.

        Raises:
            AdapterError: if there is no such version.
        """
        self.folder(name, version)
        with locked(self.root):
            self.folder(name, version)  # it may have been removed meanwhile
            self._promote(name, version, self._current(name, damaged=None))

    def rollback(self, name: str) -> str:
        """Return to the version that answered before, and say which it is.

        Raises:
            AdapterError: if there is none.
        """
        self.folder(name)
        with locked(self.root):
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
        home = self.root / name
        self.folder(name, version)
        with locked(self.root):
            folder = self.folder(name, version)
            current = self._current(name)
            if current is not None and current.current == version:
                if len(self._versions(name)) > 1:
                    raise AdapterError(f"version {version} of {name!r} is the one that answers; promote another first")
                (home / _CURRENT).unlink()
            gone = Path(tempfile.mkdtemp(prefix=".removed-", dir=home))
            os.rename(folder, gone / version)
            shutil.rmtree(gone)
            with suppress(OSError):  # there are more, or somebody adds one just now
                home.rmdir()

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

    def _promote(self, name: str, version: str, before: _Current | None) -> _Current:
        history = [] if before is None else before.history
        if before is not None and before.current != version:
            history = [*history, before.current]
        now = _Current(current=version, history=history)
        self._write(name, now)
        return now

    def _current(self, name: str, *, damaged: Literal["raise"] | None = "raise") -> _Current | None:
        path = self.root / name / _CURRENT
        try:
            return _Current.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            if damaged is None:
                return None
            raise AdapterError(f"{path} is damaged; promote a version of {name!r} again") from None

    def _write(self, name: str, current: _Current) -> None:
        write_json(self.root / name / _CURRENT, current.model_dump())


def current_version(folder: Path) -> Path:
    """The folder itself, or the current version in it if it is one of a registry.

    Raises:
        AdapterError: if it is one of a registry and has no current version.
    """
    if not (folder / "adapter_config.json").exists() and (folder / _CURRENT).exists():
        return Registry(folder.parent).folder(folder.name)
    return folder


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check an adapter's files against its manifest.

    Raises:
        AdapterError: if one is missing or has changed.
    """
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or sha256(path) != expected:
            raise AdapterError(f"{path} is missing or not as it was saved; copy the adapter again or train it again")
