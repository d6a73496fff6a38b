"""Survey: which files of a folder are to be read, and why the others are not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ragft_plugin.retrieval.readers import READERS


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that was not indexed.

    Attributes:
        path: of the file.
        reason: why, in words.
        line: the row at fault, where the file is .jsonl or .csv and can be read but for that.
    """

    path: str
    reason: str
    line: int | None = None


@dataclass(slots=True)
class Survey:
    """What a folder holds.

    Attributes:
        files: {path below the folder, with /: where it is}, sorted.
        skipped: what is not read, in the order it was met.
    """

    root: Path
    files: dict[str, Path] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    _closed: set[str] = field(default_factory=set)

    def skip(self, path: Path, reason: str, line: int | None = None) -> None:
        """Note that a file or folder is not read."""
        name = path.relative_to(self.root).as_posix()
        self._closed.add(name)
        # A name that is not UTF-8 could be neither printed nor stored.
        self.skipped.append(Skipped(os.fsencode(path).decode("utf-8", "replace"), reason, line))

    def hides(self, name: str) -> bool:
        """Say whether a file was skipped or lies in a folder that was: it may be there without being seen."""
        return name in self._closed or any(str(above) in self._closed for above in PurePosixPath(name).parents)

    def reasons(self) -> str:
        """Return the first twenty reasons, a line each."""
        return "".join(f"\n  {skipped.path}: {skipped.reason}" for skipped in self.skipped[:20])


def survey(root: Path, *, without: Path) -> Survey:
    """Look through a folder with all its subfolders; hidden files and folders are passed over.

    Args:
        root: the folder.
        without: a folder that is passed over too: the knowledge base itself.
    """
    found = Survey(root)
    base, own = root.resolve(), without.resolve()
    for path in sorted(_files(found, own)):
        reason = _objection(path, base)
        if reason is None:
            found.files[path.relative_to(root).as_posix()] = path
        else:
            found.skip(path, reason)
    return found


def _files(found: Survey, own: Path) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        found.skip(Path(error.filename), f"cannot be read: {error.strerror}")

    for folder, subfolders, names in os.walk(found.root, onerror=failed):
        seen = [Path(folder, name) for name in subfolders if not name.startswith(".")]
        for path in (path for path in seen if path.is_symlink()):
            found.skip(path, "is a link to a folder; links to folders are not followed")
        subfolders[:] = [path.name for path in seen if not path.is_symlink() and path.resolve() != own]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _objection(path: Path, base: Path) -> str | None:
    """Return why a file is not read, None if it is."""
    try:
        str(path).encode("utf-8")
        if path.suffix.lower() not in READERS:
            known = " ".join(sorted(READERS))
            return f"no reader for {path.suffix or 'files without ending'}; known: {known}"
        if not stat.S_ISREG(path.stat().st_mode):
            return "is not a regular file"
        if path.is_symlink() and not path.resolve().is_relative_to(base):
            return "is a link that leads out of the folder"
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None
