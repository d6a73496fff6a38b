"""The pipeline: one decision per query; gathers evidence as the router asks, runs the arm, falls back, logs.

The course of one call is written once (``ragft_plugin.course``); ``Pipeline.answer`` drives it with plain calls,
``Pipeline.aanswer`` by awaiting. Queries of a batch go through each step together: one retrieval for all, one
generation for all arms that share a generator.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ragft_plugin.answer_stream import AnswerStream
from ragft_plugin.arms import Arm, by_name
from ragft_plugin.course import Course, Generate, Request, Retrieve, Routed, adrive, drive, fallen_back
from ragft_plugin.errors import ConfigError, DataError, GenerationError
from ragft_plugin.prompts import check_question
from ragft_plugin.types import (
    Answer,
    Decision,
    Evidence,
    Filter,
    Gather,
    Generation,
    Passage,
    Retriever,
)

logger = logging.getLogger(__name__)


class Router(Protocol):
    """What the pipeline asks of a router (``ragft_plugin.routing.Router`` is one)."""

    @property
    def arms(self) -> Sequence[str]:
        """The arms it chooses among."""
        ...

    def next(
        self,
        evidence: Sequence[Evidence],
        *,
        cost_weight: float | None = None,
        arm: str | None = None,
    ) -> Sequence[Decision | Gather]:
        """For each query: the decision, or the stage of evidence to gather first."""
        ...


class DecisionSink(Protocol):
    """Where decisions are written down (``ragft_plugin.evaluation.DecisionLog`` is one)."""

    def append(
        self,
        decision: Decision,
        *,
        query: str,
        cost: float,
        passage_ids: Sequence[str] = (),
        evidence: Evidence | None = None,
        arm_costs: Mapping[str, float] | None = None,
    ) -> None:
        """Record one decision, what it was made on, and the price of every arm."""
        ...


Facts = Callable[[Sequence[str]], Sequence[Mapping[str, float]]]


class Pipeline:
    """Answers queries by the arm that the router chooses.

    Args:
        arms: the ways to answer.
        router: chooses among them; its arms must all be there.
        k: passages to retrieve per query.
        retrieval_cost: price of one retrieval in the unit of ``Arm.cost``.
        fallback: arms to try, in order, when the chosen one fails before its first token. None means every
            other arm by falling predicted value; an empty tuple means to raise instead.
        log: where decisions are recorded.
        facts: what else is known of questions beside their texts: questions -> {name: value} of each; signals for the
            router (``Evidence.facts``).
    """

    def __init__(
        self,
        arms: Mapping[str, Arm] | list[Arm] | tuple[Arm, ...],
        router: Router,
        *,
        k: int = 3,
        retrieval_cost: float = 0.0,
        fallback: Sequence[str] | None = None,
        log: DecisionSink | None = None,
        facts: Facts | None = None,
    ) -> None:
        if k < 1:
            raise ConfigError(f"k must be at least 1, not {k}")
        self.arms = by_name(arms)
        self.router = router
        self.k = k
        self.retrieval_cost = retrieval_cost
        self.fallback = None if fallback is None else tuple(fallback)
        self.log = log
        self.facts = facts
        for name in (*router.arms, *(self.fallback or ())):
            self._arm(name)
        # Passages gathered for deciding come from the first retriever; an arm with another one asks it itself.
        # (Not by truth: an empty knowledge base has length 0.)
        self.retriever = next((a.retriever for a in self.arms.values() if a.retriever is not None), None)

    # -------------------------------------------------------------------------------------------- answering

    def answer(self, query: str, **request: Any) -> Answer:
        """Answer one query.

        Args:
            query: the question.
            **request: ``scope``, ``k``, ``cost_weight``, ``arm`` (force one) and ``options`` (for the
                generator); see ``Request``.

        Raises:
            DataError: if the question is empty or too long.
            GenerationError: if the chosen arm and every fallback failed.
        """
        return self.answer_batch([query], **request)[0]

    def answer_batch(self, queries: Sequence[str], **request: Any) -> list[Answer]:
        """Answer queries together: one decision step, and one generation for all that one generator is to answer."""
        return drive(self._answer(queries, self._request(**request)))

    async def aanswer(self, query: str, **request: Any) -> Answer:
        """As ``answer``, without blocking the event loop."""
        return (await self.aanswer_batch([query], **request))[0]

    async def aanswer_batch(self, queries: Sequence[str], **request: Any) -> list[Answer]:
        """As ``answer_batch``, without blocking the event loop."""
        return await adrive(self._answer(queries, self._request(**request)))

    def decide(self, queries: Sequence[str | Evidence], **request: Any) -> list[Routed]:
        """Decide without answering; ``complete`` answers from what this returns.

        Args:
            queries: questions, or what is known of them already (passages retrieved elsewhere).
            **request: as for ``answer``.
        """
        return drive(self._decide(queries, self._request(**request)))

    async def adecide(self, queries: Sequence[str | Evidence], **request: Any) -> list[Routed]:
        """As ``decide``, without blocking the event loop."""
        return await adrive(self._decide(queries, self._request(**request)))

    def complete(self, routed: Sequence[Routed], **request: Any) -> list[Answer]:
        """Answer queries that were already decided. The decision is not made again."""
        return drive(self._complete(list(routed), self._request(**request), time.perf_counter()))

    async def acomplete(self, routed: Sequence[Routed], **request: Any) -> list[Answer]:
        """As ``complete``, without blocking the event loop."""
        course = self._complete(list(routed), self._request(**request), time.perf_counter())
        return await adrive(course)

    def passages(self, routed: Sequence[Routed], **request: Any) -> list[tuple[Passage, ...]]:
        """The passages each chosen arm reads, retrieved if need be; none for a closed-book arm."""
        return [self._read_by(item) for item in self.read(routed, **request)]

    async def apassages(self, routed: Sequence[Routed], **request: Any) -> list[tuple[Passage, ...]]:
        """As ``passages``, without blocking the event loop."""
        return [self._read_by(item) for item in await self.aread(routed, **request)]

    def read(self, routed: Sequence[Routed], **request: Any) -> list[Routed]:
        """Retrieve what each chosen arm reads; ``complete`` and ``stream`` answer from exactly that."""
        return drive(self._read(list(routed), self._request(**request)))

    async def aread(self, routed: Sequence[Routed], **request: Any) -> list[Routed]:
        """As ``read``, without blocking the event loop."""
        return await adrive(self._read(list(routed), self._request(**request)))

    def stream(self, query: str | Routed, **request: Any) -> AnswerStream:
        """Answer one query piece by piece.

        Nothing runs until the stream is iterated. A failure before the first piece falls back to another arm.

        Raises:
            PartialAnswerError: while iterating, if generation fails after the first piece.
        """
        return AnswerStream(self, query, self._request(**request))

    def _read_by(self, item: Routed) -> tuple[Passage, ...]:
        reads = self._arm(item.decision.arm).retrieves
        return (item.evidence.passages or ()) if reads else ()

    # ------------------------------------------------------------------------------------------- the course

    def _request(
        self,
        *,
        scope: Filter | None = None,
        k: int | None = None,
        cost_weight: float | None = None,
        arm: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Request:
        if arm is not None:
            self._arm(arm)
        if k is not None and k < 1:
            raise ConfigError(f"k must be at least 1, not {k}")
        return Request(scope, k or self.k, cost_weight, arm, options or {})

    def _decide(self, queries: Sequence[str | Evidence], request: Request) -> Course[list[Routed]]:
        known = [query if isinstance(query, Evidence) else Evidence(query) for query in queries]
        evidence = [replace(e, query=check_question(e.query), scope=request.scope) for e in known]
        if self.facts is not None and request.arm is None:
            told = self.facts([e.query for e in evidence])
            evidence = [replace(e, facts={**more, **e.facts}) for e, more in zip(evidence, told, strict=True)]
        decisions: dict[int, Decision] = {}
        # Every stage is gathered at most once, so a router that never decides is a fault, not a loop.
        for _ in range(8):
            open_ = [i for i in range(len(evidence)) if i not in decisions]
            if not open_:
                break
            wishes = self.router.next([evidence[i] for i in open_], cost_weight=request.cost_weight, arm=request.arm)
            groups: dict[tuple[str, str | None], list[int]] = {}
            for i, wish in zip(open_, wishes, strict=True):
                if isinstance(wish, Decision):
                    decisions[i] = wish
                else:
                    groups.setdefault((wish.stage, wish.arm), []).append(i)
            for (stage, name), members in groups.items():
                gathered = yield from self._gather(stage, name, [evidence[i] for i in members], request)
                for i, new in zip(members, gathered, strict=True):
                    evidence[i] = new
        if len(decisions) < len(evidence):
            raise ConfigError("the router asked for more stages than there are without deciding")
        return [Routed(e, decisions[i]) for i, e in enumerate(evidence)]

    def _gather(
        self, stage: str, name: str | None, evidence: list[Evidence], request: Request
    ) -> Course[list[Evidence]]:
        if stage == "passages" or name is None:
            return (yield from self._retrieve(self.retriever, evidence, request))
        arm = self._arm(name)
        if arm.retrieves:
            evidence = yield from self._retrieve(arm.retriever, evidence, request)
        answers = yield from self._generate([arm] * len(evidence), evidence, request)
        price = arm.cost - (self.retrieval_cost if arm.retrieves else 0.0)
        return [
            replace(e, drafts={**e.drafts, name: a}, spent={**e.spent, stage: price})
            for e, a in zip(evidence, answers, strict=True)
        ]

    def _retrieve(
        self, retriever: Retriever | None, evidence: list[Evidence], request: Request
    ) -> Course[list[Evidence]]:
        """Fill in passages where there are none yet."""
        if retriever is None:
            raise ConfigError("the router asked for passages, but no arm has a retriever")
        missing = [i for i, e in enumerate(evidence) if e.passages is None]
        if not missing:
            return evidence
        work = Retrieve(retriever, [evidence[i].query for i in missing], request.k, request.scope)
        found: list[list[Passage]] = yield work
        filled = list(evidence)
        for i, passages in zip(missing, found, strict=True):
            spent = {**evidence[i].spent, "passages": self.retrieval_cost}
            filled[i] = replace(evidence[i], passages=tuple(passages), spent=spent)
        return filled

    def _generate(self, arms: Sequence[Arm], evidence: Sequence[Evidence], request: Request) -> Course[list[Answer]]:
        """One generation by the generator that these arms share; an arm for each query."""
        began = time.perf_counter()
        prompts = [arm.prompt(e) for arm, e in zip(arms, evidence, strict=True)]
        made: list[Generation] = yield Generate(arms[0], prompts, {**arms[0].options, **request.options})
        if len(made) != len(prompts):
            raise GenerationError(f"arm {arms[0].name!r} returned {len(made)} answers to {len(prompts)} prompts")
        seconds = time.perf_counter() - began
        return [arm.answer(e, g, seconds) for arm, e, g in zip(arms, evidence, made, strict=True)]

    def _answer(self, queries: Sequence[str], request: Request) -> Course[list[Answer]]:
        began = time.perf_counter()
        if isinstance(queries, str):
            raise ConfigError("answer_batch takes a list of questions; for one question use answer")
        routed = yield from self._decide(queries, request)
        return (yield from self._complete(routed, request, began))

    def _read(self, routed: list[Routed], request: Request) -> Course[list[Routed]]:
        """Retrieve for the queries whose chosen arm reads and that have no passages yet."""
        filled = list(routed)
        groups: dict[str, list[int]] = {}
        for i, item in enumerate(routed):
            if self._arm(item.decision.arm).retrieves:
                groups.setdefault(item.decision.arm, []).append(i)
        for name, members in groups.items():
            retriever = self._arm(name).retriever
            evidence = [self._readable(routed[i], retriever) for i in members]
            gathered = yield from self._retrieve(retriever, evidence, request)
            for i, new in zip(members, gathered, strict=True):
                filled[i] = replace(filled[i], evidence=new, reader=name)
        return filled

    def _readable(self, item: Routed, retriever: Retriever | None) -> Evidence:
        """Evidence for an arm with this retriever: without passages that another retriever found."""
        found_by = self.retriever if item.reader is None else self._arm(item.reader).retriever
        return item.evidence if retriever is found_by else replace(item.evidence, passages=None)

    def _complete(self, routed: list[Routed], request: Request, began: float) -> Course[list[Answer]]:
        answers: dict[int, Answer] = {}
        waiting: list[int] = []
        for i, item in enumerate(routed):
            draft = item.evidence.drafts.get(item.decision.arm)
            if draft is not None:
                answers[i] = draft
            else:
                waiting.append(i)
        routed = list(routed)
        for group in _grouped(waiting, lambda i: self._writer(routed[i])):
            made = yield from self._run_group([routed[i] for i in group], request)
            for i, (item, answer) in zip(group, made, strict=True):
                routed[i], answers[i] = item, answer
        seconds = time.perf_counter() - began
        finished = [replace(answers[i], decision=item.decision, seconds=seconds) for i, item in enumerate(routed)]
        for item in routed:
            self._record(item)
        return finished

    def _writer(self, item: Routed) -> tuple[int, Mapping[str, Any]]:
        """What arms must share for their queries to be answered by one generation."""
        arm = self._arm(item.decision.arm)
        return id(arm.generator), arm.options

    def _run_group(self, items: list[Routed], request: Request) -> Course[list[tuple[Routed, Answer]]]:
        """Run arms that share a generator; if the batch fails, each arm, then each query alone; then fall back."""
        try:
            return (yield from self._run(items, request))
        except (ConfigError, DataError):
            raise
        except Exception as error:
            if len(items) == 1:
                return [(yield from self._fall_back(items[0], error, request))]
            parts = _grouped(range(len(items)), lambda i: items[i].decision.arm)
            if len(parts) == 1:
                parts = [[i] for i in range(len(items))]
            names = ", ".join(sorted({item.decision.arm for item in items}))
            logger.warning("%s failed on a batch of %d; trying it in %d parts", names, len(items), len(parts))
        results: dict[int, tuple[Routed, Answer]] = {}
        for part in parts:
            made = yield from self._run_group([items[i] for i in part], request)
            results.update(zip(part, made, strict=True))
        return [results[i] for i in range(len(items))]

    def _run(self, items: list[Routed], request: Request) -> Course[list[tuple[Routed, Answer]]]:
        items = yield from self._read(items, request)
        arms = [self._arm(item.decision.arm) for item in items]
        answers = yield from self._generate(arms, [item.evidence for item in items], request)
        return list(zip(items, answers, strict=True))

    def _fall_back(self, item: Routed, error: Exception, request: Request) -> Course[tuple[Routed, Answer]]:
        for name in self._fallbacks(item.decision):
            tried = replace(item, decision=fallen_back(item.decision, name, error))
            logger.warning("arm %s failed (%s); answering with %s", item.decision.arm, error, name)
            draft = item.evidence.drafts.get(name)
            if draft is not None:
                return tried, draft
            # The reader looks at the arm that runs; the decision keeps the arm that was chosen.
            stand_in = replace(item, decision=replace(item.decision, arm=name))
            try:
                ((done, answer),) = yield from self._run([stand_in], request)
            except Exception as another:
                error = another
                continue
            return replace(done, decision=tried.decision), answer
        raise GenerationError(
            f"arm {item.decision.arm!r} failed and no fallback answered; last error: {error}"
        ) from error

    def _fallbacks(self, decision: Decision) -> list[str]:
        if self.fallback is not None:
            order = list(self.fallback)
        else:
            order = sorted(self.arms, key=lambda name: -decision.values.get(name, float("-inf")))
        return [name for name in order if name != decision.arm]

    def _record(self, item: Routed) -> None:
        if self.log is None:
            return
        evidence, chosen = item.evidence, self._arm(item.decision.arm)
        run = {name: self._arm(name).cost for name in evidence.drafts}
        gathered = evidence.spent.get("passages", 0.0)
        run[chosen.name] = chosen.cost
        # The shared retrieval is in the price of every arm that reads; it is paid once.
        reads = sum(self._arm(name).retrieves for name in run)
        cost = sum(run.values()) - max(0, reads - 1) * self.retrieval_cost
        if not reads:
            cost += gathered
        price = getattr(self.router, "signal_price", None)
        if price is not None and not item.decision.forced:
            cost += price(item.decision.stage)
        ids = [passage.id for passage in evidence.passages or ()]
        prices = {name: arm.cost for name, arm in self.arms.items()}
        self.log.append(
            item.decision, query=evidence.query, cost=cost, passage_ids=ids, evidence=evidence, arm_costs=prices
        )

    def _arm(self, name: str) -> Arm:
        try:
            return self.arms[name]
        except KeyError:
            known = ", ".join(self.arms)
            raise ConfigError(f"there is no arm named {name!r}; the arms are: {known}") from None


def _grouped(members: Iterable[int], key: Callable[[int], Any]) -> list[list[int]]:
    """Members in groups of equal keys, in the order of first appearance; keys need not be hashable."""
    groups: list[tuple[Any, list[int]]] = []
    for member in members:
        wanted = key(member)
        for found, group in groups:
            if found == wanted:
                group.append(member)
                break
        else:
            groups.append((wanted, [member]))
    return [group for _, group in groups]
