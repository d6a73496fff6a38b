"""Indexing: a folder of files -> a knowledge base that mirrors it. Only what changed is read and encoded again.

A file is one change: its passages and its digest are committed together, so an interrupted run goes on where it
stopped. Several small files share a commit.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ragft_plugin.errors import ConfigError, DataError, MissingExtraError
from ragft_plugin.retrieval.chunking import Chunker, Splitter
from ragft_plugin.retrieval.distinct import DistinctTexts
from ragft_plugin.retrieval.knowledge_base import KnowledgeBase
from ragft_plugin.retrieval.parents import ParentChunker
from ragft_plugin.retrieval.readers import READERS, parse_document
from ragft_plugin.types import Passage

_BATCH = 256  # passages per commit, unless one file has more
_SECONDS = 5.0  # or so much time


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was not indexed.

    Attributes:
        path: of the file.
        reason: why, in words.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What ``index_folder`` did.

    Attributes:
        added, updated, unchanged, deleted: numbers of passages.
        skipped: files that were not read; if an earlier version of one was, its passages are still there.
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
    malformed: Literal["stop", "skip"] = "stop",
    distinct: bool = False,
) -> IndexReport:
    """Make a knowledge base hold exactly what the files of a folder say.

    New and changed files are read, files that are gone lose their passages, the rest is left alone. Passages carry
    ``metadata["source"]``, the path relative to the folder. Hidden files are passed over.

    Args:
        kb: passages added to it in other ways are not touched.
        folder: searched with all its subfolders.
        progress: called with (files done, files).
        chunker: how to cut; ``Chunker()`` by default.
        collection: to keep several folders in one knowledge base, give each a name; sources start with it.
        malformed: what to do at a row of .jsonl or .csv that cannot be read: "stop", since half a data set is rarely
            what was meant, or "skip" the file and report it like any other bad one. What was indexed stays.
        distinct: of passages with the same text, white space and case aside, keep one in the folder. It cites one
            file only and has that file's metadata alone, so leave this off where access depends on metadata. Equal
            texts are encoded once in any case.

    Raises:
        ConfigError: ``distinct`` with a ``ParentChunker``, whose parents need all their children.
        DataError: no such folder, no file that can be read in it, or malformed rows (with file and line).
    """
    started = time.monotonic()
    root, cutter = Path(folder), chunker or Chunker()
    if distinct and isinstance(cutter, ParentChunker):
        raise ConfigError("distinct would take children from their parents; use it with a Chunker")
    if not root.is_dir():
        raise DataError("is not a folder; give the folder of your documents", path=str(root))
    paths, skipped = _survey(root)
    before = kb.sources()
    prefix = f"{collection}/" if collection else ""
    mark = f"{collection}|{cutter.fingerprint}|"
    sources = {prefix + path.relative_to(root).as_posix(): path for path in paths}
    if not paths:
        reasons = "".join(f"\n  {s.path}: {s.reason}" for s in skipped[:20])
        known = " ".join(sorted(READERS))
        raise DataError(f"holds no file that can be indexed ({known}){reasons}", path=str(root))
    gone = [s for s, digest in before.items() if s not in sources and digest.split("|", 1)[0] == collection]
    texts = None
    if distinct:
        mark = f"{collection}|{cutter.fingerprint}+distinct|"
        texts = DistinctTexts(kb, mark, before, _checksums(sources))
    batch = _Batch(kb)
    for source in gone:
        batch.put(source, [], None)
    good = 0
    for done, (source, path) in enumerate(sources.items()):
        if progress is not None:
            progress(done, len(sources))
        try:
            if texts is None or not texts.unchanged(source):
                content = path.read_bytes()
                digest = mark + hashlib.sha256(content).hexdigest()
                if texts is not None or before.get(source) != digest:
                    passages = cutter.split(parse_document(content, source, path=str(path)))
                    if texts is not None:
                        passages, digest = texts.taken(source, passages)
                    batch.put(source, passages, digest)
            good += 1
        except OSError as error:
            skipped.append(Skipped(str(path), f"cannot be read: {error.strerror or error}"))
        except DataError as error:
            if error.line is not None and malformed == "stop":
                batch.flush()
                raise
            skipped.append(Skipped(str(path), str(error).removeprefix(f"{path}: ")))
        except MissingExtraError as error:
            skipped.append(Skipped(str(path), str(error)))
    batch.flush()
    if progress is not None:
        progress(len(sources), len(sources))
    if not good:
        reasons = "".join(f"\n  {s.path}: {s.reason}" for s in skipped[:20])
        raise DataError(f"none of its files can be indexed:{reasons}", path=str(root))
    sizes = kb.source_sizes()
    held = sum(sizes.get(source, 0) for source in sources)
    return IndexReport(
        batch.added,
        batch.updated,
        held - batch.added - batch.updated,
        batch.deleted,
        tuple(skipped),
        time.monotonic() - started,
        texts.left_out if texts is not None else 0,
    )


def _checksums(sources: Mapping[str, Path]) -> dict[str, str]:
    """Return the checksum of every file that can be read."""
    found = {}
    for source, path in sources.items():
        with suppress(OSError), path.open("rb") as file:
            found[source] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


class _Batch:
    """Gathers files until a commit is worth its price."""

    def __init__(self, kb: KnowledgeBase) -> None:
        self._kb = kb
        self._waiting: dict[str, tuple[list[Passage], str | None]] = {}
        self._since = time.monotonic()
        self.added = self.updated = self.deleted = 0

    def put(self, source: str, passages: list[Passage], digest: str | None) -> None:
        self._waiting[source] = (passages, digest)
        waiting = sum(len(passages) for passages, _ in self._waiting.values())
        if waiting >= _BATCH or time.monotonic() - self._since > _SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            changes = self._kb.replace_sources(self._waiting)
            self.added += changes.added
            self.updated += changes.updated
            self.deleted += changes.deleted
        self._waiting = {}
        self._since = time.monotonic()


def _survey(root: Path) -> tuple[list[Path], list[Skipped]]:
    """Return the files to read, sorted, and those that have no reader or lead out of the folder."""
    paths: list[Path] = []
    skipped: list[Skipped] = []
    base = root.resolve()
    for path in sorted(_files(root, skipped)):
        if path.suffix.lower() not in READERS:
            known = " ".join(sorted(READERS))
            skipped.append(Skipped(str(path), f"no reader for {path.suffix or 'files without ending'}; known: {known}"))
        elif path.is_symlink() and not path.resolve().is_relative_to(base):
            skipped.append(Skipped(str(path), "is a link that leads out of the folder"))
        else:
            paths.append(path)
    return paths, skipped


def _files(root: Path, skipped: list[Skipped]) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        skipped.append(Skipped(str(error.filename), f"cannot be read: {error.strerror}"))

    for folder, subfolders, names in os.walk(root, onerror=failed):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))
