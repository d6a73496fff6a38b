"""The router as a whole: deciding, keeping, refusing."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from routing_worlds import evidence, noise, world

from ragft_plugin.errors import ConfigError, DataError, RouterError
from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.routing import SIGNALS, AdapterRecord, Router, signal
from ragft_plugin.routing.adapters import content_hash
from ragft_plugin.routing.budgets import risk_p_value, within_budget
from ragft_plugin.routing.crossval import cross_validate, evaluate
from ragft_plugin.routing.learning import evidence_of
from ragft_plugin.routing.tracing import Trace
from ragft_plugin.types import Decision, Evidence, Gather


@pytest.fixture(scope="module")
def fitted() -> Router:
    return Router().fit(world(400, passages=True, drafts=True))


def _plain(decisions: list[Decision | Gather]) -> list[Decision | Gather]:
    return [replace(d, id="") if isinstance(d, Decision) else d for d in decisions]


def test_router_learns_which_arm_knows_the_topic() -> None:
    router = Router().fit(world(400))
    asked = [Evidence(f"What is the {w} number 77 about?") for w in ("falcon", "harbor", "copper", "violet")]
    decisions = router.next(asked)
    assert [d.arm for d in decisions if isinstance(d, Decision)] == ["adapter", "adapter", "rag", "rag"]
    for d in decisions:
        assert isinstance(d, Decision)
        assert 0.75 < d.confidence < 0.98
        assert sum(d.propensities.values()) == 1.0


def test_held_out_figures_come_near_the_truth() -> None:
    figures = evaluate(Router().fit(world(400)), world(400, seed=1))
    assert figures["gate"] == "open"
    assert figures["reward"] > 0.85
    assert figures["headroom_captured"] > 0.85
    assert figures["ece"] < 0.06


def test_pure_noise_keeps_the_gate_closed_and_says_so() -> None:
    router = Router().fit(noise(150))
    decision = router.next([Evidence("word1 word2 word3")])[0]
    assert isinstance(decision, Decision)
    assert decision.arm == router.arms[router.gate().safe]
    assert "gate closed" in decision.reasons[0]


def test_gathers_stage_by_stage_and_answers_with_what_was_asked_for(fitted: Router) -> None:
    seen = []
    item = Evidence("What is the copper number 5 about?")
    for _ in range(4):
        wish = fitted.next([item])[0]
        if isinstance(wish, Decision):
            break
        seen.append(wish.stage)
        full = evidence(item.query, "The copper record says this.", draft="I am not sure, unknown.")
        item = replace(item, passages=full.passages, drafts=full.drafts if wish.stage == "draft" else {})
    assert isinstance(wish, Decision)
    assert seen == list(fitted.stages[1 : 1 + len(seen)])
    assert wish.arm == "rag"


def test_same_decision_alone_and_in_a_batch(fitted: Router) -> None:
    rows = world(60, seed=3, passages=True, drafts=True).rows
    mixed = []
    for i, stage in enumerate(("question", "passages", "draft")):
        found, _ = evidence_of(rows[20 * i : 20 * i + 20], stage, "adapter", None)
        mixed += found
    whole = _plain(fitted.next(mixed))
    alone = [_plain(fitted.next([e]))[0] for e in mixed]
    for a, b in zip(alone, whole, strict=True):
        assert type(a) is type(b)
        if isinstance(a, Decision) and isinstance(b, Decision):
            assert (a.arm, a.stage) == (b.arm, b.stage)
            assert a.confidence == pytest.approx(b.confidence, abs=1e-9)


def test_trace_and_next_take_the_same_course(fitted: Router) -> None:
    log = world(80, seed=4, passages=True, drafts=True)
    for weight in (0.0, 0.05, 0.3):
        course = Trace.of(fitted, log).course(weight)
        for i, row in enumerate(log.rows):
            for stage in fitted.stages:
                found, _ = evidence_of([row], stage, fitted.draft_arm, None)
                wish = fitted.next(found, cost_weight=weight)[0]
                if isinstance(wish, Decision):
                    break
            assert isinstance(wish, Decision)
            assert wish.arm == log.arms[course.arm[i]]
            assert wish.stage == fitted.stages[course.stage[i]]
            assert wish.confidence == pytest.approx(course.confidence[i], abs=1e-9)


def test_high_cost_weight_takes_the_free_arm(fitted: Router) -> None:
    wish = fitted.next([Evidence("What is the copper number 5 about?")], cost_weight=10.0)[0]
    assert isinstance(wish, Decision)
    assert wish.arm == "adapter"


def test_forced_arm_is_marked_and_unknown_one_refused(fitted: Router) -> None:
    decision = fitted.next([Evidence("Why?")], arm="rag")[0]
    assert isinstance(decision, Decision)
    assert decision.forced
    assert decision.propensities == {"adapter": 0.0, "rag": 1.0}
    with pytest.raises(ConfigError, match="unknown arm 'x', expected one of adapter, rag"):
        fitted.next([Evidence("Why?")], arm="x")


def test_exploration_logs_the_probabilities_it_draws_with() -> None:
    router = Router(policy="epsilon_greedy", exploration=0.4).fit(world(300))
    many = router.next([Evidence("What is the falcon number 1 about?")] * 500, rng=np.random.default_rng(0))
    arms = [d.arm for d in many if isinstance(d, Decision)]
    assert many[0].propensities == {"adapter": pytest.approx(0.8), "rag": pytest.approx(0.2)}
    assert 0.15 < arms.count("rag") / 500 < 0.25


def test_closed_gate_explores_too() -> None:
    router = Router(policy="epsilon_greedy", exploration=0.2).fit(noise(150))
    decision = router.next([Evidence("word1 word2")], rng=np.random.default_rng(0))[0]
    assert isinstance(decision, Decision)
    safe = router.arms[router.gate().safe]
    assert decision.propensities == {a: pytest.approx(0.9 if a == safe else 0.1) for a in router.arms}


def test_learns_from_partial_feedback() -> None:
    full = world(1200)
    rng = np.random.default_rng(0)
    rows = []
    for row in full.rows:
        arm = "rag" if rng.random() < 0.3 else "adapter"
        rows.append(
            {
                **row.model_dump(exclude_none=True),
                "reward": {arm: row.reward[arm]},
                "propensities": {"rag": 0.3, "adapter": 0.7},
            }
        )
    router = Router().fit(Outcomes.from_rows(rows, full.arms))
    figures = evaluate(router, world(400, seed=9))
    assert figures["reward_ungated"] > 0.8


def test_loaded_router_decides_bit_for_bit(fitted: Router, tmp_path: Path) -> None:
    fitted.save(tmp_path / "r")
    again = Router.load(tmp_path / "r")
    rows = world(50, seed=5, passages=True, drafts=True).rows
    found, answers = evidence_of(rows, fitted.stages[-1], "adapter", None)
    assert _plain(again.next(found, answers=answers)) == _plain(fitted.next(found, answers=answers))
    assert again.version == fitted.version
    fitted.save(tmp_path / "r")  # an older one is replaced
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]


def test_cold_router_is_kept_too(tmp_path: Path) -> None:
    record = AdapterRecord(trained_at="2026-01-01", questions=("Who wrote Emma?",))
    router = Router.cold(["adapter", "rag"], adapters={"adapter": record})
    router.save(tmp_path / "r")
    again = Router.load(tmp_path / "r")
    asked = [evidence("Who wrote Emma?", "Cats sit.")]
    assert _plain(again.next(asked)) == _plain(router.next(asked))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(version=99), "version 99"),
        (lambda s: s.update(format="x"), "not a router"),
        (lambda s: s.update(arms=["adapter"]), "predicts"),
        (lambda s: s["fitted"].update(terms=["a"]), "idf"),
        (lambda s: s["fitted"].update(model="os.system"), "unknown reward model"),
        (lambda s: s["fitted"].update(signals=["nowhere"]), "not registered here: nowhere"),
        (lambda s: s["fitted"].update(encoder="other"), "fitted with encoder 'other'"),
        (lambda s: s.update(extra=1), "extra"),
        (lambda s: s.update(arrays_sha256="0"), "checksum"),
    ],
)
def test_damaged_router_is_refused(fitted: Router, tmp_path: Path, change: object, message: str) -> None:
    fitted.save(tmp_path / "r")
    file = tmp_path / "r" / "router.json"
    settings = json.loads(file.read_text())
    change(settings)  # type: ignore[operator]
    file.write_text(json.dumps(settings))
    with pytest.raises(RouterError, match=message):
        Router.load(tmp_path / "r")


def test_arrays_that_would_run_code_are_refused(fitted: Router, tmp_path: Path) -> None:
    import hashlib

    fitted.save(tmp_path / "r")
    arrays = tmp_path / "r" / "arrays.npz"
    np.savez(arrays, idf=np.array([print], dtype=object))
    settings = json.loads((tmp_path / "r" / "router.json").read_text())
    settings["arrays_sha256"] = hashlib.sha256(arrays.read_bytes()).hexdigest()
    (tmp_path / "r" / "router.json").write_text(json.dumps(settings))
    with pytest.raises(RouterError, match="cannot be read"):
        Router.load(tmp_path / "r")


def test_save_does_not_overwrite_something_else(fitted: Router, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(RouterError, match="something else here"):
        fitted.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_router_that_no_longer_fits_is_demoted_loudly(caplog: pytest.LogCaptureFixture) -> None:
    router = Router().fit(world(300), fingerprints={"knowledge_base": "v1"})
    router.check({"knowledge_base": "v1", "something": "else"})
    assert router.demoted is None
    with pytest.raises(RouterError, match="knowledge_base is 'v2'"):
        router.check({"knowledge_base": "v2"}, strict=True)
    with caplog.at_level(logging.WARNING):
        router.check({"knowledge_base": "v2"})
    assert "demoted" in caplog.text
    decisions = router.next([Evidence(f"What is the {w} number 1 about?") for w in ("falcon", "copper")])
    assert len({d.arm for d in decisions if isinstance(d, Decision)}) == 1
    assert "no longer fits" in decisions[0].reasons[0]


def test_unfamiliar_query_gets_the_safe_arm_with_low_confidence() -> None:
    router = Router().fit(world(400))
    strange = router.next([Evidence("Qu'est-ce qui se passe dehors?")])[0]
    usual = router.next([Evidence("What is the falcon number 3 about?")])[0]
    assert isinstance(strange, Decision)
    assert isinstance(usual, Decision)
    assert "unlike all queries" in strange.reasons[0]
    assert strange.confidence < 0.5 < usual.confidence


def test_stale_adapter_is_not_asked_closed_book() -> None:
    router = Router.cold(
        ["adapter", "rag"],
        adapters={
            "adapter": AdapterRecord(
                trained_at="2026-01-01", passages={"p0": content_hash("old text")}, questions=("Who wrote Emma?",)
            )
        },
    )
    fresh = router.next([evidence("Who wrote Emma?", "old text")])[0]
    changed = router.next([evidence("Who wrote Emma?", "new text")])[0]
    assert isinstance(fresh, Decision)
    assert isinstance(changed, Decision)
    assert (fresh.arm, changed.arm) == ("adapter", "rag")
    assert changed.reasons[0] == "adapter is stale: passage 'p0' has changed since it was trained on"
    router.adapters = {"adapter": AdapterRecord(trained_at="2026-01-01")}
    newer = router.next([evidence("Who wrote Emma?", "x", updated_at="2026-02-01T00:00:00+00:00")])[0]
    assert isinstance(newer, Decision)
    assert newer.arm == "rag"


def test_cold_start_says_what_it_compared() -> None:
    record = AdapterRecord(questions=("What is the falcon number 1 about?",))
    router = Router.cold(["adapter", "rag"], adapters={"adapter": record})
    taught = router.next([evidence("What is the falcon number 1 about?", "Cats sit on mats.")])[0]
    covered = router.next([evidence("Who painted Guernica?", "Picasso painted Guernica in 1937.")])[0]
    assert isinstance(taught, Decision)
    assert isinstance(covered, Decision)
    assert (taught.arm, covered.arm) == ("adapter", "rag")
    assert any("passages cover 100%" in reason for reason in covered.reasons)


def test_own_signal_is_used_by_the_next_fit() -> None:
    @signal(stage="question", name="test_copper")
    def copper(reading: object) -> dict[str, float]:
        return {"copper": float("copper" in reading.words)}  # type: ignore[attr-defined]

    try:
        router = Router().fit(world(60))
        assert "copper" in router.fitted().featurizer.names["question"]
    finally:
        del SIGNALS["test_copper"]


def test_leak_planted_as_a_fact_is_refused() -> None:
    rows = [row.model_dump(exclude_none=True) | {"facts": {"hint": float(row.reward["rag"])}} for row in world(60).rows]
    with pytest.raises(DataError, match="'hint' equals the reward of arm 'rag'"):
        Outcomes.from_rows(rows)


def test_gold_group_and_ids_never_change_a_decision() -> None:
    log = world(120)
    told = Outcomes.from_rows(
        [
            r.model_dump(exclude_none=True)
            | {"gold": r.reward, "group": str(r.reward), "query_id": f"{r.query_id}-{r.reward}"}
            for r in log.rows
        ],
        log.arms,
    )
    plain, leaky = Router().fit(log), Router().fit(told)
    asked = [Evidence(row.query) for row in world(40, seed=8).rows]
    one, two = plain.next(asked), leaky.next(asked)
    assert [d.values for d in one] == [d.values for d in two]  # type: ignore[union-attr]


@pytest.mark.parametrize("n", [1, 2, 5, 29])
def test_tiny_logs_fall_back_to_the_best_single_arm(n: int) -> None:
    router = Router().fit(world(n))
    decision = router.next([Evidence("What is the copper number 1 about?")])[0]
    assert isinstance(decision, Decision)
    assert np.isfinite(decision.confidence)
    assert "gate closed" in decision.reasons[0]


def test_one_class_only_is_decided_without_nan() -> None:
    rows = [{"query_id": str(i), "query": f"Question {i}?", "reward": {"a": 1, "b": 1}} for i in range(60)]
    decision = Router().fit(Outcomes.from_rows(rows)).next([Evidence("Question?")])[0]
    assert isinstance(decision, Decision)
    assert decision.arm == "a"
    assert 0.8 < decision.confidence < 1.0 or "unlike" in decision.reasons[0]


def test_unfitted_router_and_wrong_settings_are_refused() -> None:
    with pytest.raises(RouterError, match="not fitted"):
        Router().next([Evidence("Why?")])
    with pytest.raises(ConfigError, match="cost_weight must be >= 0"):
        Router(cost_weight=-1.0)
    with pytest.raises(ConfigError, match="unknown policy 'x'"):
        Router(policy="x")
    with pytest.raises(ConfigError, match="unknown stage 'drafts'"):
        Router().fit(world(30), stages=["drafts"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="unknown reward model 'x'"):
        Router().fit(world(30), model="x")


def test_cross_validated_figures_are_complete_and_reproduce() -> None:
    figures = cross_validate(world(150), 3, seed=1, frontier=True)
    wanted = {
        "n", "arms", "encoder", "best_arm", "best_arm_reward", "reward", "reward_ungated", "gain", "gain_ci95",
        "oracle_reward", "headroom_captured", "mean_cost", "stage_share", "ece", "brier", "gate", "frontier",
    }  # fmt: skip
    assert wanted <= figures.keys()
    json.dumps(figures, allow_nan=False)
    assert figures == cross_validate(world(150), 3, seed=1, frontier=True)
    points = figures["frontier"]
    assert points[-1]["cost"] == 0.0
    assert points[0]["reward"] > points[-1]["reward"]


def test_budget_keeps_its_promise_on_fresh_queries() -> None:
    router = Router().fit(world(400))
    budget = within_budget(router, world(600, seed=11), max_cost=0.6)
    assert budget.cost_weight is not None
    fresh = evaluate(router, world(2000, seed=12), cost_weight=budget.cost_weight)
    assert fresh["mean_cost"] <= 0.6
    assert within_budget(router, world(100, seed=13), min_reward=0.99).cost_weight is None


def test_risk_p_value_is_valid_where_the_limit_is_the_truth() -> None:
    rng = np.random.default_rng(0)
    rejected = sum(risk_p_value(float((rng.random(100) < 0.3).mean()), 100, 0.3) <= 0.05 for _ in range(400))
    assert rejected <= 20 + 3 * 4.4
