"""Exploration: what chance does, and that the probabilities it leaves are the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from routing_worlds import evidence, noise, world

from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.routing import Router
from ragft_plugin.routing.completeness import Completeness
from ragft_plugin.routing.crossval import evaluate
from ragft_plugin.routing.off_policy import off_policy_figures
from ragft_plugin.routing.tracing import Trace
from ragft_plugin.types import Decision, Evidence, Gather

EPSILON = 0.3


@pytest.fixture(scope="module")
def fitted() -> Router:
    return Router(policy="epsilon_greedy", exploration=EPSILON).fit(world(400, passages=True, drafts=True), gate=False)


def gathered(known: Evidence, wish: Gather, full: Evidence) -> Evidence:
    """The evidence with what the router asked for, bought and paid."""
    spent = {**known.spent, wish.stage: 1.0}
    if wish.stage == "passages":
        return replace(known, passages=full.passages, spent=spent)
    return replace(known, drafts=full.drafts, spent=spent)


def live(router: Router, full: Sequence[Evidence], rng: np.random.Generator, weight: float) -> list[Decision]:
    """Let a router decide queries as the pipeline does, gathering what it asks for."""
    known = [replace(e, passages=None, drafts={}, spent={}) for e in full]
    decisions: dict[int, Decision] = {}
    while len(decisions) < len(full):
        open_ones = [i for i in range(len(full)) if i not in decisions]
        for i, wish in zip(
            open_ones, router.next([known[i] for i in open_ones], cost_weight=weight, rng=rng), strict=True
        ):
            if isinstance(wish, Decision):
                decisions[i] = wish
            else:
                known[i] = gathered(known[i], wish, full[i])
    return [decisions[i] for i in range(len(full))]


def copies(n: int) -> list[Evidence]:
    one = evidence("What is the falcon number 1 about?", "Nothing of the kind.", draft="It is so.")
    return [one] * n


def test_where_the_policy_decides_early_chance_gathers_all_evidence_at_the_logged_rate(fitted: Router) -> None:
    # So dear that the policy itself buys nothing.
    made = live(fitted, copies(2000), np.random.default_rng(0), 10.0)
    whole = np.array([d.stage == fitted.stages[-1] for d in made])
    chance = np.array([d.stage_probability for d in made])
    assert set(chance[whole]) == {EPSILON}
    assert set(chance[~whole]) == {1.0 - EPSILON}
    assert {d.stage for d in made} == {"question", fitted.stages[-1]}
    # 2,000 draws: standard deviation .0102; four of them.
    assert abs(whole.mean() - EPSILON) < 0.041
    # Complete rows, each standing for 1 / P, stand for all: the law that learning rests on.
    assert np.mean(whole / chance) == pytest.approx(1.0, abs=0.14)
    assert any("all evidence gathered to learn from, with probability 0.300" in d.reasons for d in made)


def test_what_the_policy_gathers_by_itself_has_probability_one() -> None:
    router = Router(policy="epsilon_greedy", exploration=EPSILON).fit(
        world(400, passages=True, drafts=True), gate=False
    )
    # Evidence is free here, so that the policy itself buys all of it.
    coef = router.fitted().plan.coef
    coef[:] = 0.0
    coef[:, :, 0] = 1.0
    made = live(router, copies(50), np.random.default_rng(0), 0.0)
    assert {(d.stage, d.stage_probability) for d in made} == {(router.stages[-1], 1.0)}


def test_evidence_that_the_caller_brought_was_not_gathered_by_chance(fitted: Router) -> None:
    brought = [replace(e, spent={}) for e in copies(20)]
    made = fitted.next(brought, cost_weight=10.0, rng=np.random.default_rng(0))
    assert {d.stage_probability for d in made if isinstance(d, Decision)} == {1.0}


def test_a_closed_gate_gathers_evidence_by_chance_too() -> None:
    log = Outcomes.from_rows(
        [
            {
                **r.model_dump(exclude_none=True),
                "passages": [{"id": "1", "text": "Nothing."}],
                "stage_cost": {"passages": 1},
            }
            for r in noise(150).rows
        ]
    )
    router = Router(policy="epsilon_greedy", exploration=0.5).fit(log)
    assert not router.gate().is_open
    wishes = router.next([Evidence("word1 word2")] * 200, rng=np.random.default_rng(0))
    asked = [w for w in wishes if isinstance(w, Gather)]
    assert 70 < len(asked) < 130
    assert {w.probability for w in asked} == {0.5}


def test_greedy_and_softmax_leave_the_evidence_alone(fitted: Router) -> None:
    full = copies(50)
    for policy, amount in (("greedy", 0.0), ("softmax", 0.1)):
        made = fitted.next(
            [replace(e, passages=None, drafts={}) for e in full], cost_weight=10.0, policy=policy, exploration=amount
        )
        assert {d.stage_probability for d in made if isinstance(d, Decision)} == {1.0}
        assert not any(isinstance(d, Gather) for d in made)


def test_deciding_finally_never_asks_for_more(fitted: Router) -> None:
    found = fitted.decide([Evidence("What is the falcon number 1 about?")] * 50, rng=np.random.default_rng(0))
    assert len(found) == 50
    assert {d.stage_probability for d in found} == {1.0}


# ------------------------------------------------------------------------- learning from what chance gathered


def staged_world(n: int, seed: int) -> Outcomes:
    """Falcon questions are plain: adapter. In the others only the passage tells the arm, at a price of 0.2.

    At weight 1 the best is: falcon to the adapter at once, earning .95; retrieve for the others, earning .95 - .2.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        falcon, helps = rng.random() < 0.5, rng.random() < 0.5
        right = {"adapter": 0.95 if falcon or not helps else 0.05, "rag": 0.95 if helps and not falcon else 0.05}
        rows.append(
            {
                "query_id": str(i),
                "query": f"What is the {'falcon' if falcon else 'harbor'} number {rng.integers(10_000)} about?",
                "passages": [
                    {"id": "p", "text": "The record says this." if helps else "Nothing is written.", "score": 1}
                ],
                "stage_cost": {"passages": 0.2},
                "cost": {"adapter": 0.0, "rag": 0.2},
                "reward": {a: int(rng.random() < p) for a, p in right.items()},
            }
        )
    return Outcomes.from_rows(rows, ("adapter", "rag"))


def logged(full: Outcomes, epsilon: float, seed: int) -> Outcomes:
    """What a router would leave that decides falcon questions at once, retrieves else, and explores."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in full.rows:
        falcon = "falcon" in row.query
        by_chance = falcon and rng.random() < epsilon
        helps = "record" in (row.passages or ())[0].text
        best = "rag" if helps and not (falcon and not by_chance) else "adapter"
        share = {a: 1.0 - epsilon / 2 if a == best else epsilon / 2 for a in full.arms}
        arm = full.arms[int(rng.random() > share[full.arms[0]])]
        fields = row.model_dump(exclude_none=True)
        if falcon and not by_chance:
            del fields["passages"], fields["stage_cost"]
        rows.append(
            {
                **fields,
                "arm": arm,
                "reward": {arm: row.reward[arm]},
                "propensities": share,
                "stage": "question" if falcon and not by_chance else "passages",
                "stage_probability": 1.0 if not falcon else epsilon if by_chance else 1.0 - epsilon,
            }
        )
    return Outcomes.from_rows(rows, full.arms)


def test_complete_rows_stand_for_all_queries() -> None:
    log = logged(staged_world(4000, 0), 0.2, 1)
    complete = Completeness.of(log)
    falcon = np.array(["falcon" in row.query for row in log.rows])
    # Half of all queries are of this kind, but only a sixth of the complete rows.
    assert falcon[complete.rows].mean() < 0.2
    assert np.average(falcon[complete.rows], weights=complete.weight) == pytest.approx(falcon.mean(), abs=0.05)


def test_a_router_learns_from_a_log_in_which_stages_are_missing_when_to_stop() -> None:
    router = Router(cost_weight=1.0).fit(logged(staged_world(3000, 2), 0.3, 3), gate=False)
    assert router.stages == ("question", "passages")
    figures = evaluate(router, staged_world(2000, 4))
    share = figures["stage_share_ungated"]
    assert 0.4 < share["question"] < 0.6
    net = figures["reward_ungated"] - figures["mean_cost_ungated"]
    assert net > 0.95 - 0.1 - 0.03


def test_a_router_learnt_from_texts_earns_within_one_percent_of_the_optimal_policy() -> None:
    router = Router(cost_weight=1.0).fit(staged_world(1500, 11))
    assert router.gate().is_open
    fresh = staged_world(2000, 12)
    course = Trace.of(router, fresh).course(1.0)
    falcon = np.array(["falcon" in row.query for row in fresh.rows])
    helps = np.array(["record" in (row.passages or ())[0].text for row in fresh.rows])
    # What each arm is worth in truth, not what it happened to earn.
    adapter, rag = np.where(falcon | ~helps, 0.95, 0.05), np.where(helps & ~falcon, 0.95, 0.05)
    earned = np.where(course.arm == 0, adapter, rag) - course.cost
    optimum = np.where(falcon, 0.95, 0.75)
    # Deciding everything by the question, or everything by the passage, loses more than ten percent.
    by_question = np.where(falcon, adapter, np.maximum(adapter[~falcon].mean(), rag[~falcon].mean() - 0.2))
    by_passage = np.maximum(adapter, rag) - 0.2
    assert max(by_question.mean(), by_passage.mean()) < 0.9 * optimum.mean()
    assert earned.mean() >= 0.99 * optimum.mean()


def test_missing_stages_without_chance_are_not_learnt_from(caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {**row.model_dump(exclude_none=True), "stage_probability": 1.0}
        for row in logged(staged_world(600, 5), 0.3, 6).rows
    ]
    router = Router().fit(Outcomes.from_rows(rows, ("adapter", "rag")))
    assert router.stages == ("question",)
    assert "Explore with epsilon_greedy" in caplog.text


# ------------------------------------------------------------------------------------- before it replaces the old one


def partial(full: Outcomes, seed: int) -> Outcomes:
    """One arm of each row, drawn at random."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in full.rows:
        arm = full.arms[int(rng.random() < 0.5)]
        share = dict.fromkeys(full.arms, 0.5)
        rows.append({**row.model_dump(exclude_none=True), "reward": {arm: row.reward[arm]}, "propensities": share})
    return Outcomes.from_rows(rows, full.arms)


def test_estimates_tell_what_the_new_router_earns() -> None:
    told = off_policy_figures(partial(world(1000), 0))
    # Chance earns .525; a router that knows the topics .9.
    assert told["logged"]["value"] == pytest.approx(0.525, abs=0.04)
    for name in ("ips", "snips", "direct_method", "doubly_robust"):
        assert told["estimates"][name]["value"] == pytest.approx(0.9, abs=0.06), name
    assert told["estimates"]["doubly_robust"]["low"] - 0.02 < 0.9 < told["estimates"]["doubly_robust"]["high"] + 0.02
    assert told["gain"]["low"] > 0.25
    assert (told["n"], told["complete"]) == (1000, 1000)


def test_estimates_stand_for_all_queries_where_evidence_is_missing() -> None:
    log = logged(staged_world(1600, 7), 0.3, 8)
    told = off_policy_figures(log, cost_weight=1.0, gated=False)
    assert told["complete"] < told["n"]
    assert set(told["estimates"]) == {"ips", "snips"}
    for found in told["estimates"].values():
        assert found["low"] - 0.03 < 0.95 < found["high"] + 0.03
    assert told["mean_cost"] == pytest.approx(0.1, abs=0.03)


def test_a_log_that_tried_nothing_else_tells_nothing_of_another_arm() -> None:
    rows = [
        {
            **row.model_dump(exclude_none=True),
            "reward": {"rag": row.reward["rag"]},
            "propensities": {"rag": 1, "adapter": 0},
        }
        for row in world(200).rows
    ]
    rows += [
        {**row.model_dump(exclude_none=True), "query_id": f"b{i}"} for i, row in enumerate(world(300, seed=5).rows)
    ]
    told = off_policy_figures(Outcomes.from_rows(rows, ("adapter", "rag")), gated=False)
    assert "log with exploration" in told["estimates"]["ips"]["refused"]
