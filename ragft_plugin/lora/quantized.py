"""Quantised bases: four bits a weight while training, for bases that would not fit otherwise.

What is trained beside them is saved as a plain adapter, and scored and served on the base as it is stored: the
score taken after training is that of the pair which will answer, whatever the rounding did.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import BitsAndBytesConfig

from ragft_plugin.errors import ConfigError, MissingExtraError
from ragft_plugin.lora.base import Base, load_base

_LARGEST_ERROR = 0.15  # of a layer's output, relative; nf4 costs 0.09 for normally distributed weights


def load_quantized(base: str | Path, *, device: str = "auto") -> Base:
    """Load a base in nf4 with double quantisation; the output head and the norms stay as they are.

    Runs on a CPU too, where it saves memory and no time.

    Raises:
        MissingExtraError: if bitsandbytes is not installed.
        ConfigError: if the base cannot be quantised, or comes out wrong.

    Source: Dettmers et al., "QLoRA", 2023.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "qlora")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if device == "cpu" else torch.bfloat16,
    )
    loaded = load_base(base, device=device, dtype="float32", quantization=settings)
    layers = {name: m for name, m in loaded.model.named_modules() if hasattr(m, "quant_state")}
    for module in layers.values():
        # bitsandbytes repacks weights on a CPU when a layer first answers, which fails for narrow layers, rounds the
        # scales once more, and is meant for models that train no more.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    _check_rounding(loaded.folder, layers, str(base))
    return loaded


def _check_rounding(folder: Path, layers: dict[str, Any], base: str) -> None:
    """Compare one layer of each shape with the stored one: bitsandbytes 0.50 gets some shapes wrong on a CPU."""
    shapes = {(m.in_features, m.out_features): name for name, m in layers.items()}
    draw = torch.Generator().manual_seed(0)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            names = set(stored.keys())
            for (width, _), name in shapes.items():
                if f"{name}.weight" not in names:
                    continue
                module = layers[name]
                x = torch.randn(8, width, generator=draw).to(module.weight.device)
                weight = stored.get_tensor(f"{name}.weight").to(x)
                with torch.no_grad():
                    rounded = module(x) - (0 if module.bias is None else module.bias)
                exact = x @ weight.T
                error = float((rounded - exact).norm() / exact.norm())
                if not error <= _LARGEST_ERROR:
                    raise ConfigError(
                        f"{base}: in 4 bits, {name} is off by {error:.0%} where rounding costs about 9 %; on a CPU "
                        f"bitsandbytes needs layers whose width is a multiple of 64 (this one takes {width}). Train "
                        "with method='lora', or on a GPU"
                    )
