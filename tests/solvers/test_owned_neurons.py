"""Neurons of given arrangements: merging, what is new, and fewer of them."""

from __future__ import annotations

import numpy as np
import pytest

from skcvxbn.losses import LinearQuadratic, absolute_error
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.owned_neurons import OwnedNeurons
from skcvxbn.whitening import whiten


def instance(n_outputs=1, n_neurons=300, n=8, sharp=False):
    """Neurons of arrangements of their own, more than the rows have outputs, which fit their targets."""
    rng = np.random.default_rng([n_outputs, n_neurons])
    A = whiten(rng.standard_normal((n, 2))).A
    S, U = rng.standard_normal((3, n_neurons)), rng.standard_normal((n_neurons, n_outputs))
    patterns, first = np.unique(A @ S > 0, axis=1, return_index=True)
    S, U = S[:, first], U[first] / np.linalg.norm(U[first], axis=1, keepdims=True)
    Y = np.maximum(A @ S, 0) @ U
    loss = absolute_error(Y, np.ones(n)) if sharp else LinearQuadratic(Y, 1.0)
    # A price so low that nothing pays but the fit.
    return Problem(A, loss, 1e-6, False), patterns, OwnedNeurons(S, U, np.arange(len(first)))


def assert_feasible(problem, patterns, network):
    margins = np.where(patterns[:, network.owner], 1, -1) * (problem.A @ network.S) / network.sizes
    assert margins.min() >= -1e-12


@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_a_vertex_has_the_same_output_and_price_and_few_neurons(n_outputs, sharp):
    problem, patterns, network = instance(n_outputs, sharp=sharp)
    objective = problem.objective(network.S, network.U)
    fewer = network.fewer(problem, patterns, objective + 1e-12)
    assert len(fewer) <= 8 * n_outputs + 1 < len(network)
    np.testing.assert_allclose(
        problem.hidden(fewer.S) @ fewer.U, problem.hidden(network.S) @ network.U, atol=1e-7
    )
    assert fewer.sizes.sum() == pytest.approx(network.sizes.sum(), rel=1e-8)
    assert_feasible(problem, patterns, fewer)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_fewer_neurons_cost_at_most_what_is_allowed(n_outputs):
    problem, patterns, network = instance(n_outputs)
    objective = problem.objective(network.S, network.U)
    counts = []
    for rise in (1e-12, 0.1, 10.0):
        fewer = network.fewer(problem, patterns, objective + rise)
        assert problem.objective(fewer.S, fewer.U) <= objective + rise
        assert_feasible(problem, patterns, fewer)
        counts.append(len(fewer))
    assert len(network) > counts[0] >= counts[1] >= counts[2]


def test_neurons_of_one_arrangement_merge_where_that_is_allowed():
    problem, patterns, network = instance(2)
    u = np.array([[1.0, 0.0], [np.cos(0.01), np.sin(0.01)]])
    twins = OwnedNeurons(network.S[:, [0, 0]], u, np.array([0, 0]))
    objective = problem.objective(twins.S, twins.U)
    assert len(twins.fewer(problem, patterns, objective * (1 + 1e-3))) == 1
    assert len(twins.fewer(problem, patterns, objective * (1 - 1e-3))) == 2


def test_where_nothing_is_allowed_nothing_changes():
    problem, patterns, network = instance()
    assert network.fewer(problem, patterns, 0.0) is network


def test_negligible_neurons_are_left_out():
    problem, patterns, network = instance(n_neurons=6)
    small = network.take(np.arange(3)).resized(np.full(3, 1e-9))
    allowed = problem.objective(network.S, network.U) + 1e-12
    assert len(network.with_(small).fewer(problem, patterns, allowed)) <= len(network)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_the_dual_point_prices_a_rescaled_network_exactly(n_outputs):
    problem, _, network = instance(n_outputs, n_neurons=6)
    rescaled = network.resized(1.3 * network.sizes).rescaled(problem)
    R = problem.dual_point(rescaled.S, rescaled.U)
    priced = np.vdot(R, problem.hidden(rescaled.S) @ rescaled.U)
    # Less than a relative error of 1e-8 in the factor leaves.
    scale = np.sum((problem.hidden(rescaled.S) @ rescaled.U) ** 2)
    assert priced == pytest.approx(problem.beta * rescaled.sizes.sum(), abs=1e-7 * scale)
    np.testing.assert_array_equal(rescaled.owner, network.owner)


def test_the_best_size_stays():
    problem, _, network = instance(n_neurons=6)
    best = network.rescaled(problem)
    np.testing.assert_allclose(best.rescaled(problem).sizes, best.sizes, rtol=1e-7)


def test_what_is_new_differs_in_arrangement_or_direction():
    U = np.array([[1.0, 0.0], [0.8, 0.6], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    newcomers = OwnedNeurons(np.ones((3, 5)), U, np.array([4, 4, 5, 6, 6]))
    known = OwnedNeurons(np.ones((3, 1)), np.array([[1.0, 0.0]]), np.array([4]))
    new = newcomers.take(newcomers.unlike(known, 0.9))
    # The first is known, the last repeats the one before it.
    np.testing.assert_array_equal(new.owner, [4, 5, 6])
    np.testing.assert_array_equal(new.U, U[1:4])
    np.testing.assert_array_equal(newcomers.take(newcomers.unlike(known, 0.7)).owner, [5, 6])


def test_no_neurons_have_no_sizes():
    problem, patterns, _ = instance()
    none = OwnedNeurons.none(problem)
    assert len(none) == 0
    assert none.sizes.shape == (0,)
    for network in (none.rescaled(problem), none.merged(0.9), none.fewer(problem, patterns, np.inf)):
        assert len(network) == 0
