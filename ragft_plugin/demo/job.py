"""The main job: build the arms, run them, learn the router, evaluate it, answer samples.

Everything is left in one folder that is a project like a user's own: ``ragft ask -c FOLDER/ragft.yaml "..."``
works on it afterwards. Each step writes its result whole or not at all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ragft_plugin.assembly import Project
from ragft_plugin.config import FILE_NAME, Config, read_config
from ragft_plugin.demo.pocket import ADAPTERS, BASE
from ragft_plugin.demo.questions import KINDS, TAUGHT_ON, Question, Split, documents, questions
from ragft_plugin.evaluation.intervals import bootstrap_mean
from ragft_plugin.evaluation.outcome_table import Outcomes
from ragft_plugin.evaluation.outcomes import write_outcomes
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.routing import Router
from ragft_plugin.trial import LabelledQuestion, Trial, run_arms
from ragft_plugin.types import Answer, Decision, Evidence, FloatArray

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]

SETTINGS = """\
# The demo's project. Paths are relative to this file.
version: 1
base: {base}
knowledge_base: knowledge_base
encoder: hashing
adapters:
  facts: {facts}
  tickets: {tickets}
known_until:
  facts: {taught_on}  # what it was taught was true until then
router: router
k: 3
generation:
  max_new_tokens: 64
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the demo's table.

    Attributes:
        name: arm or policy.
        reward: per question, shape (n,).
        retrievals: per question, on average.
        tokens: generated tokens per question, on average, drafts included.
        seconds: to answer all questions; None for what was not run by itself.
    """

    name: str
    reward: FloatArray
    retrievals: float
    tokens: float
    seconds: float | None = None

    @property
    def mean(self) -> float:
        """Mean reward."""
        return float(self.reward.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the mean reward."""
        interval = bootstrap_mean(self.reward)
        return interval.low, interval.high


@dataclass(frozen=True, slots=True)
class Sample:
    """A question answered in front of the user."""

    question: Question
    answer: Answer
    reward: float


@dataclass(frozen=True, slots=True)
class Result:
    """What the demo measured on the test split.

    Attributes:
        arms: one line per fixed arm.
        random, router, text_router, oracle: the policies beside them.
        kinds: mean reward per question kind: line -> kind -> mean.
        samples: answered questions, one or two of each kind.
        seconds: the whole job.
    """

    arms: list[Line]
    random: Line
    router: Line
    text_router: Line
    oracle: Line
    kinds: dict[str, dict[str, float]]
    samples: list[Sample]
    seconds: float

    @property
    def lines(self) -> list[Line]:
        """The table, top to bottom."""
        return [*self.arms, self.random, self.text_router, self.router, self.oracle]

    @property
    def best_arm(self) -> Line:
        """The best fixed arm on the test split (known only afterwards; the hardest opponent)."""
        return max(self.arms, key=lambda line: line.mean)

    @property
    def headroom_captured(self) -> float:
        """Share of the gap between the best fixed arm and the oracle that the router closes."""
        gap = self.oracle.mean - self.best_arm.mean
        return (self.router.mean - self.best_arm.mean) / gap if gap > 0 else 0.0

    def to_json(self) -> dict[str, object]:
        """The figures as ``ragft demo --json`` prints them."""
        return {
            "n": len(self.router.reward),
            "arms": {line.name: round(line.mean, 4) for line in self.arms},
            "best_arm": self.best_arm.name,
            "best_arm_reward": round(self.best_arm.mean, 4),
            "random_reward": round(self.random.mean, 4),
            "text_router_reward": round(self.text_router.mean, 4),
            "reward": round(self.router.mean, 4),
            "reward_ci95": [round(bound, 4) for bound in self.router.interval],
            "oracle_reward": round(self.oracle.mean, 4),
            "headroom_captured": round(self.headroom_captured, 4),
            "retrievals_per_question": round(self.router.retrievals, 3),
            "tokens_per_question": round(self.router.tokens, 2),
            "kinds": {name: {k: round(v, 3) for k, v in row.items()} for name, row in self.kinds.items()},
            "seconds": round(self.seconds, 1),
        }


def run(folder: Path, *, retrain: bool = False, progress: Progress) -> Result:
    """Run the whole job in ``folder``.

    Args:
        folder: the project; made if need be, and gone on with if it is there.
        retrain: train the adapters instead of using those that come with the package.
        progress: makes a progress callback for a step with a label.
    """
    began = time.perf_counter()
    config = _settings(folder, retrain=retrain, progress=progress)
    with Project(config) as project:
        knowledge_base = project.knowledge_base(create=True)
        with progress("knowledge base") as advance:
            papers = documents()
            knowledge_base.add(papers)
            advance(len(papers), len(papers))
        arms = project.arms()
        trials: dict[Split, Trial] = {}
        for split in ("calibration", "test"):
            with progress(f"every arm on the {split} split") as advance:
                trials[split] = run_arms(
                    arms,
                    [LabelledQuestion(q.query, (q.answer,), q.id, q.kind) for q in questions(split)],
                    score,
                    k=config.k,
                    retrieval_cost=config.costs.retrieval,
                    progress=advance,
                )
            write_outcomes(folder / f"outcomes-{split}.jsonl", trials[split].outcomes)
        calibration = Outcomes.from_rows(trials["calibration"].outcomes)
        router = Router().fit(calibration)
        router.save(folder / config.router)
        text_router = Router().fit(calibration, stages=("question",), gate=False)
        pipeline = Pipeline(arms, router, k=config.k, retrieval_cost=config.costs.retrieval)
        with progress("the router on the test split") as advance:
            return _evaluate(pipeline, text_router, trials["test"], began, advance)


def score(answer: str, accepted: Sequence[str]) -> float:
    """1 if the answer is right to the letter."""
    return float(answer.strip() in accepted)


def _settings(folder: Path, *, retrain: bool, progress: Progress) -> Config:
    folder.mkdir(parents=True, exist_ok=True)
    adapters = dict(ADAPTERS)
    if retrain:
        from ragft_plugin.demo.retrain import retrain_adapters

        adapters = retrain_adapters(folder / "adapters", progress)
    paths = {"base": BASE, **adapters}
    text = SETTINGS.format(
        taught_on=TAUGHT_ON, **{name: json.dumps(path.absolute().as_posix()) for name, path in paths.items()}
    )
    (folder / FILE_NAME).write_text(text, encoding="utf-8")
    return read_config(folder)


def _evaluate(
    pipeline: Pipeline, text_router: Router, trial: Trial, began: float, advance: Callable[[int, int], None]
) -> Result:
    asked = questions("test")
    table = Outcomes.from_rows(trial.outcomes)
    arms = [
        Line(
            name,
            table.reward[:, i],
            float(pipeline.arms[name].retrieves),
            float(np.mean(trial.tokens[name])),
            trial.seconds[name],
        )
        for i, name in enumerate(table.arms)
    ]
    router, answers = _run_router(pipeline, asked, advance)
    text_only = [_decision(text_router, question.query).arm for question in asked]
    column = {name: i for i, name in enumerate(table.arms)}
    rows = np.arange(len(asked))
    chosen = np.array([column[name] for name in text_only])
    text_line = Line(
        "router on the text alone",
        table.reward[rows, chosen],
        float(np.mean([pipeline.arms[name].retrieves for name in text_only])),
        float(np.mean([trial.tokens[name][i] for i, name in enumerate(text_only)])),
    )
    best = table.reward.argmax(axis=1)
    names = [table.arms[i] for i in best]
    oracle = Line(
        "oracle",
        table.reward.max(axis=1),
        float(np.mean([pipeline.arms[name].retrieves for name in names])),
        float(np.mean([trial.tokens[name][i] for i, name in enumerate(names)])),
    )
    random = Line(
        "random",
        table.reward.mean(axis=1),
        float(np.mean([line.retrievals for line in arms])),
        float(np.mean([line.tokens for line in arms])),
    )
    kinds = np.array([question.kind for question in asked])
    by_kind: dict[str, dict[str, float]] = {
        line.name: {kind: float(line.reward[kinds == kind].mean()) for kind in KINDS}
        for line in (*arms, text_line, router, oracle)
    }
    samples = _samples(asked, answers)
    seconds = time.perf_counter() - began
    return Result(arms, random, router, text_line, oracle, by_kind, samples, seconds)


def _run_router(
    pipeline: Pipeline, asked: list[Question], advance: Callable[[int, int], None], batch_size: int = 64
) -> tuple[Line, list[Answer]]:
    """Answer the questions through the pipeline itself, not by looking rewards up."""
    answers: list[Answer] = []
    tokens: list[int] = []
    retrievals = 0
    began = time.perf_counter()
    for start in range(0, len(asked), batch_size):
        routed = pipeline.decide([question.query for question in asked[start : start + batch_size]])
        made = pipeline.complete(routed)
        for item, answer in zip(routed, made, strict=True):
            drafts = item.evidence.drafts
            fresh = 0 if answer.arm in drafts else answer.usage.completion_tokens
            tokens.append(fresh + sum(draft.usage.completion_tokens for draft in drafts.values()))
            retrievals += item.evidence.passages is not None or pipeline.arms[answer.arm].retrieves
        answers += made
        advance(len(answers), len(asked))
    seconds = time.perf_counter() - began
    reward = np.array([score(a.text, (q.answer,)) for a, q in zip(answers, asked, strict=True)])
    return Line("router", reward, retrievals / len(asked), float(np.mean(tokens)), seconds), answers


def _decision(router: Router, query: str) -> Decision:
    (decision,) = router.next([Evidence(query)])
    if not isinstance(decision, Decision):
        raise TypeError(f"a router on the question alone asked for {decision.stage}")
    return decision


def _samples(asked: list[Question], answers: list[Answer]) -> list[Sample]:
    """The first question of each kind, and the second of the first kind: eight."""
    drawn = list(zip(asked, answers, strict=True))
    picked = [next(pair for pair in drawn if pair[0].kind == kind) for kind in KINDS]
    picked.append([pair for pair in drawn if pair[0].kind == KINDS[0]][1])
    return [Sample(question, answer, score(answer.text, (question.answer,))) for question, answer in picked]
