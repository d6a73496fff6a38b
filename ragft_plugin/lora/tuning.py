"""Tuning: transformers' Trainer on checked rows, resumable, and watched."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ragft_plugin.errors import AdapterError, ConfigError
from ragft_plugin.lora.base import Base
from ragft_plugin.lora.fingerprints import digest
from ragft_plugin.lora.manifest import write_json
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.lora.recipe import Recipe, default_learning_rate, linear_modules
from ragft_plugin.lora.rendering import IGNORED, TrainingIds

_STATE = "state.json"
_POOL = 16  # batches whose rows are sorted by length together


@dataclass(frozen=True, slots=True)
class Tuned:
    """What the loop did; the fields are those of ``TrainingReport``."""

    steps: int
    best_step: int
    stopped: Literal["done", "early", "time"]
    seconds: float
    losses: tuple[tuple[int, float], ...]
    eval_losses: tuple[tuple[int, float], ...]
    eval_loss: float | None
    parameters: int


def tune(
    base: Base,
    rows: Sequence[TrainingIds],
    eval_rows: Sequence[TrainingIds],
    recipe: Recipe,
    work: Path,
    *,
    identity: str,
    resume: bool,
    max_seconds: float | None,
    progress: Callable[[int, int], None] | None,
) -> Tuned:
    """Train, and leave the adapter in ``work / "final"``.

    Args:
        base: trained over, in float32; its model is wrapped and must not be used afterwards.
        rows: rendered training rows.
        eval_rows: rendered held-out rows; may be empty.
        recipe: the settings.
        work: holds the checkpoints while training.
        identity: what makes this training this training; a checkpoint of another is refused.
        resume: go on from a checkpoint in ``work``.
        max_seconds: stop after so long.
        progress: called with (steps done, steps in all).
    """
    identity = digest(identity.encode())
    checkpoint = _prepare(work, identity, resume)
    steps = recipe.steps(len(rows))
    look = recipe.eval_every or max(1, steps // 10)
    with _seeded(recipe.seed):
        with quiet():
            model: Any = get_peft_model(base.model, _lora(base.model, recipe))
        watch = _Watch(steps, max_seconds, progress, recipe)
        callbacks: list[Any] = [watch]
        if recipe.patience is not None and eval_rows:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=recipe.patience))
        with quiet():
            trainer: Any = Trainer(
                model=model,
                args=_arguments(recipe, base, work, steps, look, bool(eval_rows)),
                train_dataset=_Rows(arranged(rows, recipe, steps)),
                eval_dataset=_Rows(eval_rows) if eval_rows else None,
                data_collator=_Collator(base.tokenizer.pad_token_id or base.renderer.end_ids[0]),
                callbacks=callbacks,
            )
            trainer.remove_callback(PrinterCallback)
            before = _state(work).get("eval_loss_before")
            if eval_rows and before is None:
                before = float(trainer.evaluate()["eval_loss"])
                write_json(work / _STATE, {"identity": identity, "eval_loss_before": before})
            started = time.perf_counter()
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            seconds = time.perf_counter() - started
            after = float(trainer.evaluate()["eval_loss"]) if eval_rows else None
            _save(model, work / "final")
    history = trainer.state.log_history
    done = int(trainer.state.global_step)
    best = trainer.state.best_model_checkpoint
    eval_losses = [] if before is None else [(0, float(before))]
    eval_losses += [(int(h["step"]), float(h["eval_loss"])) for h in history if h["step"] > 0 and "eval_loss" in h]
    return Tuned(
        steps=done,
        best_step=int(Path(best).name.rpartition("-")[2]) if best and eval_rows else done,
        stopped="time" if watch.timed_out else "done" if done >= steps else "early",
        seconds=seconds,
        losses=tuple((int(h["step"]), float(h["loss"])) for h in history if "loss" in h),
        eval_losses=tuple(dict(eval_losses).items()),
        eval_loss=after,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


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


def _lora(model: Any, recipe: Recipe) -> LoraConfig:
    targets: Any = recipe.target_modules
    targets = linear_modules(model) if targets == "all-linear" else targets
    settings = {
        "r": recipe.r,
        "lora_alpha": 2 * recipe.r if recipe.lora_alpha is None else recipe.lora_alpha,
        "lora_dropout": recipe.lora_dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "task_type": "CAUSAL_LM",
        **recipe.lora,
    }
    try:
        return LoraConfig(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"PEFT refuses the settings: {error}") from error


def _arguments(recipe: Recipe, base: Base, work: Path, steps: int, look: int, evaluates: bool) -> TrainingArguments:
    cpu = base.model.device.type == "cpu"
    hidden = base.model.config.get_text_config().hidden_size
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=recipe.batch_size // recipe.gradient_accumulation,
        per_device_eval_batch_size=max(8, recipe.batch_size),
        gradient_accumulation_steps=recipe.gradient_accumulation,
        learning_rate=recipe.learning_rate or default_learning_rate(hidden),
        max_steps=steps,
        lr_scheduler_type="linear",
        warmup_steps=int(recipe.warmup * steps),
        max_grad_norm=recipe.max_grad_norm,
        weight_decay=0.0,
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=cpu,
        bf16=recipe.bf16,
        fp16=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=look,
        save_strategy="steps",
        save_steps=look,
        save_total_limit=2,
        load_best_model_at_end=evaluates,
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False if evaluates else None,
        train_sampling_strategy="sequential",  # `arranged` has shuffled them
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not a number must be seen
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not cpu,
        label_names=["labels"],
    )


class _Rows(torch.utils.data.Dataset[TrainingIds]):
    def __init__(self, rows: Sequence[TrainingIds]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TrainingIds:
        return self._rows[index]


class _Collator:
    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, rows: Sequence[TrainingIds]) -> dict[str, torch.Tensor]:
        width = max(len(row.ids) for row in rows)
        missing = [width - len(row.ids) for row in rows]
        pairs = list(zip(rows, missing, strict=True))
        return {
            "input_ids": torch.tensor([r.ids + [self._pad_id] * m for r, m in pairs]),
            "labels": torch.tensor([r.labels + [IGNORED] * m for r, m in pairs]),
            "attention_mask": torch.tensor([[1] * len(r.ids) + [0] * m for r, m in pairs]),
        }


class _Watch(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Reports progress, keeps time, and stops a training that has gone wrong."""

    def __init__(
        self,
        steps: int,
        max_seconds: float | None,
        progress: Callable[[int, int], None] | None,
        recipe: Recipe,
    ) -> None:
        self.timed_out = False
        self._steps = steps
        self._end = None if max_seconds is None else time.monotonic() + max_seconds
        self._progress = progress
        self._recipe = recipe

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._progress is not None:
            self._progress(state.global_step, self._steps)
        if self._end is not None and time.monotonic() >= self._end:
            self.timed_out = state.global_step < self._steps
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        check_loss(logs or {}, step=state.global_step, learning_rate=args.learning_rate)


def check_loss(logs: Mapping[str, Any], *, step: int, learning_rate: float) -> None:
    """Stop a training from which nothing good can come.

    Args:
        logs: what the Trainer logs, with ``loss``, ``grad_norm`` or ``eval_loss``.
        step: optimiser steps so far.
        learning_rate: named in the message.

    Raises:
        AdapterError: if a loss is not a number, or nothing is learnt from.
    """
    for name in ("loss", "grad_norm", "eval_loss"):
        value = logs.get(name)
        if value is not None and not math.isfinite(value):
            raise AdapterError(
                f"{name} is {value} after step {step}; lower learning_rate (it is {learning_rate:g}), lower "
                "max_grad_norm, or train in float32. The last checkpoint before it is kept"
            )
    if logs.get("loss") == 0.0 and logs.get("grad_norm") == 0.0:
        raise AdapterError(
            f"loss and gradient are exactly 0 at step {step}, so nothing is learnt; check with a preview that the "
            "rows have answer tokens that are not masked, and that target_modules names layers the base uses"
        )


def _save(model: Any, folder: Path) -> None:
    model.save_pretrained(str(folder), save_embedding_layers=False)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # PEFT keeps the targets as a set; sorted, the same training gives the same file.
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    write_json(path, config)


def _prepare(work: Path, identity: str, resume: bool) -> Path | None:
    """Make the working folder; the newest complete checkpoint in it if one is to be resumed."""
    checkpoint = None
    if resume and work.is_dir():
        found = _state(work).get("identity")
        if found is not None and found != identity:
            raise ConfigError(
                f"{work} holds a training with another base, other data or other settings; call it with the same, or "
                "without resume to start over"
            )
        numbered = sorted(work.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
        checkpoint = next((p for p in reversed(numbered) if _complete(p)), None)
    if checkpoint is None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_json(work / _STATE, {"identity": identity})
    return checkpoint


def _state(work: Path) -> dict[str, Any]:
    try:
        state = json.loads((work / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end; the Trainer writes its state last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((checkpoint / f).is_file() for f in ("adapter_model.safetensors", "optimizer.pt"))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed what the Trainer draws from, and give the caller its own random state back."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - transformers draws there
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
