from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_lora_registry import manifest
from tiny_models import make_adapter, make_base, make_tokenizer
from tokenizers import pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ragft_plugin.errors import AdapterError, ConfigError
from ragft_plugin.lora import LoraModel, Registry
from ragft_plugin.lora.batch import Batch
from ragft_plugin.lora.batching import mixed_is_faster
from ragft_plugin.lora.options import Options
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.lora.request import Request
from ragft_plugin.lora.switch import AdapterSwitch
from ragft_plugin.prompts import closed_book

ASK = [closed_book("what is the blue pump?")]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def text(model: LoraModel, adapter: str | None, **options: Any) -> str:
    return model.generator(adapter, max_new_tokens=12).generate(ASK, **options)[0].text


def test_a_new_version_answers_while_the_old_one_finishes(base_folder: Path, adapter_folders: dict[str, Path]) -> None:
    with LoraModel.load(base_folder) as model:
        model.load_adapter("legal", adapter_folders["red"])
        red = text(model, "legal")
        long_red = model.generator("legal", max_new_tokens=100).generate(ASK)[0].text
        step = Batch.step

        def slow(self: Batch) -> torch.Tensor:
            time.sleep(0.004)
            return step(self)

        Batch.step = slow  # type: ignore[method-assign]
        try:
            with ThreadPoolExecutor(1) as pool:
                wait_until(lambda: not model.worker._batches)  # what was asked before has left
                under_way = pool.submit(model.generator("legal", max_new_tokens=100).generate, ASK)
                wait_until(lambda: bool(model.worker._batches))
                model.load_adapter("legal", adapter_folders["green"])
                green = text(model, "legal")
                assert under_way.result(20)[0].text == long_red
        finally:
            Batch.step = step  # type: ignore[method-assign]
        assert green != red
        assert model.adapters == ("legal",)
        model.load_adapter("other", adapter_folders["red"])
        assert text(model, "other") == red
        assert text(model, "legal") == green
        assert len(model._set._peft.peft_config) == 2  # the old version is gone


def test_unloading_all_adapters_leaves_the_untouched_base(base_folder: Path, adapter_folders: dict[str, Path]) -> None:
    with LoraModel.load(base_folder) as model:
        base = text(model, None)
        for name in ("red", "green"):
            model.load_adapter(name, adapter_folders[name])
        red = text(model, "red")
        model.unload_adapter("red")
        with pytest.raises(AdapterError, match=r"no adapter 'red' is loaded \(loaded: green\)"):
            text(model, "red")
        model.unload_adapter("green")
        assert text(model, None) == base
        assert not [n for n, _ in model.base.model.named_parameters() if "lora" in n]
        model.load_adapter("red", adapter_folders["red"])
        assert text(model, "red") == red


@pytest.mark.parametrize("name", ["lora", "base_layer", "weight", "default", "base", "Legal", "a.b", "", "../x", "1a"])
def test_names_that_peft_cannot_bear_are_refused(model: LoraModel, adapter_folders: dict[str, Path], name: str) -> None:
    with pytest.raises(AdapterError, match="take small letters"):
        model.load_adapter(name, adapter_folders["red"])


def test_an_adapter_that_changes_nothing_is_refused(model: LoraModel, base_folder: Path, tmp_path: Path) -> None:
    with quiet():
        peft = get_peft_model(LlamaForCausalLM.from_pretrained(base_folder), LoraConfig(target_modules=["q_proj"]))
    peft.save_pretrained(tmp_path)
    before = model.adapters
    with pytest.raises(AdapterError, match=r"changes nothing: .* was never trained"):
        model.load_adapter("idle", tmp_path)
    assert model.adapters == before


def test_missing_and_surplus_weights_are_refused(
    model: LoraModel, adapter_folders: dict[str, Path], tmp_path: Path
) -> None:
    weights = load_file(adapter_folders["red"] / "adapter_model.safetensors")
    first = sorted(weights)[0]
    for number, changed in enumerate(
        (
            {k: v for k, v in weights.items() if k != first},
            {**weights, first.replace("layers.0", "layers.9"): weights[first].clone()},
            {k.replace("model.layers", "encoder.blocks"): v for k, v in weights.items()},
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(adapter_folders["red"], folder)
        save_file(changed, folder / "adapter_model.safetensors")
        with pytest.raises(AdapterError, match=r"weights are missing and .* fit nowhere"):
            model.load_adapter("broken", folder)
    assert "broken" not in model.adapters


def test_an_adapter_of_another_width_is_refused(model: LoraModel, tmp_path: Path) -> None:
    other = make_base(tmp_path / "wide", hidden=64)
    with pytest.raises(AdapterError, match=r"does not fit .*; load it on the base that it was trained on"):
        model.load_adapter("wide", make_adapter(other, tmp_path / "a", seed=1))


def test_adapters_that_change_or_cannot_share_the_base_are_refused(
    model: LoraModel, base_folder: Path, adapter_folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(adapter_folders["red"], tmp_path / "pissa")
    config = tmp_path / "pissa" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(AdapterError, match="changes the base's own weights; convert it to plain LoRA"):
        model.load_adapter("pissa", tmp_path / "pissa")
    with quiet():
        prompt = get_peft_model(
            LlamaForCausalLM.from_pretrained(base_folder),
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        )
    prompt.save_pretrained(tmp_path / "prompt")
    with pytest.raises(AdapterError, match="cannot share a batch; use LoRA"):
        model.load_adapter("prompt", tmp_path / "prompt")


def test_damaged_and_pickled_adapters_are_refused(
    model: LoraModel, adapter_folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match="holds no adapter"):
        model.load_adapter("none", tmp_path)
    cut = tmp_path / "cut"
    shutil.copytree(adapter_folders["red"], cut)
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="is damaged"):
        model.load_adapter("cut", cut)
    weights.rename(cut / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickle format"):
        model.load_adapter("cut", cut)


def test_adapters_of_different_layers_and_ranks_live_side_by_side(base_folder: Path, tmp_path: Path) -> None:
    folders = {
        "small": make_adapter(base_folder, tmp_path / "small", seed=1, target_modules=["q_proj"]),
        "large": make_adapter(base_folder, tmp_path / "large", seed=2, r=8, target_modules=["gate_proj", "o_proj"]),
        "dora": make_adapter(base_folder, tmp_path / "dora", seed=3, use_dora=True),
    }
    alone = {}
    for name, folder in folders.items():
        with LoraModel.load(base_folder) as model:
            model.load_adapter(name, folder)
            alone[name] = text(model, name)
    with LoraModel.load(base_folder) as model:
        for name, folder in folders.items():
            model.load_adapter(name, folder)
        with ThreadPoolExecutor(6) as pool:
            got = list(pool.map(lambda name: (name, text(model, name)), [*folders] * 4))
    assert all(alone[name] == answer for name, answer in got)


def test_hooks_left_by_a_mixed_batch_that_raised_are_removed(
    base_folder: Path, adapter_folders: dict[str, Path]
) -> None:
    """PEFT leaves them, and every later call would silently be routed as in the batch that failed."""
    with quiet():
        peft: Any = PeftModel.from_pretrained(
            LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32),
            adapter_folders["red"],
            adapter_name="red",
        )
        peft.load_adapter(adapter_folders["green"], adapter_name="green")
    peft.eval()
    switch = AdapterSwitch(peft)
    ids = torch.tensor([[7, 8, 9], [7, 8, 9], [7, 8, 9]])

    def logits(adapter: str | None) -> torch.Tensor:
        switch.use(adapter)
        return peft(input_ids=ids[:1]).logits.detach()

    expected = [logits(a) for a in ("red", None, "green")]
    with switch.mixed(["red", None, "green"]) as names:
        mixed = peft(input_ids=ids, **names).logits.detach()
    for row, alone in zip(mixed, expected, strict=True):
        torch.testing.assert_close(row, alone[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(IndexError), switch.mixed(["red", None, "green"]) as names:
        peft(input_ids=ids + 10**6, **names)
    assert not [m for m in peft.modules() if m._forward_pre_hooks]
    for adapter, alone in zip(("red", None, "green"), expected, strict=True):
        assert torch.equal(logits(adapter), alone)


def test_a_bf16_base_computes_in_float32_on_a_cpu(base_folder: Path) -> None:
    stored = load_file(base_folder / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    with LoraModel.load(base_folder, device="cpu") as model:
        assert model.base.model.dtype == torch.float32
    with LoraModel.load(base_folder, device="cpu", dtype="bfloat16") as model:
        assert model.base.model.dtype == torch.bfloat16
        assert text(model, None)


def test_the_tokenizer_after_loading_is_the_one_that_was_saved(base_folder: Path) -> None:
    sample = "Pump 1234 of Zürich, cafe\u0301  the blue river\n"
    with LoraModel.load(base_folder) as model:
        assert model.renderer.encode(sample) == make_tokenizer()(sample)["input_ids"]


def test_a_model_type_that_replaces_the_tokenizer_is_found_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Saved as qwen2, transformers puts its own pre-tokenizer in place of the saved one."""
    folder = make_base(tmp_path)
    saved: Any = make_tokenizer()
    saved.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    saved.save_pretrained(folder)
    for file in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / file).read_text())
        content["model_type"] = "qwen2"
        if "tokenizer_class" in content:
            content["tokenizer_class"] = "Qwen2Tokenizer"
        content.pop("architectures", None)
        (folder / file).write_text(json.dumps(content))
    sample = "the blue river"
    from transformers import AutoTokenizer

    trapped: Any = AutoTokenizer.from_pretrained(folder)
    assert trapped(sample)["input_ids"] != saved(sample)["input_ids"], "the trap is gone"
    from ragft_plugin.lora.base import load_tokenizer

    with caplog.at_level(logging.WARNING, "ragft_plugin"):
        loaded = load_tokenizer(folder)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert loaded(sample)["input_ids"] == saved(sample)["input_ids"]
    assert "tokenises otherwise than tokenizer.json" in caplog.text


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path: Path) -> None:
    folder = make_base(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["surplus"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match="they do not belong together"):
        LoraModel.load(folder)


@pytest.mark.parametrize("base", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_base_that_is_not_there_is_named(base: str) -> None:
    with pytest.raises(ConfigError, match=r"is no model: expected a folder with config\.json"):
        LoraModel.load(base)


def test_an_adapter_is_no_base(adapter_folders: dict[str, Path]) -> None:
    """PEFT would nest one adapter into another without a word."""
    with pytest.raises(ConfigError, match=r"is an adapter .*; load the base it was trained on"):
        LoraModel.load(adapter_folders["red"])


def test_a_damaged_base_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded as a causal language model"):
        LoraModel.load(tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "mistral", "gemma2"])
def test_other_architectures_answer_alike_alone_and_in_a_batch(tmp_path: Path, kind: str) -> None:
    """Absolute positions, query norms, sliding windows, soft caps: nothing knows a particular model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "sliding_window": 8,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "initializer_range": 0.3,
    }
    if kind == "gpt2":
        shape = {**shape, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "sliding_window"):
            shape.pop(name)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **shape)
    with quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    prompts = [closed_book("what " * n) for n in (1, 14, 5, 9)]
    with LoraModel.load(tmp_path) as model:
        generator = model.generator(max_new_tokens=12)
        batch = [g.text for g in generator.generate(prompts)]
        assert batch == [generator.generate([p])[0].text for p in prompts]
        reference: Any = model.base.model
        for prompt, got in zip(prompts, batch, strict=True):
            ids = torch.tensor([model.renderer.render(prompt)])
            out = reference.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
            )
            assert model.renderer.decode(out[0, ids.shape[1] :].tolist()).strip() == got


def test_a_recurrent_model_is_written_row_by_row(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.5,
    )  # fmt: skip
    with quiet():
        MambaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    prompts = [closed_book("what " * n) for n in (1, 6)]
    with LoraModel.load(tmp_path) as model:
        generator = model.generator(max_new_tokens=6)
        batch = [g.text for g in generator.generate(prompts)]
        assert batch == [generator.generate([p])[0].text for p in prompts]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from ragft_plugin.lora import OpenAIGenerator\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_the_package_exports_what_it_says() -> None:
    import ragft_plugin.lora as lora

    assert lora.__all__ == sorted(lora.__all__) == dir(lora)
    assert all(getattr(lora, name).__name__ == name or callable(getattr(lora, name)) for name in lora.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        lora.Engine  # noqa: B018


def test_mixing_is_measured_and_left_alone_where_it_cannot_be(base_folder: Path, tmp_path: Path) -> None:
    device = torch.device("cpu")

    def forward(costs: dict[int, float]) -> Any:
        def run(adapters: Any, **_: Any) -> None:
            end = time.thread_time() + costs[len(set(adapters))]
            while time.thread_time() < end:
                pass

        return run

    assert mixed_is_faster(forward({1: 0.004, 3: 0.004}), [None, "a", "b"], device)
    assert not mixed_is_faster(forward({1: 0.001, 3: 0.009}), [None, "a", "b"], device)
    with LoraModel.load(base_folder, batching="auto") as model:
        model.load_adapter("dora", make_adapter(base_folder, tmp_path, seed=3, use_dora=True))
        assert not model.worker._mixed  # PEFT cannot mix DoRA
        assert text(model, "dora") != text(model, None)


def test_a_registry_promotes_under_load_and_no_answer_is_of_neither_version(
    base_folder: Path, adapter_folders: dict[str, Path], tmp_path: Path
) -> None:
    """Versions change many times while threads ask; each answer is one of the two versions', and none is the base's."""
    registry = Registry(tmp_path)
    for name in ("red", "green"):
        registry.add(manifest(), lambda folder, n=name: shutil.copytree(adapter_folders[n], folder, dirs_exist_ok=True))
    with LoraModel.load(base_folder, batching="grouped") as model:
        model.load_adapter("red", adapter_folders["red"])  # keeps layers in the base all the while
        answers = {}
        for version in ("1", "2"):
            registry.promote("legal", version)
            model.load_adapter("legal", tmp_path / "legal", trust=True)
            answers[version] = text(model, "legal")
        base = text(model, None)
        assert len({base, *answers.values()}) == 3
        stop = threading.Event()

        def ask() -> list[str]:
            got = []
            while not stop.is_set():
                got.append(text(model, "legal"))
            return got

        with ThreadPoolExecutor(6) as pool:
            asking = [pool.submit(ask) for _ in range(6)]
            try:
                for turn in range(10):
                    registry.promote("legal", "12"[turn % 2])
                    assert model.reload(trust=True) == ["legal"]
                    assert model.reload() == []
                    assert text(model, "legal") == answers["12"[turn % 2]]
            finally:
                stop.set()
            got = [answer for each in asking for answer in each.result(60)]
        assert set(got) == set(answers.values())
        assert len(model._set._peft.peft_config) <= 3  # red, the current version, and perhaps the one before
        model.unload_adapter("legal")
        with pytest.raises(AdapterError, match="no adapter 'legal' is loaded"):
            text(model, "legal")


def test_a_request_that_waits_while_its_adapter_goes_fails_and_is_not_answered_by_the_base(
    base_folder: Path, adapter_folders: dict[str, Path]
) -> None:
    with LoraModel.load(base_folder) as model:
        model.load_adapter("red", adapter_folders["red"])
        model.load_adapter("green", adapter_folders["green"])
        request = Request(model.renderer.render(ASK[0]), "red", Options(max_new_tokens=3))

        def submit_and_unload() -> None:  # between two steps, so that the request waits
            model.worker.submit([request])
            model.unload_adapter("red")

        model.worker.call(submit_and_unload)
        with pytest.raises(AdapterError, match=r"no adapter 'red' is loaded \(loaded: green\)"):
            request.future.result(20)
