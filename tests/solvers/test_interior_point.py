"""The interior point method against cvxpy on cells and output directions drawn at random."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, pairwise

import numpy as np
import pytest

from skcvxbn.losses import LinearQuadratic, absolute_error, hinge, huber, log_loss, pinball, squared_hinge
from skcvxbn.solvers import interior_point
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.cone_projection import ConeProjector
from skcvxbn.solvers.interior_point import solve_over_arrangements, work_per_step
from skcvxbn.whitening import whiten

cp = pytest.importorskip("cvxpy")
# At the tolerance asked of it the reference may stall; the comparison then says how accurate it is.
pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")


def instance(n, d, n_neurons, n_outputs, fit_intercept, seed=0, beta=0.2):
    rng = np.random.default_rng([n, d, n_neurons, n_outputs, seed])
    A = whiten(rng.standard_normal((n, d))).A
    problem = Problem(A, LinearQuadratic(rng.standard_normal((n, n_outputs)), 1.0), beta, fit_intercept)
    S = rng.standard_normal((d + 1, n_neurons))
    U = rng.standard_normal((n_neurons, n_outputs))
    U /= np.linalg.norm(U, axis=1, keepdims=True)
    return problem, A @ S > 0, U, S


def by_cvxpy(problem, patterns, U):
    A = problem.A
    D = patterns.astype(float)
    S, shift = cp.Variable((A.shape[1], D.shape[1])), cp.Variable((1, U.shape[1]))
    bias = A[:, -1:] @ shift if problem.fit_intercept else 0
    loss = cp.sum_squares(cp.multiply(D, A @ S) @ U + bias - problem.loss.target) / 2
    program = cp.Problem(
        cp.Minimize(loss + problem.beta * cp.sum(cp.norm(S, 2, axis=0))), [cp.multiply(2 * D - 1, A @ S) >= 0]
    )
    program.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    return program.value, S.value


def value(problem, patterns, U, S):
    """The program's objective, with the gates of the arrangement and not those of S."""
    R = problem.loss.target - (patterns * (problem.A @ S)) @ U
    if problem.fit_intercept:
        R = R - R.mean(axis=0)
    return 0.5 * np.sum(R**2) + problem.beta * np.linalg.norm(S, axis=0).sum()


# Fewer rows than unknowns and more: both ways to solve the Newton system.
SIZES = [(12, 2, 6), (10, 3, 12), (60, 2, 5), (40, 5, 4), (8, 1, 1)]


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize(("n", "d", "n_neurons"), SIZES)
def test_the_optimum_is_that_of_cvxpy(n, d, n_neurons, n_outputs, fit_intercept):
    problem, patterns, U, S = instance(n, d, n_neurons, n_outputs, fit_intercept)
    expected, expected_S = by_cvxpy(problem, patterns, U)
    solution = solve_over_arrangements(problem, patterns, U, 0.1 * S, tol=1e-10)[0]
    assert value(problem, patterns, U, solution) == pytest.approx(expected, rel=1e-7)
    # Feasible, so the program's value is not bought by leaving the cells.
    signs = np.where(patterns, 1, -1)
    assert (signs * (problem.A @ solution)).min() >= -1e-8
    fitted, by_reference = (patterns * (problem.A @ M) @ U for M in (solution, expected_S))
    np.testing.assert_allclose(fitted, by_reference, atol=1e-3)


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_both_ways_of_solving_the_newton_system_agree(fit_intercept):
    # One output takes the side of the rows here; in two columns the same target takes that of the unknowns.
    problem, patterns, U, S = instance(12, 3, 8, 1, fit_intercept)
    direction = np.array([[0.6, -0.8]])
    twice = replace(problem, loss=LinearQuadratic(problem.loss.target @ direction, 1.0))
    rows = solve_over_arrangements(problem, patterns, U, S, tol=1e-11)[0]
    unknowns = solve_over_arrangements(twice, patterns, U @ direction, S, tol=1e-11)[0]
    assert 8 * 4 > 12
    np.testing.assert_allclose(rows, unknowns, atol=1e-6)
    assert value(problem, patterns, U, rows) == pytest.approx(value(problem, patterns, U, unknowns), rel=1e-9)


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("near", [True, False])
def test_constraints_that_were_not_looked_at_join_where_they_are_needed(near, n_outputs, monkeypatch):
    problem, patterns, U, S = instance(60, 3, 6, n_outputs, True)
    expected, expected_S = by_cvxpy(problem, patterns, U)
    for name, least in (("_FEWEST", 2), ("_PER_DIRECTION", 0), ("_SHARE", 0.0)):
        monkeypatch.setattr(interior_point, name, least)
    numbers, cones = [], interior_point.ConeConstraints
    monkeypatch.setattr(
        interior_point, "ConeConstraints", lambda *args: numbers.append(args[-1]) or cones(*args)
    )
    guess = expected_S if near else np.random.default_rng(3).standard_normal(S.shape)
    solution = solve_over_arrangements(problem, patterns, U, guess, tol=1e-10)[0]
    # Two constraints cannot hold four directions.
    assert numbers[0] == 2
    assert len(numbers) > 1
    assert all(more > fewer for fewer, more in pairwise(numbers))
    assert value(problem, patterns, U, solution) == pytest.approx(expected, rel=1e-7)
    assert (np.where(patterns, 1, -1) * (problem.A @ solution)).min() >= -1e-8


LOSSES = {
    "absolute": absolute_error,
    "pinball": lambda Y, weight: pinball(Y, weight, 0.8),
    "huber": lambda Y, weight: huber(Y, weight, 0.5),
    "hinge": lambda Y, weight: hinge(np.sign(Y), weight),
    "squared hinge": lambda Y, weight: squared_hinge(np.sign(Y), weight),
    "log": lambda Y, weight: log_loss(
        np.sign(Y) if Y.shape[1] == 1 else np.eye(Y.shape[1])[Y.argmax(axis=1)], weight
    ),
}


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_dual_point_bounds_every_loss(loss, n_outputs, fit_intercept):
    problem, patterns, U, S = instance(30, 3, 12, n_outputs, fit_intercept)
    weight = np.random.default_rng(0).uniform(0.5, 2, 30)
    problem = replace(problem, loss=LOSSES[loss](problem.loss.target, weight), beta=0.3)
    tol = 1e-7
    solution, R = solve_over_arrangements(problem, patterns, U, 0.1 * S, tol=tol)
    fitted = (patterns * (problem.A @ solution)) @ U
    objective = problem.at(fitted).value + problem.beta * np.linalg.norm(solution, axis=0).sum()
    # No neuron of the cones pulls by more than beta: the dual value of R is a bound, and close.
    gradients = problem.A.T @ (patterns * (R @ U.T))
    projections = ConeProjector(problem.A, patterns).project(gradients, np.arange(len(U)))
    largest = np.linalg.norm(projections, axis=0).max()
    assert largest <= problem.beta * (1 + 3e-4)
    bound = problem.dual_bound(R, max(largest, problem.beta))
    assert bound <= objective * (1 + 10 * tol)
    assert bound >= objective * (1 - 10 * tol - 3 * max(largest / problem.beta - 1, 0))
    if fit_intercept:
        np.testing.assert_allclose(problem.A[:, -1] @ R, 0, atol=1e-12)


@pytest.mark.parametrize("epsilon", [1e3, 1e8, 1e300])
def test_bounds_out_of_reach_change_nothing(epsilon):
    problem, patterns, U, S = instance(30, 3, 8, 1, True)
    expected = solve_over_arrangements(problem, patterns, U, S, tol=1e-9)[0]
    loss = huber(problem.loss.target, np.ones(30), epsilon)
    with np.errstate(over="raise", invalid="raise"):
        solution = solve_over_arrangements(replace(problem, loss=loss), patterns, U, S, tol=1e-9)[0]
    assert value(problem, patterns, U, solution) == pytest.approx(
        value(problem, patterns, U, expected), rel=1e-8
    )


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_the_guess_does_not_matter(size):
    problem, patterns, U, S = instance(20, 2, 5, 1, True)
    expected, _ = by_cvxpy(problem, patterns, U)
    rng = np.random.default_rng(5)
    for guess in (size * S, size * rng.standard_normal(S.shape), np.zeros_like(S)):
        solution = solve_over_arrangements(problem, patterns, U, guess, tol=1e-9)[0]
        assert value(problem, patterns, U, solution) == pytest.approx(expected, rel=1e-6)


def test_the_guess_is_left_untouched():
    problem, patterns, U, S = instance(20, 2, 5, 1, True)
    before = S.copy()
    solve_over_arrangements(problem, patterns, U, S, tol=1e-6)
    np.testing.assert_array_equal(S, before)


def test_no_step_is_begun_after_the_deadline(monkeypatch):
    problem, patterns, U, S = instance(20, 2, 5, 1, True)
    after = solve_over_arrangements(problem, patterns, U, S, tol=1e-9, max_iter=3)
    now = count()
    monkeypatch.setattr(interior_point.time, "monotonic", lambda: next(now))
    stopped = solve_over_arrangements(problem, patterns, U, S, tol=1e-9, deadline=2.0)
    for given, expected in zip(stopped, after, strict=True):
        np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("repeats", [2, 20])
def test_the_same_neuron_many_times_is_one_neuron(n_outputs, repeats):
    problem, patterns, U, S = instance(15, 2, 4, n_outputs, False)
    expected, _ = by_cvxpy(problem, patterns, U)
    many = [np.tile(patterns, repeats), np.tile(U, (repeats, 1)), np.tile(S, repeats)]
    solution = solve_over_arrangements(problem, *many, tol=1e-9)[0]
    assert value(problem, many[0], many[1], solution) == pytest.approx(expected, rel=1e-6)


def test_neurons_the_optimum_does_without_vanish():
    problem, patterns, U, S = instance(20, 2, 6, 1, False, beta=100.0)
    solution = solve_over_arrangements(problem, patterns, U, S, tol=1e-9)[0]
    assert np.linalg.norm(solution, axis=0).max() < 1e-6
    half = 0.5 * np.sum(problem.loss.target**2)
    assert value(problem, patterns, U, solution) == pytest.approx(half, rel=1e-8)


@pytest.mark.parametrize("beta", [1e-2, 1e-3])
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_weak_regularisation(n_outputs, beta):
    problem, patterns, U, S = instance(10, 3, 10, n_outputs, True, beta=beta)
    expected, _ = by_cvxpy(problem, patterns, U)
    solution = solve_over_arrangements(problem, patterns, U, S, tol=1e-8)[0]
    assert value(problem, patterns, U, solution) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_the_work_is_counted_on_the_smaller_side():
    problem, *_ = instance(12, 2, 6, 1, False)
    assert work_per_step(problem, 1000) < work_per_step(
        Problem(problem.A, LinearQuadratic(np.ones((12, 2)), 1.0), 1.0, False), 1000
    )
    assert work_per_step(problem, 10) < work_per_step(problem, 20)
