"""Recipes: the settings of a training, with defaults that work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from ragft_plugin.errors import ConfigError
from ragft_plugin.lora.adapter_files import CHANGES_BASE


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train an adapter.

    Attributes:
        r: rank of the update.
        lora_alpha: scale; the update is multiplied by lora_alpha / r. None is 2 r.
        lora_dropout: share of inputs of the update dropped while training.
        target_modules: names of layers (suffixes), or "all-linear".
        lora: further fields of PEFT's LoraConfig, such as use_dora, use_rslora, layers_to_transform.
        learning_rate: the highest; None follows the base's width (see ``default_learning_rate``).
        epochs: times every row is seen.
        max_steps: optimiser steps, instead of epochs.
        batch_size: rows per step.
        gradient_accumulation: passes per step; ``batch_size`` is split over them.
        warmup: share of the steps over which the rate rises; afterwards it falls in a line to 0.
        max_length: longest row in tokens; None is the base's context.
        max_grad_norm: gradients are clipped to it.
        seed: of initialisation, order and dropout.
        eval_every: steps between looks at the held-out loss; None is ten looks in all.
        patience: looks without a better held-out loss before training stops; None never stops early.
        bf16: compute in bfloat16 (weights stay float32); faster where the processor has it.
    """

    r: int = 16
    lora_alpha: int | None = None
    lora_dropout: float = 0.0
    target_modules: str | Sequence[str] = "all-linear"
    lora: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 8
    gradient_accumulation: int = 1
    warmup: float = 0.05
    max_length: int | None = None
    max_grad_norm: float = 1.0
    seed: int = 0
    eval_every: int | None = None
    patience: int | None = None
    bf16: bool = False

    def __post_init__(self) -> None:
        for name in ("r", "batch_size", "gradient_accumulation"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("epochs", "max_grad_norm", "max_steps", "max_length", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be above 0, got {value}")
        if self.batch_size % self.gradient_accumulation:
            raise ConfigError(
                f"batch_size ({self.batch_size}) must be a multiple of gradient_accumulation "
                f"({self.gradient_accumulation})"
            )
        start = str(self.lora.get("init_lora_weights", "")).lower()
        if start.startswith(CHANGES_BASE):
            raise ConfigError(
                f"init_lora_weights={start!r} changes the base's own weights, so that neither the base nor another "
                "adapter could be served beside this one; leave it out, or use 'gaussian', 'eva' or 'orthogonal'"
            )

    def steps(self, rows: int) -> int:
        """Optimiser steps for so many rows."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, math.ceil(math.ceil(rows / self.batch_size) * self.epochs))

    @property
    def method(self) -> str:
        """The name of the method: lora, dora or rslora."""
        named = [m for m in ("dora", "rslora") if self.lora.get(f"use_{m}")]
        return "+".join(named) or "lora"


def default_learning_rate(hidden_size: int) -> float:
    """A rate that works for LoRA on a base of this width:  5e-4 * (2000 / hidden_size) ** 0.781.

    Source: Schulman et al., "LoRA Without Regret", 2025 (their fit over Llama models).
    """
    return float(5e-4 * (2000 / hidden_size) ** 0.781)


def linear_modules(model: Any) -> list[str]:
    """Last names of all linear layers but the output head: what "all-linear" means, in a form any server reads.

    PEFT would save full paths (``model.layers.0.self_attn.q_proj``), which not every server takes.

    Raises:
        ConfigError: if there are none.
    """
    head = model.get_output_embeddings()
    linear = (nn.Linear, Conv1D)
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, linear) and module is not head
    }
    if not names:
        raise ConfigError("the base has no linear layers; name target_modules")
    return sorted(names)
