"""Drift and shadow mode: scipy as oracle, stated rates, and what the comparison may claim."""

import numpy as np
import pytest
from scipy import stats

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.decision_log import DecisionLog
from ragft_plugin.evaluation.drift import decision_columns, drift_check, kolmogorov_smirnov, psi
from ragft_plugin.evaluation.shadow import compare_shadow
from ragft_plugin.types import Decision


def columns(seed, n, shift=0.0, rag=0.6):
    rng = np.random.default_rng(seed)
    return {
        "confidence": rng.beta(4, 2, n) - shift,
        "value": np.round(rng.normal(size=n), 1),
        "arm": np.where(rng.random(n) < rag, "rag", "base"),
    }


def test_kolmogorov_smirnov_is_close_to_scipy():
    rng = np.random.default_rng(0)
    for n, m, shift in [(30, 50, 0.0), (100, 100, 0.3), (500, 80, 0.5), (200, 200, 0.0)]:
        a, b = rng.normal(size=n), rng.normal(shift, size=m)
        statistic, p_value = kolmogorov_smirnov(a, b)
        oracle = stats.ks_2samp(a, b, method="exact")
        assert statistic == pytest.approx(oracle.statistic)
        assert p_value == pytest.approx(oracle.pvalue, abs=0.03)
    assert kolmogorov_smirnov([1.0, 2.0], [1.0, 2.0]) == (0.0, 1.0)


def test_psi_is_the_written_out_sum():
    # Two bins cut at the median of the reference; recent has 3 of 4 above it. Half a row is added to each.
    p, q = 2.5 / 5, np.array([1.5, 3.5]) / 5
    expected = sum((b - p) * np.log(b / p) for b in q)
    assert psi([1, 2, 3, 4], [1, 3, 4, 5], bins=2) == pytest.approx(expected)


def test_it_alarms_no_more_often_than_stated_when_nothing_changed():
    # 400 checks of three columns at alpha = .05: binomial(400, .05) exceeds 33 with probability < .3 %.
    alarms = sum(drift_check(columns(s, 150), columns(10_000 + s, 80), alpha=0.05).drifted for s in range(400))
    assert alarms <= 33


@pytest.mark.parametrize(("change", "name"), [({"shift": 0.15}, "confidence"), ({"rag": 0.3}, "arm")])
def test_it_finds_a_change_and_names_the_column(change, name):
    found = [drift_check(columns(s, 500), columns(900 + s, 200, **change)) for s in range(20)]
    assert sum(report.drifted and report.alarms[0].name == name for report in found) >= 18


def test_an_arm_never_seen_before_is_a_change():
    report = drift_check({"arm": ["rag"] * 100}, {"arm": ["rag"] * 50 + ["adapter"] * 50})
    assert report.alarms[0].name == "arm"
    assert report.alarms[0].statistic == pytest.approx(0.5)


def test_too_few_rows_are_an_error_and_not_silence():
    with pytest.raises(DataError, match="confidence: 100/5"):
        drift_check({"confidence": np.zeros(100)}, {"confidence": np.zeros(5)})
    with pytest.raises(DataError, match="no columns"):
        drift_check({}, {})
    with pytest.raises(DataError, match="confidence: expected finite"):
        drift_check({"confidence": np.full(50, np.nan)}, {"confidence": np.zeros(50)})


def log_of(rows, shadow=()):
    log = DecisionLog("sqlite://")
    for id, arm, propensities, reward in rows:
        log.append(Decision(id, arm, propensities, values={arm: 0.5}, confidence=0.6), query=id, cost=2.0)
        if reward is not None:
            log.attach_rewards({id: reward})
    for id, arm, propensities in shadow:
        log.append(Decision(f"s{id}", arm, propensities), query=id, cost=1.0, shadow_of=id)
    return log


def test_columns_of_a_log_hold_the_surprise_of_rewarded_decisions_and_no_forced_one():
    log = log_of([("a", "rag", {"rag": 1.0}, 1.0), ("b", "base", {"base": 1.0}, None)])
    log.append(Decision("c", "base", {"base": 1.0}, forced=True), query="c", cost=1)
    found = decision_columns(log.decisions())
    assert found["surprise"] == [pytest.approx(0.4)]
    assert found["arm"] == ["rag", "base"]
    assert found["value"] == [0.5, 0.5]


def test_the_shadow_comparison_estimates_the_gain_from_explored_rewards():
    rng = np.random.default_rng(1)
    explored = {"rag": 0.5, "base": 0.5}
    rows, shadow = [], []
    for i in range(400):
        arm = "rag" if rng.random() < 0.5 else "base"
        rows.append((f"d{i}", arm, explored, float(rng.random() < (0.8 if arm == "rag" else 0.4))))
        shadow.append((f"d{i}", "rag", {"rag": 1.0, "base": 0.0}))
    log = log_of(rows, shadow)
    found = compare_shadow(log.decisions(), log.decisions(shadow=True))
    assert found.n == 400
    assert (found.live_cost, found.shadow_cost) == (2.0, 1.0)
    assert found.flows[("base", "rag")] + found.flows[("rag", "rag")] == 400
    # True values are .8 and .6.
    assert found.gain is not None
    assert found.gain.low <= 0.2 <= found.gain.high
    assert found.gain.low > 0.1


def test_without_exploration_the_gain_is_refused_with_the_reason():
    greedy = {"rag": 1.0, "base": 0.0}
    rows = [(f"d{i}", "rag", greedy, 1.0) for i in range(30)]
    log = log_of(rows, [(f"d{i}", "base", {"rag": 0.0, "base": 1.0}) for i in range(30)])
    found = compare_shadow(log.decisions(), log.decisions(shadow=True))
    assert found.gain is None
    assert "log with exploration" in found.refused
    assert found.agreement.value == 0.0
    assert found.n == 30
    log.append(Decision("named", "rag", greedy, forced=True), query="named", cost=1.0)
    log.append(Decision("beside", "rag", greedy), query="named", cost=1.0, shadow_of="named")
    assert compare_shadow(log.decisions(), log.decisions(shadow=True)) == found


def test_a_shadow_without_its_live_decision_is_an_error():
    with pytest.raises(DataError, match="shadow_of"):
        compare_shadow([], log_of([], [("x", "rag", {"rag": 1.0})]).decisions(shadow=True))
