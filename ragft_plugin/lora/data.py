"""Training data: rows read, understood and checked before the first step.

Most fine-tunings that fail, fail silently and because of their data: nothing to learn from, answers cut off, the
evaluation rows among the training rows. So all of it is looked for first, and named by file and line.

A row is a JSON object in one of these shapes, optionally with ``passages`` (texts, or objects with ``text``):

    {"question": ..., "answer": ...}
    {"prompt": ..., "completion": ...}
    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
    {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}
    {"instruction": ..., "input": ..., "output": ...}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragft_plugin.errors import DataError
from ragft_plugin.prompts import check_question
from ragft_plugin.types import Passage, Prompt

_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A prompt and the answer to learn.

    Attributes:
        prompt: the question, with passages or without.
        answer: what to answer.
        path, line: where it stands, if it came from a file.
    """

    prompt: Prompt
    answer: str
    path: str | None = None
    line: int | None = None


def read_rows(path: str | Path) -> list[TrainingRow]:
    """Read training rows from a JSON Lines file.

    Raises:
        DataError: with file and line, if something is wrong.
    """
    name = str(path)
    rows: list[TrainingRow] = []
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    rows.append(parse_row(_json(line, name, number), path=name, line=number))
    except FileNotFoundError:
        raise DataError("there is no such file", path=name) from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text ({error.reason}); convert the file", path=name) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=name) from None
    if not rows:
        raise DataError("the file holds no rows; expected one JSON object a line", path=name)
    return rows


def parse_row(record: Mapping[str, Any], *, path: str | None = None, line: int | None = None) -> TrainingRow:
    """Make a row of a mapping in any of the shapes that the module names.

    Raises:
        DataError: if it is in none of them, or a text is missing or empty.
    """
    try:
        question, answer = _pair(record)
        if not isinstance(answer, str) or not answer.strip():
            raise DataError(f"the answer is {answer!r}, so there is nothing to learn; write one or drop the row")
        if not isinstance(question, str):
            raise DataError(f"the question is {question!r}; expected text")
        prompt = Prompt(check_question(question), _passages(record.get("passages")))
    except DataError as error:
        raise DataError(str(error), path=path, line=line) from None
    return TrainingRow(prompt, answer.strip(), path, line)


def as_rows(rows: str | Path | Iterable[TrainingRow | Mapping[str, Any]]) -> list[TrainingRow]:
    """Rows from a file, from mappings, or as they are."""
    if isinstance(rows, str | Path):
        return read_rows(rows)
    return [
        row if isinstance(row, TrainingRow) else parse_row(row, path="row", line=number)
        for number, row in enumerate(rows, 1)
    ]


def _json(line: str, path: str, number: int) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", path=path, line=number) from None
    if not isinstance(record, dict):
        raise DataError(f"expected a JSON object, got a {type(record).__name__}", path=path, line=number)
    return record


def _pair(record: Mapping[str, Any]) -> tuple[Any, Any]:
    for ask, reply in (("question", "answer"), ("prompt", "completion")):
        if ask in record and reply in record and isinstance(record[ask], str):
            return record[ask], record[reply]
    if "instruction" in record and "output" in record:
        given = str(record.get("input") or "").strip()
        return "\n\n".join(filter(None, [str(record["instruction"]), given])), record["output"]
    for key in ("messages", "conversations"):
        if key in record:
            return _turns(record[key])
    if "prompt" in record and "completion" in record:
        return _turns([*_list(record["prompt"]), *_list(record["completion"])])
    raise DataError(
        f"unknown shape with keys {sorted(record)}; expected question + answer, prompt + completion, messages, "
        "conversations, or instruction (+ input) + output"
    )


def _turns(turns: Any) -> tuple[Any, Any]:
    said: list[tuple[str, Any]] = []
    for turn in _list(turns):
        role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
        if not isinstance(role, str):
            raise DataError(f"a message is {turn!r}; expected role and content")
        said.append((_ROLES.get(role, role), turn.get("content", turn.get("value"))))
    system = [str(said.pop(0)[1])] if said and said[0][0] == "system" else []
    if [role for role, _ in said] != ["user", "assistant"]:
        raise DataError(
            f"the turns are {[role for role, _ in said]}; expected one of the user and one of the assistant (a system "
            "message before them is read as the head of the question). Split longer conversations into rows"
        )
    question = "\n\n".join([*system, str(said[0][1] or "")])
    return question, said[1][1]


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise DataError(f"expected a list of messages, got {value!r}")
    return value


def _passages(value: Any) -> tuple[Passage, ...] | None:
    if value is None:
        return None
    passages = []
    for number, item in enumerate(_list(value), 1):
        fields = {"text": item} if isinstance(item, str) else item
        if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
            raise DataError(f"passage {number} is {item!r}; expected text, or an object with text")
        metadata = fields.get("metadata")
        passages.append(
            Passage(
                str(fields.get("id", number)),
                fields["text"],
                metadata=metadata if isinstance(metadata, dict) else {},
            )
        )
    return tuple(passages)
