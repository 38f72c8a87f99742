"""Solvers of the training problem; `solve` chooses among them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from skcvxbn.solvers.base import Options, Problem, Solution, balanced
from skcvxbn.solvers.cvxpy_reference import solve_cvxpy
from skcvxbn.solvers.fixed_arrangements import solve_fixed_arrangements
from skcvxbn.solvers.neuron_generation import generate_neurons

__all__ = ["Options", "Problem", "Solution", "solve"]


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
    # The problem is homogeneous: targets and beta scale together. Solved at unit size, tolerances
    # and starting points need no units.
    size = float(np.linalg.norm(problem.target))
    nothing_to_learn = problem.fit_intercept and problem.A.shape[1] == 1
    # No hidden layer is longer than its neuron: from here on every dual constraint holds at the target.
    if problem.beta >= size or nothing_to_learn:
        return _zero_network(problem)
    # Single precision is for data so large that only descent is affordable.
    dtype = problem.A.dtype if problem.A.size > _SINGLE_PRECISION_FROM else np.dtype(np.float64)
    unit = Problem(
        problem.A.astype(dtype, copy=False),
        (problem.Y / size).astype(dtype),
        problem.beta / size,
        problem.fit_intercept,
    )
    scaled_start = None if start is None else (start[0].astype(dtype), (start[1] / size).astype(dtype))
    if solver == "cvxpy":
        solution = _solve_with_cvxpy(unit, options, patterns, complete)
    elif patterns is not None:
        solution = solve_fixed_arrangements(unit, options, patterns, complete=complete)
    else:
        solution = generate_neurons(unit, options, scaled_start)
    return replace(
        solution,
        V=solution.V * size,
        objective=solution.objective * size**2,
        lower_bound=solution.lower_bound * size**2,
    )


def _solve_with_cvxpy(
    problem: Problem, options: Options, patterns: NDArray | None, complete: bool
) -> Solution:
    if patterns is None:
        raise ValueError("The reference solves program (P) over given arrangements; none were given.")
    result = solve_cvxpy(problem.A, problem.Y, problem.beta, patterns, fit_intercept=problem.fit_intercept)
    S, V = balanced(result.S, result.V)
    objective = problem.objective(S, V)
    lower_bound = min(result.lower_bound, objective)
    converged = objective - lower_bound <= options.tol * objective
    certificate = "exact" if complete else "restricted"
    return Solution(S, V, objective, lower_bound, certificate, result.n_rounds, converged, result.status)


def _zero_network(problem: Problem) -> Solution:
    """The network without a neuron, where no other can fit better."""
    S = np.zeros((problem.A.shape[1], 0), dtype=problem.A.dtype)
    V = np.zeros((0, problem.Y.shape[1]), dtype=problem.A.dtype)
    value = 0.5 * float(np.vdot(problem.target, problem.target))
    return Solution(S, V, value, value, "exact", 0, True, "")
