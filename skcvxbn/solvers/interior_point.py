"""Program (P) over few neurons, to high accuracy: a primal-dual interior point method.

Every neuron has a fixed arrangement ``D_j`` and a fixed unit output direction ``u_j``:

    minimise  L( sum_j D_j A s_j u_j^T + e b^T ) + beta * sum_j ||s_j||   s.t.  G_j s_j >= 0 ,

``G_j = (2 D_j - I) A``. With slacks ``G_j s_j = z_j >= 0``, multipliers ``mu_j >= 0`` and a dual variable
``||w_j|| <= 1`` for each norm, the perturbed optimality conditions are ``z * mu = tau`` and
``w_j (||s_j||^2 + theta^2)^(1/2) = s_j``. Linearising the second as it stands (and not the norm) keeps
Newton's method fast while neurons vanish (Chan, Golub and Mulet, 1999). The loss adds conditions of its own
(`loss_terms`).

A step is Mehrotra's predictor and corrector, then Gondzio's centrality correctors (1996): with as many
constraints as rows times neurons a few products always stray and cut steps short, and one more solution with
the factors at hand costs far less than one more factorisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.loss_terms import LossTerm, TermMove, loss_term
from skcvxbn.solvers.newton_system import FactorisedSystem, NewtonSystem, work_of_system

_TO_BOUNDARY = 0.995
# Centrality correctors: how many, how much longer a step each aims at, and how much longer it must be.
_CORRECTORS, _AIM, _LEAST_GAIN = 3, 0.3, 0.01
# Products of slack and multiplier outside this band around their target are drawn to its edges.
_BAND = 10.0
# Accuracy of the Newton directions, in shares of the gap and between these limits.
_SOLVE_ACCURACY, _LEAST_ACCURATE, _MOST_ACCURATE = 1e-3, 1e-4, 1e-10
# Curvature added in all directions, next to F^T F with blocks of norm at most one: along a neuron the norm is
# linear, and without it the inverse of a block overflows what the solution of the system can cancel.
_PROXIMAL = 1e-7
# Blocks are assembled with tables of about this many numbers.
_TABLE_ENTRIES = 2**20


@dataclass
class _Point:
    """Iterate: neurons, slacks and multipliers of the cone constraints, dual variables of the norms, loss."""

    S: NDArray
    slack: NDArray
    multiplier: NDArray
    W: NDArray
    term: LossTerm

    def moved(self, system: NewtonSystem, move: _Move, primal: float, dual: float) -> _Point:
        S, W = self.S + primal * move.S, self.W + dual * move.W
        return _Point(
            S,
            self.slack + primal * move.slack,
            self.multiplier + dual * move.multiplier,
            W / np.maximum(np.linalg.norm(W, axis=0), 1),
            self.term.moved(system.fit(S), move.term, primal, dual),
        )


@dataclass
class _Move:
    """Direction of a step."""

    S: NDArray
    slack: NDArray
    multiplier: NDArray
    W: NDArray
    term: TermMove


def work_per_step(problem: Problem, n_neurons: int) -> float:
    """Multiplications of one interior point step, roughly."""
    n_samples, rank = problem.A.shape
    assembled = 0.5 * n_samples * rank**2 * n_neurons + 10.0 * rank**3 * n_neurons
    return assembled + work_of_system(problem, n_neurons)


def solve_over_arrangements(
    problem: Problem,
    patterns: NDArray,
    U: NDArray,
    S: NDArray,
    *,
    tol: float,
    max_iter: int = 60,
) -> tuple[NDArray, NDArray]:
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
    S : ndarray of shape (rank + 1, n_neurons)
        The neurons; those the optimum does without are of negligible size.
    R : ndarray of shape (n_samples, n_outputs)
        The dual point: of the loss' domain and orthogonal to the bias.
    """
    D = patterns.astype(problem.A.dtype)
    sign = 2 * D - 1
    system = NewtonSystem(problem, D, U)
    point = _starting_point(problem, system, sign, S)
    for _ in range(max_iter):
        norms = np.linalg.norm(point.S, axis=0)
        infeasibility = sign * (problem.A @ point.S) - point.slack
        products = _products(point.slack, point.multiplier, point.term.slack, point.term.multiplier)
        complementarity = float(products.sum())
        gap = complementarity + point.term.infeasibility
        gap += problem.beta * float((norms - (point.W * point.S).sum(axis=0)).sum())
        value = point.term.value + problem.beta * float(norms.sum())
        if gap <= tol * value and np.linalg.norm(infeasibility, axis=0).max() <= tol * norms.max():
            break
        theta = 0.1 * complementarity / (problem.beta * sign.shape[1])
        smooth = np.sqrt(norms**2 + theta**2)
        try:
            factor = FactorisedSystem(system, point.term.curvature, _blocks(problem, point, smooth))
        except np.linalg.LinAlgError:
            # Slacks and multipliers have reached the limits of floating point: no step is left to take.
            break
        accuracy = float(np.clip(_SOLVE_ACCURACY * gap / value, _MOST_ACCURATE, _LEAST_ACCURATE))
        step = _Linearised(system, sign, point, norms, infeasibility, factor, accuracy)
        point = point.moved(system, *_newton_step(step, complementarity / products.size, theta))
    return point.S, problem.feasible(point.term.R)


def _products(slack: NDArray, multiplier: NDArray, of_slack: NDArray, of_multiplier: NDArray) -> NDArray:
    """Products of slacks and multipliers, those of the cones before those of the loss."""
    return np.concatenate([(slack * multiplier).ravel(), of_slack * of_multiplier])


@dataclass(frozen=True)
class _Linearised:
    """The optimality conditions at a point, up to the right-hand sides that the step chooses."""

    system: NewtonSystem
    sign: NDArray
    point: _Point
    norms: NDArray
    infeasibility: NDArray
    factor: FactorisedSystem
    accuracy: float

    def direction(self, products: NDArray, theta: float) -> _Move:
        """Newton direction towards ``slack * multiplier = products`` to first order."""
        system, point, term = self.system, self.point, self.point.term
        A, beta = system.A, system.problem.beta
        of_cones = products[: point.slack.size].reshape(point.slack.shape)
        of_loss = products[point.slack.size :]
        smooth = np.sqrt(self.norms**2 + theta**2)
        ratio = point.multiplier / point.slack
        multiplier = of_cones / point.slack - ratio * self.infeasibility
        pull = term.pull(of_loss)
        rhs = A.T @ (self.sign * multiplier) + self.factor.descent(pull) - beta * point.S / smooth
        dS = self.factor.solve(rhs, self.accuracy)
        moved = self.sign * (A @ dS)
        along = (point.S * dS).sum(axis=0) / smooth**2
        dW = (point.S + dS) / smooth - point.W * (1 + along)
        dF = system.fit(dS)
        bias = self.factor.best_bias(pull - term.curvature @ dF)
        dF += np.outer(A[:, -1], bias)
        return _Move(
            dS,
            moved + self.infeasibility,
            multiplier - point.multiplier - ratio * moved,
            dW,
            term.move(dF, bias, of_loss),
        )

    def lengths(self, move: _Move) -> tuple[float, float]:
        """Largest primal and dual steps, at most one, that keep the point inside by a margin."""
        point, term = self.point, self.point.term
        primal = min(_step_length(point.slack, move.slack), _step_length(term.slack, move.term.slack))
        dual = _step_length(point.multiplier, move.multiplier)
        dual = min(dual, _step_length(term.multiplier, move.term.multiplier))
        return min(primal, term.trusted(move.term)), dual

    def products(self, move: _Move, primal: float, dual: float) -> NDArray:
        """Products of slacks and multipliers after steps of these lengths."""
        point, term = self.point, self.point.term
        return _products(
            point.slack + primal * move.slack,
            point.multiplier + dual * move.multiplier,
            term.slack + primal * move.term.slack,
            term.multiplier + dual * move.term.multiplier,
        )


def _newton_step(step: _Linearised, centrality: float, theta: float) -> tuple[_Move, float, float]:
    """Direction, primal and dual length of the next step."""
    point = step.point
    predictor = step.direction(np.zeros(point.slack.size + point.term.slack.size), theta)
    reached = float(step.products(predictor, *step.lengths(predictor)).mean())
    centring = (reached / centrality) ** 3
    tau, theta = centring * centrality, theta * max(centring, 0.1)
    products = tau - _products(
        predictor.slack, predictor.multiplier, predictor.term.slack, predictor.term.multiplier
    )
    move = step.direction(products, theta)
    primal, dual = step.lengths(move)
    for _ in range(_CORRECTORS):
        trial = step.products(move, min(1.0, primal + _AIM), min(1.0, dual + _AIM))
        # Products far too large are drawn in by a bounded amount: they would bend the direction most.
        products = products + np.maximum(np.clip(trial, tau / _BAND, tau * _BAND) - trial, -_BAND * tau)
        corrected = step.direction(products, theta)
        corrected_primal, corrected_dual = step.lengths(corrected)
        if corrected_primal + corrected_dual < primal + dual + _LEAST_GAIN:
            break
        move, primal, dual = corrected, corrected_primal, corrected_dual
    return move, primal, dual


def _starting_point(problem: Problem, system: NewtonSystem, sign: NDArray, S: NDArray) -> _Point:
    n_samples = len(sign)
    typical = max(float(np.linalg.norm(S, axis=0).max()), 1e-3 * float(np.linalg.norm(problem.zero.R)))
    slack = np.maximum(sign * (problem.A @ S), 0.1 * typical / np.sqrt(n_samples))
    multiplier = np.full(sign.shape, problem.beta / np.sqrt(n_samples), dtype=S.dtype)
    return _Point(S, slack, multiplier, np.zeros_like(S), loss_term(problem, system.fit(S)))


def _blocks(problem: Problem, point: _Point, smooth: NDArray) -> NDArray:
    """Diagonal blocks of the Newton matrix: cone constraints and norms."""
    blocks = _weighted_grams(problem.A, point.multiplier / point.slack)
    outer = point.W.T[:, :, None] * point.S.T[:, None, :]
    blocks -= (problem.beta / (2 * smooth**2))[:, None, None] * (outer + outer.transpose(0, 2, 1))
    diagonal = np.arange(blocks.shape[1])
    blocks[:, diagonal, diagonal] += (problem.beta / smooth)[:, None] + _PROXIMAL
    # The relative shift only guards the factorisation against rounding.
    blocks[:, diagonal, diagonal] *= 1 + 1e-12
    return blocks


def _weighted_grams(A: NDArray, weights: NDArray) -> NDArray:
    """``A^T diag(c_j) A`` for every column ``c_j``."""
    first, second = np.triu_indices(A.shape[1])
    packed = np.zeros((weights.shape[1], len(first)), dtype=A.dtype)
    size = max(1, _TABLE_ENTRIES // len(first))
    for start in range(0, len(A), size):
        rows = A[start : start + size]
        packed += weights[start : start + size].T @ (rows[:, first] * rows[:, second])
    grams = np.empty((weights.shape[1], A.shape[1], A.shape[1]), dtype=A.dtype)
    grams[:, first, second] = grams[:, second, first] = packed
    return grams


def _step_length(x: NDArray, dx: NDArray) -> float:
    """Largest step, at most one, that keeps `x` positive by a margin."""
    shrink = float((-dx / x).max(initial=0.0))
    return min(1.0, _TO_BOUNDARY / shrink) if shrink > 0 else 1.0
