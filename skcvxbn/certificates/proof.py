"""From an estimated lower bound to a proven one."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from skcvxbn.certificates.violation import ViolationBound, bound_violation
from skcvxbn.solvers.base import Options, Problem, Solution, balanced
from skcvxbn.solvers.interior_point import solve_over_arrangements
from skcvxbn.solvers.neurons import Neurons
from skcvxbn.solvers.search import QUICK, Candidates, random_starts, search

# Networks that are proved, at most: every one but the first holds a neuron that the search had missed.
_ATTEMPTS = 20
_NEWCOMERS = 96
_NOT_CLOSED = "the proof is not closed"
# Share of the size of the largest neuron below which one is left out.
_NEGLIGIBLE = 1e-5


def prove(problem: Problem, solution: Solution, options: Options, *, max_time: float) -> Solution:
    """Replace the estimated lower bound of a solution by a proof about networks of any width.

    The dual point is the residual of the network. Where the proof finds a neuron that the search had missed,
    the network is trained on with it, and the new one is proved; of all networks and of all bounds the best
    are kept.

    Parameters
    ----------
    problem : Problem
        The training problem, of one output.
    solution : Solution
        A network.
    options : Options
        Those of the solver; `max_neurons` ends the training on.
    max_time : float
        Seconds for all of this.

    Returns
    -------
    Solution
        Certificate "exact". Its message says why the gap is above the tolerance, if it is.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.certificates import prove
    >>> from skcvxbn.losses import squared_error
    >>> from skcvxbn.solvers import Options, Problem, solve
    >>> from skcvxbn.whitening import whiten
    >>> X = np.linspace(-1, 1, 21)[:, None]
    >>> problem = Problem(whiten(X).A, squared_error(np.abs(X), np.ones(21)), 0.01, True)
    >>> options = Options(1e-4, 20, None, 64, np.random.RandomState(0))
    >>> solution = prove(problem, solve(problem, options), options, max_time=10)
    >>> solution.certificate, solution.objective - solution.lower_bound <= 1e-4 * solution.objective
    ('exact', True)
    """
    deadline = time.monotonic() + max_time
    # In double precision, whatever the network was trained in.
    problem = problem.astype(np.float64)
    newest = best = Neurons.of_network(problem, solution.S, solution.V, 0.0)
    R = problem.feasible(solution.R.astype(np.float64))
    lower_bound, message = problem.dual_bound(0 * R, math.inf), ""
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            target = problem.sufficient_violation(R, best.objective * (1 - 0.9 * options.tol))
            remaining = max(deadline - time.monotonic(), 0.0)
            proof = bound_violation(
                problem.A, R, S=newest.S, target=target, tol=0.1 * options.tol, max_time=remaining
            )
            lower_bound = max(lower_bound, problem.dual_bound(R, proof.upper))
            message = "" if proof.closed else f"{_NOT_CLOSED}: {proof.message}"
            if options.verbose:
                gap = 1 - lower_bound / best.objective
                print(f"proof {attempt:3d}  gap {gap:.1e}  regions {proof.n_regions}  {message}", flush=True)
            full = options.max_neurons is not None and len(newest) >= options.max_neurons
            if not proof.closed or proof.value <= target or full or attempt == _ATTEMPTS:
                break
            newest = _with_newcomers(problem, newest, R, proof, options)
            R = newest.R
            if newest.objective < best.objective:
                best = newest
    except KeyboardInterrupt:
        message = f"{_NOT_CLOSED}: it was interrupted"
    S, V = balanced(best.S, best.U)
    lower_bound = min(lower_bound, best.objective)
    converged = best.objective - lower_bound <= options.tol * best.objective
    if not (converged or message):
        message = "neurons that the search had missed were still being found by the proof"
    return replace(
        solution,
        S=S,
        V=V,
        R=R,
        objective=best.objective,
        lower_bound=lower_bound,
        certificate="exact",
        converged=converged,
        message="" if converged else message,
    )


def _with_newcomers(
    problem: Problem, neurons: Neurons, R: NDArray, proof: ViolationBound, options: Options
) -> Neurons:
    """Solve for the neurons together with those that violate the dual constraint most."""
    starts, signs = random_starts(len(proof.s), 1, options.search_starts, options.rng)
    S = np.hstack([proof.s[:, None], neurons.S, starts])
    U = np.vstack([proof.u[None], neurons.U, signs])
    found = search(problem.A, R, S, U, stages=QUICK)
    # The search may leave the direction that was proved the worst for another.
    worst = Candidates(proof.s[:, None], proof.u[None], np.array([proof.value]))
    violating = found.take(
        np.flatnonzero(found.values > problem.beta * (1 + 1e-3 * options.tol))[:_NEWCOMERS]
    )
    joined = neurons.joined(problem, worst).joined(problem, violating).merged(problem)
    accuracy = (options.tol * problem.beta) ** 2 / (2 * neurons.objective)
    S, R = solve_over_arrangements(
        problem, joined.patterns, joined.U, joined.S, tol=float(np.clip(accuracy, 1e-13, 1e-6))
    )
    return joined.solved(problem, S, R, _NEGLIGIBLE)
