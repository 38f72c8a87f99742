"""Log loss of two classes, with one output: the log odds of the second class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, xlog1py, xlogy

from skcvxbn.losses._bias import monotone_roots
from skcvxbn.losses.base import Loss
from skcvxbn.losses.curvature import Diagonal

Array = NDArray[Any]

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
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Shape of the outputs."""
        return len(self.slope), 1

    def evaluate(self, F: Array) -> tuple[float, Array]:
        """Value and dual point."""
        margin = self.slope * F
        value = float(np.sum(self.scale * np.logaddexp(0, -margin), dtype=np.float64))
        return value, self.scale * self.slope * expit(-margin)

    def _probability(self, R: Array) -> Array:
        """Probability of the other class of which `R` is the dual point."""
        return np.clip(R / (self.scale * self.slope), 0, 1)

    def dual_value(self, R: Array) -> float:
        """Dual objective: the entropy."""
        q = self._probability(R)
        return -float(np.sum(self.scale * (xlogy(q, q) + xlog1py(1 - q, -q)), dtype=np.float64))

    def dual_slope(self, R: Array, along: Array) -> float:
        """Derivative of the dual objective."""
        q = self._probability(R)
        tiny = np.finfo(R.dtype).tiny
        odds = np.log(np.maximum(1 - q, tiny)) - np.log(np.maximum(q, tiny))
        return float(np.sum(odds / self.slope * along, dtype=np.float64))

    def largest_multiple(self, R: Array) -> float:
        """Largest multiple whose probabilities are at most one."""
        largest = float((R / (self.scale * self.slope)).max(initial=0.0))
        return 1 / largest if largest > 0 else np.inf

    def best_bias(self, F: Array, direction: Array, start: Array | None = None) -> Array:
        """Coefficient of the best bias."""
        column = direction[:, None]

        def slope(bias: Array) -> tuple[Array, Array, Array]:
            shifted = F + column * bias
            R = self.dual(shifted)
            up, down = direction @ np.maximum(-R, 0), direction @ np.maximum(R, 0)
            return up, down, direction**2 @ self.curvature(shifted).weights

        start = np.zeros(1, F.dtype) if start is None else start
        return monotone_roots(slope, start, np.linalg.norm(np.abs(F) + 1 / np.abs(self.slope), axis=0))

    def curvature(self, F: Array) -> Diagonal:
        """Hessian, which is diagonal."""
        margin = self.slope * F
        return Diagonal(self.scale * self.slope**2 * expit(margin) * expit(-margin))

    def row_curvature(self, F: Array) -> Array:
        """Curvature of each row."""
        return self.curvature(F).weights

    def trusted(self, dF: Array) -> float:
        """Largest multiple of a move that changes no logit by much."""
        largest = float(np.abs(self.slope * dF).max(initial=0.0))
        return TRUSTED_CHANGE / largest if largest > 0 else np.inf

    def unit(self, direction: Array | None) -> tuple[float, float]:
        """Units of output and loss."""
        start = np.zeros(self.shape, dtype=self.slope.dtype)
        if direction is not None:
            start = np.outer(direction, self.best_bias(start, direction))
        dual = float(np.linalg.norm(self.dual(start))) or 1.0
        largest = _LARGEST_CURVATURE * float((self.scale * self.slope**2).max())
        return dual / largest, dual**2 / largest

    def scaled(self, output: float, value: float) -> Logistic:
        """Return the loss in other units."""
        return Logistic(self.slope * output, self.scale / value)

    def astype(self, dtype: Any) -> Logistic:
        """Return the loss in another precision."""
        return Logistic(self.slope.astype(dtype, copy=False), self.scale.astype(dtype, copy=False))
