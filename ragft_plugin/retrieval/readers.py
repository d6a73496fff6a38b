"""Readers: files -> documents. One function per format; what cannot be read raises ``DataError`` saying why.

.txt .md      UTF-8 (or UTF-16 with its mark)
.jsonl        an object a line: "text", and as wanted "id", "title", "metadata"; other scalars become metadata
.csv          a row each: the column "text", or all columns as "name: value"
.html .htm    visible text, title
.pdf          by pypdf, a document a page
.docx         by python-docx
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from ragft_plugin.errors import DataError, MissingExtraError
from ragft_plugin.retrieval.chunking import Document

Reader = Callable[[bytes, str, str], list[Document]]  # content, source, path to name in errors


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
    heading = next((line.lstrip("#").strip() for line in text.splitlines() if line.startswith("# ")), "")
    metadata = {"source": source, "title": heading} if heading else {"source": source}
    return [Document(text, metadata, markdown=True)]


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
    metadata = {**scalars, **extra, "source": source, "line": line}
    return Document(row["text"], metadata, id=None if id is None else str(id))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _csv(content: bytes, source: str, place: str) -> list[Document]:
    reader = csv.DictReader(io.StringIO(_decoded(content, place), newline=""), strict=True)
    documents = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"row has another number of cells than the {len(reader.fieldnames or [])} of the header",
                    path=place,
                    line=reader.line_num,
                )
            metadata = {k: v for k, v in row.items() if k != "text"} if "text" in row else {}
            text = row["text"] if "text" in row else "\n".join(f"{k}: {v}" for k, v in row.items() if v)
            documents.append(Document(text, {**metadata, "source": source, "line": reader.line_num}))
    except csv.Error as error:
        raise DataError(f"is not CSV: {error}", path=place, line=reader.line_num) from error
    return documents


class _VisibleText(HTMLParser):
    """Collects text outside of scripts and styles, a line per block."""

    _HIDDEN = frozenset("head script style template noscript svg".split())
    _INLINE = frozenset("a abbr b bdi cite code em font i kbd mark q s small span strong sub sup u var".split())

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.title = ""
        self._hidden: list[str] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_title = tag == "title"
        if tag in self._HIDDEN:
            self._hidden.append(tag)
        elif tag == "body":
            self._hidden.clear()
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._hidden:
            self.parts.append(data)

    def _break(self, tag: str) -> None:
        if tag not in self._INLINE:
            self.parts.append("\n")


def _html(content: bytes, source: str, place: str) -> list[Document]:
    parser = _VisibleText()
    parser.feed(_decoded(content, place))
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    title = " ".join(parser.title.split())
    metadata = {"source": source, "title": title} if title else {"source": source}
    return [Document("\n".join(line for line in lines if line), metadata)]


def _pdf(content: bytes, source: str, place: str) -> list[Document]:
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise MissingExtraError("pypdf", "documents") from error
    try:
        pages = PdfReader(io.BytesIO(content)).pages
        texts = [page.extract_text() for page in pages]
    except Exception as error:  # parsers of other people's files fail in every way; each is one report
        raise DataError(f"cannot be read as PDF: {error}", path=place) from error
    return [Document(text, {"source": source, "page": number}) for number, text in enumerate(texts, start=1)]


def _docx(content: bytes, source: str, place: str) -> list[Document]:
    try:
        import docx
    except ImportError as error:
        raise MissingExtraError("python-docx", "documents") from error
    try:
        text = "\n".join(_blocks(docx.Document(io.BytesIO(content))))
    except Exception as error:  # as above
        raise DataError(f"cannot be read as DOCX: {error}", path=place) from error
    return [Document(text, {"source": source})]


def _blocks(file: Any) -> Iterator[str]:
    for block in file.iter_inner_content():
        if hasattr(block, "rows"):
            for row in block.rows:
                yield " | ".join(cell.text for cell in row.cells)
        else:
            yield block.text


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
