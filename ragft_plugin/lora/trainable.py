"""Trainable: which weights of a base a recipe trains, and the form in which they are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from ragft_plugin.errors import AdapterError, ConfigError
from ragft_plugin.lora.base import Base
from ragft_plugin.lora.manifest import write_json
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.lora.recipe import CONVERTED, Recipe, linear_modules

_INITIAL = "initial.safetensors"
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def make_trainable(base: Base, recipe: Recipe, work: Path) -> Any:
    """The base with what the recipe trains: adapter weights beside it, or weights of its own.

    Args:
        base: its model is wrapped or unfrozen, and must not be used for anything else afterwards.
        recipe: the settings.
        work: folder of the training; gets the start of a method that changes the base.

    Raises:
        ConfigError: if PEFT refuses the settings, or they name layers that the base does not have.
        AdapterError: if the base carries adapters already.
    """
    model = base.model
    if isinstance(model, PeftModel) or getattr(model, "peft_config", None):
        raise AdapterError(
            "the base carries an adapter already, and another one on top would be trained against their sum; merge "
            "the first one into the base, or load the base without it"
        )
    first = _first_layer(model, recipe)
    if recipe.method == "full":
        return _unfreeze(model, recipe.freeze, first)
    targets: Any = recipe.target_modules
    targets = linear_modules(model) if targets == "all-linear" else targets
    fields = recipe.lora_fields()
    if recipe.freeze:
        fields["layers_to_transform"] = list(range(recipe.freeze, first))
    try:
        config: Any = LoraConfig(target_modules=targets if isinstance(targets, str) else list(targets), **fields)
        with quiet():
            wrapped: Any = get_peft_model(model, config)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"PEFT refuses the settings: {error}") from error
    if recipe.method in CONVERTED:
        save_file(_adapter_weights(wrapped), work / _INITIAL)
    return wrapped


def save_trained(model: Any, recipe: Recipe, work: Path, folder: Path) -> None:
    """Save what ``make_trainable`` made: an adapter as PEFT and servers read it, or a whole base."""
    if recipe.method == "full":
        model.save_pretrained(str(folder))
        return
    model.save_pretrained(str(folder), save_embedding_layers=False)
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    # PEFT keeps the targets as a set; sorted, the same training gives the same file.
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    if recipe.method in CONVERTED:
        weights = to_plain_lora(load_file(folder / _WEIGHTS), load_file(work / _INITIAL))
        save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
        # Twice the rank with twice the alpha is the same scale.
        config.update(init_lora_weights=True, r=2 * config["r"], lora_alpha=2 * config["lora_alpha"])
    write_json(folder / _CONFIG, config)


def to_plain_lora(trained: dict[str, torch.Tensor], initial: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of an adapter for the untouched base, from those for a base that a method has changed.

        W_changed + s B A  =  W - s B0 A0 + s B A  =  W + s [B, -B0] [A; A0]

    Args:
        trained: A of shape (r, in) and B of shape (out, r) after training, by name.
        initial: the same before it, when s B0 A0 was taken out of the base.

    Source: Meng et al., "PiSSA", 2024, appendix C.

    Example:
        >>> one = torch.ones(1, 1)
        >>> new = to_plain_lora(
        ...     {"q.lora_A.weight": 3 * one, "q.lora_B.weight": 2 * one},
        ...     {"q.lora_A.weight": one, "q.lora_B.weight": one},
        ... )
        >>> (new["q.lora_B.weight"] @ new["q.lora_A.weight"]).item()  # 2 * 3 - 1 * 1
        5.0
    """
    converted = {}
    for name, after in trained.items():
        before = initial[name].to(after)
        up = ".lora_B." in name
        converted[name] = torch.cat([after, -before if up else before], dim=1 if up else 0).contiguous()
    return converted


def _first_layer(model: Any, recipe: Recipe) -> int:
    """Number of layers, checked against what the recipe leaves alone."""
    layers = int(getattr(model.config.get_text_config(), "num_hidden_layers", 0))
    if recipe.freeze and recipe.freeze >= layers:
        raise ConfigError(
            f"freeze={recipe.freeze} leaves nothing to train: the base has {layers} layers; freeze at most {layers - 1}"
        )
    return layers


def _unfreeze(model: Any, freeze: int, layers: int) -> Any:
    model.requires_grad_(True)
    if freeze:
        model.get_input_embeddings().requires_grad_(False)
        lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers]
        if len(lists) != 1:
            raise ConfigError(
                f"the layers of a {type(model).__name__} cannot be told apart, so none can be frozen; train with "
                "freeze=0, or with method='lora' and layers_to_transform"
            )
        for layer in lists[0][:freeze]:
            layer.requires_grad_(False)
    return model


def _adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights under the names that PEFT saves them by."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: value.detach().clone().contiguous() for name, value in weights.items()}
