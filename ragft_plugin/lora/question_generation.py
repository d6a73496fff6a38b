"""Question generation: passages become questions with answers, so that documents become a training set.

Two writers come with the package. ``Patterns`` inverts statements of known wording ("{x} is located in {v}.") and
needs no model. ``LLMWriter`` asks any language model: a function of text, a ``Generator`` of this package, or a model
of LangChain or LlamaIndex. Whatever is written is checked: an answer stands in its passage word for word, a question
does not give its answer away, and nothing is asked twice.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.evaluation.answers import contains, normalize_answer
from ragft_plugin.lora.data import TrainingRow
from ragft_plugin.lora.retrieval_aware import GoldQuestion
from ragft_plugin.prompts import MAX_QUESTION_CHARACTERS, closed_book, open_book
from ragft_plugin.types import Passage

Pair = tuple[str, str]  # question, answer
REASONS = ("not in the passage", "given away", "asked before", "answered otherwise before", "empty or too long")

logger = logging.getLogger(__name__)


class Writer(Protocol):
    """Writes questions about passages."""

    def write(self, passages: Sequence[Passage]) -> Sequence[Sequence[Pair]]:
        """Return pairs of question and answer for each passage."""
        ...


@dataclass(frozen=True, slots=True)
class GeneratedQuestions:
    """Questions that passed the checks, and what became of the others.

    Attributes:
        questions: each with its answer and its one gold passage.
        rejected: reason -> how many.
        silent: ids of passages without any question.
    """

    questions: tuple[GoldQuestion, ...]
    rejected: Mapping[str, int]
    silent: tuple[str, ...]

    def rows(self, *, with_passage: bool = False) -> list[TrainingRow]:
        """Training rows, closed-book, or with the gold passage; for distractors see ``retrieval_aware_rows``."""
        return [
            TrainingRow(open_book(q.question, q.passages) if with_passage else closed_book(q.question), q.answers[0])
            for q in self.questions
        ]

    def records(self) -> list[dict[str, Any]]:
        """JSON objects with question, answer and passage_id: training rows, and questions for ``ragft run-arms``."""
        return [
            {"question": q.question, "query": q.question, "answer": q.answers[0], "passage_id": q.passages[0].id}
            for q in self.questions
        ]

    def __str__(self) -> str:
        lines = [f"{len(self.questions):,} questions"]
        lines += [f"{count:,} left out: {reason}" for reason, count in self.rejected.items() if count]
        if self.silent:
            lines.append(f"{len(self.silent):,} passages without a question")
        return "\n".join(lines)


def generate_questions(
    passages: Iterable[Passage],
    writer: Writer,
    *,
    per_passage: int | None = None,
    max_answer_words: int = 40,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> GeneratedQuestions:
    """Write questions about passages and keep what can be trained on.

    A question asked twice with the same answer counts once; asked with another answer (of another passage), it
    counts for the first passage only, as nobody could know which one is meant.

    Args:
        passages: what to ask about.
        writer: ``Patterns``, ``LLMWriter`` or your own.
        per_passage: at most so many questions are kept per passage.
        max_answer_words: longer answers are left out.
        batch_size: passages given to the writer at once.
        progress: called with (passages done, passages in all).

    Raises:
        DataError: if the writer returns something else than pairs of texts for each passage.

    Example:
        >>> writer = Patterns([Pattern("{x} stands in {v}.", ("Where is {x}?",))])
        >>> generate_questions([Passage("1", "Brelkon stands in Rome.")], writer).questions[0].answers
        ('Rome',)
    """
    given = list(passages)
    kept: list[GoldQuestion] = []
    answers: dict[str, str] = {}
    rejected: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    silent: list[str] = []
    for start in range(0, len(given), batch_size):
        batch = given[start : start + batch_size]
        written = writer.write(batch)
        if len(written) != len(batch):
            raise DataError(f"the writer returned {len(written)} lists for {len(batch)} passages; expected one each")
        for passage, pairs in zip(batch, written, strict=True):
            own = 0
            for question, answer in _texts(pairs):
                if per_passage is not None and own >= per_passage:
                    break
                reason = _fault(question, answer, passage, answers, max_answer_words)
                if reason:
                    rejected[reason] += 1
                    continue
                answers[_key(question)] = normalize_answer(answer)
                kept.append(GoldQuestion(question, (answer,), (passage,)))
                own += 1
            if not own:
                silent.append(passage.id)
        if progress is not None:
            progress(start + len(batch), len(given))
    made = GeneratedQuestions(tuple(kept), dict(rejected), tuple(silent))
    logger.info("%s", made)
    return made


@dataclass(frozen=True, slots=True)
class Pattern:
    """A wording of a statement, and the questions it answers.

    Attributes:
        statement: with ``{v}`` for the value that is asked for, and any other names in braces for what is asked
            about; a name stands for a few words without a full stop.
        questions: with the same names, but for ``{v}``.
    """

    statement: str
    questions: tuple[str, ...]

    def __post_init__(self) -> None:
        names = re.findall(r"\{(\w+)\}", self.statement)
        asked = {name for q in self.questions for name in re.findall(r"\{(\w+)\}", q)}
        if names.count("v") != 1 or len(set(names)) != len(names) or not asked <= set(names) - {"v"}:
            raise ConfigError(
                f"the pattern {self.statement!r} must have {{v}} once and every other name at most once, and its "
                f"questions no other names than those and not {{v}}; they have {sorted(asked)}"
            )


@dataclass(frozen=True)
class Patterns:
    """Writes questions from statements of known wording, without a model.

    Args:
        patterns: tried in order on every sentence; the first that fits counts.
        questions: how many of a pattern's questions are asked per statement, evenly chosen.
    """

    patterns: Sequence[Pattern]
    questions: int = 1
    _compiled: list[tuple[re.Pattern[str], Pattern]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", [(_expression(p.statement), p) for p in self.patterns])

    def write(self, passages: Sequence[Passage]) -> list[list[Pair]]:
        """Return pairs of question and answer for each passage."""
        return [[pair for sentence in sentences(p.text) for pair in self._ask(sentence, p.id)] for p in passages]

    def _ask(self, sentence: str, seed: str) -> Iterator[Pair]:
        for expression, pattern in self._compiled:
            match = expression.fullmatch(sentence)
            if match is None:
                continue
            names = match.groupdict()
            value = names.pop("v")
            count = min(self.questions, len(pattern.questions))
            # Another passage begins with another wording, so that all of them are used.
            first = sum(f"{seed}{sentence}".encode()) % len(pattern.questions)
            for i in range(count):
                at = (first + i * len(pattern.questions) // count) % len(pattern.questions)
                yield pattern.questions[at].format(**names), value
            return


INSTRUCTION = """\
Write {n} questions that the passage below answers, for someone who does not see the passage: name who or what is \
asked about. Each answer must be copied from the passage word for word and be as short as it can be.
Write one JSON object a line and nothing else: {{"question": "...", "answer": "..."}}

Passage:
{passage}"""


@dataclass(frozen=True, slots=True)
class LLMWriter:
    """Lets a language model write the questions.

    Args:
        model: a function from prompt to text, a ``Generator`` of this package, a LangChain model (``invoke``) or a
            LlamaIndex LLM (``complete``).
        n: questions asked for, per passage.
        instruction: the prompt, with ``{n}`` and ``{passage}``.
    """

    model: Any
    n: int = 3
    instruction: str = INSTRUCTION

    def write(self, passages: Sequence[Passage]) -> list[list[Pair]]:
        """Return pairs of question and answer for each passage."""
        asked = [self.instruction.format(n=self.n, passage=p.text) for p in passages]
        return [parse_pairs(text) for text in complete(self.model, asked)]


def complete(model: Any, prompts: Sequence[str]) -> list[str]:
    """What a language model of any of the known kinds answers to texts.

    Raises:
        ConfigError: if it is of no known kind.
    """
    if hasattr(model, "generate") and hasattr(model, "stream") and not hasattr(model, "invoke"):
        return [g.text for g in model.generate([closed_book(p) for p in prompts], max_new_tokens=512)]
    if hasattr(model, "invoke"):  # LangChain
        replies = model.batch(list(prompts)) if hasattr(model, "batch") else [model.invoke(p) for p in prompts]
        return [_content(reply) for reply in replies]
    if hasattr(model, "complete"):  # LlamaIndex
        return [str(model.complete(p).text) for p in prompts]
    if callable(model):
        return [str(model(p)) for p in prompts]
    raise ConfigError(
        f"a {type(model).__name__} cannot be asked; pass a function from prompt to text, a Generator, or a model of "
        "LangChain (invoke) or LlamaIndex (complete)"
    )


def parse_pairs(text: str) -> list[Pair]:
    """Pairs of question and answer in what a model wrote: JSON lines, a JSON list, or ``Q: ... A: ...``.

    Example:
        >>> parse_pairs('Sure! {"question": "Where?", "answer": "Rome"}')
        [('Where?', 'Rome')]
        >>> parse_pairs("1. Question: Where? Answer: Rome")
        [('Where?', 'Rome')]
    """
    pairs = []
    for found in re.finditer(r"\{[^{}]*\}", text):
        try:
            record = json.loads(found.group(), strict=False)
        except ValueError:
            continue
        question, answer = record.get("question"), record.get("answer")
        if isinstance(question, str) and isinstance(answer, str | int | float):
            pairs.append((question.strip(), str(answer).strip()))
    if pairs:
        return pairs
    ask, reply = (rf"{name}\s*\d*\s*:" for name in ("Q(?:uestion)?", "A(?:nswer)?"))
    plain = rf"(?:^|\s){ask}\s*(.+?)\s*{reply}[ \t]*(.+?)(?=\s*(?:\n|$)|\s+{ask})"
    return [(q.strip(), a.strip()) for q, a in re.findall(plain, text, re.IGNORECASE)]


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its full stop."""
    return [s for s in (part.strip() for part in re.split(r"(?<=[.!?])\s+", text)) if s]


def _expression(statement: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", statement)
    made = "".join(
        re.escape(part) if i % 2 == 0 else rf"(?P<{part}>[^.!?\s](?:[^.!?]*[^.!?\s])?)" for i, part in enumerate(parts)
    )
    return re.compile(made)


def _content(reply: Any) -> str:
    content = getattr(reply, "text", None)
    if isinstance(content, str):
        return content
    content = getattr(reply, "content", reply)
    return content if isinstance(content, str) else str(content)


def _texts(pairs: Sequence[Any]) -> list[Pair]:
    for pair in pairs:
        if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise DataError(f"the writer returned {pair!r}; expected pairs of question and answer")
    return [(question.strip(), answer.strip()) for question, answer in pairs]


def _fault(question: str, answer: str, passage: Passage, answers: Mapping[str, str], longest: int) -> str | None:
    if not question or not answer or len(answer.split()) > longest or len(question) > MAX_QUESTION_CHARACTERS:
        return "empty or too long"
    if not contains(passage.text, answer):
        return "not in the passage"
    if contains(question, answer):
        return "given away"
    before = answers.get(_key(question))
    if before is None:
        return None
    return "asked before" if before == normalize_answer(answer) else "answered otherwise before"


def _key(question: str) -> str:
    return normalize_answer(question)
