from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from skcvxbn.losses import LinearQuadratic
from skcvxbn.solvers import dual_search
from skcvxbn.solvers import search as search_module
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.dual_search import DualPoint, DualSearch
from skcvxbn.solvers.landscape import unit
from skcvxbn.solvers.neurons import Neurons
from skcvxbn.solvers.search import BROAD, NARROW, NEARBY, QUICK, THOROUGH, TOPS, Candidates, starts_for
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

        def searched(R, neurons, stages, *, times=1):
            asked.append((stages, times))
            # A direction of length zero violates nothing: what is known stays as it was.
            return Candidates(np.zeros((3, 1)), np.ones((1, 1)), np.array([found.pop(0)]))

        search._searched = searched
        return search, asked

    return make


def test_a_bound_is_confirmed_by_two_batches(duals):
    search, asked = duals(1e-4, [1.0, 1.0])
    search.confirm()
    assert asked == [(THOROUGH, 1), (NARROW, 1)]


def test_a_batch_that_finds_more_is_followed_by_another(duals):
    search, asked = duals(1e-4, [1.0, 2.0, 3.0])
    search.confirm()
    assert asked == [(THOROUGH, 1), (NARROW, 1), (NARROW, 1)]


@pytest.mark.parametrize(("n_tried", "times"), [(0, 1), (7, 1), (8, 2), (17, 3), (24, 4), (100, 4)])
def test_the_more_bounds_were_tried_the_larger_is_the_batch(duals, n_tried, times):
    search, asked = duals(1e-4, [1.0, 1.0])
    search._n_tried = n_tried
    search.confirm()
    assert asked == [(THOROUGH, 1), (NARROW, times)]


def test_a_loose_tolerance_has_a_margin_instead(duals):
    search, asked = duals(0.1, [2.0, 2.0, 0.5, 0.5])
    search.confirm()
    search.confirm()
    assert asked == [(QUICK, 1)] * 4


def test_a_brief_confirmation_searches_as_rounds_do(duals):
    search, asked = duals(1e-4, [1.0, 1.0])
    search.confirm(brief=True)
    assert asked == [(QUICK, 1)] * 2


def test_a_bound_that_has_become_useless_is_not_tested_further(duals):
    search, asked = duals(1e-4, [2.0, 2.0])
    search.confirm(least=0.9 * search.lower_bound)
    assert asked == [(THOROUGH, 1), (NARROW, 1)]
    search, asked = duals(1e-4, [2.0, 2.0])
    search.confirm(least=1.1 * search.lower_bound)
    assert asked == [(THOROUGH, 1)]


@pytest.mark.parametrize("many", [False, True])
def test_a_bound_from_broad_searches_is_confirmed_by_one_where_neurons_are_many(rugged, monkeypatch, many):
    problem, make = rugged
    search, neurons = make(0)
    monkeypatch.setattr(dual_search, "_MANY", -1 if many else 0)
    search.search(neurons, breadth=1.0)
    nothing, batches = search.found.take(np.zeros(0, dtype=int)), []

    def searched(R, neurons, stages, *, times=1):
        batches.append(stages)
        return nothing

    monkeypatch.setattr(search, "_searched", searched)
    search.found = search._maxima = nothing
    search.point = replace(search.point, largest=problem.beta)
    search.confirm()
    if not many:
        assert batches == [THOROUGH, NARROW]
        return
    assert batches == [THOROUGH]
    random = unit(np.random.default_rng(2).standard_normal((9, 2000)), axis=0)
    values = np.linalg.norm(search.point.R.T @ problem.hidden(random), axis=0)
    assert values.max() <= search.point.largest


@pytest.fixture
def rugged(options):
    """A problem with many violated constraints, and a function that makes a search from few starts."""
    rng = np.random.default_rng(1)
    A = whiten(rng.standard_normal((200, 8))).A
    loss = LinearQuadratic(rng.standard_normal((200, 1)), 1.0)
    problem = Problem(A, loss, 0.12 * np.linalg.norm(loss.target), False)
    idle = Neurons.of_network(problem, np.zeros((9, 0)), np.zeros((0, 1)), 0.0)

    def make(seed):
        return DualSearch(problem, problem, options(tol=1e-4, seed=seed, search_starts=8), idle), idle

    return problem, make


def test_a_broad_search_has_as_many_starts_as_it_is_worth(rugged):
    problem, make = rugged
    search, neurons = make(0)
    search.search(neurons, breadth=1.0)
    few = len(search.found.values)
    search, neurons = make(0)
    search.search(neurons, breadth=1e9)
    assert starts_for(1e9, problem.A, BROAD) > 500
    assert len(search.found.values) > 3 * few > 0


def test_whose_violations_a_broad_search_found_last_is_remembered(rugged):
    search, neurons = rugged[1](0)
    other = replace(neurons, bias=neurons.bias + 1)
    search.search(neurons)
    assert not search.has_searched_broadly(neurons)
    search.search(neurons, breadth=1.0)
    assert search.has_searched_broadly(neurons)
    assert not search.has_searched_broadly(other)
    # From what is known only.
    search.search(neurons, breadth=0.0)
    assert not search.has_searched_broadly(neurons)


def test_a_broad_search_has_no_more_starts_than_fit_in_memory(rugged, monkeypatch):
    make = rugged[1]
    monkeypatch.setattr(dual_search, "_MOST_STARTS", 10)
    asked = []

    def random_starts(rank, n_outputs, n_starts, rng):
        asked.append(n_starts)
        return search_module.random_starts(rank, n_outputs, n_starts, rng)

    monkeypatch.setattr(dual_search, "random_starts", random_starts)
    search, neurons = make(0)
    search.search(neurons, breadth=1e15)
    assert asked == [10]


def test_a_broad_search_that_finds_nothing_proves_no_more_than_that_nothing_is_violated(rugged):
    problem, make = rugged
    search, neurons = make(0)
    search._problem = replace(problem, beta=10 * problem.beta)
    search.search(neurons, breadth=1.0)
    assert len(search.found.values) == 0
    assert search.point.largest == 10 * problem.beta


def test_maxima_of_earlier_rounds_are_known_later(rugged):
    problem, make = rugged
    search, neurons = make(0)
    search.search(neurons, breadth=1e9)
    first = search.found.values
    search.search(neurons, breadth=1.0)
    above = first > problem.beta
    assert above.sum() > 10
    # They are the same maxima, but for some that were close to each other.
    assert (search.found.values > problem.beta * (1 - 1e-6)).sum() >= 0.9 * above.sum()
    assert search.found.largest >= first[0] * (1 - 1e-6)
    fresh, neurons = make(1)
    fresh.search(neurons, breadth=1.0)
    assert (fresh.found.values > problem.beta).sum() < 0.5 * above.sum()


def test_known_maxima_leave_new_points_room(rugged, monkeypatch):
    search, neurons = rugged[1](0)
    search.search(neurons, breadth=1e9)
    n_known, climbing = len(search._maxima.values), {}

    def noted(A, R, S, U, *, stages, **options):
        climbing[stages] = S.shape[1]
        return search_module.search(A, R, S, U, stages=stages, **options)

    monkeypatch.setattr(dual_search, "search", noted)
    search.search(neurons, breadth=1e9)
    assert climbing[NEARBY] >= 0.5 * n_known > 0
    # Of those that go to their tops together none is known: each of these is on its top.
    assert 0 < climbing[TOPS] <= climbing[BROAD]


def test_a_search_without_breadth_climbs_from_what_is_known(rugged, monkeypatch):
    problem, make = rugged
    search, neurons = make(0)
    search.search(neurons, breadth=1e9)
    known = search.found
    monkeypatch.setattr(dual_search, "random_starts", None)
    monkeypatch.setattr(dual_search, "starts_near", None)
    search.search(neurons, breadth=0.0)
    # What is found in single precision is short of a maximum by the square of that.
    assert search.found.largest >= known.largest * (1 - 1e-7)
    # Those that were violated stay, whatever they led to.
    for j in np.flatnonzero(known.values > problem.beta):
        assert (search.found.S.T @ known.S[:, j]).max() > 0.9997


def test_narrow_maxima_next_to_a_neuron_are_searched_for(rugged, monkeypatch):
    problem, make = rugged
    search, idle = make(0)
    search.search(idle, breadth=1e9)
    best = search.found.take(np.array([0]))
    # A network of that neuron alone, slightly turned: random starts are too few to come near it again.
    S = best.S + 0.1 * np.random.default_rng(0).standard_normal(best.S.shape) / 3
    neurons = Neurons.of_network(problem, 0.1 * S, best.U, 0.0)
    near, apart = make(0)[0], make(0)[0]
    monkeypatch.setattr(dual_search, "random_starts", lambda *_: (np.zeros((9, 0)), np.zeros((0, 1))))
    near.search(neurons)
    monkeypatch.setattr(dual_search, "starts_near", lambda S, U, n, rng: (S[:, :0], U[:0]))
    apart.search(neurons)
    # They come to the same maximum, to single precision.
    assert near.found.largest >= apart.found.largest * (1 - 1e-6)
    assert len(near.found.values) > len(apart.found.values) == 1


def test_a_tight_tolerance_finishes_what_single_precision_has_found(rugged, options):
    """Maxima in double precision: to climb from them again in double gains nothing."""
    problem, _ = rugged
    idle = Neurons.of_network(problem, np.zeros((9, 0)), np.zeros((0, 1)), 0.0)
    largest = []
    for tol in (1e-4, 1e-7):
        single = problem.astype(np.float32)
        search = DualSearch(problem, single, options(tol=tol, seed=0, search_starts=256), idle)
        search.search(idle)
        assert search.found.S.dtype == np.float64
        again = search_module.search(problem.A, problem.zero.R, search.found.S, search.found.U, stages=QUICK)
        largest.append((search.found.largest, again.largest))
    (loose, _), (tight, again) = largest
    assert tight >= loose * (1 - 1e-12)
    assert again <= tight * (1 + 1e-9)
