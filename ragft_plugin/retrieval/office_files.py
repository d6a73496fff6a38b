"""Office files: the text of .pdf, a page each, and of .docx.

Their libraries are of the extra "documents" and imported on first use, so that all else works without them. What
pypdf only warns of names no file, and so is handed back for the caller to tell.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import BufferingHandler
from typing import Any

from ragft_plugin.errors import DataError, MissingExtraError

_LOGGING = threading.Lock()  # a logger can only be silenced for the whole process, and is set back


@dataclass(frozen=True, slots=True)
class PdfText:
    """What a .pdf file says.

    Attributes:
        pages: the text of every page, "" or blank where it holds none.
        remarks: what may be missing, and what pypdf warned of.
    """

    pages: list[str]
    remarks: list[str]


def read_pdf(content: bytes, place: str) -> PdfText:
    """Read the pages of a file, by pypdf.

    Args:
        content: of the file.
        place: its path, to name in errors.

    Raises:
        DataError: damaged or locked.
        MissingExtraError: without pypdf.
    """
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise MissingExtraError("pypdf", "documents") from error
    try:
        with _overheard("pypdf") as remarks:
            texts = [page.extract_text() for page in PdfReader(io.BytesIO(content)).pages]
    except Exception as error:  # parsers of other people's files fail in every way; each is one report
        raise DataError(f"cannot be read as PDF: {error}", path=place) from error
    blank = [str(number) for number, text in enumerate(texts, start=1) if not text.strip()]
    if 0 < len(blank) < len(texts):
        listed = ", ".join(blank[:20]) + (", ..." if len(blank) > 20 else "")
        remarks.insert(0, f"{len(blank)} of {len(texts)} pages hold no text ({listed}); scanned ones need OCR")
    return PdfText(texts, remarks)


def read_docx(content: bytes, place: str) -> str:
    """Read the text of a file, by python-docx; a row of a table is a line "cell | cell".

    Args:
        content: of the file.
        place: its path, to name in errors.

    Raises:
        DataError: damaged.
        MissingExtraError: without python-docx.
    """
    try:
        import docx
    except ImportError as error:
        raise MissingExtraError("python-docx", "documents") from error
    try:
        return "\n".join(_blocks(docx.Document(io.BytesIO(content))))
    except Exception as error:  # as above
        raise DataError(f"cannot be read as DOCX: {error}", path=place) from error


@contextmanager
def _overheard(library: str) -> Iterator[list[str]]:
    """Gather what a library warns of, which knows no name of the file and so would help nobody."""
    speaker, heard, remarks = logging.getLogger(library), BufferingHandler(sys.maxsize), list[str]()
    heard.setLevel(logging.WARNING)
    with _LOGGING:
        spoke, speaker.propagate = speaker.propagate, False
        speaker.addHandler(heard)
        try:
            yield remarks
        finally:
            speaker.removeHandler(heard)
            speaker.propagate = spoke
            remarks += [record.getMessage() for record in heard.buffer]


def _blocks(part: Any) -> Iterator[str]:
    """Yield the paragraphs and the rows of tables of a document or a cell."""
    for block in part.iter_inner_content():
        if not hasattr(block, "rows"):
            yield block.text
            continue
        told: set[Any] = set()
        for row in block.rows:
            # python-docx gives a merged cell once for every place that it covers.
            cells = {cell._tc: cell for cell in row.cells}
            yield " | ".join("" if tc in told else _cell(cell) for tc, cell in cells.items())
            told.update(cells)


def _cell(cell: Any) -> str:
    return "\n".join(text for text in _blocks(cell) if text)
