"""A round of descent, between two turns on the output weights."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skcvxbn.losses import squared_error
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.descent_round import Descent
from skcvxbn.solvers.neurons import Neurons
from skcvxbn.solvers.search import THOROUGH, random_starts, search
from skcvxbn.training import largest_beta
from skcvxbn.whitening import whiten

OUTPUTS = pytest.mark.parametrize("n_outputs", [1, 3])


def make(options, n_outputs=1, ratio=0.1):
    """A problem in units of its own, its descent, and the network without a neuron."""
    rng = np.random.default_rng(n_outputs)
    X = rng.standard_normal((150, 5))
    Y = np.sin(2 * X @ rng.standard_normal((5, n_outputs))) + 0.3 * rng.standard_normal((150, n_outputs))
    A, loss = whiten(X).A, squared_error(Y, np.ones(150))
    problem = Problem(A, loss.scaled(*loss.unit(A[:, -1])), 1.0, True)
    problem = Problem(A, problem.loss, ratio * largest_beta(A, problem.zero.R), True)
    idle = Neurons.of_network(problem, np.zeros((6, 0)), np.zeros((0, n_outputs)), 0.0)
    return problem, Descent(problem, problem.astype(np.float32), options(1e-4)), idle


def found_from(problem, neurons, n_starts=64):
    starts = random_starts(problem.A.shape[1], problem.n_outputs, n_starts, np.random.RandomState(0))
    found = search(problem.A, neurons.R, *starts, stages=THOROUGH)
    return found.take(np.flatnonzero(found.values > problem.beta))


@OUTPUTS
def test_the_dual_point_violates_the_constraint_of_no_neuron(n_outputs, options):
    problem, descent, idle = make(options, n_outputs)
    neurons = descent.first(idle, 0.0)
    for _ in range(3):
        unit = neurons.S / np.linalg.norm(neurons.S, axis=0)
        values = np.linalg.norm(neurons.R.T @ np.maximum(problem.A @ unit, 0), axis=0)
        # Neurons of negligible size left after their weights were found.
        assert values.max() <= problem.beta * (1 + 2e-3)
        assert values.min() >= problem.beta * (1 - 2e-3)
        newcomers = found_from(problem, neurons)
        neurons = descent.round(neurons.joined(problem, newcomers), 0.0, 1e-5, newcomers)
        assert neurons.objective == pytest.approx(problem.objective(neurons.S, neurons.U), rel=1e-12)


@OUTPUTS
def test_rounds_lower_the_objective_and_leave_the_neurons_alone(n_outputs, options):
    problem, descent, idle = make(options, n_outputs)
    neurons = descent.first(idle, 0.0)
    first = neurons.objective
    for _ in range(3):
        newcomers = found_from(problem, neurons)
        joined = neurons.joined(problem, newcomers)
        before = joined.S.copy(), joined.U.copy()
        neurons = descent.round(joined, 0.0, 1e-5, newcomers)
        assert_array_equal(joined.S, before[0])
        assert_array_equal(joined.U, before[1])
    assert neurons.objective < first


@OUTPUTS
def test_newcomers_are_used_where_they_were_found(n_outputs, options, monkeypatch):
    problem, descent, idle = make(options, n_outputs)
    neurons = descent.first(idle, 0.0)
    newcomers = found_from(problem, neurons)
    joined = neurons.joined(problem, newcomers)
    # Descent leads all newcomers away: with a second chance they serve all the same.
    monkeypatch.setattr(
        "skcvxbn.solvers.descent_round.descend",
        lambda problem, S, V, **settings: (neurons.S.astype(np.float32), neurons.U.astype(np.float32)),
    )
    without = descent.round(joined, 0.0, 1e-5)
    with_them = descent.round(joined, 0.0, 1e-5, newcomers)
    assert with_them.objective < without.objective * (1 - 1e-6)
    cosines = newcomers.S.T @ (with_them.S / np.linalg.norm(with_them.S, axis=0))
    assert cosines.max() == pytest.approx(1, abs=1e-6)


@OUTPUTS
def test_equal_neurons_are_counted_as_one(n_outputs, options, monkeypatch):
    problem, descent, idle = make(options, n_outputs)
    neurons = descent.first(idle, 0.0)
    S, U = np.hstack([neurons.S, neurons.S]) / 2, np.vstack([neurons.U, neurons.U])
    monkeypatch.setattr(
        "skcvxbn.solvers.descent_round.descend",
        lambda problem, S, V, **settings: (S, V),
    )
    double = Neurons.of_network(problem, S, U, 0.0)
    settled = descent.round(double, 0.0, 1e-5)
    assert len(settled) <= len(neurons)
    assert settled.objective == pytest.approx(neurons.objective, rel=1e-5)
