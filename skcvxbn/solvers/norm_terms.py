"""The norms inside the interior point method, as second-order cones.

The cost ``beta ||s_j||`` is ``beta t_j`` with ``t_j >= ||s_j||``. The dual variable of that cone is
``(beta, -z_j)`` with ``||z_j|| <= beta``, where z_j is what loss and cone constraints pull a neuron by:
stationarity reads ``F^T R + G^T mu = z``. The two are complementary in the algebra of the cone,

    beta t_j - s_j^T z_j = tau ,    beta s_j = t_j z_j .

Linearised in the coordinates in which both are the same point (Nesterov and Todd, 1997) and with t_j
eliminated, this says ``dz = pull - z + C ds`` with a positive definite block C for every neuron.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_Pair = tuple[Array, Array]

# What is left of the distance to the boundary of a cone after a step.
_TO_BOUNDARY = 0.995


@dataclass(frozen=True)
class NormMove:
    """Move of neurons, of the bounds of their norms and of their dual variables."""

    S: Array
    t: Array
    Z: Array


@dataclass(frozen=True, eq=False)
class NormTerm:
    """Neurons, with their norms and dual variables.

    Parameters
    ----------
    beta : float
        Weight decay.
    S : ndarray of shape (rank + 1, n_neurons)
        Neurons.
    excess : ndarray of shape (n_neurons,)
        ``t_j - ||s_j||``. It is kept in place of ``t_j``: near the optimum it is far smaller.
    Z : ndarray of shape (rank + 1, n_neurons)
        Dual variables.
    room : ndarray of shape (n_neurons,)
        ``beta - ||z_j||``.
    """

    beta: float
    S: Array
    excess: Array
    Z: Array
    room: Array

    @classmethod
    def start(cls, beta: float, S: Array, typical: float) -> NormTerm:
        """Start well inside the cones: `typical` is the size of a neuron."""
        n_neurons = S.shape[1]
        return cls(beta, S, np.full(n_neurons, typical), np.zeros_like(S), np.full(n_neurons, beta))

    @cached_property
    def lengths(self) -> Array:
        """Norms of the neurons."""
        return np.linalg.norm(self.S, axis=0)

    @cached_property
    def products(self) -> Array:
        """``beta t_j - s_j^T z_j``, a sum of parts that are not negative."""
        length, dual = self.lengths, np.linalg.norm(self.Z, axis=0)
        angle = self.S / _divisor(length) - self.Z / _divisor(dual)
        return self.beta * self.excess + length * self.room + 0.5 * length * dual * (angle**2).sum(axis=0)

    @cached_property
    def _scaling(self) -> _Scaling:
        t, dual = self.lengths + self.excess, np.linalg.norm(self.Z, axis=0)
        primal_root = np.sqrt(self.excess * (t + self.lengths))
        dual_root = np.sqrt(self.room * (self.beta + dual))
        # Half the angle between both points as vectors of unit length in the Lorentz metric.
        half = np.sqrt((1 + self.products / (primal_root * dual_root)) / 2)
        x0, x, y0, y = t / primal_root, self.S / primal_root, self.beta / dual_root, -self.Z / dual_root
        w = (x - y) / (2 * half)
        centre = ((half + x0) * y + (half + y0) * x) / (x0 + y0 + 2 * half)
        determinant = primal_root * dual_root
        size = np.sqrt(determinant)
        return _Scaling(
            w=w,
            w0=np.sqrt(1 + (w**2).sum(axis=0)),
            ratio=primal_root / dual_root,
            centre=(size * half, size * centre),
            determinant=determinant,
        )

    @property
    def curvature(self) -> Array:
        """The blocks ``C``, of shape (n_neurons, rank + 1, rank + 1)."""
        scaling = self._scaling
        blocks = -2 * (scaling.along / scaling.ratio)[:, None, None] * _outer(scaling.w)
        diagonal = np.arange(len(self.S))
        blocks[:, diagonal, diagonal] += (1 / scaling.ratio)[:, None]
        return blocks

    def pull(self, tau: float, correction: _Pair) -> Array:
        """Dual variables that the linearised equations ask for where the neurons do not move."""
        first, rest = self._target(tau, correction)
        return self.Z - rest + self._scaling.first_row / self._scaling.first * first

    def move(self, dS: Array, tau: float, correction: _Pair) -> NormMove:
        """Move of everything that goes with a move of the neurons."""
        scaling = self._scaling
        first, _ = self._target(tau, correction)
        dt = (first - (scaling.first_row * dS).sum(axis=0)) / scaling.first
        along = 2 * scaling.along * (scaling.w * dS).sum(axis=0)
        dZ = self.pull(tau, correction) - self.Z + (dS - along * scaling.w) / scaling.ratio
        return NormMove(dS, dt, dZ)

    def _target(self, tau: float, correction: _Pair) -> _Pair:
        """Move of ``(beta, -z)`` that centres it, apart from what a move of ``(t, s)`` adds."""
        t = self.lengths + self.excess
        level = tau / (self.excess * (t + self.lengths))
        return level * t - self.beta + correction[0], self.Z - level * self.S + correction[1]

    def no_correction(self) -> _Pair:
        """Without terms of second order."""
        return np.zeros_like(self.excess), np.zeros_like(self.S)

    def correction(self, move: NormMove) -> _Pair:
        """Terms of second order that a move leaves out (Mehrotra's corrector)."""
        scaling = self._scaling
        product = _product(scaling.divide((move.t, move.S)), scaling.apply((np.zeros_like(move.t), -move.Z)))
        first, rest = scaling.divide(_quotient(scaling.centre, product, scaling.determinant))
        return -first, -rest

    def recentred(self, move: NormMove, length: float, tau: float, band: float, correction: _Pair) -> _Pair:
        """Correct terms so that products after a step of this length are drawn into a band around `tau`."""
        scaling, (first, rest) = self._scaling, self._scaling.centre
        primal = scaling.divide((move.t, move.S))
        dual = scaling.apply((np.zeros_like(move.t), -move.Z))
        first, rest = _product(
            (first + length * primal[0], rest + length * primal[1]),
            (first + length * dual[0], rest + length * dual[1]),
        )
        size = np.linalg.norm(rest, axis=0)
        # The product as a point of the algebra has two eigenvalues.
        low, high = (
            np.maximum(np.clip(value, tau / band, tau * band) - value, -band * tau)
            for value in (first - size, first + size)
        )
        change = (low + high) / 2, (high - low) / 2 * rest / _divisor(size)
        first, rest = scaling.divide(_quotient(scaling.centre, change, scaling.determinant))
        return correction[0] + first, correction[1] + rest

    def step_length(self, move: NormMove) -> float:
        """Largest step, at most one, that keeps the point inside by a margin."""
        return min(
            _step_length(self.S, self.excess, move.S, move.t),
            _step_length(self.Z, self.room, move.Z, np.zeros_like(self.room)),
        )

    def moved(self, move: NormMove, length: float) -> NormTerm:
        """Return the term after a step."""
        S, excess = _moved(self.S, self.excess, length * move.S, length * move.t)
        Z, room = _moved(self.Z, self.room, length * move.Z, np.zeros_like(self.room))
        return NormTerm(self.beta, S, excess, Z, room)


@dataclass(frozen=True)
class _Scaling:
    """The map ``H`` with ``H (t, s) = (beta, -z)``: of the Lorentz vectors ``(w0, w)``, times a ratio.

    The root of ``H`` and its inverse bring both to the same point, the centre, of this determinant.
    """

    w: Array
    w0: Array
    ratio: Array
    centre: _Pair
    determinant: Array

    @property
    def along(self) -> Array:
        """Curvature along ``w``, next to one across it, of what is left without ``t``."""
        return 1 / (2 * self.w0**2 - 1)

    @property
    def first(self) -> Array:
        return (2 * self.w0**2 - 1) / self.ratio

    @property
    def first_row(self) -> Array:
        return -2 * self.w0 / self.ratio * self.w

    def apply(self, a: _Pair) -> _Pair:
        """Inverse root of ``H``."""
        root, inner = np.sqrt(self.ratio), (self.w * a[1]).sum(axis=0)
        return root * (self.w0 * a[0] + inner), root * (a[1] + (a[0] + inner / (1 + self.w0)) * self.w)

    def divide(self, a: _Pair) -> _Pair:
        """Root of ``H``."""
        root, inner = np.sqrt(self.ratio), (self.w * a[1]).sum(axis=0)
        return (self.w0 * a[0] - inner) / root, (a[1] + (inner / (1 + self.w0) - a[0]) * self.w) / root


def _product(a: _Pair, b: _Pair) -> _Pair:
    """Jordan product of the second-order cone."""
    return a[0] * b[0] + (a[1] * b[1]).sum(axis=0), a[0] * b[1] + b[0] * a[1]


def _quotient(a: _Pair, b: _Pair, determinant: Array) -> _Pair:
    """The x with ``a x = b``; the determinant of a is ``a0^2 - ||a1||^2``."""
    first = (a[0] * b[0] - (a[1] * b[1]).sum(axis=0)) / determinant
    return first, (b[1] - first * a[1]) / a[0]


def _moved(X: Array, excess: Array, dX: Array, dt: Array) -> _Pair:
    """Vectors after a step, and by how much their bounds exceed their norms."""
    moved = X + dX
    total = np.linalg.norm(X, axis=0) + np.linalg.norm(moved, axis=0)
    # The difference of the norms, without cancellation.
    longer = ((X + moved) * dX).sum(axis=0) / _divisor(total)
    # The excess is concave along a step, which leaves some of it: less is rounding.
    return moved, np.maximum(excess + dt - longer, (1 - _TO_BOUNDARY) / 2 * excess)


def _step_length(X: Array, excess: Array, dX: Array, dt: Array) -> float:
    """Largest step, at most one, that keeps ``(||x|| + excess, x)`` in the second-order cone by a margin."""
    length = np.linalg.norm(X, axis=0)
    t = length + excess
    # The largest a with (t + a dt)^2 >= ||x + a dx||^2.
    square, half = dt**2 - (dX**2).sum(axis=0), t * dt - (X * dX).sum(axis=0)
    constant = excess * (t + length)
    root = np.sqrt(np.maximum(half**2 - square * constant, 0))
    shrink = float(((root - half) / constant).max(initial=0.0))
    return min(1.0, _TO_BOUNDARY / shrink) if shrink > 0 else 1.0


def _outer(W: Array) -> Array:
    return W.T[:, :, None] * W.T[:, None, :]


def _divisor(lengths: Array) -> Array:
    return np.maximum(lengths, np.finfo(lengths.dtype).tiny)
