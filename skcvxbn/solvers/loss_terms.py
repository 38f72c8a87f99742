"""The loss inside the interior point method.

Where the domain of its conjugate is open, or all of space, the dual variable ``R`` is minus the gradient at
the output. Where the conjugate is a quadratic on a box ``l <= R <= u``, so that the loss has kinks or linear
pieces, the dual variable is a variable of its own, with multipliers ``zeta`` of its bounds:

    T - F - s R = zeta_u - zeta_l ,    zeta_u (u - R) = tau ,    zeta_l (R - l) = tau .

Linearised, both say ``dR = push - W dF``, with a curvature ``W`` and a push that depends on ``tau``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from skcvxbn.losses import Box, Curvature, Diagonal
from skcvxbn.solvers.base import Problem

Array = NDArray[Any]

# The first dual variable keeps this distance from its bounds, as a share of their own.
_MARGIN = 0.05
# Rounding of the kinks at which it is taken.
_ROUNDING = 0.1
# Between its bounds the dual variable is the residual, over the rounding: a bound beyond so many times the
# largest target is none.
_REACH = 1e6


@dataclass(frozen=True)
class TermMove:
    """Move of what belongs to a loss: output, bias, dual variable, slacks and multipliers of its bounds."""

    F: Array
    bias: Array
    R: Array
    slack: Array
    multiplier: Array


class LossTerm(Protocol):
    """What the method asks of the loss at a point.

    Attributes
    ----------
    R : ndarray of shape (n_samples, n_outputs)
        Dual variable.
    slack, multiplier : ndarray of shape (n_bounds,)
        Pairs of positive numbers whose products fall to zero.
    value : float
        The loss.
    infeasibility : float
        What the violated equations may add to the gap.
    """

    R: Array
    slack: Array
    multiplier: Array
    value: float
    infeasibility: float

    @property
    def curvature(self) -> Curvature:
        """``W``."""
        ...

    def push(self, products: Array) -> Array:
        """Move of the dual variable that the linearised equations ask for where the output stays."""
        ...

    def move(self, dF: Array, bias: Array, dR: Array, products: Array) -> TermMove:
        """Move of everything that goes with moves of the output and of the dual variable."""
        ...

    def trusted(self, move: TermMove) -> float:
        """Largest step over which the linearisation is to be trusted."""
        ...

    def moved(self, fit: Array, move: TermMove, length: float) -> LossTerm:
        """Return the term after a step, with the output `fit` but for the bias."""
        ...


def loss_term(problem: Problem, fit: Array) -> LossTerm:
    """Start from the output of a network, without its bias.

    Parameters
    ----------
    problem : Problem
        The training problem.
    fit : ndarray of shape (n_samples, n_outputs)
        The output.

    Returns
    -------
    LossTerm
        The loss there.
    """
    box = problem.loss.box
    return _SmoothTerm(problem, fit, None) if box is None else _BoxedTerm.start(problem, _near(box), fit)


def _near(box: Box) -> Box:
    """Leave out bounds that are out of reach: their products would drown all others."""
    reach = _REACH * float(np.abs(box.target).max(initial=0.0))
    farthest = reach / box.rounding if box.rounding > 0 else np.inf
    lower, upper = (
        np.where(np.abs(bound) > farthest, np.copysign(np.inf, bound), bound)
        for bound in (box.lower, box.upper)
    )
    return Box(box.target, box.rounding, lower, upper)


class _SmoothTerm:
    """A loss whose dual variable follows the output; the bias is always at its best."""

    infeasibility = 0.0

    def __init__(self, problem: Problem, fit: Array, guess: Array | None) -> None:
        output = problem.at(fit, guess)
        self._problem, self._bias = problem, output.bias
        self.R, self.value = output.R, output.value
        self.curvature = problem.loss.curvature(output.F)
        self.slack = self.multiplier = np.zeros(0, dtype=fit.dtype)

    def push(self, products: Array) -> Array:
        return np.zeros_like(self.R)

    def move(self, dF: Array, bias: Array, dR: Array, products: Array) -> TermMove:
        return TermMove(dF, bias, dR, self.slack, self.multiplier)

    def trusted(self, move: TermMove) -> float:
        return self._problem.loss.trusted(move.F)

    def moved(self, fit: Array, move: TermMove, length: float) -> _SmoothTerm:
        return _SmoothTerm(self._problem, fit, self._bias + length * move.bias)


class _BoxedTerm:
    """A loss whose dual variable is bounded."""

    def __init__(
        self,
        problem: Problem,
        box: Box,
        fit: Array,
        bias: Array,
        R: Array,
        slack: Array,
        multiplier: Array,
    ) -> None:
        self._problem, self._box, self._bias = problem, box, bias
        self._finite = np.isfinite(box.lower), np.isfinite(box.upper)
        self.R, self.slack, self.multiplier = R, slack, multiplier
        F = fit + np.outer(problem.A[:, -1], bias)
        self.value = problem.loss.value(F)
        self._distance = box.target - F - box.rounding * R
        ratios = self._spread(slack / multiplier)
        self._weights = 1 / (box.rounding + ratios[0] + ratios[1])
        self.curvature = Diagonal(self._weights)
        lower, upper = self._spread(slack)
        unbalanced = problem.A[:, -1] @ R if problem.fit_intercept else np.zeros(len(bias))
        self.infeasibility = abs(float(np.vdot(self._distance - upper + lower, R)))
        self.infeasibility += abs(float(unbalanced @ bias))

    @classmethod
    def start(cls, problem: Problem, box: Box, fit: Array) -> _BoxedTerm:
        """Start inside the box, near the dual point of the loss with its kinks rounded."""
        output = problem.smoothed(_ROUNDING).at(fit)
        lower, upper = box.lower, box.upper
        typical = np.sqrt(np.mean(output.R**2)) + np.finfo(fit.dtype).tiny
        width = np.where(np.isfinite(upper - lower), upper - lower, typical)
        R = np.clip(output.R, lower + _MARGIN * width, upper - _MARGIN * width)
        distance = box.target - output.F - box.rounding * R
        floor = 0.1 * np.sqrt(np.mean(distance**2)) + np.finfo(fit.dtype).tiny
        finite_lower, finite_upper = np.isfinite(lower), np.isfinite(upper)
        slack = np.concatenate(
            [
                (np.maximum(-distance, 0) + floor)[finite_lower],
                (np.maximum(distance, 0) + floor)[finite_upper],
            ]
        )
        multiplier = np.concatenate([(R - lower)[finite_lower], (upper - R)[finite_upper]])
        return cls(problem, box, fit, output.bias, R, slack, multiplier)

    def _spread(self, values: Array) -> tuple[Array, Array]:
        """Values of the lower and of the upper bounds as matrices, zero where there is no bound."""
        lower, upper = (np.zeros(self.R.shape, dtype=self.R.dtype) for _ in range(2))
        finite_lower, finite_upper = self._finite
        count = np.count_nonzero(finite_lower)
        lower[finite_lower], upper[finite_upper] = values[:count], values[count:]
        return lower, upper

    def _gathered(self, lower: Array, upper: Array) -> Array:
        return np.concatenate([lower[self._finite[0]], upper[self._finite[1]]])

    def push(self, products: Array) -> Array:
        lower, upper = self._spread(products / self.multiplier)
        return self._weights * (self._distance - upper + lower)

    def move(self, dF: Array, bias: Array, dR: Array, products: Array) -> TermMove:
        multiplier = self._gathered(dR, -dR)
        slack = products / self.multiplier - self.slack - self.slack / self.multiplier * multiplier
        return TermMove(dF, bias, dR, slack, multiplier)

    def trusted(self, move: TermMove) -> float:
        return np.inf

    def moved(self, fit: Array, move: TermMove, length: float) -> _BoxedTerm:
        bias, R = self._bias + length * move.bias, self.R + length * move.R
        F = fit + np.outer(self._problem.A[:, -1], bias)
        lower, upper = self._spread(self.slack + length * move.slack)
        # The inaccuracy of the step goes where it can do no harm: into the slacks.
        error = self._box.target - F - self._box.rounding * R - upper + lower
        slack = self._gathered(lower + np.maximum(-error, 0), upper + np.maximum(error, 0))
        return _BoxedTerm(
            self._problem, self._box, fit, bias, R, slack, self.multiplier + length * move.multiplier
        )
