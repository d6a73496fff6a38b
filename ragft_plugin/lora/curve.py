"""The learning curve: what is earned, and what it takes, for so and so many labelled rows.

Whether to label more rows, or to retrieve instead, is a question of this curve: every count is trained from the same
start on a subset of the next larger one, and scored on the same held-out rows beside the base and the base with
examples in its prompt.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.evaluation.intervals import Interval, bootstrap_mean
from ragft_plugin.lora.base import load_base
from ragft_plugin.lora.model import LoraModel
from ragft_plugin.lora.preparation import Rows, merge, prepare
from ragft_plugin.lora.recipe import Recipe
from ragft_plugin.lora.scoring import Scorer, score_rows
from ragft_plugin.lora.training import FEW_SHOT, compare
from ragft_plugin.lora.tuning import FINAL, tune

COUNTS = ("1/8", "1/4", "1/2", "1")


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One training of the curve.

    Attributes:
        what: "base", "few-shot" or "adapter".
        rows: labelled rows that it took; for few-shot the examples.
        steps: optimiser steps.
        seconds: wall time of the steps.
        reward: mean score on the held-out rows, with its 95 % interval.
        eval_loss: held-out loss, or None where there was no training.
    """

    what: str
    rows: int
    steps: int
    seconds: float
    reward: Interval
    eval_loss: float | None = None


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """Points by number of labelled rows, base and few-shot first.

    Attributes:
        points: the points.
        held_out: rows that all of them are scored on.
    """

    points: tuple[CurvePoint, ...]
    held_out: int

    def __str__(self) -> str:
        """A table for the terminal."""
        lines = [f"{'':<9} {'rows':>7} {'steps':>6} {'seconds':>8}  {'reward':<22} held-out loss"]
        for p in self.points:
            loss = "" if p.eval_loss is None else f"{p.eval_loss:.4f}"
            lines.append(f"{p.what:<9} {p.rows:>7,} {p.steps:>6,} {p.seconds:>8.1f}  {p.reward!s:<22} {loss}".rstrip())
        return "\n".join([*lines, f"{self.held_out:,} held-out rows"])


def learning_curve(
    base: str | Path,
    rows: Rows,
    eval_rows: Rows,
    scorer: Scorer,
    *,
    counts: Sequence[int | str] = COUNTS,
    recipe: Recipe | None = None,
    few_shot: int = FEW_SHOT,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> LearningCurve:
    """Train on growing parts of the rows and score each; no adapter is kept.

    Args:
        base: a folder, or a name on the hub.
        rows: all labelled rows.
        eval_rows: held-out rows, the same for all.
        scorer: ``scorer(given, wanted)`` in [0, 1].
        counts: numbers of rows, or shares of them such as "1/4" or "0.5".
        recipe: the settings of every training; ``settings`` are put over it.
        few_shot: examples of the few-shot baseline.
        device: "auto", "cpu", "cuda", ...
        progress: called with (steps done, steps in all trainings together).
        **settings: fields of ``Recipe``.

    Raises:
        ConfigError: for a count that is none.
        DataError: as ``train_adapter``.

    Example:
        >>> print(learning_curve("models/base", "qa.jsonl", "held.jsonl", scorer))  # doctest: +SKIP
    """
    recipe = merge(recipe, settings)
    if recipe.method == "full":
        raise ConfigError("the learning curve is of adapters; take another method than full")
    ready = prepare(base, rows, recipe, eval_rows=eval_rows, device=device)
    if not ready.held:
        raise DataError("the learning curve needs held-out rows; pass eval_rows")
    sizes = row_counts(counts, len(ready.ids))
    order = random.Random(recipe.seed).sample(range(len(ready.ids)), len(ready.ids))
    total = sum(recipe.steps(n) for n in sizes)
    where, points = str(ready.base.model.device), []
    with LoraModel.load(ready.label, device=where) as model:
        found = compare(model, None, ready, scorer, few_shot=few_shot, seed=recipe.seed)
    assert found is not None  # for the type checker: there are held-out rows and a scorer
    points.append(CurvePoint("base", 0, 0, 0.0, bootstrap_mean(found.base)))
    if found.few_shot:
        points.append(CurvePoint("few-shot", found.examples, 0, 0.0, bootstrap_mean(found.few_shot)))
    done = 0
    work = Path(tempfile.mkdtemp(prefix="ragft-curve-"))
    try:
        for number, n in enumerate(sizes):
            loaded = ready.base if number == 0 else _again(ready.label, recipe, where)
            tuned = tune(
                loaded,
                [ready.ids[i] for i in order[:n]],
                ready.held_ids,
                recipe,
                work / str(n),
                identity=str(n),
                resume=False,
                max_seconds=None,
                progress=None if progress is None else _shifted(progress, done, total),
            )
            if number == 0:
                ready = replace(ready, base=replace(ready.base, model=None))
            del loaded
            done += recipe.steps(n)
            with LoraModel.load(ready.label, device=where) as model:
                model.load_adapter("curve", work / str(n) / FINAL)
                scores = score_rows(model, "curve", ready.held, scorer)
            points.append(CurvePoint("adapter", n, tuned.steps, tuned.seconds, bootstrap_mean(scores), tuned.eval_loss))
            shutil.rmtree(work / str(n))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return LearningCurve(tuple(points), len(ready.held))


def row_counts(counts: Sequence[int | str], rows: int) -> list[int]:
    """Numbers of rows, ascending, each once; a share, or "1", is of all rows.

    Raises:
        ConfigError: if one is no number, not above 0, or more rows than there are.

    Example:
        >>> row_counts(["1/8", "1/2", "1", 10], 80)
        [10, 40, 80]
    """
    found = set()
    for count in counts:
        try:
            value = Fraction(count)
        except (ValueError, ZeroDivisionError):
            raise ConfigError(f"{count!r} is no number of rows; expected counts or shares such as 1/4") from None
        share = isinstance(count, str) and value <= 1
        number = round(value * rows) if share else int(value)
        if not 1 <= max(number, int(share and value > 0)) <= rows:
            raise ConfigError(f"{count} rows are asked for and there are {rows:,}; expected 1 to {rows:,}, or a share")
        found.add(max(1, number))
    return sorted(found)


def _shifted(progress: Callable[[int, int], None], done: int, total: int) -> Callable[[int, int], None]:
    return lambda step, _: progress(done + step, total)


def _again(label: str, recipe: Recipe, device: str) -> Any:
    if recipe.method == "qlora":
        from ragft_plugin.lora.quantized import load_quantized

        return load_quantized(label, device=device)
    return load_base(label, device=device, dtype="float32")
