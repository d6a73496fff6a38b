"""One outcome: a query, the arms that were run on it, what they earned and what they cost.

This is the row of the outcomes file (JSON Lines, one query a line), a public format. A row also decides what a
router may know: ``Outcome.evidence`` hands out the question, passages, drafts and facts, and never what was only
known afterwards (``NEVER_FEATURES``). So a leak has to be written on purpose.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ragft_plugin.errors import DataError
from ragft_plugin.types import Answer, Evidence, Passage, Stage

NEVER_FEATURES: frozenset[str] = frozenset({"gold", "group", "query_id", "reward"})
"""Fields that no signal reads: known only afterwards, or naming the row instead of describing it."""

PROPENSITY_TOLERANCE = 1e-6

Finite = Annotated[float, Field(allow_inf_nan=False)]
Price = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
ArmName = Annotated[str, Field(min_length=1, max_length=200)]


def _as_id(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_text(value: Any) -> Any:
    # null stands in many logs where an arm ran and gave nothing that could be parsed: an empty answer.
    return "" if value is None else value


def _as_draft(value: Any) -> Any:
    return {"text": value} if value is None or isinstance(value, str) else value


def _without_null(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _visible(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in metadata.items() if k not in NEVER_FEATURES}


Text = Annotated[str, BeforeValidator(_as_text)]
Identifier = Annotated[str, BeforeValidator(_as_id), Field(min_length=1)]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class PassageRow(_Row):
    """A retrieved passage. ``score`` is None if the log tells none."""

    id: Identifier
    text: str
    score: Finite | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    def passage(self) -> Passage:
        """The passage as signals see it: a missing score is 0, metadata that tells the outcome is gone."""
        return Passage(self.id, self.text, 0.0 if self.score is None else self.score, _visible(self.metadata))


class DraftRow(_Row):
    """A short answer made in order to decide, with what its tokens tell.

    Lists have one number per token, as in ``ragft_plugin.types.Generation``.
    """

    text: Text
    logprobs: tuple[Finite, ...] | None = None
    margins: tuple[Finite, ...] | None = None
    entropies: tuple[Finite, ...] | None = None


class Outcome(_Row):
    """One line of the outcomes file.

    An arm that was not run on the query is absent from ``reward`` (partial feedback); then ``propensities`` are
    needed to learn from the row without bias.

    Attributes:
        query_id: unique within the file.
        query: the question as asked.
        group: data set, tenant, ...: for tables of the report only.
        options: choices of a multiple-choice question, letter -> text.
        gold: accepted answers, for re-scoring only.
        passages: what one retrieval found, best first; None if retrieval was not run.
        drafts: arm -> draft; a plain string means its text, null that the arm ran and said nothing.
        answers: arm -> final answer; null as above.
        reward: arm -> quality in [0, 1], higher is better.
        cost: arm -> price in the user's unit, >= 0.
        stage_cost: stage -> price of gathering it.
        propensities: arm -> probability under the policy that logged the row; sums to 1.
        arm: the arm which that policy chose; needed only where several but not all arms have a reward.
        decision_id: joins a late reward to its decision.
        stage: the last stage of evidence that the logged decision was made on; what lies beyond came with the
            answer. None where all evidence in the row was there (every arm was run).
        stage_probability: probability of having gathered exactly this evidence (1 without exploration).
        forced: the caller named the arm; such a row says nothing about the policy.
        encoder: fingerprint of what made ``embedding``.
        embedding: the query's vector.
        facts: the user's own signals, name -> value.
    """

    query_id: Identifier
    query: str
    group: str | None = None
    options: dict[str, str] | None = None
    gold: Any = None
    passages: tuple[PassageRow, ...] | None = None
    drafts: dict[ArmName, Annotated[DraftRow, BeforeValidator(_as_draft)]] = Field(default_factory=dict)
    answers: dict[ArmName, Text] = Field(default_factory=dict)
    reward: dict[ArmName, Share] = Field(min_length=1)
    cost: Annotated[dict[ArmName, Price], BeforeValidator(_without_null)] = Field(default_factory=dict)
    stage_cost: dict[Stage, Price] = Field(default_factory=dict)
    propensities: dict[ArmName, Share] | None = None
    arm: ArmName | None = None
    decision_id: str | None = None
    stage: Stage | None = None
    stage_probability: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    forced: bool = False
    encoder: str | None = None
    embedding: tuple[Finite, ...] | None = None
    facts: dict[str, Finite] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, fields: Any) -> Any:
        return _without_null(fields)

    @model_validator(mode="after")
    def _check(self) -> Outcome:
        if not self.query.strip():
            raise ValueError("query is empty; every row needs the question as asked")
        leaks = sorted(NEVER_FEATURES & self.facts.keys())
        if leaks:
            raise ValueError(
                f"facts hold {', '.join(leaks)}, known only afterwards and never a feature; "
                "keep it at the top level of the row"
            )
        if self.arm is not None and self.arm not in self.reward:
            raise ValueError(f"arm is {self.arm!r} but reward has only {', '.join(self.reward)}")
        if self.propensities is not None:
            self._check_propensities(self.propensities)
        return self

    def _check_propensities(self, propensities: Mapping[str, float]) -> None:
        total = math.fsum(propensities.values())
        if abs(total - 1.0) > PROPENSITY_TOLERANCE:
            raise ValueError(f"propensities sum to {total:.9g}, expected 1; log the probability of every arm")
        arm = self.logged_arm
        if arm is not None and propensities.get(arm, 0.0) <= 0.0 and not self.forced:
            raise ValueError(
                f"the logged arm {arm!r} has propensity {propensities.get(arm, 0.0)}, expected more "
                "than 0; was the arm named by the caller? Then set forced: true"
            )

    @property
    def logged_arm(self) -> str | None:
        """The arm that the logging policy chose, or None if the row does not say."""
        if self.arm is not None:
            return self.arm
        return next(iter(self.reward)) if len(self.reward) == 1 else None

    @property
    def question(self) -> str:
        """What the arms were asked: the query, followed by its options if there are any."""
        if not self.options:
            return self.query
        return "\n".join([self.query, *(f"{key}. {text}" for key, text in self.options.items())])

    def draft(self, arm: str, *, final: bool = False) -> Answer | None:
        """The draft of an arm, or None if the log has no text of it.

        The text of ``answers[arm]`` serves as a draft where none was logged, at the price of the arm.

        Args:
            arm: whose draft.
            final: prefer the final answer to the draft's own text. Many logs keep reasoning in the draft and
                the bare answer in ``answers``; two answers are compared by the latter.
        """
        row = self.drafts.get(arm)
        answer = self.answers.get(arm)
        if row is None:
            return None if answer is None else Answer(answer, arm)
        text = answer if final and answer is not None else row.text
        return Answer(text, arm, logprobs=row.logprobs, margins=row.margins, entropies=row.entropies)

    def price(self, stage: Stage, arm: str | None = None, *, paid: float = 0.0) -> float:
        """Cost of gathering a stage, running ``arm`` for it (draft and agreement).

        A logged draft costs what ``stage_cost`` says; an answer standing in for a draft costs as much as its
        arm. What neither tells is free.

        Args:
            stage: what to gather.
            arm: the arm it runs, None for passages.
            paid: what was spent on passages already; an arm that reads passages does not pay it again.
        """
        if arm is not None and (arm not in self.drafts or stage not in self.stage_cost):
            if arm not in self.cost:
                return self.stage_cost.get(stage, 0.0)
            return max(0.0, self.cost[arm] - (paid if reads_passages(arm) else 0.0))
        return self.stage_cost.get(stage, 0.0)

    def evidence(self, stage: Stage = "question", *, arms: Sequence[str] = (), final: bool = False) -> Evidence:
        """What a router knows once ``stage`` has been gathered, and nothing else.

        Args:
            stage: the last stage gathered. Passages are part of it from "passages" on.
            arms: arms that have run so far, in order: one at "draft", two at "agreement".
            final: as in ``draft``.

        Raises:
            ValueError: if arms are named at a stage that has run none.

        Example:
            >>> row = Outcome(query_id="1", query="Who?", drafts={"rag": "Ann"}, reward={"rag": 1})
            >>> row.evidence("draft", arms=["rag"]).drafts["rag"].text
            'Ann'
        """
        if arms and stage in ("question", "passages"):
            raise ValueError(f"no arm has run at stage {stage!r}, but arms={list(arms)} was given")
        spent: dict[str, float] = {}
        passages = None
        if stage != "question" and self.passages is not None:
            passages = tuple(row.passage() for row in self.passages)
            spent["passages"] = self.price("passages")
        drafts: dict[str, Answer] = {}
        stages: tuple[Stage, ...] = ("draft", "agreement")
        for i, arm in enumerate(arms):
            drafted = self.draft(arm, final=final)
            if drafted is not None:
                drafts[arm] = drafted
                name = stages[min(i, 1)]
                price = self.price(name, arm, paid=spent.get("passages", 0.0))
                spent[name] = spent.get(name, 0.0) + price
        return Evidence(
            query=self.question,
            embedding=None if self.embedding is None else np.asarray(self.embedding, np.float64),
            passages=passages,
            drafts=drafts,
            spent=spent,
            facts=self.facts,
        )

    def visible(self) -> dict[str, Any]:
        """The fields that signals may read, as plain data; final answers only of arms that have a draft."""
        hidden = NEVER_FEATURES | {"answers", "arm", "cost", "decision_id", "forced"}
        hidden |= {"propensities", "stage", "stage_probability"}
        fields = self.model_dump(exclude=set(hidden), exclude_none=True)
        for passage in fields.get("passages", ()):
            passage["metadata"] = _visible(passage["metadata"])
        return fields


def reads_passages(arm: str) -> bool:
    """Whether an arm has a retriever in front of it, told from its name: "rag", "rag+adapter:legal".

    Example:
        >>> reads_passages("rag+adapter:legal"), reads_passages("adapter:rag")
        (True, False)
    """
    return arm.split(":", 1)[0].split("+", 1)[0] == "rag"


def normalized_query(text: str) -> str:
    """The text by which two queries count as the same: case, spacing and closing punctuation aside.

    Example:
        >>> normalized_query(" Who  sang it? ") == normalized_query("who sang it")
        True
    """
    folded = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return folded.rstrip(" .?!") or folded


def parse_outcome(fields: Mapping[str, Any], path: str | None, line: int) -> Outcome:
    """Validate one row; an error names its file and line, or its number."""
    try:
        return Outcome.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "row"
        came = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r:.80}"
        message = f"{where}: {first['msg'].removeprefix('Value error, ')}{came}"
        if path is None:
            raise DataError(f"row {line}: {message}") from None
        raise DataError(message, path=path, line=line) from None


def plain_json(value: Any) -> Any:
    """The value as JSON can hold it. Metadata is the user's: what is no JSON becomes text, what is no number null."""
    if isinstance(value, Mapping):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_json(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)
