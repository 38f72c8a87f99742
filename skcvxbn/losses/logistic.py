"""Log loss of two classes, with one output: the log odds of the second class."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from skcvxbn.arrays import Array, inner, namespace, positive_part, tiny, zeros
from skcvxbn.losses._bias import monotone_roots
from skcvxbn.losses.base import Loss, x_log_x
from skcvxbn.losses.curvature import Diagonal

_LARGEST_CURVATURE = 0.25
# The curvature of a log loss changes by a factor of e at most over a change of the logits by one.
TRUSTED_CHANGE = 2.0


@dataclass(frozen=True, eq=False)
class Logistic(Loss):
    """``sum_i c_i log(1 + exp(-m_i))`` with the margins ``m_i = g_i F_i``.

    Parameters
    ----------
    slope : ndarray of shape (n_samples, 1)
        ``g``: its sign is that of the class.
    scale : ndarray of shape (n_samples, 1)
        ``c``, positive.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.losses import log_loss
    >>> loss = log_loss(np.array([[1.0], [-1.0]]), np.ones(2))
    >>> value, dual = loss.evaluate(np.zeros((2, 1)))
    >>> round(value, 6), dual.ravel().tolist()
    (1.386294, [0.5, -0.5])
    """

    slope: Array
    scale: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the outputs."""
        return self.slope.shape[0], 1

    def evaluate(self, F: Array) -> tuple[float, Array]:
        """Value and dual point."""
        xp, margin = namespace(F), self.slope * F
        # Of the exponential of minus the magnitude, which cannot overflow.
        small = xp.exp(-xp.abs(margin))
        losses = self.scale * (positive_part(-margin) + xp.log1p(small))
        (value,) = self.rows.totals(xp.sum(losses, dtype=xp.float64))
        return value, self._dual(margin, small)

    def dual(self, F: Array) -> Array:
        """Dual point at the outputs `F`."""
        margin = self.slope * F
        return self._dual(margin, namespace(F).exp(-namespace(F).abs(margin)))

    def _dual(self, margin: Array, small: Array) -> Array:
        return self.scale * self.slope * namespace(margin).where(margin > 0, small, 1.0) / (1 + small)

    def _probability(self, R: Array) -> Array:
        """Probability of the other class of which `R` is the dual point."""
        return namespace(R).clip(R / (self.scale * self.slope), min=0.0, max=1.0)

    def dual_value(self, R: Array) -> float:
        """Dual objective: the entropy."""
        xp, q = namespace(R), self._probability(R)
        # The logarithm of 1 - q for a small q.
        other = xp.where(q < 1, (1 - q) * xp.log1p(-xp.where(q < 1, q, 0.0)), 0.0)
        (value,) = self.rows.totals(xp.sum(self.scale * (x_log_x(q) + other), dtype=xp.float64))
        return -value

    def dual_slope(self, R: Array, along: Array) -> float:
        """Derivative of the dual objective."""
        xp, q, least = namespace(R), self._probability(R), tiny(R)
        odds = xp.log(xp.clip(1 - q, min=least)) - xp.log(xp.clip(q, min=least))
        (value,) = self.rows.totals(xp.sum(odds / self.slope * along, dtype=xp.float64))
        return value

    def largest_multiple(self, R: Array) -> float:
        """Largest multiple whose probabilities are at most one."""
        largest = float(self.rows.largest(namespace(R).max(R / (self.scale * self.slope))))
        return 1 / largest if largest > 0 else math.inf

    def best_bias(self, F: Array, direction: Array, start: Array | None = None) -> Array:
        """Coefficient of the best bias."""
        xp, column = namespace(F), direction[:, None]

        def slope(bias: Array) -> Array:
            shifted = F + column * bias
            R = self.dual(shifted)
            up, down = direction @ positive_part(-R), direction @ positive_part(R)
            curvature = direction**2 @ self.curvature(shifted).weights
            return self.rows.total(xp.stack([up, down, curvature]))

        size = xp.abs(F) + 1 / xp.abs(self.slope)
        scale = xp.sqrt(self.rows.total(xp.sum(size * size, axis=0)))
        return monotone_roots(slope, zeros((1,), F) if start is None else start, scale)

    def curvature(self, F: Array) -> Diagonal:
        """Hessian, which is diagonal."""
        xp = namespace(F)
        small = xp.exp(-xp.abs(self.slope * F))
        return Diagonal(self.scale * self.slope**2 * (small / (1 + small) ** 2))

    def row_curvature(self, F: Array) -> Array:
        """Curvature of each row."""
        return self.curvature(F).weights

    def trusted(self, dF: Array) -> float:
        """Largest multiple of a move that changes no logit by much."""
        xp = namespace(dF)
        largest = float(self.rows.largest(xp.max(xp.abs(self.slope * dF))))
        return TRUSTED_CHANGE / largest if largest > 0 else math.inf

    def unit(self, direction: Array | None) -> tuple[float, float]:
        """Units of output and loss."""
        start = zeros(self.shape, self.slope)
        if direction is not None:
            start = direction[:, None] * self.best_bias(start, direction)
        R = self.dual(start)
        dual = math.sqrt(*self.rows.totals(inner(R, R))) or 1.0
        curvature = namespace(R).max(self.scale * self.slope**2)
        largest = _LARGEST_CURVATURE * float(self.rows.largest(curvature))
        return dual / largest, dual**2 / largest

    def scaled(self, output: float, value: float) -> Logistic:
        """Return the loss in other units."""
        return replace(self, slope=self.slope * output, scale=self.scale / value)
