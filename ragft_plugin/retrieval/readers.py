"""Readers: files -> documents. One function per format; what cannot be read raises ``DataError`` saying why.

.txt .md      UTF-8 (or UTF-16 with its mark); the title of .md is its first heading
.jsonl        an object a line: "text", and as wanted "id", "title", "metadata"; other scalars become metadata
.csv          a row each: the column "text", the others as metadata; without one, all columns as "name: value"
.html .htm    visible text, title
.pdf          by pypdf, a document a page
.docx         by python-docx; rows of tables as "cell | cell", a merged cell once, where it begins

Formats with much to them (.csv, .html, .pdf and .docx) are read by modules of their own, which know nothing of
documents; what all have in common is here: how text is decoded, and how a document says where it stands.

Rows (.jsonl, .csv) get ``source`` and ``line``, the line they begin on. The package says with ``source``, ``line``,
``start``, ``end`` and ``kb`` where a passage comes from; a row's own values of these names are kept as ``row_source``
and so on.
"""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ragft_plugin.errors import DataError
from ragft_plugin.retrieval.chunking import Document
from ragft_plugin.retrieval.csv_rows import read_csv
from ragft_plugin.retrieval.html_text import read_html
from ragft_plugin.retrieval.office_files import read_docx, read_pdf
from ragft_plugin.types import Metadata

Reader = Callable[[bytes, str, str], list[Document]]  # content, source, path to name in errors

logger = logging.getLogger(__name__)

_TAKEN = ("source", "line", "start", "end", "kb")
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")


def read_document(path: str | Path, *, source: str | None = None) -> list[Document]:
    """Read a file into documents.

    Args:
        path: the file; its ending tells the format.
        source: what passages say they come from; by default the file's name.

    Raises:
        DataError: unknown format, unreadable, binary, malformed (with the line).
        MissingExtraError: .pdf or .docx without the library for it.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path=str(path)) from error
    return parse_document(content, source or path.name, path=str(path))


def parse_document(content: bytes, source: str, *, path: str | None = None) -> list[Document]:
    """As ``read_document``, from the content of a file; ``source`` tells the format."""
    place = path or source
    ending = Path(source).suffix.lower()
    if ending not in READERS:
        known = " ".join(sorted(READERS))
        raise DataError(f"no reader for {ending or 'files without ending'}; known: {known}", path=place)
    documents = READERS[ending](content, source, place)
    if not any(document.text.strip() for document in documents):
        raise DataError("holds no text", path=place)
    return documents


def _decoded(content: bytes, place: str) -> str:
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"is not {encoding.upper()} text (byte {error.start}); convert it, or is it a binary file?", path=place
        ) from error
    if "\0" in text:
        raise DataError("is a binary file (it holds a zero byte)", path=place)
    return text


def _text(content: bytes, source: str, place: str) -> list[Document]:
    return [Document(_decoded(content, place), {"source": source})]


def _markdown(content: bytes, source: str, place: str) -> list[Document]:
    text = _decoded(content, place)
    return [Document(text, _with_title(_heading(text), source), markdown=True)]


def _with_title(title: str, source: str) -> Metadata:
    return {"source": source, "title": title} if title else {"source": source}


def _heading(text: str) -> str:
    """Return the first heading of level 1, "" if there is none; in a block of code, # begins a comment."""
    fence = ""
    for line in text.splitlines():
        if fence:
            rest = line.strip()
            if rest.startswith(fence) and not rest.strip(fence[0]):
                fence = ""
        elif opening := _FENCE.match(line):
            fence = opening[1]
        elif line.startswith("# "):
            return line.lstrip("#").strip()
    return ""


def _jsonl(content: bytes, source: str, place: str) -> list[Document]:
    documents = []
    ids: dict[str, int] = {}
    # Not splitlines(): that also breaks at characters which JSON strings may hold.
    for number, line in enumerate(_decoded(content, place).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            reason = str(error) or "nested too deeply"
            raise DataError(f"is not JSON: {reason}; expected an object a line", path=place, line=number) from error
        document = _row(row, source, place, number)
        if document.id is not None and ids.setdefault(document.id, number) != number:
            raise DataError(
                f"the id {document.id!r} was used in line {ids[document.id]} already", path=place, line=number
            )
        documents.append(document)
    return documents


def _row(row: Any, source: str, place: str, line: int) -> Document:
    if not isinstance(row, Mapping) or not isinstance(row.get("text"), str):
        raise DataError('expected an object with a string "text"', path=place, line=line)
    id, extra = row.get("id"), row.get("metadata", {})
    if not (id is None or (isinstance(id, (str, int)) and not isinstance(id, bool) and id != "")):
        raise DataError(f'"id" must be a string or a whole number, got {id!r}', path=place, line=line)
    if not isinstance(extra, Mapping):
        raise DataError('"metadata" must be an object', path=place, line=line)
    scalars = {
        key: value
        for key, value in row.items()
        if key not in ("text", "id", "metadata") and isinstance(value, (str, int, float, bool))
    }
    metadata = _with_place({**scalars, **extra}, source, place, line)
    return Document(row["text"], metadata, id=None if id is None else str(id))


def _with_place(given: Mapping[str, Any], source: str, place: str, line: int) -> dict[str, Any]:
    """Return the metadata of a row and its place, nothing overwritten."""
    kept = {f"row_{key}" if key in _TAKEN else key: value for key, value in given.items()}
    if len(kept) < len(given):
        key = next(key for key in _TAKEN if key in given and f"row_{key}" in given)
        raise DataError(
            f'has "{key}", which is kept as "row_{key}", and that as well; rename one', path=place, line=line
        )
    return {**kept, "source": source, "line": line}


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _csv(content: bytes, source: str, place: str) -> list[Document]:
    rows = read_csv(_decoded(content, place), place)
    return [Document(row.text, _with_place(row.values, source, place, row.line)) for row in rows]


def _html(content: bytes, source: str, place: str) -> list[Document]:
    page = read_html(_decoded(content, place))
    return [Document(page.text, _with_title(page.title, source))]


def _pdf(content: bytes, source: str, place: str) -> list[Document]:
    file = read_pdf(content, place)
    if file.remarks:
        logger.warning("%s: %s", place, "; ".join(list(dict.fromkeys(file.remarks))[:5]))
    return [Document(text, {"source": source, "page": number}) for number, text in enumerate(file.pages, start=1)]


def _docx(content: bytes, source: str, place: str) -> list[Document]:
    return [Document(read_docx(content, place), {"source": source})]


READERS: dict[str, Reader] = {
    ".csv": _csv,
    ".docx": _docx,
    ".htm": _html,
    ".html": _html,
    ".jsonl": _jsonl,
    ".markdown": _markdown,
    ".md": _markdown,
    ".pdf": _pdf,
    ".txt": _text,
}
