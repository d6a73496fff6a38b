"""Training: supervised fine-tuning of an adapter, from checked rows to a version in the registry.

The loop is transformers' Trainer. Around it stands what it leaves to its user: data that is checked before the first
step, a loss on answers alone, a stop when the loss is not a number, runs that go on where they were interrupted, and
a score taken by the very code that will serve the adapter.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ragft_plugin.errors import ConfigError
from ragft_plugin.lora.base import load_base
from ragft_plugin.lora.checks import DataSummary, check_rows, refuse_leak
from ragft_plugin.lora.coverage import CoverageIndex
from ragft_plugin.lora.data import TrainingRow, as_rows
from ragft_plugin.lora.fingerprints import digest, fingerprints
from ragft_plugin.lora.manifest import COVERAGE, Manifest, TrainedOn
from ragft_plugin.lora.model import LoraModel
from ragft_plugin.lora.names import check_name
from ragft_plugin.lora.probes import take_probe
from ragft_plugin.lora.recipe import Recipe
from ragft_plugin.lora.registry import Registry
from ragft_plugin.lora.rendering import TrainingIds
from ragft_plugin.lora.tuning import Tuned, tune

Rows = str | Path | Iterable[TrainingRow | Mapping[str, Any]]
Scorer = Callable[[str, str], float]
Stopped = Literal["done", "early", "time"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a training did.

    Attributes:
        name, version, folder: the adapter, and where it lies.
        steps: optimiser steps made; ``best_step`` is the one that was kept.
        stopped: "done", "early" (the held-out loss no longer fell) or "time".
        seconds: wall time of the steps.
        losses: (step, training loss).
        eval_losses: (step, held-out loss), step 0 before training.
        score_before, score_after: mean score of base and adapter on the held-out rows, or None.
        data: what the training data is like.
        parameters: number of trained weights.
    """

    name: str
    version: str
    folder: Path
    steps: int
    best_step: int
    stopped: Stopped
    seconds: float
    losses: tuple[tuple[int, float], ...]
    eval_losses: tuple[tuple[int, float], ...]
    score_before: float | None
    score_after: float | None
    data: DataSummary
    parameters: int


def train_adapter(
    base: LoraModel | str | Path,
    rows: Rows,
    out: str | Path,
    *,
    name: str,
    eval_rows: Rows | None = None,
    scorer: Scorer | None = None,
    recipe: Recipe | None = None,
    resume: bool = False,
    promote: bool = True,
    allow_leak: bool = False,
    max_seconds: float | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> TrainingReport:
    """Train an adapter and put it into a registry.

    Interrupted (Ctrl-C, a crash), it leaves its last complete checkpoint beside the registry; called again with
    ``resume=True`` and the same arguments, it goes on there, and ends bit for bit where it would have ended.

    Args:
        base: a folder, a name on the hub, or a loaded model (its files are loaded afresh for training).
        rows: training rows: a JSON Lines file, mappings, or ``TrainingRow``.
        out: folder of the registry.
        name: of the adapter.
        eval_rows: held-out rows, for loss, early stopping and score.
        scorer: ``scorer(given, wanted)`` in [0, 1] for one held-out answer.
        recipe: the settings; ``settings`` are put over it.
        resume: go on from the last checkpoint of an interrupted training, if there is one.
        promote: let the new version answer at once.
        allow_leak: accept evaluation rows that are training rows.
        max_seconds: stop after so long and keep what there is.
        device: "auto", "cpu", "cuda", ...
        progress: called with (steps done, steps in all).
        **settings: fields of ``Recipe``: r, lora_alpha, learning_rate, epochs, max_steps, batch_size, seed, ...

    Raises:
        DataError: for a row from which nothing, or not its end, could be learnt (file and line), and for leaks.
        ConfigError: for a wrong setting, or a checkpoint of another training.
        AdapterError: for a bad name, and when the loss is not a number.

    Example:
        >>> report = train_adapter("models/base", "qa.jsonl", "adapters", name="legal")  # doctest: +SKIP
        >>> report.folder  # doctest: +SKIP
        PosixPath('adapters/legal/1')
    """
    check_name(name)
    recipe = _merge(recipe, settings)
    train, held = as_rows(rows), [] if eval_rows is None else as_rows(eval_rows)
    if isinstance(base, LoraModel):
        label, device = str(base.base.folder), str(base.base.model.device)
    else:
        label = str(base)
    loaded = load_base(label, device=device, dtype="float32")
    length = min(recipe.max_length or loaded.context, loaded.context)
    ids, summary = check_rows(train, loaded.renderer, max_length=length, eval_rows=held)
    if not allow_leak:
        refuse_leak(summary)
    for place in summary.contradictions[:3]:
        logger.warning("%s contradicts an earlier row with the same prompt", place)
    eval_ids = check_rows(held, loaded.renderer, max_length=length)[0] if held else []
    prints = fingerprints(loaded.folder, loaded.tokenizer, loaded.renderer.template)
    data = _record(train, ids, held, eval_ids)
    work = Path(out) / f".training-{name}"
    tuned = tune(
        loaded,
        ids,
        eval_ids,
        recipe,
        work,
        identity=f"{prints.model_dump_json()} {data.model_dump_json()} {recipe!r}",
        resume=resume,
        max_seconds=max_seconds,
        progress=progress,
    )
    del loaded
    final = work / "final"
    with LoraModel.load(label, device=device) as model:
        model.load_adapter(name, final)
        probe = take_probe(model, name)
        before, after = _scores(model, name, held, scorer, recipe)
    manifest = Manifest(
        name=name,
        method=recipe.method,
        trained_at=datetime.now(UTC),
        base=label,
        fingerprints=prints,
        settings={k: v for k, v in asdict(recipe).items() if v is not None},
        data=data,
        metrics=_metrics(tuned, before, after),
        probe=probe,
    )

    def write(folder: Path) -> None:
        for file in final.iterdir():
            shutil.copy2(file, folder / file.name)
        CoverageIndex.fit([row.prompt.question for row in train]).save(folder / COVERAGE)

    version = Registry(out).add(manifest, write, promote=promote)
    shutil.rmtree(work, ignore_errors=True)
    return TrainingReport(
        name=name,
        version=version.version,
        folder=version.folder,
        steps=tuned.steps,
        best_step=tuned.best_step,
        stopped=tuned.stopped,
        seconds=tuned.seconds,
        losses=tuned.losses,
        eval_losses=tuned.eval_losses,
        score_before=before,
        score_after=after,
        data=summary,
        parameters=tuned.parameters,
    )


def _merge(recipe: Recipe | None, settings: Mapping[str, Any]) -> Recipe:
    known = {f: getattr(recipe, f) for f in Recipe.__dataclass_fields__} if recipe else {}
    unknown = set(settings) - set(Recipe.__dataclass_fields__)
    if unknown:
        raise ConfigError(
            f"unknown training settings {sorted(unknown)}; expected {', '.join(Recipe.__dataclass_fields__)}"
        )
    return Recipe(**{**known, **settings})


def _record(
    rows: Sequence[TrainingRow],
    ids: Sequence[TrainingIds],
    held: Sequence[TrainingRow],
    eval_ids: Sequence[TrainingIds],
) -> TrainedOn:
    passages = {p.id: digest(p.text.encode()) for row in rows for p in row.prompt.passages or ()}
    return TrainedOn(
        rows=len(rows),
        sha256=digest(repr([(r.ids, r.supervised) for r in ids]).encode()),
        eval_rows=len(held),
        eval_sha256=digest(repr([(r.ids, r.supervised) for r in eval_ids]).encode()) if held else None,
        passages=passages,
    )


def _scores(
    model: LoraModel,
    name: str,
    rows: Sequence[TrainingRow],
    scorer: Scorer | None,
    recipe: Recipe,
) -> tuple[float | None, float | None]:
    if scorer is None or not rows:
        return None, None
    longest = max(len(model.renderer.encode(row.answer)) for row in rows)
    means = []
    for adapter in (None, name):
        generator = model.generator(adapter, max_new_tokens=min(longest + 16, model.context // 2))
        given = generator.generate([row.prompt for row in rows])
        scores = [scorer(g.text, row.answer) for g, row in zip(given, rows, strict=True)]
        means.append(sum(scores) / len(scores))
    return means[0], means[1]


def _metrics(tuned: Tuned, before: float | None, after: float | None) -> dict[str, float]:
    metrics: dict[str, float | None] = {
        "loss": tuned.losses[-1][1] if tuned.losses else None,
        "eval_loss_before": tuned.eval_losses[0][1] if tuned.eval_losses else None,
        "eval_loss_after": tuned.eval_loss,
        "score_before": before,
        "score_after": after,
        "steps": tuned.steps,
        "seconds": round(tuned.seconds, 3),
    }
    return {k: float(v) for k, v in metrics.items() if v is not None}
