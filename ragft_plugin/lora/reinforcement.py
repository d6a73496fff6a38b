"""Reinforcement tuning: answers are drawn, a function of the user's rewards them, the better ones become likelier.

Of every prompt a group of answers is drawn; an answer's advantage is its reward minus the group's mean, over the
group's standard deviation. So a group whose rewards are all the same teaches nothing, and a training in which all
groups are so is stopped with a word of advice. The loop is TRL's GRPOTrainer.

Source: Shao et al., "DeepSeekMath", 2024, section 4 (GRPO).
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ragft_plugin.errors import AdapterError, ConfigError, DataError
from ragft_plugin.lora.base import Base, load_base
from ragft_plugin.lora.data import TrainingRow, as_rows
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
from ragft_plugin.lora.trainable import save_trained
from ragft_plugin.lora.training import Rows
from ragft_plugin.lora.tuning import _seeded as seeded
from ragft_plugin.lora.watch import Watch, check_loss

Reward = Callable[[str, TrainingRow], float]
"""Takes a drawn answer and its row (prompt, passages, wanted answer), returns how good it is; any finite number."""
_PATIENCE = 20  # steps without any difference between answers, after which training is given up


def train_with_reward(
    base: LoraModel | str | Path,
    rows: Rows,
    reward: Reward,
    out: str | Path,
    *,
    name: str,
    eval_rows: Rows | None = None,
    start: str | Path | None = None,
    group: int = 8,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    beta: float = 0.0,
    recipe: Recipe | None = None,
    promote: bool = True,
    max_seconds: float | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> PolicyReport:
    """Tune an adapter by a reward function and put it into a registry.

    The report's ``reward``, before and after, is the mean over the held-out rows of the served adapter's greedy
    answers.

    Args:
        base: a folder, a name on the hub, or a loaded model (its files are loaded afresh for training).
        rows: a JSON Lines file, mappings, or ``TrainingRow``. The answer is not learnt; the reward may look at it.
        reward: ``reward(answer, row)``, called once for every drawn answer.
        out: folder of the registry.
        name: of the adapter.
        eval_rows: held-out rows.
        start: folder of an adapter to start from; None starts a new one.
        group: answers drawn per prompt, at least 2.
        temperature: of the drawing.
        max_new_tokens: longest answer.
        beta: weight of the distance to the start; 0 needs no reference and is faster.
        recipe: the settings; ``batch_size`` counts prompts. Without a learning rate it is a tenth of supervised
            tuning's.
        promote: let the new version answer at once.
        max_seconds: stop after so long and keep what there is.
        device: "auto", "cpu", "cuda", ...
        progress: called with (steps done, steps in all).

    Raises:
        DataError: for a prompt that does not fit, or a reward that is no number.
        ConfigError: for a wrong setting.
        AdapterError: if no drawn answer is ever better than another.
        MissingExtraError: if TRL is not installed.

    Example:
        >>> def short(answer, row):
        ...     return -len(answer) / 100
        >>> train_with_reward("models/base", "qa.jsonl", short, "adapters", name="short")  # doctest: +SKIP
    """
    check_name(name)
    if group < 2 or temperature <= 0 or max_new_tokens < 1 or beta < 0:
        raise ConfigError(
            "group must be at least 2, temperature above 0, max_new_tokens at least 1 and beta at least 0, got "
            f"{group}, {temperature}, {max_new_tokens} and {beta}"
        )
    recipe = recipe or Recipe(epochs=1.0)
    train, held = as_rows(rows), [] if eval_rows is None else as_rows(eval_rows)
    if not train:
        raise DataError("there are no prompts to train on; pass at least one row")
    if isinstance(base, LoraModel):
        label, device = str(base.base.folder), str(base.base.model.device)
    else:
        label = str(base)
    loaded = load_base(label, device=device, dtype="float32")
    origin = Origin.of(loaded, label, None if start is None else current_version(Path(start)))
    length = min(recipe.max_length or loaded.context, loaded.context)
    prompts = [loaded.renderer.render(row.prompt, limit=length - max_new_tokens) for row in train]
    work = Path(out) / f".training-{name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    steps = recipe.steps(len(train))
    pad_id(loaded)
    with seeded(recipe.seed), quiet_trl():
        trainer = need_trl(lambda: _trainer_class(prompts))(
            model=start_policy(loaded, recipe, origin, work),
            reward_funcs=[_scored(reward, train)],
            args=_config(
                loaded,
                per_device_train_batch_size=recipe.batch_size * group // recipe.gradient_accumulation,
                num_generations=group,
                max_completion_length=max_new_tokens,
                temperature=temperature,
                beta=beta,
                **common_arguments(loaded, recipe, work, steps),
            ),
            train_dataset=_dataset(len(train)),
            processing_class=loaded.tokenizer,
            callbacks=[_RewardWatch(steps, max_seconds, progress)],
        )
        _silence(trainer)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        if "ref" in trainer.model.peft_config:
            trainer.model.delete_adapter("ref")
        save_trained(trainer.model, recipe, work, work / "final")
    data = trained_on(train, held, prompts)
    done = int(trainer.state.global_step)
    version, before, after = publish(
        origin,
        work / "final",
        out,
        name=name,
        method="grpo" if recipe.method == "lora" else f"grpo+{recipe.method}",
        settings=settings_of(
            recipe,
            group=group,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            beta=beta,
            start=None if start is None else str(start),
        ),
        data=data,
        metrics={"steps": float(done), "seconds": round(seconds, 3)},
        measure=lambda served, adapter: _figures(served, adapter, held, reward, max_new_tokens),
        questions=[row.prompt.question for row in train],
        promote=promote,
    )
    shutil.rmtree(work, ignore_errors=True)
    history = tuple(numbers(h) for h in trainer.state.log_history)
    return PolicyReport(name, version.version, version.folder, done, seconds, history, before, after)


def checked_reward(reward: Reward, answer: str, row: TrainingRow) -> float:
    """The reward of one answer.

    Raises:
        DataError: if it is no finite number.
    """
    value: Any = reward(answer, row)
    try:
        number = math.nan if value is None or isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"the reward of {answer[:60]!r} is {value!r}; a reward function returns a finite number")
    return number


class _RewardWatch(Watch):
    """A watch that stops a training in which no drawn answer is better than another.

    Loss and gradient are then exactly 0, which for now and then a step is no fault of the data.
    """

    _same = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        share = logs.get("frac_reward_zero_std")
        if share is None:
            return
        self._same = self._same + 1 if share >= 1.0 else 0
        if self._same >= _PATIENCE:
            raise AdapterError(
                f"for {self._same} steps every answer to a prompt had the same reward ({logs.get('reward')}), so "
                "there was nothing to learn. Reward partial success, raise temperature or group, or begin with an "
                "adapter that succeeds now and then (start=...)"
            )
        if logs.get("loss") != 0.0:
            check_loss(logs, step=state.global_step, learning_rate=args.learning_rate)


def _scored(reward: Reward, rows: Sequence[TrainingRow]) -> Callable[..., list[float]]:
    def scored(*, completions: Sequence[str], row: Sequence[int], **_: Any) -> list[float]:
        return [checked_reward(reward, text.strip(), rows[i]) for text, i in zip(completions, row, strict=True)]

    return scored


def _figures(
    model: LoraModel, adapter: str | None, rows: Sequence[TrainingRow], reward: Reward, max_new_tokens: int
) -> dict[str, float]:
    if not rows:
        return {}
    given = model.generator(adapter, max_new_tokens=max_new_tokens).generate([row.prompt for row in rows])
    return {"reward": sum(checked_reward(reward, g.text, r) for g, r in zip(given, rows, strict=True)) / len(rows)}


def _trainer_class(prompts: Sequence[list[int]]) -> Any:
    from trl.trainer.grpo_trainer import GRPOTrainer

    class RenderedGRPOTrainer(GRPOTrainer):  # type: ignore[misc,unused-ignore]
        """GRPOTrainer that takes the ids of the renderer instead of tokenising; a prompt is the number of its row."""

        def _tokenize_prompts(self, numbers: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [prompts[int(number)] for number in numbers], None, {}

    return RenderedGRPOTrainer


def _config(base: Base, **settings: Any) -> Any:
    from trl.trainer.grpo_config import GRPOConfig

    # Any of the renderer's end tokens ends an answer, as it does in serving.
    return GRPOConfig(generation_kwargs={"eos_token_id": list(base.renderer.end_ids)}, **settings)


def _dataset(rows: int) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": str(i), "row": i} for i in range(rows)])


def _silence(trainer: Any) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
