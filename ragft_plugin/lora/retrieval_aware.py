"""Retrieval-aware tuning: training rows that look like what retrieval will really return.

A model tuned on questions with their one right passage has never learnt to pass over the wrong ones. Here every row
carries, beside the gold passage, the passages which the retriever in use ranks highest without their holding the
answer; a share of the rows lacks the gold passage altogether, and says so (or answers from memory).

The rows are those of RAFT, with four things put right: distractors come from the retriever and not by chance, none of
them holds the answer, no document stands both in training and in evaluation, and a seed fixes everything.

Source: Zhang et al., "RAFT: Adapting Language Model to Domain Specific RAG", 2024 (arXiv 2403.10131).
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.evaluation.answers import contains
from ragft_plugin.lora.data import TrainingRow
from ragft_plugin.prompts import open_book
from ragft_plugin.types import Filter, Passage, Retriever

WithoutGold = Literal["abstain", "memory"]
ABSTENTION = "I do not know."  # the words that ``prompts.INSTRUCTION`` asks for

_Key = tuple[str, ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GoldQuestion:
    """A question, its accepted answers, and the passages that hold them.

    Attributes:
        question: the question.
        answers: accepted answers; the first is the one that is learnt.
        passages: gold passages. None given: the highest ranked passage that holds an answer is taken.
    """

    question: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...] = ()

    def __post_init__(self) -> None:
        if not self.answers or not all(answer.strip() for answer in self.answers):
            raise DataError(f"question {self.question[:60]!r} has no answer, or an empty one; write one or drop it")

    @property
    def key(self) -> tuple[str, ...]:
        """What makes this question this question: its text, answers and gold passages."""
        return (self.question, *self.answers, "", *(p.id for p in self.passages))


@dataclass(frozen=True, slots=True)
class RowCounts:
    """What became of the questions.

    Attributes:
        questions: given.
        train, evaluation: rows made.
        without_gold: rows of both kinds that lack the gold passage.
        train_documents, eval_documents: documents whose passages stand in the rows; none stands in both.
        distractors: passages beside the gold ones.
        short: rows with fewer distractors than asked for, because retrieval had no more to give.
        refused: retrieved passages left out because they hold the answer, or repeat a gold passage.
        other_side: retrieved passages left out because their document is on the other side of the split.
        gold_found: questions without a gold passage for which retrieval found one.
        dropped: questions for which it found none.
        straddling: questions dropped because their gold passages lie on both sides.
        unsupported: questions no gold passage of which holds the answer word for word; kept.
    """

    questions: int = 0
    train: int = 0
    evaluation: int = 0
    without_gold: int = 0
    train_documents: int = 0
    eval_documents: int = 0
    distractors: int = 0
    short: int = 0
    refused: int = 0
    other_side: int = 0
    gold_found: int = 0
    dropped: int = 0
    straddling: int = 0
    unsupported: int = 0

    def __str__(self) -> str:
        return "\n".join(f"{f.name.replace('_', ' '):<16} {getattr(self, f.name):,}" for f in fields(self))


@dataclass(frozen=True, slots=True)
class RetrievalAwareRows:
    """Rows for ``train_adapter``: ``train`` to learn from, ``evaluation`` to hold out, and how they came about."""

    train: list[TrainingRow]
    evaluation: list[TrainingRow]
    counts: RowCounts


def source_of(passage: Passage) -> str:
    """The document of a passage: its source, or its id where it has none."""
    return str(passage.metadata.get("source") or passage.id)


def retrieval_aware_rows(
    questions: Iterable[GoldQuestion],
    retriever: Retriever,
    *,
    distractors: int = 3,
    gold_share: float = 0.8,
    without_gold: WithoutGold = "abstain",
    abstention: str = ABSTENTION,
    eval_share: float = 0.2,
    depth: int = 200,
    filter: Filter | None = None,
    document: Callable[[Passage], str] = source_of,
    seed: int = 0,
) -> RetrievalAwareRows:
    """Make training rows of questions with their gold passages.

    A row depends on its question, the seed and what is retrieved, not on its place among the questions.

    Args:
        questions: what to learn; repeated ones count once.
        retriever: the one that will answer later, so that its mistakes are what is trained on.
        distractors: passages beside the gold ones. A row without gold gets one more for each gold passage it lacks.
        gold_share: share of rows that keep their gold passages, in [0, 1].
        without_gold: what the other rows answer: "abstain", or "memory" (the answer all the same).
        abstention: what abstaining says.
        eval_share: share of the gold documents held out, in [0, 1).
        depth: how many passages are looked through for distractors, at most.
        filter: restricts retrieval.
        document: tells the document of a passage; the split is by its values.
        seed: of split, order and choice.

    Raises:
        ConfigError: for a setting out of range.
        DataError: if no row can be made.

    Example:
        >>> rows = retrieval_aware_rows(questions, knowledge_base, distractors=4)  # doctest: +SKIP
        >>> train_adapter(base, rows.train, "adapters", name="reader", eval_rows=rows.evaluation)  # doctest: +SKIP
    """
    _check(distractors, gold_share, without_gold, eval_share, depth)
    unique = list({q.key: q for q in questions}.values())
    with_gold, found = _with_gold(unique, retriever, depth, filter)
    names = {document(p) for q in with_gold for p in q.passages}
    bound = _bound(names, eval_share, seed)

    def held_out(passage: Passage) -> bool:
        return _draw(seed, "document", document(passage)) < bound

    split = {side: [q for q in with_gold if {held_out(p) for p in q.passages} == {side}] for side in (False, True)}
    kept = [*split[False], *split[True]]
    if not split[False]:
        raise DataError(
            f"none of {len(unique)} questions can be trained on: {len(unique) - len(with_gold)} without a passage that "
            f"holds the answer, {len(with_gold) - len(kept)} with passages on both sides of the split; pass gold "
            "passages, or a lower eval_share"
        )
    bare = _bare(split[False], gold_share, seed) | _bare(split[True], gold_share, seed)
    maker = _Maker(retriever, distractors, depth, filter, held_out)
    chosen = maker.distractors(kept, bare)
    rows: dict[bool, list[TrainingRow]] = {False: [], True: []}
    documents: dict[bool, set[str]] = {False: set(), True: set()}
    for side, members in split.items():
        for q in members:
            passages = [*(() if q.key in bare else q.passages), *chosen[q.key]]
            random.Random(f"{seed}/order/{q.key}").shuffle(passages)
            abstains = q.key in bare and without_gold == "abstain"
            prompt = open_book(q.question, passages)
            rows[side].append(TrainingRow(prompt, abstention if abstains else q.answers[0]))
            documents[side] |= {document(p) for p in passages}
    counts = RowCounts(
        questions=len(unique),
        train=len(rows[False]),
        evaluation=len(rows[True]),
        without_gold=len(bare),
        train_documents=len(documents[False]),
        eval_documents=len(documents[True]),
        distractors=sum(map(len, chosen.values())),
        short=maker.short,
        refused=maker.refused,
        other_side=maker.other_side,
        gold_found=found,
        dropped=len(unique) - len(with_gold),
        straddling=len(with_gold) - len(kept),
        unsupported=sum(not any(contains(p.text, q.answers) for p in q.passages) for q in kept),
    )
    logger.info("retrieval-aware rows: %s", counts)
    return RetrievalAwareRows(rows[False], rows[True], counts)


class _Maker:
    """Finds the distractors of questions, and counts what it leaves out."""

    def __init__(
        self,
        retriever: Retriever,
        distractors: int,
        depth: int,
        filter: Filter | None,
        held_out: Callable[[Passage], bool],
    ) -> None:
        self.short = self.refused = self.other_side = 0
        self._retriever = retriever
        self._wanted = distractors
        self._depth = depth
        self._filter = filter
        self._held_out = held_out

    def distractors(self, questions: Sequence[GoldQuestion], bare: set[_Key]) -> dict[_Key, list[Passage]]:
        """The hardest distractors of each question: highest rank first, none holding an answer."""
        chosen: dict[_Key, list[Passage]] = {}
        waiting, k = list(questions), min(self._depth, 4 * (self._wanted + 1))
        while waiting:
            results = self._retriever.retrieve([q.question for q in waiting], k, self._filter)
            again = []
            for q, retrieved in zip(waiting, results, strict=True):
                wanted = self._wanted + (len(q.passages) if q.key in bare else 0)
                picked, refused, other = self._pick(q, retrieved, wanted)
                if len(picked) < wanted and len(retrieved) >= k and k < self._depth:
                    again.append(q)
                    continue
                chosen[q.key] = picked
                self.refused += refused
                self.other_side += other
                self.short += len(picked) < wanted
            waiting, k = again, min(self._depth, 4 * k)
        return chosen

    def _pick(self, q: GoldQuestion, retrieved: Sequence[Passage], wanted: int) -> tuple[list[Passage], int, int]:
        side = self._held_out(q.passages[0])
        ids, texts = {p.id for p in q.passages}, {p.text for p in q.passages}
        picked: list[Passage] = []
        refused = other = 0
        for passage in retrieved:
            if len(picked) == wanted:
                break
            if passage.id in ids:
                continue
            if passage.text in texts or contains(passage.text, q.answers):
                refused += 1
            elif self._held_out(passage) != side:
                other += 1
            else:
                picked.append(passage)
                texts.add(passage.text)
        return picked, refused, other


def _with_gold(
    questions: Sequence[GoldQuestion], retriever: Retriever, depth: int, filter: Filter | None
) -> tuple[list[GoldQuestion], int]:
    """The questions that have gold passages or get one, and how many got one."""
    bare = [q for q in questions if not q.passages]
    found: dict[_Key, Passage] = {}
    if bare:
        results = retriever.retrieve([q.question for q in bare], min(depth, 20), filter)
        for q, retrieved in zip(bare, results, strict=True):
            best = next((p for p in retrieved if contains(p.text, q.answers)), None)
            if best is not None:
                found[q.key] = best
    filled = [
        q if q.passages else GoldQuestion(q.question, q.answers, (found[q.key],))
        for q in questions
        if q.passages or q.key in found
    ]
    return filled, len(found)


def _bound(names: set[str], share: float, seed: int) -> float:
    """Documents that draw less than this are held out: a ``share`` of ``names``, and of any others about as many."""
    draws = sorted(_draw(seed, "document", name) for name in names)
    count = min(math.ceil(share * len(draws)), len(draws) - 1)  # something is left to train on
    return (draws[count - 1] + draws[count]) / 2 if count > 0 else 0.0


def _bare(questions: Sequence[GoldQuestion], gold_share: float, seed: int) -> set[_Key]:
    """Which questions lose their gold passages: the exact share, whatever the order of the questions."""
    ranked = sorted((q.key for q in questions), key=lambda key: _draw(seed, "gold", "/".join(key)))
    return set(ranked[: round((1.0 - gold_share) * len(ranked))])


def _draw(seed: int, what: str, text: str) -> float:
    """A number in [0, 1) that depends on seed and text alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}/{text}".encode()).digest()[:8]) / 2**64


def _check(distractors: int, gold_share: float, without_gold: str, eval_share: float, depth: int) -> None:
    if distractors < 0 or depth < 1:
        raise ConfigError(f"distractors must be at least 0 and depth at least 1, got {distractors} and {depth}")
    if not 0.0 <= gold_share <= 1.0:
        raise ConfigError(f"gold_share must be in [0, 1], got {gold_share}")
    if not 0.0 <= eval_share < 1.0:
        raise ConfigError(f"eval_share must be in [0, 1), got {eval_share}")
    if without_gold not in ("abstain", "memory"):
        raise ConfigError(f"without_gold must be 'abstain' or 'memory', got {without_gold!r}")
