"""Outcomes: the log a router learns from, read, written and joined with late rewards.

A file is JSON Lines, one query a line, in the format of ``Outcome``. Reading skips nothing in silence: the first
wrong line is an error that names it.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.outcome import (
    NEVER_FEATURES,
    DraftRow,
    Outcome,
    PassageRow,
    normalized_query,
    parse_outcome,
    plain_json,
    reads_passages,
)
from ragft_plugin.evaluation.outcome_table import Folds, Outcomes, tabulate

__all__ = [
    "NEVER_FEATURES",
    "DraftRow",
    "Folds",
    "Outcome",
    "Outcomes",
    "PassageRow",
    "join_rewards",
    "normalized_query",
    "read_outcomes",
    "reads_passages",
    "write_outcomes",
]

MAX_LINE_BYTES = 64 * 1024 * 1024  # a line beyond this is not an outcome, and would fill the memory


def read_outcomes(path: str | os.PathLike[str], arms: Sequence[str] | None = None) -> Outcomes:
    """Read an outcomes file (JSON Lines, ``.gz`` too).

    Args:
        path: the file.
        arms: the arms there are; a row with another one is an error. None accepts those of the file.

    Raises:
        DataError: with file and line, if anything is wrong with it; nothing is skipped in silence.
    """
    name = os.fspath(path)
    rows: list[Outcome] = []
    lines: list[int] = []
    for number, line in _lines(name):
        try:
            fields = json.loads(line, parse_constant=_no_number)
            if "\\u" in line:  # half a surrogate pair passes the parser and breaks every writer after it
                json.dumps(fields, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise DataError(f"not a JSON object: {error}", path=name, line=number) from None
        if not isinstance(fields, dict):
            kind = type(fields).__name__
            raise DataError(f"expected a JSON object, got {kind}", path=name, line=number)
        rows.append(parse_outcome(fields, name, number))
        lines.append(number)
    return tabulate(tuple(rows), tuple(arms) if arms is not None else None, name, lines)


def write_outcomes(path: str | os.PathLike[str], rows: Iterable[Outcome]) -> None:
    """Write an outcomes file, compressed if its name ends in ``.gz``; the file appears whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not mkstemp: its files are for the owner's eyes only, whatever the umask says.
    beside = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        with beside.open("xb") as raw:
            if target.suffix == ".gz":
                # No name and no time inside, so that equal rows make equal bytes.
                with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
                    _dump(packed, rows)
            else:
                _dump(raw, rows)
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def join_rewards(decisions: Iterable[Mapping[str, Any]], rewards: Mapping[str, float]) -> list[Outcome]:
    """Outcomes of decisions whose reward has come.

    The reward belongs to the *chosen* arm, also where another one answered in its stead.

    Args:
        decisions: fields of an ``Outcome`` without ``reward``; ``decision_id``, ``arm`` and ``propensities``
            are required. One without a reward yet is left out.
        rewards: decision id -> reward in [0, 1].

    Raises:
        DataError: for a reward of an unknown decision, or a wrong row.
    """
    joined: list[Outcome] = []
    missing = dict(rewards)
    for i, fields in enumerate(decisions, 1):
        for key in ("decision_id", "arm", "propensities"):
            if fields.get(key) is None:
                raise DataError(f"decision {i} has no {key}; nothing can be learnt from it")
        if fields["decision_id"] in missing:
            reward = {fields["arm"]: missing.pop(fields["decision_id"])}
            joined.append(parse_outcome({**fields, "reward": reward}, None, i))
    if missing:
        raise DataError(
            f"{len(missing)} rewards are of unknown decisions, first {next(iter(missing))!r}; were they "
            "logged elsewhere, or joined before?"
        )
    return joined


def _no_number(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no JSON number; write null where a value is missing")


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not blank."""
    number = 0
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(
                        f"the line is longer than {MAX_LINE_BYTES:,} bytes; is it JSON Lines?",
                        path=path,
                        line=number,
                    )
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield number, text
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}", path=path, line=number) from None
    except (OSError, EOFError) as error:
        raise DataError(f"cannot be read: {error}", path=path, line=number or None) from None


def _dump(file: IO[bytes] | gzip.GzipFile, rows: Iterable[Outcome]) -> None:
    for row in rows:
        try:
            line = row.model_dump_json(exclude_none=True, exclude_defaults=True).encode()
        except ValueError:
            # Metadata that is no JSON, or half a surrogate pair: answers already paid for are not lost over it.
            fields = plain_json(row.model_dump(exclude_none=True, exclude_defaults=True))
            line = json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")
        file.write(line + b"\n")
