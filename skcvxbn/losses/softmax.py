"""Log loss of several classes, with one output a class: log probabilities, up to a constant."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from skcvxbn.arrays import (
    Array,
    eps,
    inner,
    like,
    namespace,
    numpy_dtype,
    row_largest,
    row_sums,
    tiny,
    to_numpy,
    zeros,
)
from skcvxbn.losses.base import Loss, x_log_x
from skcvxbn.losses.curvature import Categorical
from skcvxbn.losses.logistic import TRUSTED_CHANGE, Logistic

_LARGEST_CURVATURE = 0.5
_STEPS = 200
# A difference of this many units in the last place is rounding.
_ROUNDING = 8


@dataclass(frozen=True, eq=False)
class Softmax(Loss):
    """``sum_i c_i (log(sum_c exp(g_i F_ic)) - g_i F_i,y_i)``.

    Parameters
    ----------
    indicator : ndarray of shape (n_samples, n_outputs)
        One in the column of the class, zero elsewhere.
    slope, scale : ndarray of shape (n_samples, 1)
        ``g`` and ``c``, positive.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.losses import log_loss
    >>> loss = log_loss(np.eye(3), np.ones(3))
    >>> round(loss.value(np.zeros((3, 3))), 6)
    3.295837
    """

    indicator: Array
    slope: Array
    scale: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the outputs."""
        return self.indicator.shape[0], self.indicator.shape[1]

    def evaluate(self, F: Array) -> tuple[float, Array]:
        """Value and dual point."""
        xp, (own, excess, R) = namespace(F), self._evaluated(F)
        (value,) = self.rows.totals(xp.sum(self.scale * (xp.log1p(excess) - own), dtype=xp.float64))
        return value, R

    def dual(self, F: Array) -> Array:
        """Dual point at the outputs `F`."""
        return self._evaluated(F)[2]

    def _evaluated(self, F: Array) -> tuple[Array, Array, Array]:
        """Own logit next to the largest; sum of the exponentials of such logits, less one; dual point."""
        xp, logits = namespace(F), self.slope * F
        logits -= row_largest(logits)
        own = row_sums(logits * self.indicator)
        # The other classes by themselves: next to a probability of nearly one they would be lost in rounding.
        P = xp.exp(logits)
        P -= P * self.indicator
        others = row_sums(P)
        excess = others + xp.expm1(own)
        P -= others * self.indicator
        P *= -self.scale * self.slope / (1 + excess)
        return own, excess, P

    def _probabilities(self, F: Array) -> Array:
        xp, logits = namespace(F), self.slope * F
        logits -= row_largest(logits)
        P = xp.exp(logits)
        P /= row_sums(P)
        return P

    def _dual_probabilities(self, R: Array) -> Array:
        return namespace(R).clip(self.indicator - R / (self.scale * self.slope), min=0.0, max=1.0)

    def dual_value(self, R: Array) -> float:
        """Dual objective: the entropy."""
        xp, P = namespace(R), self._dual_probabilities(R)
        (value,) = self.rows.totals(xp.sum(self.scale * x_log_x(P), dtype=xp.float64))
        return -value

    def dual_slope(self, R: Array, along: Array) -> float:
        """Derivative of the dual objective; the rows of `along` add up to zero."""
        xp = namespace(R)
        P = xp.clip(self._dual_probabilities(R), min=tiny(R))
        (value,) = self.rows.totals(xp.sum(xp.log(P) / self.slope * along, dtype=xp.float64))
        return value

    def largest_multiple(self, R: Array) -> float:
        """Largest multiple whose probabilities are not negative."""
        ratio = R / (self.scale * self.slope)
        # For the other classes only rounding can leave the domain.
        own = float(self.rows.largest(namespace(R).max(ratio * self.indicator)))
        return 1 / own if own > 0 else math.inf

    def best_bias(self, F: Array, direction: Array, start: Array | None = None) -> Array:
        """Coefficients of the best bias, which add up to zero, by Newton's method in a trust region."""
        xp, column, C = namespace(F), direction[:, None], F.shape[1]
        rounding = _ROUNDING * eps(F)
        bias = np.zeros(C) if start is None else to_numpy(start).astype(np.float64)
        bias -= bias.mean()
        spread = row_largest(F) + row_largest(-F) + 1 / self.slope
        square, mass = self.rows.totals(inner(spread, spread), direction @ (self.scale * self.slope)[:, 0])
        radius = max(math.sqrt(square), float(np.abs(bias).max()))

        def shifted(bias: NDArray[np.float64]) -> Array:
            return F + column * like(bias.astype(numpy_dtype(F)), F)

        def sums(R: Array) -> NDArray[np.float64]:
            both = xp.stack([direction @ R, direction @ xp.abs(R)])
            return to_numpy(self.rows.total(both)).astype(np.float64)

        value, R = self.evaluate(shifted(bias))
        for _ in range(_STEPS):
            along, size = sums(R)
            gradient = -along
            if np.all(np.abs(gradient) <= rounding * (size + rounding * mass)):
                break
            length = float(np.linalg.norm(gradient))
            hessian = self.rows.total(self._curvature(self._dual_probabilities(R)).along(direction, C))
            hessian = to_numpy(hessian).astype(np.float64)
            # Equal biases change nothing: what is added along them keeps the Hessian from being singular.
            # Damping bounds the step, and in the widest region rounding stays.
            size_of_hessian = float(np.trace(hessian))
            damping = max(length / radius, 1e-14 * size_of_hessian)
            step = -np.linalg.solve(hessian + damping * np.eye(C) + size_of_hessian / C**2, gradient)
            step -= step.mean()
            moved = float(np.linalg.norm(step))
            trial = bias + step
            trial_value, trial_R = self.evaluate(shifted(trial))
            trial_along = sums(trial_R)[0]
            # A convex function that falls still at the end of a step is less there.
            fell = trial_along @ step >= 0 or trial_value < value
            if not fell and trial_value > (1 + rounding) * value:
                radius = min(radius, moved) / 4
                continue
            if trial_value >= (1 - rounding) * value and np.linalg.norm(trial_along) > 0.9 * length:
                break
            bias, value, R = trial, trial_value, trial_R
            radius = 4 * radius if moved > radius / 4 else radius
        return like(bias.astype(numpy_dtype(F)), F)

    def balanced(self, R: Array, direction: Array) -> Array:
        """Correct a dual point a little: move what a class has too much of to those that have too little."""
        xp = namespace(R)
        masses = (direction * (self.scale * self.slope)[:, 0]) @ self.indicator
        missing, mass = to_numpy(self.rows.total(xp.stack([direction @ R, masses])))
        taken, given = np.maximum(-missing, 0), np.maximum(missing, 0)
        share = np.outer(taken / mass, given / max(given.sum(), tiny(R)))
        move = like(np.diag(share.sum(axis=1)) - share, R)
        # Shortened by as much as a row can grow beyond the domain.
        growth = 1 + float((taken / mass).max())
        return (R + self.scale * self.slope * (self.indicator @ move)) / growth

    def curvature(self, F: Array) -> Categorical:
        """Hessian."""
        return self._curvature(self._probabilities(F))

    def _curvature(self, P: Array) -> Categorical:
        return Categorical(P, self.scale * self.slope**2)

    def row_curvature(self, F: Array) -> Array:
        """Upper bound of the largest eigenvalue of each row's block."""
        P = self._probabilities(F)
        # Gershgorin: the sums of the absolute values in a row of diag(p) - p p^T are 2 p (1 - p).
        return self.scale * self.slope**2 * row_largest(2 * P * (1 - P))

    def trusted(self, dF: Array) -> float:
        """Largest multiple of a move that changes no logit by much."""
        xp = namespace(dF)
        largest = float(self.rows.largest(xp.max(xp.abs(self.slope * dF))))
        return TRUSTED_CHANGE / largest if largest > 0 else math.inf

    def unit(self, direction: Array | None) -> tuple[float, float]:
        """Units of output and loss."""
        start = zeros(self.shape, self.indicator)
        if direction is not None:
            start = direction[:, None] * self.best_bias(start, direction)
        R = self.dual(start)
        dual = math.sqrt(*self.rows.totals(inner(R, R))) or 1.0
        curvature = namespace(R).max(self.scale * self.slope**2)
        largest = _LARGEST_CURVATURE * float(self.rows.largest(curvature))
        return dual / largest, dual**2 / largest

    def scaled(self, output: float, value: float) -> Softmax:
        """Return the loss in other units."""
        return replace(self, slope=self.slope * output, scale=self.scale / value)


def log_loss(Y: Array, weight: Array) -> Logistic | Softmax:
    """Negative log likelihood of the classes, ``-sum_i w_i log p_i``.

    Parameters
    ----------
    Y : ndarray of shape (n_samples, n_outputs)
        With one output, -1 or 1: the output is the log odds of 1. With several, the indicator of the class:
        the probabilities are the softmax of the outputs.
    weight : ndarray of shape (n_samples,)
        Weights of the rows.

    Returns
    -------
    Logistic or Softmax
        The loss.
    """
    weight = weight[:, None]
    if Y.shape[1] == 1:
        return Logistic(Y / np.sqrt(weight), weight)
    return Softmax(Y, 1 / np.sqrt(weight), weight)
