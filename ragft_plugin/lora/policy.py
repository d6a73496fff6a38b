"""The policy of preference and reinforcement tuning: the adapter that TRL's trainers change, and their settings.

TRL tokenises prompts itself; here it is given the ids of the one renderer, so that what is tuned is what will be
asked. Its trainers stay what they are, but for the method that tokenises.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from peft import PeftModel

from ragft_plugin.errors import AdapterError, ConfigError, MissingExtraError
from ragft_plugin.lora.base import Base
from ragft_plugin.lora.fingerprints import digest
from ragft_plugin.lora.manifest import Manifest, TrainedOn
from ragft_plugin.lora.publication import Origin
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.lora.recipe import Recipe
from ragft_plugin.lora.trainable import make_trainable
from ragft_plugin.types import Prompt

_METHODS = ("lora", "dora", "rslora", "dora+rslora")
_SLOWER = 10.0  # a policy is moved more carefully than supervised tuning moves it; a tenth of its rate


class HasPrompt(Protocol):
    """A row of any kind of policy tuning."""

    @property
    def prompt(self) -> Prompt:
        """What is asked."""


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """What a preference or reinforcement tuning did.

    Attributes:
        name, version, folder: the adapter, and where it lies.
        steps: optimiser steps made.
        seconds: wall time of the steps.
        history: what the trainer logged, step by step.
        before, after: figures on the held-out rows, empty if there are none.
    """

    name: str
    version: str
    folder: Path
    steps: int
    seconds: float
    history: tuple[Mapping[str, float], ...]
    before: Mapping[str, float]
    after: Mapping[str, float]


def start_policy(base: Base, recipe: Recipe, origin: Origin, work: Path) -> Any:
    """The base with a trainable adapter: a new one, or that of ``origin.start``.

    Raises:
        ConfigError: for a method whose start is not the base, or that trains no adapter.
        AdapterError: if the adapter to start from was trained on another base.
    """
    if recipe.method not in _METHODS:
        raise ConfigError(
            f"method {recipe.method!r} cannot be tuned by preference or reward: what it starts from is not the base, "
            f"which is the reference; take one of {', '.join(_METHODS)}"
        )
    if origin.start is None:
        return make_trainable(base, recipe, work)
    manifest = Manifest.read(origin.start)
    if manifest is not None and manifest.fingerprints != origin.fingerprints:
        raise AdapterError(
            f"{origin.start} was trained on another base ({manifest.base}) than {base.folder}; start anew"
        )
    with quiet():
        return PeftModel.from_pretrained(base.model, str(origin.start), is_trainable=True)


def common_arguments(base: Base, recipe: Recipe, work: Path, steps: int) -> dict[str, Any]:
    """Settings that TRL's configurations share with transformers'."""
    cpu = base.model.device.type == "cpu"
    rate = recipe.rate(base.model.config.get_text_config().hidden_size)
    return {
        "output_dir": str(work),
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "learning_rate": rate if recipe.learning_rate is not None else rate / _SLOWER,
        "max_steps": steps,
        "lr_scheduler_type": "linear",
        "warmup_steps": int(recipe.warmup * steps),
        "max_grad_norm": recipe.max_grad_norm,
        "weight_decay": 0.0,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "use_cpu": cpu,
        "bf16": recipe.bf16,
        "gradient_checkpointing": not cpu,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": not cpu,
    }


def settings_of(recipe: Recipe, **further: Any) -> dict[str, Any]:
    """What a training was called with, for its manifest."""
    return {k: v for k, v in {**asdict(recipe), **further}.items() if v is not None}


def trained_on(train: Sequence[HasPrompt], held: Sequence[HasPrompt], content: Any) -> TrainedOn:
    """What the manifest tells of the rows.

    Args:
        train: rows trained on.
        held: rows held out.
        content: what the trainer was given of them, to hash.
    """
    return TrainedOn(
        rows=len(train),
        sha256=digest(repr(content).encode()),
        eval_rows=len(held),
        passages={p.id: digest(p.text.encode()) for row in train for p in row.prompt.passages or ()},
    )


def numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among what a trainer logs."""
    return {k: float(v) for k, v in logs.items() if isinstance(v, int | float)}


def pad_id(base: Base) -> int:
    """The id that fills up a batch; a tokenizer without one gets its end token for it."""
    if base.tokenizer.pad_token_id is None:
        base.tokenizer.pad_token = base.tokenizer.convert_ids_to_tokens(base.renderer.end_ids[0])
    return int(base.tokenizer.pad_token_id)


def need_trl(load: Callable[[], Any]) -> Any:
    """Import from TRL, or say which extra has it."""
    try:
        return load()
    except ImportError as error:
        raise MissingExtraError(error.name or "trl", "train") from error


@contextmanager
def quiet_trl() -> Iterator[None]:
    """As ``quiet``, and without what TRL's own defaults make transformers warn of."""
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
        yield
