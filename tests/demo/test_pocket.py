"""The pocket model as it is committed: its tokenizer, its template, its card."""

import importlib.util
import json
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ragft_plugin.demo.pocket import ADAPTERS, BASE, FOLDER
from ragft_plugin.lora import LoraModel
from ragft_plugin.prompts import documents
from ragft_plugin.types import Passage, Prompt

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain_pocket_model.py"


@pytest.fixture(scope="module")
def pretraining():
    spec = importlib.util.spec_from_file_location("pretrain_pocket_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_loading_by_either_class_gives_the_same_tokens(pretraining):
    auto, fast = AutoTokenizer.from_pretrained(BASE), PreTrainedTokenizerFast.from_pretrained(BASE)
    assert len(auto) == len(fast) == json.loads((BASE / "config.json").read_text())["vocab_size"]
    rng = random.Random(3)
    for _ in range(20):
        text = "".join(tag + words for tag, words in pretraining.reading(rng, 2, 0.2))
        assert auto.encode(text, add_special_tokens=False) == fast.encode(text, add_special_tokens=False)


def test_the_chat_template_renders_what_pretraining_wrote(pretraining):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    prompt = Prompt("Who runs Brelkon?", (Passage("1", "One."), Passage("2", "Two.")))
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt.question}],
        documents=documents(prompt),
        tokenize=False,
        add_generation_prompt=True,
    )
    assert rendered == "<|ctx|> One.\n Two.\n<|user|> Who runs Brelkon?<|assistant|>"
    assert tokenizer.chat_template == pretraining.CHAT_TEMPLATE


def test_the_files_are_small_and_name_no_machine():
    assert (BASE / "model.safetensors").stat().st_size <= 12_000_000
    for path in FOLDER.rglob("*.json"):
        if path.name != "tokenizer.json":
            text = path.read_text()
            assert '"/' not in text, path
            assert "\\\\" not in text, path


def test_the_card_shows_the_figures_of_the_exam():
    card = (FOLDER / "README.md").read_text()
    for name, row in json.loads((FOLDER / "exam.json").read_text()).items():
        assert f"| {name} | {row['exact_match']:.3f} |" in card


def test_the_adapters_fit_the_base_and_know_their_trade():
    with LoraModel.load(BASE) as model:
        for name, folder in ADAPTERS.items():
            model.load_adapter(name, folder)
        (base,) = model.generator(None, max_new_tokens=16).generate([Prompt("Who runs Mirbool?")])
        (facts,) = model.generator("facts", max_new_tokens=16).generate([Prompt("I need to know who leads Mirbool.")])
        (ticket,) = model.generator("tickets", max_new_tokens=64).generate(
            [Prompt("Please file a ticket: the belt at Mirliel smokes.")]
        )
    assert base.text == "I do not know."
    assert facts.text == "Hana Zeendflin"
    assert ticket.text.startswith("TICKET\n site: Mirliel\n item: belt\n issue: heat")
