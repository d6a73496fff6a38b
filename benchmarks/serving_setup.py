"""What the benchmark of serving is made of: a random base, random adapters, prompts, and plain transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ragft_plugin.lora import LoraModel
from ragft_plugin.lora.recipe import linear_modules
from ragft_plugin.prompts import closed_book, open_book
from ragft_plugin.types import Passage, Prompt

BASES = {"random-llama": (256, 4), "random-llama-100m": (768, 16)}  # name -> width, layers
WORDS = "the pump site river is made in city by which year manager who where near blue steel bridge north seven".split()


def random_base(folder: Path, *, hidden: int, layers: int) -> Path:
    """A random Llama with a byte-level tokenizer of some 1,300 tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    chance = random.Random(0)
    made = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 6))) for _ in range(1500)]
    bpe.train_from_iterator(
        [" " + " ".join(WORDS + made)] * 3,
        trainers.BpeTrainer(
            vocab_size=1300,
            special_tokens=["<pad>", "<|end|>", "<|user|>", "<|assistant|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<|end|>")
    tokenizer.chat_template = (
        "{% for d in documents or [] %}{{ d['text'] }}\n{% endfor %}"
        "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=hidden * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=max(2, hidden // 64), num_key_value_heads=max(2, hidden // 64),
        max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.1,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_adapter(base: Path, folder: Path, *, seed: int, r: int) -> Path:
    """A random adapter over all linear layers."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft = get_peft_model(model, LoraConfig(r=r, target_modules=linear_modules(model), task_type="CAUSAL_LM"))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    peft.save_pretrained(str(folder))
    return folder


def prompt_of(number: int) -> Prompt:
    """The prompt of a number: short, half of them with a passage."""
    chance = random.Random(number)
    question = " ".join(chance.choices(WORDS, k=chance.randint(4, 10)))
    if number % 2:
        return closed_book(question)
    return open_book(question, [Passage("1", " ".join(chance.choices(WORDS, k=30)))])


class Plain:
    """transformers and PEFT as anyone would use them."""

    def __init__(self, base: Path, adapters: dict[str, Path], model: LoraModel) -> None:
        first, *others = adapters
        own = model.base.model
        peft: Any = AutoModelForCausalLM.from_pretrained(base, dtype=own.dtype).eval().to(own.device)
        peft = PeftModel.from_pretrained(peft, adapters[first], adapter_name=first)
        for name in others:
            peft.load_adapter(adapters[name], adapter_name=name)
        self.peft = peft.eval()
        self.pad = model.renderer.tokenizer.pad_token_id
        self.render = model.renderer.render

    def generate(self, arm: str | None, prompts: list[Prompt], new: int) -> torch.Tensor:
        """One call of ``generate`` over all prompts, padded on the left."""
        rows = [self.render(prompt) for prompt in prompts]
        width = max(map(len, rows))
        device = self.peft.device
        ids = torch.tensor([[self.pad] * (width - len(r)) + r for r in rows], device=device)
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
        settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
        with torch.inference_mode():
            if arm is None:
                with self.peft.disable_adapter():
                    return self.peft.generate(input_ids=ids, attention_mask=mask, **settings)
            self.peft.set_adapter(arm, inference_mode=True)
            return self.peft.generate(input_ids=ids, attention_mask=mask, **settings)


def few_shot_prompt(number: int, examples: int = 8) -> Prompt:
    """The same examples before every question."""
    chance = random.Random(-1)
    turns = []
    for _ in range(examples):
        turns += [("user", " ".join(chance.choices(WORDS, k=8))), ("assistant", " ".join(chance.choices(WORDS, k=3)))]
    return Prompt(prompt_of(2 * number + 1).question, None, tuple(turns))
