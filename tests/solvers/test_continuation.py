from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from skcvxbn.losses import absolute_error, hinge, huber, log_loss, squared_error
from skcvxbn.solvers import solve, solve_roughly
from skcvxbn.solvers.base import Problem
from skcvxbn.training import largest_beta
from skcvxbn.whitening import whiten

RATIOS = np.geomspace(1, 0.03, 8)


def diabetes(loss, n_outputs=1, n=120):
    X, y = load_diabetes(return_X_y=True)
    X, y = X[:n], (y[:n] - 150) / 80
    Y = np.column_stack([y, np.abs(y), X[:, 2] * 20])[:, :n_outputs]
    if loss in (hinge, log_loss):
        largest = Y.argmax(axis=1)[:, None] == np.arange(n_outputs)
        Y = np.where(Y > 0.1, 1.0, -1.0) if n_outputs == 1 else np.where(largest, 1.0, -1.0)
        Y = np.maximum(Y, 0) if loss is log_loss and n_outputs > 1 else Y
    problem = Problem(whiten(X).A, loss(Y, np.ones(n)), 1.0, True)
    return problem, largest_beta(problem.A, problem.feasible(problem.zero.R))


LOSSES = {
    "squared error": squared_error,
    "absolute error": absolute_error,
    "huber": lambda Y, weight: huber(Y, weight, 0.5),
    "hinge": hinge,
    "log loss": log_loss,
}


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_networks_are_near_their_optima(loss, n_outputs, options):
    problem, limit = diabetes(LOSSES[loss], n_outputs)
    walked = list(solve_roughly(problem, limit * RATIOS, options(tol=1e-2)))
    assert len(walked[0].V) == 0
    # Descent is slow where the loss has kinks and the regularization is weak.
    tested = [1, 3] if loss in ("absolute error", "hinge") else [1, 3, 7]
    for ratio, solution in [(RATIOS[i], walked[i]) for i in tested]:
        at_beta = Problem(problem.A, problem.loss, ratio * limit, True)
        best = solve(at_beta, options(tol=1e-2, max_iter=10, search_starts=64))
        attained = at_beta.objective(solution.S, solution.V)
        assert attained == pytest.approx(solution.objective, rel=1e-9)
        assert best.lower_bound <= attained <= (1.01 if ratio > 0.1 else 1.03) * best.objective


@pytest.mark.parametrize("loss", ["squared error", "log loss"])
def test_the_bias_is_that_of_the_network(loss, options):
    problem, limit = diabetes(LOSSES[loss], 3)
    for solution in list(solve_roughly(problem, limit * RATIOS, options(tol=1e-2)))[1:4]:
        bias = problem.output(solution.S, solution.V).bias
        np.testing.assert_allclose(solution.bias, bias, rtol=1e-3, atol=1e-3 * np.abs(bias).max())


@pytest.mark.filterwarnings("error")
def test_nothing_to_learn(options):
    problem, _ = diabetes(squared_error)
    constant = Problem(
        problem.A, squared_error(np.zeros((len(problem.A), 1)), np.ones(len(problem.A))), 1.0, True
    )
    for solution in solve_roughly(constant, [1.0, 0.1], options(tol=1e-2)):
        assert len(solution.V) == 0
        assert solution.converged
        assert solution.objective == 0


def test_the_scale_of_the_target_does_not_matter(options):
    problem, limit = diabetes(squared_error)
    scaled = Problem(problem.A, squared_error(1e6 * problem.loss.target, np.ones(len(problem.A))), 1.0, True)
    one = solve_roughly(problem, limit * RATIOS[:3], options(tol=1e-2))
    other = solve_roughly(scaled, 1e6 * limit * RATIOS[:3], options(tol=1e-2))
    for small, large in zip(one, other, strict=True):
        assert large.objective == pytest.approx(1e12 * small.objective, rel=1e-4)


def test_max_neurons_is_a_limit(options):
    problem, limit = diabetes(squared_error)
    free = list(solve_roughly(problem, limit * RATIOS, options(tol=1e-2)))
    limited = list(solve_roughly(problem, limit * RATIOS, options(tol=1e-2, max_neurons=3)))
    assert max(len(solution.V) for solution in free) > 3
    assert max(len(solution.V) for solution in limited) <= 3
    assert limited[-1].objective > free[-1].objective


def test_after_the_deadline_the_network_stays_as_it_is(options):
    problem, limit = diabetes(squared_error)
    late = options(tol=1e-2, deadline=time.monotonic() - 1)
    objectives = [solution.objective for solution in solve_roughly(problem, limit * RATIOS, late)]
    np.testing.assert_allclose(objectives, problem.zero.value)


def test_the_same_seed_gives_the_same_networks(options):
    problem, limit = diabetes(log_loss, 3)
    one, other = (list(solve_roughly(problem, limit * RATIOS, options(tol=1e-2))) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.S, b.S)
        np.testing.assert_array_equal(a.V, b.V)
