"""Checks: what would make a training fail silently, found before its first step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ragft_plugin.errors import DataError
from ragft_plugin.lora.data import TrainingRow, prompt_key
from ragft_plugin.lora.rendering import IGNORED, Renderer, TrainingIds

_SHOWN = 5
_NOTHING = "no token of this row is learnt from; check that its answer is not empty, and that the template shows it"
_ENDLESS = (
    "the end of the answer is not learnt, so generation would never stop; the chat template must close the assistant's "
    "turn with the end token"
)


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What the training data is like.

    Attributes:
        rows: number of rows.
        tokens: tokens in all, prompts included.
        supervised: answer tokens that are learnt from.
        least, most: answer tokens of the rows with the fewest and the most.
        longest: tokens of the longest row.
        median: median of tokens per row.
        shortened: rows that lost passages from the end to fit.
        duplicates: rows that repeat an earlier one.
        contradictions: places of rows whose prompt an earlier row answers otherwise.
        leaked: places of evaluation rows whose prompt is a training prompt too.
    """

    rows: int
    tokens: int
    supervised: int
    least: int
    most: int
    longest: int
    median: float
    shortened: int
    duplicates: int
    contradictions: tuple[str, ...]
    leaked: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the tokens that are learnt from."""
        return self.supervised / self.tokens

    def __str__(self) -> str:
        """What a user wants to know before the first step, a line each."""
        lines = [
            f"{self.rows:,} rows, {self.tokens:,} tokens; the longest row has {self.longest:,}, half have "
            f"{self.median:g} or fewer",
            f"{self.supervised:,} tokens ({self.share:.0%}) are learnt from, {self.least:,} to {self.most:,} in a row, "
            "and the end of every answer",
        ]
        if self.shortened:
            lines.append(f"{self.shortened:,} rows lose passages to fit")
        if self.duplicates:
            lines.append(f"{self.duplicates:,} rows repeat an earlier one")
        for what, places in (
            ("contradict an earlier row with the same prompt", self.contradictions),
            ("evaluation rows have the prompt of a training row", self.leaked),
        ):
            if places:
                more = ", ..." if len(places) > _SHOWN else ""
                lines.append(f"{len(places):,} {what}: {', '.join(places[:_SHOWN])}{more}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Preview:
    """One row as the model will see it: what it reads, and what it learns to write."""

    place: str
    masked: str
    learnt: str

    def __str__(self) -> str:
        return f"{self.place}\n\x1b[90m{self.masked}\x1b[0m{self.learnt}"


def check_rows(
    rows: Sequence[TrainingRow],
    renderer: Renderer,
    *,
    max_length: int,
    eval_rows: Sequence[TrainingRow] = (),
) -> tuple[list[TrainingIds], DataSummary]:
    """Render every row and look for what would go wrong.

    Args:
        rows: training rows.
        renderer: of the base to train.
        max_length: longest row, in tokens. Passages are dropped from the end of a longer one, as in answering;
            answers are never cut.
        eval_rows: rows that must not be among the training rows.

    Returns:
        the rendered rows, and what they are like.

    Raises:
        DataError: for a row with nothing to learn from, one that does not fit, or one whose end is not learnt.
    """
    if not rows:
        raise DataError("there are no training rows; pass at least one question with its answer")
    rendered: list[TrainingIds] = []
    shortened = duplicates = 0
    contradictions: list[str] = []
    answers: dict[tuple[Any, ...], str] = {}
    wrong: dict[str, list[int]] = {_NOTHING: [], _ENDLESS: []}
    for number, row in enumerate(rows):
        ids, cut = _render(row, renderer, max_length)
        shortened += cut
        if ids.supervised < 1:
            wrong[_NOTHING].append(number)
        elif not ids.ended or ids.labels[-1] not in renderer.end_ids:
            wrong[_ENDLESS].append(number)
        rendered.append(ids)
        key = prompt_key(row.prompt)
        if key not in answers:
            answers[key] = row.answer
        elif answers[key] == row.answer:
            duplicates += 1
        else:
            contradictions.append(_place(row, number + 1))
    for message, numbers in wrong.items():
        if numbers:
            first, *others = numbers
            more = [_place(rows[n], n + 1) for n in others]
            also = f" (and {len(more):,} more rows: {', '.join(more[:_SHOWN])})" if more else ""
            raise DataError(message + also, path=rows[first].path, line=rows[first].line)
    leaked = [_place(r, n) for n, r in enumerate(eval_rows, 1) if prompt_key(r.prompt) in answers]
    lengths = [len(r.ids) for r in rendered]
    return rendered, DataSummary(
        rows=len(rows),
        tokens=sum(lengths),
        supervised=sum(r.supervised for r in rendered),
        least=min(r.supervised for r in rendered),
        most=max(r.supervised for r in rendered),
        longest=max(lengths),
        median=statistics.median(lengths),
        shortened=shortened,
        duplicates=duplicates,
        contradictions=tuple(contradictions),
        leaked=tuple(leaked),
    )


def refuse_leak(summary: DataSummary) -> None:
    """Refuse evaluation rows that stand among the training rows.

    Raises:
        DataError: if there are any.
    """
    if summary.leaked:
        raise DataError(
            f"{len(summary.leaked)} evaluation rows have the prompt of a training row, so the score would be that of "
            f"a memory: {', '.join(summary.leaked[:_SHOWN])}; take them out of one of the two, or pass "
            "allow_leak=True if remembering is what you want to measure"
        )


def preview(
    rows: Sequence[TrainingRow], renderer: Renderer, n: int = 3, *, max_length: int | None = None
) -> list[Preview]:
    """The first ``n`` rows, split into what is masked and what is learnt; ``str`` greys the masked part.

    Args:
        rows: training rows.
        renderer: of the base to train.
        n: how many to show.
        max_length: as in ``check_rows``; None shows rows whole.
    """
    shown = []
    for number, row in enumerate(rows[:n], 1):
        ids = _render(row, renderer, max_length or 1 << 30)[0]
        start = sum(label == IGNORED for label in ids.labels)
        decode = renderer.tokenizer.decode
        shown.append(Preview(_place(row, number), decode(ids.ids[:start]), decode(ids.ids[start:])))
    return shown


def _render(row: TrainingRow, renderer: Renderer, max_length: int) -> tuple[TrainingIds, bool]:
    ids = renderer.render_training(row.prompt, row.answer)
    if len(ids.ids) <= max_length:
        return ids, False
    kept = list(row.prompt.passages or ())
    while kept and len(ids.ids) > max_length:
        kept.pop()
        ids = renderer.render_training(replace(row.prompt, passages=tuple(kept)), row.answer)
    if len(ids.ids) > max_length:
        raise DataError(
            f"question and answer take {len(ids.ids):,} tokens and a row may have {max_length:,}; the answer would be "
            "cut off. Raise max_length (at most the base's context), or split or drop the row",
            path=row.path,
            line=row.line,
        )
    return ids, True


def _place(row: TrainingRow, number: int) -> str:
    return f"{row.path}:{row.line}" if row.path is not None else f"row {number}"
