"""The directory of a knowledge base: what lies where, how it is made, and what may not be in it."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from ragft_plugin.errors import StoreError
from ragft_plugin.retrieval.catalogue import Catalogue
from ragft_plugin.retrieval.records import Settings
from ragft_plugin.retrieval.segments import sync_folder

DATABASE, SEGMENTS, LOCK = "knowledge.db", "segments", "write.lock"


def make_folder(folder: Path, settings: Settings) -> None:
    """Make an empty knowledge base in a directory that does not exist or is empty: a whole one or none.

    Raises:
        StoreError: there is something in the directory, or it cannot be written.
    """
    if (folder / DATABASE).exists():
        raise StoreError(f"{folder} is a knowledge base already; open it with KnowledgeBase.open")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} is not empty; give a new or an empty directory")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            (temporary / SEGMENTS).mkdir()
            Catalogue.create(temporary / DATABASE, settings)
            temporary.chmod(0o755)
            os.replace(temporary, folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise StoreError(f"{folder} cannot be made: {error.strerror or error}") from error


def check_folder(folder: Path) -> None:
    """Refuse what is no knowledge base, and what would lead out of it in a stranger's directory.

    That is every link, and a journal: SQLite undoes what it tells, and deletes the file that it names. A knowledge base
    has a write-ahead log instead.

    Raises:
        StoreError: saying which.
    """
    if not is_knowledge_base(folder):
        raise StoreError(f"{folder} is no knowledge base; make one with KnowledgeBase.create")
    try:
        for path in sorted(folder.iterdir()):
            _check_entry(path)
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror or error}") from error


def _check_entry(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:  # somebody writes there
        return
    if stat.S_ISLNK(mode):
        raise StoreError(f"{path} is a link; a knowledge base holds none")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise StoreError(f"{path} is neither a file nor a folder; a knowledge base holds nothing else")
    if path.name == f"{DATABASE}-journal":
        raise StoreError(f"{path} is a journal, which a knowledge base never has; copy it without that file")


def is_knowledge_base(folder: Path) -> bool:
    """Say whether there is a knowledge base in a directory."""
    return (folder / DATABASE).is_file()
