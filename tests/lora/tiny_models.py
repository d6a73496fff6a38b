"""A tokenizer, random bases and random adapters, small enough to be made in every test run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ragft_plugin.lora.quiet import quiet

SPECIAL = ["<pad>", "<|end|>", "<|ctx|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% if documents %}<|ctx|>{% for d in documents %} {{ d['text'] }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'system' %}<|ctx|> {{ m['content'] }}\n"
    "{% elif m['role'] == 'user' %}<|user|> {{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<|assistant|> {{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = (
    "the pump of site is made in city by which year manager answer question what who where near blue red green "
    "copper steel river bridge north south one two three four five six seven eight nine ten"
).split()


def make_tokenizer(template: str | None = TEMPLATE) -> Any:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" " + " ".join(WORDS)] * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="<|end|>",
        extra_special_tokens=SPECIAL[2:],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def make_base(folder: Path, *, seed: int = 0, hidden: int = 32, context: int = 256, **extra: Any) -> Path:
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=0.3,  # far from uniform, so that greedy answers differ and rarely tie
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **extra,
    )
    with quiet():
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, *, seed: int, r: int = 4, **extra: Any) -> Path:
    torch.manual_seed(seed)
    settings = {"target_modules": ["q_proj", "v_proj", "down_proj", "up_proj"], **extra}
    with quiet():
        model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
        peft = get_peft_model(model, LoraConfig(r=r, lora_alpha=2 * r, task_type="CAUSAL_LM", **settings))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    peft.save_pretrained(folder)
    return folder
