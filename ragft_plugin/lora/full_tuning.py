"""Full fine-tuning: the weights of the base itself, or those above the first layers.

What comes out is another base, not an adapter: a folder that ``LoraModel.load``, ragft.yaml's ``base`` and every
other tool for Hugging Face models take. Adapters of the old base are refused on it, as its fingerprint is another.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from ragft_plugin.errors import AdapterError, ConfigError
from ragft_plugin.lora.ability import Ability, warn_of_forgetting
from ragft_plugin.lora.card import write_card
from ragft_plugin.lora.data import as_rows
from ragft_plugin.lora.manifest import MANIFEST, Manifest, write_json
from ragft_plugin.lora.model import LoraModel
from ragft_plugin.lora.preparation import Rows, merge, prepare
from ragft_plugin.lora.recipe import Recipe
from ragft_plugin.lora.scoring import Comparison, Scorer, require_gain, score_rows
from ragft_plugin.lora.training import FEW_SHOT, TrainingReport, compare, training_metrics
from ragft_plugin.lora.tuning import FINAL, tune


def train_base(
    base: LoraModel | str | Path,
    rows: Rows,
    out: str | Path,
    *,
    eval_rows: Rows | None = None,
    scorer: Scorer | None = None,
    recipe: Recipe | None = None,
    few_shot: int = FEW_SHOT,
    keep_anyway: bool = False,
    ability_rows: Rows | None = None,
    resume: bool = False,
    allow_leak: bool = False,
    max_seconds: float | None = None,
    device: str = "auto",
    licence: str | None = None,
    tensorboard: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> TrainingReport:
    """Fine-tune all weights of a base, or those above the first ``freeze`` layers, and write a new base.

    Args:
        base: a folder, a name on the hub, or a loaded model (its files are loaded afresh for training).
        rows: training rows.
        out: folder of the new base; there must be none yet.
        eval_rows: held-out rows, as all that follows to ``progress`` as in ``train_adapter``.
        scorer: scores a held-out answer.
        recipe: the settings; ``settings`` are put over it. The method is "full".
        few_shot: examples in the prompt of the baseline.
        keep_anyway: keep the new base even if it does not beat the baselines.
        ability_rows: questions that have nothing to do with the task; None measures no forgetting.
        resume: go on from the last checkpoint.
        allow_leak: accept evaluation rows that are training rows.
        max_seconds: stop after so long.
        device: "auto", "cpu", "cuda", ...
        licence: of the new base, for its card.
        tensorboard: folder for event files.
        progress: called with (steps done, steps in all).
        **settings: fields of ``Recipe``; ``freeze`` says how many layers keep their weights.

    Returns:
        the report; its version is empty, its folder the new base, with a manifest that names the old one.

    Raises:
        AdapterError: if there is something at ``out`` already, and as ``train_adapter``.

    Example:
        >>> train_base("models/base", "qa.jsonl", "models/legal", freeze=6)  # doctest: +SKIP
    """
    target = Path(out)
    if target.exists():
        raise AdapterError(f"{target} is there already; name a folder that is not, or remove it first")
    recipe = merge(recipe, {**settings, "method": "full"})
    ready = prepare(base, rows, recipe, eval_rows=eval_rows, allow_leak=allow_leak, device=device)
    if recipe.patience is not None and not ready.held:
        raise ConfigError("patience needs held-out rows to look at; pass eval_rows, or leave patience out")
    work = target.with_name(f".training-{target.name}")
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
    ready.base.tokenizer.save_pretrained(final)
    ready = replace(ready, base=replace(ready.base, model=None))
    probes = as_rows(ability_rows) if ability_rows is not None and scorer is not None else []
    with LoraModel.load(ready.label, device=device) as old:
        before = compare(old, None, ready, scorer, few_shot=few_shot, seed=recipe.seed)
        could = score_rows(old, None, probes, scorer) if probes and scorer else ()
    comparison, ability = before, None
    if scorer is not None and (before is not None or probes):
        with LoraModel.load(final, device=device) as new:
            if before is not None:
                comparison = replace(before, adapter=score_rows(new, None, ready.held, scorer))
            if could:
                ability = Ability(could, score_rows(new, None, probes, scorer), chosen=False)
                warn_of_forgetting(ability, target.name)
    if comparison is not None and not keep_anyway:
        require_gain(comparison, trained=final)
    manifest = Manifest(
        name=target.name,
        method="full",
        trained_at=datetime.now(UTC),
        base=ready.label,
        fingerprints=ready.prints,
        settings={k: v for k, v in asdict(recipe).items() if v is not None},
        data=ready.data,
        metrics=training_metrics(tuned, comparison, ability),
    )
    write_json(final / MANIFEST, manifest.model_dump(mode="json"))
    write_card(final, manifest, ready.summary, tuned, licence=licence)
    os.rename(final, target)
    shutil.rmtree(work, ignore_errors=True)
    return _report(target, tuned=tuned, comparison=comparison, ability=ability, summary=ready.summary)


def _report(
    folder: Path, *, tuned: Any, comparison: Comparison | None, ability: Ability | None, summary: Any
) -> TrainingReport:
    return TrainingReport(
        name=folder.name,
        version="",
        folder=folder,
        steps=tuned.steps,
        best_step=tuned.best_step,
        stopped=tuned.stopped,
        seconds=tuned.seconds,
        losses=tuned.losses,
        eval_losses=tuned.eval_losses,
        score_before=None if comparison is None else fmean(comparison.base),
        score_after=None if comparison is None else fmean(comparison.adapter),
        data=summary,
        parameters=tuned.parameters,
        comparison=comparison,
        ability=ability,
    )
