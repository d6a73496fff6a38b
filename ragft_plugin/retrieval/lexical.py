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
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tantivy

from ragft_plugin.errors import StoreError
from ragft_plugin.retrieval.bm25 import Lexicon, analyzer, panics_caught, schema
from ragft_plugin.retrieval.bm25_files import find_damage, opstamp_of, share
from ragft_plugin.retrieval.catalogue import Catalogue
from ragft_plugin.retrieval.drafts import draft_of
from ragft_plugin.retrieval.records import State

logger = logging.getLogger(__name__)

_FOLDER = re.compile(r"bm25-[0-9a-f]{8}")
_HEAP = 32_000_000


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

    Attributes:
        problem: why ``pinned`` has found nothing although the index is not behind: it is damaged, or this user may not
            read it. None otherwise.
    """

    def __init__(self, folder: Path, language: str) -> None:
        self.problem: str | None = None
        self._folder = folder
        self._stamp_path = folder / "bm25.json"
        self._analyzer = analyzer(language)
        self._schema = schema()
        # Reading and writing threads have a handle each, with the folder that it is of.
        self._reading: tuple[str, Any] = ("", None)
        self._writing: tuple[str, Any] = ("", None)
        self._aside: tempfile.TemporaryDirectory[str] | None = None
        self._checked = ""
        self._bad: tuple[Stamp | None, str] = (None, "")
        self._told = ""

    def pinned(self, state: State) -> Lexicon | None:
        """Return the index exactly at a state; None where it is behind, being written, or has a ``problem``."""
        self.problem = stamp = None
        try:
            stamp = self._stamp()
            if stamp is None or (stamp.version, stamp.next_row) != (state.version, state.next_row):
                return None
            writable = os.access(self._folder / stamp.folder, os.W_OK)
            with panics_caught():
                index = self._open(stamp) if writable else self._linked_aside(stamp)
                index.reload()
                searcher = index.searcher()
            # tantivy has no version in its snapshot: the same stamp before and after taking it stands for one.
            if opstamp_of(self._folder / stamp.folder) != stamp.opstamp or self._stamp() != stamp:
                return None
            if searcher.num_docs != state.live:
                self._bad, self._checked = (stamp, f"it holds {searcher.num_docs} passages, not {state.live}"), ""
                raise ValueError(self._bad[1])
        except (OSError, ValueError) as error:
            self.problem = self._tell(stamp, error)
            return None
        return Lexicon(searcher, self._schema, self._analyzer)

    def in_memory(self, catalogue: Catalogue, state: State) -> Lexicon:
        """Build the index of a state in memory, for a process that may not write the one on disk."""
        index = tantivy.Index(self._schema)
        index.register_tokenizer("ragft", self._analyzer)
        writer = index.writer(heap_size=_HEAP, num_threads=1)
        self._add(writer, catalogue.texts(0, state.next_row - 1, version=state.version))
        writer.commit()
        index.reload()
        return Lexicon(index.searcher(), self._schema, self._analyzer)

    def catch_up(self, catalogue: Catalogue, state: State) -> None:
        """Bring the index on disk to the state of the last commit. For the holder of the writer's lock only.

        Raises:
            StoreError: it cannot be written.
        """
        stamp = self._sound_stamp()
        if (
            stamp is not None
            and self.problem is None
            and (stamp.version, stamp.next_row) == (state.version, state.next_row)
            and opstamp_of(self._folder / stamp.folder) == stamp.opstamp
        ):
            return
        if stamp is None or stamp.version < state.purged or not self._can_write(stamp):
            self.rebuild(catalogue, state)
        else:
            self._advance(stamp, catalogue, state)

    def rebuild(self, catalogue: Catalogue, state: State) -> None:
        """Write the whole index anew in a folder of its own, and swap it in.

        Raises:
            StoreError: it cannot be written.
        """
        if self._stamp_path.exists():
            logger.info("rebuilding the BM25 index of %s", self._folder)
        self.close()
        name = f"bm25-{secrets.token_hex(4)}"
        folder = self._folder / name
        try:
            folder.mkdir()
            with panics_caught():
                writer = self._writer(name)
                self._add(writer, catalogue.texts(0, state.next_row - 1, version=state.version))
                self._write_stamp(Stamp(name, state.version, state.next_row, self._commit(writer)))
        except BaseException as error:
            self._end_writing()
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, (OSError, ValueError)):
                raise StoreError(f"{folder} cannot be written: {error}; no passage is lost") from error
            raise
        self._checked = name
        for path in self._folder.glob("bm25-*"):
            if path.name != name and _FOLDER.fullmatch(path.name) and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
        for path in self._folder.glob(f"{self._stamp_path.name}.*.tmp"):  # of a process that was killed
            path.unlink(missing_ok=True)

    def damaged(self) -> list[str]:
        """Return the files of the index that are damaged, by tantivy's own checksums and by what came of reading it."""
        try:
            stamp = self._stamp()
            bad = [] if stamp is None else find_damage(self._folder / stamp.folder)
        except OSError as error:
            return [str(error.filename)]
        except ValueError:
            return [str(self._stamp_path)]
        if not bad and stamp is not None and self.problem is not None:
            return [str(self._folder / stamp.folder / "meta.json")]  # it alone has no checksum
        return bad

    def close(self) -> None:
        """Let go of the files, once nothing of this process reads or writes them any more."""
        self._reading = ("", None)
        self._end_writing()
        if self._aside is not None:
            self._aside.cleanup()
            self._aside = None

    def stop_writing(self) -> None:
        """Let go of tantivy's lock without waiting for merges, which are given up."""
        self._writing = ("", None)

    def _advance(self, stamp: Stamp, catalogue: Catalogue, state: State) -> None:
        try:
            with panics_caught():
                writer = self._writer(stamp.folder)
                self._remove(writer, catalogue.removed_since(stamp.version))
                fresh = list(catalogue.texts(stamp.next_row, state.next_row - 1, version=state.version))
                if opstamp_of(self._folder / stamp.folder) != stamp.opstamp:
                    # Somebody died in between: some are there already.
                    self._remove(writer, range(stamp.next_row, state.next_row))
                self._add(writer, fresh)
                self._write_stamp(Stamp(stamp.folder, state.version, state.next_row, self._commit(writer)))
        except BaseException as error:
            self._end_writing()  # what it holds would be in its next commit, beside the same once more
            if isinstance(error, (OSError, ValueError)):
                raise StoreError(
                    f"{self._folder / stamp.folder}: {error}; no passage is lost, BM25 catches up at the next change"
                ) from error
            raise

    def _sound_stamp(self) -> Stamp | None:
        """Return the stamp, None where there is none or where its index cannot be used."""
        stamp = None
        try:
            stamp = self._stamp()
            if stamp is not None:
                self._require_sound(stamp)
        except (OSError, ValueError) as error:
            self._tell(stamp, error)
            return None
        return stamp

    def _can_write(self, stamp: Stamp) -> bool:
        try:
            with panics_caught():
                self._writer(stamp.folder)
        except (OSError, ValueError) as error:
            self._tell(stamp, error)
            return False
        return True

    def _require_sound(self, stamp: Stamp) -> None:
        # Once per folder and process: afterwards only this process writes it.
        if self._checked == stamp.folder:
            return
        if self._bad[0] != stamp:
            bad = find_damage(self._folder / stamp.folder)
            if not bad:
                self._checked = stamp.folder
                return
            self._bad = (stamp, f"damaged: {', '.join(bad)}")
        raise ValueError(self._bad[1])

    def _tell(self, stamp: Stamp | None, error: Exception) -> str:
        """Warn of a problem, once for each state of the index, and return it in words."""
        problem = f"BM25 index {self._stamp_path if stamp is None else self._folder / stamp.folder}: {error}"
        key = str(stamp or error)
        if key != self._told:
            self._told = key
            logger.warning("%s; it will be rebuilt", problem)
        return problem

    def _stamp(self) -> Stamp | None:
        """Return what ``bm25.json`` tells, None where there is no such file.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged.
        """
        try:
            text = self._stamp_path.read_text("utf-8")
        except FileNotFoundError:
            return None
        try:
            stamp = Stamp(**json.loads(text))
            sound = bool(_FOLDER.fullmatch(stamp.folder)) and not (self._folder / stamp.folder).is_symlink()
        except (ValueError, TypeError, RecursionError):
            sound = False
        if not sound or not all(isinstance(n, int) for n in (stamp.version, stamp.next_row, stamp.opstamp)):
            raise ValueError(f"damaged: {self._stamp_path}")
        return stamp

    def _write_stamp(self, stamp: Stamp) -> None:
        with draft_of(self._stamp_path) as draft:
            draft.write(json.dumps(asdict(stamp)).encode("utf-8"))

    def _open(self, stamp: Stamp) -> Any:
        folder, index = self._reading
        if folder != stamp.folder:
            self._require_sound(stamp)
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
        self._require_sound(stamp)
        if self._aside is not None:
            self._aside.cleanup()
        self._aside = tempfile.TemporaryDirectory(prefix="ragft-bm25-")
        for path in (self._folder / stamp.folder).resolve().iterdir():
            if not path.name.endswith(".lock"):
                os.symlink(path, Path(self._aside.name, path.name))
        return self._index_in(Path(self._aside.name))

    def _writer(self, folder: str) -> Any:
        opened, writer = self._writing
        if opened != folder:
            self._end_writing()
            writer = self._index_in(self._folder / folder).writer(heap_size=_HEAP, num_threads=1)
            self._writing = (folder, writer)
        return writer

    def _end_writing(self) -> None:
        folder, writer = self._writing
        self._writing = ("", None)
        if writer is not None:
            try:
                # Dropping it would leave merges running, which go on reading mapped files: whoever truncates one of
                # them after the knowledge base is closed would end this process with a bus error. And it may live on
                # in the traceback of an error, with tantivy's lock.
                with panics_caught():
                    writer.wait_merging_threads()
            except (OSError, ValueError) as error:
                logger.warning("BM25 of %s: a merge failed, nothing is lost: %s", self._folder, error)
            share(self._folder / folder)  # merges have written since the last commit

    def _commit(self, writer: Any) -> int:
        opstamp = int(writer.commit())
        share(self._folder / self._writing[0])
        return opstamp

    def _remove(self, writer: Any, rows: Iterable[int]) -> None:
        # Not delete_documents_by_term: it makes a signed term, which matches no row, and says nothing.
        numbers = list(rows)
        if numbers:
            writer.delete_documents_by_query(tantivy.Query.term_set_query(self._schema, "row", numbers))

    def _add(self, writer: Any, texts: Iterable[tuple[int, str]]) -> None:
        for row, text in texts:
            writer.add_document(tantivy.Document.from_dict({"text": text, "row": row}, self._schema))
