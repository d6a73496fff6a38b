"""Batches: in which order rows are seen, and how rows of different lengths become one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ragft_plugin.lora.recipe import Recipe
from ragft_plugin.lora.rendering import IGNORED, TrainingIds

_POOL = 16  # batches whose rows are sorted by length together


def arranged(rows: Sequence[TrainingIds], recipe: Recipe, steps: int) -> list[TrainingIds]:
    """The rows of all steps, in order: shuffled every epoch, rows of like length in one batch.

    Padding costs as much as text. The order is a function of the seed alone, so that a resumed training sees the
    rows which a straight one would have seen.
    """
    rng = np.random.default_rng(recipe.seed)
    size = recipe.batch_size
    batches: list[list[TrainingIds]] = []
    while len(batches) < steps:
        order = [rows[i] for i in rng.permutation(len(rows))]
        epoch: list[list[TrainingIds]] = []
        for start in range(0, len(order), size * _POOL):
            pool = sorted(order[start : start + size * _POOL], key=lambda row: len(row.ids))
            epoch += [pool[i : i + size] for i in range(0, len(pool), size)]
        batches += [epoch[i] for i in rng.permutation(len(epoch))]
    # The Trainer cuts the list into batches of ``size``; a short batch is filled up from the beginning.
    full = [batch + [rows[i % len(rows)] for i in range(size - len(batch))] for batch in batches[:steps]]
    return [row for batch in full for row in batch]


class Rows(torch.utils.data.Dataset[TrainingIds]):
    """Rendered rows as the Trainer takes them."""

    def __init__(self, rows: Sequence[TrainingIds]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TrainingIds:
        return self._rows[index]


class Collator:
    """Pads rows to the longest of them; padding is neither read nor learnt, whatever its token is.

    Args:
        pad_id: token to pad with. It may be the end token: labels are masked by place, not by token.
    """

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, rows: Sequence[TrainingIds]) -> dict[str, torch.Tensor]:
        """Ids, labels and mask, each of shape (rows, longest)."""
        width = max(len(row.ids) for row in rows)
        missing = [width - len(row.ids) for row in rows]
        pairs = list(zip(rows, missing, strict=True))
        return {
            "input_ids": torch.tensor([r.ids + [self._pad_id] * m for r, m in pairs]),
            "labels": torch.tensor([r.labels + [IGNORED] * m for r, m in pairs]),
            "attention_mask": torch.tensor([[1] * len(r.ids) + [0] * m for r, m in pairs]),
        }
