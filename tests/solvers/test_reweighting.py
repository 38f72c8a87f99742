"""The best output weights of given hidden directions: against cvxpy, and by their optimality conditions."""

from __future__ import annotations

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skcvxbn import losses
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.output_weights import improved_weights
from skcvxbn.solvers.reweighting import reweighted
from skcvxbn.training import largest_beta
from skcvxbn.whitening import whiten

KINDS = pytest.mark.parametrize("kind", ["squared", "two outputs", "huber", "log", "softmax"])
BIAS = pytest.mark.parametrize("fit_intercept", [False, True])


def make(kind="squared", fit_intercept=True, ratio=0.1, n_neurons=20):
    """A problem with row weights, in the loss' own units, and a random network."""
    rng = np.random.default_rng(5)
    X, weight = rng.standard_normal((80, 3)), rng.uniform(0.5, 2, 80)
    Y = np.sin(2 * X @ rng.standard_normal((3, 3))) + 0.3 * rng.standard_normal((80, 3))
    loss = {
        "squared": lambda: losses.squared_error(Y[:, :1], weight),
        "two outputs": lambda: losses.squared_error(Y[:, :2], weight),
        "huber": lambda: losses.huber(Y[:, :1], weight, epsilon=0.5),
        "log": lambda: losses.log_loss(np.sign(Y[:, :1]), weight),
        "softmax": lambda: losses.log_loss(np.eye(3)[Y.argmax(axis=1)], weight),
    }[kind]()
    A = whiten(X, sample_weight=weight).A
    problem = Problem(A, loss.scaled(*loss.unit(A[:, -1] if fit_intercept else None)), 1.0, fit_intercept)
    problem = replace(problem, beta=ratio * largest_beta(problem.A, problem.zero.R))
    S, V = rng.standard_normal((4, n_neurons)), rng.standard_normal((n_neurons, problem.n_outputs))
    return problem, S, 0.1 * V


@BIAS
@KINDS
def test_no_neuron_violates_its_constraint_and_each_that_is_used_meets_it(kind, fit_intercept):
    problem, S, V = make(kind, fit_intercept)
    before = S.copy(), V.copy()
    new_S, new_V, bias = reweighted(problem, S, V)
    assert_array_equal(S, before[0])
    assert_array_equal(V, before[1])
    for _ in range(8 if kind == "softmax" else 0):
        # Its models have no more than a bound of the curvature, and come nearer slowly.
        new_S, new_V, bias = reweighted(problem, new_S, new_V, bias)
    assert_allclose(np.linalg.norm(new_S, axis=0), 1, rtol=1e-12)
    R = problem.dual_point(new_S, new_V)
    accuracy = 1e-3 if kind == "softmax" else 2e-5
    unit = S / np.linalg.norm(S, axis=0)
    values = np.linalg.norm(R.T @ np.maximum(problem.A @ unit, 0), axis=0)
    assert values.max() <= problem.beta * (1 + accuracy)
    pulls = (R.T @ np.maximum(problem.A @ new_S, 0)).T
    sizes = np.linalg.norm(new_V, axis=1)
    # Complementary slackness, summed over the neurons: what is left is what the objective can still fall by.
    assert problem.beta * sizes.sum() - np.sum(pulls * new_V) <= accuracy * problem.beta * sizes.sum()
    assert problem.objective(new_S, new_V) < problem.objective(S, V)
    if fit_intercept:
        assert_allclose(bias, problem.output(new_S, new_V).bias, rtol=1e-6, atol=1e-9)


@BIAS
@pytest.mark.parametrize("kind", ["squared", "two outputs"])
def test_the_objective_is_that_of_the_reference(kind, fit_intercept):
    problem, S, V = make(kind, fit_intercept)
    H = np.maximum(problem.A @ (S / np.linalg.norm(S, axis=0)), 0)
    weights = cp.Variable(V.shape)
    b = cp.Variable((1, problem.n_outputs)) if fit_intercept else np.zeros((1, problem.n_outputs))
    F = H @ weights + problem.A[:, -1:] @ b
    loss = problem.loss
    residual = cp.multiply(np.sqrt(loss.curvature(np.zeros(loss.shape)).weights), F - loss.target)
    penalty = cp.sum(cp.norm(weights, axis=1))
    reference = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(residual) + problem.beta * penalty))
    reference.solve(solver="CLARABEL")
    new_S, new_V, _ = reweighted(problem, S, V)
    assert problem.objective(new_S, new_V) == pytest.approx(reference.value, rel=1e-7)
    used = np.linalg.norm(weights.value, axis=1)
    assert len(new_V) == np.sum(used > 1e-3 * used.max())


def test_neurons_that_start_from_nothing_get_their_weight():
    problem, S, V = make("two outputs")
    S_of_all, V_of_all, _ = reweighted(problem, S, V)
    V[5:] = 0
    other = reweighted(problem, S, V)
    assert problem.objective(*other[:2]) == pytest.approx(problem.objective(S_of_all, V_of_all), rel=1e-8)


def test_equal_neurons_are_no_obstacle():
    problem, S, V = make("two outputs")
    once = problem.objective(*reweighted(problem, S, V)[:2])
    twice = reweighted(problem, np.hstack([S, S]), np.vstack([V, V]))
    assert problem.objective(*twice[:2]) == pytest.approx(once, rel=1e-8)


def test_above_the_largest_beta_no_neuron_is_left():
    problem, S, V = make(ratio=1.5)
    new_S, new_V, _ = reweighted(problem, S, V)
    assert new_S.shape == (4, 0)
    assert new_V.shape == (0, 1)


def test_a_network_without_neurons_stays_as_it_is():
    problem, S, V = make()
    new_S, new_V, bias = reweighted(problem, S[:, :0], V[:0], np.zeros(1))
    assert new_S.shape == (4, 0)
    assert new_V.shape == (0, 1)
    assert_array_equal(bias, np.zeros(1))


@pytest.mark.parametrize("beta", [3e-3, 0.03, 0.3])
@pytest.mark.parametrize("n_outputs", [1, 10])
def test_many_neurons_that_are_alike(n_outputs, beta):
    rng = np.random.default_rng([n_outputs, 0])
    S = np.repeat(rng.standard_normal((6, 50)), 3, axis=1)
    S += 1e-4 * rng.standard_normal(S.shape)
    # Rounding in single precision leaves inner products that are not positive semidefinite.
    H = np.maximum(rng.standard_normal((200, 6)) @ S, 0).astype(np.float32)
    H /= np.linalg.norm(H, axis=0)
    y = rng.standard_normal((200, n_outputs)) / n_outputs**0.5
    gram, linear = (H.T @ H).astype(np.float64), H.T @ y
    assert np.linalg.eigvalsh(gram)[0] < 0
    beta *= np.linalg.norm(linear, axis=1).max()
    V = improved_weights(gram, linear, 0.1 * rng.standard_normal(linear.shape), beta)
    pull, cost = linear - gram @ V, beta * np.linalg.norm(V, axis=1).sum()
    assert np.linalg.norm(pull, axis=1).max() <= beta * (1 + 2e-4)
    assert cost - np.sum(pull * V) <= 2e-4 * cost


@pytest.mark.parametrize("start", [0.0, 1e-3, 1e3])
@pytest.mark.parametrize("seed", range(5))
def test_a_start_that_is_far_off(seed, start):
    rng = np.random.default_rng(seed)
    H = np.maximum(rng.standard_normal((80, 4)) @ rng.standard_normal((4, 60)), 0)
    gram, linear = H.T @ H, H.T @ rng.standard_normal((80, 2))
    beta = 0.01 * np.linalg.norm(linear, axis=1).max()
    V = improved_weights(gram, linear, start * rng.standard_normal((60, 2)), beta)
    pull, cost = linear - gram @ V, beta * np.linalg.norm(V, axis=1).sum()
    assert np.linalg.norm(pull, axis=1).max() <= beta * (1 + 1e-5)
    assert abs(cost - np.sum(pull * V)) <= 1e-5 * cost


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_units_do_not_matter(size):
    rng = np.random.default_rng(0)
    H = np.maximum(rng.standard_normal((50, 10)), 0)
    y = rng.standard_normal((50, 2))
    gram, linear = H.T @ H, H.T @ y
    V = improved_weights(gram, linear, np.full((10, 2), 0.1), 0.5)
    V = improved_weights(gram, linear, V, 0.5)
    pull = linear - gram @ V
    sizes, pulls = np.linalg.norm(V, axis=1), np.linalg.norm(pull, axis=1)
    assert pulls.max() <= 0.5 * (1 + 1e-5)
    assert_allclose(np.sum(pull * V), 0.5 * sizes.sum(), rtol=1e-5)
    # In other units of the weights all is the same.
    scaled = improved_weights(gram / size**2, linear / size, size * V, 0.5 / size)
    assert_allclose(scaled / size, V, rtol=1e-4, atol=1e-6)
