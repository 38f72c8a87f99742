"""Every solver against the reference on the same small problems: objective, bounds, optimality conditions.

The conditions are checked without the code that they are conditions of: cones by non-negative least squares
over all arrangements, or by points dense on the sphere.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from skcvxbn.arrangements import enumerate_arrangements
from skcvxbn.losses import LinearQuadratic
from skcvxbn.solvers import solve
from skcvxbn.solvers.base import Options, Problem
from skcvxbn.solvers.cvxpy_reference import solve_cvxpy
from skcvxbn.whitening import whiten

pytest.importorskip("cvxpy")


@functools.cache
def solution_of(case, solver):
    patterns = case.patterns if solver == "enumerated" else None
    # Several outputs are generated to less accuracy: their output directions turn only by descent.
    several_generated = patterns is None and case.problem.n_outputs > 1
    options = Options(1e-5 if several_generated else 1e-6, 100, None, 500, np.random.RandomState(0))
    return solve(case.problem, options, patterns=patterns, complete=patterns is not None)


@pytest.fixture(scope="module", params=["enumerated", "generated"])
def solved(request, case):
    """A case, and its solution by one of the library's solvers."""
    return case, solution_of(case, request.param)


def network_objective(problem, S, V):
    """Evaluate (N) by its definition, the best bias being fitted by least squares."""
    R = problem.loss.target - np.maximum(problem.A @ S, 0) @ V
    if problem.fit_intercept:
        bias = problem.A[:, -1:]
        R = R - bias @ np.linalg.lstsq(bias, R, rcond=None)[0]
    penalty = sum(np.linalg.norm(s) * np.linalg.norm(v) for s, v in zip(S.T, V, strict=True))
    return 0.5 * np.sum(R**2) + problem.beta * penalty


def test_objectives_agree_with_the_reference(solved):
    case, solution = solved
    reference = case.reference
    if case.problem.n_outputs == 1:
        assert solution.objective == pytest.approx(reference.objective, rel=1e-6)
    # For several outputs the reference is a bracket: a network, and a relaxation.
    assert reference.lower_bound * (1 - 1e-8) <= solution.objective <= reference.objective * (1 + 1e-5)


def test_the_objective_is_that_of_the_network_returned(solved):
    case, solution = solved
    value = network_objective(case.problem, solution.S, solution.V)
    assert solution.objective == pytest.approx(value, rel=1e-10)


def test_the_lower_bound_is_below_the_optimum_and_close(solved):
    case, solution = solved
    assert solution.lower_bound <= solution.objective
    # The reference is a feasible point, up to the feasibility tolerance of its solver.
    assert solution.lower_bound <= case.reference.objective * (1 + 1e-9)
    assert solution.lower_bound >= case.reference.lower_bound * (1 - 4e-5)
    assert solution.converged
    assert solution.message == ""


def test_the_certificate_says_what_the_bound_is_worth(case):
    exact = "estimated" if case.problem.n_outputs > 1 else "exact"
    assert solution_of(case, "enumerated").certificate == exact
    assert solution_of(case, "generated").certificate == "estimated"


def large_neurons(solution):
    """Yield hidden direction and output direction, both unit, of the neurons that carry the solution."""
    size = np.linalg.norm(solution.S, axis=0) * np.linalg.norm(solution.V, axis=1)
    for j in np.flatnonzero(size > 1e-2 * size.max()):
        yield (
            solution.S[:, j] / np.linalg.norm(solution.S[:, j]),
            solution.V[j] / np.linalg.norm(solution.V[j]),
        )


def test_primal_feasibility(case):
    solution = solution_of(case, "enumerated")
    patterns = {tuple(on) for on in case.patterns.T}
    A = case.problem.A
    for s, _ in large_neurons(solution):
        # Each neuron lies in a closed cell of the program: rows on its walls may be read either way.
        near = [np.all(np.where(on, 1, -1) * (A @ s) >= -1e-6) for on in patterns]
        assert any(near)


def test_stationarity_and_complementarity(solved):
    case, solution = solved
    A, beta = case.problem.A, case.problem.beta
    R = case.problem.dual_point(solution.S, solution.V)
    for s, u in large_neurons(solution):
        v, h = R @ u, A @ s
        walls = np.abs(h) < 1e-5
        # A^T D v plus multipliers of the walls = beta s. Optimal in all cells around s: c_k in [v_k, 0].
        rest = beta * s - A[~walls].T @ (np.maximum(np.sign(h), 0) * v)[~walls]
        if walls.any():
            lower = np.minimum(v[walls], 0) - 1e-3 * beta
            c = lsq_linear(A[walls].T, rest, (lower, np.full(walls.sum(), 1e-3 * beta)), tol=1e-14).x
            rest = rest - A[walls].T @ c
        assert np.linalg.norm(rest) < 5e-3 * beta
        # Complementarity: the dual constraint is active, u^T R^T (A s)_+ = beta, and u is its best direction.
        image = R.T @ np.maximum(h, 0)
        assert image @ u == pytest.approx(beta, rel=2e-3)
        assert np.linalg.norm(image) == pytest.approx(beta, rel=2e-3)
    # All neurons together, where the errors are of second order: <R, F> = beta * penalty.
    F = np.maximum(A @ solution.S, 0) @ solution.V
    assert np.vdot(R, F) == pytest.approx(beta * case.problem.penalty(solution.S, solution.V), rel=1e-4)


def test_dual_feasibility_over_all_arrangements(solved):
    case, solution = solved
    problem = case.problem
    R = problem.dual_point(solution.S, solution.V)
    A, beta = problem.A, problem.beta
    if problem.fit_intercept:
        np.testing.assert_allclose(A[:, -1] @ R, 0, atol=1e-12)
    s = np.random.default_rng(0).standard_normal((A.shape[1], 50_000))
    values = np.linalg.norm(R.T @ np.maximum(A @ s, 0), axis=0) / np.linalg.norm(s, axis=0)
    assert values.max() <= beta * (1 + 1e-3)
    if R.shape[1] == 1:
        for on in case.patterns.T:
            cone = np.where(on, 1.0, -1.0)[:, None] * A
            for sign in (1, -1):
                # The longest product with a unit vector of the cone is the distance from its polar.
                target = sign * (A.T @ (on * R[:, 0]))
                distance = np.sqrt(2 * lsq_linear(-cone.T, target, (0, np.inf), method="bvls").cost)
                assert distance <= beta * (1 + 1e-3)


@pytest.mark.parametrize(
    ("n", "beta", "seed", "optimum"),
    [(15, 0.3, 0, 4.084557), (15, 0.3, 1, 5.324644), (15, 0.3, 2, 3.901770), (25, 0.1, 0, 3.365121)],
)
def test_known_optima_by_every_route(n, beta, seed, optimum, known_problem, options):
    X, Y = known_problem(n, seed)
    problem = Problem(whiten(X).A, LinearQuadratic(Y, 1.0), beta, fit_intercept=False)
    patterns = enumerate_arrangements(problem.A)
    routes = {
        "cvxpy": solve(problem, options(), solver="cvxpy", patterns=patterns, complete=True),
        "enumerated": solve(problem, options(), patterns=patterns, complete=True),
        "generated": solve(problem, options(seed=seed)),
    }
    for name, solution in routes.items():
        assert solution.objective == pytest.approx(optimum, rel=1e-5), name
        assert solution.lower_bound <= optimum + 5e-7, name
        assert solution.converged, name
    assert [solution.certificate for solution in routes.values()] == ["exact", "exact", "estimated"]


def test_an_integer_weight_is_a_repeated_row(cases, options):
    case = cases["weights and intercept"]
    weight = (2 * case.weight).astype(int)
    Y = case.problem.loss.target / np.sqrt(case.weight)[:, None]
    rows, targets = np.repeat(case.X, weight, axis=0), np.repeat(Y, weight, axis=0)
    # Weights of one half each: half the loss and, for the same network, half the squared norm of the target.
    A = whiten(rows).A
    repeated = Problem(A, LinearQuadratic(targets / np.sqrt(2), 1.0), case.problem.beta, fit_intercept=True)
    solution = solve(repeated, options(1e-8))
    assert solution.objective == pytest.approx(case.reference.objective, rel=1e-6)


def test_the_order_of_rows_and_a_rotation_change_nothing(case, options):
    p = case.problem
    rng = np.random.default_rng(1)
    order = rng.permutation(len(p.A))
    rotation = np.linalg.qr(rng.standard_normal((p.A.shape[1] - 1,) * 2))[0]
    A = np.c_[p.A[:, :-1] @ rotation, p.A[:, -1]][order]
    tol = 1e-6 if p.n_outputs == 1 else 1e-5
    shuffled = Problem(A, LinearQuadratic(p.loss.target[order], 1.0), p.beta, p.fit_intercept)
    other = solve(shuffled, options(tol, seed=3))
    assert other.objective == pytest.approx(solution_of(case, "generated").objective, rel=3 * tol)


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_closed_form_for_more_features_than_rows(fit_intercept, options):
    # Theorem 2.1: beta (||y_+|| + ||y_-||) - beta^2. With an intercept the best constant is taken off first
    # by the reference, so there only the reference is compared.
    rng = np.random.default_rng(0)
    A = whiten(rng.standard_normal((6, 10))).A
    y = rng.standard_normal((6, 1))
    positive, negative = np.linalg.norm(np.maximum(y, 0)), np.linalg.norm(np.maximum(-y, 0))
    beta = 0.3 * min(positive, negative)
    problem = Problem(A, LinearQuadratic(y, 1.0), beta, fit_intercept)
    solution = solve(problem, options(1e-7))
    if fit_intercept:
        expected = solve_cvxpy(A, problem.loss, beta, enumerate_arrangements(A), fit_intercept=True).objective
    else:
        expected = beta * (positive + negative) - beta**2
    assert solution.objective == pytest.approx(expected, rel=1e-7)


def test_closed_form_for_one_hot_targets(options):
    # Theorem 2.4: the sum over classes of beta ||y_j|| - beta^2 / 2.
    A = whiten(np.random.default_rng(1).standard_normal((6, 8))).A
    Y = np.eye(3)[[0, 0, 0, 1, 1, 2]]
    solution = solve(Problem(A, LinearQuadratic(Y, 1.0), 0.3, fit_intercept=False), options(1e-6))
    expected = sum(0.3 * np.sqrt(k) - 0.3**2 / 2 for k in (3, 2, 1))
    assert solution.objective == pytest.approx(expected, rel=2e-6)
    assert solution.lower_bound <= expected * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("solver", ["enumerated", "generated"])
def test_the_scale_of_the_target_scales_the_solution(cases, solver, scale, options):
    p, patterns = cases["scalar"].problem, cases["scalar"].patterns if solver == "enumerated" else None
    # Rounding the scaled target sends the rounds elsewhere, within the tolerance.
    accuracy = 1e-9 if solver == "enumerated" else 1e-6
    one = solve(p, options(accuracy), patterns=patterns)
    other = solve(
        Problem(p.A, LinearQuadratic(scale * p.loss.target, 1.0), scale * p.beta, False),
        options(accuracy),
        patterns=patterns,
    )
    assert other.objective == pytest.approx(scale**2 * one.objective, rel=accuracy)
    assert other.lower_bound == pytest.approx(scale**2 * one.lower_bound, rel=2 * accuracy)
    np.testing.assert_allclose(
        p.hidden(other.S) @ other.V, scale * (p.hidden(one.S) @ one.V), rtol=0, atol=accuracy**0.5 * scale
    )


def test_a_constant_target_needs_no_network(cases, options):
    p = cases["scalar with intercept"].problem
    solution = solve(Problem(p.A, LinearQuadratic(0 * p.loss.target, 1.0), 0.5, True), options())
    assert solution.S.shape == (3, 0)
    assert solution.V.shape == (0, 1)
    assert solution.objective == solution.lower_bound == 0
    assert solution.converged
    # Constant up to rounding: the objective is rounding too.
    solution = solve(Problem(p.A, LinearQuadratic(3.0 * p.A[:, -1:], 1.0), 0.5, True), options())
    assert 0 <= solution.objective < 1e-25
