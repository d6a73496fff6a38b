"""The router: evidence -> a decision, or the next stage to gather."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from uuid import uuid4

import numpy as np

from ragft_plugin.errors import RouterError
from ragft_plugin.evaluation.outcomes import Outcomes, reads_passages
from ragft_plugin.routing.adapters import AdapterRecord, stale_arms
from ragft_plugin.routing.checks import check_weight, checked_encoder, distinct_arms, misfit
from ragft_plugin.routing.cold import ColdStart, decide_cold
from ragft_plugin.routing.costs import signal_price
from ragft_plugin.routing.deciding import decide, forced
from ragft_plugin.routing.exploring import Exploration
from ragft_plugin.routing.learning import Progress, learn
from ragft_plugin.routing.parts import Parts
from ragft_plugin.routing.path import Terms
from ragft_plugin.routing.plan import Setting
from ragft_plugin.types import Decision, Encoder, Evidence, Gather, Stage

logger = logging.getLogger(__name__)


class Router:
    """Decides which arm answers a query, and how much to find out first.

    Learn one with ``Router.fit``, start without outcomes with ``Router.cold``, keep it with ``save`` and ``load``.

    Args:
        cost_weight: reward given up per unit of cost, where a call says nothing else.
        policy: name of the exploration policy (``POLICIES``), wrapped around the gated decision.
        exploration: its amount: epsilon, or the softmax temperature; what chance does then is told in
            ``ragft_plugin.routing.exploring``.
        adapters: arm -> what is known of its adapter's training; closed-book arms are checked for staleness.

    Example:
        >>> from ragft_plugin.types import Evidence, Passage
        >>> router = Router.cold(["adapter", "rag"])
        >>> router.next([Evidence("Who wrote Emma?")])[0]
        Gather(stage='passages', arm=None, probability=1.0)
        >>> found = (Passage("1", "Jane Austen wrote Emma."),)
        >>> router.next([Evidence("Who wrote Emma?", passages=found)])[0].arm
        'rag'
    """

    def __init__(
        self,
        *,
        cost_weight: float = 0.0,
        policy: str = "greedy",
        exploration: float = 0.0,
        adapters: Mapping[str, AdapterRecord] | None = None,
    ) -> None:
        check_weight(cost_weight)
        Exploration(policy)  # refuses a name there is not
        self.cost_weight = cost_weight
        self.policy = policy
        self.exploration = exploration
        self.adapters: Mapping[str, AdapterRecord] = dict(adapters or {})
        self.version = ""
        self.fingerprints: dict[str, str] = {}
        self.demoted: str | None = None
        # What decides: thresholds before there are outcomes, parts that were learnt afterwards.
        self.cold_start: ColdStart | None = None
        self.parts: Parts | None = None

    # ------------------------------------------------------------------------------------------- making one

    @classmethod
    def cold(
        cls,
        arms: Sequence[str],
        *,
        retrieves: Mapping[str, bool] | None = None,
        adapters: Mapping[str, AdapterRecord] | None = None,
        covered: float = 0.6,
        close: float = 0.5,
        **settings: object,
    ) -> Router:
        """A router for the time before there are outcomes.

        It compares how well the passages cover the question with how close the question is to those the adapter
        was trained on; see ``ragft_plugin.routing.cold``.

        Args:
            arms: names of the arms.
            retrieves: arm -> whether it reads passages; None tells it from the names.
            adapters: arm -> what its adapter was trained on.
            covered: share of the question's words from which passages count as covering it.
            close: cosine to the nearest training question from which the adapter counts as knowing it.
            **settings: as in ``Router``.

        Raises:
            ConfigError: if there are no arms, or duplicates.
        """
        names = distinct_arms(arms)
        router = cls(adapters=adapters, **settings)  # type: ignore[arg-type]
        reads = {a: (retrieves or {}).get(a, reads_passages(a)) for a in names}
        router.cold_start = ColdStart.of(names, reads, adapters or {}, covered=covered, close=close)
        router.version = "cold"
        return router

    def fit(
        self,
        outcomes: Outcomes,
        *,
        stages: Sequence[Stage] | None = None,
        encoder: str | Encoder = "tfidf",
        model: str = "linear",
        draft_arm: str | None = None,
        agreement_arm: str | None = None,
        gate: bool = True,
        seed: int = 0,
        fingerprints: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> Router:
        """Learn from outcomes.

        Args:
            outcomes: the log. Partial feedback needs propensities.
            stages: stages of evidence that may be used; None means all that the log has for every row, or
                that chance gathered for some.
            encoder: "tfidf", or vectors of your own.
            model: name of the reward model (``REWARD_MODELS``).
            draft_arm: whose answer is the draft; None chooses.
            agreement_arm: whose answer is compared with it; None chooses.
            gate: False lets the learnt policy decide even where it has not been shown to gain anything.
            seed: of folds and resampling.
            fingerprints: name -> fingerprint of the knowledge base and the adapters behind the log; checked by
                ``check``.
            progress: called with (steps done, steps in all).

        Returns:
            Itself.

        Raises:
            DataError: if the log cannot be learnt from.
            ConfigError: for an unknown stage, arm, model or encoder.
        """
        learnt = learn(
            outcomes,
            stages=stages,
            encoder=checked_encoder(encoder),
            model=model,
            draft_arm=draft_arm,
            agreement_arm=agreement_arm,
            gated=gate,
            seed=seed,
            progress=progress,
        )
        self.parts = learnt.parts
        self.cold_start = None
        self.demoted = None
        self.version = uuid4().hex[:12]
        self.fingerprints = {"encoder": self.encoder_fingerprint, **(fingerprints or {})}
        return self

    # ------------------------------------------------------------------------------------------- what it is

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms it chooses among."""
        if self.cold_start is not None:
            return self.cold_start.arms
        return () if self.parts is None else self.parts.arms

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of evidence it may ask for."""
        return self.fitted().stages

    @property
    def draft_arm(self) -> str | None:
        """The arm it asks for a draft."""
        return None if self.parts is None else self.parts.featurizer.draft_arm

    @property
    def agreement_arm(self) -> str | None:
        """The arm it asks for a second answer."""
        return None if self.parts is None else self.parts.featurizer.agreement_arm

    @property
    def encoder_fingerprint(self) -> str:
        """Fingerprint of the vectors it reads texts with."""
        encoder = None if self.parts is None else self.parts.featurizer.encoder
        return "tfidf" if encoder is None else encoder.fingerprint

    def gate(self, cost_weight: float | None = None) -> Setting:
        """The gate and its figures at a cost weight."""
        return self.fitted().plan.at(self.weight(cost_weight))

    def signal_price(self, stage: Stage) -> float:
        """Price of all signals that are read up to a stage, beside the stages themselves."""
        if self.parts is None:
            return 0.0
        stages = self.parts.stages
        return sum(signal_price(s) for s in stages[: stages.index(stage) + 1]) if stage in stages else 0.0

    def fitted(self) -> Parts:
        """The parts that were learnt.

        Raises:
            RouterError: if it was not fitted.
        """
        if self.parts is None:
            raise RouterError("the router is not fitted; call fit, load one, or start with Router.cold")
        return self.parts

    def weight(self, cost_weight: float | None) -> float:
        """The cost weight of a call; its own for None.

        Raises:
            ConfigError: if it is negative or not finite.
        """
        weight = self.cost_weight if cost_weight is None else cost_weight
        check_weight(weight)
        return float(weight)

    # -------------------------------------------------------------------------------------------- deciding

    def next(
        self,
        evidence: Sequence[Evidence],
        *,
        cost_weight: float | None = None,
        arm: str | None = None,
        policy: str | None = None,
        exploration: float | None = None,
        rng: np.random.Generator | None = None,
        answers: Sequence[Mapping[str, str]] | None = None,
        final: bool = False,
    ) -> list[Decision | Gather]:
        """For each query: the decision, or the stage of evidence to gather first.

        Args:
            evidence: what is known of each query so far.
            cost_weight: reward given up per unit of cost; None means the router's own.
            arm: force this arm.
            policy: exploration policy instead of the router's own.
            exploration: its amount.
            rng: source of chance for exploration; None means fresh.
            answers: per query, bare answers of arms that have run, where they differ from the drafts' texts.
            final: decide on what is there, asking for nothing more.

        Raises:
            ConfigError: for an unknown arm or policy, or a negative weight.
            RouterError: if it was not fitted.
        """
        if arm is not None:
            return [forced(self.arms, arm, self.version) for _ in evidence]
        explore = Exploration(policy or self.policy, self.exploration if exploration is None else exploration, rng)
        if self.cold_start is not None:
            return [
                decide_cold(self.cold_start, e, self._stale(e), explore, final=final, version=self.version)
                for e in evidence
            ]
        parts = self.fitted()
        terms = Terms(parts.plan.at(self.weight(cost_weight)), explore, final, self.demoted, self.version)
        levels = [parts.featurizer.level(e) for e in evidence]
        out: list[Decision | Gather | None] = [None] * len(evidence)
        for level in sorted(set(levels)):
            members = [i for i, at in enumerate(levels) if at == level]
            group = [evidence[i] for i in members]
            known = None if answers is None else [answers[i] for i in members]
            features = parts.featurizer.transform(group, parts.stages[level], known)
            stale = [self._stale(e) for e in group] if self.adapters else []
            bought = None
            if explore.is_on:
                bought = np.array([[stage in e.spent for stage in parts.stages[: level + 1]] for e in group])
            for i, wish in zip(members, decide(parts, features, level, terms, stale, bought), strict=True):
                out[i] = wish
        return [wish for wish in out if wish is not None]

    def decide(self, evidence: Sequence[Evidence], **options: object) -> list[Decision]:
        """Decide on what is there, asking for nothing more. Arguments as in ``next``."""
        found = self.next(evidence, final=True, **options)  # type: ignore[arg-type]
        return [d for d in found if isinstance(d, Decision)]

    def _stale(self, evidence: Evidence) -> dict[int, str]:
        return stale_arms(self.adapters, self.arms, evidence.passages or ())

    # ------------------------------------------------------------------------------------- trust and keeping

    def check(self, fingerprints: Mapping[str, str], *, strict: bool = False) -> None:
        """Compare with what is there now: the encoder, the knowledge base, the adapters.

        What does not fit demotes the router to its safe arm, with a warning in the log and in every decision's
        reasons.

        Args:
            fingerprints: name -> fingerprint; names that the router does not know are left alone.
            strict: refuse instead.

        Raises:
            RouterError: if ``strict`` and something does not fit.
        """
        message = misfit(self.fingerprints, fingerprints)
        if message is None:
            return
        if strict:
            raise RouterError(message + "; fit it anew")
        logger.warning("%s; it is demoted to its safe arm until fitted anew", message)
        self.demoted = message

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the router to a directory, atomically: JSON and arrays, no code."""
        from ragft_plugin.routing.persistence import save_router

        save_router(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, encoder: Encoder | None = None) -> Router:
        """Read a router. Its decisions equal those of the one that was saved, bit for bit.

        Args:
            path: the directory.
            encoder: needed if it was fitted with one; its fingerprint must be the same.

        Raises:
            RouterError: if the directory is damaged, of another version, or needs another encoder.
        """
        from ragft_plugin.routing.persistence import load_router

        return load_router(path, encoder)
