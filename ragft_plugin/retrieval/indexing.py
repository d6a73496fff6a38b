"""Indexing: a folder of files -> a knowledge base that mirrors it. Only what changed is read and encoded again.

A file's passages and its digest are committed together, so an interrupted run goes on where it stopped. Several small
files share a commit; a large one takes several, and is known by its digest when the last one is done.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from ragft_plugin.errors import ConfigError, DataError, MissingExtraError
from ragft_plugin.retrieval.chunking import Chunker, Splitter
from ragft_plugin.retrieval.distinct import DistinctTexts
from ragft_plugin.retrieval.intake import Intake, Parcel
from ragft_plugin.retrieval.knowledge_base import KnowledgeBase
from ragft_plugin.retrieval.parents import ParentChunker
from ragft_plugin.retrieval.readers import READERS, parse_document
from ragft_plugin.retrieval.survey import Skipped, survey

_READING = 2  # names how files are turned into texts; what was read another way is read again
_CHECKSUM = re.compile(r"\b[0-9a-f]{64}\b")


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What ``index_folder`` did.

    Attributes:
        added, updated, unchanged, deleted: numbers of passages.
        skipped: what was not read; if an earlier version of it was, its passages are still there.
        seconds: wall time.
        left_out: passages that another file says already, of the files read in this run.
    """

    added: int
    updated: int
    unchanged: int
    deleted: int
    skipped: tuple[Skipped, ...]
    seconds: float
    left_out: int = 0


def index_folder(
    kb: KnowledgeBase,
    folder: str | Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    chunker: Splitter | None = None,
    collection: str = "",
    moved: bool = False,
    malformed: Literal["stop", "skip"] = "skip",
    distinct: bool = False,
) -> IndexReport:
    """Make a knowledge base hold exactly what the files of a folder say.

    New and changed files are read, files that are gone lose their passages, the rest is left alone. Passages carry
    ``metadata["source"]``, the path relative to the folder. Hidden files are passed over.

    Args:
        kb: passages added to it in other ways are not touched.
        folder: searched with all its subfolders.
        progress: called with (bytes done, bytes to do), of the files that are new or changed.
        chunker: how to cut; ``Chunker()`` by default.
        collection: to keep several folders in one knowledge base, give each a name; sources start with it.
        moved: this folder takes the place of the one that the collection was read from before.
        malformed: what to do at a row of .jsonl or .csv that cannot be read: "skip" the file and report it like any
            other bad one, or "stop". What was indexed stays.
        distinct: of passages with the same text, white space and case aside, keep one in the folder. It cites one
            file only and has that file's metadata alone, so leave this off where access depends on metadata. Equal
            texts are encoded once in any case.

    Raises:
        ConfigError: the collection was read from another folder; ``distinct`` with a ``ParentChunker``, whose parents
            need all their children.
        DataError: no such folder, no file that can be read in it, or malformed rows (with file and line).
    """
    started = time.monotonic()
    root, cutter = Path(folder), chunker or Chunker()
    if distinct and isinstance(cutter, ParentChunker):
        raise ConfigError("distinct would take children from their parents; use it with a Chunker")
    if "|" in collection or "\n" in collection:
        raise ConfigError(f"the name of a collection holds no |; got {collection!r}")
    if not root.is_dir():
        raise DataError("is not a folder; give the folder of your documents", path=str(root))
    before = {source: digest for source, digest in kb.sources().items() if digest.startswith(f"{collection}|")}
    here = _place(root, kb.path)
    if not moved:
        _check_place(before, here, kb.path, root, collection)
    found = survey(root, without=kb.path)
    if not found.files:
        known = " ".join(sorted(READERS))
        raise DataError(f"holds no file that can be indexed ({known}){found.reasons()}", path=str(root))
    prefix = f"{collection}/" if collection else ""
    files = {prefix + name: path for name, path in found.files.items()}
    mark = f"{collection}|in:{quote(here)}|{_READING}-{cutter.fingerprint}{'+distinct' if distinct else ''}|"
    checksums = _checksums(files)
    texts = DistinctTexts(kb, mark, before, checksums) if distinct else None
    changed = {
        source: path
        for source, path in files.items()
        if not (texts.unchanged(source) if texts else before.get(source) == f"{mark}{checksums.get(source)}")
    }
    gone = [s for s in before if s not in files and not found.hides(s.removeprefix(prefix))]
    names = _new_names(gone, before, [source for source in changed if source not in before], checksums)
    bar = _Bar(progress, sum(_size(path) for path in changed.values()))
    intake = Intake(kb, bar.advance)
    for source, path in changed.items():
        try:
            content = path.read_bytes()
            passages = cutter.split(parse_document(content, source, path=str(path)))
            digest = mark + hashlib.sha256(content).hexdigest()
            if texts is not None:
                passages, digest = texts.taken(source, passages)
            intake.put(Parcel(source, passages, digest, _size(path), names.get(source)))
        except (OSError, DataError, ConfigError, MissingExtraError, UnicodeError) as error:
            line = error.line if isinstance(error, DataError) else None
            if malformed == "stop" and line is not None:
                intake.flush()
                raise
            found.skip(path, _reason(error, path), line)
            names.pop(source, None)
            bar.advance(_size(path))
    for source in gone:
        if source not in names.values():
            intake.put(Parcel(source))
    for source, reason in intake.finish():
        found.skip(files[source], reason)
    if found.skipped and all(found.hides(name) for name in found.files):
        raise DataError(f"none of its files can be indexed:{found.reasons()}", path=str(root))
    bar.finish()
    sizes = kb.source_sizes()
    held = sum(sizes.get(source, 0) for source in files)
    return IndexReport(
        intake.added,
        intake.updated,
        held - intake.added - intake.updated,
        intake.deleted,
        tuple(found.skipped),
        time.monotonic() - started,
        texts.left_out if texts is not None else 0,
    )


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    if isinstance(error, UnicodeError):
        return f"is not Unicode: {error}"
    return str(error).removeprefix(f"{path}: ")


class _Bar:
    """Bytes done, of those to do."""

    def __init__(self, tell: Callable[[int, int], None] | None, total: int) -> None:
        self._tell, self._done, self._total = tell, 0.0, total
        self.advance(0)

    def advance(self, size: float) -> None:
        self._done = min(self._done + size, self._total)
        if self._tell is not None:
            self._tell(int(self._done), self._total)

    def finish(self) -> None:
        self.advance(self._total)


def _place(folder: Path, kb: Path) -> str:
    """Say where a folder lies, seen from the knowledge base, so that both may be moved together."""
    with suppress(ValueError):  # another drive
        return Path(os.path.relpath(folder.resolve(), kb.resolve())).as_posix()
    return folder.resolve().as_posix()


def _check_place(before: Mapping[str, str], here: str, kb: Path, folder: Path, collection: str) -> None:
    for digest in before.values():
        place = digest.split("|")[1]
        if place.startswith("in:") and unquote(place[3:]) != here:
            other = os.path.normpath(kb.resolve() / unquote(place[3:]))
            named = f"collection {collection!r} of {kb}" if collection else str(kb)
            raise ConfigError(
                f"{named} mirrors {other}, and {folder} would take its place. To keep both, give {folder} a name of "
                "its own (collection=..., ragft index --collection NAME); if the documents have only moved, say so "
                "(moved=True, ragft index --moved)"
            )


def _new_names(
    gone: list[str], before: Mapping[str, str], fresh: list[str], checksums: Mapping[str, str]
) -> dict[str, str]:
    """Return {new source: old source} of files that have another name and the same content."""
    old: dict[str, str] = {}
    for source in gone:
        if (found := _CHECKSUM.search(before[source])) is not None:
            old[found.group()] = source
    return {source: old.pop(checksums[source]) for source in fresh if checksums.get(source) in old}


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _checksums(sources: Mapping[str, Path]) -> dict[str, str]:
    """Return the checksum of every file that can be read."""
    found = {}
    for source, path in sources.items():
        with suppress(OSError), path.open("rb") as file:
            found[source] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
