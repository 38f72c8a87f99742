"""Solvers of the training problem; `solve` chooses among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from skcvxbn.arrays import Array, like, numpy_dtype, to_numpy, zeros
from skcvxbn.solvers.base import Options, Problem, Solution, balanced
from skcvxbn.solvers.continuation import follow
from skcvxbn.solvers.cvxpy_reference import solve_cvxpy
from skcvxbn.solvers.fixed_arrangements import solve_fixed_arrangements
from skcvxbn.solvers.neuron_generation import generate_neurons

__all__ = ["Options", "Problem", "Solution", "solve", "solve_roughly"]


_SINGLE_PRECISION_FROM = 2**22


def solve(
    problem: Problem,
    options: Options,
    *,
    solver: str = "auto",
    patterns: NDArray | None = None,
    complete: bool = False,
    start: tuple[NDArray, NDArray] | None = None,
) -> Solution:
    """Train the network of `problem`.

    Parameters
    ----------
    problem : Problem
        The training problem.
    options : Options
        Tolerance and limits.
    solver : {"auto", "cvxpy"}
        The library's own solver, or the reference.
    patterns : ndarray of bool, shape (n_samples, n_arrangements), optional
        Arrangements to solve program (P) over. Without it the optimum is over all arrangements.
    complete : bool
        Whether `patterns` are all arrangements of the data, which makes the certificate "exact".
    start : tuple of ndarray, optional
        A network ``(S, V)`` to start from.

    Returns
    -------
    Solution
        The network, its objective and the lower bound.
    """
    problem = _in_one_precision(problem)
    nothing_to_learn = problem.fit_intercept and problem.A.shape[1] == 1
    # No hidden layer is longer than its neuron: from here on every dual constraint holds at zero.
    if problem.beta >= problem.length(problem.zero.R) or nothing_to_learn:
        return _on_host(_zero_network(problem))
    unit, output, value = _in_own_units(problem)
    if solver == "cvxpy":
        solution = _solve_with_cvxpy(unit, options, patterns, complete)
    elif patterns is not None:
        solution = solve_fixed_arrangements(unit, options, patterns, complete=complete)
    else:
        solution = generate_neurons(unit, options, _start_of(unit, start, output))
    return _in_units(solution, output, value)


def _start_of(
    unit: Problem, start: tuple[NDArray, NDArray] | None, output: float
) -> tuple[Array, Array] | None:
    if start is None:
        return None
    dtype = numpy_dtype(unit.A)
    return like(start[0].astype(dtype), unit.A), like((start[1] / output).astype(dtype), unit.A)


def solve_roughly(problem: Problem, betas: Iterable[float], options: Options) -> Iterator[Solution]:
    """Train networks over all arrangements along decreasing weight decay, cheaply.

    Parameters
    ----------
    problem : Problem
        The training problem; its weight decay is not used.
    betas : iterable of float
        Weight decays, decreasing.
    options : Options
        Tolerance and limits.

    Yields
    ------
    Solution
        A network for each weight decay, whose gap is a rough estimate.
    """
    unit, output, value = _in_own_units(_in_one_precision(problem))
    for solution in follow(unit, (beta * (output / value) for beta in betas), options):
        yield _in_units(solution, output, value)


def _in_one_precision(problem: Problem) -> Problem:
    """Return the problem in double precision, but for data so large that only descent is affordable."""
    n_rows, rank = problem.shape
    return problem.astype(numpy_dtype(problem.A) if n_rows * rank > _SINGLE_PRECISION_FROM else np.float64)


def _in_own_units(problem: Problem) -> tuple[Problem, float, float]:
    """Return the problem in units in which tolerances and starting points need none, and these units."""
    output, value = problem.loss.unit(problem.A[:, -1] if problem.fit_intercept else None)
    loss, beta = problem.loss.scaled(output, value), problem.beta * (output / value)
    return replace(problem, loss=loss, beta=beta), output, value


def _in_units(solution: Solution, output: float, value: float) -> Solution:
    solution = _on_host(solution)
    return replace(
        solution,
        V=solution.V * output,
        R=solution.R * (value / output),
        objective=solution.objective * value,
        lower_bound=solution.lower_bound * value,
        bias=None if solution.bias is None else solution.bias * output,
    )


def _on_host(solution: Solution) -> Solution:
    S, V, R = (to_numpy(M) for M in (solution.S, solution.V, solution.R))
    return replace(solution, S=S, V=V, R=R)


def _solve_with_cvxpy(
    problem: Problem, options: Options, patterns: NDArray | None, complete: bool
) -> Solution:
    if patterns is None:
        raise ValueError("The reference solves program (P) over given arrangements; none were given.")
    result = solve_cvxpy(problem.A, problem.loss, problem.beta, patterns, fit_intercept=problem.fit_intercept)
    S, V = balanced(result.S, result.V)
    objective = problem.objective(S, V)
    lower_bound = min(result.lower_bound, objective)
    converged = objective - lower_bound <= options.tol * objective
    certificate = "exact" if complete else "restricted"
    return Solution(
        S, V, result.dual, objective, lower_bound, certificate, result.n_rounds, converged, result.status
    )


def _zero_network(problem: Problem) -> Solution:
    """The network without a neuron, where no other can fit better."""
    S, V = zeros((problem.A.shape[1], 0), problem.A), zeros((0, problem.n_outputs), problem.A)
    value, R = problem.zero.value, problem.feasible(problem.zero.R)
    return Solution(S, V, R, value, value, "exact", 0, True, "")
