"""Program (P) over sets of arrangements that are not all of them; all of them are in test_agreement."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from skcvxbn import ConvexBNClassifier, ConvexBNRegressor
from skcvxbn.arrangements import sampled_arrangements
from skcvxbn.losses import LinearQuadratic, absolute_error, hinge, pinball
from skcvxbn.solvers import solve
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.cone_projection import ConeProjector
from skcvxbn.solvers.cvxpy_reference import solve_cvxpy
from skcvxbn.solvers.fixed_arrangements import solve_fixed_arrangements
from skcvxbn.solvers.owned_neurons import OwnedNeurons
from skcvxbn.solvers.prices import prices_of
from skcvxbn.training import largest_beta
from skcvxbn.whitening import whiten


def instance(n=40, d=4, n_outputs=1, fit_intercept=True, n_arrangements=60, seed=0):
    rng = np.random.default_rng([n, d, n_outputs, seed])
    X = rng.standard_normal((n, d))
    Y = np.maximum(X @ rng.standard_normal((d, n_outputs)), 0) + 0.3 * rng.standard_normal((n, n_outputs))
    Y /= np.linalg.norm(Y)
    problem = Problem(whiten(X).A, LinearQuadratic(Y, 1.0), 0.05, fit_intercept)
    return problem, sampled_arrangements(X, None, n_arrangements, rng)


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_sampled_arrangements_agree_with_cvxpy(seed, fit_intercept, options):
    pytest.importorskip("cvxpy")
    problem, patterns = instance(fit_intercept=fit_intercept, seed=seed)
    reference = solve_cvxpy(problem.A, problem.loss, problem.beta, patterns, fit_intercept=fit_intercept)
    solution = solve_fixed_arrangements(problem, options(1e-8), patterns)
    assert solution.objective == pytest.approx(reference.objective, rel=1e-6)
    assert reference.objective * (1 - 1e-6) <= solution.lower_bound <= reference.objective * (1 + 1e-8)
    assert solution.certificate == "restricted"
    assert solution.converged


def test_several_outputs_lie_between_the_reference_and_its_bound(options):
    pytest.importorskip("cvxpy")
    problem, patterns = instance(n=20, d=2, n_outputs=3, n_arrangements=12)
    reference = solve_cvxpy(problem.A, problem.loss, problem.beta, patterns, fit_intercept=True)
    solution = solve_fixed_arrangements(problem, options(1e-6), patterns)
    assert reference.lower_bound * (1 - 1e-8) <= solution.objective <= reference.objective * (1 + 1e-5)
    assert solution.certificate == "estimated"


@pytest.mark.parametrize("seed", range(6))
def test_the_gap_of_several_outputs_holds_against_eight_times_as_many_starts(seed, monkeypatch):
    rng = np.random.RandomState(seed)
    X, Y = rng.standard_normal((40, 3)), rng.standard_normal((40, 3))
    usual = {"arrangements": "sampled", "n_arrangements": 20, "max_iter": 60, "random_state": 0}
    fit = ConvexBNRegressor(**usual).fit(X, Y)
    monkeypatch.setattr("skcvxbn.solvers.prices._MOST_RANDOM", 64)
    monkeypatch.setattr("skcvxbn.solvers.prices._RANDOM_IN_ALL", 20_000)
    other = ConvexBNRegressor(**usual).fit(X, Y)
    assert fit.lower_bound_ <= other.objective_ * (1 + 1e-6)
    assert other.lower_bound_ <= fit.objective_ * (1 + 1e-6)


@pytest.mark.parametrize("n_outputs", [2, 3])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_weights_of_several_outputs_are_chosen_without_the_interior_point_method(
    fit_intercept, n_outputs, options, monkeypatch
):
    pytest.importorskip("cvxpy")
    problem, patterns = instance(
        n=20, d=2, n_outputs=n_outputs, n_arrangements=12, fit_intercept=fit_intercept
    )
    reference = solve_cvxpy(problem.A, problem.loss, problem.beta, patterns, fit_intercept=fit_intercept)
    monkeypatch.setattr("skcvxbn.solvers.fixed_arrangements.solve_over_arrangements", None)
    solution = solve_fixed_arrangements(problem, options(1e-5), patterns)
    assert solution.converged
    assert reference.lower_bound * (1 - 1e-8) <= solution.objective <= reference.objective * (1 + 2e-5)
    assert 0 <= solution.objective - solution.lower_bound <= 1e-5 * solution.objective
    assert_feasible(problem, patterns, solution.S)


@pytest.mark.parametrize("ratio", [0.3, 0.1, 0.03])
def test_several_outputs_close_the_gap(ratio, options):
    problem, patterns = instance(n=100, d=5, n_outputs=4, n_arrangements=30)
    problem = replace(problem, beta=ratio * largest_beta(problem.A, problem.zero.R))
    solution = solve_fixed_arrangements(problem, options(1e-6), patterns)
    assert solution.converged
    assert 0 <= solution.objective - solution.lower_bound <= 1e-6 * solution.objective
    assert_feasible(problem, patterns, solution.S)
    # A search of its own, from other starts, refutes little of the bound.
    largest = prices_of(problem, patterns).confirmed(solution.R, OwnedNeurons.none(problem)).sizes.max()
    assert problem.dual_bound(solution.R, largest) >= solution.lower_bound * (1 - 1e-5)


def test_no_searched_bound_is_believed_unconfirmed(options, monkeypatch):
    problem, patterns = instance(n=60, d=4, n_outputs=3, n_arrangements=20)
    confirmed, kind = [], type(prices_of(problem, patterns))

    def spied(self, R, network, original=kind.confirmed):
        confirmed.append(R)
        return original(self, R, network)

    monkeypatch.setattr(kind, "confirmed", spied)
    for max_iter in (2, 100):
        solution = solve_fixed_arrangements(problem, options(1e-6, max_iter=max_iter), patterns)
        assert solution.converged == (max_iter == 100)
        np.testing.assert_array_equal(confirmed[-1], solution.R)


def test_more_arrangements_never_cost_more(options):
    problem, patterns = instance(n_arrangements=64)
    objectives, bounds = [], []
    for count in (1, 4, 16, 64):
        solution = solve_fixed_arrangements(problem, options(1e-7), patterns[:, :count])
        objectives.append(solution.objective)
        bounds.append(solution.lower_bound)
    # The bound of a subset is an upper bound of nothing else: it may exceed the optimum over more.
    assert (np.diff(objectives) <= 1e-7).all()
    assert objectives[-1] < 0.99 * objectives[0]
    assert all(lower <= value for lower, value in zip(bounds, objectives, strict=True))


def test_one_linear_neuron_of_each_sign_is_a_second_order_cone_program(options):
    # All on: D = I, and (P) is a problem in two vectors of the cone A s >= 0.
    cp = pytest.importorskip("cvxpy")
    problem, _ = instance(n=12, d=2)
    s, t, shift = cp.Variable(3), cp.Variable(3), cp.Variable()
    fitted = problem.A @ (s - t) + problem.A[:, -1] * shift
    squares = cp.sum_squares(fitted - problem.loss.target[:, 0])
    objective = squares / 2 + problem.beta * (cp.norm(s) + cp.norm(t))
    program = cp.Problem(cp.Minimize(objective), [problem.A @ s >= 0, problem.A @ t >= 0])
    program.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    solution = solve_fixed_arrangements(problem, options(1e-8), np.ones((12, 1), dtype=bool))
    assert solution.objective == pytest.approx(program.value, rel=1e-7)


def test_all_off_and_a_beta_too_large_give_the_zero_network(options):
    problem, patterns = instance()
    half = 0.5 * np.sum(problem.zero.R**2)
    for case, columns in (
        (problem, np.zeros((40, 1), dtype=bool)),
        (replace(problem, beta=1.001 * largest_beta(problem.A, problem.zero.R)), patterns),
    ):
        solution = solve_fixed_arrangements(case, options(), columns)
        assert solution.S.shape == (5, 0)
        assert solution.V.shape == (0, 1)
        assert solution.objective == solution.lower_bound == pytest.approx(half)
        assert solution.converged


def test_repeated_arrangements_change_nothing(options):
    problem, patterns = instance(n_arrangements=20)
    one = solve_fixed_arrangements(problem, options(1e-7), patterns)
    twice = solve_fixed_arrangements(problem, options(1e-7), np.hstack([patterns, patterns]))
    assert twice.objective == pytest.approx(one.objective, rel=2e-7)


def assert_feasible(problem, patterns, S):
    """Every neuron lies in the cone of one of the arrangements, to rounding."""
    margins = np.where(patterns.T[:, :, None], 1.0, -1.0) * (problem.A @ S / np.linalg.norm(S, axis=0))
    assert (margins.min(axis=1).max(axis=0) >= -1e-11).all()


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("ratio", [0.3, 0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_every_neuron_lies_in_the_cone_of_an_arrangement(fit_intercept, ratio, n_outputs, options):
    problem, patterns = instance(n=30, d=3, n_outputs=n_outputs, fit_intercept=fit_intercept)
    problem = replace(problem, beta=ratio * largest_beta(problem.A, problem.zero.R))
    solution = solve_fixed_arrangements(problem, options(1e-4, max_iter=8), patterns)
    assert solution.S.shape[1] > 0
    assert_feasible(problem, patterns, solution.S)
    assert solution.objective == pytest.approx(problem.objective(solution.S, solution.V), rel=1e-10)


@pytest.mark.parametrize("n", [60, 200])
@pytest.mark.parametrize("ratio", [0.3, 0.1, 1e-2])
def test_the_gap_closes_to_a_millionth(ratio, n, options):
    problem, patterns = instance(n=n, d=6, n_arrangements=150)
    problem = replace(problem, beta=ratio * largest_beta(problem.A, problem.zero.R))
    solution = solve_fixed_arrangements(problem, options(1e-6), patterns)
    assert solution.converged
    assert 0 <= solution.objective - solution.lower_bound <= 1e-6 * solution.objective
    assert solution.certificate == "restricted"


@pytest.mark.parametrize("make", [absolute_error, partial(pinball, quantile=0.8), hinge])
@pytest.mark.parametrize("ratio", [0.3, 0.03])
def test_kinks_do_not_keep_the_gap_open(ratio, make, options):
    problem, patterns = instance(n=100, d=5, n_arrangements=100)
    target = np.sign(problem.loss.target) if make is hinge else problem.loss.target
    problem = replace(problem, loss=make(target, np.ones(100)))
    problem = replace(problem, beta=ratio * largest_beta(problem.A, problem.zero.R))
    solution = solve(problem, options(1e-6), patterns=patterns)
    assert solution.converged
    assert 0 <= solution.objective - solution.lower_bound <= 1e-6 * solution.objective
    assert_feasible(problem, patterns, solution.S)


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("arrangements", ["enumerated", "sampled"])
@pytest.mark.parametrize("loss", ["squared_error", "huber", "absolute_error", "pinball"])
@pytest.mark.filterwarnings("error")
def test_regressors_reach_their_tolerance_without_a_warning(loss, arrangements, n_outputs):
    # Several outputs take longer.
    X = np.random.default_rng(0).standard_normal((20 if n_outputs == 1 else 12, 2))
    Y = np.column_stack([np.sin(2 * X[:, 0]), np.abs(X[:, 1])])[:, :n_outputs]
    model = ConvexBNRegressor(loss=loss, arrangements=arrangements, tol=1e-5, max_iter=50, random_state=0)
    model.set_params(beta_ratio=0.01 if n_outputs == 1 else 0.1).fit(X, Y)
    assert 0 <= model.dual_gap_ <= 1e-5 * model.objective_


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("arrangements", ["enumerated", "sampled"])
@pytest.mark.parametrize("loss", ["squared_error", "log_loss", "squared_hinge", "hinge"])
@pytest.mark.filterwarnings("error")
def test_classifiers_reach_their_tolerance_without_a_warning(loss, arrangements, n_classes):
    X = np.random.default_rng(0).standard_normal((20 if n_classes == 2 else 12, 2))
    y = np.digitize(X[:, 0] * X[:, 1], [-0.2, 0.3][: n_classes - 1])
    model = ConvexBNClassifier(loss=loss, arrangements=arrangements, tol=1e-5, max_iter=50, random_state=0)
    model.set_params(beta_ratio=0.01 if n_classes == 2 else 0.1).fit(X, y)
    assert 0 <= model.dual_gap_ <= 1e-5 * model.objective_


def test_the_zoo_agrees_with_the_reference(case, options):
    pytest.importorskip("cvxpy")
    problem, reference = case.problem, case.reference
    solution = solve_fixed_arrangements(problem, options(1e-7), case.patterns, complete=True)
    assert_feasible(problem, case.patterns, solution.S)
    if problem.n_outputs == 1:
        assert solution.certificate == "exact"
        assert solution.objective == pytest.approx(reference.objective, rel=1e-6)
        assert solution.lower_bound == pytest.approx(reference.objective, rel=1e-6)
    else:
        assert solution.certificate == "estimated"
        assert reference.lower_bound * (1 - 1e-8) <= solution.objective <= reference.objective * (1 + 1e-5)


def test_optimality_conditions_hold_neuron_by_neuron(options):
    problem, patterns = instance()
    tol = 1e-8
    solution = solve_fixed_arrangements(problem, options(tol), patterns)
    S, signs = solution.S, np.sign(solution.V[:, 0])
    R = problem.dual_point(solution.S, solution.V)
    directions = S / np.linalg.norm(S, axis=0)
    # Stationarity along each neuron: its own dual constraint is tight. Complementarity: and no other is
    # violated, which the projection of each gradient on its cone says.
    tight = signs * (R.T @ problem.hidden(directions))[0]
    np.testing.assert_allclose(tight, problem.beta, rtol=1e-4)
    everything = np.hstack([patterns, patterns])
    gradients = problem.A.T @ (patterns * R)
    projector = ConeProjector(problem.A, everything)
    projections = projector.project(np.hstack([gradients, -gradients]), np.arange(everything.shape[1]))
    assert np.linalg.norm(projections, axis=0).max() <= problem.beta * (1 + 1e-6)


def test_fewer_features_than_the_rank_of_the_sample_would_need(options):
    # Rows in a plane, and some of them twice.
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 2)) @ rng.standard_normal((2, 5))
    X = np.vstack([X, X[:6]])
    y = np.abs(X[:, :1]) + 0.1 * rng.standard_normal((18, 1))
    problem = Problem(whiten(X).A, LinearQuadratic(y / np.linalg.norm(y), 1.0), 0.05, True)
    assert problem.A.shape[1] == 3
    patterns = sampled_arrangements(X, None, 40, rng)
    solution = solve_fixed_arrangements(problem, options(1e-6), patterns)
    assert solution.converged
    assert_feasible(problem, patterns, solution.S)


def test_the_interior_point_method_takes_over_where_resizing_stands_still(options, monkeypatch):
    problem, patterns = instance()
    one = solve_fixed_arrangements(problem, options(1e-7), patterns)
    # No progress is ever enough: every other round is an interior point round.
    monkeypatch.setattr("skcvxbn.solvers.fixed_arrangements._PROGRESS", 0.0)
    other = solve_fixed_arrangements(problem, options(1e-7), patterns)
    assert other.converged
    assert other.objective == pytest.approx(one.objective, rel=2e-7)
    assert_feasible(problem, patterns, other.S)


@pytest.mark.parametrize("max_iter", [1, 2, 3])
def test_a_stopped_solver_returns_the_network_of_its_objective(max_iter, options):
    problem, patterns = instance()
    solution = solve_fixed_arrangements(problem, options(1e-12, max_iter=max_iter), patterns)
    assert solution.n_iter == max_iter
    assert not solution.converged
    assert "limit" in solution.message
    assert solution.objective == pytest.approx(problem.objective(solution.S, solution.V), rel=1e-10)
    best = solve_fixed_arrangements(problem, options(1e-8), patterns)
    assert solution.lower_bound <= best.objective <= solution.objective * (1 + 1e-12)


def test_a_deadline_in_the_past_leaves_one_round(options):
    problem, patterns = instance()
    solution = solve_fixed_arrangements(problem, options(1e-8, deadline=0.0), patterns)
    assert solution.n_iter == 1
    assert solution.message == "max_time was reached"
    assert solution.lower_bound <= solution.objective


def test_neurons_are_balanced_and_the_solution_is_deterministic(options):
    problem, patterns = instance(n_outputs=2)
    one, other = (solve_fixed_arrangements(problem, options(seed=seed), patterns) for seed in (0, 1))
    np.testing.assert_allclose(np.linalg.norm(one.S, axis=0), np.linalg.norm(one.V, axis=1))
    np.testing.assert_array_equal(one.S, other.S)


@pytest.mark.parametrize("ratio", [1e-2, 1e-4])
def test_weak_regularisation(ratio, options):
    problem, patterns = instance(n=20, d=2, fit_intercept=False)
    problem = replace(problem, beta=ratio * largest_beta(problem.A, problem.zero.R))
    solution = solve_fixed_arrangements(problem, options(1e-4), patterns)
    assert solution.converged
    assert solution.objective == pytest.approx(problem.objective(solution.S, solution.V), rel=1e-9)


def test_verbose_prints_a_line_a_round(options, capsys):
    problem, patterns = instance()
    n_iter = solve_fixed_arrangements(problem, options(verbose=1), patterns).n_iter
    assert capsys.readouterr().out.count("objective") == n_iter
    solve_fixed_arrangements(problem, options(), patterns)
    assert capsys.readouterr().out == ""
