"""Citations: which documents an answer refers to by ``[1]``, ``[2]``, ..., the numbers of the prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence

from langchain_core.documents import Document
from typing_extensions import TypedDict  # pydantic cannot read typing's own before Python 3.12

_MARKER = re.compile(r"\[(\d+(?:\s*,\s*\d+)*)\]")


class Citation(TypedDict):
    """One document that an answer refers to.

    Attributes:
        number: as it stands in the answer, from 1.
        id: of the document.
        source: the document's ``source``, or its id.
        start: where in the answer the first reference begins, in characters.
    """

    number: int
    id: str | None
    source: str | None
    start: int


def citations(answer: str, documents: Sequence[Document]) -> list[Citation]:
    """The documents that an answer refers to, in order of their first reference; numbers out of range are left out.

    Example:
        >>> citations("Romulus [1].", [Document("Romulus founded Rome.", id="7")])
        [{'number': 1, 'id': '7', 'source': '7', 'start': 8}]
    """
    found: dict[int, int] = {}
    for marker in _MARKER.finditer(answer):
        for digits in marker[1].split(","):
            found.setdefault(int(digits), marker.start())
    return [
        Citation(
            number=number,
            id=documents[number - 1].id,
            source=documents[number - 1].metadata.get("source", documents[number - 1].id),
            start=start,
        )
        for number, start in found.items()
        if 1 <= number <= len(documents)
    ]
