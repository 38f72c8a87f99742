"""Program (P) over a given set of arrangements: a working set of neurons, the others priced out.

At the optimum most arrangements carry no neuron. The interior point method solves the program over the
few that do; the others are priced by their dual constraints ``u^T R^T D_i A s <= beta`` over unit ``u`` and
unit ``s`` with ``G_i s >= 0``. For one output direction the left side is at most the length of the
projection of ``A^T D_i R u`` on the cone,

    min || A^T D_i R u + G_i^T mu ||   over  mu >= 0 .

Every ``mu >= 0`` bounds it from above, so most arrangements are dismissed at little cost, and those that
remain are projected exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from skcvxbn.solvers.base import Options, Problem, Solution, balanced, without_negligible
from skcvxbn.solvers.interior_point import solve_over_arrangements

# Arrangements are priced in blocks of about this many entries, to bound the memory taken.
_BLOCK_ENTRIES = 2**22
_BOUNDING_STEPS = 30
_ALTERNATIONS = 30


@dataclass(frozen=True)
class _Blocks:
    """Neurons of given arrangements: directions, unit outputs, column of the arrangement, dual value."""

    S: NDArray
    U: NDArray
    owner: NDArray
    values: NDArray

    def take(self, which: NDArray) -> _Blocks:
        return _Blocks(self.S[:, which], self.U[which], self.owner[which], self.values[which])


def solve_fixed_arrangements(
    problem: Problem, options: Options, patterns: NDArray, *, complete: bool = False
) -> Solution:
    """Solve program (P) of Theorem 2.2 or, for several outputs, that of Theorem 2.3.

    Parameters
    ----------
    problem : Problem
        The training problem.
    options : Options
        Tolerance and limits.
    patterns : ndarray of bool, shape (n_samples, n_arrangements)
        The arrangements.
    complete : bool
        Whether they are all arrangements, so that the optimum is that of the network (N).

    Returns
    -------
    Solution
        For one output the lower bound is rigorous, and the certificate "restricted", or "exact" when the
        set is complete. For several outputs the dual constraint of an arrangement is not convex in the
        output direction, which is searched by alternation: the certificate is "estimated".
    """
    several = problem.Y.shape[1] > 1
    network = _Blocks(
        np.zeros((problem.A.shape[1], 0)), np.zeros((0, problem.Y.shape[1])), np.zeros(0, int), np.zeros(0)
    )
    objective, lower_bound, n_iter, message = np.inf, -np.inf, 0, "the limit of rounds was reached"
    for n_iter in range(1, options.max_iter + 1):
        network = _solve_working_set(problem, options, patterns, network)
        R = problem.residual(network.S, network.U)
        objective = problem.objective(network.S, network.U)
        priced = _price(problem, patterns, R, several)
        lower_bound = max(lower_bound, problem.dual_bound(R, float(priced.values.max(initial=0.0))))
        gap = (objective - lower_bound) / objective
        if options.verbose:
            print(
                f"round {n_iter:3d}  objective {objective:.8e}  gap {gap:.1e}  neurons {len(network.U)}",
                flush=True,
            )
        entering = priced.take(np.flatnonzero(priced.values > problem.beta * (1 + 1e-9)))
        if gap <= options.tol or len(entering.values) == 0:
            message = ""
            break
        if n_iter < options.max_iter:
            network = _join(network, entering)
    S, V = balanced(network.S, network.U)
    certificate = "estimated" if several else ("exact" if complete else "restricted")
    lower_bound = min(lower_bound, objective)
    converged = objective - lower_bound <= options.tol * objective
    return Solution(S, V, objective, lower_bound, certificate, n_iter, converged, message)


def _solve_working_set(problem: Problem, options: Options, patterns: NDArray, network: _Blocks) -> _Blocks:
    if len(network.U) == 0:
        return network
    S = solve_over_arrangements(
        problem,
        patterns[:, network.owner],
        network.U,
        network.S,
        tol=min(1e-3 * options.tol, 1e-8),
        max_iter=80,
    )
    network = _Blocks(S, network.U, network.owner, network.values)
    return network.take(without_negligible(S, network.U, 1e-7))


def _join(network: _Blocks, entering: _Blocks) -> _Blocks:
    """Let the most violated constraints in, no more at once than double the working set."""
    entering = entering.take(np.argsort(-entering.values, kind="stable")[: max(40, len(network.U))])
    size = 1e-2 * np.linalg.norm(network.S, axis=0).mean() if len(network.U) else 1e-2
    return _Blocks(
        np.hstack([network.S, size * entering.S]),
        np.vstack([network.U, entering.U]),
        np.concatenate([network.owner, entering.owner]),
        np.concatenate([network.values, entering.values]),
    )


def _price(problem: Problem, patterns: NDArray, R: NDArray, several: bool) -> _Blocks:
    """Dual values of all arrangements whose constraint is not slack for certain."""
    size = max(1, _BLOCK_ENTRIES // len(patterns))
    parts = []
    for first in range(0, patterns.shape[1], size):
        D = patterns[:, first : first + size]
        part = _price_directions(problem, D, R) if several else _price_signs(problem, D, R)
        parts.append(_Blocks(part.S, part.U, part.owner + first, part.values))
    return _Blocks(
        np.hstack([part.S for part in parts]),
        np.vstack([part.U for part in parts]),
        np.concatenate([part.owner for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


def _price_signs(problem: Problem, D: NDArray, R: NDArray) -> _Blocks:
    """One output: both signs of the output weight, exactly."""
    gradients = problem.A.T @ (D * R)
    owner = np.tile(np.arange(D.shape[1]), 2)
    targets = np.hstack([gradients, -gradients])
    signs = np.repeat([[1.0], [-1.0]], D.shape[1], axis=0)
    slack_for_certain = np.linalg.norm(targets, axis=0) <= problem.beta
    owner, targets, signs = (
        owner[~slack_for_certain],
        targets[:, ~slack_for_certain],
        signs[~slack_for_certain],
    )
    orientation = 2.0 * D[:, owner] - 1
    S = _project_on_cones(problem.A, orientation, targets, np.zeros_like(orientation), _BOUNDING_STEPS)[0]
    values = np.linalg.norm(S, axis=0)
    for j in np.flatnonzero(values > problem.beta):
        S[:, j] = _project_exactly(problem.A * orientation[:, j, None], targets[:, j])
        values[j] = np.linalg.norm(S[:, j])
    return _Blocks(S / np.where(values > 0, values, 1.0), signs, owner, values)


def _price_directions(problem: Problem, D: NDArray, R: NDArray) -> _Blocks:
    """Several outputs: alternate between the neuron and its output direction, from singular vectors."""
    A, n_outputs = problem.A, R.shape[1]
    M = np.stack([A.T @ (D * R[:, [c]]) for c in range(n_outputs)], axis=-1).transpose(1, 0, 2)
    _, spectral, right = np.linalg.svd(M, full_matrices=False)
    candidates = np.flatnonzero(spectral[:, 0] > problem.beta)
    n_starts = min(2, right.shape[1])
    starts = right[candidates, :n_starts].reshape(-1, n_outputs)
    U = np.vstack([starts, -starts])
    owner = np.tile(np.repeat(candidates, n_starts), 2)
    orientation = 2.0 * D[:, owner] - 1
    multipliers = np.zeros_like(orientation)
    S = np.zeros((A.shape[1], len(owner)))
    for _ in range(_ALTERNATIONS):
        targets = np.einsum("jqc,jc->qj", M[owner], U)
        S, multipliers = _project_on_cones(A, orientation, targets, multipliers, 10)
        U = np.einsum("jqc,qj->jc", M[owner], S)
        U /= np.maximum(np.linalg.norm(U, axis=1, keepdims=True), np.finfo(float).tiny)
    targets = np.einsum("jqc,jc->qj", M[owner], U)
    values = np.zeros(len(owner))
    for j in range(len(owner)):
        S[:, j] = _project_exactly(A * orientation[:, j, None], targets[:, j])
        values[j] = np.linalg.norm(S[:, j])
    return _Blocks(S / np.where(values > 0, values, 1.0), U, owner, values)


def _project_on_cones(
    A: NDArray, orientation: NDArray, targets: NDArray, multipliers: NDArray, n_steps: int
) -> tuple[NDArray, NDArray]:
    """Approximate projections of the columns of `targets`, too long but never too short."""
    extrapolated, momentum = multipliers, 1.0
    for _ in range(n_steps):
        step = orientation * (A @ (targets + A.T @ (orientation * extrapolated)))
        new = np.maximum(extrapolated - step, 0)
        new_momentum = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        extrapolated = new + (momentum - 1) / new_momentum * (new - multipliers)
        multipliers, momentum = new, new_momentum
    return targets + A.T @ (orientation * multipliers), multipliers


def _project_exactly(cone: NDArray, target: NDArray) -> NDArray:
    """Projection of `target` on ``{s : cone @ s >= 0}``, by nonnegative least squares on its polar."""
    try:
        multipliers = optimize.nnls(-cone.T, target)[0]
    except RuntimeError:
        # The active-set method of older SciPy can cycle.
        multipliers = optimize.lsq_linear(-cone.T, target, (0, np.inf), method="bvls").x
    return target + cone.T @ multipliers
