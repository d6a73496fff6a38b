"""Training data: rows read, understood and checked before the first step.

Most fine-tunings that fail, fail silently and because of their data: nothing to learn from, answers cut off, the
evaluation rows among the training rows. So all of it is looked for first, and named by file and line.

A record has one of these shapes, optionally with ``passages`` (texts, or objects with ``text``):

    {"question": ..., "answer": ...}                     or "query" for "question"
    {"prompt": ..., "completion": ...}                   texts, or lists of messages
    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
    {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}          (ShareGPT)
    {"instruction": ..., "input": ..., "output": ...}    optionally with "system" and "history"  (Alpaca)

A conversation becomes one row for every turn of the assistant, with what was said before as its context, as the
adapter will see it when it answers.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragft_plugin.errors import DataError
from ragft_plugin.lora.data_files import read_records
from ragft_plugin.prompts import check_question
from ragft_plugin.types import Passage, Prompt

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant"}
_PAIRS = (("question", "answer"), ("query", "answer"), ("prompt", "completion"))
Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A prompt and the answer to learn.

    Attributes:
        prompt: the question, with passages or without, and with what was said before.
        answer: what to answer.
        path, line: where it stands, if it came from a file.
    """

    prompt: Prompt
    answer: str
    path: str | None = None
    line: int | None = None


def read_rows(path: str | Path, *, columns: Mapping[str, str] | None = None) -> list[TrainingRow]:
    """Read training rows from a file: JSON Lines, .json, .csv, .tsv or .parquet.

    Args:
        path: the file.
        columns: field -> its name in the file, such as {"question": "Frage", "answer": "Antwort"}.

    Raises:
        DataError: with file and line, if something is wrong.
        MissingExtraError: for Parquet without pyarrow.
    """
    name = str(path)
    rows: list[TrainingRow] = []
    for line, record in read_records(path):
        rows += parse_rows(_renamed(record, columns or {}, name, line), path=name, line=line)
    return rows


def parse_rows(record: Mapping[str, Any], *, path: str | None = None, line: int | None = None) -> list[TrainingRow]:
    """Make rows of a record in any of the shapes that the module names; one for each turn of the assistant.

    Raises:
        DataError: if it is in none of them, or a text is missing or empty.
    """
    try:
        passages = _passages(record.get("passages"))
        rows = []
        for question, answer, before in _exchanges(record):
            if not isinstance(answer, str) or not answer.strip():
                raise DataError(f"the answer is {answer!r}, so there is nothing to learn; write one or drop the row")
            if not isinstance(question, str):
                raise DataError(f"the question is {question!r}; expected text")
            prompt = Prompt(check_question(question), passages, before)
            rows.append(TrainingRow(prompt, answer.strip(), path, line))
    except DataError as error:
        raise DataError(str(error), path=path, line=line) from None
    return rows


def parse_row(record: Mapping[str, Any], *, path: str | None = None, line: int | None = None) -> TrainingRow:
    """As ``parse_rows`` for a record with one turn of the assistant; of a longer one, the last turn."""
    return parse_rows(record, path=path, line=line)[-1]


def as_rows(rows: str | Path | Iterable[TrainingRow | Mapping[str, Any]]) -> list[TrainingRow]:
    """Rows from a file, from mappings, or as they are."""
    if isinstance(rows, str | Path):
        return read_rows(rows)
    found: list[TrainingRow] = []
    for number, row in enumerate(rows, 1):
        found += [row] if isinstance(row, TrainingRow) else parse_rows(row, path="row", line=number)
    return found


def prompt_key(prompt: Prompt) -> tuple[Any, ...]:
    """What makes two prompts the same: words of the question whatever their case, passages, earlier turns."""
    question = " ".join(prompt.question.casefold().split())
    return (question, tuple(p.text for p in prompt.passages or ()), prompt.turns)


def hold_out(
    rows: Sequence[TrainingRow], share: float, *, seed: int = 0
) -> tuple[list[TrainingRow], list[TrainingRow]]:
    """Split rows into training and held-out ones; rows with the same prompt stay on one side.

    Args:
        rows: all rows.
        share: of the prompts to hold out, in (0, 1); at least one is.
        seed: of the draw.

    Raises:
        DataError: if there are not two different prompts.
    """
    keys = list(dict.fromkeys(prompt_key(row.prompt) for row in rows))
    if len(keys) < 2 or not 0.0 < share < 1.0:
        raise DataError(f"cannot hold out {share:g} of {len(keys)} different prompts; expected 2 or more, and a share")
    count = min(max(1, round(share * len(keys))), len(keys) - 1)
    held = set(random.Random(seed).sample(keys, count))
    return (
        [row for row in rows if prompt_key(row.prompt) not in held],
        [row for row in rows if prompt_key(row.prompt) in held],
    )


def _renamed(record: Mapping[str, Any], columns: Mapping[str, str], path: str, line: int) -> Mapping[str, Any]:
    for field, column in columns.items():
        if column not in record:
            raise DataError(
                f"there is no column {column!r} for {field}; the columns are {', '.join(map(str, record))}",
                path=path,
                line=line,
            )
    renamed = {key: value for key, value in record.items() if key not in columns.values()}
    return {**renamed, **{field: record[column] for field, column in columns.items()}}


def _exchanges(record: Mapping[str, Any]) -> list[tuple[Any, Any, Turns]]:
    for ask, reply in _PAIRS:
        if ask in record and reply in record and not isinstance(record[ask], list):
            return [(record[ask], record[reply], ())]
    if "instruction" in record and "output" in record:
        given = str(record.get("input") or "").strip()
        question = "\n\n".join(filter(None, [str(record["instruction"]), given]))
        return [(question, record["output"], _alpaca_turns(record))]
    for key in ("messages", "conversations"):
        if key in record:
            return _conversation(record[key])
    if "prompt" in record and "completion" in record:
        return _conversation([*_list(record["prompt"]), *_list(record["completion"])])[-1:]
    raise DataError(
        f"unknown shape with keys {sorted(map(str, record))}; expected question + answer, prompt + completion, "
        "messages, conversations, or instruction (+ input) + output; other names are mapped with columns"
    )


def _alpaca_turns(record: Mapping[str, Any]) -> Turns:
    system = str(record.get("system") or "").strip()
    turns = [("system", system)] if system else []
    for pair in _list(record.get("history") or []):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(f"the history holds {pair!r}; expected pairs of question and answer")
        turns += [("user", str(pair[0])), ("assistant", str(pair[1]))]
    return tuple(turns)


def _conversation(turns: Any) -> list[tuple[Any, Any, Turns]]:
    said: list[tuple[str, Any]] = []
    for turn in _list(turns):
        role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
        if not isinstance(role, str):
            raise DataError(f"a message is {turn!r}; expected role and content")
        said.append((_ROLES.get(role, role), turn.get("content", turn.get("value"))))
    system = said[:1] if said and said[0][0] == "system" else []
    roles = [role for role, _ in said[len(system) :]]
    if not roles or len(roles) % 2 or any(r != ("user", "assistant")[i % 2] for i, r in enumerate(roles)):
        raise DataError(
            f"the turns are {[role for role, _ in said]}; expected user and assistant in turn, the assistant last, "
            "with at most one system message before them"
        )
    for role, text in said[:-2]:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"a turn of the {role} is {text!r}; expected text")
    first = len(system)
    return [
        (said[i][1], said[i + 1][1], tuple((role, str(text).strip()) for role, text in said[:i]))
        for i in range(first, len(said), 2)
    ]


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
