"""Passages in the order of a scorer, whatever found them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ragft_plugin.arms import Arm
from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.retrieval import CrossEncoderScorer, KnowledgeBase, Reranked
from ragft_plugin.routing import Router
from ragft_plugin.types import Filter, Generation, Passage, Prompt, Retriever


class Listed:
    """Finds the same passages for every query, and notes what it is asked."""

    fingerprint = "listed"

    def __init__(self, *texts: str) -> None:
        self.passages = [Passage(text, text, 1.0 - i / 10) for i, text in enumerate(texts)]
        self.asked: list[tuple[int, Filter | None]] = []

    def retrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        self.asked.append((k, filter))
        return [self.passages[:k] for _ in queries]


def lengths(query: str, passages: Sequence[Passage]) -> list[float]:
    return [len(passage.text) for passage in passages]


def test_the_best_come_first_with_their_scores_and_equals_keep_their_order() -> None:
    listed = Listed("a", "bbb", "cc", "ddd")
    ranked = Reranked(listed, lengths, candidates=4)
    assert isinstance(ranked, Retriever)
    assert [(p.id, p.score, p.metadata["retrieval_score"]) for p in ranked.retrieve(["?"], 3, {"team": 1})[0]] == [
        ("bbb", 3.0, 0.9),
        ("ddd", 3.0, 0.7),
        ("cc", 2.0, 0.8),
    ]
    assert listed.asked == [(4, {"team": 1})]
    assert listed.passages[0].metadata == {}
    assert ranked.fingerprint == "listed"


def test_more_wanted_than_candidates_are_all_scored_and_none_wanted_scores_none() -> None:
    listed = Listed("a", "bb", "ccc")
    assert [p.id for p in Reranked(listed, lengths, candidates=1).retrieve(["?"], 2)[0]] == ["bb", "a"]
    assert [p.id for p in Reranked(listed, lengths, candidates=1).retrieve(["?"], 1)[0]] == ["a"]
    assert Reranked(listed, lengths).retrieve(["?"], 0) == [[]]
    assert Reranked(Listed(), lengths).retrieve(["?"], 2) == [[]]


class Tensor:
    """As a tensor on another device: numpy cannot read it, ``tolist`` gives its numbers."""

    def __init__(self, *numbers: Any) -> None:
        self.numbers = list(numbers)

    def tolist(self) -> list[Any]:
        return self.numbers

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


@pytest.mark.parametrize(
    "scores",
    [
        [1, 2.5],
        (1.0, 2.5),
        np.array([1.0, 2.5]),
        np.array([[1.0], [2.5]], dtype=np.float32),
        [[1.0], [2.5]],
        [np.float32(1.0), np.array([2.5])[0]],
        [np.array([1.0]), np.array([2.5])],
        Tensor([1.0], [2.5]),
        [Fraction(1), Fraction(5, 2)],
        map(float, (1.0, 2.5)),
    ],
)
def test_scores_may_come_as_a_list_an_array_a_tensor_or_a_column(scores: Any) -> None:
    [found] = Reranked(Listed("a", "b"), lambda query, passages: scores).retrieve(["?"], 2)
    assert [(p.id, p.score) for p in found] == [("b", 2.5), ("a", 1.0)]
    assert all(type(p.score) is float for p in found)


def test_a_column_for_a_single_passage_is_one_score() -> None:
    [found] = Reranked(Listed("a"), lambda query, passages: np.array([[3.0]])).retrieve(["?"], 1)
    assert [p.score for p in found] == [3.0]


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([1.0], r"shape \(1,\), for 2 passages, expected 2 numbers: shape \(2,\) or \(2, 1\)"),
        (None, r"returned None, shape \(\), for 2 passages"),
        (1.0, r"returned 1\.0, shape \(\)"),
        (np.ones((2, 2)), r"shape \(2, 2\)"),
        (np.ones((1, 2)), r"shape \(1, 2\)"),
        ([[1.0], [1.0, 2.0]], "inhomogeneous"),
        (["1.0", "2.0"], "str_ is no number"),
        ("ab", "str_ is no number"),
        ({"a": 1.0, "b": 2.0}, r"returned \{'a': 1\.0, 'b': 2\.0\} for 2 passages"),
        ({1.0, 2.0}, "for 2 passages"),
        ([1.0, object()], "for 2 passages"),
        ([1.0, 10**400], "for 2 passages"),
        ([1.0, float("nan")], "returned nan for passage 'b', expected a finite number"),
        ([float("inf"), 1.0], "returned inf for passage 'a'"),
        ([1.0, None], "returned nan for passage 'b'"),
    ],
)
def test_what_is_not_a_finite_number_per_passage_is_refused(scores: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        Reranked(Listed("a", "b"), lambda query, passages: scores).retrieve(["?"], 1)


async def test_waiting_gives_the_same_with_either_kind_of_retriever(tmp_path: Path) -> None:
    plain = Reranked(Listed("a", "bb"), lengths)
    assert await plain.aretrieve(["?"], 1) == plain.retrieve(["?"], 1)
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        kb.add([Passage("1", "red lamps"), Passage("2", "red lamps and gears"), Passage("3", "blue")])
        ranked = Reranked(kb, lengths)
        assert await ranked.aretrieve(["lamps"], 2, mode="bm25") == ranked.retrieve(["lamps"], 2, mode="bm25")
        assert [p.id for p in ranked.retrieve(["lamps"], 3, mode="bm25")[0]] == ["2", "1"]


def test_an_arm_reads_what_was_reranked() -> None:
    class Reader:
        def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
            return [Generation(p.passages[0].text if p.passages else "") for p in prompts]

        def stream(self, prompt: Prompt, **options: Any) -> Any:
            yield self.generate([prompt])[0].text

    arm = Arm("rag", Reader(), Reranked(Listed("a", "bbb"), lengths))
    pipeline = Pipeline([arm], Router.cold(["rag"], retrieves={"rag": True}), k=1)
    assert pipeline.answer("What?", arm="rag").text == "bbb"


class Network:
    """As a CrossEncoder: says how it is asked."""

    def __init__(self, *, kind: str = "bert", seen: int | None = 10**30, positions: int | None = 512) -> None:
        self.config = SimpleNamespace(
            num_labels=1, model_type=kind, max_position_embeddings=positions, pad_token_id=1 if kind != "bert" else 0
        )
        self.max_seq_length = seen
        self.calls: list[tuple[int, bool]] = []

    def predict(self, pairs: Any, *, batch_size: int, show_progress_bar: bool, activation_fn: Any) -> list[float]:
        self.calls.append((batch_size, show_progress_bar))
        return [activation_fn(30.0 + len(text)) for _, text in pairs]


def test_a_cross_encoder_gives_logits_for_passages_and_texts() -> None:
    network = Network()
    scorer = CrossEncoderScorer(network, batch_size=7)
    # 30 and 31 would both be 1.0 after a sigmoid in float32.
    assert scorer("?", ["", Passage("1", "x")]) == [30.0, 31.0]
    assert network.calls == [(7, False)]
    assert scorer("?", []) == []


@pytest.mark.parametrize(
    ("network", "max_length", "limit"),
    [
        (Network(), None, 512),
        (Network(seen=128), None, 128),
        (Network(seen=None), 64, 64),
        (Network(kind="xlm-roberta", positions=514), None, 512),
        (Network(kind="modernbert", positions=8192, seen=512), 1024, 512),
        (Network(positions=None, seen=300), None, 300),
    ],
)
def test_pairs_are_cut_to_what_tokenizer_and_positions_allow(
    network: Network, max_length: int | None, limit: int
) -> None:
    CrossEncoderScorer(network, max_length=max_length)
    assert network.max_seq_length == limit


def cross_encoder(folder: Path, *, labels: int = 1, limit: int | None = None) -> Any:
    """A tiny cross-encoder with random weights: 24 positions."""
    pytest.importorskip("sentence_transformers")
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "lamp", "gear", "tax"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    settings: dict[str, Any] = {} if limit is None else {"model_max_length": limit}
    BertTokenizerFast(str(folder / "vocab.txt"), **settings).save_pretrained(folder)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
        num_labels=labels,
        initializer_range=2.0,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return CrossEncoder(str(folder), device="cpu")


@pytest.mark.slow  # the import alone takes ten seconds
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_cross_encoder_scores_as_its_network_and_cuts_what_is_too_long(tmp_path: Path) -> None:
    model = cross_encoder(tmp_path / "model")
    scorer = CrossEncoderScorer(model)
    texts = ["red lamp", "blue gear gear", "tax " * 300]
    scores = scorer("lamp", texts)
    import torch

    with torch.inference_mode():
        for text, score in zip(texts, scores, strict=True):
            batch = model.tokenizer("lamp", text, truncation=True, max_length=24, return_tensors="pt")
            assert score == pytest.approx(float(model.model(**batch).logits[0, 0]), abs=1e-5)
    # A sigmoid would have told confident passages apart no longer.
    assert any(not 0 <= score <= 1 for score in scores)
    [found] = Reranked(Listed(*texts), scorer).retrieve(["lamp"], 3)
    assert [p.score for p in found] == sorted(scores, reverse=True)
    assert scorer("lamp", []) == []


@pytest.mark.slow  # the import alone takes ten seconds
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_cross_encoder_that_classifies_is_refused_and_a_limit_can_be_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 outputs, expected 1"):
        CrossEncoderScorer(cross_encoder(tmp_path / "three", labels=3))
    model = cross_encoder(tmp_path / "one", limit=16)
    assert CrossEncoderScorer(model)("red", ["blue " * 50]) == CrossEncoderScorer(model)("red", ["blue " * 60])
    assert model.max_seq_length == 16
    CrossEncoderScorer(model, max_length=8)
    assert model.max_seq_length == 8
