"""Figures: net value under a cost weight, plain methods, calibration, beside what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from routing_worlds import world

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.routing.baselines import BASELINES, comparable
from ragft_plugin.routing.crossval import cross_validate


def test_headroom_is_a_share_of_net_value_under_a_cost_weight() -> None:
    log, weight = world(200), 0.2
    figures = cross_validate(log, 3, cost_weight=weight)
    net = log.reward - weight * log.cost
    best, top = net.mean(axis=0).max(), net.max(axis=1).mean()
    earned = figures["reward"] - weight * figures["mean_cost"]
    assert figures["headroom_captured"] == pytest.approx((earned - best) / (top - best), abs=1e-4)
    # Retrieval costs .2, so its arm earns .325 net and the adapter .525: the same reward is worth another share.
    assert figures["best_arm"] == "adapter"


def test_gain_is_of_net_value_and_its_interval_holds_it() -> None:
    figures = cross_validate(world(200), 3, cost_weight=0.2)
    low, high = figures["gain_ci95"]
    assert low <= figures["gain"] <= high
    single = figures["fixed"]["adapter"]
    net = figures["reward_ungated"] - 0.2 * figures["mean_cost_ungated"]
    assert figures["gain"] == pytest.approx(net - single["reward"] + 0.2 * single["cost"], abs=1e-5)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_plain_methods_learn_which_arm_is_right_where(name: str) -> None:
    rng = np.random.default_rng(0)
    topic = rng.integers(0, 3, 500)
    x = np.eye(3)[topic] + 0.1 * rng.normal(size=(500, 3))
    # Arm j is right nine times in ten on topic j, and twice elsewhere.
    reward = (rng.random((500, 3)) < np.where(np.eye(3)[topic] > 0, 0.9, 0.2)).astype(float)
    arm = BASELINES[name](x[:400], reward[:400], x[400:])
    assert (arm == topic[400:]).mean() > 0.9


def test_plain_methods_pay_for_what_they_read() -> None:
    log = world(200, passages=True)
    free, priced = (cross_validate(log, 2, cost_weight=w, baselines=True)["baselines"] for w in (0.0, 0.05))
    for name in BASELINES:
        # All evidence is gathered: every query pays one retrieval, whatever arm answers it.
        assert priced[name] == pytest.approx(free[name] - 0.05, abs=0.03)


def test_plain_methods_refuse_partial_feedback() -> None:
    rows = []
    for i, row in enumerate(world(120).rows):
        arm = ("adapter", "rag")[i % 2]
        even = {"adapter": 0.5, "rag": 0.5}
        rows.append({**row.model_dump(), "reward": {arm: row.reward[arm]}, "arm": arm, "propensities": even})
    with pytest.raises(DataError, match="baselines need full feedback"):
        cross_validate(Outcomes.from_rows(rows), 2, baselines=True)


def test_one_class_only_leaves_a_classifier_with_that_class() -> None:
    x = np.zeros((5, 2))
    reward = np.tile([0.0, 1.0], (5, 1))
    for name, method in BASELINES.items():
        assert method(x, reward, np.zeros((3, 2))).tolist() == [1, 1, 1], name


def test_signals_and_texts_are_weighed_without_changing_what_was_given() -> None:
    features = np.ones((2, 3))
    weighed = comparable(features, np.array([True, False, True]))
    assert weighed.tolist() == [[0.2, 1.0, 0.2]] * 2
    assert (features == 1.0).all()


def test_confidence_of_a_router_is_not_rejected_and_says_more_than_a_constant() -> None:
    figures = cross_validate(world(400, seed=3), 4)
    assert figures["calibration_p"] > 0.05
    assert figures["spiegelhalter_p"] > 0.05
    # Nine in ten answers are good whatever the topic: a constant is as good as can be here, and not lost to.
    assert figures["brier_ungated"] <= figures["base_brier_ungated"] + 0.005
