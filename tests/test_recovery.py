from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from skcvxbn.losses import LinearQuadratic
from skcvxbn.recovery import network_to_whitened, recover_network
from skcvxbn.solvers.base import Problem, Solution
from skcvxbn.whitening import whiten

WEIGHTS = {"no weights": None, "weights": np.random.default_rng(5).uniform(0.2, 3.0, 20)}


def make_data(n=20, d=3, n_outputs=2, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * [1.0, 100.0, 1e-3][:d] + [0.0, 50.0, 3.0][:d]
    return X, rng.standard_normal((n, n_outputs))


def make_solution(rank, n_neurons=6, n_outputs=2, seed=0):
    rng = np.random.default_rng(seed)
    # Sides of very different sizes: recovery has to balance them.
    S = rng.standard_normal((rank + 1, n_neurons)) * 10.0 ** rng.integers(-3, 3, n_neurons)
    V = rng.standard_normal((n_neurons, n_outputs))
    return Solution(S, V, np.zeros((1, V.shape[1])), 0.0, 0.0, "exact", 1, True, "")


def weighted(Y, weight):
    return Y if weight is None else np.sqrt(weight)[:, None] * Y


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("n_neurons", [0, 6])
def test_the_network_computes_what_the_solution_does(weight, fit_intercept, n_neurons):
    X, Y = make_data()
    whitening = whiten(X, weight)
    solution = make_solution(whitening.rank, n_neurons)
    network = recover_network(solution, whitening, LinearQuadratic(weighted(Y, weight), 1.0), fit_intercept)
    predicted = np.maximum(whitening.coordinates(X) @ solution.S, 0) @ solution.V
    if fit_intercept:
        predicted += np.average(Y - predicted, axis=0, weights=weight)
    assert_allclose(network.forward(X), predicted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_the_network_has_the_objective_of_the_solution(weight, fit_intercept):
    X, Y = make_data()
    whitening = whiten(X, weight)
    solution = make_solution(whitening.rank)
    problem = Problem(whitening.A, LinearQuadratic(weighted(Y, weight), 1.0), 0.3, fit_intercept)
    network = recover_network(solution, whitening, problem.loss, fit_intercept)
    expected = problem.objective(solution.S, solution.V)
    assert_allclose(network.objective(X, Y, 0.3, weight), expected, rtol=1e-9)


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_running_statistics_are_those_of_the_training_rows(weight):
    X, Y = make_data()
    whitening = whiten(X, weight)
    network = recover_network(
        make_solution(whitening.rank), whitening, LinearQuadratic(weighted(Y, weight), 1.0), True
    )
    H = X @ network.hidden_weights
    mean = np.average(H, axis=0, weights=weight)
    assert_allclose(network.running_mean, mean, rtol=1e-9)
    assert_allclose(network.running_var, np.average((H - mean) ** 2, axis=0, weights=weight), rtol=1e-9)


def test_float32_data_give_a_float32_network():
    X, Y = make_data()
    whitening = whiten(X.astype(np.float32))
    network = recover_network(make_solution(whitening.rank), whitening, LinearQuadratic(Y, 1.0), True)
    assert {array.dtype for array in vars(network).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("constant_features", [False, True])
def test_a_neuron_that_ignores_the_data_has_no_hidden_weights(constant_features):
    X, Y = make_data()
    if constant_features:
        X = np.full_like(X, 3.0)
    whitening = whiten(X)
    S = np.zeros((whitening.rank + 1, 2))
    S[-1] = [2.0, -1.0]
    solution = Solution(
        S, np.array([[3.0, 1.0], [1.0, 1.0]]), np.zeros((1, 2)), 0.0, 0.0, "exact", 1, True, ""
    )
    network = recover_network(solution, whitening, LinearQuadratic(Y, 1.0), False)
    assert not network.hidden_weights.any()
    assert not network.running_mean.any()
    assert_allclose(network.running_var, 1.0)
    assert_allclose(network.forward(X), np.tile([6.0, 2.0], (20, 1)) / np.sqrt(20), rtol=1e-12)


def test_neurons_that_contribute_nothing_are_left_out():
    X, Y = make_data()
    whitening = whiten(X)
    solution = make_solution(whitening.rank)
    solution.S[:, 1] = 0.0
    solution.V[4] = 0.0
    network = recover_network(solution, whitening, LinearQuadratic(Y, 1.0), True)
    assert network.bn_weight.shape == (4,)
    assert np.isfinite(network.forward(X)).all()


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("shape", [(20, 3), (3, 3), (20, 1)])
def test_whitening_a_recovered_network_returns_the_solution(weight, shape):
    X, Y = make_data(*shape)
    weight = None if weight is None else weight[: len(X)]
    whitening = whiten(X, weight)
    solution = make_solution(whitening.rank)
    S, V = network_to_whitened(
        recover_network(solution, whitening, LinearQuadratic(weighted(Y, weight), 1.0), True), whitening
    )
    sides = np.linalg.norm(solution.S, axis=0), np.linalg.norm(solution.V, axis=1)
    balance = np.sqrt(sides[1] / sides[0])
    assert_allclose(S, solution.S * balance, rtol=1e-8, atol=1e-10)
    assert_allclose(V, solution.V / balance[:, None], rtol=1e-8, atol=1e-10)


def test_a_network_keeps_its_hidden_layer_on_other_data():
    X, Y = make_data()
    first, second = whiten(X[:15]), whiten(X[8:])
    network = recover_network(make_solution(first.rank), first, LinearQuadratic(Y[:15], 1.0), False)
    S, V = network_to_whitened(network, second)
    assert_allclose(np.maximum(second.A @ S, 0) @ V, network.forward(X[8:]), rtol=1e-8, atol=1e-8)


def test_a_network_keeps_its_output_on_data_of_rank_zero():
    X, Y = make_data()
    network = recover_network(make_solution(3), whiten(X), LinearQuadratic(Y, 1.0), False)
    constant = np.tile(X[0], (5, 1))
    whitening = whiten(constant)
    S, V = network_to_whitened(network, whitening)
    assert S.shape == (1, 6)
    assert_allclose(np.maximum(whitening.A @ S, 0) @ V, network.forward(constant), rtol=1e-9)
