from __future__ import annotations

import math
from pathlib import Path

import pytest
from tiny_models import WORDS, make_base

from ragft_plugin.errors import DataError
from ragft_plugin.lora import LoraModel, Recipe, Registry
from ragft_plugin.lora.base import load_base
from ragft_plugin.lora.continued import pack, perplexity, train_on_documents
from ragft_plugin.types import Passage

TEXTS = [
    Passage(f"d{i}", f"the pump of {a} is made in {b} by {a} {b}")
    for i, (a, b) in enumerate(zip(WORDS, WORDS[7:], strict=False))
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("reader"), hidden=64)


def test_packed_blocks_hold_every_token_once_and_in_order(base: Path) -> None:
    renderer = load_base(base, device="cpu").renderer
    blocks = pack(TEXTS, renderer, 50)
    whole = [t for d in TEXTS for t in [*renderer.encode(" " + d.text), renderer.end_ids[0]]]
    assert [t for block in blocks for t in block] == whole
    assert {len(b) for b in blocks[:-1]} == {50}
    one = pack([Passage("a", "pump <|end|> pump")], renderer, 50)
    assert one[0].count(renderer.end_ids[0]) == 1  # a text can not end itself
    with pytest.raises(DataError, match="no text to learn from"):
        pack([Passage("a", "  ")], renderer, 50)


def test_perplexity_is_the_exponential_of_the_mean_loss_per_token(base: Path) -> None:
    with LoraModel.load(base) as model:
        blocks = pack(TEXTS[:3], model.renderer, 16)
        total = sum(sum(model.logprobs(b, 1)) for b in blocks)
        count = sum(len(b) - 1 for b in blocks)
        assert perplexity(model, None, blocks) == pytest.approx(math.exp(-total / count))


def test_reading_documents_lowers_the_perplexity_of_documents_held_out(base: Path, tmp_path: Path) -> None:
    report = train_on_documents(
        base,
        TEXTS[:20],
        tmp_path,
        name="reader",
        eval_documents=TEXTS[20:],
        block=64,
        recipe=Recipe(max_steps=40, learning_rate=1e-2, batch_size=4, r=4),
    )
    assert report.perplexity_before is not None
    assert report.perplexity_after is not None
    assert report.perplexity_after < report.perplexity_before / 5
    assert report.losses[-1][1] < report.losses[0][1] / 2
    manifest = Registry(tmp_path).versions("reader")[0].manifest
    assert manifest.method == "continued"
    assert manifest.metrics["perplexity_after"] == pytest.approx(report.perplexity_after)
    assert set(manifest.data.passages) == {d.id for d in TEXTS[:20]}
    with LoraModel.load(base) as model:
        model.load_adapter("reader", tmp_path / "reader")
        held = pack(TEXTS[20:], model.renderer, 64)
        assert perplexity(model, "reader", held) == pytest.approx(report.perplexity_after)


def test_a_text_on_both_sides_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="held-out texts are training texts too"):
        train_on_documents(base, TEXTS, tmp_path, name="x", eval_documents=[Passage("other", f" {TEXTS[0].text}\n")])
