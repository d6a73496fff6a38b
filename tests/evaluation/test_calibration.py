"""Calibration measures against scikit-learn, and the rates of the test in known worlds."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import brier_score_loss

from ragft_plugin.evaluation.metrics import brier, calibration_test, ece, reliability, spiegelhalter

laws = settings(deadline=None, derandomize=True, max_examples=60)
confidences = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=40)


def world(seed: int, n: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.beta(2.0, 2.0, n)
    return p, (rng.random(n) < np.clip(p + shift, 0.0, 1.0)).astype(float)


def test_brier_equals_scikit_learn():
    p, y = world(0, 500)
    assert brier(p, y) == pytest.approx(brier_score_loss(y, p), abs=1e-12)


def test_ece_is_the_written_out_sum():
    p = [0.1, 0.2, 0.6, 0.8]
    y = [0.0, 1.0, 1.0, 1.0]
    # two bins: |.15 - .5| and |.7 - 1|, each half of the mass
    assert ece(p, y, bins=2) == pytest.approx(0.5 * 0.35 + 0.5 * 0.3)


def test_ece_equals_numpys_split_into_equal_parts_when_no_confidences_tie():
    p, y = world(1, 503)
    order = np.argsort(p)
    cuts = (np.arange(1, 10) * 503) // 10
    parts = zip(np.split(p[order], cuts), np.split(y[order], cuts), strict=True)
    expected = sum(len(a) / 503 * abs(a.mean() - b.mean()) for a, b in parts)
    assert ece(p, y, bins=10) == pytest.approx(expected, abs=1e-12)


@laws
@given(confidences, st.randoms(use_true_random=False))
def test_ece_does_not_depend_on_the_order_of_the_rows(p, random):
    rows = [(x, float(random.random() < 0.5)) for x in p]
    shuffled = random.sample(rows, len(rows))
    assert ece(*zip(*rows, strict=True)) == pytest.approx(ece(*zip(*shuffled, strict=True)), abs=1e-12)


@laws
@given(confidences)
def test_the_reliability_diagram_holds_every_row_once_and_gives_the_ece(p):
    y = [float(i % 2) for i in range(len(p))]
    table = reliability(p, y)
    assert sum(b.count for b in table) == len(p)
    assert all(a.high < b.low for a, b in pairwise(table))
    total = sum(b.count * abs(b.confidence - b.reward.value) for b in table) / len(p)
    assert total == pytest.approx(ece(p, y), abs=1e-12)


def test_debiasing_removes_at_least_a_third_of_what_noise_adds():
    # Calibrated worlds: the true error is 0, the plain figure is all noise (about .06 at n = 300).
    plain, corrected = np.mean([(ece(*world(s, 300)), ece(*world(s, 300), debiased=True)) for s in range(100)], axis=0)
    assert plain > 0.05
    assert corrected < 2 / 3 * plain


def test_debiasing_keeps_a_true_error():
    found = [ece(*world(s, 2_000, shift=0.1), debiased=True) for s in range(20)]
    p, _ = world(0, 200_000)
    truth = float(np.mean(np.clip(p + 0.1, 0.0, 1.0) - p))
    assert np.mean(found) == pytest.approx(truth, abs=0.01)


def test_a_calibrated_router_is_rejected_no_more_often_than_stated():
    # 400 calibrated worlds at alpha = .05; binomial(400, .05) exceeds 32 with probability < .4 %.
    rejected = sum(calibration_test(*world(s, 200), draws=199).rejected() for s in range(400))
    assert rejected <= 32


def test_with_one_confidence_it_is_the_binomial_test():
    # 50 queries at confidence .5, 32 right. 40,000 draws: standard error .0012, four of them allowed.
    found = calibration_test(np.full(50, 0.5), np.arange(50) < 32, draws=40_000)
    assert found.p_value == pytest.approx(stats.binomtest(32, 50, 0.5).pvalue, abs=0.005)
    assert found.ece == pytest.approx(7 / 50)


def test_an_overconfident_router_is_rejected():
    rejected = sum(calibration_test(*world(s, 500, shift=-0.1), draws=199).rejected() for s in range(50))
    assert rejected >= 45


def test_a_constant_is_not_informative_even_if_calibrated():
    _, y = world(2, 1_000)
    constant = calibration_test(np.full(1_000, y.mean()), y)
    assert not constant.rejected()
    assert not constant.informative
    assert calibration_test(*world(2, 1_000)).informative


def test_the_expected_ece_says_what_noise_alone_would_show():
    found = calibration_test(*world(3, 300))
    assert 0.03 < found.expected_ece < 0.09


def test_the_result_does_not_depend_on_the_chunk(monkeypatch):
    whole = calibration_test(*world(4, 100), draws=50)
    monkeypatch.setattr("ragft_plugin.evaluation.calibration.CHUNK", 700)
    assert calibration_test(*world(4, 100), draws=50) == whole


def test_spiegelhalters_p_value_is_uniform_when_calibrated_and_small_when_not():
    p_values = [spiegelhalter(*world(s, 300)) for s in range(300)]
    # Binomial(300, .05) exceeds 27 with probability < .3 %.
    assert sum(p <= 0.05 for p in p_values) <= 27
    p, _ = world(5, 2_000)
    sharper = np.where(p > 0.5, 0.95, 0.05)
    y = (np.random.default_rng(6).random(2_000) < p).astype(float)
    assert spiegelhalter(sharper, y) < 1e-6


def test_spiegelhalter_without_variance_says_whether_rewards_agree():
    assert spiegelhalter([1.0, 0.0], [1.0, 0.0]) == 1.0
    assert spiegelhalter([1.0, 0.0], [0.0, 0.0]) == 0.0


def test_values_outside_the_unit_interval_are_refused_by_row():
    with pytest.raises(ValueError, match=r"confidence must be in.*row 1 has nan"):
        ece([0.5, float("nan")], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"reward must be in.*row 0 has 2.0"):
        brier([0.5], [2.0])
    with pytest.raises(ValueError, match="n >= 1"):
        ece([], [])
