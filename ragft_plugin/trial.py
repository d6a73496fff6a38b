"""A trial: every arm on every question, scored, as outcomes to learn from.

Passages are retrieved once per question and shared by all arms that read, as in the pipeline.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ragft_plugin.arms import Arm
from ragft_plugin.errors import DataError, GenerationError
from ragft_plugin.evaluation.outcome import DraftRow, Outcome, PassageRow
from ragft_plugin.prompts import check_question
from ragft_plugin.types import Answer, Evidence, Generation, Prompt

logger = logging.getLogger(__name__)

Score = Callable[[str, Sequence[str]], float]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class LabelledQuestion:
    """A question with accepted answers.

    Attributes:
        query: the question.
        answers: what counts as right.
        id: unique; by default the line number.
        group: for tables only.
    """

    query: str
    answers: tuple[str, ...]
    id: str = ""
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial measured.

    Attributes:
        outcomes: one row per question, every arm on each.
        tokens: generated tokens per arm, one number per question.
        seconds: seconds of generation per arm, in total.
    """

    outcomes: list[Outcome]
    tokens: dict[str, list[int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def read_questions(path: str | Path) -> list[LabelledQuestion]:
    """Read labelled questions: JSON Lines with ``query`` and ``answer`` or ``answers``.

    Raises:
        DataError: naming file and line, for what cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("there is no such file; give a JSON Lines file of questions", path=str(path))
    rows: list[LabelledQuestion] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"this is not UTF-8 text ({error.reason} at byte {error.start})", path=str(path)) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(_question(line, str(path), number))
    if not rows:
        raise DataError("the file holds no question; one JSON object a line is expected", path=str(path))
    return rows


def _question(line: str, path: str, number: int) -> LabelledQuestion:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"this line is not JSON ({error.msg})", path=path, line=number) from error
    if not isinstance(row, dict):
        raise DataError(f"expected an object, got {type(row).__name__}", path=path, line=number)
    # A file of training rows says "question"; both words are read.
    asked = row.get("query", row.get("question"))
    answers = row.get("answers", row.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(asked, str) or not isinstance(answers, list) or not answers:
        keys = ", ".join(map(str, row)) or "none"
        raise DataError(f"needs query (or question) and answer (or answers); has {keys}", path=path, line=number)
    if not all(isinstance(answer, str) for answer in answers):
        raise DataError("every answer must be a string", path=path, line=number)
    try:
        query = check_question(asked)
    except DataError as error:
        raise DataError(str(error), path=path, line=number) from error
    group = row.get("group")
    return LabelledQuestion(query, tuple(answers), str(row.get("query_id", number)), group and str(group))


def run_arms(
    arms: Sequence[Arm],
    questions: Sequence[LabelledQuestion],
    score: Score,
    *,
    k: int = 3,
    retrieval_cost: float = 1.0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Trial:
    """Answer every question with every arm and score the answers.

    Args:
        arms: the arms to try.
        questions: what to ask.
        score: (answer, accepted answers) -> reward in [0, 1].
        k: passages per question.
        retrieval_cost: price of one retrieval, in the unit of ``Arm.cost``.
        batch_size: questions answered together.
        progress: called with (answers made, answers to make).

    A question on which an arm fails (an empty answer, say) counts as answered by nothing, with a warning in the log.

    Raises:
        DataError: if a score lies outside [0, 1].
        GenerationError: if an arm fails on every question of a batch.
    """
    outcomes: list[Outcome] = []
    tokens: dict[str, list[int]] = {arm.name: [] for arm in arms}
    seconds = {arm.name: 0.0 for arm in arms}
    total = len(questions) * len(arms)
    done = 0
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        evidence = retrieve_once(arms, [question.query for question in batch], k)
        answers: dict[str, list[Answer]] = {}
        for arm in arms:
            began = time.perf_counter()
            answers[arm.name] = _answer(arm, evidence)
            seconds[arm.name] += time.perf_counter() - began
            tokens[arm.name] += [answer.usage.completion_tokens for answer in answers[arm.name]]
            done += len(batch)
            if progress is not None:
                progress(done, total)
        for i, question in enumerate(batch):
            given = {name: made[i] for name, made in answers.items()}
            outcomes.append(_outcome(question, evidence[i], given, arms, score, retrieval_cost))
    return Trial(outcomes, tokens, seconds)


def retrieve_once(arms: Iterable[Arm], queries: Sequence[str], k: int) -> list[Evidence]:
    """Evidence with the passages of the first retriever among the arms, if there is one."""
    retriever = next((arm.retriever for arm in arms if arm.retriever), None)
    if retriever is None:
        return [Evidence(query) for query in queries]
    found = retriever.retrieve(list(queries), k)
    return [Evidence(query, passages=tuple(passages)) for query, passages in zip(queries, found, strict=True)]


def _answer(arm: Arm, evidence: Sequence[Evidence]) -> list[Answer]:
    """Answers to a batch. A question that the arm fails on is answered by nothing; an arm that fails on all is broken.

    Raises:
        GenerationError: if no question of the batch could be answered.
    """
    prompts = [arm.prompt(e) for e in evidence]
    try:
        made = list(arm.generator.generate(prompts, **arm.options))
    except GenerationError as error:
        found = [_alone(arm, prompt) for prompt in prompts] if len(prompts) > 1 else [None]
        failed = sum(generation is None for generation in found)
        if failed == len(prompts):
            raise
        logger.warning("arm %s failed on %d of %d questions: %s", arm.name, failed, len(prompts), error)
        made = [Generation("") if generation is None else generation for generation in found]
    return [arm.answer(e, generation, 0.0) for e, generation in zip(evidence, made, strict=True)]


def _alone(arm: Arm, prompt: Prompt) -> Generation | None:
    try:
        (made,) = arm.generator.generate([prompt], **arm.options)
    except GenerationError:
        return None
    return made


def _outcome(
    question: LabelledQuestion,
    evidence: Evidence,
    given: dict[str, Answer],
    arms: Sequence[Arm],
    score: Score,
    retrieval_cost: float,
) -> Outcome:
    reward = {name: float(score(answer.text, question.answers)) for name, answer in given.items()}
    for name, value in reward.items():
        if not 0.0 <= value <= 1.0:
            raise DataError(f"the score of arm {name!r} on question {question.id!r} is {value}; expected [0, 1]")
    row: dict[str, Any] = {
        "query_id": question.id,
        "query": question.query,
        "group": question.group,
        "gold": list(question.answers),
        "answers": {name: answer.text for name, answer in given.items()},
        "drafts": {name: _draft(answer) for name, answer in given.items()},
        "reward": reward,
        "cost": {arm.name: arm.cost for arm in arms},
    }
    if evidence.passages is not None:
        row["passages"] = [
            PassageRow(id=p.id, text=p.text, score=p.score, metadata=dict(p.metadata)) for p in evidence.passages
        ]
        row["stage_cost"] = {"passages": retrieval_cost}
    return Outcome(**row)


def _draft(answer: Answer) -> DraftRow:
    return DraftRow(text=answer.text, logprobs=answer.logprobs, margins=answer.margins, entropies=answer.entropies)
