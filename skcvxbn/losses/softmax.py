"""Log loss of several classes, with one output a class: log probabilities, up to a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from skcvxbn.losses.base import Loss
from skcvxbn.losses.curvature import Categorical
from skcvxbn.losses.logistic import TRUSTED_CHANGE, Logistic

Array = NDArray[Any]

_LARGEST_CURVATURE = 0.5
_STEPS, _HALVINGS = 60, 30


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
    >>> round(loss.value(np.zeros((3, 3))) / np.log(3), 6)
    3.0
    """

    indicator: Array
    slope: Array
    scale: Array

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Shape of the outputs."""
        return self.indicator.shape[0], self.indicator.shape[1]

    def evaluate(self, F: Array) -> tuple[float, Array]:
        """Value and dual point."""
        logits = self.slope * F
        logits -= logits.max(axis=1, keepdims=True)
        own = np.einsum("ic,ic->i", logits, self.indicator)
        P = np.exp(logits, out=logits)
        total = P.sum(axis=1)
        P /= total[:, None]
        value = float(np.sum(self.scale[:, 0] * (np.log(total) - own), dtype=np.float64))
        np.subtract(self.indicator, P, out=P)
        P *= self.scale * self.slope
        return value, P

    def _probabilities(self, F: Array) -> Array:
        logits = self.slope * F
        logits -= logits.max(axis=1, keepdims=True)
        P = np.exp(logits, out=logits)
        P /= P.sum(axis=1, keepdims=True)
        return P

    def _dual_probabilities(self, R: Array) -> Array:
        return np.clip(self.indicator - R / (self.scale * self.slope), 0, 1)

    def dual_value(self, R: Array) -> float:
        """Dual objective: the entropy."""
        P = self._dual_probabilities(R)
        return -float(np.sum(self.scale * xlogy(P, P), dtype=np.float64))

    def dual_slope(self, R: Array, along: Array) -> float:
        """Derivative of the dual objective; the rows of `along` add up to zero."""
        P = np.maximum(self._dual_probabilities(R), np.finfo(R.dtype).tiny)
        return float(np.sum(np.log(P) / self.slope * along, dtype=np.float64))

    def largest_multiple(self, R: Array) -> float:
        """Largest multiple whose probabilities are not negative."""
        ratio = R / (self.scale * self.slope)
        # For the other classes only rounding can leave the domain.
        own = float((ratio * self.indicator).max(initial=0.0))
        return 1 / own if own > 0 else np.inf

    def best_bias(self, F: Array, direction: Array, start: Array | None = None) -> Array:
        """Coefficients of the best bias, by Newton's method; they add up to zero."""
        column = direction[:, None]
        bias = np.zeros(F.shape[1]) if start is None else start.astype(np.float64)
        resolution = 4 * float(np.finfo(F.dtype).eps)
        value, R = self.evaluate(F + column * bias.astype(F.dtype))
        enough = resolution * float(np.sum(direction * (self.scale * self.slope)[:, 0]))
        for _ in range(_STEPS):
            gradient = -(direction @ R).astype(np.float64)
            if np.abs(gradient).max() <= enough:
                break
            hessian = self.curvature(F + column * bias.astype(F.dtype)).along(direction, len(bias))
            step = -np.linalg.lstsq(hessian.astype(np.float64), gradient, rcond=1e-12)[0]
            decrease = -float(gradient @ step)
            for halving in range(_HALVINGS):
                trial = bias + 0.5**halving * step
                trial_value, trial_R = self.evaluate(F + column * trial.astype(F.dtype))
                if trial_value <= value - 1e-4 * 0.5**halving * decrease + resolution * abs(value):
                    break
            bias, value, R = trial, trial_value, trial_R
            if decrease <= resolution * abs(value) * 1e-3:
                break
        return bias.astype(F.dtype)

    def curvature(self, F: Array) -> Categorical:
        """Hessian."""
        return Categorical(self._probabilities(F), self.scale * self.slope**2)

    def row_curvature(self, F: Array) -> Array:
        """Upper bound of the largest eigenvalue of each row's block."""
        P = self._probabilities(F)
        # Gershgorin: the sums of the absolute values in a row of diag(p) - p p^T are 2 p (1 - p).
        return self.scale * self.slope**2 * (2 * P * (1 - P)).max(axis=1, keepdims=True)

    def trusted(self, dF: Array) -> float:
        """Largest multiple of a move that changes no logit by much."""
        largest = float(np.abs(self.slope * dF).max(initial=0.0))
        return TRUSTED_CHANGE / largest if largest > 0 else np.inf

    def unit(self, direction: Array | None) -> tuple[float, float]:
        """Units of output and loss."""
        start = np.zeros(self.shape, dtype=self.indicator.dtype)
        if direction is not None:
            start = np.outer(direction, self.best_bias(start, direction))
        dual = float(np.linalg.norm(self.dual(start))) or 1.0
        largest = _LARGEST_CURVATURE * float((self.scale * self.slope**2).max())
        return dual / largest, dual**2 / largest

    def scaled(self, output: float, value: float) -> Softmax:
        """Return the loss in other units."""
        return Softmax(self.indicator, self.slope * output, self.scale / value)

    def astype(self, dtype: Any) -> Softmax:
        """Return the loss in another precision."""
        return Softmax(*(M.astype(dtype, copy=False) for M in (self.indicator, self.slope, self.scale)))


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
