"""Features: evidence of a stage -> a row of numbers.

A row holds, stage by stage, the signals (centred, scaled, clipped) and the text blocks: the question, the best
passage and the draft, each as TF-IDF projected on its leading axes, or as vectors of an encoder of the user's. The
columns of a stage begin with all columns of the stages before, so a stage's features are a prefix of the next one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import RouterError
from ragft_plugin.routing.signals import SIGNALS
from ragft_plugin.routing.signals.reading import Reading, metadata_text
from ragft_plugin.routing.text import MAX_CHARS, Sparse, Tfidf, principal_axes, project, words
from ragft_plugin.types import STAGES, Encoder, Evidence, FloatArray, Stage

BLOCK_RANK = 128
FEW_ROWS = 300  # up to here a term that occurs once is kept: it may name a document that comes again
SIGNAL_CLIP = 3.0
BLOCK_STAGE: dict[str, Stage] = {"question": "question", "passage": "passages", "draft": "draft"}


def trim(evidence: Evidence, stage: Stage, draft_arm: str | None, agreement_arm: str | None) -> Evidence:
    """The evidence as it was when ``stage`` had been gathered and no later one."""
    level = STAGES.index(stage)
    visible = [arm for arm, at in ((draft_arm, 2), (agreement_arm, 3)) if arm is not None and level >= at]
    passages = evidence.passages if level >= 1 else None
    drafts = {arm: evidence.drafts[arm] for arm in visible if arm in evidence.drafts}
    return replace(evidence, passages=passages, drafts=drafts)


@dataclass(eq=False)
class Featurizer:
    """Evidence -> features.

    Attributes:
        stages: in order, from "question".
        draft_arm: whose answer is the draft.
        agreement_arm: whose answer is compared with it.
        encoder: vectors for the text blocks instead of TF-IDF.
        tfidf: term weights, learnt from questions, passages and drafts together.
        axes: block -> axes, shape (v, r).
        names: per stage, the signals' feature names.
        centre: per stage, shape (2, f): mean and standard deviation of each.
    """

    stages: tuple[Stage, ...]
    draft_arm: str | None = None
    agreement_arm: str | None = None
    encoder: Encoder | None = None
    tfidf: Tfidf = field(default_factory=lambda: Tfidf({}, np.empty(0)))
    axes: dict[str, np.ndarray] = field(default_factory=dict)
    names: dict[Stage, tuple[str, ...]] = field(default_factory=dict)
    centre: dict[Stage, FloatArray] = field(default_factory=dict)

    def fit(
        self,
        evidence: Sequence[Evidence],
        answers: Sequence[Mapping[str, str]] | None = None,
        seed: int = 0,
        complete: NDArray[np.bool_] | None = None,
    ) -> FloatArray:
        """Learn from evidence; returns the features of the last stage, shape (n, d).

        Args:
            evidence: fully gathered, bar the rows that are not complete.
            answers: as in ``transform``.
            seed: of the random projection.
            complete: which rows have evidence of all stages, shape (n,); None means all. Of the others only the
                question is read, and their later features are 0.
        """
        texts = [self._texts(e) for e in evidence]
        split = [{block: words(t) for block, t in row.items()} for row in texts]
        n = len(evidence)
        whole = np.ones(n, dtype=bool) if complete is None else complete
        self.tfidf = Tfidf.fit((t for row in split for t in row.values()), min_df=2 if n > FEW_ROWS else 1)
        blocks = self._blocks()
        vectors: dict[str, FloatArray] = {}
        for block in blocks:
            if self.encoder is None:
                sparse = [self.tfidf.transform(row.get(block, [])) for row in split]
                self.axes[block] = principal_axes(sparse, len(self.tfidf.idf), BLOCK_RANK, seed)
                vectors[block] = self._project(sparse, block)
            else:
                dense = self._encode(evidence, texts, block)
                self.axes[block] = _dense_axes(dense, BLOCK_RANK)
                vectors[block] = dense @ self.axes[block]
        parts: list[FloatArray] = []
        readings: list[Reading | None] = [None] * n
        for stage in self.stages:
            found = [
                self._signals(e, stage, a, readings, i) if whole[i] or stage == "question" else {}
                for i, (e, a) in enumerate(_zip(evidence, answers))
            ]
            names = tuple(dict.fromkeys(name for row in found for name in row))
            raw = np.array([[row.get(name, np.nan) for name in names] for row in found]).reshape(n, len(names))
            raw[~np.isfinite(raw)] = np.nan
            known = ~np.isnan(raw)
            count = np.maximum(known.sum(axis=0), 1)
            mean = np.where(known, raw, 0.0).sum(axis=0) / count
            spread = np.sqrt((np.where(known, raw - mean, 0.0) ** 2).sum(axis=0) / count)
            kept = spread > 1e-9
            self.names[stage] = tuple(name for name, k in zip(names, kept, strict=True) if k)
            self.centre[stage] = np.stack([mean[kept], spread[kept]])
            parts.append(self._scale(raw[:, kept], stage))
            parts.extend(vectors[b] for b in blocks if BLOCK_STAGE[b] == stage)
        return np.concatenate(parts, axis=1)

    def width(self, stage: Stage) -> int:
        """Number of features at a stage."""
        upto = self.stages[: self.stages.index(stage) + 1]
        blocks = sum(int(self.axes[b].shape[1]) for b in self._blocks() if BLOCK_STAGE[b] in upto)
        return sum(len(self.names[s]) for s in upto) + blocks

    def transform(
        self,
        evidence: Sequence[Evidence],
        stage: Stage,
        answers: Sequence[Mapping[str, str]] | None = None,
    ) -> FloatArray:
        """Features at a stage, shape (n, width(stage))."""
        upto = self.stages[: self.stages.index(stage) + 1]
        n = len(evidence)
        out = np.zeros((n, self.width(stage)))
        readings: list[Reading | None] = [None] * n
        dense: dict[str, FloatArray] = {}
        if self.encoder is not None:
            texts = [self._texts(e) for e in evidence]
            for block in self._blocks():
                if BLOCK_STAGE[block] in upto:
                    dense[block] = self._encode(evidence, texts, block) @ self.axes[block]
        at = 0
        for s in upto:
            names = self.names[s]
            raw = np.full((n, len(names)), np.nan)
            for i, (e, a) in enumerate(_zip(evidence, answers)):
                found = self._signals(e, s, a, readings, i)
                raw[i] = [found.get(name, np.nan) for name in names]
            out[:, at : at + len(names)] = self._scale(raw, s)
            at += len(names)
            for block in self._blocks():
                if BLOCK_STAGE[block] != s:
                    continue
                width = self.axes[block].shape[1]
                if self.encoder is None:
                    vectors = [self._vector(readings[i], e, block) for i, e in enumerate(evidence)]
                    out[:, at : at + width] = self._project(vectors, block)
                else:
                    out[:, at : at + width] = dense[block]
                at += width
        return out

    def level(self, evidence: Evidence) -> int:
        """Index of the last stage that the evidence has, with all before it."""
        level = 0
        for i, stage in enumerate(self.stages):
            arm = {"draft": self.draft_arm, "agreement": self.agreement_arm}.get(stage)
            if stage == "passages" and evidence.passages is None:
                break
            if arm is not None and arm not in evidence.drafts:
                break
            level = i
        return level

    def signals(self, stage: Stage) -> NDArray[np.bool_]:
        """Which features at a stage are signals, not parts of a text block, shape (width(stage),)."""
        parts: list[NDArray[np.bool_]] = []
        for s in self.stages[: self.stages.index(stage) + 1]:
            parts.append(np.ones(len(self.names[s]), dtype=bool))
            for block in self._blocks():
                if BLOCK_STAGE[block] == s:
                    parts.append(np.zeros(self.axes[block].shape[1], dtype=bool))
        return np.concatenate(parts)

    @property
    def question_columns(self) -> slice:
        """The columns of the question's text block."""
        start = len(self.names["question"])
        return slice(start, start + self.axes["question"].shape[1])

    def _blocks(self) -> list[str]:
        return [b for b, stage in BLOCK_STAGE.items() if stage in self.stages]

    def _texts(self, evidence: Evidence) -> dict[str, str]:
        texts = {"question": evidence.query}
        if evidence.passages and "passages" in self.stages:
            top = evidence.passages[0]
            texts["passage"] = f"{top.text} {metadata_text(dict(top.metadata))}"
        draft = evidence.drafts.get(self.draft_arm or "")
        if draft is not None and "draft" in self.stages:
            texts["draft"] = draft.text
        return texts

    def _vector(self, reading: Reading | None, evidence: Evidence, block: str) -> Sparse:
        if block == "question" and reading is not None:
            return reading.query_vector
        if block == "draft" and reading is not None:
            return reading.draft_vector
        if block == "passage" and reading is not None and evidence.passages:
            # The passage is already split into words, and weighed if there is no metadata beside it.
            top = evidence.passages[0]
            if not top.metadata:
                return reading.passage_vectors[0]
            told = " " + metadata_text(dict(top.metadata))
            if len(top.text) + len(told) <= MAX_CHARS:
                return self.tfidf.transform([*reading.passage_words[0], *words(told)])
        return self.tfidf.transform(words(self._texts(evidence).get(block, "")))

    def _project(self, vectors: Sequence[Sparse], block: str) -> FloatArray:
        axes = self.axes[block]
        return np.stack([project(v, axes) for v in vectors]) if vectors else np.zeros((0, axes.shape[1]))

    def _encode(self, evidence: Sequence[Evidence], texts: Sequence[Mapping[str, str]], block: str) -> FloatArray:
        assert self.encoder is not None
        if block == "question" and all(e.embedding is not None for e in evidence):
            return np.array([e.embedding for e in evidence], dtype=np.float64)
        return np.asarray(self.encoder.encode([t.get(block, "") for t in texts]), dtype=np.float64)

    def _scale(self, raw: FloatArray, stage: Stage) -> FloatArray:
        mean, spread = self.centre[stage]
        scaled: FloatArray = (raw - mean) / spread
        np.minimum(np.maximum(scaled, -SIGNAL_CLIP, out=scaled), SIGNAL_CLIP, out=scaled)
        scaled[np.isnan(scaled)] = 0.0
        return scaled

    def _signals(
        self,
        evidence: Evidence,
        stage: Stage,
        answers: Mapping[str, str],
        readings: list[Reading | None],
        i: int,
    ) -> dict[str, float]:
        reading = Reading(
            trim(evidence, stage, self.draft_arm, self.agreement_arm),
            draft_arm=self.draft_arm,
            agreement_arm=self.agreement_arm,
            answers=answers,
            tfidf=self.tfidf,
        )
        before = readings[i]
        if before is not None:
            reading.borrow(before)
        readings[i] = reading
        found: dict[str, float] = {}
        for each in SIGNALS.values():
            if each.stage == stage:
                try:
                    found.update(each.function(reading))
                except Exception as error:
                    raise RouterError(
                        f"signal {each.name!r} failed on the query {evidence.query[:80]!r}: {error}"
                    ) from error
        return found


def _zip(
    evidence: Sequence[Evidence], answers: Sequence[Mapping[str, str]] | None
) -> zip[tuple[Evidence, Mapping[str, str]]]:
    return zip(evidence, [{}] * len(evidence) if answers is None else answers, strict=True)


def _dense_axes(vectors: FloatArray, rank: int) -> FloatArray:
    values, axes = np.linalg.eigh(vectors.T @ vectors)
    kept = np.argsort(-values)[: min(rank, len(vectors) - 1)]
    return np.ascontiguousarray(axes[:, kept[values[kept] > 1e-9]])
