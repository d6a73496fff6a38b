"""CSV rows: a text each, and values that filters can compare.

A .csv file says neither what separates its cells nor what is a number; both are guessed, from all of its rows. Cells
are separated by , ; tab or |, as the header shows. An empty cell is no value; a column without a name is called
"column 3" after its place. A column all of whose values are plain numbers (2001, -0.5; but not 007, 1e5 or more than 15
digits before the point, which name something) becomes numbers, so that filters can compare them. JSON Lines say what is
a number: use them where this guess is wrong.
"""

from __future__ import annotations

import csv
import io
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ragft_plugin.errors import DataError

_DELIMITERS = ",;\t|"
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?")
_LIMIT = threading.Lock()  # the limit of ``csv`` can only be set for the whole process, and is set back


@dataclass(frozen=True, slots=True)
class CsvRow:
    """A row below the header.

    Attributes:
        line: the line it begins on; the first is 1.
        text: the column "text"; without one, all columns as "name: value", a line each.
        values: the other columns that have a value; none without a column "text".
    """

    line: int
    text: str
    values: Mapping[str, str | int | float]


def read_csv(text: str, place: str) -> Iterator[CsvRow]:
    """Yield the rows of a file; nothing is yielded before all of it is known to be sound.

    Args:
        text: of the file.
        place: its path, to name in errors.

    Raises:
        DataError: malformed, a column named twice, or a row with another number of cells than the header.
    """
    with _long_cells(len(text)):
        delimiter = _delimiter(text, place)
        (first, header), *rows = list(_records(text, delimiter, place)) or [(1, [])]
    names = [name or f"column {number}" for number, name in enumerate(header, start=1)]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"has the column {twice[0]!r} more than once; rename one", path=place, line=first)
    for line, cells in rows:
        if len(cells) != len(names):
            raise DataError(
                f"row has another number of cells than the {len(names)} of the header: {len(cells)}, separated by "
                f"{delimiter!r}; quote cells that hold one or a line break",
                path=place,
                line=line,
            )
    numbers = {
        name for at, name in enumerate(names) if all(_NUMBER.fullmatch(cells[at]) for _, cells in rows if cells[at])
    }
    for line, cells in rows:
        row = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
        if "text" in names:
            body = row.pop("text", "")
            values = {name: _number(cell) if name in numbers else cell for name, cell in row.items()}
        else:
            body, values = "\n".join(f"{name}: {cell}" for name, cell in row.items()), {}
        yield CsvRow(line, body, values)


def _number(cell: str) -> int | float:
    return float(cell) if "." in cell else int(cell)


def _delimiter(text: str, place: str) -> str:
    """Return what separates cells: the first that gives the header several, and every row as many.

    ``csv.Sniffer`` counts characters in a sample instead, and texts full of commas mislead it.
    """
    likely = []
    for delimiter in _DELIMITERS:
        with suppress(DataError):
            widths = (len(cells) for _, cells in _records(text, delimiter, place))
            width = next(widths, 0)
            if width > 1:
                likely.append(delimiter)
                if all(other == width for other in widths):
                    return delimiter
    return (likely or _DELIMITERS)[0]


def _records(text: str, delimiter: str, place: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the cells of every record that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"is not CSV: {error}", path=place, line=line) from error


@contextmanager
def _long_cells(length: int) -> Iterator[None]:
    """Let cells be as long as a whole text, where ``csv`` allows 131,072 characters."""
    with _LIMIT:
        before = csv.field_size_limit()
        csv.field_size_limit(max(before, length))
        try:
            yield
        finally:
            csv.field_size_limit(before)
