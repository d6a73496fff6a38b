"""Tuning: transformers' Trainer on checked rows, resumable, and watched."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

from ragft_plugin.errors import ConfigError, MissingExtraError
from ragft_plugin.lora.base import Base
from ragft_plugin.lora.batches import Collator, Rows, arranged
from ragft_plugin.lora.fingerprints import digest
from ragft_plugin.lora.manifest import write_json
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.lora.recipe import Recipe
from ragft_plugin.lora.rendering import TrainingIds
from ragft_plugin.lora.trainable import make_trainable, save_trained
from ragft_plugin.lora.watch import Watch

FINAL = "final"  # folder of the result, inside the folder of the training
_STATE, _DONE = "state.json", "done.json"


@dataclass(frozen=True, slots=True)
class Tuned:
    """What the loop did.

    Attributes:
        steps, best_step: optimiser steps made, and the one that was kept.
        stopped: "done", "early" (the held-out loss no longer fell) or "time".
        seconds: wall time of the steps, since the last resumption.
        losses, eval_losses: (step, loss).
        eval_loss: held-out loss of what was kept.
        parameters: number of trained weights.
    """

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
    tensorboard: Path | None = None,
) -> Tuned:
    """Train, and leave the result in ``work / FINAL``.

    The loop is transformers' Trainer, which TRL's SFTTrainer is too: with rows that are rendered and masked already
    the two make the same steps (tested), and this one needs no further packages.

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
        tensorboard: folder for TensorBoard's event files.
    """
    identity = digest(identity.encode())
    checkpoint = _prepare(work, identity, resume)
    if (work / _DONE).is_file():
        return _read_done(work)
    steps = recipe.steps(len(rows))
    look = recipe.eval_every or max(1, steps // 10)
    with _seeded(recipe.seed):
        model = make_trainable(base, recipe, work)
        watch = Watch(steps, max_seconds, progress)
        callbacks: list[Any] = [watch, *_tensorboard(tensorboard)]
        if recipe.patience is not None and eval_rows:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=recipe.patience))
        with quiet():
            trainer: Any = Trainer(
                model=model,
                args=_arguments(recipe, base, work, steps, look, bool(eval_rows)),
                train_dataset=Rows(arranged(rows, recipe, steps)),
                eval_dataset=Rows(eval_rows) if eval_rows else None,
                data_collator=Collator(base.tokenizer.pad_token_id or base.renderer.end_ids[0]),
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
            save_trained(model, recipe, work, work / FINAL)
    history = trainer.state.log_history
    done = int(trainer.state.global_step)
    best = trainer.state.best_model_checkpoint
    eval_losses = [] if before is None else [(0, float(before))]
    eval_losses += [(int(h["step"]), float(h["eval_loss"])) for h in history if h["step"] > 0 and "eval_loss" in h]
    tuned = Tuned(
        steps=done,
        best_step=int(Path(best).name.rpartition("-")[2]) if best and eval_rows else done,
        stopped="time" if watch.timed_out else "done" if done >= steps else "early",
        seconds=seconds,
        losses=tuple((int(h["step"]), float(h["loss"])) for h in history if "loss" in h),
        eval_losses=tuple(dict(eval_losses).items()),
        eval_loss=after,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
    write_json(work / _DONE, asdict(tuned))
    return tuned


def _arguments(recipe: Recipe, base: Base, work: Path, steps: int, look: int, evaluates: bool) -> TrainingArguments:
    cpu = base.model.device.type == "cpu"
    hidden = base.model.config.get_text_config().hidden_size
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=recipe.batch_size // recipe.gradient_accumulation,
        per_device_eval_batch_size=max(8, recipe.batch_size),
        gradient_accumulation_steps=recipe.gradient_accumulation,
        learning_rate=recipe.rate(hidden),
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
        if found is not None and (work / _DONE).is_file():
            return checkpoint
    if checkpoint is None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_json(work / _STATE, {"identity": identity})
    return checkpoint


def _read_done(work: Path) -> Tuned:
    """A training that had ended when something after it failed, or its result was refused."""
    done = json.loads((work / _DONE).read_text(encoding="utf-8"))
    curves = {name: tuple((int(step), float(loss)) for step, loss in done[name]) for name in ("losses", "eval_losses")}
    return Tuned(**{**done, **curves})


def _tensorboard(folder: Path | None) -> list[Any]:
    if folder is None:
        return []
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "train") from error
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(log_dir=str(folder)))]


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
    weights = any((checkpoint / f).is_file() for f in ("adapter_model.safetensors", "model.safetensors"))
    return weights and (checkpoint / "optimizer.pt").is_file()


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
