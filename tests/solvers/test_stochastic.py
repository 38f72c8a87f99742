"""Training on batches of rows, and the solver that begins with it."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skcvxbn import losses
from skcvxbn.backend import resolve
from skcvxbn.solvers import solve, stochastic
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.descent import Interrupted, random_network
from skcvxbn.solvers.stochastic import _Network, has_batches, train_on_batches
from skcvxbn.training import largest_beta
from skcvxbn.whitening import whiten

KINDS = pytest.mark.parametrize("kind", ["squared", "two outputs", "huber", "absolute", "log", "softmax"])
BIAS = pytest.mark.parametrize("fit_intercept", [False, True])


def make(kind="squared", n=5000, d=4, fit_intercept=True, ratio=0.05):
    """A problem with row weights, in the loss' own units."""
    rng = np.random.default_rng(n)
    X, weight = rng.standard_normal((n, d)), rng.uniform(0.5, 2, n)
    Y = np.sin(2 * X @ rng.standard_normal((d, 3))) + 0.3 * rng.standard_normal((n, 3))
    loss = {
        "squared": lambda: losses.squared_error(Y[:, :1], weight),
        "two outputs": lambda: losses.squared_error(Y[:, :2], weight),
        "huber": lambda: losses.huber(Y[:, :1], weight, epsilon=0.5),
        "absolute": lambda: losses.absolute_error(Y[:, :1], weight).smoothed(0.1),
        "log": lambda: losses.log_loss(np.sign(Y[:, :1]), weight),
        "softmax": lambda: losses.log_loss(np.eye(3)[Y.argmax(axis=1)], weight),
    }[kind]()
    A = whiten(X, sample_weight=weight).A
    problem = Problem(A, loss.scaled(*loss.unit(A[:, -1] if fit_intercept else None)), 1.0, fit_intercept)
    return replace(problem, beta=ratio * largest_beta(problem.A, problem.zero.R))


def start(problem, n_neurons=32):
    return random_network(problem, n_neurons, np.random.RandomState(0))


@BIAS
@KINDS
def test_the_batches_together_have_the_slope_of_the_objective(kind, fit_intercept, monkeypatch):
    problem = make(kind, fit_intercept=fit_intercept)
    if problem.loss.quadratic:
        # There a batch is fitted its own bias, and only one batch has that of all rows.
        monkeypatch.setattr(stochastic, "_n_batches", lambda problem: 1)
    network = _Network(problem, *start(problem, 5))
    mean = np.mean([network.gradient(batch) for batch in range(network.n_batches)], axis=0)

    def value(x):
        network.x = x
        S, V = network.weights()
        F = np.maximum(problem.A @ S, 0) @ V
        bias = x[network.n_weights :]
        loss = problem.at(F).value if not len(bias) else problem.loss.value(F + problem.A[:, -1:] * bias)
        return loss + problem.beta / 2 * np.sum(x[: network.n_weights] ** 2)

    x, rng = network.x, np.random.default_rng(0)
    for _ in range(4):
        e = rng.standard_normal(len(x))
        slope = (value(x + 1e-6 * e) - value(x - 1e-6 * e)) / 2e-6
        assert mean @ e == pytest.approx(slope, rel=1e-4, abs=1e-6)


@BIAS
@KINDS
def test_training_ends_near_the_optimum(kind, fit_intercept, options):
    problem = make(kind, fit_intercept=fit_intercept)
    S, V = start(problem)
    before = S.copy(), V.copy()
    assert has_batches(problem)
    trained = train_on_batches(problem, S, V, np.random.RandomState(0))
    assert_array_equal(S, before[0])
    assert_array_equal(V, before[1])
    assert_allclose(np.linalg.norm(trained[0], axis=0), np.linalg.norm(trained[1], axis=1), rtol=1e-9)
    solution = solve(problem, replace(options(1e-3), max_iter=3))
    assert solution.lower_bound <= problem.objective(*trained) <= 1.02 * solution.objective


def test_training_that_makes_it_worse_leaves_the_network_as_it_was(monkeypatch):
    problem = make()
    S, V = start(problem)
    monkeypatch.setattr(stochastic, "_LENGTH", 1e3)
    trained = train_on_batches(problem, S, V, np.random.RandomState(0))
    assert_array_equal(trained[0], S)
    assert_array_equal(trained[1], V)


def test_a_deadline_ends_the_training():
    problem = make()
    S, V = start(problem)
    late = train_on_batches(problem, S, V, np.random.RandomState(0), deadline=time.monotonic() - 1)
    assert problem.objective(*late) == pytest.approx(problem.objective(S, V))


def test_an_interrupt_carries_the_network_reached(monkeypatch):
    problem, step = make(), _Network.step

    def interrupted(self, batch, length):
        if self.n_steps == 200:
            raise KeyboardInterrupt
        step(self, batch, length)

    monkeypatch.setattr(_Network, "step", interrupted)
    with pytest.raises(Interrupted) as stop:
        train_on_batches(problem, *start(problem), np.random.RandomState(0))
    assert problem.objective(*stop.value.network) < 0.9 * problem.objective(*start(problem))


@KINDS
def test_torch_takes_the_same_steps(kind):
    pytest.importorskip("torch")
    problem = make(kind)
    tensors = problem.on(resolve("torch", "cpu"))
    ours, theirs = _Network(problem, *start(problem)), _Network(tensors, *start(tensors))
    for batch in (3, 0, 7):
        ours.step(batch, 0.01)
        theirs.step(batch, 0.01)
    assert_allclose(np.asarray(theirs.x), ours.x, rtol=1e-9, atol=1e-12)


def test_few_rows_have_no_batches():
    assert not has_batches(make(n=1000))


def test_the_solver_agrees_with_the_reference_where_it_begins_with_batches(case, options, monkeypatch):
    monkeypatch.setattr(stochastic, "_LEAST_ROWS", 2)
    monkeypatch.setattr(stochastic, "_MOST_ROWS", 2)
    monkeypatch.setattr(stochastic, "_FEWEST_BATCHES", 2)
    assert has_batches(case.problem)
    solution, reference = solve(case.problem, options(1e-4)), case.reference
    assert reference.lower_bound * (1 - 1e-8) <= solution.objective
    assert solution.lower_bound <= reference.objective * (1 + 1e-8)
    if case.problem.n_outputs == 1:
        assert solution.converged
        assert solution.objective == pytest.approx(reference.objective, rel=1e-4)
    else:
        assert solution.objective <= reference.objective * (1 + 1e-3)


@KINDS
def test_many_rows_converge(kind, options):
    solution = solve(make(kind, d=2, ratio=0.1), options(2e-3))
    assert solution.converged, solution.message
