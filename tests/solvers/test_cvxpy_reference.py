"""The reference program: known optima, optimality conditions, closed forms and the real network's value."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy.optimize import minimize

from skcvxbn.arrangements import enumerate_arrangements, sampled_arrangements
from skcvxbn.losses import LinearQuadratic
from skcvxbn.solvers.cvxpy_reference import solve_cvxpy

pytest.importorskip("cvxpy")


def whitened(X):
    U = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)[0]
    return np.c_[U, np.full(len(X), len(X) ** -0.5)]


def problem(n, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 2))
    y = np.sin(2 * X[:, 0]) + X[:, 1] ** 2 + 0.1 * rng.standard_normal(n)
    return X, (y - y.mean())[:, None]


def network_objective(A, Y, beta, S, V, shift=0.0):
    """The objective (N) of the real network, which knows nothing of arrangements."""
    fitted = np.maximum(A @ S, 0) @ V + A[:, -1:] * shift
    penalty = np.linalg.norm(S, axis=0) @ np.linalg.norm(V, axis=1)
    return 0.5 * np.sum((fitted - Y) ** 2) + beta * penalty


def solve_squared(A, Y, *args, **options):
    return solve_cvxpy(A, LinearQuadratic(Y, 1.0), *args, **options)


@functools.cache
def solved(n=15, beta=0.3, seed=0, fit_intercept=False, n_outputs=1):
    X, Y = problem(n, seed)
    if n_outputs > 1:
        Y = np.c_[Y, np.cos(np.outer(X[:, 0] * X[:, 1], np.arange(1, n_outputs)))]
    A = whitened(X)
    D = enumerate_arrangements(A)
    return A, Y, beta, D, solve_squared(A, Y, beta, D, fit_intercept=fit_intercept)


CASES = [
    {"seed": 0},
    {"seed": 1},
    {"seed": 2},
    {"seed": 2, "fit_intercept": True},
    {"n": 10, "n_outputs": 2},
    {"n": 10, "n_outputs": 2, "fit_intercept": True},
]


@pytest.mark.parametrize(
    ("n", "beta", "seed", "optimum"),
    [(15, 0.3, 0, 4.084557), (15, 0.3, 1, 5.324644), (15, 0.3, 2, 3.901770), (25, 0.1, 0, 3.365121)],
)
def test_known_optima(n, beta, seed, optimum):
    *_, D, result = solved(n, beta, seed)
    assert D.shape[1] == {15: 212, 25: 602}[n]
    assert result.objective == pytest.approx(optimum, abs=1e-6)
    assert result.lower_bound <= result.objective
    assert result.lower_bound == pytest.approx(optimum, abs=2e-6)
    assert (result.status, result.bound, result.n_rounds) == ("optimal", "cone", 1)


@pytest.mark.parametrize("case", CASES)
def test_the_real_network_has_the_value_of_the_program(case):
    A, Y, beta, D, result = solved(**case)
    fitted = (D[:, result.arrangement] * (A @ result.S)) @ result.V + A[:, -1:] * result.shift
    program = 0.5 * np.sum((fitted - Y) ** 2) + beta * np.linalg.norm(result.S, axis=0).sum()
    value = network_objective(A, Y, beta, result.S, result.V, result.shift)
    assert value == pytest.approx(program, rel=1e-6)
    assert value == pytest.approx(result.objective, rel=1e-12)
    np.testing.assert_allclose(np.linalg.norm(result.V, axis=1), 1)
    assert (np.linalg.norm(result.S, axis=0) > 0).all()


@pytest.mark.parametrize("case", CASES)
def test_primal_feasibility(case):
    A, _, _, D, result = solved(**case)
    signs = np.where(D[:, result.arrangement], 1, -1)
    assert (signs * (A @ result.S)).min() >= -1e-6
    if not case.get("fit_intercept"):
        assert not result.shift.any()


@pytest.mark.parametrize("case", CASES)
def test_dual_feasibility_on_all_arrangements(case):
    A, Y, beta, _, result = solved(**case)
    # Points of the sphere, dense in three dimensions, instead of the cones of the program.
    s = np.random.default_rng(0).standard_normal((A.shape[1], 100_000))
    s /= np.linalg.norm(s, axis=0)
    correlation = np.linalg.norm(result.dual.T @ np.maximum(A @ s, 0), axis=0)
    assert correlation.max() <= beta * (1 + 1e-9)
    # The dual objective at this point is the stated bound, so the bound is a true one.
    value = 0.5 * np.sum(Y**2) - 0.5 * np.sum((result.dual - Y) ** 2)
    assert value == pytest.approx(result.lower_bound, rel=1e-12)
    if case.get("fit_intercept"):
        np.testing.assert_allclose(A[:, -1] @ result.dual, 0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_stationarity_and_complementarity(case):
    A, Y, beta, _, result = solved(**case)
    S, V = result.S, result.V
    residual = Y - np.maximum(A @ S, 0) @ V - A[:, -1:] * result.shift
    lengths = np.linalg.norm(S, axis=0)
    # Complementarity: each used neuron attains its dual constraint, v_j^T R^T (A s_j)_+ = beta ||s_j||.
    attained = np.einsum("jc,nc,nj->j", V, residual, np.maximum(A @ S, 0))
    np.testing.assert_allclose(attained, beta * lengths, atol=1e-4 * lengths.sum() * beta)
    # Stationarity along the whole network: <R, f> = beta sum ||s_j||.
    assert attained.sum() == pytest.approx(beta * lengths.sum(), rel=1e-6)
    # Stationarity within the cell, for neurons that lie off all of its walls.
    for j in np.flatnonzero((np.abs(A @ S).min(axis=0) > 1e-3) & (lengths > 1e-2)):
        gradient = A.T @ ((A @ S[:, j] > 0) * (residual @ V[j]))
        np.testing.assert_allclose(gradient, beta * S[:, j] / lengths[j], atol=1e-3 * beta)


@pytest.mark.parametrize("case", CASES)
def test_bounds_meet(case):
    *_, result = solved(**case)
    relative = 1e-7 if result.bound == "cone" else 1e-5
    assert 0 <= result.objective - result.lower_bound <= relative * result.objective


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_no_descent_on_the_network_finds_less(n_outputs):
    A, Y, beta, _, result = solved(n=10, n_outputs=n_outputs)
    m, q = 12, A.shape[1]

    def balanced(parameters):
        # (N) with the product of norms replaced by half the sum of squares: the same minimum, but smooth.
        S, V = parameters[: q * m].reshape(q, m), parameters[q * m :].reshape(m, -1)
        hidden = np.maximum(A @ S, 0)
        R = hidden @ V - Y
        gradient = np.r_[
            (A.T @ ((hidden > 0) * (R @ V.T)) + beta * S).ravel(), (hidden.T @ R + beta * V).ravel()
        ]
        return 0.5 * np.sum(R**2) + 0.5 * beta * np.sum(parameters**2), gradient

    rng, values = np.random.default_rng(5), []
    for _ in range(40):
        start = rng.standard_normal(m * (q + n_outputs))
        x = minimize(balanced, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000}).x
        S, V = x[: q * m].reshape(q, m), x[q * m :].reshape(m, -1)
        values.append(network_objective(A, Y, beta, S, V))
    assert result.lower_bound <= min(values)
    assert result.objective <= min(values) * (1 + 1e-4)
    # The descents are no straw men: the best one comes near.
    assert min(values) <= result.objective * 1.02


def test_closed_form_for_more_columns_than_rows():
    # Theorem 2.1: two neurons, beta (||y_+|| + ||y_-||) - beta^2.
    rng = np.random.default_rng(0)
    A, y = (
        np.linalg.qr(np.c_[rng.standard_normal((5, 4)), np.ones(5)][:, ::-1])[0][:, ::-1],
        rng.standard_normal(5),
    )
    positive, negative = np.linalg.norm(np.maximum(y, 0)), np.linalg.norm(np.maximum(-y, 0))
    beta = 0.4 * min(positive, negative)
    result = solve_squared(A, y[:, None], beta, enumerate_arrangements(A), fit_intercept=False)
    assert result.objective == pytest.approx(beta * (positive + negative) - beta**2, rel=1e-7)


def test_closed_form_for_one_hot_targets():
    # Theorem 2.4: neuron j from column y_j, so the objective is the sum of beta ||y_j|| - beta^2 / 2.
    A = np.linalg.qr(np.c_[np.ones(6), np.random.default_rng(1).standard_normal((6, 5))])[0][:, ::-1]
    Y = np.eye(3)[[0, 0, 0, 1, 1, 2]]
    beta = 0.3
    result = solve_squared(A, Y, beta, enumerate_arrangements(A), fit_intercept=False)
    expected = sum(beta * np.sqrt(k) - beta**2 / 2 for k in (3, 2, 1))
    assert result.objective == pytest.approx(expected, rel=1e-6)
    assert result.lower_bound == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_above_the_largest_beta_the_network_is_constant(n_outputs, fit_intercept):
    X, y = problem(10, 0)
    A, Y = whitened(X), np.c_[y + 3.0, y**2][:, :n_outputs]
    result = solve_squared(A, Y, 100.0, enumerate_arrangements(A), fit_intercept=fit_intercept)
    centred = Y - Y.mean(axis=0) if fit_intercept else Y
    assert result.S.shape == (3, 0)
    assert result.V.shape == (0, n_outputs)
    assert result.objective == pytest.approx(0.5 * np.sum(centred**2), rel=1e-9)
    assert result.lower_bound == pytest.approx(result.objective, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_the_scale_of_the_target_scales_the_solution(scale):
    A, Y, beta, D, reference = solved()
    result = solve_squared(A, scale * Y, scale * beta, D, fit_intercept=False)
    assert result.objective == pytest.approx(scale**2 * reference.objective, rel=1e-7)
    assert result.lower_bound == pytest.approx(scale**2 * reference.lower_bound, rel=1e-7)


def test_fewer_arrangements_cost_more_and_their_bound_is_their_own():
    A, Y, beta, _, best = solved()
    X, _ = problem(15, 0)
    few = sampled_arrangements(X, None, 8, np.random.default_rng(0))
    restricted = solve_squared(A, Y, beta, few, fit_intercept=False)
    assert restricted.objective > best.objective * 1.01
    assert restricted.lower_bound == pytest.approx(restricted.objective, rel=1e-7)
    nothing = solve_squared(A, Y, beta, np.zeros((15, 1), dtype=bool), fit_intercept=False)
    assert nothing.objective == pytest.approx(0.5 * np.sum(Y**2), rel=1e-12)
    assert nothing.lower_bound == pytest.approx(nothing.objective, rel=1e-12)


def test_one_target_in_two_columns_is_one_target_along_the_diagonal():
    # Y = y g^T with a unit g: all output directions are g, and the optimum is that of y alone.
    A, y, beta, D, reference = solved(n=10)
    g = np.array([[0.6, -0.8]])
    result = solve_squared(A, y @ g, beta, D, fit_intercept=False)
    assert result.objective == pytest.approx(reference.objective, rel=1e-5)
    assert result.lower_bound <= reference.objective * (1 + 1e-9)


def test_a_stopped_search_for_directions_still_has_true_bounds():
    A, Y, beta, D, reference = solved(n=10, n_outputs=2)
    early = solve_squared(A, Y, beta, D, fit_intercept=False, max_rounds=1)
    assert early.n_rounds == 1
    assert early.objective > reference.objective * (1 + 1e-5)
    assert early.lower_bound <= reference.objective
    assert early.objective == pytest.approx(network_objective(A, Y, beta, early.S, early.V), rel=1e-6)
