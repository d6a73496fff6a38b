"""The router: evidence -> a decision, or the next stage to gather."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from uuid import uuid4

import numpy as np

from ragft_plugin.errors import ConfigError, RouterError
from ragft_plugin.evaluation.outcomes import Outcomes, reads_passages
from ragft_plugin.routing.adapters import AdapterRecord, staleness
from ragft_plugin.routing.calibration import apply_platt
from ragft_plugin.routing.cold import ColdStart
from ragft_plugin.routing.features import Featurizer
from ragft_plugin.routing.learning import Learnt, Progress, learn
from ragft_plugin.routing.novelty import Novelty
from ragft_plugin.routing.plan import Plan, Setting
from ragft_plugin.routing.policies import POLICIES, choose
from ragft_plugin.routing.rewards import RewardModel
from ragft_plugin.routing.stopping import extra_price, wants_more
from ragft_plugin.types import Decision, Encoder, Evidence, FloatArray, Gather, Stage

logger = logging.getLogger(__name__)


class Router:
    """Decides which arm answers a query, and how much to find out first.

    Learn one with ``Router.fit``, start without outcomes with ``Router.cold``, keep it with ``save`` and ``load``.

    Args:
        cost_weight: reward given up per unit of cost, where a call says nothing else.
        policy: name of the exploration policy (``POLICIES``), wrapped around the gated decision.
        exploration: its amount: epsilon, or the softmax temperature.
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
        _check_weight(cost_weight)
        _check_policy(policy)
        self.cost_weight = cost_weight
        self.policy = policy
        self.exploration = exploration
        self.adapters: Mapping[str, AdapterRecord] = dict(adapters or {})
        self.version = ""
        self.fingerprints: dict[str, str] = {}
        self.demoted: str | None = None
        self._arms: tuple[str, ...] = ()
        self._cold: ColdStart | None = None
        self._featurizer: Featurizer | None = None
        self._models: tuple[RewardModel, ...] = ()
        self._plan: Plan | None = None
        self._novelty: Novelty | None = None
        self._seen: np.ndarray = np.zeros(0, dtype=bool)
        self._model_name = "linear"

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
        names = _check_arms(arms)
        router = cls(adapters=adapters, **settings)  # type: ignore[arg-type]
        reads = {a: (retrieves or {}).get(a, reads_passages(a)) for a in names}
        router._arms = names
        router._cold = ColdStart.of(names, reads, adapters or {}, covered=covered, close=close)
        router._seen = np.ones(len(names), dtype=bool)
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
            stages: stages of evidence that may be used; None means all that the log has for every row.
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
            encoder=_encoder(encoder),
            model=model,
            draft_arm=draft_arm,
            agreement_arm=agreement_arm,
            gated=gate,
            seed=seed,
            progress=progress,
        )
        self._take(learnt, outcomes, model, seed)
        self.fingerprints = {"encoder": self.encoder_fingerprint, **(fingerprints or {})}
        return self

    def _take(self, learnt: Learnt, outcomes: Outcomes, model: str, seed: int) -> None:
        self._arms = outcomes.arms
        self._cold = None
        self._featurizer = learnt.featurizer
        self._models = learnt.models
        self._plan = learnt.plan
        self._model_name = model
        self._seen = np.asarray(~np.isnan(outcomes.reward).all(axis=0))
        block = learnt.featurizer.question_columns
        self._novelty = Novelty.fit(learnt.features[:, block], seed)
        self.demoted = None
        self.version = uuid4().hex[:12]

    # ------------------------------------------------------------------------------------------- what it is

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms it chooses among."""
        return self._arms

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of evidence it may ask for."""
        return self._fitted()[0].stages

    @property
    def draft_arm(self) -> str | None:
        """The arm it asks for a draft."""
        return None if self._featurizer is None else self._featurizer.draft_arm

    @property
    def agreement_arm(self) -> str | None:
        """The arm it asks for a second answer."""
        return None if self._featurizer is None else self._featurizer.agreement_arm

    @property
    def encoder_fingerprint(self) -> str:
        """Fingerprint of the vectors it reads texts with."""
        encoder = None if self._featurizer is None else self._featurizer.encoder
        return "tfidf" if encoder is None else encoder.fingerprint

    def gate(self, cost_weight: float | None = None) -> Setting:
        """The gate and its figures at a cost weight."""
        return self._fitted()[1].at(self._weight(cost_weight))

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

        Raises:
            ConfigError: for an unknown arm or policy, or a negative weight.
            RouterError: if it was not fitted.
        """
        return self._next(evidence, cost_weight, arm, policy, exploration, rng, answers, final=False)

    def decide(
        self, evidence: Sequence[Evidence], *, cost_weight: float | None = None, **options: object
    ) -> list[Decision]:
        """Decide on what is there, asking for nothing more. Arguments as in ``next``."""
        found = self._next(
            evidence,
            cost_weight,
            options.get("arm"),  # type: ignore[arg-type]
            options.get("policy"),  # type: ignore[arg-type]
            options.get("exploration"),  # type: ignore[arg-type]
            options.get("rng"),  # type: ignore[arg-type]
            options.get("answers"),  # type: ignore[arg-type]
            final=True,
        )
        return [d for d in found if isinstance(d, Decision)]

    def _next(
        self,
        evidence: Sequence[Evidence],
        cost_weight: float | None,
        arm: str | None,
        policy: str | None,
        exploration: float | None,
        rng: np.random.Generator | None,
        answers: Sequence[Mapping[str, str]] | None,
        *,
        final: bool,
    ) -> list[Decision | Gather]:
        if arm is not None:
            return [self._force(arm) for _ in evidence]
        explore = (policy or self.policy, self.exploration if exploration is None else exploration, rng)
        _check_policy(explore[0])
        if self._cold is not None:
            return [self._decide_cold(e, explore, final) for e in evidence]
        featurizer, plan = self._fitted()
        setting = plan.at(self._weight(cost_weight))
        levels = [featurizer.level(e) for e in evidence]
        out: list[Decision | Gather | None] = [None] * len(evidence)
        for level in sorted(set(levels)):
            members = [i for i, at in enumerate(levels) if at == level]
            group = [evidence[i] for i in members]
            known = None if answers is None else [answers[i] for i in members]
            features = featurizer.transform(group, featurizer.stages[level], known)
            stale = [self._stale(e) for e in group]
            decided = self._decide(features, level, setting, explore, stale, final)
            for i, wish in zip(members, decided, strict=True):
                out[i] = wish
        return [wish for wish in out if wish is not None]

    def _decide(
        self,
        features: FloatArray,
        level: int,
        setting: Setting,
        explore: tuple[str, float, np.random.Generator | None],
        stale: Sequence[Mapping[int, str]],
        final: bool,
    ) -> list[Decision | Gather]:
        """Decide queries of one stage from their features, shape (n, d)."""
        featurizer, plan = self._fitted()
        assert self._novelty is not None
        n = len(features)
        probability = self._models[level].predict(features)
        net = probability - setting.weight * plan.prices.arm[level]
        net[:, ~self._seen] = -np.inf
        for i, found in enumerate(stale):
            for a in found:
                net[i, a] = -np.inf
        unfamiliar = self._novelty.unfamiliar(features[:, featurizer.question_columns])
        learnt = setting.is_open and self.demoted is None
        more = np.zeros(n, dtype=bool)
        if learnt and not final and level + 1 < len(featurizer.stages):
            calm = np.where(np.isfinite(net), net, -1.0)
            extra = extra_price(plan.prices, level, setting.weight)
            more = wants_more(probability, calm, choose(net), extra, setting.safe, setting.coef[level]) & ~unfamiliar
        guarded = np.where(unfamiliar, True, not learnt)
        # The safe arm is the best by its mean; if it cannot answer this query, the best of those that can.
        fallback = plan.means - setting.weight * plan.prices.arm[level]
        values = np.where(guarded[:, None] & np.isfinite(net), fallback, net)
        values[guarded & np.isfinite(net[:, setting.safe]), setting.safe] += 1e6
        pick = choose(values)
        rows = np.arange(n)
        said = probability[rows, pick]
        confidence = np.where(guarded, said, apply_platt(said, *setting.platt))
        confidence[unfamiliar] = np.minimum(confidence, plan.means[pick])[unfamiliar] * 0.5
        dist = self._distribution(values, pick, guarded, explore)
        if explore[1] > 0.0 and explore[0] != "greedy":
            rng = explore[2] or np.random.default_rng()
            pick = (dist.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
            confidence = np.where(pick == choose(values), confidence, probability[rows, pick])
        stage = featurizer.stages[level]
        wish: Gather | None = None
        if more.any():
            following = featurizer.stages[level + 1]
            wish = Gather(following, {"draft": self.draft_arm, "agreement": self.agreement_arm}.get(following))
        arms = self._arms
        shown = np.where(np.isfinite(net), net, -1.0)
        others = shown.copy()
        others[rows, pick] = -np.inf
        second = others.argmax(axis=1)
        ids = os.urandom(16 * n).hex()
        # One line serves all queries that are held back for the same reason.
        closed = self._held(setting, learnt)
        strange = f"unlike all queries learnt from; the safe arm {arms[setting.safe]} answers"
        out: list[Decision | Gather] = []
        for i, (go, best, other, p, chance, sure, odd) in enumerate(
            zip(
                more.tolist(),
                pick.tolist(),
                second.tolist(),
                shown.tolist(),
                dist.tolist(),
                confidence.tolist(),
                unfamiliar.tolist(),
                strict=True,
            )
        ):
            if go and wish is not None:
                out.append(wish)
                continue
            reasons: tuple[str, ...]
            if closed is not None or odd:
                reasons = ((closed or strange) if self.demoted or not odd else strange,)
            elif best == other:
                reasons = (f"{arms[best]} is the only arm",)
            else:
                reasons = (f"{arms[best]} {p[best]:.3f} net of cost, {arms[other]} {p[other]:.3f}",)
            if stale and stale[i]:
                reasons = (*(f"{arms[a]} is stale: {why}" for a, why in stale[i].items()), *reasons)
            if chance[best] < 0.5:
                reasons = (*reasons, f"explored with probability {chance[best]:.3f}")
            out.append(
                Decision(
                    ids[32 * i : 32 * i + 32],
                    arms[best],
                    dict(zip(arms, chance, strict=True)),
                    dict(zip(arms, p, strict=True)),
                    sure,
                    stage,
                    1.0,
                    reasons,
                    False,
                    None,
                    self.version,
                )
            )
        return out

    def _held(self, setting: Setting, learnt: bool) -> str | None:
        """Why no query is decided by what was learnt, or None."""
        safe = self._arms[setting.safe]
        if self.demoted is not None:
            return f"{self.demoted}; the safe arm {safe} answers"
        if learnt:
            return None
        return f"gate closed: routing gains {setting.gain:+.4f} over always {safe}, lower bound {setting.lower:+.4f}"

    def _distribution(
        self,
        values: FloatArray,
        pick: np.ndarray,
        guarded: np.ndarray,
        explore: tuple[str, float, np.random.Generator | None],
    ) -> FloatArray:
        name, amount, _ = explore
        if name == "greedy" or amount == 0.0:
            dist = np.zeros(values.shape)
            dist[np.arange(len(pick)), pick] = 1.0
            return dist
        return POLICIES[name](values, amount)

    def _decide_cold(
        self, evidence: Evidence, explore: tuple[str, float, np.random.Generator | None], final: bool
    ) -> Decision | Gather:
        assert self._cold is not None
        if not final and self._cold.wants_passages(evidence):
            return Gather("passages")
        stale = self._stale(evidence)
        values, confidence, reasons = self._cold.judge(evidence, stale)
        pick = choose(values[None])
        dist = self._distribution(values[None], pick, np.zeros(1, dtype=bool), explore)[0]
        best = int(pick[0])
        if explore[1] > 0.0 and explore[0] != "greedy":
            rng = explore[2] or np.random.default_rng()
            best = int((dist.cumsum() > rng.random()).argmax())
        return Decision(
            id=uuid4().hex,
            arm=self._arms[best],
            propensities=dict(zip(self._arms, dist.tolist(), strict=True)),
            values={a: float(v) if np.isfinite(v) else -1.0 for a, v in zip(self._arms, values, strict=True)},
            confidence=confidence,
            stage="question" if evidence.passages is None else "passages",
            reasons=reasons,
            router_version=self.version,
        )

    def _stale(self, evidence: Evidence) -> dict[int, str]:
        """Closed-book arms that are stale for the evidence: index -> why."""
        if not self.adapters or not evidence.passages:
            return {}
        found: dict[int, str] = {}
        for a, name in enumerate(self._arms):
            record = self.adapters.get(name)
            if record is not None and not reads_passages(name):
                why = staleness(record, evidence.passages)
                if why is not None:
                    found[a] = why
        # Someone has to answer.
        return found if len(found) < len(self._arms) else {}

    def _force(self, arm: str) -> Decision:
        if arm not in self._arms:
            raise ConfigError(f"unknown arm {arm!r}, expected one of {', '.join(self._arms)}")
        return Decision(
            id=uuid4().hex,
            arm=arm,
            propensities={a: float(a == arm) for a in self._arms},
            confidence=0.0,
            reasons=("named by the caller",),
            forced=True,
            router_version=self.version,
        )

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
        wrong = [
            f"{name} is {now!r}, the router was fitted with {self.fingerprints[name]!r}"
            for name, now in fingerprints.items()
            if name in self.fingerprints and self.fingerprints[name] != now
        ]
        if not wrong:
            return
        message = "the router no longer fits: " + "; ".join(wrong)
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

    def _fitted(self) -> tuple[Featurizer, Plan]:
        if self._featurizer is None or self._plan is None:
            raise RouterError("the router is not fitted; call fit, load one, or start with Router.cold")
        return self._featurizer, self._plan

    def _weight(self, cost_weight: float | None) -> float:
        weight = self.cost_weight if cost_weight is None else cost_weight
        _check_weight(weight)
        return float(weight)


def _encoder(encoder: str | Encoder) -> Encoder | None:
    if isinstance(encoder, str):
        if encoder != "tfidf":
            raise ConfigError(f"unknown encoder {encoder!r}, expected 'tfidf' or an object with encode()")
        return None
    return encoder


def _check_weight(weight: float) -> None:
    if not 0.0 <= weight < np.inf:
        raise ConfigError(f"cost_weight must be >= 0 and finite, not {weight}")


def _check_policy(name: str) -> None:
    if name not in POLICIES:
        raise ConfigError(f"unknown policy {name!r}, expected one of {', '.join(POLICIES)}")


def _check_arms(arms: Sequence[str]) -> tuple[str, ...]:
    names = tuple(arms)
    if not names or len(set(names)) < len(names) or isinstance(arms, str):
        raise ConfigError(f"arms must be distinct names, at least one; got {arms!r}")
    return names
