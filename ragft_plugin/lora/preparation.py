"""Preparation: settings merged, rows checked and rendered, the base loaded; all that comes before the first step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragft_plugin.errors import ConfigError
from ragft_plugin.lora.base import Base, load_base
from ragft_plugin.lora.checks import DataSummary, check_rows, refuse_leak
from ragft_plugin.lora.data import TrainingRow, as_rows
from ragft_plugin.lora.fingerprints import Fingerprints, digest, fingerprints
from ragft_plugin.lora.manifest import TrainedOn
from ragft_plugin.lora.model import LoraModel
from ragft_plugin.lora.recipe import Recipe
from ragft_plugin.lora.rendering import TrainingIds

Rows = str | Path | Iterable[TrainingRow | Mapping[str, Any]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Checked rows, rendered for a base that is loaded for training.

    Attributes:
        base: the base, in float32 or, for qlora, in 4 bits.
        label: the base as it was named.
        rows, held: training and held-out rows; ``ids`` and ``held_ids`` are the same, rendered.
        summary: what the training rows are like.
        prints: fingerprints of base, tokenizer and template.
        data: the record for the manifest.
    """

    base: Base
    label: str
    rows: list[TrainingRow]
    held: list[TrainingRow]
    ids: list[TrainingIds]
    held_ids: list[TrainingIds]
    summary: DataSummary
    prints: Fingerprints
    data: TrainedOn

    def identity(self, recipe: Recipe) -> str:
        """What makes a training this training."""
        return f"{self.prints.model_dump_json()} {self.data.model_dump_json()} {recipe!r}"


def prepare(
    base: LoraModel | str | Path,
    rows: Rows,
    recipe: Recipe,
    *,
    eval_rows: Rows | None = None,
    allow_leak: bool = False,
    device: str = "auto",
) -> Prepared:
    """Load a base for training, and check and render the rows for it; arguments as in ``train_adapter``."""
    train, held = as_rows(rows), [] if eval_rows is None else as_rows(eval_rows)
    if isinstance(base, LoraModel):
        label, device = str(base.base.folder), str(base.base.model.device)
    else:
        label = str(base)
    if recipe.method == "qlora":
        from ragft_plugin.lora.quantized import load_quantized

        loaded = load_quantized(label, device=device)
    else:
        loaded = load_base(label, device=device, dtype="float32")
    length = min(recipe.max_length or loaded.context, loaded.context)
    ids, summary = check_rows(train, loaded.renderer, max_length=length, eval_rows=held)
    if not allow_leak:
        refuse_leak(summary)
    for place in summary.contradictions[:3]:
        logger.warning("%s contradicts an earlier row with the same prompt", place)
    held_ids = check_rows(held, loaded.renderer, max_length=length)[0] if held else []
    prints = fingerprints(loaded.folder, loaded.tokenizer, loaded.renderer.template)
    data = _record(train, ids, held, held_ids)
    return Prepared(loaded, label, train, held, ids, held_ids, summary, prints, data)


def merge(recipe: Recipe | None, settings: Mapping[str, Any]) -> Recipe:
    """A recipe with settings put over it.

    Raises:
        ConfigError: for a setting that a recipe does not have.
    """
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
