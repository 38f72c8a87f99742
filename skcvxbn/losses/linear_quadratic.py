r"""Piecewise linear-quadratic losses: errors squared, absolute, of Huber, of a quantile, and the hinges.

All of them are the largest value over a box of a quadratic,

.. math:: L(F) = \sum_{ic} \max_{l_{ic} \le v_{ic} \le u_{ic}}
          v_{ic} (F_{ic} - T_{ic}) - \tfrac s2 v_{ic}^2 ,

where v is the gradient and its conjugate is what stands under the maximum. The squared error has s = 1 and no
box, Huber's a box, the absolute error, the quantile and the hinge have s = 0. Where s = 0, or small next to
the box, the loss has kinks; a larger s rounds them off (Nesterov, 2005).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from skcvxbn.arrays import (
    Array,
    astype,
    eps,
    inner,
    namespace,
    numpy_dtype,
    positive_part,
    tiny,
    to_numpy,
    zeros,
)
from skcvxbn.losses._bias import monotone_roots
from skcvxbn.losses.base import Box, Loss
from skcvxbn.losses.curvature import Diagonal

# Where a loss has kinks, this much rounding, next to the spread of the targets, selects the dual point: of
# all subgradients the shortest. In units of the root of the precision of the outputs: half of their digits
# say which rows are at a kink, the others where between the slopes of its two sides.
_LEAST_ROUNDING = 0.05


@dataclass(frozen=True, eq=False)
class LinearQuadratic(Loss):
    """A piecewise linear-quadratic loss.

    Parameters
    ----------
    target : ndarray of shape (n_samples, n_outputs)
        ``T``.
    rounding : float
        ``s``, the inverse of the curvature of the quadratic pieces.
    lower, upper : ndarray of shape (n_samples, n_outputs) or None
        The box of the gradient; it holds zero. None where there is none.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.losses import huber
    >>> loss = huber(np.array([[0.0], [0.0]]), np.ones(2), epsilon=1.0)
    >>> value, dual = loss.evaluate(np.array([[0.5], [3.0]]))
    >>> value, dual.ravel().tolist()
    (2.625, [-0.5, -1.0])
    """

    target: Array
    rounding: float
    lower: Array | None = None
    upper: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the outputs."""
        return self.target.shape[0], self.target.shape[1]

    @property
    def quadratic(self) -> bool:
        """Whether there is no box."""
        return self.lower is None

    @property
    def box(self) -> Box | None:
        """The box of the dual variable, which is minus the gradient."""
        if self.lower is None or self.upper is None:
            return None
        return Box(self.target, self.rounding, -self.upper, -self.lower)

    @cached_property
    def _spread(self) -> float:
        """Spread of the targets in units of the box, or zero where there is no kink."""
        if self.lower is None or self.upper is None:
            return 0.0
        xp, width = namespace(self.target), self.upper - self.lower
        # Some losses have little of it for rows of little weight.
        errors = self.target / xp.clip(width, min=tiny(width))
        highest, lowest = xp.max(errors, axis=0), xp.min(errors, axis=0)
        highest, lowest, widest = to_numpy(
            self.rows.largest(xp.stack([highest, -lowest, xp.max(width, axis=0)]))
        ) * np.array([[1.0], [-1.0], [1.0]])
        if not np.isfinite(widest).all():
            return 0.0
        return float((highest - lowest).max() or np.abs([highest, lowest]).max() or 1.0)

    def _selection(self, F: Array) -> float:
        """Rounding at which the dual point is selected."""
        least = _LEAST_ROUNDING * math.sqrt(eps(F))
        return max(self.rounding, least * self._spread)

    def evaluate(self, F: Array) -> tuple[float, Array]:
        """Value and dual point."""
        distance, selection = F - self.target, self._selection(F)
        gradient = steepest = self._gradient(distance, selection)
        if selection > self.rounding:
            steepest = self._gradient(distance, self.rounding)
        slope, square = self.rows.totals(inner(steepest, distance), inner(steepest, steepest))
        return slope - 0.5 * self.rounding * square, -gradient

    def dual(self, F: Array) -> Array:
        """Dual point at the outputs `F`."""
        return -self._gradient(F - self.target, self._selection(F))

    def _gradient(self, distance: Array, rounding: float) -> Array:
        if self.lower is None or self.upper is None:
            return distance / rounding
        xp = namespace(distance)
        if rounding == 0:
            return xp.where(distance > 0, self.upper, self.lower)
        return xp.minimum(xp.maximum(distance / rounding, self.lower), self.upper)

    def dual_value(self, R: Array) -> float:
        """Dual objective."""
        product, square = self.rows.totals(inner(R, self.target), inner(R, R))
        return product - 0.5 * self.rounding * square

    def dual_slope(self, R: Array, along: Array) -> float:
        """Derivative of the dual objective."""
        slope, change = self.rows.totals(inner(along, self.target), inner(R, along))
        return slope - self.rounding * change

    def largest_multiple(self, R: Array) -> float:
        """Largest multiple in the box."""
        if self.box is None:
            return np.inf
        xp, lower, upper = namespace(R), self.box.lower, self.box.upper
        with np.errstate(divide="ignore", invalid="ignore"):
            room = xp.where(R > 0, upper / R, xp.where(R < 0, lower / R, math.inf))
        # Rounding of a bound is not a violation of it.
        return -float(self.rows.largest(-xp.min(room))) * (1 + 4 * eps(R))

    def best_bias(self, F: Array, direction: Array, start: Array | None = None) -> Array:
        """Coefficients of the best bias."""
        xp, distance = namespace(F), F - self.target
        if self.lower is None:
            return -self.rows.total(direction @ distance)
        column, selection = direction[:, None], self._selection(F)

        def slope(bias: Array) -> Array:
            shifted = distance + column * bias
            gradient = self._gradient(shifted, selection)
            inside = astype(gradient == shifted / selection, numpy_dtype(F))
            up, down = direction @ positive_part(gradient), direction @ positive_part(-gradient)
            return self.rows.total(xp.stack([up, down, (direction**2 @ inside) / selection]))

        scale = xp.sqrt(self.rows.total(xp.sum(distance**2, axis=0)))
        return monotone_roots(slope, zeros((F.shape[1],), F) if start is None else start, scale)

    def balanced(self, R: Array, direction: Array) -> Array:
        """Correct a dual point a little; where there is no box, by projection."""
        if self.lower is None:
            return R - direction[:, None] * self.rows.total(direction @ R)
        return super().balanced(R, direction)

    def curvature(self, F: Array) -> Diagonal:
        """Hessian, which is diagonal."""
        if self.lower is None:
            return Diagonal(zeros((F.shape[0], 1), F) + 1 / self.rounding)
        distance, selection = F - self.target, self._selection(F)
        inside = self._gradient(distance, selection) == distance / selection
        return Diagonal(astype(inside, numpy_dtype(F)) / selection)

    def row_curvature(self, F: Array) -> Array:
        """Largest curvature of each row."""
        return namespace(F).max(self.curvature(F).weights, axis=1, keepdims=True)

    def unit(self, direction: Array | None) -> tuple[float, float]:
        """Units of output and loss."""
        start = zeros(self.shape, self.target if direction is None else direction)
        if direction is not None:
            start = direction[:, None] * self.best_bias(start, direction)
        distance, R = start - self.target, self.dual(start)
        output, dual = map(math.sqrt, self.rows.totals(inner(distance, distance), inner(R, R)))
        return output or 1.0, output * dual or 1.0

    # A bound that overflows is none.
    @np.errstate(over="ignore")
    def scaled(self, output: float, value: float) -> LinearQuadratic:
        """Return the loss in other units."""
        factor = output / value
        return replace(
            self,
            target=self.target / output,
            rounding=self.rounding * (value / output) / output,
            lower=None if self.lower is None else self.lower * factor,
            upper=None if self.upper is None else self.upper * factor,
        )

    def smoothed(self, width: float) -> LinearQuadratic:
        """Return the loss with a curvature of at most ``1 / width``."""
        if self.lower is None or self.rounding >= width:
            return self
        return replace(self, rounding=width)


def squared_error(Y: Array, weight: Array) -> LinearQuadratic:
    """``1/2 sum_i w_i ||f_i - y_i||^2``.

    Parameters
    ----------
    Y : ndarray of shape (n_samples, n_outputs)
        Targets.
    weight : ndarray of shape (n_samples,)
        Weights of the rows.

    Returns
    -------
    LinearQuadratic
        The loss.
    """
    return LinearQuadratic(_weighted(Y, weight), 1.0)


def huber(Y: Array, weight: Array, epsilon: float) -> LinearQuadratic:
    """Half the squared error up to `epsilon`, linear beyond (Huber, 1964).

    Parameters
    ----------
    Y : ndarray of shape (n_samples, n_outputs)
        Targets.
    weight : ndarray of shape (n_samples,)
        Weights of the rows.
    epsilon : float
        Error from which on the loss is linear, in the units of the target.

    Returns
    -------
    LinearQuadratic
        The loss.
    """
    with np.errstate(over="ignore"):
        bound = np.broadcast_to(epsilon * np.sqrt(weight)[:, None], Y.shape)
    return LinearQuadratic(_weighted(Y, weight), 1.0, -bound, bound)


def pinball(Y: Array, weight: Array, quantile: float) -> LinearQuadratic:
    """``sum_i w_i (quantile (y_i - f_i)_+ + (1 - quantile) (f_i - y_i)_+)``.

    Parameters
    ----------
    Y : ndarray of shape (n_samples, n_outputs)
        Targets.
    weight : ndarray of shape (n_samples,)
        Weights of the rows.
    quantile : float
        The quantile to predict, between 0 and 1.

    Returns
    -------
    LinearQuadratic
        The loss.
    """
    root = np.broadcast_to(np.sqrt(weight)[:, None], Y.shape)
    return LinearQuadratic(_weighted(Y, weight), 0.0, -quantile * root, (1 - quantile) * root)


def absolute_error(Y: Array, weight: Array) -> LinearQuadratic:
    """``sum_i w_i |f_i - y_i|``, summed over the outputs.

    Parameters
    ----------
    Y : ndarray of shape (n_samples, n_outputs)
        Targets.
    weight : ndarray of shape (n_samples,)
        Weights of the rows.

    Returns
    -------
    LinearQuadratic
        The loss.
    """
    root = np.broadcast_to(np.sqrt(weight)[:, None], Y.shape)
    return LinearQuadratic(_weighted(Y, weight), 0.0, -root, root)


def hinge(Y: Array, weight: Array) -> LinearQuadratic:
    """``sum_i w_i (1 - y_i f_i)_+``, summed over the outputs.

    Parameters
    ----------
    Y : ndarray of shape (n_samples, n_outputs)
        Targets, -1 or 1.
    weight : ndarray of shape (n_samples,)
        Weights of the rows.

    Returns
    -------
    LinearQuadratic
        The loss.
    """
    T = _weighted(Y, weight)
    return LinearQuadratic(T, 0.0, np.minimum(-T, 0), np.maximum(-T, 0))


def squared_hinge(Y: Array, weight: Array) -> LinearQuadratic:
    """``1/2 sum_i w_i (1 - y_i f_i)_+^2``, summed over the outputs.

    Parameters
    ----------
    Y : ndarray of shape (n_samples, n_outputs)
        Targets, -1 or 1.
    weight : ndarray of shape (n_samples,)
        Weights of the rows.

    Returns
    -------
    LinearQuadratic
        The loss.
    """
    T = _weighted(Y, weight)
    return LinearQuadratic(T, 1.0, np.where(T > 0, -np.inf, 0.0), np.where(T > 0, 0.0, np.inf))


def _weighted(Y: Array, weight: Array) -> Array:
    return np.sqrt(weight)[:, None] * Y
