"""Program (P) over few neurons, to high accuracy: a primal-dual interior point method.

Every neuron has a fixed arrangement ``D_j`` and a fixed unit output direction ``u_j``:

    minimise  1/2 || sum_j D_j A s_j u_j^T - Y ||_F^2 + beta * sum_j ||s_j||   s.t.  G_j s_j >= 0 ,

``G_j = (2 D_j - I) A``. With slacks ``G_j s_j = z_j >= 0``, multipliers ``mu_j >= 0`` and a dual variable
``||w_j|| <= 1`` for each norm, the perturbed optimality conditions are ``z * mu = tau`` and
``w_j (||s_j||^2 + theta^2)^(1/2) = s_j``. Linearising the second as it stands (and not the norm) keeps
Newton's method fast while neurons vanish (Chan, Golub and Mulet, 1999).

The Newton matrix is ``F^T F + B``: the first part does not change from step to step and is assembled
once, the second is block diagonal, one block of order ``rank + 1`` a neuron. Where the rows are fewer than
the unknowns (one output), it is solved on the side of the rows: with ``B_j = L_j L_j^T`` and
``W = F L^-T`` through ``I + W W^T``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from skcvxbn.solvers.base import Problem

_TO_BOUNDARY = 0.995
# Entries of a table that is kept for all steps.
_LARGEST_TABLE = 2**23


@dataclass
class _Point:
    """Iterate: neurons, slacks, multipliers of the cone constraints, dual variables of the norms."""

    S: NDArray
    slack: NDArray
    multiplier: NDArray
    W: NDArray


def work_per_step(problem: Problem, n_neurons: int) -> float:
    """Multiplications of one interior point step, roughly."""
    n_samples, rank = problem.A.shape
    unknowns = rank * n_neurons
    assembled = n_samples * unknowns * rank
    if _by_rows(problem, unknowns):
        return float(n_samples) ** 2 * unknowns / 2 + float(n_samples) ** 3 / 6 + assembled
    return float(unknowns) ** 3 / 6 + assembled


def _by_rows(problem: Problem, unknowns: int) -> bool:
    # The side of the rows pays for a product of matrices in each step, the other for the factor alone.
    return problem.Y.shape[1] == 1 and unknowns > 1.7 * len(problem.A)


def solve_over_arrangements(
    problem: Problem,
    patterns: NDArray,
    U: NDArray,
    S: NDArray,
    *,
    tol: float,
    max_iter: int = 60,
) -> NDArray:
    """Optimal hidden directions for fixed arrangements and fixed output directions.

    Parameters
    ----------
    problem : Problem
        The training problem.
    patterns : ndarray of bool, shape (n_samples, n_neurons)
        Arrangement of every neuron.
    U : ndarray of shape (n_neurons, n_outputs)
        Unit output direction of every neuron.
    S : ndarray of shape (rank + 1, n_neurons)
        A guess, which need not be feasible; its size sets the scale.
    tol : float
        Relative duality gap to reach.
    max_iter : int
        Largest number of Newton steps.

    Returns
    -------
    ndarray of shape (rank + 1, n_neurons)
        The neurons; those the optimum does without are of negligible size.
    """
    A, beta = problem.A, problem.beta
    D = patterns.astype(A.dtype)
    sign = 2 * D - 1
    n_samples, n_neurons = D.shape
    point = _starting_point(problem, sign, S)
    factorise = _rows_side(problem, D, U) if _by_rows(problem, S.size) else _columns_side(problem, D, U)
    assemble = _block_assembler(A)
    for _ in range(max_iter):
        norms = np.linalg.norm(point.S, axis=0)
        infeasibility = sign * (A @ point.S) - point.slack
        R = problem.target - problem.without_bias((D * (A @ point.S)) @ U)
        loss_gradient = -(A.T @ (D * (R @ U.T)))
        gap = np.vdot(point.slack, point.multiplier) + beta * (norms - (point.W * point.S).sum(axis=0)).sum()
        value = 0.5 * np.vdot(R, R) + beta * norms.sum()
        if gap <= tol * value and np.linalg.norm(infeasibility, axis=0).max() <= tol * norms.max():
            break
        centrality = float(np.vdot(point.slack, point.multiplier)) / (n_samples * n_neurons)
        theta = 0.1 * centrality * n_samples / beta
        try:
            newton = factorise(_blocks(assemble, beta, point, norms, theta))
        except linalg.LinAlgError:
            # Slacks and multipliers have reached the limits of floating point: no step is left to take.
            break

        def direction(
            tau: float,
            correction: NDArray | float,
            theta: float,
            point: _Point = point,
            gradient: NDArray = loss_gradient,
            infeasibility: NDArray = infeasibility,
            norms: NDArray = norms,
            newton: Callable[[NDArray], NDArray] = newton,
        ) -> _Point:
            smooth = np.sqrt(norms**2 + theta**2)
            multiplier = (tau - correction - point.multiplier * infeasibility) / point.slack
            dS = newton(A.T @ (sign * multiplier) - gradient - beta * point.S / smooth)
            moved = sign * (A @ dS)
            d_multiplier = multiplier - point.multiplier - point.multiplier / point.slack * moved
            along = (point.S * dS).sum(axis=0) / smooth**2
            dW = (point.S + dS) / smooth - point.W * (1 + along)
            return _Point(dS, moved + infeasibility, d_multiplier, dW)

        predictor = direction(0.0, 0.0, theta)
        primal = _step_length(point.slack, predictor.slack)
        dual = _step_length(point.multiplier, predictor.multiplier)
        reached = np.vdot(
            point.slack + primal * predictor.slack, point.multiplier + dual * predictor.multiplier
        ) / (n_samples * n_neurons)
        centring = float(reached / centrality) ** 3
        move = direction(
            centring * centrality, predictor.slack * predictor.multiplier, theta * max(centring, 0.1)
        )
        primal = _step_length(point.slack, move.slack)
        dual = _step_length(point.multiplier, move.multiplier)
        W = point.W + dual * move.W
        point = _Point(
            point.S + primal * move.S,
            point.slack + primal * move.slack,
            point.multiplier + dual * move.multiplier,
            W / np.maximum(np.linalg.norm(W, axis=0), 1),
        )
    return point.S


def _starting_point(problem: Problem, sign: NDArray, S: NDArray) -> _Point:
    n_samples = len(sign)
    typical = max(float(np.linalg.norm(S, axis=0).max()), 1e-3 * float(np.linalg.norm(problem.target)))
    floor = typical / np.sqrt(n_samples)
    slack = np.maximum(sign * (problem.A @ S), floor)
    multiplier = np.full(sign.shape, problem.beta / np.sqrt(n_samples), dtype=S.dtype)
    return _Point(S, slack, multiplier, np.zeros_like(S))


def _block_assembler(A: NDArray) -> Callable[[NDArray], NDArray]:
    """``A^T diag(c_j) A`` for every column ``c_j``."""
    n_samples, rank = A.shape
    first, second = np.triu_indices(rank)
    if n_samples * len(first) > _LARGEST_TABLE:
        return lambda stiffness: np.matmul(A.T[None] * stiffness.T[:, None, :], A)
    products = A[:, first] * A[:, second]

    def assemble(stiffness: NDArray) -> NDArray:
        blocks = np.empty((stiffness.shape[1], rank, rank), dtype=A.dtype)
        blocks[:, first, second] = blocks[:, second, first] = stiffness.T @ products
        return blocks

    return assemble


def _blocks(
    assemble: Callable[[NDArray], NDArray], beta: float, point: _Point, norms: NDArray, theta: float
) -> NDArray:
    """Diagonal blocks of the Newton matrix: cone constraints and norms."""
    smooth = np.sqrt(norms**2 + theta**2)
    blocks = assemble(point.multiplier / point.slack)
    outer = point.W.T[:, :, None] * point.S.T[:, None, :]
    blocks -= (beta / (2 * smooth**2))[:, None, None] * (outer + outer.transpose(0, 2, 1))
    diagonal = np.arange(blocks.shape[1])
    blocks[:, diagonal, diagonal] += (beta / smooth)[:, None]
    # The relative shift only guards the factorisation against rounding.
    blocks[:, diagonal, diagonal] *= 1 + 1e-12
    return blocks


_Newton = Callable[[NDArray], NDArray]


def _columns_side(problem: Problem, D: NDArray, U: NDArray) -> Callable[[NDArray], _Newton]:
    """Factorise ``F^T F + B`` as it stands."""
    A, n_neurons, rank = problem.A, D.shape[1], problem.A.shape[1]
    unknowns = n_neurons * rank
    gram = np.zeros((unknowns, unknowns), dtype=A.dtype)
    step = max(1, _LARGEST_TABLE // unknowns)
    for start in range(0, len(A), step):
        rows = slice(start, start + step)
        F = (D[rows, :, None] * A[rows, None, :]).reshape(-1, unknowns)
        gram += F.T @ F
    if problem.fit_intercept:
        reached = (A.T @ (D * A[:, -1:])).T.ravel()
        gram -= np.outer(reached, reached)
    gram = gram.reshape(n_neurons, rank, n_neurons, rank)
    gram *= (U @ U.T)[:, None, :, None]
    neurons = np.arange(n_neurons)

    def factorise(blocks: NDArray) -> _Newton:
        matrix = gram.copy()
        matrix[neurons, :, neurons, :] += blocks
        factor = linalg.cho_factor(
            matrix.reshape(unknowns, unknowns), lower=True, overwrite_a=True, check_finite=False
        )

        def newton(rhs: NDArray) -> NDArray:
            return linalg.cho_solve(factor, rhs.T.ravel(), check_finite=False).reshape(n_neurons, rank).T

        return newton

    return factorise


def _rows_side(problem: Problem, D: NDArray, U: NDArray) -> Callable[[NDArray], _Newton]:
    """One output: factorise ``I + W W^T``."""
    A, n_neurons, rank = problem.A, D.shape[1], problem.A.shape[1]

    def factorise(blocks: NDArray) -> _Newton:
        L_inverse = np.linalg.inv(np.linalg.cholesky(blocks))
        masked = np.matmul(A, L_inverse.transpose(0, 2, 1)) * (D * U[:, 0]).T[:, :, None]
        W = problem.without_bias(masked.transpose(1, 0, 2).reshape(len(A), n_neurons * rank))
        factor = linalg.cho_factor(_plus_identity(W @ W.T), lower=True, overwrite_a=True, check_finite=False)

        def newton(rhs: NDArray) -> NDArray:
            b = np.matmul(L_inverse, rhs.T[:, :, None]).ravel()
            b -= W.T @ linalg.cho_solve(factor, W @ b, check_finite=False)
            return np.matmul(L_inverse.transpose(0, 2, 1), b.reshape(n_neurons, rank, 1))[:, :, 0].T

        return newton

    return factorise


def _plus_identity(M: NDArray) -> NDArray:
    M.flat[:: len(M) + 1] += 1
    return M


def _step_length(x: NDArray, dx: NDArray) -> float:
    """Largest step, at most one, that keeps `x` positive by a margin."""
    shrink = float((-dx / x).max())
    return min(1.0, _TO_BOUNDARY / shrink) if shrink > 0 else 1.0
