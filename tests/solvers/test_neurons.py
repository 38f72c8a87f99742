"""The neurons of a solver: merging, gathering, joining."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from skcvxbn.losses import LinearQuadratic
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.neurons import Neurons
from skcvxbn.solvers.reweighting import reweighted
from skcvxbn.solvers.search import Candidates
from skcvxbn.whitening import whiten


def make(n_outputs=1, fit_intercept=True, n_neurons=6, beta=0.05):
    rng = np.random.default_rng(n_outputs)
    A = whiten(rng.standard_normal((30, 3))).A
    problem = Problem(A, LinearQuadratic(rng.standard_normal((30, n_outputs)), 1.0), beta, fit_intercept)
    S, V = rng.standard_normal((4, n_neurons)), rng.standard_normal((n_neurons, n_outputs))
    return problem, Neurons.of_network(problem, S, V, 0.0)


def test_neurons_of_the_same_kind_merge_and_the_network_stays():
    problem, neurons = make(2)
    # The second is a neighbour of the first in the same arrangement, with the same output direction.
    close = neurons.S[:, :1] * 0.3
    double = replace(
        neurons,
        S=np.hstack([neurons.S, close]),
        U=np.vstack([neurons.U, neurons.U[:1]]),
        patterns=np.hstack([neurons.patterns, neurons.patterns[:, :1]]),
    )
    merged = double.merged(problem)
    assert len(merged) == len(neurons)
    before = problem.hidden(double.S) @ double.U
    np.testing.assert_allclose(problem.hidden(merged.S) @ merged.U, before, atol=1e-12)
    assert problem.objective(merged.S, merged.U) <= problem.objective(double.S, double.U) * (1 + 1e-12)


def test_known_neurons_do_not_join_again():
    problem, neurons = make()
    rng = np.random.default_rng(6)
    S = np.hstack([neurons.S[:, :2], rng.standard_normal((4, 2))])
    U = np.vstack([neurons.U[:2], [[1.0], [-1.0]]])
    S /= np.linalg.norm(S, axis=0)
    joined = neurons.joined(problem, Candidates(S, U, np.ones(4)))
    assert len(joined) == len(neurons) + 2
    np.testing.assert_array_equal(joined.S[:, : len(neurons)], neurons.S)
    np.testing.assert_array_equal(joined.patterns[:, -2:], problem.A @ S[:, 2:] > 0)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_neurons_nearly_of_one_kind_are_gathered(n_outputs):
    problem, neurons = make(n_outputs)
    rng = np.random.default_rng(0)
    # Three neighbours of each, in other arrangements, with the same output direction.
    near = np.repeat(neurons.S, 3, axis=1) * rng.uniform(0.1, 0.5, 18)
    near += 0.03 * np.linalg.norm(near, axis=0) * rng.standard_normal(near.shape)
    S, U = np.hstack([neurons.S, near]), np.vstack([neurons.U, np.repeat(neurons.U, 3, axis=0)])
    many = Neurons.of_network(problem, S, U, 0.0)
    assert len(many.merged(problem)) > 6
    gathered = many.gathered(0.99)
    assert len(gathered) == 6
    assert gathered.sizes.sum() == pytest.approx(many.sizes.sum(), rel=1e-2)
    before, after = (problem.hidden(n.S) @ n.U for n in (many, gathered))
    assert np.linalg.norm(after - before) <= 0.03 * np.linalg.norm(before)
    assert len(many.gathered(1 - 1e-12)) == 24
    # A neighbour of the opposite output direction is of another kind.
    opposite = replace(many, U=np.vstack([neurons.U, -many.U[6:]]))
    assert len(opposite.gathered(0.99)) == 12


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_neurons_without_a_share_in_the_best_weights_leave(n_outputs, fit_intercept):
    problem, neurons = make(n_outputs, fit_intercept, n_neurons=60, beta=0.5)
    needed = neurons.needed(problem)
    assert 0 < len(needed) < 60
    S, V, _ = reweighted(problem, neurons.S, neurons.U)
    assert problem.objective(needed.S, needed.U) == pytest.approx(problem.objective(S, V), rel=1e-4)
    np.testing.assert_allclose(np.linalg.norm(needed.U, axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(needed.patterns, problem.A @ needed.S > 0)


def test_where_no_neuron_is_needed_all_stay():
    problem, neurons = make(beta=1e3)
    assert len(neurons.needed(problem)) == len(neurons)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_newcomers_get_their_weight_and_neighbours_are_one(n_outputs):
    problem, neurons = make(n_outputs, n_neurons=3)
    S = np.random.default_rng(2).standard_normal((4, 40))
    newcomers = Candidates(S / np.linalg.norm(S, axis=0), np.ones((40, n_outputs)), np.ones(40))
    all_of_them = neurons.reweighted(problem, newcomers, 1e-9, 1 - 1e-9)
    S, V = np.hstack([neurons.S, newcomers.S]), np.vstack([neurons.U, np.ones((40, n_outputs))])
    best = problem.objective(*reweighted(problem, S, V)[:2])
    assert all_of_them.objective == pytest.approx(best, rel=1e-6)
    values = np.linalg.norm(all_of_them.R.T @ problem.hidden(S / np.linalg.norm(S, axis=0)), axis=0)
    assert values.max() <= problem.beta * (1 + 1e-6)
    fewer = neurons.reweighted(problem, newcomers, 0.2, 0.8)
    assert len(fewer) < len(all_of_them)
    values = np.linalg.norm(fewer.R.T @ problem.hidden(fewer.S / fewer.sizes), axis=0)
    np.testing.assert_allclose(values, problem.beta, rtol=1e-5)


def test_neurons_are_merged_as_boldly_as_it_costs_nothing():
    problem, neurons = make(2)
    # Of one arrangement, and with output directions that nearly agree.
    turned = neurons.U[:1] + 0.05 * neurons.U[:1, ::-1] * [1, -1]
    double = replace(
        neurons,
        S=np.hstack([neurons.S, neurons.S[:, :1]]),
        U=np.vstack([neurons.U, turned / np.linalg.norm(turned)]),
        patterns=np.hstack([neurons.patterns, neurons.patterns[:, :1]]),
    )
    objective = problem.objective(double.S, double.U)
    assert len(double.fewer(problem, np.inf)) == len(neurons)
    assert len(double.fewer(problem, objective * (1 - 1e-3))) == len(double)
