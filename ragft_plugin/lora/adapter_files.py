"""Adapter files: read from a folder as PEFT saves them, and refused where they could not share a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file

from ragft_plugin.errors import AdapterError

# These take their start from the base's own weights and change them; the base and every other adapter in the
# same model would be wrong.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read_adapter(folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """Configuration and weights of an adapter; nothing is unpickled.

    Raises:
        AdapterError: if it is damaged, or of a kind that cannot share a base.
    """
    if not (folder / "adapter_config.json").is_file():
        raise AdapterError(
            f"{folder} holds no adapter: expected adapter_config.json and adapter_model.safetensors in it"
        )
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise AdapterError(
            f"{file} is missing; adapters in the pickle format (.bin) are not read, save them as safetensors"
        )
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
        weights = load_file(file)
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise AdapterError(f"{folder} is damaged: {error}; copy or train the adapter again") from error
    if config.is_prompt_learning:
        raise AdapterError(
            f"{folder} is a {config.peft_type.value} adapter, which cannot share a batch; use LoRA or another "
            "method that works inside the layers"
        )
    start = str(getattr(config, "init_lora_weights", "")).lower()
    if start.startswith(CHANGES_BASE):
        raise AdapterError(
            f"{folder} was started with {start}, which changes the base's own weights; convert it to plain LoRA "
            "when saving (save_pretrained(..., path_initial_model_for_weight_conversion=...))"
        )
    config.inference_mode = True
    config.base_model_name_or_path = None  # a path on another machine says nothing; fingerprints do
    return config, weights
