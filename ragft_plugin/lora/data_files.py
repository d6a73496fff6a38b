"""Data files: records of JSON Lines, JSON, CSV, TSV and Parquet, each with the line it stands on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ragft_plugin.errors import DataError, MissingExtraError

Record = Mapping[str, Any]
_LISTS = ("messages", "conversations", "passages", "history", "prompt", "completion")  # JSON inside a cell


def read_records(path: str | Path) -> Iterator[tuple[int, Record]]:
    """Yield (line, record); the line of a Parquet or JSON record is its number.

    The suffix says what a file is: .csv, .tsv, .parquet, .json (a list of objects), anything else JSON Lines.

    Raises:
        DataError: with file and line, if something is wrong.
        MissingExtraError: for Parquet without pyarrow.
    """
    name = str(path)
    reader = _READERS.get(Path(path).suffix.lower(), _json_lines)
    found = False
    try:
        for line, record in reader(Path(path)):
            found = True
            if not isinstance(record, dict):
                raise DataError(f"expected a JSON object, got a {type(record).__name__}", path=name, line=line)
            yield line, record
    except FileNotFoundError:
        raise DataError("there is no such file", path=name) from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text ({error.reason}); convert the file", path=name) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path=name) from None
    if not found:
        raise DataError("the file holds no rows; expected one JSON object a line", path=name)


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _json(line, str(path), number)


def _json_list(path: Path) -> Iterator[tuple[int, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip()[:1] != "[":  # JSON Lines under another name
        yield from _json_lines(path)
        return
    yield from enumerate(_json(text, str(path), 1), 1)


def _json(text: str, path: str, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", path=path, line=number) from None


def _table(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        file.seek(0)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
        table = csv.DictReader(file, delimiter=delimiter, strict=True)
        line = 1
        try:
            for row in table:
                line, start = table.line_num, line + 1
                if None in row or None in row.values():
                    raise DataError(
                        f"the row has more or fewer cells than the header ({', '.join(table.fieldnames or ())}); quote "
                        f"cells that hold {delimiter!r} or a line break",
                        path=str(path),
                        line=start,
                    )
                yield start, {key: _cell(key, value) for key, value in row.items()}
        except csv.Error as error:
            raise DataError(f"not a table: {error}", path=str(path), line=line + 1) from None


def _cell(key: str, value: str) -> Any:
    if key in _LISTS and value.lstrip()[:1] == "[":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return None if key == "passages" and not value.strip() else value


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow  # type: ignore[import-untyped,unused-ignore]
        import pyarrow.parquet  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise MissingExtraError("pyarrow", "train") from error
    number = 0
    try:
        with path.open("rb") as stream:
            for batch in pyarrow.parquet.ParquetFile(stream).iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield number, {key: value for key, value in record.items() if value is not None}
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"not a Parquet file: {error}", path=str(path)) from None


_READERS: Mapping[str, Callable[[Path], Iterator[tuple[int, Any]]]] = MappingProxyType(
    {".csv": _table, ".tsv": _table, ".json": _json_list, ".parquet": _parquet}
)
