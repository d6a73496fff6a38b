from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_lora_registry import register
from tiny_models import make_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

from ragft_plugin.errors import AdapterError, ConfigError
from ragft_plugin.lora import LoraModel, export_adapter, merge_adapter
from ragft_plugin.lora.adapter_files import read_adapter
from ragft_plugin.lora.export import serving_problems
from ragft_plugin.lora.quiet import quiet

IDS = torch.tensor([[7, 30, 41, 9, 12, 77, 250]])


def plain(base: Path, adapter: Path | None = None) -> torch.Tensor:
    """Logits of transformers and PEFT alone."""
    with quiet(), torch.inference_mode():
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter))
        return model(IDS).logits


@pytest.mark.parametrize("extra", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_a_merged_model_computes_what_base_and_adapter_do(base_folder: Path, tmp_path: Path, extra: Any) -> None:
    adapter = make_adapter(base_folder, tmp_path / "a", seed=1, **extra)
    merged = merge_adapter(base_folder, adapter, tmp_path / "out" / "m", dtype="float32")
    assert (merged.folder, merged.dtype) == (tmp_path / "out" / "m", "float32")
    assert merged.difference < 1e-4
    wanted, got = plain(base_folder, adapter), plain(merged.folder)
    assert torch.allclose(got, wanted, atol=1e-4)
    assert not torch.allclose(got, plain(base_folder), atol=0.1)
    assert not list(merged.folder.glob("adapter*"))
    old, new = AutoTokenizer.from_pretrained(base_folder), AutoTokenizer.from_pretrained(merged.folder)
    assert old("Zürich 1234 <|user|>")["input_ids"] == new("Zürich 1234 <|user|>")["input_ids"]
    assert old.chat_template == new.chat_template
    with LoraModel.load(merged.folder) as model:  # it is a base in its own right
        model.load_adapter("again", adapter)


def test_a_merged_model_keeps_the_stored_type_and_says_what_that_costs(
    base_folder: Path, adapter_folders: dict[str, Path], tmp_path: Path
) -> None:
    merged = merge_adapter(base_folder, adapter_folders["red"], tmp_path / "m", tolerance=10)
    assert merged.dtype == "bfloat16"
    assert 0 < merged.difference < 10
    assert {t.dtype for t in load_file(tmp_path / "m" / "model.safetensors").values()} == {torch.bfloat16}
    with pytest.raises(AdapterError, match="bfloat16 rounds the update away: pass dtype='float32'"):
        merge_adapter(base_folder, adapter_folders["red"], tmp_path / "n", tolerance=1e-9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    with pytest.raises(ConfigError, match="m exists already"):
        merge_adapter(base_folder, adapter_folders["red"], tmp_path / "m")


def test_merging_checks_that_the_adapter_is_of_this_base(
    base_folder: Path, other_base_folder: Path, adapter_folders: dict[str, Path], tmp_path: Path
) -> None:
    version = register(base_folder, adapter_folders["red"], tmp_path / "adapters")
    with pytest.raises(AdapterError, match="trained with another base"):
        merge_adapter(other_base_folder, version, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_an_exported_adapter_is_what_a_server_takes_and_computes_the_same(base_folder: Path, tmp_path: Path) -> None:
    """Ranks and scales of single layers would be ignored there; they become one of each."""
    adapter = make_adapter(
        base_folder,
        tmp_path / "a",
        seed=1,
        r=4,
        rank_pattern={"down_proj": 6, "layers.1.self_attn.q_proj": 2},
        alpha_pattern={"v_proj": 3, "down_proj": 20},
    )
    version = register(base_folder, adapter, tmp_path / "adapters")
    config, weights = read_adapter(version)
    assert any("ranks or scales differ" in problem for problem in serving_problems(config, weights))
    out = export_adapter(tmp_path / "adapters" / "legal", tmp_path / "out", base_name="org/base")
    assert (out.rank, out.max_lora_rank) == (6, 8)
    assert sorted(p.name for p in out.folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "source-manifest.json",
    ]
    written = json.loads((out.folder / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "org/base"
    assert (written["r"], written["rank_pattern"], written["alpha_pattern"]) == (6, {}, {})
    assert torch.allclose(plain(base_folder, out.folder), plain(base_folder, adapter), atol=1e-5)
    # What vLLM computes from the files: one scale, names with their prefix, the rank of the configuration.
    exported = load_file(out.folder / "adapter_model.safetensors")
    original = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"
    theirs = written["lora_alpha"] / written["r"] * exported[name.format("B")] @ exported[name.format("A")]
    mine = 20 / 6 * original[name.format("B")] @ original[name.format("A")]
    assert torch.allclose(theirs, mine, atol=1e-6)
    assert all(t.shape[0 if ".lora_A." in n else 1] == 6 for n, t in exported.items())


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers:UserWarning")
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"use_dora": True}, "use_dora is not known there; merge it"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save holds whole modules \(lm_head\); merge it"),
        ({"bias": "lora_only"}, "trained biases"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is not known there"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens.* is no update of a linear layer"),
        ({"r": 513}, "its rank 513 is above 512"),
    ],
)
def test_what_a_server_does_not_take_is_refused_with_the_cure(
    base_folder: Path, tmp_path: Path, extra: Any, message: str
) -> None:
    adapter = make_adapter(base_folder, tmp_path / "a", seed=1, **extra)
    with pytest.raises(AdapterError, match=f"cannot be served beside its base: .*{message}"):
        export_adapter(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_is_checked_against_its_own_rank(base_folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base_folder, tmp_path / "a", seed=1)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(n for n in weights if ".lora_A." in n)
    weights[name] = weights[name][:2].contiguous()
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"has the shape \(2, \d+\) and the rank is 4"):
        export_adapter(adapter, tmp_path / "out")
