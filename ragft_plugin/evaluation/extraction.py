"""Extraction: a text became the fields of a fixed schema; which of them are right?

Over all records, a predicted field is right if its value is an accepted one, normalised as in ``answers``:

    precision = right / predicted,   recall = right / wanted,   F1 = 2 right / (predicted + wanted)

A field that is empty or says that nothing is known counts as not predicted; one that is not wanted, as wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.answers import exact_match, normalize_answer

Record = Mapping[str, str]
ABSENT = frozenset(("", "unknown", "none", "null", "na", "not known", "i do not know", "i dont know"))


@dataclass(frozen=True, slots=True)
class FieldScore:
    """How well one field, or all of them, was extracted.

    Attributes:
        right, predicted, wanted: counts of values.
    """

    right: int
    predicted: int
    wanted: int

    @property
    def precision(self) -> float:
        """Share of the predicted values that are right; 1 if none was predicted and none was wanted."""
        return self.right / self.predicted if self.predicted else float(not self.wanted)

    @property
    def recall(self) -> float:
        """Share of the wanted values that were found; 1 if none was wanted and none was predicted."""
        return self.right / self.wanted if self.wanted else float(not self.predicted)

    @property
    def f1(self) -> float:
        """Harmonic mean of the two."""
        total = self.predicted + self.wanted
        return 2.0 * self.right / total if total else 1.0


@dataclass(frozen=True, slots=True)
class ExtractionScore:
    """How well records were extracted.

    Attributes:
        fields: per field of the schema.
        micro: all fields together.
        exact: share of records without any mistake.
        foreign: predicted fields that are not in the schema; they count as predicted in ``micro``.
        unread: predictions in which no field could be found at all.
    """

    fields: Mapping[str, FieldScore]
    micro: FieldScore
    exact: float
    foreign: int
    unread: int

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the fields."""
        return sum(s.f1 for s in self.fields.values()) / len(self.fields)


def score_extraction(
    predictions: Sequence[str | Record], wanted: Sequence[Record], schema: Sequence[str]
) -> ExtractionScore:
    """Score extracted records against the right ones.

    Args:
        predictions: texts, read by ``read_record``, or records.
        wanted: the right records, as many.
        schema: names of the fields.

    Raises:
        DataError: if the lengths differ, the schema is empty, or a wanted record has a field that is not in it.

    Example:
        >>> score = score_extraction(["city: Rome"], [{"city": "Rome", "year": "1950"}], ("city", "year"))
        >>> score.micro.precision, score.micro.recall
        (1.0, 0.5)
    """
    if len(predictions) != len(wanted) or not schema:
        raise DataError(
            f"{len(predictions)} predictions for {len(wanted)} records and {len(schema)} fields; expected as many"
        )
    counts = {name: [0, 0, 0] for name in schema}
    foreign = unread = exact = 0
    for number, (given, right) in enumerate(zip(predictions, wanted, strict=True), 1):
        unknown = set(right) - set(schema)
        if unknown:
            raise DataError(f"record {number} has the field {min(unknown)!r}; the schema is {', '.join(schema)}")
        found = read_record(given) if isinstance(given, str) else dict(given)
        unread += not found
        found, truth = _present(found), _present(right)
        strange = sum(name not in counts for name in found)
        foreign += strange
        good = 0
        for name, count in counts.items():
            hit = name in found and name in truth and exact_match(found[name], truth[name]) == 1.0
            count[0] += hit
            count[1] += name in found
            count[2] += name in truth
            good += hit or (name not in found and name not in truth)
        exact += good == len(schema) and not strange
    fields = {name: FieldScore(*count) for name, count in counts.items()}
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    micro = FieldScore(totals[0], totals[1] + foreign, totals[2])
    return ExtractionScore(fields, micro, exact / len(wanted) if wanted else 0.0, foreign, unread)


def read_record(text: str) -> dict[str, str]:
    r"""The fields in what a model wrote: a JSON object, or ``key: value`` lines; of a repeated key the first.

    Example:
        >>> read_record("TICKET\n site: Brelkon\n city: Rome")
        {'site': 'Brelkon', 'city': 'Rome'}
        >>> read_record('Here it is: {"city": "Rome", "year": 1950}')
        {'city': 'Rome', 'year': '1950'}
    """
    start, end = text.find("{"), text.rfind("}")
    if 0 <= start < end:
        try:
            made = json.loads(text[start : end + 1])
        except ValueError:
            made = None
        if isinstance(made, dict):
            return {str(k).strip().lower(): "" if v is None else str(v).strip() for k, v in made.items()}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.strip().partition(":")
        if colon and key.strip():
            fields.setdefault(key.strip().lower(), value.strip())
    return fields


def _present(record: Record) -> dict[str, str]:
    return {k: v for k, v in record.items() if normalize_answer(v) not in ABSENT}
