from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.evaluation.answers import contains
from ragft_plugin.lora.data import read_rows
from ragft_plugin.lora.gold_questions import read_gold_questions, write_rows
from ragft_plugin.lora.retrieval_aware import GoldQuestion, retrieval_aware_rows, source_of
from ragft_plugin.types import Filter, Passage


class Overlap:
    """Ranks by shared words, ties by id: a retriever whose order can be written down."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages

    def retrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        del filter
        return [
            sorted(self.passages, key=lambda p: (-len({*q.split()} & {*p.text.split()}), p.id))[:k] for q in queries
        ]


def material(n: int) -> tuple[list[Passage], list[GoldQuestion]]:
    passages = [
        Passage(
            f"p{i:02}", f"the pump of site {i % 5} number{i} is made by maker{i}", metadata={"source": f"d{i // 2}"}
        )
        for i in range(n)
    ]
    asked = [
        GoldQuestion(f"who made the pump of site {i % 5} number{i}", (f"maker{i}",), (p,))
        for i, p in enumerate(passages)
    ]
    return passages, asked


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    n=st.integers(4, 24),
    distractors=st.integers(0, 5),
    gold_share=st.floats(0, 1),
    eval_share=st.floats(0, 0.6),
    seed=st.integers(0, 5),
)
def test_laws_of_retrieval_aware_rows(
    n: int, distractors: int, gold_share: float, eval_share: float, seed: int
) -> None:
    passages, asked = material(n)
    made = retrieval_aware_rows(
        asked, Overlap(passages), distractors=distractors, gold_share=gold_share, eval_share=eval_share, seed=seed
    )
    sides = []
    gold = {q.question: q for q in asked}
    for rows in (made.train, made.evaluation):
        bare = 0
        for row in rows:
            q = gold[row.prompt.question]
            assert row.prompt.passages is not None
            wrong = [p for p in row.prompt.passages if p.id != q.passages[0].id]
            assert not any(contains(p.text, q.answers) for p in wrong)
            assert len({p.id for p in row.prompt.passages}) == len(row.prompt.passages) <= distractors + 1
            has_gold = len(wrong) < len(row.prompt.passages)
            assert row.answer == (q.answers[0] if has_gold else "I do not know.")
            bare += not has_gold
        assert bare == round((1 - gold_share) * len(rows))
        sides.append({source_of(p) for row in rows for p in row.prompt.passages or ()})
    assert not sides[0] & sides[1]
    assert made.counts.train + made.counts.evaluation == made.counts.questions == n
    assert (made.counts.train_documents, made.counts.eval_documents) == tuple(map(len, sides))
    shuffled = random.Random(seed).sample(asked, n)
    again = retrieval_aware_rows(
        shuffled, Overlap(passages), distractors=distractors, gold_share=gold_share, eval_share=eval_share, seed=seed
    )
    assert {r.prompt: r.answer for r in _hashable(again.train)} == {r.prompt: r.answer for r in _hashable(made.train)}


def _hashable(rows):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return [
        replace(r, prompt=replace(r.prompt, passages=tuple(p.id for p in r.prompt.passages)))  # type: ignore[misc]
        for r in rows
    ]


def test_distractors_are_the_highest_ranked_passages_that_do_not_hold_the_answer() -> None:
    texts = {
        "gold": "site alpha has its head office in Rome",
        "copy": "its head office has site alpha where ROME!",  # ranks high, and holds the answer
        "near": "site alpha has its head quarters full",
        "nearer": "site alpha has its head office somewhere",
        "far": "pumps",
    }
    passages = [Passage(i, text) for i, text in texts.items()]
    asked = [GoldQuestion("where has site alpha its head office", ("rome",), (passages[0],))]
    made = retrieval_aware_rows(asked, Overlap(passages), distractors=2, gold_share=1, eval_share=0)
    ids = {p.id for p in made.train[0].prompt.passages or ()}
    assert ids == {"gold", "nearer", "near"}
    assert made.counts.refused == 1
    bare = retrieval_aware_rows(asked, Overlap(passages), distractors=2, gold_share=0, eval_share=0)
    assert {p.id for p in bare.train[0].prompt.passages or ()} == {"nearer", "near", "far"}
    assert bare.train[0].answer == "I do not know."
    memory = retrieval_aware_rows(asked, Overlap(passages), gold_share=0, eval_share=0, without_gold="memory")
    assert memory.train[0].answer == "rome"
    assert memory.counts.short == 1  # four were wanted, three are to be had
    assert memory.counts.without_gold == 1


def test_the_gold_passage_stands_in_every_place() -> None:
    passages, asked = material(24)
    made = retrieval_aware_rows(asked, Overlap(passages), distractors=2, gold_share=1, eval_share=0)
    places = {
        [p.id for p in row.prompt.passages or ()].index(q.passages[0].id)
        for row, q in zip(made.train, asked, strict=True)
    }
    assert places == {0, 1, 2}


def test_a_missing_gold_passage_is_the_first_retrieved_one_that_holds_the_answer() -> None:
    passages, asked = material(8)
    bare = [GoldQuestion(q.question, q.answers) for q in asked] + [GoldQuestion("who made the moon", ("nobody",))]
    made = retrieval_aware_rows(bare, Overlap(passages), gold_share=1, eval_share=0)
    assert (made.counts.gold_found, made.counts.dropped, made.counts.train) == (8, 1, 8)
    assert all(contains(" ".join(p.text for p in r.prompt.passages or ()), r.answer) for r in made.train)


def test_questions_with_passages_on_both_sides_are_dropped_and_counted() -> None:
    passages, asked = material(12)
    both = GoldQuestion("all", ("maker",), tuple(passages))
    made = retrieval_aware_rows([*asked, both], Overlap(passages), eval_share=0.5)
    assert made.counts.straddling == 1
    assert "straddling       1" in str(made.counts)


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"gold_share": 1.5}, "gold_share must be in"),
        ({"eval_share": 1.0}, "eval_share must be in"),
        ({"distractors": -1}, "distractors must be at least 0"),
        ({"without_gold": "guess"}, "'abstain' or 'memory'"),
    ],
)
def test_settings_out_of_range_are_refused(settings_: dict[str, object], said: str) -> None:
    passages, asked = material(4)
    with pytest.raises(ConfigError, match=said):
        retrieval_aware_rows(asked, Overlap(passages), **settings_)  # type: ignore[arg-type]


def test_nothing_to_train_on_says_why() -> None:
    with pytest.raises(DataError, match="1 without a passage that holds the answer"):
        retrieval_aware_rows([GoldQuestion("who", ("x",))], Overlap([Passage("a", "b")]))
    with pytest.raises(DataError, match="no answer"):
        GoldQuestion("who", ())


def test_questions_are_read_and_rows_written_as_they_are_read(tmp_path: Path) -> None:
    passages, asked = material(4)
    lines = [
        {"query": asked[0].question, "answer": ["maker0", "Maker 0"], "passage_id": "p00"},
        {"question": asked[1].question, "answer": "maker1", "passage_ids": ["p01"]},
        {"question": asked[2].question, "answer": "maker2", "passages": [{"id": "p02", "text": passages[2].text}]},
        {"question": "who", "answer": "me"},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    read = read_gold_questions(path, lambda ids: [p for p in passages if p.id in ids])
    assert [q.passages for q in read[:2]] == [(passages[0],), (passages[1],)]
    assert (read[0].answers, read[2].passages[0].id, read[3].passages) == (("maker0", "Maker 0"), "p02", ())
    made = retrieval_aware_rows(read, Overlap(passages), eval_share=0)
    write_rows(tmp_path / "rows.jsonl", made.train)
    back = read_rows(tmp_path / "rows.jsonl")
    assert [(r.prompt.question, r.answer) for r in back] == [(r.prompt.question, r.answer) for r in made.train]
    assert [r.prompt.passages for r in back] == [r.prompt.passages for r in made.train]
    with pytest.raises(DataError, match=r"q\.jsonl:1: the knowledge base has no passage 'p00'"):
        read_gold_questions(path, lambda ids: [])
    path.write_text('{"question": "who"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"q\.jsonl:1: the answer is None"):
        read_gold_questions(path)
