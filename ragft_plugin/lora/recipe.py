"""Recipes: the settings of a training, with defaults that work.

A method is a name for a few of them. All but "full" end as an adapter that can share its base with others:

    lora      B A beside every linear layer, scaled by lora_alpha / r
    dora      LoRA of the direction of each weight, its length apart; slower, no mixed batches
    rslora    LoRA scaled by lora_alpha / sqrt(r), so that a high rank learns as fast as a low one
    qlora     LoRA over a base kept in 4 bits (nf4, double quantisation) while training; needs bitsandbytes
    pissa     LoRA that starts from the largest singular vectors of the weights; converted to plain LoRA on saving
    olora     LoRA that starts from a QR decomposition of the weights; converted to plain LoRA on saving
    full      every weight itself, or those above the first ``freeze`` layers; ends as a new base, not as an adapter

Sources: Hu et al. 2021 (LoRA); Liu et al. 2024 (DoRA); Kalajdzievski 2023 (rsLoRA); Dettmers et al. 2023 (QLoRA);
Meng et al. 2024 (PiSSA); Bueyuekakyuez 2024 (OLoRA).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from ragft_plugin.errors import ConfigError
from ragft_plugin.lora.adapter_files import CHANGES_BASE

# Method -> the fields of PEFT's LoraConfig that make it.
METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "lora": {},
        "dora": {"use_dora": True},
        "rslora": {"use_rslora": True},
        "dora+rslora": {"use_dora": True, "use_rslora": True},
        "qlora": {},
        "pissa": {"init_lora_weights": "pissa"},
        "olora": {"init_lora_weights": "olora"},
        "full": {},
    }
)
CONVERTED = ("pissa", "olora")  # they start by changing the base, and are turned into plain LoRA at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train an adapter.

    Attributes:
        method: one of ``METHODS``.
        r: rank of the update.
        lora_alpha: scale; the update is multiplied by lora_alpha / r. None is 2 r, and 8 for rslora (the same scale
            at r = 16, where the two divisors are 16 and 4).
        lora_dropout: share of inputs of the update dropped while training.
        target_modules: names of layers (suffixes), or "all-linear".
        freeze: the first so many layers keep their weights; with "full" the embeddings do too.
        lora: further fields of PEFT's LoraConfig, such as layers_to_transform, rank_pattern, init_lora_weights.
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

    method: str = "lora"
    r: int = 16
    lora_alpha: int | None = None
    lora_dropout: float = 0.0
    target_modules: str | Sequence[str] = "all-linear"
    freeze: int = 0
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
        if self.method == "lora":  # said in PEFT's words rather than by name
            named = [m for m in ("dora", "rslora") if self.lora.get(f"use_{m}")]
            object.__setattr__(self, "method", "+".join(named) or "lora")
        if self.method not in METHODS:
            raise ConfigError(f"unknown method {self.method!r}; expected one of {', '.join(METHODS)}")
        if self.freeze < 0:
            raise ConfigError(f"freeze must be 0 or more layers, got {self.freeze}")
        if self.freeze and "layers_to_transform" in self.lora:
            raise ConfigError("freeze and layers_to_transform say the same thing twice; give one of them")
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
                f"adapter could be served beside this one; take method={CONVERTED[0]!r} or {CONVERTED[1]!r}, which "
                "are converted to plain LoRA on saving, or leave it out, or use 'gaussian', 'eva' or 'orthogonal'"
            )

    def steps(self, rows: int) -> int:
        """Optimiser steps for so many rows."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, math.ceil(math.ceil(rows / self.batch_size) * self.epochs))

    def lora_fields(self) -> dict[str, Any]:
        """Fields of PEFT's LoraConfig, but for the target modules."""
        rs = "rslora" in self.method or bool(self.lora.get("use_rslora"))
        alpha = (8 if rs else 2 * self.r) if self.lora_alpha is None else self.lora_alpha
        return {
            "r": self.r,
            "lora_alpha": alpha,
            "lora_dropout": self.lora_dropout,
            "task_type": "CAUSAL_LM",
            **METHODS[self.method],
            **self.lora,
        }

    def rate(self, hidden_size: int) -> float:
        """The highest learning rate on a base of this width; full tuning wants a tenth of what LoRA does."""
        if self.learning_rate is not None:
            return self.learning_rate
        return default_learning_rate(hidden_size) / (10 if self.method == "full" else 1)


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
