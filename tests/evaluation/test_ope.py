"""Off-policy estimates in worlds whose truth is computable: exactness, coverage, width, refusals."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.ope import direct_method, doubly_robust, ips, snips
from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.evaluation.policy_value import policy_value

laws = settings(deadline=None, derandomize=True, max_examples=60)


@st.composite
def full_world(draw):
    """Deterministic rewards of every arm, a policy to evaluate and one that logs, all with full support."""
    n, a = draw(st.integers(1, 8)), draw(st.integers(2, 4))
    numbers = st.lists(st.floats(0.05, 1.0), min_size=n * a, max_size=n * a)
    tables = [np.array(draw(numbers)).reshape(n, a) for _ in range(3)]
    return tables[0], *(t / t.sum(axis=1, keepdims=True) for t in tables[1:])


def logged_once_per_arm(table):
    """Rows repeated so that each arm of each query stands in the log once."""
    n, a = table.shape
    return np.repeat(table, a, axis=0), np.tile(np.arange(a), n)


@laws
@given(full_world())
def test_all_estimators_agree_with_the_truth_when_every_arm_is_logged_equally_often(world):
    reward, dist, _ = world
    truth = float((dist * reward).sum(axis=1).mean())
    rows, arm = logged_once_per_arm(reward)
    pi, _ = logged_once_per_arm(dist)
    earned = rows[np.arange(len(arm)), arm]
    propensity = np.full(len(arm), 1 / reward.shape[1])
    for found in (
        ips(earned, arm, propensity, pi),
        snips(earned, arm, propensity, pi),
        direct_method(earned, arm, propensity, pi, rows),
        doubly_robust(earned, arm, propensity, pi, rows),
    ):
        assert found.value == pytest.approx(truth, abs=1e-9)
        assert found.unsupported_mass == 0.0


@laws
@given(full_world(), st.integers(0, 1_000))
def test_doubly_robust_is_exact_when_the_reward_model_is(world, seed):
    reward, dist, logger = world
    rng = np.random.default_rng(seed)
    arm = np.array([rng.choice(len(p), p=p) for p in logger])
    at = np.arange(len(arm)), arm
    found = doubly_robust(reward[at], arm, logger[at], dist, reward)
    assert found.value == pytest.approx(float((dist * reward).sum(axis=1).mean()), abs=1e-9)


@laws
@given(full_world(), st.integers(0, 1_000))
def test_the_value_of_the_logging_policy_itself_is_the_mean_reward(world, seed):
    reward, _, logger = world
    rng = np.random.default_rng(seed)
    arm = np.array([rng.choice(len(p), p=p) for p in logger])
    at = np.arange(len(arm)), arm
    # What was logged was chosen with certainty under a policy that knows it: weights are all 1.
    certain = np.eye(reward.shape[1])[arm]
    for found in (ips(reward[at], arm, np.ones(len(arm)), certain), snips(reward[at], arm, np.ones(len(arm)), certain)):
        assert found.value == pytest.approx(float(reward[at].mean()))
        assert found.effective_sample_size == pytest.approx(len(arm))


def test_ips_is_the_written_out_sum():
    # w = (.5/.25, 0/.5, 1/.8); V = (2 * 1 + 0 + 1.25 * .4) / 3
    found = ips([1.0, 1.0, 0.4], [0, 1, 0], [0.25, 0.5, 0.8], [[0.5, 0.5], [1.0, 0.0], [1.0, 0.0]])
    assert found.value == pytest.approx((2.0 + 0.5) / 3)
    assert found.effective_sample_size == pytest.approx(3.25**2 / (4.0 + 1.25**2))
    alone = snips([1.0, 1.0, 0.4], [0, 1, 0], [0.25, 0.5, 0.8], [[0.5, 0.5], [1.0, 0.0], [1.0, 0.0]])
    assert alone.value == pytest.approx(2.5 / 3.25)


def test_the_normal_interval_is_the_written_out_one():
    # Terms 2, 0, .5: mean 2.5 / 3, standard deviation by n - 1, standard error by sqrt(3).
    found = ips([1.0, 1.0, 0.4], [0, 1, 0], [0.25, 0.5, 0.8], [[0.5, 0.5], [1.0, 0.0], [1.0, 0.0]], level=0.9)
    half = 1.6448536269514722 * np.std([2.0, 0.0, 0.5], ddof=1) / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx((2.5 / 3 - half, 2.5 / 3 + half))


def test_doubly_robust_is_the_written_out_sum():
    # q(x, pi) = .5 * .6 + .5 * .2 = .4; w = .5 / .25 = 2; r - q = 1 - .6
    found = doubly_robust([1.0, 1.0], [0, 0], [0.25, 0.25], [[0.5, 0.5]] * 2, [[0.6, 0.2]] * 2)
    assert found.value == pytest.approx(0.4 + 2 * 0.4)


# ------------------------------------------------------------------- a random world, coverage and its width


class World:
    """Queries with one number x; arm 0 is good for small x, arm 1 for large, arm 2 is middling.

    The logging policy explores with epsilon = .3 around a guess that is wrong half of the time.
    """

    def __init__(self, seed: int, n: int) -> None:
        self.rng = np.random.default_rng(seed)
        x = self.rng.random(n)
        self.chance = np.column_stack([0.9 - 0.7 * x, 0.2 + 0.7 * x, np.full(n, 0.5)])
        guess = np.where(self.rng.random(n) < 0.5, self.chance.argmax(axis=1), 2)
        self.logged_dist = np.full((n, 3), 0.1)
        self.logged_dist[np.arange(n), guess] = 0.8
        self.arm = (self.logged_dist.cumsum(axis=1) > self.rng.random((n, 1))).argmax(axis=1)
        self.at = np.arange(n), self.arm
        self.reward = (self.rng.random(n) < self.chance[self.at]).astype(float)
        self.propensity = self.logged_dist[self.at]
        self.dist = np.eye(3)[self.chance.argmax(axis=1)] * 0.9 + 0.1 / 3
        self.crude = np.column_stack([0.7 - 0.3 * x, 0.4 + 0.3 * x, np.full(n, 0.4)])

    def estimates(self, interval):
        four = self.reward, self.arm, self.propensity, self.dist
        return {
            "ips": ips(*four, interval=interval),
            "snips": snips(*four, interval=interval),
            # Its interval covers the choice of queries alone, so its model must be right for it to cover the truth.
            "direct_method": direct_method(*four, self.chance, interval=interval),
            "doubly_robust": doubly_robust(*four, self.crude, interval=interval),
        }


TRUTH = float(np.mean([(w.dist * w.chance).sum(axis=1).mean() for w in [World(s, 100_000) for s in (90, 91)]]))


@pytest.mark.parametrize(("interval", "worlds"), [("normal", 400), ("bootstrap", 40)])
def test_intervals_cover_at_their_stated_rate_and_are_no_wider_than_needed(interval, worlds):
    n = 1_000
    covered = dict.fromkeys(["ips", "snips", "direct_method", "doubly_robust"], 0)
    widths = {name: [] for name in covered}
    values = {name: [] for name in covered}
    for seed in range(worlds):
        for name, found in World(seed, n).estimates(interval).items():
            covered[name] += found.low <= TRUTH <= found.high
            widths[name].append(found.high - found.low)
            values[name].append(found.value)
    # Stated: 95 %. If the true coverage is .95, fewer than this many of 400 (40) are covered with probability
    # < .1 %: the false-alarm rate of each of the four checks.
    bound = next(k for k in range(worlds) if binomial_below(k + 1, worlds, 0.95) >= 0.001)
    for name, count in covered.items():
        assert count >= bound, (name, count, bound)
        # An interval that covers by being wide is no use: it may exceed the ideal one by 15 %.
        ideal = 2 * 1.96 * np.std(values[name], ddof=1)
        assert np.mean(widths[name]) <= 1.15 * ideal, name
    assert np.mean(widths["doubly_robust"]) <= 0.13
    assert np.mean(widths["direct_method"]) < np.mean(widths["doubly_robust"]) < np.mean(widths["ips"])


def test_a_wrong_model_makes_the_direct_method_miss_with_a_narrow_interval_and_doubly_robust_does_not() -> None:
    missed = {"direct_method": 0, "doubly_robust": 0}
    for seed in range(50):
        w = World(seed, 1_000)
        for name, method in (("direct_method", direct_method), ("doubly_robust", doubly_robust)):
            found = method(w.reward, w.arm, w.propensity, w.dist, w.crude)
            missed[name] += not found.low <= TRUTH <= found.high
    assert missed["direct_method"] == 50
    # Each misses at .05: more than 10 of 50 has a probability below 1e-4.
    assert missed["doubly_robust"] <= 10


def binomial_below(k: int, n: int, p: float) -> float:
    """P(X < k) for X ~ binomial(n, p)."""
    return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k))


def test_reweighting_is_unbiased_and_a_wrong_model_alone_is_not():
    found = [World(s, 500) for s in range(200)]
    dr = [doubly_robust(w.reward, w.arm, w.propensity, w.dist, w.crude).value for w in found]
    dm = [direct_method(w.reward, w.arm, w.propensity, w.dist, w.crude).value for w in found]
    # Standard error of each mean is below .003; four of them.
    assert np.mean(dr) == pytest.approx(TRUTH, abs=0.012)
    assert abs(np.mean(dm) - TRUTH) > 0.05


# ------------------------------------------------------------------------------------------------ refusals


def test_a_greedy_log_has_no_overlap_and_is_refused():
    arm = np.array([0, 0, 1, 1])
    with pytest.raises(DataError, match=r"50\.0% of the policy's choices.*log with exploration"):
        ips(np.ones(4), arm, np.ones(4), np.tile([1.0, 0.0], (4, 1)))


def test_five_percent_unsupported_mass_passes_and_is_reported_and_six_do_not():
    logged_dist = np.array([[0.5, 0.5, 0.0]] * 10)
    args = np.ones(10), np.zeros(10, int), np.full(10, 0.5)
    found = ips(*args, np.array([[0.95, 0.0, 0.05]] * 10), logged_dist=logged_dist)
    assert found.unsupported_mass == pytest.approx(0.05)
    for estimator in (ips, snips):
        with pytest.raises(DataError, match=r"6\.0%"):
            estimator(*args, np.array([[0.94, 0.0, 0.06]] * 10), logged_dist=logged_dist)


def test_forced_rows_are_left_out_whatever_they_hold():
    clean = ips([1.0, 0.0], [0, 1], [0.5, 0.5], [[0.5, 0.5]] * 2)
    mixed = ips([1.0, np.nan, 0.0], [0, 0, 1], [0.5, 0.0, 0.5], [[0.5, 0.5]] * 3, forced=[False, True, False])
    assert mixed == clean


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity": [0.5, 0.0]}, r"propensity must be in \(0, 1\]; row 1 has 0.0. .*epsilon_greedy"),
        ({"propensity": [0.5, 1.5]}, "row 1 has 1.5"),
        ({"propensity": [0.5, np.nan]}, "row 1 has nan"),
        ({"reward": [1.0, np.nan]}, "reward must be a number; row 1"),
        ({"arm": [0, 2]}, r"arm must be in 0\.\.1; row 1 has 2"),
        ({"arm": [0.0, 1.0]}, "arm must be integers"),
        ({"dist": [[0.5, 0.5], [0.5, 0.6]]}, "sum to 1; row 1 has 1.1"),
        ({"dist": [[0.5, 0.5], [1.5, -0.5]]}, "must be probabilities.*row 1"),
        ({"dist": [0.5, 0.5]}, r"dist must have shape \(n, a\)"),
        ({"reward": [1.0]}, r"reward must have shape \(2,\)"),
        ({"predicted": [[0.5, np.nan]] * 2}, "predicted has values that are no numbers"),
        ({"forced": [True, True]}, "no rows are left"),
    ],
)
def test_wrong_input_is_an_error_that_names_the_row(change, message):
    good = {
        "reward": [1.0, 0.0],
        "arm": [0, 1],
        "propensity": [0.5, 0.5],
        "dist": [[0.5, 0.5]] * 2,
        "predicted": [[0.5, 0.5]] * 2,
    }
    with pytest.raises(DataError, match=message):
        doubly_robust(**{**good, **change})


def test_a_policy_that_never_chose_what_was_logged_says_nothing():
    with pytest.raises(DataError, match="never chooses an arm that was logged"):
        snips([1.0], [0], [0.5], [[0.0, 1.0]])


# ------------------------------------------------------------------------------------- on an outcome log


def outcome_log(world: World, full: bool = False) -> Outcomes:
    names = ["a", "b", "c"]
    drawn = (world.rng.random(world.chance.shape) < world.chance).astype(float)
    drawn[world.at] = world.reward
    rows = []
    for i in range(len(world.arm)):
        every = dict(zip(names, drawn[i], strict=True))
        row = {"query_id": str(i), "query": f"q{i}", "cost": {"a": 1.0, "b": 2.0, "c": 3.0}}
        row["propensities"] = dict(zip(names, world.logged_dist[i], strict=True))
        row["arm"] = names[world.arm[i]]
        row["reward"] = every if full else {row["arm"]: every[row["arm"]]}
        rows.append(row)
    return Outcomes.from_rows(rows)


@pytest.mark.parametrize("method", ["ips", "snips", "direct_method", "doubly_robust", None])
def test_under_full_feedback_every_method_is_the_exact_mean(method):
    world = World(0, 200)
    log = outcome_log(world, full=True)
    found = policy_value(log, world.dist, world.crude, method=method, cost_weight=0.1)
    net = log.reward - 0.1 * log.cost
    assert found.value == pytest.approx(float((world.dist * net).sum(axis=1).mean()))
    assert found.effective_sample_size == pytest.approx(200)


def test_on_a_partial_log_it_is_the_estimator_of_the_net_reward():
    world = World(1, 300)
    log = outcome_log(world)
    price = np.array([1.0, 2.0, 3.0])
    expected = doubly_robust(
        world.reward - 0.1 * price[world.arm], world.arm, world.propensity, world.dist, world.crude - 0.1 * price
    )
    assert policy_value(log, world.dist, world.crude, cost_weight=0.1) == expected
    assert policy_value(log, world.dist).method == "snips"


def test_rows_with_all_rewards_within_a_partial_log_count_exactly():
    world = World(2, 50)
    whole, part = outcome_log(world, full=True), outcome_log(world)
    mixed = Outcomes.from_rows([*whole.rows[:20], *part.rows[20:]])
    exact = (world.dist * whole.reward).sum(axis=1)
    weight = world.dist[world.at] / world.propensity
    expected = np.concatenate([exact[:20], (weight * world.reward)[20:]]).mean()
    assert policy_value(mixed, world.dist, method="ips").value == pytest.approx(expected)


def test_forced_rows_of_a_partial_log_do_not_count_and_those_of_a_full_one_do():
    world = World(4, 80)
    part = outcome_log(world)
    rows = [{**r.model_dump(), "forced": i % 4 == 0} for i, r in enumerate(part.rows)]
    made = np.arange(80) % 4 != 0
    found = policy_value(Outcomes.from_rows(rows, part.arms), world.dist, world.crude)
    assert found == policy_value(part.take(made), world.dist[made], world.crude[made])
    assert found.n == 60
    whole = [{**r.model_dump(), "forced": True} for r in outcome_log(world, full=True).rows]
    assert policy_value(Outcomes.from_rows(whole), world.dist).n == 80


def test_the_gain_over_a_policy_is_paired_query_by_query():
    world = World(3, 1_000)
    log = outcome_log(world)
    fixed = np.tile([0.0, 0.0, 1.0], (1_000, 1))
    gain = policy_value(log, world.dist, world.crude, over=fixed)
    first, second = (policy_value(log, d, world.crude) for d in (world.dist, fixed))
    assert gain.value == pytest.approx(first.value - second.value)
    assert policy_value(log, world.dist, world.crude, over=world.dist).high == 0.0


def test_a_log_that_cannot_be_learnt_from_is_refused():
    log = Outcomes.from_rows([{"query_id": str(i), "query": "q", "reward": {a: 1}} for i, a in enumerate("ab")])
    with pytest.raises(DataError, match="no propensities"):
        policy_value(log, [[0.5, 0.5]] * 2)
    with pytest.raises(DataError, match="one row per outcome"):
        policy_value(outcome_log(World(0, 5)), [[0.5, 0.5, 0.0]])
