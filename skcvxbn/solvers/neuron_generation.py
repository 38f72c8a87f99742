"""Global optimality over all arrangements by generating neurons (the default solver).

The dual of the training problem has one constraint for every neuron, ``||R^T (A s)_+|| <= beta`` for all
unit ``s``. A wide network is first trained by descent. Then, in rounds, the few neurons it needs are
solved for exactly, the residual is searched for violated constraints, and the neurons that violate them
join. The largest value the search finds turns the residual into a dual point, whose value bounds the
optimum from below: this is the gap that is reported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from skcvxbn.solvers.base import Options, Problem, Solution, balanced, without_negligible
from skcvxbn.solvers.descent import descend, random_network
from skcvxbn.solvers.interior_point import solve_over_arrangements, work_per_step
from skcvxbn.solvers.search import (
    QUICK,
    THOROUGH,
    Candidates,
    affordable_starts,
    random_starts,
    search,
)

# Multiplications an interior point step may cost before descent is the cheaper way to progress.
_AFFORDABLE = 4e9
_QUICK_STARTS = 128
# Batches of random starts, at most, behind the bound that is reported.
_BATCHES = 3
# Maxima that even a thorough search misses are narrow and exceed those found by a little: some of the
# tolerance is kept for them.
_MARGIN = 0.5
_DESCENT_STEPS = 40
# Neurons of the first network, and how many join in a round.
_LEAST_WIDTH, _LARGEST_WIDTH, _NEWCOMERS = 128, 256, 96
# Above this gap a round begins with descent.
_COARSE = 1e-2
# Rounds that lower the objective by a smaller share than this are standing still: exact rounds go on while
# that is some of the tolerance; descent, which cannot reach it, only while it pays.
_STANDSTILL, _DESCENT_STANDSTILL = 0.03, 1e-2


@dataclass(frozen=True)
class _Network:
    """Neurons ``(A s_j)_+ u_j^T`` with unit ``u_j``, and the arrangement each is solved for in."""

    S: NDArray
    U: NDArray
    patterns: NDArray
    objective: float = np.inf

    def __len__(self) -> int:
        return len(self.U)

    def take(self, which: NDArray) -> _Network:
        return _Network(self.S[:, which], self.U[which], self.patterns[:, which])


def generate_neurons(
    problem: Problem, options: Options, start: tuple[NDArray, NDArray] | None = None
) -> Solution:
    """Solve problem (N) over all arrangements.

    Parameters
    ----------
    problem : Problem
        The training problem.
    options : Options
        Tolerance, limits and the source of randomness.
    start : tuple of ndarray, optional
        Hidden directions and output weights of a network to improve on.

    Returns
    -------
    Solution
        Certificate "estimated": the lower bound holds if the final search found the largest violation.
    """
    network = best = _first_network(problem, options, start)
    found = Candidates(network.S[:, :0], network.U[:0], np.zeros(0))
    gap, n_iter, standing_still, message = np.inf, 0, 0, "max_iter was reached"
    # A bound holds for every network: the best dual point need not belong to the best network.
    dual_point, dual_network, dual_bound = problem.target, network, 0.0
    # With several outputs a round may well fail to improve, for its descent leaves the kinks.
    patience = 3 if problem.Y.shape[1] == 1 else 8
    try:
        for n_iter in range(1, options.max_iter + 1):
            if n_iter > 1 or _is_affordable(problem, network):
                network = _refined(problem, network, options, gap)
            exact = _is_affordable(problem, network)
            least = _STANDSTILL * options.tol if exact else max(options.tol, _DESCENT_STANDSTILL)
            standing_still = standing_still + 1 if network.objective > (1 - least) * best.objective else 0
            if network.objective < best.objective:
                best = network
            R = problem.residual(network.S, network.U)
            found = _search(problem, R, network, found, options, thorough=exact and standing_still > 0)
            gap = _gap(problem, network, R, found, options)
            bound = _bound(problem, R, found, options)
            if bound > dual_bound:
                dual_point, dual_network, dual_bound = R, network, bound
            if options.verbose:
                print(
                    f"round {n_iter:3d}  objective {network.objective:.8e}  gap {gap:.1e}"
                    f"  neurons {len(network)}",
                    flush=True,
                )
            if gap <= options.tol:
                found = _confirmed(problem, R, network, found, options)
                gap = _gap(problem, network, R, found, options)
                if gap <= options.tol:
                    best, message, dual_bound = network, "", _bound(problem, R, found, options)
                    break
            if standing_still >= (patience if exact else 1):
                message = "the objective stands still"
                break
            if n_iter < options.max_iter:
                network = _joined(problem, network, found, options)
        lower_bound = dual_bound
        if message and exact:
            found = _confirmed(problem, dual_point, dual_network, found, options)
            lower_bound = _bound(problem, dual_point, found, options)
    except KeyboardInterrupt:
        message, lower_bound = "interrupted", 0.0
    S, V = balanced(best.S, best.U)
    objective = problem.objective(S, V)
    idle = 0.5 * float(np.vdot(problem.target, problem.target))
    if objective > (1 - 1e-9) * idle:
        # From beta_max on no neuron pays; what is left of them is the accuracy of the solver.
        S, V, objective = S[:, :0], V[:0], idle
    # The bound can only exceed the objective by what the solver left undone.
    lower_bound = min(lower_bound, objective)
    converged = objective - lower_bound <= options.tol * objective
    return Solution(S, V, objective, lower_bound, "estimated", n_iter, converged, message)


def _bound(problem: Problem, R: NDArray, found: Candidates, options: Options) -> float:
    """Lower bound of the optimum if no neuron violates more than those found, by more than a margin."""
    return problem.dual_bound(R, found.largest * (1 + _MARGIN * options.tol))


def _gap(problem: Problem, network: _Network, R: NDArray, found: Candidates, options: Options) -> float:
    return (network.objective - _bound(problem, R, found, options)) / network.objective


def _first_network(problem: Problem, options: Options, start: tuple[NDArray, NDArray] | None) -> _Network:
    if start is None:
        n_neurons = int(np.clip(2 * (problem.A.shape[1] + problem.Y.shape[1]), _LEAST_WIDTH, _LARGEST_WIDTH))
        if options.max_neurons is not None:
            n_neurons = min(n_neurons, options.max_neurons)
        start = random_network(problem, n_neurons, options.rng)
    network = _descended(problem, *start, n_steps=2 * _DESCENT_STEPS, tol=3e-3)
    if options.max_neurons is not None and len(network) > options.max_neurons:
        network = _narrowed(problem, network, options.max_neurons)
    return network


def _descended(problem: Problem, S: NDArray, V: NDArray, n_steps: int, tol: float) -> _Network:
    S, V = descend(problem, S, V, n_steps=n_steps, tol=tol)
    alive = without_negligible(S, V, 1e-4)
    S, V = S[:, alive], V[alive]
    norms = np.linalg.norm(V, axis=1)
    S, U = S * norms, V / norms[:, None]
    return _Network(S, U, problem.A @ S > 0, problem.objective(S, U))


def _is_affordable(problem: Problem, network: _Network) -> bool:
    return work_per_step(problem, len(network)) <= _AFFORDABLE


def _refined(problem: Problem, network: _Network, options: Options, gap: float) -> _Network:
    """Solve for the neurons at hand: exactly where that is affordable, else by descent."""
    affordable = _is_affordable(problem, network)
    if options.max_neurons is not None and len(network) > options.max_neurons:
        network = _narrowed(problem, network, options.max_neurons)
    # Descent moves neurons across many arrangements at once and, with several outputs, turns their output
    # directions; the convex program does neither, but it alone gets past the kinks.
    if gap > _COARSE or problem.Y.shape[1] > 1 or not affordable:
        network = _descended(problem, network.S, network.U, _DESCENT_STEPS, 0.01 * options.tol)
    if len(network) and affordable:
        # An objective accurate to e leaves an error of sqrt(2 e) in the residual, to be small next to beta.
        relative = max(options.tol, 0.3 * min(gap, 0.3))
        accuracy = (relative * problem.beta) ** 2 / (2 * network.objective)
        S = solve_over_arrangements(
            problem,
            network.patterns,
            network.U,
            network.S,
            tol=float(np.clip(accuracy, 1e-13, 1e-5)),
        )
        network = _merged(replace(network, S=S).take(without_negligible(S, network.U, 1e-5)))
    return replace(network, objective=problem.objective(network.S, network.U))


def _merged(network: _Network) -> _Network:
    """Add up neurons of the same arrangement and output direction, which never costs more."""
    keys = [_key(p, u) for p, u in zip(network.patterns.T, network.U, strict=True)]
    first: dict[tuple[bytes, bytes], int] = {}
    groups = np.array([first.setdefault(key, len(first)) for key in keys], dtype=int)
    if len(first) == len(keys):
        return network
    S = np.zeros((len(network.S), len(first)), dtype=network.S.dtype)
    np.add.at(S.T, groups, network.S.T)
    representative = np.unique(groups, return_index=True)[1]
    return replace(network.take(representative), S=S)


def _narrowed(problem: Problem, network: _Network, max_neurons: int) -> _Network:
    """Descend with the newcomers, then keep the largest neurons."""
    network = _descended(problem, network.S, network.U, 2 * _DESCENT_STEPS, 0.0)
    largest = np.argsort(-np.linalg.norm(network.S, axis=0), kind="stable")[:max_neurons]
    network = network.take(np.sort(largest))
    return _descended(problem, network.S, network.U, 2 * _DESCENT_STEPS, 0.0)


def _search(
    problem: Problem, R: NDArray, network: _Network, found: Candidates, options: Options, *, thorough: bool
) -> Candidates:
    """Climb from random points and from the most violated of the neurons and of what was last found."""
    stages = THOROUGH if thorough else QUICK
    n_starts = min(options.search_starts if thorough else _QUICK_STARTS, affordable_starts(problem.A, stages))
    S, U = np.hstack([network.S, found.S]), np.vstack([network.U, found.U])
    lengths = np.maximum(np.linalg.norm(S, axis=0), np.finfo(S.dtype).tiny)
    values = np.linalg.norm(problem.hidden(S).T @ R, axis=1) / lengths
    largest = np.argsort(-values, kind="stable")[:n_starts]
    random_S, random_U = random_starts(problem.A.shape[1], problem.Y.shape[1], n_starts, options.rng)
    S = np.hstack([S[:, largest], random_S]).astype(problem.A.dtype)
    U = np.vstack([U[largest], random_U]).astype(problem.A.dtype)
    return search(problem.A, R, S, U, stages=stages)


def _confirmed(
    problem: Problem, R: NDArray, network: _Network, found: Candidates, options: Options
) -> Candidates:
    """Search from fresh points until a batch of them no longer raises the largest value."""
    largest = 0.0
    for _ in range(_BATCHES):
        found = _search(problem, R, network, found, options, thorough=True)
        if found.largest <= largest * (1 + 1e-3 * options.tol):
            break
        largest = found.largest
    return found


def _joined(problem: Problem, network: _Network, found: Candidates, options: Options) -> _Network:
    """Add the violating neurons whose arrangement and output direction are new."""
    violating = np.flatnonzero(found.values > problem.beta * (1 + 1e-3 * options.tol))
    # Descent improves the neurons it has at the same time, and pays for every newcomer in each step.
    exact = _is_affordable(problem, network)
    n_new = max(_NEWCOMERS, len(network) // 2) if exact else max(16, len(network) // 10)
    chosen = found.take(violating[:n_new])
    # A maximiser lies on hyperplanes, where the sign of a_k^T s is rounding.
    patterns = problem.A @ chosen.S > 1e-9
    known = {_key(p, u) for p, u in zip(network.patterns.T, network.U, strict=True)}
    new = [j for j in range(len(chosen.values)) if _key(patterns[:, j], chosen.U[j]) not in known]
    size = 1e-2 * np.linalg.norm(network.S, axis=0).mean() if len(network) else 1e-2
    return _Network(
        np.hstack([network.S, size * chosen.S[:, new]]),
        np.vstack([network.U, chosen.U[new]]),
        np.hstack([network.patterns, patterns[:, new]]),
        network.objective,
    )


def _key(pattern: NDArray, direction: NDArray) -> tuple[bytes, bytes]:
    return np.packbits(pattern).tobytes(), np.round(direction, 3).tobytes()
