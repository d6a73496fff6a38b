"""Frontier: hulls against scipy, arithmetic written out, laws of mixing."""

from itertools import pairwise
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from ragft_plugin.evaluation.frontier import (
    Point,
    aiq,
    choose,
    convex_hull,
    cost_at,
    fixed_points,
    headroom_captured,
    margin,
    regret,
    reward_at,
    sweep,
    weight_grid,
)

laws = settings(deadline=None, derandomize=True, max_examples=80)
points = st.lists(st.builds(Point, st.integers(0, 9).map(float), st.integers(0, 9).map(lambda i: i / 9)), min_size=1)


@laws
@given(points, st.floats(0.0, 1.0))
def test_the_hull_is_rising_concave_and_above_every_mixture(cloud, share):
    hull = convex_hull(cloud)
    assert all(a.cost < b.cost and a.reward < b.reward for a, b in pairwise(hull))
    slopes = [(b.reward - a.reward) / (b.cost - a.cost) for a, b in pairwise(hull)]
    assert all(x > y for x, y in pairwise(slopes))
    for a, b in zip(cloud, reversed(cloud), strict=True):
        cost, reward = (share * x + (1 - share) * y for x, y in ((a.cost, b.cost), (a.reward, b.reward)))
        assert reward_at(hull, cost) >= reward - 1e-9


@laws
@given(points)
def test_the_hull_has_the_area_that_scipy_finds(cloud):
    low, high = min(p.cost for p in cloud), max(p.cost for p in cloud)
    if high == low:
        return
    # Closing the region below the points and to their right makes the non-decreasing hull an ordinary one.
    best = max(p.reward for p in cloud)
    corners = [(p.cost, p.reward) for p in cloud] + [(low, -1.0), (high, -1.0), (high, best)]
    expected = ConvexHull(np.array(corners)).volume / (high - low) - 1.0
    assert aiq(cloud) == pytest.approx(expected, abs=1e-9)


@laws
@given(points, st.integers(0, 9).map(float))
def test_cost_at_is_the_inverse_of_reward_at(cloud, cost):
    hull = convex_hull(cloud)
    reached = reward_at(cloud, cost)
    if reached == -inf:
        assert cost < hull[0].cost
        return
    assert cost_at(cloud, reached) <= cost + 1e-9
    assert reward_at(cloud, cost_at(cloud, reached)) == pytest.approx(reached)
    assert cost_at(cloud, 1.5) == inf


def test_aiq_is_the_written_out_area():
    # From (0, .2) to (2, .6), level to 4: ((.2 + .6)/2 * 2 + .6 * 2) / 4
    assert aiq([Point(0, 0.2), Point(2, 0.6)], 0, 4) == pytest.approx((0.8 + 1.2) / 4)
    assert aiq([Point(1, 0.5)]) == 0.5
    with pytest.raises(ValueError, match="range of costs"):
        aiq([Point(1, 0.5)], 0, 2)
    with pytest.raises(ValueError, match="at least one point"):
        aiq([])


def test_margin_is_measured_against_mixtures_not_against_the_arms_alone():
    fixed = [Point(0, 0.3), Point(1, 0.5), Point(2, 0.7)]
    # At a cost of 1 the mixture has .5, so .52 is .02 above the line.
    assert margin([Point(0, 0.3), Point(1, 0.52), Point(2, 0.7)], fixed) == pytest.approx(0.02 * 0.1)
    assert margin([Point(0, 0.3), Point(1, 0.52), Point(2, 0.7)], fixed, edge=0.5) == pytest.approx(0.02)
    assert margin([Point(0, 0.3), Point(1, 0.48), Point(1.9, 0.6)], fixed) < 0.0
    # Level beyond its last point: at the far end the fixed arm is better, and it shows.
    assert margin([Point(0, 0.4), Point(1, 0.6)], fixed) == pytest.approx(0.6 - 0.68)


def test_the_router_curve_goes_from_the_best_arm_to_the_cheapest():
    rng = np.random.default_rng(0)
    quality = rng.random((500, 3))
    cost = np.tile([0.0, 1.0, 3.0], (500, 1))
    curve = sweep(quality, quality, cost)
    assert curve[0].reward == pytest.approx(quality.max(axis=1).mean())
    assert curve[-1].cost == 0.0
    assert curve[-1].reward == pytest.approx(quality[:, 0].mean())
    assert all(a.cost >= b.cost - 1e-12 for a, b in pairwise(curve))
    assert margin(curve, fixed_points(quality, cost, ["a", "b", "c"])) > 0.05


def test_choosing_breaks_ties_by_cost_then_by_order():
    assert choose([[1.0, 1.0, 0.5]], [[2.0, 1.0, 0.0]]).tolist() == [1]
    assert choose([[1.0, 1.0]], [[1.0, 1.0]]).tolist() == [0]
    # 1 - .25 * 2 = .5 = .5 - 0: a tie of net values goes to the cheaper
    assert choose([[1.0, 0.5]], [[2.0, 0.0]], 0.25).tolist() == [1]
    with pytest.raises(ValueError, match="at least 0"):
        choose([[1.0]], [[1.0]], -1.0)


def test_weights_of_a_free_choice_are_one():
    assert weight_grid(np.ones((3, 2))) == [0.0]


def test_regret_is_what_the_best_arm_would_have_added():
    assert regret([[1.0, 0.25], [0.5, 0.5]], [1, 0]).tolist() == [0.75, 0.0]


def test_headroom_is_a_share_and_zero_where_there_is_none():
    assert headroom_captured(0.85, 0.8, 0.9) == pytest.approx(0.5)
    assert headroom_captured(0.7, 0.8, 0.9) == pytest.approx(-1.0)
    assert headroom_captured(0.8, 0.8, 0.8) == 0.0
    with pytest.raises(ValueError, match="cannot earn less"):
        headroom_captured(0.5, 0.8, 0.7)


def test_partial_feedback_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="policy_value"):
        fixed_points([[np.nan, 1.0]], [[0.0, 0.0]], ["a", "b"])
    with pytest.raises(ValueError, match="2 columns but 1 arms"):
        fixed_points([[0.0, 1.0]], [[0.0, 0.0]], ["a"])
    with pytest.raises(ValueError, match="predicted must have shape"):
        sweep([[0.0]], [[0.0, 1.0]], [[0.0, 0.0]])
