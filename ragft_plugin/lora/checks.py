"""Checks: what would make a training fail silently, found before its first step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ragft_plugin.errors import DataError
from ragft_plugin.lora.data import TrainingRow
from ragft_plugin.lora.rendering import IGNORED, Renderer, TrainingIds
from ragft_plugin.types import Prompt

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What the training data is like.

    Attributes:
        rows: number of rows.
        tokens: tokens in all, prompts included.
        supervised: answer tokens that are learnt from.
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
    answers: dict[tuple[str, ...], str] = {}
    for number, row in enumerate(rows, 1):
        ids, cut = _render(row, renderer, max_length)
        shortened += cut
        if ids.supervised < 1:
            raise DataError(
                "no token of this row is learnt from; check that its answer is not empty",
                path=row.path,
                line=row.line,
            )
        if not ids.ended or ids.labels[-1] not in renderer.end_ids:
            raise DataError(
                "the end of the answer is not learnt, so generation would never stop; the chat template must close "
                "the assistant's turn with the end token",
                path=row.path,
                line=row.line,
            )
        rendered.append(ids)
        key = _key(row.prompt)
        if key not in answers:
            answers[key] = row.answer
        elif answers[key] == row.answer:
            duplicates += 1
        else:
            contradictions.append(_place(row, number))
    leaked = [_place(r, n) for n, r in enumerate(eval_rows, 1) if _key(r.prompt) in answers]
    lengths = [len(r.ids) for r in rendered]
    return rendered, DataSummary(
        rows=len(rows),
        tokens=sum(lengths),
        supervised=sum(r.supervised for r in rendered),
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


def preview(rows: Sequence[TrainingRow], renderer: Renderer, n: int = 3) -> list[Preview]:
    """The first ``n`` rows, split into what is masked and what is learnt; ``str`` greys the masked part."""
    shown = []
    for number, row in enumerate(rows[:n], 1):
        ids = renderer.render_training(row.prompt, row.answer)
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
        ids = renderer.render_training(Prompt(row.prompt.question, tuple(kept)), row.answer)
    if len(ids.ids) > max_length:
        raise DataError(
            f"question and answer take {len(ids.ids):,} tokens and a row may have {max_length:,}; the answer would be "
            "cut off. Raise max_length (at most the base's context), or split or drop the row",
            path=row.path,
            line=row.line,
        )
    return ids, True


def _key(prompt: Prompt) -> tuple[str, ...]:
    question = " ".join(prompt.question.casefold().split())
    return (question, *(p.text for p in prompt.passages or ()))


def _place(row: TrainingRow, number: int) -> str:
    return f"{row.path}:{row.line}" if row.path is not None else f"row {number}"
