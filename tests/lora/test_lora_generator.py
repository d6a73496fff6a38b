from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from ragft_plugin.errors import AdapterError, ConfigError, DataError
from ragft_plugin.lora import LoraModel
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.prompts import closed_book, open_book
from ragft_plugin.types import AsyncGenerator, Passage, Prompt

PROMPTS: list[Prompt] = [
    closed_book("what pump?"),
    open_book("where is the site?", [Passage("1", "the site is near the copper river by the bridge")]),
    closed_book("who is manager of the blue bridge in the north by the river?"),
    closed_book("seven?"),
]
ARMS = [None, "red", "green", "blue"]


def plain_generate(
    base: Path, adapter: Path | None, ids: list[int], new: int
) -> tuple[list[int], list[float], list[float], list[float]]:
    """What transformers' own generate says: tokens, and log-probability, margin and entropy of each."""
    with quiet():
        model: Any = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter).eval()
    out = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=new,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logprobs = torch.stack(out.logits)[:, 0].log_softmax(-1)
    top = logprobs.topk(2).values
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    tokens = out.sequences[0, len(ids) :].tolist()
    return tokens, top[:, 0].tolist(), (top[:, 0] - top[:, 1]).tolist(), entropy.tolist()


@pytest.mark.parametrize("arm", ARMS)
def test_answers_are_those_of_plain_generate_alone_and_in_a_batch(
    model: LoraModel, base_folder: Path, adapter_folders: dict[str, Path], arm: str | None
) -> None:
    generator = model.generator(arm, max_new_tokens=10)
    batch = generator.generate(PROMPTS)
    for prompt, got in zip(PROMPTS, batch, strict=True):
        ids = model.renderer.render(prompt)
        folder = None if arm is None else adapter_folders[arm]
        tokens, logprobs, margins, entropies = plain_generate(base_folder, folder, ids, 10)
        assert got.text == model.renderer.decode(tokens).strip()
        assert got.usage.prompt_tokens == len(ids)
        assert got.usage.completion_tokens == len(tokens)
        assert got.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert got.margins == pytest.approx(margins, abs=1e-4)
        assert got.entropies == pytest.approx(entropies, abs=1e-4)
        assert generator.generate([prompt])[0].text == got.text


def test_the_arms_answer_differently(model: LoraModel) -> None:
    answers = {model.generator(a, max_new_tokens=10).generate(PROMPTS[:1])[0].text for a in ARMS}
    assert len(answers) == len(ARMS)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_stream_is_the_text_of_generate_in_pieces(model: LoraModel, temperature: float) -> None:
    generator = model.generator("red", max_new_tokens=16, temperature=temperature, seed=3)
    for prompt in PROMPTS:
        pieces = list(generator.stream(prompt))
        assert "".join(pieces) == generator.generate([prompt])[0].text
        assert all(pieces)
        assert len(pieces) > 2


async def test_the_async_twins_say_the_same(model: LoraModel) -> None:
    generator = model.generator("green", max_new_tokens=10)
    assert isinstance(generator, AsyncGenerator)
    expected = generator.generate(PROMPTS)
    assert await generator.agenerate(PROMPTS) == [pytest.approx(e) if isinstance(e, float) else e for e in expected]
    streamed = [piece async for piece in generator.astream(PROMPTS[1])]
    assert "".join(streamed) == expected[1].text


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(model: LoraModel) -> None:
    generator = model.generator("red", max_new_tokens=16)
    whole = generator.generate(PROMPTS[:1])[0]
    stop = whole.text[5:8]
    got = generator.generate(PROMPTS[:1], stop=[stop])[0]
    assert got.text == whole.text[: whole.text.index(stop)].strip()
    assert got.finish_reason == "stop"
    assert got.usage.completion_tokens < whole.usage.completion_tokens
    assert "".join(generator.stream(PROMPTS[0], stop=stop)) == got.text


def test_a_seed_fixes_the_sample_whatever_else_is_in_the_batch(model: LoraModel) -> None:
    generator = model.generator(None, max_new_tokens=8, temperature=1.0, seed=5)
    alone = [generator.generate([p])[0].text for p in PROMPTS]
    assert [g.text for g in generator.generate(PROMPTS)] == alone
    assert [g.text for g in generator.generate(PROMPTS, seed=6)] != alone


def test_sampling_without_a_seed_varies(model: LoraModel) -> None:
    generator = model.generator(None, max_new_tokens=8, temperature=1.0)
    assert len({generator.generate(PROMPTS[:1])[0].text for _ in range(4)}) > 1


def test_greedy_takes_the_likeliest_token_and_sampling_follows_the_distribution(
    model: LoraModel,
) -> None:
    """400 draws of one token; its share lies within four standard deviations (false alarm: 6e-5)."""
    generator = model.generator("blue", max_new_tokens=1)
    best = generator.generate(PROMPTS[:1])[0]
    assert best.logprobs is not None
    p = float(torch.tensor(best.logprobs[0]).exp())
    draws = [
        g.logprobs == pytest.approx(best.logprobs, abs=1e-5)
        for seed in range(400)
        for g in generator.generate(PROMPTS[:1], temperature=1.0, seed=seed)
    ]
    assert abs(sum(draws) / 400 - p) < 4 * (p * (1 - p) / 400) ** 0.5


def test_the_end_token_ends_an_answer(model: LoraModel) -> None:
    likely = model.generator(None, max_new_tokens=1).generate(PROMPTS[:1])[0]
    first = model.renderer.encode(model.renderer.text(PROMPTS[0]))
    token = plain_generate(model.base.folder, None, first, 1)[0][0]
    before = model.renderer.end_ids
    model.renderer.end_ids = (*before, token)
    try:
        got = model.generator(None, max_new_tokens=9).generate(PROMPTS[:1])[0]
    finally:
        model.renderer.end_ids = before
    assert likely.finish_reason == "length"
    assert got.finish_reason == "stop"
    assert got.usage.completion_tokens == 1


def test_no_prompts_give_no_answers(model: LoraModel) -> None:
    assert model.generator().generate([]) == []


def test_passages_that_do_not_fit_are_dropped_and_a_long_question_is_refused(
    model: LoraModel,
) -> None:
    passages = [Passage(str(i), "the river is blue " * 12) for i in range(9)]
    got = model.generator(max_new_tokens=4).generate([open_book("what?", passages)])[0]
    assert 100 < got.usage.prompt_tokens <= model.context - 4
    with pytest.raises(DataError, match="shorten it"):
        model.generator(max_new_tokens=4).generate([closed_book("river " * 400)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 3}, "unknown generation option 'max_tokens'"),
        ({"max_new_tokens": 0}, "at least 1, got 0"),
        ({"temperature": -1.0}, "0 or above, got -1"),
        ({"timeout": 0.0}, "above 0 seconds"),
        ({"max_new_tokens": 256}, "leaves no room"),
    ],
)
def test_a_wrong_option_is_named(model: LoraModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.generator().generate(PROMPTS[:1], **options)


def test_an_unknown_adapter_is_named_with_those_there_are(model: LoraModel) -> None:
    with pytest.raises(AdapterError, match=r"'legal'.*loaded: blue, green, red"):
        model.generator("legal")
