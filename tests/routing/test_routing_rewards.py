"""Reward models: one suite for all of them, and exact arithmetic for their parts."""

from __future__ import annotations

import numpy as np
import pytest

from ragft_plugin.errors import ConfigError
from ragft_plugin.routing.calibration import apply_platt, fit_platt, logistic
from ragft_plugin.routing.policies import POLICIES, choose, epsilon_greedy, softmax
from ragft_plugin.routing.rewards import REWARD_MODELS, prior_means
from ragft_plugin.routing.ridge import fit_ridge, out_of_fold_path


def _problem(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    p = np.stack([logistic(1.5 * x[:, 0]), logistic(-1.5 * x[:, 0])], axis=1)
    reward = (rng.random((n, 2)) < p).astype(float)
    return x, p, reward, rng.permutation(n) % 5


@pytest.mark.parametrize("name", sorted(REWARD_MODELS))
class TestEveryRewardModel:
    def test_learns_what_is_there(self, name: str) -> None:
        x, _, reward, fold = _problem()
        model = REWARD_MODELS[name]().fit(x, reward, fold, np.ones((400, 2)), np.ones(6, bool))
        fresh, truth, _, _ = _problem(seed=1)
        assert np.mean((model.predict(fresh) - truth) ** 2) < 0.4 * np.var(truth)

    def test_out_of_fold_predictions_are_worse_than_seen_ones_and_calibrated(self, name: str) -> None:
        x, _, reward, fold = _problem()
        model = REWARD_MODELS[name]().fit(x, reward, fold, np.ones((400, 2)), np.ones(6, bool))
        seen = np.mean((model.predict(x) - reward) ** 2)
        assert np.mean((model.out_of_fold_ - reward) ** 2) >= seen - 1e-3
        np.testing.assert_allclose(model.out_of_fold_.mean(axis=0), reward.mean(axis=0), atol=0.02)

    def test_restored_model_predicts_bit_for_bit(self, name: str) -> None:
        x, _, reward, fold = _problem(150)
        model = REWARD_MODELS[name]().fit(x, reward, fold, np.ones((150, 2)), np.ones(6, bool))
        again = REWARD_MODELS[name]().restore(*model.state())
        assert np.array_equal(again.predict(x), model.predict(x))

    def test_arm_never_seen_gets_the_prior(self, name: str) -> None:
        x, _, reward, fold = _problem(200)
        reward = np.column_stack([reward, np.full(200, np.nan)])
        model = REWARD_MODELS[name]().fit(x, reward, fold, np.ones((200, 3)), np.ones(6, bool))
        predicted = model.predict(x)
        assert np.isfinite(predicted).all()
        np.testing.assert_allclose(predicted[:, 2], predicted[0, 2])
        assert abs(predicted[0, 2] - np.nanmean(reward)) < 0.02

    def test_one_class_only_is_predicted_near_it_without_certainty(self, name: str) -> None:
        x, _, _, fold = _problem(200)
        reward = np.column_stack([np.ones(200), np.zeros(200)])
        predicted = REWARD_MODELS[name]().fit(x, reward, fold, np.ones((200, 2)), np.ones(6, bool)).predict(x)
        assert ((predicted > 0.0) & (predicted < 1.0)).all()
        assert predicted[:, 0].min() > 0.9
        assert predicted[:, 1].max() < 0.1

    def test_few_rows_fall_back_to_the_prior(self, name: str) -> None:
        x, _, reward, fold = _problem(20)
        predicted = REWARD_MODELS[name]().fit(x, reward, fold, np.ones((20, 2)), np.ones(6, bool)).predict(x)
        assert np.isfinite(predicted).all()
        assert predicted.std(axis=0).max() < 0.25

    def test_equal_rows_are_predicted_equally_alone_and_in_a_batch(self, name: str) -> None:
        x, _, reward, fold = _problem(200)
        model = REWARD_MODELS[name]().fit(x, reward, fold, np.ones((200, 2)), np.ones(6, bool))
        whole = model.predict(x)
        alone = np.concatenate([model.predict(row[None]) for row in x])
        np.testing.assert_allclose(alone, whole, atol=1e-12)
        assert np.array_equal(choose(alone), choose(whole))


def test_prior_mean_is_shrunk_to_the_pooled_one() -> None:
    reward = np.array([[1.0, 0.0], [1.0, np.nan], [1.0, np.nan]])
    pooled = (3 + 1) / (4 + 2)
    expected = [(3 + 4 * pooled) / (3 + 4), (0 + 4 * pooled) / (1 + 4)]
    np.testing.assert_allclose(prior_means(reward, np.ones((3, 2))), expected)


def test_ridge_equals_the_normal_equations_whether_rows_or_features_are_fewer() -> None:
    rng = np.random.default_rng(0)
    for n, d in ((50, 4), (8, 30)):
        x, y, w = rng.normal(size=(n, d)), rng.normal(size=(n, 2)), rng.uniform(0.5, 2.0, n)
        coef, intercept = fit_ridge(x, y, w, np.array([0.7, 3.0]))
        for j, penalty in enumerate((0.7, 3.0)):
            centred = x - np.average(x, axis=0, weights=w)
            left = (centred * w[:, None]).T @ centred + penalty * np.eye(d)
            right = (centred * w[:, None]).T @ (y[:, j] - np.average(y[:, j], weights=w))
            np.testing.assert_allclose(coef[:, j], np.linalg.solve(left, right), atol=1e-8)
        residual = np.average(y - x @ coef - intercept, axis=0, weights=w)
        np.testing.assert_allclose(residual, 0.0, atol=1e-10)


def test_out_of_fold_path_never_sees_the_fold_it_predicts() -> None:
    rng = np.random.default_rng(1)
    x, y, fold = rng.normal(size=(60, 3)), rng.normal(size=(60, 1)), np.arange(60) % 3
    before = out_of_fold_path(x, y, np.ones(60), fold, np.array([1.0]))
    changed = np.where((fold == 1)[:, None], y + 100.0, y)
    after = out_of_fold_path(x, changed, np.ones(60), fold, np.array([1.0]))
    np.testing.assert_array_equal(after[:, fold == 1], before[:, fold == 1])
    assert not np.allclose(after[:, fold != 1], before[:, fold != 1])


def test_platt_recovers_a_distortion_and_leaves_few_rows_alone() -> None:
    rng = np.random.default_rng(2)
    score = rng.uniform(0.05, 0.95, 20_000)
    truth = apply_platt(score, -0.5, 0.6)
    reward = (rng.random(20_000) < truth).astype(float)
    intercept, slope = fit_platt(score, reward)
    assert abs(intercept + 0.5) < 0.06
    assert abs(slope - 0.6) < 0.06
    intercept, slope = fit_platt(np.array([0.5]), np.array([1.0]))
    assert abs(slope - 1.0) < 1e-6
    assert 0.0 < intercept < 0.6


def test_platt_never_turns_the_order_around() -> None:
    score = np.linspace(0.1, 0.9, 100)
    intercept, slope = fit_platt(score, (score < 0.5).astype(float))
    assert slope == 0.0
    assert abs(float(logistic(np.array(intercept))) - 0.5) < 0.01


def test_policies_are_distributions_that_prefer_the_best_arm() -> None:
    values = np.random.default_rng(3).normal(size=(50, 4))
    for name, policy in POLICIES.items():
        dist = policy(values, 0.3)
        np.testing.assert_allclose(dist.sum(axis=1), 1.0)
        assert (dist >= 0.0).all(), name
        assert np.array_equal(dist.argmax(axis=1), choose(values))


def test_arm_that_cannot_answer_is_never_explored() -> None:
    values = np.array([[0.2, -np.inf, 0.1]])
    assert epsilon_greedy(values, 0.5).tolist() == [[0.75, 0.0, 0.25]]
    assert softmax(values, 1.0)[0, 1] == 0.0


def test_wrong_amounts_of_exploration_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"epsilon must be in \[0, 1\], not 1.5"):
        epsilon_greedy(np.zeros((1, 2)), 1.5)
    with pytest.raises(ConfigError, match="temperature must be positive, not 0"):
        softmax(np.zeros((1, 2)), 0.0)
