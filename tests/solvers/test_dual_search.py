from __future__ import annotations

import numpy as np
import pytest

from skcvxbn.losses import LinearQuadratic
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.dual_search import DualPoint, DualSearch
from skcvxbn.solvers.neurons import Neurons
from skcvxbn.solvers.search import QUICK, SHARP, THOROUGH, Candidates
from skcvxbn.whitening import whiten


@pytest.fixture
def duals(options):
    """A function from a tolerance to a search that is told what it finds, and notes what it was asked for."""

    def make(tol, found):
        rng = np.random.default_rng(0)
        A = whiten(rng.standard_normal((20, 2))).A
        problem = Problem(A, LinearQuadratic(rng.standard_normal((20, 1)), 1.0), 1.0, True)
        idle = Neurons.of_network(problem, np.zeros((3, 0)), np.zeros((0, 1)), 0.0)
        search = DualSearch(problem, problem, options(tol=tol), idle)
        search.point = DualPoint(search.point.R, idle, 1.0)
        asked = []

        def searched(R, neurons, stages, times=1):
            asked.append((stages, times))
            # A direction of length zero violates nothing: what is known stays as it was.
            return Candidates(np.zeros((3, 1)), np.ones((1, 1)), np.array([found.pop(0)]))

        search._searched = searched
        return search, asked

    return make


def test_a_bound_is_confirmed_by_two_batches(duals):
    search, asked = duals(1e-4, [1.0, 1.0])
    search.confirm()
    assert asked == [(THOROUGH, 1), (SHARP, 1)]


def test_a_batch_that_finds_more_is_followed_by_another(duals):
    search, asked = duals(1e-4, [1.0, 2.0, 3.0])
    search.confirm()
    assert asked == [(THOROUGH, 1), (SHARP, 1), (SHARP, 1)]


def test_after_a_bound_was_refuted_the_next_faces_a_larger_batch(duals):
    search, asked = duals(1e-4, [2.0, 2.0, 0.5, 0.5, 0.5])
    search.confirm()
    del asked[:]
    search.confirm()
    assert asked == [(THOROUGH, 1), (SHARP, 1), (SHARP, 4)]


def test_a_loose_tolerance_has_a_margin_instead(duals):
    search, asked = duals(0.1, [2.0, 2.0, 0.5, 0.5])
    search.confirm()
    search.confirm()
    assert asked == [(QUICK, 1)] * 4
