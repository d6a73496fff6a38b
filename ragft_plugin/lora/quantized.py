"""Quantised bases: four bits a weight while training, for bases that would not fit otherwise.

What is trained beside them is saved as a plain adapter, and scored and served on the base as it is stored: the
score taken after training is that of the pair which will answer, whatever the rounding did.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ragft_plugin.errors import ConfigError, MissingExtraError
from ragft_plugin.lora.base import Base, load_base
from ragft_plugin.lora.quiet import quiet


def load_quantized(base: str | Path, *, device: str = "auto") -> Base:
    """Load a base in nf4 with double quantisation; the output head and the norms stay as they are.

    Runs on a CPU too, where it saves memory and no time.

    Raises:
        MissingExtraError: if bitsandbytes is not installed.
        ConfigError: if the base cannot be quantised.

    Source: Dettmers et al., "QLoRA", 2023.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "qlora")
    plain = load_base(base, device="cpu", dtype="float32")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if device == "cpu" else torch.bfloat16,
    )
    try:
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                plain.folder,
                quantization_config=settings,
                dtype=torch.float32,
                device_map={"": device},
                use_safetensors=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{base} cannot be held in 4 bits: {error}; train with method='lora'") from error
    for module in model.modules():
        # bitsandbytes repacks weights on a CPU when a layer first answers, which fails for narrow layers, rounds the
        # scales once more, and is meant for models that train no more.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model.eval().requires_grad_(False)
    return replace(plain, model=model)
