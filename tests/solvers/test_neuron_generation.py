"""Neuron generation beyond the sizes where arrangements can be listed, and how it ends."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from skcvxbn.losses import LinearQuadratic
from skcvxbn.solvers import dual_search, neuron_generation, neurons, reach, solve
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.descent import _SmoothNetwork
from skcvxbn.solvers.neuron_generation import generate_neurons
from skcvxbn.solvers.neurons import Neurons
from skcvxbn.training import largest_beta
from skcvxbn.whitening import whiten


def instance(n=40, d=3, n_outputs=1, fit_intercept=True, ratio=0.1, seed=0):
    """Random rows and a target of unit size; `ratio` is that of beta to its largest value."""
    rng = np.random.default_rng([n, d, n_outputs, seed])
    X = rng.standard_normal((n, d))
    Y = np.sin(2 * X @ rng.standard_normal((d, n_outputs))) + 0.3 * rng.standard_normal((n, n_outputs))
    problem = Problem(whiten(X).A, LinearQuadratic(Y / np.linalg.norm(Y), 1.0), 1.0, fit_intercept)
    return replace(problem, beta=ratio * largest_beta(problem.A, problem.zero.R))


def test_diabetes_reaches_the_known_optimum_from_every_seed(options):
    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    problem = Problem(whiten(X).A, LinearQuadratic(y[:, None], 1.0), 1.41495, fit_intercept=False)
    solutions = [solve(problem, options(1e-4, seed=seed)) for seed in range(3)]
    for solution in solutions:
        assert solution.objective <= 133.16
        assert solution.lower_bound <= 133.13
        assert solution.objective - solution.lower_bound <= 5e-4 * solution.objective
    objectives = [solution.objective for solution in solutions]
    gap = max(solution.objective - solution.lower_bound for solution in solutions)
    assert max(objectives) - min(objectives) <= gap
    # Each bound is below every objective: none of them is refuted by another seed.
    assert max(solution.lower_bound for solution in solutions) <= min(objectives)


SHAPES = [
    (2, 1, 1),
    (2, 5, 2),
    (3, 10, 1),
    (4, 1, 3),
    (30, 1, 1),
    (8, 8, 2),
    (40, 3, 3),
]


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize(("n", "d", "n_outputs"), SHAPES)
def test_seeds_agree_within_the_gap(n, d, n_outputs, fit_intercept, options):
    problem = instance(n, d, n_outputs, fit_intercept)
    solutions = [generate_neurons(problem, options(1e-4, seed=seed)) for seed in range(2)]
    for solution in solutions:
        assert solution.converged
        assert solution.objective - solution.lower_bound <= 1e-4 * solution.objective
        assert solution.objective == pytest.approx(problem.objective(solution.S, solution.V), rel=1e-12)
    first, second = solutions
    assert first.lower_bound <= second.objective
    assert second.lower_bound <= first.objective


def test_the_same_seed_gives_the_same_network(options):
    problem = instance(n_outputs=2)
    one, other = (generate_neurons(problem, options(seed=3)) for _ in range(2))
    np.testing.assert_array_equal(one.S, other.S)
    np.testing.assert_array_equal(one.V, other.V)
    assert (one.objective, one.lower_bound) == (other.objective, other.lower_bound)


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_the_largest_beta_separates_zero_from_nonzero(n_outputs, fit_intercept, options):
    above = instance(20, 2, n_outputs, fit_intercept, ratio=1 + 1e-4)
    half = 0.5 * np.sum(above.zero.R**2)
    solution = generate_neurons(above, options())
    assert solution.objective == pytest.approx(half, rel=1e-6)
    assert solution.lower_bound == pytest.approx(half, rel=1e-6)
    solution = generate_neurons(replace(above, beta=above.beta * 0.98), options())
    assert solution.objective < half * (1 - 1e-6)
    assert solution.converged
    assert len(solution.V) > 0


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_far_above_the_largest_beta_there_is_no_neuron(n_outputs, options):
    solution = generate_neurons(instance(20, 2, n_outputs, ratio=10.0), options())
    assert solution.S.shape == (3, 0)
    assert solution.V.shape == (0, n_outputs)


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("max_neurons", [1, 4])
def test_max_neurons_is_respected(max_neurons, n_outputs, options):
    problem = instance(n_outputs=n_outputs)
    free = generate_neurons(problem, options(1e-4))
    solution = generate_neurons(problem, options(1e-4, max_neurons=max_neurons))
    assert 1 <= len(solution.V) <= max_neurons
    # Better than nothing, not better than the optimum, and the bound is still one of the free problem.
    assert free.lower_bound <= solution.objective < 0.5 * np.sum(problem.zero.R**2)
    assert solution.lower_bound <= free.objective
    start = generate_neurons(problem, options(1e-4, max_neurons=max_neurons), (free.S, free.V))
    assert len(start.V) <= max_neurons


def test_a_start_is_improved_on(options):
    problem = instance()
    best = generate_neurons(problem, options(1e-5))
    again = generate_neurons(problem, options(1e-5), (best.S, best.V))
    assert again.objective <= best.objective * (1 + 1e-5)
    assert again.n_iter <= best.n_iter
    # From the optimum of another beta, and from a poor network, to the same optimum.
    other = generate_neurons(replace(problem, beta=2 * problem.beta), options(1e-5))
    for start in ((other.S, other.V), (other.S[:, :1], other.V[:1])):
        solution = generate_neurons(problem, options(1e-5), start)
        assert solution.objective == pytest.approx(best.objective, rel=2e-5)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_the_zero_network_is_a_start(n_outputs, options):
    problem = instance(n_outputs=n_outputs)
    zero = np.zeros((4, 0)), np.zeros((0, n_outputs))
    expected = generate_neurons(problem, options(1e-4)).objective
    assert generate_neurons(problem, options(1e-4), zero).objective == pytest.approx(expected, rel=2e-4)


def test_no_arrangement_and_output_direction_has_many_neurons(options):
    # Neurons that share both merge into their sum, which never costs more.
    problem = instance(10, 1)
    solution = generate_neurons(problem, options(1e-6))
    patterns = problem.A @ solution.S > 1e-9
    kinds = {(tuple(on), v[0] > 0) for on, v in zip(patterns.T, solution.V, strict=True)}
    assert len(solution.V) <= 2 * len(kinds)


@pytest.mark.parametrize("seed", range(3))
def test_merging_neurons_does_not_open_a_gap_that_was_closed(seed, options, monkeypatch):
    problem = instance(n=8, d=2, n_outputs=4, seed=seed)
    # Unlike neurons may be merged, at any price but the gap.
    monkeypatch.setattr(neurons, "_COSINES", (-1.0, 1 - 1e-6))
    monkeypatch.setattr(neuron_generation, "_MERGING", 1e6)
    solution = generate_neurons(problem, options(1e-4))
    assert solution.converged
    assert solution.objective - solution.lower_bound <= 1e-4 * solution.objective


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_two_rows_need_few_neurons(n_outputs, options):
    # Two rows have three arrangements with a neuron switched on.
    solution = generate_neurons(instance(2, 3, n_outputs), options(1e-4))
    assert solution.converged
    assert len(solution.V) <= 6


@pytest.mark.parametrize(
    ("n_outputs", "ratio", "gap"), [(1, 1e-2, 1e-3), (1, 1e-4, 1e-3), (3, 1e-2, 1e-3), (3, 1e-4, 1e-2)]
)
def test_weak_regularisation_reaches_a_small_gap(n_outputs, ratio, gap, options):
    # With several outputs the directions turn by descent only, which is slow where beta is tiny.
    solution = generate_neurons(instance(8, 2, n_outputs, ratio=ratio, seed=3), options(1e-3))
    assert solution.objective - solution.lower_bound <= gap * solution.objective


@pytest.mark.parametrize("seed", range(4))
def test_hardly_any_regularisation_still_returns_a_network(seed, options):
    problem = instance(12, 1, fit_intercept=seed % 2 == 0, ratio=1e-6, seed=seed)
    solution = generate_neurons(problem, options(1e-4))
    assert 0 <= solution.lower_bound <= solution.objective < 1e-2 * np.sum(problem.zero.R**2)


def test_a_stopped_solver_still_states_a_true_bound(options):
    problem = instance()
    best = generate_neurons(problem, options(1e-7))
    early = generate_neurons(problem, options(1e-14, max_iter=1))
    assert early.n_iter == 1
    assert early.message == "max_iter was reached"
    assert not early.converged
    assert early.lower_bound <= best.objective <= early.objective * (1 + 1e-7)


@pytest.mark.parametrize("interrupts", [(3,), (3, 4), (3, 5)])
def test_an_interrupted_solver_returns_the_best_network_so_far(options, monkeypatch, interrupts):
    problem, calls, search = instance(60, 6, ratio=0.05), [], dual_search.search

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) in interrupts:
            raise KeyboardInterrupt
        return search(*args, **kwargs)

    monkeypatch.setattr(dual_search, "search", interrupted)
    solution = generate_neurons(problem, options(1e-12))
    # The bound is tested by thorough searches, unless a second interrupt ends these too.
    assert len(calls) == interrupts[1] if len(interrupts) == 2 else len(calls) >= 5
    assert solution.message == "interrupted"
    assert not solution.converged
    # A bound below the optimum of the free problem.
    monkeypatch.undo()
    assert 0 < solution.lower_bound <= generate_neurons(problem, options(1e-4)).objective
    assert solution.objective == pytest.approx(problem.objective(solution.S, solution.V), rel=1e-12)
    # Two rounds were done: the network is far better than none.
    assert solution.objective < 0.9 * 0.5 * np.sum(problem.zero.R**2)


def test_max_time_returns_the_best_network_so_far(options):
    problem = instance(60, 6, ratio=0.05)
    free = generate_neurons(problem, options(1e-4))
    late = replace(options(1e-12), deadline=time.monotonic())
    solution = generate_neurons(problem, late)
    assert solution.message == "max_time was reached"
    assert solution.n_iter == 1
    assert not solution.converged
    assert solution.lower_bound <= free.objective <= solution.objective * (1 + 1e-4)


def test_an_interrupt_of_the_first_descent_keeps_its_network(options, monkeypatch):
    problem, calls, evaluate = instance(60, 6, ratio=0.05), [], _SmoothNetwork.__call__

    def interrupted(self, x):
        calls.append(1)
        if len(calls) == 100:
            raise KeyboardInterrupt
        return evaluate(self, x)

    monkeypatch.setattr(_SmoothNetwork, "__call__", interrupted)
    solution = generate_neurons(problem, options())
    assert solution.message == "interrupted"
    assert solution.lower_bound == 0
    assert 0 < solution.objective < 0.9 * 0.5 * np.sum(problem.zero.R**2)


def test_verbose_prints_a_line_a_round(options, capsys):
    problem = instance()
    n_iter = generate_neurons(problem, options(verbose=1)).n_iter
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == n_iter
    assert all("objective" in line and "gap" in line for line in lines)
    generate_neurons(problem, options())
    assert capsys.readouterr().out == ""


def test_the_objective_is_printed_before_the_search_for_its_gap(options, capsys, monkeypatch):
    problem, printed, search = instance(), [], dual_search.search

    def heard(*args, **kwargs):
        printed.append(capsys.readouterr().out)
        return search(*args, **kwargs)

    monkeypatch.setattr(dual_search, "search", heard)
    generate_neurons(problem, options(verbose=1))
    assert printed[0].startswith("round   1  objective")
    assert "gap" not in printed[0]


def test_input_is_left_untouched(options):
    problem = instance(n_outputs=2)
    start = generate_neurons(problem, options(1e-3))
    arrays = [problem.A, problem.loss.target, start.S, start.V]
    copies = [M.copy() for M in arrays]
    generate_neurons(problem, options(1e-3), (start.S, start.V))
    for M, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(M, copy)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_float32_data_reach_the_same_optimum(n_outputs, options):
    problem = instance(n_outputs=n_outputs)
    narrow = problem.astype(np.float32)
    solution = generate_neurons(narrow, options(1e-4))
    # An interior point step in single precision is good for about three digits.
    assert solution.objective == pytest.approx(generate_neurons(problem, options(1e-4)).objective, rel=1e-3)


def test_descent_alone_where_exact_steps_are_too_dear(options, monkeypatch):
    problem = instance(n_outputs=2)
    exact = generate_neurons(problem, options(1e-4))
    monkeypatch.setattr(reach, "_AFFORDABLE", 0)
    solution = generate_neurons(problem, options(1e-4))
    assert solution.objective <= 1.02 * exact.objective
    assert solution.lower_bound <= exact.objective


@pytest.mark.parametrize("affordable", [True, False])
def test_the_bound_of_a_fit_that_is_stopped_is_tested(options, monkeypatch, affordable):
    confirmed = []
    monkeypatch.setattr(
        dual_search.DualSearch, "confirm", lambda self, least=-np.inf, *, brief=False: confirmed.append(brief)
    )
    if not affordable:
        monkeypatch.setattr(reach, "_AFFORDABLE", 0)
    problem, few_rounds = instance(n_outputs=2), replace(options(1e-12), max_iter=2)
    assert not generate_neurons(problem, few_rounds).converged
    assert confirmed == [not affordable]
    # Where that takes long, it is for small gaps.
    monkeypatch.setattr(neuron_generation, "_WORTH_A_TEST", 0.0)
    generate_neurons(problem, few_rounds)
    assert len(confirmed) == 1 + affordable


@pytest.mark.parametrize(("n", "d", "n_outputs"), [(150, 6, 1), (100, 4, 3)])
def test_output_weights_make_the_end_where_neurons_are_many(n, d, n_outputs, options, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("the convex program was solved")

    monkeypatch.setattr(neuron_generation, "solve_over_arrangements", forbidden)
    weighed = []
    reweighted = Neurons.reweighted
    monkeypatch.setattr(
        Neurons, "reweighted", lambda self, *args: weighed.append(len(self)) or reweighted(self, *args)
    )
    problem = instance(n, d, n_outputs, ratio=0.03)
    solution, other = (generate_neurons(problem, options(1e-4, seed=seed)) for seed in range(2))
    assert weighed
    for one in (solution, other):
        assert one.converged
        assert one.objective == pytest.approx(problem.objective(one.S, one.V), rel=1e-12)
    assert other.lower_bound <= solution.objective
    assert solution.lower_bound <= other.objective


def test_where_output_weights_stand_still_the_program_takes_over(options, monkeypatch):
    # Newcomers are kept from the weights: what they lack is left to the program.
    reweighted = Neurons.reweighted
    monkeypatch.setattr(
        Neurons,
        "reweighted",
        lambda self, problem, new, *shares: reweighted(self, problem, new.take(np.arange(0)), *shares),
    )
    assert generate_neurons(instance(150, 6, ratio=0.03), options(1e-4)).converged
