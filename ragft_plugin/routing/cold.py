"""Cold start: routing before there are outcomes.

Two numbers are compared, none of them learnt:

* coverage - the share of the question's words, names and long ones counting more, that the best passage contains:
  can the knowledge base answer this?
* closeness - the cosine between the question and the nearest question the adapter was trained on: was it taught
  this?

With documented thresholds: taught and not covered -> the adapter alone; taught and covered -> both, where there is
such an arm, else the larger margin; covered only -> retrieval; neither -> retrieval if there is any, because it says
what it found. Whatever it decides is a guess and its confidence says so: run some queries through all arms and fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

import numpy as np

from ragft_plugin.routing.adapters import AdapterRecord
from ragft_plugin.routing.exploring import Exploration
from ragft_plugin.routing.policies import choose
from ragft_plugin.routing.text import Sparse, Tfidf, cosine, words
from ragft_plugin.types import Decision, Evidence, FloatArray, Gather

_COMMON = frozenset(
    "a an and are as at be by can did do does for from had has have how in is it its of on or that the their they this "
    "to was were what when where which who whom whose why will with would you your me my".split()
)
_NAME = re.compile(r"(?<!^)(?<![.?!]\s)\b[A-Z]\w+|\b\w*\d\w*")
NAME_WEIGHT = 3.0  # a name or number in the question counts as so many words
MAX_QUESTIONS = 5000


@dataclass(frozen=True, eq=False)
class ColdStart:
    """Thresholds on coverage and closeness.

    Attributes:
        arms: names.
        reads: whether each arm reads passages, shape (a,).
        taught: per arm, the index in ``questions`` of its adapter, or -1.
        tfidf: weights of words in training questions.
        questions: per adapter, vectors of its training questions.
        covered: threshold on coverage.
        close: threshold on closeness.
        texts: per adapter, its training questions.
        facts: per arm, the fact that tells closeness instead, or None.
    """

    arms: tuple[str, ...]
    reads: tuple[bool, ...]
    taught: tuple[int, ...]
    tfidf: Tfidf
    questions: tuple[tuple[Sparse, ...], ...]
    covered: float
    close: float
    texts: tuple[tuple[str, ...], ...] = ()
    facts: tuple[str | None, ...] = ()

    @classmethod
    def of(
        cls,
        arms: Sequence[str],
        reads: Mapping[str, bool],
        adapters: Mapping[str, AdapterRecord],
        *,
        covered: float,
        close: float,
    ) -> ColdStart:
        """Prepare; ``adapters`` are known by arm name."""
        texts: list[tuple[str, ...]] = []
        taught: list[int] = []
        for arm in arms:
            record = adapters.get(arm)
            if record is None or not record.questions:
                taught.append(-1)
                continue
            taught.append(len(texts))
            texts.append(tuple(record.questions[:MAX_QUESTIONS]))
        facts = tuple(None if a not in adapters else adapters[a].closeness for a in arms)
        return cls.prepare(
            tuple(arms), tuple(reads[a] for a in arms), tuple(taught), tuple(texts), covered, close, facts
        )

    @classmethod
    def prepare(
        cls,
        arms: tuple[str, ...],
        reads: tuple[bool, ...],
        taught: tuple[int, ...],
        texts: tuple[tuple[str, ...], ...],
        covered: float,
        close: float,
        facts: tuple[str | None, ...] = (),
    ) -> ColdStart:
        """Weigh the training questions' words."""
        split = [[words(q) for q in each] for each in texts]
        tfidf = Tfidf.fit((w for each in split for w in each), min_df=1)
        vectors = tuple(tuple(tfidf.transform(w) for w in each) for each in split)
        return cls(arms, reads, taught, tfidf, vectors, covered, close, texts, facts or (None,) * len(arms))

    def wants_passages(self, evidence: Evidence) -> bool:
        """Whether a retrieval would help to decide."""
        return evidence.passages is None and any(self.reads)

    def judge(self, evidence: Evidence, stale: Mapping[int, str]) -> tuple[FloatArray, float, tuple[str, ...]]:
        """Values of the arms, shape (a,), the confidence, and the reasons."""
        query = words(evidence.query)
        near = self._closeness(query, evidence)
        coverage = self._coverage(query, evidence)
        # The margin over its threshold, in [-1, 1], is what makes the two comparable.
        value = np.zeros(len(self.arms))
        for a, reads in enumerate(self.reads):
            close = near[a]
            taught = None if close is None else close - self.close
            found = coverage - self.covered
            if reads and taught is not None:
                value[a] = min(found, taught) + 0.5 if found >= 0.0 and taught >= 0.0 else min(found, taught)
            elif reads:
                # An arm that reads is the safe one: it shows what it found.
                value[a] = max(found, -0.05)
            elif taught is not None:
                value[a] = taught
            else:
                value[a] = -0.1
            if a in stale:
                value[a] = -np.inf
        best = int(np.round(value, 9).argmax())
        reasons = [f"{self.arms[a]} is stale: {why}" for a, why in stale.items()]
        if evidence.passages is not None:
            reasons.append(f"passages cover {coverage:.0%} of the question (threshold {self.covered:.0%})")
        reasons += [
            f"closeness to what {self.arms[a]} was trained on is {close:.2f} (threshold {self.close:.2f})"
            for a, close in enumerate(near)
            if close is not None
        ]
        reasons.append("cold start: nothing was learnt from outcomes yet")
        confidence = float(np.clip(0.5 + 0.3 * value[best], 0.3, 0.8)) if np.isfinite(value[best]) else 0.3
        return value, confidence, tuple(reasons)

    def _closeness(self, query: Sequence[str], evidence: Evidence) -> list[float | None]:
        """Per arm, how close the question is to its adapter's training questions; None if that is not known."""
        vector = self.tfidf.transform(query)
        known = [max((cosine(vector, q) for q in each), default=0.0) for each in self.questions]
        near: list[float | None] = [None if i < 0 else known[i] for i in self.taught]
        for a, fact in enumerate(self.facts):
            if fact is not None and fact in evidence.facts:
                near[a] = evidence.facts[fact]
        return near

    def _coverage(self, query: Sequence[str], evidence: Evidence) -> float:
        asked = {w for w in query if w not in _COMMON} or set(query)
        if not asked or not evidence.passages:
            return 0.0
        # A passage that shares the wording but not the name is about something else.
        named = {w for name in _NAME.findall(evidence.query) for w in words(name)}
        weight = {w: math.sqrt(len(w)) * (NAME_WEIGHT if w in named else 1.0) for w in asked}
        total = sum(weight.values())
        return max(
            sum(v for w, v in weight.items() if w in found) / total
            for found in (set(words(p.text)) for p in evidence.passages)
        )


def decide_cold(
    cold: ColdStart,
    evidence: Evidence,
    stale: Mapping[int, str],
    exploration: Exploration,
    *,
    final: bool,
    version: str,
) -> Decision | Gather:
    """Decide one query without outcomes, or ask for passages first.

    Args:
        cold: the thresholds.
        evidence: what is known of the query.
        stale: arms that must not answer it: index -> why.
        exploration: how the arm is drawn; passages are always gathered, so there is no chance in the evidence.
        final: nothing more can be gathered.
        version: of the router.
    """
    if not final and cold.wants_passages(evidence):
        return Gather("passages")
    values, confidence, reasons = cold.judge(evidence, stale)
    best = choose(values[None])
    dist = exploration.distribution(values[None], best)
    pick = int(exploration.draw(dist, best)[0])
    return Decision(
        id=uuid4().hex,
        arm=cold.arms[pick],
        propensities=dict(zip(cold.arms, dist[0].tolist(), strict=True)),
        values={a: float(v) if np.isfinite(v) else -1.0 for a, v in zip(cold.arms, values, strict=True)},
        confidence=confidence,
        stage="question" if evidence.passages is None else "passages",
        reasons=reasons,
        router_version=version,
    )
