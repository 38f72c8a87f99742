"""Program (P) over few neurons, to high accuracy: a primal-dual interior point method.

Every neuron has a fixed arrangement ``D_j`` and a fixed unit output direction ``u_j``:

    minimise  L( sum_j D_j A s_j u_j^T + e b^T ) + beta * sum_j ||s_j||   s.t.  G_j s_j >= 0 ,

``G_j = (2 D_j - I) A``. Slacks ``G_j s_j`` and multipliers ``mu_j`` are positive, and their products fall to
zero together with those of the norms (`norm_terms`) and of the loss (`loss_terms`). All equations of the dual
variables but those of a curved loss are linear: once met they stay met, so that the dual point is as good as
the gap says.

Only constraints that a neuron is near to are looked at (`cone_constraints`). If it has left the cone through
another one there are more of them the next time.

A step is Mehrotra's predictor and corrector, then Gondzio's centrality correctors (1996): with as many
constraints as rows times neurons a few products always stray and cut steps short, and one more solution with
the factors at hand costs far less than one more factorisation.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.cone_constraints import ConeConstraints
from skcvxbn.solvers.loss_terms import LossTerm, TermMove, loss_term
from skcvxbn.solvers.newton_system import FactorisedSystem, NewtonSystem
from skcvxbn.solvers.norm_terms import NormMove, NormTerm
from skcvxbn.solvers.preconditioned_system import factorised, work_of_system

_TO_BOUNDARY = 0.995
# Distance of the first point from its bounds, as a share of the largest neuron.
_INSIDE = 0.01
# Centrality correctors: how many, how much longer a step each aims at, and how much longer it must be.
_CORRECTORS, _AIM, _LEAST_GAIN = 3, 0.3, 0.01
# Products of slack and multiplier outside this band around their target are drawn to its edges.
_BAND = 10.0
# How much larger the products of the norms are kept: their cones bend, and cut steps short sooner.
_NORM_WEIGHT = 10.0
# The sum of all products that steps still aim at, as a share of the tolerance.
_LEAST_PRODUCTS = 0.1
# Accuracy of the Newton directions, in shares of the gap and between these limits.
_SOLVE_ACCURACY, _LEAST_ACCURATE, _MOST_ACCURATE = 1e-6, 1e-6, 1e-14
# The method ends when so many steps together lower the error by less: floating point has reached its limits.
_PATIENCE, _PROGRESS = 10, 0.9
# Curvature added in all directions, next to F^T F with blocks of norm at most one: along a neuron the norm is
# linear, and without it the inverse of a block overflows what the solution of the system can cancel.
_PROXIMAL = 1e-7
# Constraints of a neuron that are looked at: some for every direction, but no fewer than so many nor this
# share of all. Where they were not enough there are more of them the next time.
_PER_DIRECTION, _FEWEST, _SHARE, _MORE = 8, 200, 1 / 16, 4


@dataclass(frozen=True)
class _Point:
    """Iterate: slacks and multipliers of the cone constraints, norms with the neurons, loss."""

    slack: NDArray
    multiplier: NDArray
    norms: NormTerm
    term: LossTerm

    def products(self) -> NDArray:
        """Products that fall to zero: of cones and loss, then of norms."""
        term = self.term
        return np.concatenate([(self.slack * self.multiplier).ravel(), term.slack * term.multiplier])

    def moved(self, system: NewtonSystem, move: _Move, length: float) -> _Point:
        norms = self.norms.moved(move.norms, length)
        return _Point(
            self.slack + length * move.slack,
            self.multiplier + length * move.multiplier,
            norms,
            self.term.moved(system.fit(norms.S), move.term, length),
        )


@dataclass(frozen=True)
class _Move:
    """Direction of a step."""

    slack: NDArray
    multiplier: NDArray
    norms: NormMove
    term: TermMove

    def products(self) -> NDArray:
        """Products of the moves of slacks and multipliers."""
        return np.concatenate(
            [(self.slack * self.multiplier).ravel(), self.term.slack * self.term.multiplier]
        )


def work_per_step(problem: Problem, n_neurons: int) -> float:
    """Multiplications of one interior point step, roughly."""
    rank, n_constraints = problem.shape[1], _n_constraints(problem)
    assembled = n_constraints * rank**2 * n_neurons + 10.0 * rank**3 * n_neurons
    return assembled + work_of_system(problem, n_neurons)


def solve_over_arrangements(
    problem: Problem,
    patterns: NDArray,
    U: NDArray,
    S: NDArray,
    *,
    tol: float,
    max_iter: int = 60,
    deadline: float = math.inf,
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
        Largest number of Newton steps, anew whenever constraints join.
    deadline : float
        Value of ``time.monotonic()`` after which no step is begun.

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
    n_constraints, distance = _n_constraints(problem), _per_length(sign * (problem.A @ S), S)
    while True:
        cones = ConeConstraints(problem.A, sign, distance, n_constraints)
        start = _starting_point(system, cones, S)
        point, value = _solve(system, cones, start, tol, max_iter, deadline)
        S = point.norms.S
        margins = sign * (problem.A @ S)
        outside = np.linalg.norm(np.minimum(margins, 0), axis=0).max(initial=0.0)
        if n_constraints >= len(D) or outside * problem.beta <= tol * value or time.monotonic() >= deadline:
            return S, problem.feasible(point.term.R)
        distance = np.minimum(distance, _per_length(margins, S))
        n_constraints *= _MORE


def _n_constraints(problem: Problem) -> int:
    n_samples, rank = problem.shape
    return min(n_samples, max(_FEWEST, _PER_DIRECTION * rank, round(_SHARE * n_samples)))


def _per_length(margins: NDArray, S: NDArray) -> NDArray:
    """Margins of the neurons if they had length one."""
    lengths = np.linalg.norm(S, axis=0)
    return margins / np.where(lengths > 0, lengths, 1.0)


def _solve(
    system: NewtonSystem, cones: ConeConstraints, point: _Point, tol: float, max_iter: int, deadline: float
) -> tuple[_Point, float]:
    """Solve within the given constraints; the best point and the objective there."""
    best, value = point, math.inf
    least = reference = math.inf
    patience = _PATIENCE
    for _ in range(max_iter):
        state = _State.at(system, cones, point)
        patience -= 1
        if state.error < _PROGRESS * reference:
            # Many short steps are progress too.
            reference, patience = state.error, _PATIENCE
        if state.error < least:
            best, least, value = point, state.error, state.value
        if least <= tol or patience == 0 or time.monotonic() >= deadline:
            break
        accuracy = float(np.clip(_SOLVE_ACCURACY * state.gap, _MOST_ACCURATE, _LEAST_ACCURATE))
        # Products far below what is asked for are of no use, and near the limits of floating point.
        enough = _LEAST_PRODUCTS * tol * state.value
        try:
            factor = factorised(system, point.term.curvature, _blocks(cones, point))
            step = _Linearised(system, cones, point, state, factor, accuracy, enough)
            point = point.moved(system, *_newton_step(step))
        except np.linalg.LinAlgError:
            # Slacks and multipliers have reached the limits of floating point: no step is left to take.
            break
    return best, value


@dataclass(frozen=True)
class _State:
    """How far a point is from optimal."""

    products: NDArray
    outside: NDArray
    value: float
    gap: float
    error: float

    @classmethod
    def at(cls, system: NewtonSystem, cones: ConeConstraints, point: _Point) -> _State:
        norms, term, beta = point.norms, point.term, system.problem.beta
        outside = cones.margins(norms.S) - point.slack
        unbalanced = system.adjoint(term.R) + cones.adjoint(point.multiplier) - norms.Z
        products = point.products()
        value = term.value + beta * float(norms.lengths.sum())
        gap = (float(products.sum() + norms.products.sum()) + term.infeasibility) / value
        primal_error = float(np.linalg.norm(outside, axis=1).max()) * beta / value
        dual_error = float(np.linalg.norm(unbalanced, axis=0).max()) / beta
        # An error in the dual variables changes the objective by its square.
        return cls(products, outside, value, gap, max(gap, primal_error, dual_error**2))


@dataclass(frozen=True)
class _Linearised:
    """The optimality conditions at a point, up to the right-hand sides that the step chooses."""

    system: NewtonSystem
    cones: ConeConstraints
    point: _Point
    state: _State
    factor: FactorisedSystem
    accuracy: float
    enough: float

    def direction(self, products: NDArray, tau: float, correction: tuple[NDArray, NDArray]) -> _Move:
        """Newton direction towards these products of slacks and multipliers, and `tau` for the norms."""
        system, point, term, factor = self.system, self.point, self.point.term, self.factor
        of_cones = products[: point.slack.size].reshape(point.slack.shape)
        of_loss = products[point.slack.size :]
        ratio = point.multiplier / point.slack
        multiplier = of_cones / point.slack - ratio * self.state.outside
        push = term.push(of_loss)
        taken = factor.taken_by_bias(term.R + push)
        rhs = self.cones.adjoint(multiplier) + system.adjoint(term.R + push - taken)
        rhs -= point.norms.pull(tau, correction)
        dS, image, dF = factor.solve(rhs, self.accuracy)
        moved = self.cones.margins(dS)
        bias = factor.best_bias(term.R + push - term.curvature @ dF)
        dF = dF + np.outer(system.A[:, -1], bias)
        return _Move(
            moved + self.state.outside,
            multiplier - point.multiplier - ratio * moved,
            point.norms.move(dS, tau, correction),
            term.move(dF, bias, push - taken - image, of_loss),
        )

    def length(self, move: _Move) -> float:
        """Largest step, at most one, that keeps the point inside by a margin."""
        point, term = self.point, self.point.term
        return min(
            _step_length(point.slack, move.slack),
            _step_length(point.multiplier, move.multiplier),
            _step_length(term.slack, move.term.slack),
            _step_length(term.multiplier, move.term.multiplier),
            point.norms.step_length(move.norms),
            term.trusted(move.term),
        )

    def products(self, move: _Move, length: float) -> NDArray:
        """Products of slacks and multipliers after a step."""
        point, term = self.point, self.point.term
        of_cones = (point.slack + length * move.slack) * (point.multiplier + length * move.multiplier)
        of_loss = (term.slack + length * move.term.slack) * (term.multiplier + length * move.term.multiplier)
        return np.concatenate([of_cones.ravel(), of_loss])


def _newton_step(step: _Linearised) -> tuple[_Move, float]:
    """Direction and length of the next step."""
    norms, products = step.point.norms, step.state.products
    predictor = step.direction(np.zeros_like(products), 0.0, norms.no_correction())
    length = step.length(predictor)
    share = len(products) + _NORM_WEIGHT * len(norms.products)
    gap = float(products.sum() + norms.products.sum())
    left = float(step.products(predictor, length).sum())
    left += float(norms.moved(predictor.norms, length).products.sum())
    tau = max((left / gap) ** 3 * gap, step.enough) / share
    correction = norms.correction(predictor.norms)
    products = tau - predictor.products()
    move = step.direction(products, _NORM_WEIGHT * tau, correction)
    length = step.length(move)
    for _ in range(_CORRECTORS):
        aim = min(1.0, length + _AIM)
        trial = step.products(move, aim)
        correction = norms.recentred(move.norms, aim, _NORM_WEIGHT * tau, _BAND, correction)
        # Products far too large are drawn in by a bounded amount: they would bend the direction most.
        products = products + np.maximum(np.clip(trial, tau / _BAND, tau * _BAND) - trial, -_BAND * tau)
        corrected = step.direction(products, _NORM_WEIGHT * tau, correction)
        corrected_length = step.length(corrected)
        if corrected_length < length + _LEAST_GAIN:
            break
        move, length = corrected, corrected_length
    return move, length


def _starting_point(system: NewtonSystem, cones: ConeConstraints, S: NDArray) -> _Point:
    problem, root = system.problem, math.sqrt(len(system.A))
    typical = max(float(np.linalg.norm(S, axis=0).max()), 1e-3 * float(np.linalg.norm(problem.zero.R)))
    slack = np.maximum(cones.margins(S), _INSIDE * typical / root)
    term = loss_term(problem, system.fit(S))
    # Multipliers about as strong as the loss pulls.
    pull = 0.5 * float(np.linalg.norm(system.adjoint(term.R), axis=0).max())
    multiplier = np.full(slack.shape, max(problem.beta, pull) / root, dtype=S.dtype)
    norms = NormTerm.start(problem.beta, S, _INSIDE * typical)
    return _Point(slack, multiplier, norms, term)


def _blocks(cones: ConeConstraints, point: _Point) -> NDArray:
    """Diagonal blocks of the Newton matrix: cone constraints and norms."""
    blocks = cones.grams(point.multiplier / point.slack) + point.norms.curvature
    diagonal = np.arange(blocks.shape[1])
    blocks[:, diagonal, diagonal] += _PROXIMAL
    # The relative shift only guards the factorisation against rounding.
    blocks[:, diagonal, diagonal] *= 1 + 1e-14
    return blocks


def _step_length(x: NDArray, dx: NDArray) -> float:
    """Largest step, at most one, that keeps `x` positive by a margin."""
    shrink = float((-dx / x).max(initial=0.0))
    return min(1.0, _TO_BOUNDARY / shrink) if shrink > 0 else 1.0
