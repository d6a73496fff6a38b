"""Training: supervised fine-tuning of an adapter, from checked rows to a version in the registry.

The loop is transformers' Trainer. Around it stands what it leaves to its user: data that is checked before the first
step, a loss on answers alone, a stop when the loss is not a number, runs that go on where they were interrupted, a
score taken by the very code that will serve the adapter, and a refusal to keep what examples in the prompt do as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from ragft_plugin.errors import ConfigError
from ragft_plugin.lora.ability import Ability, answered_already, warn_of_forgetting
from ragft_plugin.lora.card import write_card
from ragft_plugin.lora.checks import DataSummary
from ragft_plugin.lora.coverage import CoverageIndex
from ragft_plugin.lora.data import TrainingRow, as_rows
from ragft_plugin.lora.manifest import COVERAGE, Manifest
from ragft_plugin.lora.model import LoraModel
from ragft_plugin.lora.names import check_name
from ragft_plugin.lora.preparation import Prepared, merge, prepare
from ragft_plugin.lora.preparation import Rows as Rows
from ragft_plugin.lora.probes import take_probe
from ragft_plugin.lora.recipe import Recipe
from ragft_plugin.lora.registry import Registry
from ragft_plugin.lora.scoring import (
    Comparison,
    Scorer,
    answer_room,
    few_shot_prompts,
    pick_examples,
    require_gain,
    score_rows,
)
from ragft_plugin.lora.tuning import FINAL, Tuned, tune

Stopped = Literal["done", "early", "time"]
FEW_SHOT = 4  # examples in the prompt of the baseline


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
        comparison: scores of base, base with examples, and adapter, row by row; None without a scorer.
        ability: scores on what the base could do before; None if there was nothing to ask.
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
    comparison: Comparison | None = None
    ability: Ability | None = None


def train_adapter(
    base: LoraModel | str | Path,
    rows: Rows,
    out: str | Path,
    *,
    name: str,
    eval_rows: Rows | None = None,
    scorer: Scorer | None = None,
    recipe: Recipe | None = None,
    few_shot: int = FEW_SHOT,
    keep_anyway: bool = False,
    ability_rows: Rows | None = None,
    resume: bool = False,
    promote: bool = True,
    allow_leak: bool = False,
    max_seconds: float | None = None,
    device: str = "auto",
    licence: str | None = None,
    tensorboard: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> TrainingReport:
    """Train an adapter and put it into a registry.

    Interrupted (Ctrl-C, a crash), it leaves its last complete checkpoint beside the registry; called again with
    ``resume=True`` and the same arguments, it goes on there, and ends bit for bit where it would have ended.

    With held-out rows and a scorer, the adapter is kept only if its mean score is above that of the base, and above
    that of the base with examples in its prompt, which cost no training. A refused adapter stays where checkpoints
    are: ``resume=True, keep_anyway=True`` keeps it without training again.

    Args:
        base: a folder, a name on the hub, or a loaded model (its files are loaded afresh for training).
        rows: training rows: a file (see ``read_rows``), mappings, or ``TrainingRow``.
        out: folder of the registry.
        name: of the adapter.
        eval_rows: held-out rows, for loss, early stopping, best checkpoint and score.
        scorer: ``scorer(given, wanted)`` in [0, 1] for one held-out answer.
        recipe: the settings; ``settings`` are put over it.
        few_shot: examples in the prompt of the baseline; 0 leaves it out.
        keep_anyway: keep the adapter even if it does not beat the baselines.
        ability_rows: questions that have nothing to do with the task, to see what is forgotten; None takes those
            held-out rows that the base answers right.
        resume: go on from the last checkpoint of an interrupted training, if there is one.
        promote: let the new version answer at once.
        allow_leak: accept evaluation rows that are training rows.
        max_seconds: stop after so long and keep what there is.
        device: "auto", "cpu", "cuda", ...
        licence: of the adapter, for its card, such as "apache-2.0".
        tensorboard: folder for TensorBoard's event files.
        progress: called with (steps done, steps in all).
        **settings: fields of ``Recipe``: method, r, lora_alpha, learning_rate, epochs, max_steps, freeze, seed, ...

    Raises:
        DataError: for rows from which nothing, or not their end, could be learnt (file and line), and for leaks.
        ConfigError: for a wrong setting, or a checkpoint of another training.
        AdapterError: for a bad name, when the loss is not a number, and when a baseline is not beaten.

    Example:
        >>> report = train_adapter("models/base", "qa.jsonl", "adapters", name="legal")  # doctest: +SKIP
        >>> report.folder  # doctest: +SKIP
        PosixPath('adapters/legal/1')
    """
    check_name(name)
    recipe = merge(recipe, settings)
    if recipe.method == "full":
        raise ConfigError("full fine-tuning changes the base itself and makes no adapter; use train_base")
    if recipe.patience is not None and eval_rows is None:
        raise ConfigError("patience needs held-out rows to look at; pass eval_rows, or leave patience out")
    ready = prepare(base, rows, recipe, eval_rows=eval_rows, allow_leak=allow_leak, device=device)
    work = Path(out) / f".training-{name}"
    tuned = tune(
        ready.base,
        ready.ids,
        ready.held_ids,
        recipe,
        work,
        identity=ready.identity(recipe),
        resume=resume,
        max_seconds=max_seconds,
        progress=progress,
        tensorboard=None if tensorboard is None else Path(tensorboard),
    )
    final, device = work / FINAL, str(ready.base.model.device)
    ready = replace(ready, base=replace(ready.base, model=None))  # its memory is wanted for the model that answers
    with LoraModel.load(ready.label, device=device) as model:
        model.load_adapter(name, final)
        probe = take_probe(model, name)
        comparison = compare(model, name, ready, scorer, few_shot=few_shot, seed=recipe.seed)
        probes = as_rows(ability_rows) if ability_rows is not None else None
        ability = measure_ability(model, name, probes, ready.held, comparison, scorer)
    if ability is not None:
        warn_of_forgetting(ability, name)
    if comparison is not None and not keep_anyway:
        require_gain(comparison, trained=final)
    manifest = Manifest(
        name=name,
        method=recipe.method,
        trained_at=datetime.now(UTC),
        base=ready.label,
        fingerprints=ready.prints,
        settings={k: v for k, v in asdict(recipe).items() if v is not None},
        data=ready.data,
        metrics=training_metrics(tuned, comparison, ability),
        probe=probe,
    )

    def write(folder: Path) -> None:
        for file in final.iterdir():
            shutil.copy2(file, folder / file.name)
        CoverageIndex.fit([row.prompt.question for row in ready.rows]).save(folder / COVERAGE)
        write_card(folder, manifest, ready.summary, tuned, licence=licence)

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
        score_before=None if comparison is None else fmean(comparison.base),
        score_after=None if comparison is None else fmean(comparison.adapter),
        data=ready.summary,
        parameters=tuned.parameters,
        comparison=comparison,
        ability=ability,
    )


def compare(
    model: LoraModel, adapter: str | None, ready: Prepared, scorer: Scorer | None, *, few_shot: int, seed: int
) -> Comparison | None:
    """Score base, base with examples and adapter on the held-out rows; None without rows or scorer."""
    if scorer is None or not ready.held:
        return None
    examples = pick_examples(ready.rows, few_shot, seed=seed)
    shown: tuple[float, ...] = ()
    if examples:
        room = model.context - answer_room(model, ready.held)
        prompts = few_shot_prompts([r.prompt for r in ready.held], examples, model.renderer, room=room)
        shown = score_rows(model, None, ready.held, scorer, prompts=prompts)
    return Comparison(
        base=score_rows(model, None, ready.held, scorer),
        adapter=score_rows(model, adapter, ready.held, scorer),
        few_shot=shown,
        examples=len(examples),
    )


def measure_ability(
    model: LoraModel,
    adapter: str,
    rows: Sequence[TrainingRow] | None,
    held: Sequence[TrainingRow],
    comparison: Comparison | None,
    scorer: Scorer | None,
) -> Ability | None:
    """Ask the probe set before and after; None if there is none, or nothing to score it by."""
    if scorer is None:
        return None
    if rows is None:
        chosen = answered_already(held, comparison.base) if comparison else []
        if not chosen:
            return None
        after = score_rows(model, adapter, chosen, scorer)
        return Ability((1.0,) * len(chosen), after, chosen=True)
    return Ability(score_rows(model, None, rows, scorer), score_rows(model, adapter, rows, scorer), chosen=False)


def training_metrics(tuned: Tuned, comparison: Comparison | None, ability: Ability | None) -> dict[str, float]:
    """Losses, scores, steps and seconds, as the manifest keeps them."""
    metrics: dict[str, float | None] = {
        "loss": tuned.losses[-1][1] if tuned.losses else None,
        "eval_loss_before": tuned.eval_losses[0][1] if tuned.eval_losses else None,
        "eval_loss_after": tuned.eval_loss,
        "steps": tuned.steps,
        "seconds": round(tuned.seconds, 3),
        **(comparison.metrics() if comparison else {}),
        **(ability.metrics() if ability else {}),
    }
    return {k: float(v) for k, v in metrics.items() if v is not None}
