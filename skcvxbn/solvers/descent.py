"""Descent on the network itself, problem (N), with kinks that are smoothed less and less.

In whitened coordinates, and with the balanced penalty ``beta/2 (||s||^2 + ||v||^2)``, whose minimum over
rescalings is ``beta ||s|| ||v||``, a wide network descends to the neighbourhood of the global optimum in
some hundred quasi-Newton steps. On the ReLU itself it would stall, because optimal neurons sit on its
kinks. So the ReLU is rounded off over ``|a_k^T s| <= width_j`` and the width lowered in stages: every stage
is a smooth problem that starts next to its solution. Kinks of the loss are rounded along with them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from skcvxbn.solvers.base import Problem, balanced, without_negligible

_MEMORY = 20
# Between two stages neurons below this share of the largest leave: they do not come back.
_NEGLIGIBLE = 1e-6
# Rows that are taken through the network together: so many that what they need stays in the cache.
_BLOCK = 1024
# Steps between two looks at the progress.
_STRIDE = 10


def random_network(problem: Problem, n_neurons: int, rng: np.random.RandomState) -> tuple[NDArray, NDArray]:
    """A network of random neurons whose outputs have about a third of the size of the dual point at zero."""
    rank, n_outputs = problem.A.shape[1], problem.n_outputs
    S = rng.standard_normal((rank, n_neurons))
    V = rng.standard_normal((n_neurons, n_outputs))
    S /= np.linalg.norm(S, axis=0)
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    S, V = S.astype(problem.A.dtype), V.astype(problem.A.dtype)
    output = np.linalg.norm(problem.hidden(S) @ V)
    root = np.sqrt(0.3 * np.linalg.norm(problem.zero.R) / max(float(output), 1e-12))
    return S * root, V * root


def descend(
    problem: Problem,
    S: NDArray,
    V: NDArray,
    *,
    widths: tuple[float, ...],
    n_steps: int,
    tol: float = 0.0,
    deadline: float = math.inf,
) -> tuple[NDArray, NDArray]:
    """Improve a network by quasi-Newton steps (L-BFGS, Armijo line search) on ever sharper kinks.

    Parameters
    ----------
    problem : Problem
        The training problem, in units in which outputs and dual points are of like size. Its precision is
        that of the arithmetic.
    S, V : ndarray of shape (rank + 1, n_neurons) and (n_neurons, n_outputs)
        The network to start from; left untouched.
    widths : tuple of float
        Half width of the rounded kink in each stage, in units of the typical ``|a_k^T s|`` of the neuron,
        and inverse of the largest curvature of the loss.
    n_steps : int
        Largest number of steps of a stage.
    tol : float
        A stage ends when ten steps together lower its objective by less than this share.
    deadline : float
        Value of ``time.monotonic()`` after which no step is begun.

    Returns
    -------
    S, V : tuple of ndarray
        The improved network, balanced, without the neurons that died out on the way.

    Raises
    ------
    Interrupted
        A KeyboardInterrupt that carries the network reached.
    """
    S, V = balanced(S, V)
    for width in widths:
        alive = without_negligible(S, V, _NEGLIGIBLE)
        S, V = S[:, alive], V[alive]
        if len(V) == 0:
            break
        smooth = _SmoothNetwork(problem.smoothed(width), S, V, width)
        try:
            x = _minimise(smooth, smooth.start(S, V), n_steps, tol, deadline)
        except _Stopped as stop:
            raise Interrupted(balanced(*smooth.unpack(stop.x))) from None
        S, V = balanced(*smooth.unpack(x))
    return S, V


class Interrupted(KeyboardInterrupt):
    """An interrupt of the user that keeps what had been reached."""

    def __init__(self, network: tuple[NDArray, NDArray]) -> None:
        super().__init__()
        self.network = network


class _Stopped(KeyboardInterrupt):
    def __init__(self, x: NDArray) -> None:
        super().__init__()
        self.x = x


class _SmoothNetwork:
    """Value and gradient of (N) with rounded kinks, as a function of one vector.

    With ``t = a_k^T s / (2 width_j) + 1/2`` and ``d = min(max(t, 0), 1)`` the rounded ReLU is
    ``2 width_j d (t - d/2)`` and its slope is ``d``.
    """

    def __init__(self, problem: Problem, S: NDArray, V: NDArray, width: float) -> None:
        self.problem, self.shape = problem, (S.shape, V.shape)
        # The best bias is known at once where the loss is quadratic; elsewhere it moves with the neurons.
        self.n_bias = problem.n_outputs if problem.fit_intercept and not problem.loss.quadratic else 0
        self.direction = problem.A[:, -1:]
        lengths = np.linalg.norm(S, axis=0)
        self.scale = (2 * width / np.sqrt(len(problem.A)) * lengths).astype(S.dtype)
        # Memory taken once: on a small problem allocation would cost as much as arithmetic.
        self.hidden, self.slope = (np.empty((len(problem.A), len(V)), dtype=S.dtype) for _ in range(2))
        self.half = np.empty((min(_BLOCK, len(problem.A)), len(V)), dtype=S.dtype)
        self.F = np.empty(problem.loss.shape, dtype=S.dtype)
        self.blocks = [slice(first, first + _BLOCK) for first in range(0, len(problem.A), _BLOCK)]

    def pack(self, S: NDArray, V: NDArray, bias: NDArray) -> NDArray:
        return np.concatenate([S.ravel(), V.ravel(), bias])

    def start(self, S: NDArray, V: NDArray) -> NDArray:
        """Pack a network with the best bias it can have."""
        return self.pack(S, V, self.problem.output(S, V).bias[: self.n_bias])

    def unpack(self, x: NDArray) -> tuple[NDArray, NDArray]:
        hidden, output = self.shape
        split = hidden[0] * hidden[1]
        return x[:split].reshape(hidden), x[split : len(x) - self.n_bias].reshape(output)

    def __call__(self, x: NDArray) -> tuple[float, NDArray]:
        problem = self.problem
        S, V = self.unpack(x)
        F, weights = self._forward(S / self.scale, V * self.scale[:, None]), x[: len(x) - self.n_bias]
        if self.n_bias:
            F += self.direction * x[len(weights) :]
            value, R = problem.loss.evaluate(F)
        else:
            output = problem.at(F)
            value, R = output.value, output.R
        value += 0.5 * problem.beta * float(np.vdot(weights, weights))
        gradient_S, gradient_V = self._backward(R, V)
        gradient_bias = (self.direction[:, 0] @ R)[: self.n_bias]
        gradient = -self.pack(gradient_S, gradient_V * self.scale[:, None], gradient_bias)
        gradient[: len(weights)] += problem.beta * weights
        return value, gradient

    def _forward(self, S: NDArray, V: NDArray) -> NDArray:
        """Output of the rounded neurons; it keeps their values and slopes."""
        for rows in self.blocks:
            H, D = self.hidden[rows], self.slope[rows]
            half = self.half[: len(H)]
            np.matmul(self.problem.A[rows], S, out=H)
            H += 0.5
            np.minimum(np.maximum(H, 0, out=D), 1, out=D)
            H -= np.multiply(D, 0.5, out=half)
            H *= D
            np.matmul(H, V, out=self.F[rows])
        return self.F

    def _backward(self, R: NDArray, V: NDArray) -> tuple[NDArray, NDArray]:
        """Inner products of `R` with the derivatives of the output."""
        gradient_S = np.zeros((self.problem.A.shape[1], len(V)), dtype=V.dtype)
        gradient_V = np.zeros_like(V)
        for rows in self.blocks:
            H, moved = self.hidden[rows], self.half[: len(R[rows])]
            gradient_V += H.T @ R[rows]
            np.matmul(R[rows], V.T, out=moved)
            moved *= self.slope[rows]
            gradient_S += self.problem.A[rows].T @ moved
        return gradient_S, gradient_V


def _minimise(
    evaluate: Callable[[NDArray], tuple[float, NDArray]],
    x: NDArray,
    n_steps: int,
    tol: float,
    deadline: float,
) -> NDArray:
    memory = _Memory(len(x), x.dtype)
    try:
        value, gradient = evaluate(x)
        reference = value
        for step_number in range(1, n_steps + 1):
            moved = _step(evaluate, x, value, gradient, memory.direction(gradient))
            if moved is None or time.monotonic() > deadline:
                break
            new_x, value, new_gradient = moved
            memory.update(new_x - x, new_gradient - gradient)
            x, gradient = new_x, new_gradient
            if step_number % _STRIDE == 0:
                if reference - value <= tol * abs(value):
                    break
                reference = value
    except KeyboardInterrupt:
        raise _Stopped(x) from None
    return x


def _step(
    evaluate: Callable[[NDArray], tuple[float, NDArray]],
    x: NDArray,
    value: float,
    gradient: NDArray,
    direction: NDArray,
) -> tuple[NDArray, float, NDArray] | None:
    """Backtrack along `direction` until Armijo's rule holds; None where it cannot."""
    slope = float(gradient @ direction)
    step = 1.0
    while slope < 0 and step > 1e-6:
        new_x = x + step * direction
        new_value, new_gradient = evaluate(new_x)
        if new_value <= value + 1e-4 * step * slope:
            return new_x, new_value, new_gradient
        step /= 2
    return None


class _Memory:
    """Inverse Hessian of limited memory in compact form (Byrd, Nocedal and Schnabel, 1994).

    With steps ``P``, changes of the gradient ``Q`` as rows, ``T`` the upper triangle of ``P Q^T``, ``E`` its
    diagonal and ``c`` the last curvature scale, the inverse Hessian is
    ``c I + [P^T, c Q^T] [[T^-T (E + c Q Q^T) T^-1, -T^-T], [-T^-1, 0]] [P; c Q]``: few products of
    matrices where the two-loop recursion would take many of vectors.
    """

    def __init__(self, size: int, dtype: np.dtype) -> None:
        self.P, self.Q = (np.zeros((_MEMORY, size), dtype=dtype) for _ in range(2))
        self.PQ, self.QQ = (np.zeros((_MEMORY, _MEMORY)) for _ in range(2))
        self.order: list[int] = []

    def update(self, step: NDArray, change: NDArray) -> None:
        curvature = float(step @ change)
        if curvature <= 1e-10 * float(np.linalg.norm(step)) * float(np.linalg.norm(change)):
            return
        row = len(self.order) if len(self.order) < _MEMORY else self.order.pop(0)
        self.order.append(row)
        self.P[row], self.Q[row] = step, change
        self.PQ[:, row], self.PQ[row] = self.P @ change, self.Q @ step
        self.QQ[:, row] = self.QQ[row] = self.Q @ change

    def direction(self, gradient: NDArray) -> NDArray:
        if not self.order:
            return -gradient / max(float(np.linalg.norm(gradient)), 1e-30)
        k = len(self.order)
        which = np.ix_(self.order, self.order)
        PQ, QQ = self.PQ[which], self.QQ[which]
        last = self.order[-1]
        scale = self.PQ[last, last] / self.QQ[last, last]
        rows = self.order
        p = (self.P[:k] @ gradient)[rows].astype(np.float64)
        q = (self.Q[:k] @ gradient)[rows].astype(np.float64)
        T = np.triu(PQ)
        inner = linalg.solve_triangular(T, p, check_finite=False)
        outer = linalg.solve_triangular(
            T, PQ.diagonal() * inner + scale * (QQ @ inner - q), trans=1, check_finite=False
        )
        weights_P, weights_Q = np.zeros(k), np.zeros(k)
        weights_P[rows], weights_Q[rows] = outer, -scale * inner
        product = (
            weights_P.astype(gradient.dtype) @ self.P[:k] + weights_Q.astype(gradient.dtype) @ self.Q[:k]
        )
        return -(product + gradient.dtype.type(scale) * gradient)
