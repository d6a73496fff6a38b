"""Preference tuning: of two answers to a prompt, make the chosen one likelier than the rejected one.

    loss = - log sigmoid( beta * [ log p(chosen)/p0(chosen) - log p(rejected)/p0(rejected) ] )

p is the adapter, p0 the reference: the base, or the adapter that training starts from. The loop is TRL's DPOTrainer.

Source: Rafailov et al., "Direct Preference Optimization", 2023.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.lora.base import load_base
from ragft_plugin.lora.data import parse_row
from ragft_plugin.lora.model import LoraModel
from ragft_plugin.lora.names import check_name
from ragft_plugin.lora.policy import (
    PolicyReport,
    common_arguments,
    need_trl,
    numbers,
    pad_id,
    quiet_trl,
    settings_of,
    start_policy,
    trained_on,
)
from ragft_plugin.lora.publication import Origin, publish
from ragft_plugin.lora.recipe import Recipe
from ragft_plugin.lora.registry import current_version
from ragft_plugin.lora.rendering import Renderer
from ragft_plugin.lora.trainable import save_trained
from ragft_plugin.lora.tuning import _seeded as seeded
from ragft_plugin.lora.watch import Watch
from ragft_plugin.types import Prompt


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with a better and a worse answer.

    Attributes:
        prompt: the question, with passages or without.
        chosen, rejected: the better and the worse answer.
        path, line: where it stands, if it came from a file.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    path: str | None = None
    line: int | None = None


Preferences = str | Path | Iterable[Preference | Mapping[str, Any]]


def as_preferences(rows: Preferences) -> list[Preference]:
    """Preferences from a JSON Lines file, from mappings, or as they are.

    A mapping has ``question`` or ``prompt``, ``chosen`` and ``rejected``, and perhaps ``passages``; prompt and answers
    may be lists of messages, as TRL has them.

    Raises:
        DataError: with file and line, if something is wrong.
    """
    if not isinstance(rows, str | Path):
        return [r if isinstance(r, Preference) else _parse(r, "row", n) for n, r in enumerate(rows, 1)]
    name = str(rows)
    found = []
    try:
        for number, line in enumerate(Path(rows).read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise DataError(f"not JSON: {error}", path=name, line=number) from None
                found.append(_parse(record, name, number))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", path=name) from None
    return found


def train_preference(
    base: LoraModel | str | Path,
    rows: Preferences,
    out: str | Path,
    *,
    name: str,
    eval_rows: Preferences | None = None,
    start: str | Path | None = None,
    beta: float = 0.1,
    recipe: Recipe | None = None,
    promote: bool = True,
    allow_leak: bool = False,
    max_seconds: float | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> PolicyReport:
    """Tune an adapter by preference and put it into a registry.

    The report's figures, before and after, are means over the held-out rows of what the served adapter says:
    ``accuracy`` (the chosen answer is likelier than the rejected one) and ``margin`` (by how many nats).

    Args:
        base: a folder, a name on the hub, or a loaded model (its files are loaded afresh for training).
        rows: a JSON Lines file, mappings, or ``Preference``.
        out: folder of the registry.
        name: of the adapter.
        eval_rows: held-out rows.
        start: folder of an adapter to start from, which is then the reference too; None starts a new one.
        beta: how strongly the adapter is held to the reference; higher is closer.
        recipe: the settings. Without a learning rate it is a tenth of supervised tuning's.
        promote: let the new version answer at once.
        allow_leak: accept evaluation prompts that are training prompts.
        max_seconds: stop after so long and keep what there is.
        device: "auto", "cpu", "cuda", ...
        progress: called with (steps done, steps in all).

    Raises:
        DataError: for rows without a difference, too long ones, and leaks.
        ConfigError: for a wrong setting.
        MissingExtraError: if TRL is not installed.
    """
    check_name(name)
    if not beta > 0:
        raise ConfigError(f"beta must be above 0, got {beta}")
    recipe = recipe or Recipe(epochs=1.0)
    train, held = as_preferences(rows), [] if eval_rows is None else as_preferences(eval_rows)
    _check(train, held, allow_leak)
    if isinstance(base, LoraModel):
        label, device = str(base.base.folder), str(base.base.model.device)
    else:
        label = str(base)
    loaded = load_base(label, device=device, dtype="float32")
    origin = Origin.of(loaded, label, None if start is None else current_version(Path(start)))
    length = min(recipe.max_length or loaded.context, loaded.context)
    rendered = [_render(row, loaded.renderer, length) for row in train]
    for row in held:
        _render(row, loaded.renderer, length)
    work = Path(out) / f".training-{name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    steps = recipe.steps(len(rendered))
    watch = Watch(steps, max_seconds, progress)
    pad_id(loaded)
    with seeded(recipe.seed), quiet_trl():
        trainer = need_trl(lambda: _trainer_class())(
            model=start_policy(loaded, recipe, origin, work),
            args=_config(
                beta=beta,
                per_device_train_batch_size=recipe.batch_size // recipe.gradient_accumulation,
                max_length=None,  # checked above; TRL would cut answers off
                **common_arguments(loaded, recipe, work, steps),
            ),
            train_dataset=_dataset(rendered),
            processing_class=loaded.tokenizer,
            callbacks=[watch],
        )
        _silence(trainer)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        model = trainer.model
        if "ref" in model.peft_config:
            model.delete_adapter("ref")
        save_trained(model, recipe, work, work / "final")
    data = trained_on(train, held, rendered)
    done = int(trainer.state.global_step)
    version, before, after = publish(
        origin,
        work / "final",
        out,
        name=name,
        method="dpo" if recipe.method == "lora" else f"dpo+{recipe.method}",
        settings=settings_of(recipe, beta=beta, start=None if start is None else str(start)),
        data=data,
        metrics={"steps": float(done), "seconds": round(seconds, 3)},
        measure=lambda served, adapter: preference_figures(served, adapter, held),
        questions=[row.prompt.question for row in train],
        promote=promote,
    )
    shutil.rmtree(work, ignore_errors=True)
    history = tuple(numbers(h) for h in trainer.state.log_history)
    return PolicyReport(name, version.version, version.folder, done, seconds, history, before, after)


def preference_figures(model: LoraModel, adapter: str | None, rows: Sequence[Preference]) -> dict[str, float]:
    """How a served adapter ranks pairs: ``accuracy`` (share ranked as chosen) and ``margin`` in nats, both means."""
    if not rows:
        return {}
    margins = []
    for row in rows:
        chosen, rejected = (_logprob(model, adapter, row.prompt, answer) for answer in (row.chosen, row.rejected))
        margins.append(chosen - rejected)
    return {
        "accuracy": sum(m > 0 for m in margins) / len(margins),
        "margin": sum(margins) / len(margins),
    }


def _logprob(model: LoraModel, adapter: str | None, prompt: Prompt, answer: str) -> float:
    row = model.renderer.render_training(prompt, answer)
    start = len(row.ids) - row.supervised - int(row.ended)
    return sum(model.logprobs(row.ids, start, adapter=adapter))


def _parse(record: Any, path: str, line: int) -> Preference:
    if not isinstance(record, Mapping) or not {"chosen", "rejected"} <= set(record):
        keys = sorted(record) if isinstance(record, Mapping) else type(record).__name__
        raise DataError(f"expected prompt, chosen and rejected, got {keys}", path=path, line=line)
    ask = record.get("prompt", record.get("question"))
    shared = {} if record.get("passages") is None else {"passages": record["passages"]}
    pair = []
    for key in ("chosen", "rejected"):
        answer = record[key]
        row = {"messages": answer} if ask is None else {"prompt": ask, "completion": answer}
        pair.append(parse_row({**row, **shared}, path=path, line=line))
    if pair[0].prompt != pair[1].prompt:
        raise DataError("chosen and rejected answer different questions", path=path, line=line)
    return Preference(pair[0].prompt, pair[0].answer, pair[1].answer, path, line)


def _check(train: Sequence[Preference], held: Sequence[Preference], allow_leak: bool) -> None:
    if not train:
        raise DataError("there are no preferences to train on; pass at least one row")
    for row in (*train, *held):
        if row.chosen == row.rejected:
            raise DataError(
                f"chosen and rejected are the same ({row.chosen[:40]!r}), so there is nothing to prefer; drop the row",
                path=row.path,
                line=row.line,
            )
    seen = {_key(row.prompt) for row in train}
    leaked = [row for row in held if _key(row.prompt) in seen]
    if leaked and not allow_leak:
        raise DataError(
            f"{len(leaked)} evaluation rows have the prompt of a training row (first: "
            f"{leaked[0].prompt.question[:60]!r}); take them out of one of the two, or pass allow_leak=True"
        )


def _key(prompt: Prompt) -> tuple[str, ...]:
    return (" ".join(prompt.question.casefold().split()), *(p.text for p in prompt.passages or ()))


def _render(row: Preference, renderer: Renderer, length: int) -> dict[str, list[int]]:
    chosen, rejected = (renderer.render_training(row.prompt, answer) for answer in (row.chosen, row.rejected))
    longest = max(len(chosen.ids), len(rejected.ids))
    if longest > length:
        raise DataError(
            f"question and answer take {longest:,} tokens and a row may have {length:,}; raise max_length (at most the "
            "base's context), or shorten or drop the row",
            path=row.path,
            line=row.line,
        )
    at = len(chosen.ids) - chosen.supervised - 1
    return {"prompt_ids": chosen.ids[:at], "chosen_ids": chosen.ids[at:], "rejected_ids": rejected.ids[at:]}


def _trainer_class() -> Any:
    from trl.trainer.dpo_trainer import DPOTrainer

    class RenderedDPOTrainer(DPOTrainer):  # type: ignore[misc,unused-ignore]
        """DPOTrainer that takes the ids of the renderer instead of tokenising."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    return RenderedDPOTrainer


def _config(**settings: Any) -> Any:
    from trl.trainer.dpo_config import DPOConfig

    return DPOConfig(**settings)


def _dataset(rows: list[dict[str, list[int]]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def _silence(trainer: Any) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
