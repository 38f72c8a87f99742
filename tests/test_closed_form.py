from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skcvxbn.closed_form import closed_form_beta_max, interpolating_head, optimal_layers
from skcvxbn.interpolation import RankError
from skcvxbn.losses import squared_error
from skcvxbn.solvers import Options, Problem, solve
from skcvxbn.whitening import whiten

TARGETS = {
    "mixed": [3.0, -1.0, 0.5, 0.0, -2.0, 1.5],
    "non-negative": [3.0, 1.0, 0.5, 0.0, 2.0, 1.5],
    "non-positive": [-3.0, -1.0, -0.5, 0.0, -2.0, -1.5],
    "zero": [0.0] * 6,
    "constant": [2.0] * 6,
}


def rows(n=6, d=9, seed=0, offset=3.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + offset


def one_hot(codes):
    return np.eye(max(codes) + 1)[codes]


def network_of(optimum, X, weight=None):
    return interpolating_head(optimum, X, weight).network


def lemma_c1(y, beta):
    """The four cases of Lemma C.1, as corrected, for the positive and the negative part."""
    parts = np.maximum(y, 0), np.maximum(-y, 0)
    positive, negative = (beta * p / np.linalg.norm(p) if np.linalg.norm(p) >= beta else p for p in parts)
    return positive - negative


def formula(norms, beta):
    """beta * norm - beta^2 / 2 for each part whose neuron is present, norm^2 / 2 for the others."""
    return sum(beta * t - beta**2 / 2 if t >= beta else t**2 / 2 for t in norms)


def dual_optimum(Y, beta, weight, fit_intercept):
    """The dual for one output and features that span R^n, solved by an interior point method."""
    root, y = np.sqrt(weight), np.sqrt(weight) * Y
    v = cp.Variable(len(y))
    constraints = [cp.norm(cp.pos(v)) <= beta, cp.norm(cp.neg(v)) <= beta]
    if fit_intercept:
        constraints.append(root @ v == 0)
    # What the bias cannot change: <v, y> does not see the mean when v sums to zero.
    y = y - root * (np.average(Y, weights=weight) if fit_intercept else 0)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(v - y)), constraints)
    problem.solve(solver=cp.CLARABEL)
    return 0.5 * y @ y - problem.value


def solved(X, weight, Y, beta, fit_intercept=False):
    """The iterative solver on the same problem."""
    problem = Problem(whiten(X, weight).A, squared_error(Y, weight), beta, fit_intercept)
    options = Options(1e-7, 100, None, 500, np.random.RandomState(0))
    return solve(problem, options, solver="auto", patterns=None, complete=False, start=None)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("beta", [1e-3, 0.5, 2.2, 2.9, 3.6, 10.0])
def test_one_output_is_theorem_2_1(name, beta):
    y, X = np.array(TARGETS[name]), rows()
    norms = [np.linalg.norm(np.maximum(y, 0)), np.linalg.norm(np.maximum(-y, 0))]
    optimum = optimal_layers(y, beta)
    assert_allclose(optimum.dual[:, 0], lemma_c1(y, beta), rtol=1e-14, atol=1e-14)
    assert_allclose(optimum.lower_bound, formula(norms, beta), rtol=1e-12)
    assert len(optimum.size) == sum(norm > beta for norm in norms)

    network = network_of(optimum, X)
    assert_allclose(network.objective(X, y, beta), formula(norms, beta), rtol=1e-10)
    assert_allclose(y - network.forward(X)[:, 0], optimum.dual[:, 0], atol=1e-12)
    # Weights, scale and shift are those of the theorem, up to the balance of both sides of a neuron.
    for j, sign in enumerate(np.sign(network.output_weights[:, 0])):
        z = np.maximum(sign * y, 0)
        gamma_alpha = np.array([np.linalg.norm(z - z.mean()), z.sum() / np.sqrt(len(y))]) / np.linalg.norm(z)
        units = np.sqrt(len(y)) * np.array([network.bn_weight[j], network.bn_bias[j]])
        assert_allclose(units / abs(network.output_weights[j, 0]), gamma_alpha, atol=1e-13)
        assert_allclose(network.output_weights[j, 0] ** 2, np.linalg.norm(z) - beta, rtol=1e-13)


def test_both_neurons_present_have_the_objective_of_the_paper():
    y, beta = np.array(TARGETS["mixed"]), 0.5
    positive, negative = np.linalg.norm(np.maximum(y, 0)), np.linalg.norm(np.minimum(y, 0))
    assert_allclose(optimal_layers(y, beta).lower_bound, beta * (positive + negative) - beta**2, rtol=1e-14)


@pytest.mark.parametrize("beta", [0.1, 1.0, 1.5, 5.0])
def test_one_hot_rows_are_theorem_2_4(beta):
    Y, X = one_hot([0, 1, 2, 0, 2, 2, 0, 2]), rows(8, 9)
    sizes = np.linalg.norm(Y, axis=0)
    optimum = optimal_layers(Y, beta)
    network = network_of(optimum, X)
    assert_allclose(network.objective(X, Y, beta), formula(sizes, beta), rtol=1e-10)
    assert_allclose(optimum.lower_bound, formula(sizes, beta), rtol=1e-12)
    assert_array_equal(optimum.output, np.eye(3)[sizes > beta])
    assert_allclose(network.forward(X), Y * np.maximum(1 - beta / sizes, 0), atol=1e-12)


def test_rows_on_rays_without_acute_angles():
    # Centred labels: the angles between classes are obtuse, and no column has a support of its own.
    X, Y, beta = rows(9, 12), one_hot([0, 1, 2] * 3) - 1 / 3, 0.4
    optimum = optimal_layers(Y, beta)
    network = network_of(optimum, X)
    assert len(optimum.size) == 3
    assert_allclose(network.objective(X, Y, beta), optimum.lower_bound, rtol=1e-10)
    iterative = solved(X, np.ones(9), Y, beta)
    assert iterative.lower_bound <= optimum.lower_bound * (1 + 1e-8)
    assert optimum.lower_bound <= iterative.objective * (1 + 1e-8)


def test_columns_of_disjoint_supports_and_both_signs():
    Y = np.zeros((7, 2))
    Y[:4, 0], Y[4:, 1] = [1.0, -2.0, 3.0, -4.0], [1.0, 2.0, -2.0]
    norms = [np.sqrt(10), np.sqrt(20), np.sqrt(5), 2.0]
    assert_allclose(optimal_layers(Y, 0.3).lower_bound, formula(norms, 0.3), rtol=1e-13)
    assert len(optimal_layers(Y, 0.3).size) == 4


def test_rows_at_acute_angles_are_refused():
    with pytest.raises(ValueError, match="two rows make an acute angle"):
        optimal_layers(np.array([[1.0, 0.0], [1.0, 0.1]]), 0.1)
    with pytest.raises(ValueError, match="fit_intercept=True with 3 outputs"):
        optimal_layers(np.eye(3), 0.1, fit_intercept=True)


def test_acute_angles_really_have_another_optimum():
    # What the formula would be, were it applied to each column: the solver goes below.
    X, Y, beta = rows(6, 9), np.abs(rows(6, 2, seed=3, offset=0.0)), 0.8
    by_column = sum(optimal_layers(column, beta).lower_bound for column in Y.T)
    assert solved(X, np.ones(6), Y, beta).objective < by_column - 0.1


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("beta", [0.05, 0.7, 2.5])
def test_the_iterative_solver_agrees(fit_intercept, weighted, beta):
    X, y = rows(8, 11), np.random.default_rng(5).standard_normal(8) + 0.5
    weight = np.random.default_rng(6).integers(1, 4, 8) * 0.5 if weighted else np.ones(8)
    optimum = optimal_layers(y, beta, weight, fit_intercept=fit_intercept)
    objective = network_of(optimum, X, weight).objective(X, y, beta, weight)
    iterative = solved(X, weight, y[:, None], beta, fit_intercept)
    assert iterative.objective - iterative.lower_bound <= 1e-6 * iterative.objective
    assert iterative.lower_bound - 1e-9 <= objective <= iterative.objective + 1e-9
    assert_allclose(optimum.lower_bound, objective, rtol=1e-10)


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("beta", [0.2, 1.0, 1.8, 2.6])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_dual_program_agrees(fit_intercept, beta, seed):
    rng = np.random.default_rng(seed)
    y, weight = rng.standard_normal(12) + 0.4 * seed, rng.uniform(0.2, 2.0, 12)
    optimum = optimal_layers(y, beta, weight, fit_intercept=fit_intercept)
    assert_allclose(optimum.lower_bound, dual_optimum(y, beta, weight, fit_intercept), rtol=1e-7)
    if fit_intercept:
        assert abs(np.sqrt(weight) @ optimum.dual[:, 0]) < 1e-12
        X = rows(12, 20)
        network = network_of(optimum, X, weight)
        assert_allclose(network.objective(X, y, beta, weight), optimum.lower_bound, rtol=1e-10)


def test_the_optimal_bias_is_not_the_mean():
    y = np.array([0.0, 0.0, 0.0, 1.0, 5.0])
    assert abs(optimal_layers(y, 0.3, fit_intercept=True).bias[0] - y.mean()) > 0.1


def test_balanced_classes_keep_the_mean_where_any_bias_is_optimal():
    y = np.array([-1.0, 1.0, 1.0, -1.0])
    optimum = optimal_layers(y, 0.3, fit_intercept=True)
    assert optimum.bias[0] == 0
    assert_allclose(optimum.lower_bound, 0.3 * 2 * np.sqrt(2) - 0.09, rtol=1e-13)


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("bn_position", ["before", "after"])
def test_beta_max_is_where_the_last_neuron_goes(fit_intercept, bn_position):
    y, weight = np.array(TARGETS["mixed"]), np.array([1.0, 2.0, 1.0, 0.5, 1.0, 3.0])
    variant = {"fit_intercept": fit_intercept, "bn_position": bn_position}
    limit = closed_form_beta_max(y, weight, **variant)
    assert len(optimal_layers(y, 1.001 * limit, weight, **variant).size) == 0
    assert len(optimal_layers(y, 0.999 * limit, weight, **variant).size) >= 1


@pytest.mark.parametrize("beta", [0.5, 3.0, 10.0])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_bn_after_relu_is_theorem_g_2(beta, fit_intercept):
    y, X = np.array(TARGETS["mixed"]), rows()
    optimum = optimal_layers(y, beta, bn_position="after", fit_intercept=fit_intercept)
    centred = y - y.mean() if fit_intercept else y
    size = np.linalg.norm(centred)
    network = network_of(optimum, X)
    assert network.bn_position == "after"
    assert len(network.bn_weight) == (size > beta)
    assert_allclose(optimum.lower_bound, formula([size], beta), rtol=1e-12)
    assert_allclose(network.objective(X, y, beta), formula([size], beta), rtol=1e-10)
    shrunk = max(1 - beta / size, 0) * centred
    assert_allclose(network.forward(X)[:, 0], shrunk + y - centred, atol=1e-12)
    if size > beta:
        direction = np.linalg.pinv(X) @ (centred - centred.min())
        w = network.hidden_weights[:, 0]
        assert_allclose(w / np.linalg.norm(w), direction / np.linalg.norm(direction), atol=1e-12)


def test_bn_after_relu_of_any_targets_is_the_nuclear_norm():
    rng = np.random.default_rng(0)
    Y, X, weight, beta = rng.standard_normal((7, 3)), rows(7, 8), rng.uniform(0.5, 2, 7), 0.9
    F = cp.Variable((7, 3))
    target = np.sqrt(weight)[:, None] * Y
    program = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(F - target) + beta * cp.normNuc(F)))
    program.solve(solver=cp.CLARABEL)
    optimum = optimal_layers(Y, beta, weight, bn_position="after")
    assert_allclose(optimum.lower_bound, program.value, rtol=1e-7)
    objective = network_of(optimum, X, weight).objective(X, Y, beta, weight)
    assert_allclose(objective, optimum.lower_bound, rtol=1e-10)


@pytest.mark.parametrize("bn_position", ["before", "after"])
def test_integer_weights_are_repeated_rows(bn_position):
    X, y, counts = rows(), np.array(TARGETS["mixed"]), np.array([1, 2, 3, 1, 1, 2])
    optimum = optimal_layers(y, 0.4, counts, bn_position=bn_position)
    head = interpolating_head(optimum, X, counts)
    repeated_X, repeated_y = np.repeat(X, counts, axis=0), np.repeat(y, counts)
    repeated = optimal_layers(repeated_y, 0.4, bn_position=bn_position)
    assert_allclose(repeated.lower_bound, optimum.lower_bound, rtol=1e-13)
    # The statistics of batch normalization are those of the repeated rows.
    assert_allclose(head.network.objective(repeated_X, repeated_y, 0.4), optimum.lower_bound, rtol=1e-10)
    H = repeated_X @ head.network.hidden_weights
    H = np.maximum(H, 0) if bn_position == "after" else H
    assert_allclose(H.mean(axis=0), head.network.running_mean, atol=1e-12)
    assert_allclose(H.var(axis=0), 1, rtol=1e-12)


def test_weights_have_minimum_norm_and_are_no_longer_than_those_of_the_paper():
    X, y = rows(), np.array(TARGETS["mixed"])
    network = network_of(optimal_layers(y, 0.4), X)
    for w, sign in zip(network.hidden_weights.T, (1, -1), strict=True):
        z = np.maximum(sign * y, 0)
        scale = z.std()
        assert_allclose(w * scale, np.linalg.pinv(X - X.mean(axis=0)) @ (z - z.mean()), atol=1e-12)
        assert np.linalg.norm(w * scale) <= np.linalg.norm(np.linalg.pinv(X) @ z)


def test_centring_needs_one_direction_less():
    y = np.array(TARGETS["mixed"])
    X = rows(6, 5)
    head = interpolating_head(optimal_layers(y, 0.5), X)
    assert head.rank == 5
    assert_allclose(head.network.objective(X, y, 0.5), optimal_layers(y, 0.5).lower_bound, rtol=1e-10)
    with pytest.raises(RankError, match="rank 5, while rank 6"):
        interpolating_head(optimal_layers(y, 0.5, bn_position="after"), X)
    with pytest.raises(RankError, match="rank 4, while rank 5"):
        interpolating_head(optimal_layers(y, 0.5), rows(6, 4))


def test_the_bound_holds_for_networks_of_any_width_on_any_features():
    rng = np.random.default_rng(2)
    y, beta = rng.standard_normal(10), 0.3
    bound = optimal_layers(y, beta).lower_bound
    for d in (1, 3, 12):
        assert solved(rng.standard_normal((10, d)), np.ones(10), y[:, None], beta).objective >= bound - 1e-9
