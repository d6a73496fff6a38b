"""The BM25 index on disk, by tantivy: derived, incremental, and rebuilt whenever in doubt.

The index may only be behind the catalogue, never ahead. ``bm25.json`` beside it tells a version at which it surely
was complete and the stamp of tantivy's commit; catching up deletes and adds rows by number, which may be repeated
without harm. So a process may die between the two commits at any point.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tantivy

from ragft_plugin.errors import StoreError
from ragft_plugin.retrieval.bm25 import Lexicon, analyzer, schema
from ragft_plugin.retrieval.catalogue import Catalogue
from ragft_plugin.retrieval.records import State

logger = logging.getLogger(__name__)

_FOLDER = re.compile(r"bm25-[0-9a-f]{8}")
_HEAP = 32_000_000
_PARTS = ("fast", "fieldnorm", "idx", "pos", "store", "term")  # every segment of tantivy has these files
_MAGIC = 1337  # ends every file of tantivy, before it the length of a JSON footer with the CRC-32 of the rest


@dataclass(frozen=True, slots=True)
class Stamp:
    """What ``bm25.json`` tells: folder, a version that is surely in it, the row after it, tantivy's commit."""

    folder: str
    version: int
    next_row: int
    opstamp: int


class LexicalIndex:
    """The index of a knowledge base on disk.

    Args:
        folder: of the knowledge base.
        language: of the stemmer, "" for none.
    """

    def __init__(self, folder: Path, language: str) -> None:
        self._folder = folder
        self._stamp_path = folder / "bm25.json"
        self._analyzer = analyzer(language)
        self._schema = schema()
        # Reading and writing threads have a handle each, with the folder that it is of.
        self._reading: tuple[str, Any] = ("", None)
        self._writing: tuple[str, Any] = ("", None)
        self._aside: tempfile.TemporaryDirectory[str] | None = None
        self._checked = ""
        self._bad: Stamp | None = None

    def pinned(self, state: State) -> Lexicon | None:
        """Return the index exactly at a state, or None where it is behind, being written, or damaged."""
        stamp = self._stamp()
        if stamp is None or (stamp.version, stamp.next_row) != (state.version, state.next_row):
            return None
        try:
            writable = os.access(self._folder / stamp.folder, os.W_OK)
            index = self._open(stamp) if writable else self._linked_aside(stamp)
            index.reload()
            searcher = index.searcher()
        except (OSError, ValueError) as error:
            logger.warning("BM25 index %s: %s; it will be rebuilt", stamp.folder, error)
            return None
        # tantivy has no version in its snapshot: the same stamp before and after taking it stands for one.
        if self._opstamp(stamp.folder) != stamp.opstamp or self._stamp() != stamp:
            return None
        if searcher.num_docs != state.live:
            logger.warning(
                "BM25 index %s holds %d passages instead of %d; it will be rebuilt",
                stamp.folder,
                searcher.num_docs,
                state.live,
            )
            self._bad, self._checked = stamp, ""
            return None
        return Lexicon(searcher, self._schema, self._analyzer)

    def in_memory(self, catalogue: Catalogue, state: State) -> Lexicon:
        """Build the index of a state in memory, for a process that may not write the one on disk."""
        index = tantivy.Index(self._schema)
        index.register_tokenizer("ragft", self._analyzer)
        writer = index.writer(heap_size=_HEAP, num_threads=1)
        self._add(writer, catalogue.texts(0, state.next_row - 1))
        writer.commit()
        index.reload()
        return Lexicon(index.searcher(), self._schema, self._analyzer)

    def catch_up(self, catalogue: Catalogue, state: State) -> None:
        """Bring the index on disk to the state of the last commit. For the holder of the writer's lock only.

        Raises:
            StoreError: it cannot be written.
        """
        stamp = self._stamp()
        if (
            stamp is not None
            and (stamp.version, stamp.next_row) == (state.version, state.next_row)
            and self._opstamp(stamp.folder) == stamp.opstamp
            and self._sound(stamp)
        ):
            return
        if stamp is None or stamp.version < state.purged or not self._sound(stamp):
            self.rebuild(catalogue, state)
            return
        writer = None
        try:
            writer = self._writer(stamp.folder)
            self._remove(writer, catalogue.removed_since(stamp.version))
            fresh = list(catalogue.texts(stamp.next_row, state.next_row - 1))
            if self._opstamp(stamp.folder) != stamp.opstamp:  # somebody died in between: some are there already
                self._remove(writer, range(stamp.next_row, state.next_row))
            self._add(writer, fresh)
            self._write_stamp(Stamp(stamp.folder, state.version, state.next_row, self._commit(writer)))
        except (OSError, ValueError) as error:
            # tantivy's lock is free when the writer is gone; the frames of a kept traceback would keep it.
            self._writing = ("", None)
            del writer
            raise StoreError(
                f"{self._folder / stamp.folder}: {error}; no passage is lost, BM25 catches up at the next change"
            ) from error.with_traceback(None)

    def rebuild(self, catalogue: Catalogue, state: State) -> None:
        """Write the whole index anew in a folder of its own, and swap it in."""
        stale = self._stamp()
        if stale is not None:
            logger.info("rebuilding the BM25 index of %s", self._folder)
        self.close()
        name = f"bm25-{secrets.token_hex(4)}"
        try:
            (self._folder / name).mkdir()
            writer = self._writer(name)
            self._add(writer, catalogue.texts(0, state.next_row - 1))
            self._write_stamp(Stamp(name, state.version, state.next_row, self._commit(writer)))
        except (OSError, ValueError) as error:
            self.close()
            raise StoreError(f"{self._folder / name}: {error}; no passage is lost") from error
        self._checked = name
        for path in self._folder.glob("bm25-*"):
            if path.name != name and _FOLDER.fullmatch(path.name) and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)

    def damaged(self) -> list[str]:
        """Return the files of the index that are damaged, by tantivy's own checksums."""
        stamp = self._stamp()
        if stamp is None:
            return []
        folder = self._folder / stamp.folder
        for _ in range(5):
            try:
                meta = self._tantivy_meta(folder)
                listed = {segment["segment_id"].replace("-", "") for segment in meta["segments"]}
                there = [path for path in folder.iterdir() if path.name.split(".", 1)[0] in listed]
                whole = {folder / f"{name}.{part}" for name in listed for part in _PARTS}
                bad = [str(path) for path in sorted(whole.union(there)) if not _crc_holds(path)]
                if not bad or self._tantivy_meta(folder) == meta:
                    return bad
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return [str(folder / "meta.json")]
        return []  # a writer is merging all the time, so it is alive and well

    def close(self) -> None:
        """Let go of the files, once nothing of this process reads or writes them any more."""
        _, writer = self._writing
        self._reading = self._writing = ("", None)
        if writer is not None:
            try:
                # Dropping it would leave merges running, which go on reading mapped files: whoever truncates one of
                # them after the knowledge base is closed would end this process with a bus error.
                writer.wait_merging_threads()
            except (OSError, ValueError) as error:
                logger.warning("BM25 of %s: a merge failed, nothing is lost: %s", self._folder, error)
        if self._aside is not None:
            self._aside.cleanup()
            self._aside = None

    def stop_writing(self) -> None:
        """Let go of tantivy's lock without waiting for merges, which are given up."""
        self._writing = ("", None)

    def _sound(self, stamp: Stamp) -> bool:
        # Once per folder and process: afterwards only this process writes it.
        if self._checked != stamp.folder:
            if self._bad == stamp:
                return False
            bad = self.damaged()
            if bad:
                logger.warning("BM25 index is damaged: %s; rebuilding it from the catalogue", ", ".join(bad))
                self._bad = stamp
                return False
            self._checked = stamp.folder
        return True

    def _stamp(self) -> Stamp | None:
        try:
            stamp = Stamp(**json.loads(self._stamp_path.read_text("utf-8")))
            numbers = (stamp.version, stamp.next_row, stamp.opstamp)
        except (OSError, ValueError, TypeError):
            return None
        sound = isinstance(stamp.folder, str) and _FOLDER.fullmatch(stamp.folder)
        linked = (self._folder / str(stamp.folder)).is_symlink()
        return stamp if sound and not linked and all(isinstance(n, int) for n in numbers) else None

    def _write_stamp(self, stamp: Stamp) -> None:
        temporary = self._stamp_path.with_suffix(".json.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(stamp), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._stamp_path)

    def _tantivy_meta(self, folder: Path) -> Any:
        return json.loads((folder / "meta.json").read_text("utf-8"))

    def _opstamp(self, folder: str) -> int | None:
        try:
            found = self._tantivy_meta(self._folder / folder)["opstamp"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, int) else None

    def _open(self, stamp: Stamp) -> Any:
        folder, index = self._reading
        if folder != stamp.folder:
            if not self._sound(stamp):
                raise ValueError("damaged")
            index = self._index_in(self._folder / stamp.folder)
            self._reading = (stamp.folder, index)
        return index

    def _index_in(self, folder: Path) -> Any:
        index = tantivy.Index(self._schema, path=str(folder), reuse=True)
        index.register_tokenizer("ragft", self._analyzer)
        # A watching thread of tantivy's could put an older searcher in the place of the one just loaded.
        index.config_reader("manual")
        return index

    def _linked_aside(self, stamp: Stamp) -> Any:
        """Open an index in a directory that may not be written, where tantivy cannot make its lock files."""
        if not self._sound(stamp):
            raise ValueError("damaged")
        self._aside = tempfile.TemporaryDirectory(prefix="ragft-bm25-")
        for path in (self._folder / stamp.folder).resolve().iterdir():
            if not path.name.endswith(".lock"):
                os.symlink(path, Path(self._aside.name, path.name))
        return self._index_in(Path(self._aside.name))

    def _writer(self, folder: str) -> Any:
        opened, writer = self._writing
        if opened != folder:
            writer = self._index_in(self._folder / folder).writer(heap_size=_HEAP, num_threads=1)
            self._writing = (folder, writer)
        return writer

    def _commit(self, writer: Any) -> int:
        return int(writer.commit())

    def _remove(self, writer: Any, rows: Iterable[int]) -> None:
        # Not delete_documents_by_term: it makes a signed term, which matches no row, and says nothing.
        numbers = list(rows)
        if numbers:
            writer.delete_documents_by_query(tantivy.Query.term_set_query(self._schema, "row", numbers))

    def _add(self, writer: Any, texts: Iterable[tuple[int, str]]) -> None:
        for row, text in texts:
            writer.add_document(tantivy.Document.from_dict({"text": text, "row": row}, self._schema))


def _crc_holds(path: Path) -> bool:
    """Say whether a file is there and whole."""
    try:
        raw = path.read_bytes()
        size, magic = struct.unpack("<II", raw[-8:])
        footer = json.loads(raw[-8 - size : -8])
        return bool(magic == _MAGIC and footer["crc"] == zlib.crc32(raw[: -8 - size]))
    except (OSError, ValueError, struct.error, KeyError, TypeError):
        return False
