"""Log loss of several classes, with one output a class: log probabilities, up to a constant."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from skcvxbn.losses.base import Loss
from skcvxbn.losses.curvature import Categorical
from skcvxbn.losses.logistic import TRUSTED_CHANGE, Logistic

Array = NDArray[Any]

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
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Shape of the outputs."""
        return self.indicator.shape[0], self.indicator.shape[1]

    @cached_property
    def _own(self) -> tuple[Array, Array]:
        """Index of the entries of the classes."""
        return np.arange(len(self.indicator)), self.indicator.argmax(axis=1)

    def evaluate(self, F: Array) -> tuple[float, Array]:
        """Value and dual point."""
        logits = self.slope * F
        logits -= logits.max(axis=1, keepdims=True)
        own = logits[self._own]
        P = np.exp(logits, out=logits)
        # The other classes by themselves: next to a probability of nearly one they would be lost in rounding.
        largest = P[self._own] - 1
        P[self._own] = 0
        others = P.sum(axis=1)
        value = float(np.sum(self.scale[:, 0] * (np.log1p(others + largest) - own), dtype=np.float64))
        P[self._own] = -others
        P *= -self.scale * self.slope / (1 + (others + largest))[:, None]
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
        """Coefficients of the best bias, which add up to zero, by Newton's method in a trust region."""
        column, C = direction[:, None], F.shape[1]
        eps = _ROUNDING * float(np.finfo(F.dtype).eps)
        bias = np.zeros(C) if start is None else start.astype(np.float64) - start.mean(dtype=np.float64)
        scale = float(np.linalg.norm(np.ptp(F, axis=1, keepdims=True) + 1 / self.slope))
        radius = max(scale, float(np.abs(bias).max()))
        floor = eps * float(direction @ (self.scale * self.slope)[:, 0])
        value, R = self.evaluate(F + column * bias.astype(F.dtype))
        for _ in range(_STEPS):
            gradient = -(direction @ R).astype(np.float64)
            if np.all(np.abs(gradient) <= eps * (direction @ np.abs(R) + floor)):
                break
            length = float(np.linalg.norm(gradient))
            hessian = self.curvature(F + column * bias.astype(F.dtype)).along(direction, C)
            # Equal biases change nothing, so the Hessian is singular: in the widest region rounding stays.
            damping = max(length / radius, 1e-14 * float(np.trace(hessian)))
            step = -np.linalg.solve(hessian + damping * np.eye(C), gradient)
            step -= step.mean()
            size = float(np.linalg.norm(step))
            trial = bias + step
            trial_value, trial_R = self.evaluate(F + column * trial.astype(F.dtype))
            # A convex function that falls still at the end of a step is less there.
            fell = direction @ trial_R @ step >= 0 or trial_value < value
            if not fell and trial_value > (1 + eps) * value:
                radius = min(radius, size) / 4
                continue
            if trial_value >= (1 - eps) * value and np.linalg.norm(direction @ trial_R) > 0.9 * length:
                break
            bias, value, R = trial, trial_value, trial_R
            radius = 4 * radius if size > radius / 4 else radius
        return bias.astype(F.dtype)

    def balanced(self, R: Array, direction: Array) -> Array:
        """Correct a dual point a little: move what a class has too much of to those that have too little."""
        missing = direction @ R
        mass = (direction[:, None] * self.scale * self.slope).T @ self.indicator
        taken, given = np.maximum(-missing, 0), np.maximum(missing, 0)
        share = np.outer(taken / mass, given / max(given.sum(), np.finfo(R.dtype).tiny))
        move = np.diag(share.sum(axis=1)) - share
        # Shortened by as much as a row can grow beyond the domain.
        return (R + self.scale * self.slope * (self.indicator @ move)) / (1 + (taken / mass).max())

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
