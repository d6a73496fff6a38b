"""Questions with gold passages, read from a file and written as training rows.

A line is a JSON object with ``question`` (or ``query``), ``answer`` (text, or a list of accepted ones) and, where it is
known, ``passage_id``, ``passage_ids`` or ``passages`` (texts, or objects with ``id`` and ``text``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ragft_plugin.errors import DataError
from ragft_plugin.lora.data import TrainingRow
from ragft_plugin.lora.retrieval_aware import GoldQuestion
from ragft_plugin.types import Passage

Lookup = Callable[[Sequence[str]], Sequence[Passage]]


def read_gold_questions(path: str | Path, lookup: Lookup | None = None) -> list[GoldQuestion]:
    """Read questions from a JSON Lines file.

    Args:
        path: the file.
        lookup: ids -> passages, such as ``KnowledgeBase.get``; needed for lines that name passages by id.

    Raises:
        DataError: with file and line, if something is wrong or a passage is not to be found.
    """
    name = str(path)
    found: list[GoldQuestion] = []
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        found.append(_question(json.loads(line), lookup))
                    except (DataError, ValueError) as error:
                        raise DataError(str(error), path=name, line=number) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=name) from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text ({error.reason}); convert the file", path=name) from None
    if not found:
        raise DataError("the file holds no questions; expected one JSON object a line", path=name)
    return found


def write_rows(path: str | Path, rows: Iterable[TrainingRow]) -> None:
    """Write training rows as JSON Lines that ``read_rows`` reads; the file appears whole or not at all."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as stream:
        for row in rows:
            record: dict[str, Any] = {"question": row.prompt.question, "answer": row.answer}
            if row.prompt.passages is not None:
                record["passages"] = [
                    {"id": p.id, "text": p.text, "metadata": dict(p.metadata)} for p in row.prompt.passages
                ]
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(beside, target)


def _question(record: Any, lookup: Lookup | None) -> GoldQuestion:
    if not isinstance(record, Mapping):
        raise DataError(f"expected a JSON object, got a {type(record).__name__}")
    question = record.get("question", record.get("query"))
    answers = record.get("answer", record.get("answers"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"the question is {question!r}; expected text under 'question' or 'query'")
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise DataError(f"the answer is {answers!r}; expected text, or a list of accepted answers")
    return GoldQuestion(question.strip(), tuple(answers), _passages(record, lookup))


def _passages(record: Mapping[str, Any], lookup: Lookup | None) -> tuple[Passage, ...]:
    if "passages" in record:
        return tuple(_passage(item) for item in record["passages"] or ())
    ids = record.get("passage_ids", record.get("passage_id"))
    ids = [ids] if isinstance(ids, str) else list(ids or ())
    if not ids:
        return ()
    if lookup is None:
        raise DataError(f"passages are named by id ({ids[0]!r}), so a knowledge base is needed to look them up")
    found = {p.id: p for p in lookup(ids)}
    missing = [i for i in ids if i not in found]
    if missing:
        raise DataError(f"the knowledge base has no passage {missing[0]!r}; index its document, or drop the row")
    return tuple(found[i] for i in ids)


def _passage(item: Any) -> Passage:
    if isinstance(item, str):
        return Passage(item, item)
    if not isinstance(item, Mapping) or not isinstance(item.get("text"), str):
        raise DataError(f"a passage is {item!r}; expected text, or an object with id and text")
    metadata = item.get("metadata")
    return Passage(
        str(item.get("id") or item["text"]), item["text"], metadata=metadata if isinstance(metadata, dict) else {}
    )
