"""Export: an adapter as others read it, worked into its base or as a PEFT folder for a server.

Merging gives W + s B A: a plain model that anything loads, without PEFT. A server such as vLLM rather takes the adapter
beside the base; it reads less of PEFT's format than PEFT does, and what it does not know (scales of single layers) it
ignores without a word. So such things are rewritten into what it knows, and what cannot be is refused with the cure.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors.torch import save_file

from ragft_plugin.errors import AdapterError, ConfigError
from ragft_plugin.lora.adapter_files import read_adapter
from ragft_plugin.lora.base import load_base
from ragft_plugin.lora.manifest import MANIFEST, Manifest
from ragft_plugin.lora.model import LoraModel
from ragft_plugin.lora.probes import probe_ids
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.lora.registry import current_version

# Ranks that vLLM makes room for (its option --max-lora-rank takes no other).
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_UNLIKE_LORA = ("use_dora", "use_qalora", "alora_invocation_tokens", "trainable_token_indices", "target_parameters")
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}  # of a token's log-probability, in nats

T = TypeVar("T")
MergeDtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged model.

    Attributes:
        folder: what transformers loads.
        dtype: of its numbers.
        difference: largest difference of a token's log-probability to base and adapter apart, in nats.
    """

    folder: Path
    dtype: str
    difference: float


@dataclass(frozen=True, slots=True)
class Exported:
    """An adapter for a server.

    Attributes:
        folder: a PEFT folder.
        rank: of the update.
        max_lora_rank: what vLLM's option of this name has to be at least.
    """

    folder: Path
    rank: int
    max_lora_rank: int


def merge_adapter(
    base: str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    dtype: MergeDtype = "auto",
    trust: bool = False,
    tolerance: float | None = None,
) -> Merged:
    """Save a base with an adapter worked into its weights, and check that it computes the same.

    The sum is formed in float32. The saved model is loaded again and its log-probabilities of a short text are compared
    with those of base and adapter apart.

    Args:
        base: folder or name of the base.
        adapter: folder of the adapter, or of a registry's current version.
        out: folder to make; it must not exist.
        dtype: of the saved numbers; "auto" is that of the stored base.
        trust: take an adapter that was trained on another base.
        tolerance: largest difference of a token's log-probability in nats; by default 0.001 for float32, 0.02 for
            float16 and 0.1 for bfloat16, which keeps 8 bits of each number.

    Raises:
        AdapterError: if the adapter does not fit the base, or the merged model differs too much.
        ConfigError: if ``out`` exists or the base is quantised.

    Example:
        >>> merge_adapter("models/base", "adapters/legal", "models/legal").difference  # doctest: +SKIP
        3.8e-06
    """
    loaded = load_base(base, device="cpu", dtype="float32")
    if getattr(loaded.model, "is_quantized", False):
        raise ConfigError(f"{base} is quantised, and rounding would eat the update; merge into the base it was made of")
    kind = _stored_dtype(loaded.folder) if dtype == "auto" else dtype
    allowed = _TOLERANCE[kind] if tolerance is None else tolerance
    with LoraModel(loaded, batching="grouped") as model:
        model.load_adapter("merged", adapter, trust=trust)
        ids, start = probe_ids(model.renderer)
        wanted = model.logprobs(ids, start, adapter="merged")
        merged = model.merge_adapter("merged")

    def write(folder: Path) -> float:
        with quiet():
            merged.to(getattr(torch, kind)).save_pretrained(folder)
        _copy_tokenizer(loaded.folder, folder)
        with LoraModel.load(folder, device="cpu", dtype="float32") as again:
            got = again.logprobs(ids, start)
        worst = max(abs(a - b) for a, b in zip(got, wanted, strict=True))
        if not worst <= allowed:
            raise AdapterError(
                f"the merged model's log-probabilities are off by up to {worst:.3g}, allowed are {allowed:g}; "
                f"{kind} rounds the update away: pass dtype='float32', or a tolerance of your own"
            )
        return worst

    return Merged(Path(out), kind, _whole(Path(out), write))


def export_adapter(adapter: str | Path, out: str | Path, *, base_name: str | None = None) -> Exported:
    """Save an adapter as a PEFT folder that vLLM and SGLang load.

    Ranks and scales of single layers, which they ignore, become one rank (padded with zeros) and one scale (worked into
    B); the update stays what it was.

    Args:
        adapter: folder of the adapter, or of a registry's current version.
        out: folder to make; it must not exist.
        base_name: how the server names the base, written into the configuration.

    Raises:
        AdapterError: if it is damaged, or of a kind that these servers do not take (then merge it).
        ConfigError: if ``out`` exists.

    Example:
        >>> export_adapter("adapters/legal", "exported/legal").max_lora_rank  # doctest: +SKIP
        16
    """
    source = current_version(Path(adapter))
    config, weights = read_adapter(source)
    config, weights = _uniform(config, weights)
    if problems := serving_problems(config, weights):
        raise AdapterError(f"{source} cannot be served beside its base: {'; '.join(problems)}")
    manifest = Manifest.read(source)
    config.base_model_name_or_path = base_name or (None if manifest is None else manifest.base)

    def write(folder: Path) -> None:
        folder.mkdir()
        config.save_pretrained(str(folder))
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        if manifest is not None:
            shutil.copyfile(source / MANIFEST, folder / f"source-{MANIFEST}")

    _whole(Path(out), write)
    return Exported(Path(out), config.r, min(r for r in VLLM_RANKS if r >= config.r))


def serving_problems(config: Any, weights: dict[str, torch.Tensor]) -> list[str]:
    """What keeps vLLM from serving an adapter right, each with its cure; empty if nothing does.

    It takes plain LoRA and rsLoRA over linear layers: one rank of at most 512, one scale, no biases, no whole modules.

    Args:
        config: PEFT's configuration.
        weights: name -> tensor, as in ``adapter_model.safetensors``.

    Source: ``vllm/lora/peft_helper.py``, ``lora_model.py`` and ``utils.py`` (read at versions 0.8 to 0.26).
    """
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        return [f"it is a {kind} adapter and only LoRA is known there; merge it into the base"]
    problems = []
    for name in _UNLIKE_LORA:
        if getattr(config, name, None):
            problems.append(f"{name} is not known there; merge it into the base")
    if config.modules_to_save:
        problems.append(f"modules_to_save holds whole modules ({', '.join(config.modules_to_save)}); merge it")
    if config.bias != "none" or getattr(config, "lora_bias", False):
        problems.append("it trained biases, which are not known there; merge it, or train with bias='none'")
    if config.r > VLLM_RANKS[-1]:
        problems.append(f"its rank {config.r} is above {VLLM_RANKS[-1]}; merge it, or train with a lower one")
    if config.rank_pattern or config.alpha_pattern:
        problems.append("ranks or scales differ between layers, which would be ignored; export it with export_adapter")
    for name, tensor in weights.items():
        if not name.startswith("base_model.model.") or not name.endswith((".lora_A.weight", ".lora_B.weight")):
            problems.append(f"{name} is no update of a linear layer; merge it into the base")
        elif (tensor.shape[0] if ".lora_A." in name else tensor.shape[1]) != config.r:
            problems.append(f"{name} has the shape {tuple(tensor.shape)} and the rank is {config.r}; train it again")
    return problems[:5]


def _uniform(config: Any, weights: dict[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
    """One rank and one scale for all layers; the product B A times its scale stays the same."""
    ranks: dict[str, int] = getattr(config, "rank_pattern", None) or {}
    alphas: dict[str, float] = getattr(config, "alpha_pattern", None) or {}
    if not (ranks or alphas):
        return config, weights
    from peft.utils.other import get_pattern_key

    def scale(alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if config.use_rslora else rank)

    most = max(tensor.shape[0] for name, tensor in weights.items() if name.endswith(".lora_A.weight"))
    made = {}
    for name, tensor in weights.items():
        module = name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
        rank = ranks.get(get_pattern_key(list(ranks), module), config.r)
        alpha = alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)
        if name.endswith(".lora_A.weight"):
            tensor = torch.nn.functional.pad(tensor, (0, 0, 0, most - tensor.shape[0]))
        elif name.endswith(".lora_B.weight"):
            factor = scale(alpha, rank) / scale(config.lora_alpha, most)
            tensor = torch.nn.functional.pad(tensor * factor, (0, most - tensor.shape[1]))
        made[name] = tensor.contiguous()
    config.r, config.rank_pattern, config.alpha_pattern = most, {}, {}
    return config, made


def _stored_dtype(folder: Path) -> str:
    from transformers import AutoConfig

    dtype = str(getattr(AutoConfig.from_pretrained(folder), "dtype", None)).removeprefix("torch.")
    return dtype if dtype in _TOLERANCE else "float32"


def _copy_tokenizer(source: Path, target: Path) -> None:
    # As files: some model types write another tokenizer than the one they were given.
    for path in source.iterdir():
        wanted = path.suffix in (".json", ".jinja", ".model", ".txt") and not path.name.endswith(".index.json")
        if wanted and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)


def _whole(out: Path, write: Callable[[Path], T]) -> T:
    """Make a folder that is there complete or not at all."""
    if out.exists():
        raise ConfigError(f"{out} exists already; name a new folder, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        result = write(scratch / out.name)
        os.rename(scratch / out.name, out)
        return result
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
