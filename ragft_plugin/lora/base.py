"""The base: a causal language model and its tokenizer, from a folder or by name, checked to belong together."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ragft_plugin.errors import ConfigError
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.lora.rendering import Renderer

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
# Digits, accents in two forms, several scripts, runs of space: where pre-tokenizers differ.
_TRAP = "Pump 1234 of Zürich, cafe\u0301, Œuvre 3.14!  don't\n\tx_y  東京 naïve 1999-2024"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Base:
    """A base ready to use.

    Attributes:
        model: Hugging Face causal language model, in evaluation mode, without gradients.
        tokenizer: its tokenizer.
        renderer: renders prompts for it.
        folder: where its files lie.
        context: longest sequence it can read, in tokens.
    """

    model: Any
    tokenizer: Any
    renderer: Renderer
    folder: Path
    context: int


def find_base(base: str | Path) -> Path:
    """The folder of a base: itself, or a snapshot of the model of that name on the hub.

    Raises:
        ConfigError: if there is neither.
    """
    folder = Path(base).expanduser()
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{base} is an adapter (it has adapter_config.json), not a base; load the base it was trained on and put "
            "it on top with load_adapter, or merge the two first"
        )
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or not 1 <= str(base).count("/") + 1 <= 2 or str(base).startswith((".", "/")):
        raise ConfigError(
            f"{base} is no model: expected a folder with config.json and *.safetensors, or a name on the hub such "
            "as Qwen/Qwen3-0.6B"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(base), allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"{base} is neither a folder here nor a model that the hub gave ({type(error).__name__}); check the "
            "spelling and the network, or pass the folder of a model"
        ) from error


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, tokenising as its ``tokenizer.json`` says.

    Some model types make transformers replace the saved pre-tokenizer on loading, without a word; answers then get
    quietly worse. The two are compared on a text, and the file wins.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if (folder / "tokenizer.json").is_file():
        saved: Any = PreTrainedTokenizerFast.from_pretrained(folder)
        mine, theirs = (t(_TRAP, add_special_tokens=False)["input_ids"] for t in (saved, tokenizer))
        if mine != theirs:
            logger.warning(
                "%s: %s tokenises otherwise than tokenizer.json; using the file. Save the model with a model_type "
                "that does not bring its own tokenizer to be rid of this",
                folder,
                type(tokenizer).__name__,
            )
            saved.chat_template = tokenizer.chat_template
            return saved
    return tokenizer


def load_base(base: str | Path, *, device: str = "auto", dtype: Dtype = "auto", quantization: Any = None) -> Base:
    """Load a base.

    Args:
        base: a folder, or a name on the hub.
        device: "auto" takes an accelerator where there is one.
        dtype: "auto" keeps the stored one on an accelerator and takes float32 on a CPU, where half precision is
            slow and its answers depend on the batch.
        quantization: a quantisation config of transformers; None loads the weights as they are.

    Raises:
        ConfigError: if it cannot be loaded, or model and tokenizer do not fit.
    """
    folder = find_base(base)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    stored = "float32" if device == "cpu" else "auto"
    kind: Any = stored if dtype == "auto" else dtype
    packed = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": device}}
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = load_tokenizer(folder)
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=kind if kind == "auto" else getattr(torch, kind),
                use_safetensors=True,
                **packed,
            )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{base} cannot be loaded as a causal language model: {error}; expected config.json, *.safetensors and "
            "tokenizer files of a Hugging Face model"
        ) from error
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ConfigError(
            f"{base}: the tokenizer has {len(tokenizer)} tokens and the model embeddings for {rows}; they do not "
            "belong together (was a token added without resizing the embeddings?)"
        )
    model.eval().requires_grad_(False)
    if quantization is None:
        model.to(device)
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    context = int(context or min(tokenizer.model_max_length, 1 << 20))
    return Base(model, tokenizer, Renderer(tokenizer, end_ids=ends), folder, context)
