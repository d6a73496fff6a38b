"""Intervals against scipy, and their coverage in a known world."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ragft_plugin.evaluation.metrics import bootstrap_mean, bootstrap_means, mcnemar_exact, paired_bootstrap, wilson


@settings(deadline=None, derandomize=True, max_examples=80)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy(pair):
    successes, n = pair
    oracle = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    found = wilson(successes, n)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-9)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0


@settings(deadline=None, derandomize=True, max_examples=80)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_equals_the_binomial_test_of_the_discordant_pairs(pairs):
    first, second = np.array(pairs).T
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_is_exact_where_floats_would_overflow():
    first = np.arange(5_000) < 2_400
    assert mcnemar_exact(first, ~first) == pytest.approx(stats.binomtest(2_400, 5_000).pvalue, rel=1e-9)


def test_bootstrap_of_normal_data_is_close_to_the_t_interval():
    x = np.random.default_rng(0).normal(2.0, 3.0, 400)
    half = 1.96 * x.std(ddof=1) / 20.0
    found = bootstrap_mean(x)
    assert found.value == pytest.approx(x.mean())
    assert (found.low, found.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.1 * half)


def test_bootstrap_interval_covers_at_its_rate():
    # 400 worlds, nominal .95. The test is a false alarm for a true coverage of .93 with probability < 1 %
    # (binomial(400, .93) below 358); the percentile bootstrap at n = 60 covers about .94.
    rng = np.random.default_rng(1)
    covered = 0
    for world in range(400):
        found = bootstrap_mean(rng.random(60) < 0.3, draws=400, seed=world)
        covered += found.low <= 0.3 <= found.high
    assert covered >= 358


def test_rows_of_a_group_are_drawn_together():
    # Each query logged 25 times says no more than once: the interval must be that of 40 queries, not of 1,000.
    queries = np.random.default_rng(2).random(40)
    repeated, groups = np.repeat(queries, 25), np.repeat(np.arange(40), 25)
    alone, grouped = bootstrap_mean(queries), bootstrap_mean(repeated, groups=groups)
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.05)
    naive = bootstrap_mean(repeated)
    assert naive.high - naive.low < 0.3 * (alone.high - alone.low)


def test_pairing_removes_what_both_policies_share():
    rng = np.random.default_rng(3)
    easy = rng.random(300)
    found = paired_bootstrap(easy + 0.01, easy)
    assert (found.low, found.high) == pytest.approx((0.01, 0.01))


def test_equal_seeds_give_equal_intervals_whatever_the_chunk(monkeypatch):
    x = np.arange(50.0)
    whole = bootstrap_mean(x, seed=4)
    monkeypatch.setattr("ragft_plugin.evaluation.intervals.CHUNK", 1_000)
    again = bootstrap_mean(x, seed=4)
    assert (again.low, again.high) == pytest.approx((whole.low, whole.high), abs=1e-12)
    assert bootstrap_mean(x, seed=4) == again
    assert bootstrap_mean(x, seed=5) != again


def test_columns_resampled_together_have_the_intervals_they_have_alone():
    table = np.random.default_rng(5).random((40, 3))
    for column, found in zip(table.T, bootstrap_means(table, seed=6), strict=True):
        alone = bootstrap_mean(column, seed=6)
        assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=1e-12)


def test_what_has_no_mean_is_refused():
    for wrong in ([], [1.0, np.nan], [[1.0]]):
        with pytest.raises(ValueError, match="finite values"):
            bootstrap_mean(wrong)
    with pytest.raises(ValueError, match="pairs needed"):
        paired_bootstrap([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="level"):
        wilson(1, 2, level=1.0)
