"""Descent on the network itself, problem (N), by a limited-memory quasi-Newton method.

In whitened coordinates, and with the balanced penalty ``beta/2 (||s||^2 + ||v||^2)``, whose minimum over
rescalings is ``beta ||s|| ||v||``, a wide network descends to within a fraction of a percent of the
global optimum in tens of steps. It stalls there, because optimal neurons sit on kinks of the ReLU.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from skcvxbn.solvers.base import Problem, balanced

_MEMORY = 20


def random_network(problem: Problem, n_neurons: int, rng: np.random.RandomState) -> tuple[NDArray, NDArray]:
    """A network of random neurons whose outputs have about a third of the size of the target."""
    rank, n_outputs = problem.A.shape[1], problem.Y.shape[1]
    S = rng.standard_normal((rank, n_neurons))
    V = rng.standard_normal((n_neurons, n_outputs))
    S /= np.linalg.norm(S, axis=0)
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    S, V = S.astype(problem.A.dtype), V.astype(problem.A.dtype)
    output = np.linalg.norm(problem.without_bias(problem.hidden(S) @ V))
    root = np.sqrt(0.3 * np.linalg.norm(problem.target) / max(float(output), 1e-12))
    return S * root, V * root


def descend(
    problem: Problem, S: NDArray, V: NDArray, n_steps: int, tol: float = 0.0
) -> tuple[NDArray, NDArray]:
    """Improve a network by at most `n_steps` quasi-Newton steps (L-BFGS, Armijo line search).

    Parameters
    ----------
    problem : Problem
        The training problem.
    S, V : ndarray of shape (rank + 1, n_neurons) and (n_neurons, n_outputs)
        The network to start from; left untouched.
    n_steps : int
        Number of steps.
    tol : float
        Stop when ten steps together lower the objective by less than this share.

    Returns
    -------
    S, V : tuple of ndarray
        The improved network, balanced.
    """
    if len(V) == 0:
        return S, V
    hidden_shape, output_shape, split = S.shape, V.shape, S.size

    def network(x: NDArray) -> tuple[NDArray, NDArray]:
        return x[:split].reshape(hidden_shape), x[split:].reshape(output_shape)

    def evaluate(x: NDArray) -> tuple[float, NDArray]:
        return _value_and_gradient(problem, *network(x))

    S, V = balanced(S, V)
    x = np.concatenate([S.ravel(), V.ravel()])
    value, gradient = evaluate(x)
    history: deque[tuple[NDArray, NDArray, float]] = deque(maxlen=_MEMORY)
    reference = value
    for step_number in range(1, n_steps + 1):
        direction = _two_loop(gradient, history)
        slope = float(gradient @ direction)
        if slope >= 0:
            break
        step = 1.0
        while True:
            new_x = x + step * direction
            new_value, new_gradient = evaluate(new_x)
            if new_value <= value + 1e-4 * step * slope:
                break
            step /= 2
            if step < 1e-9:
                return balanced(*network(x))
        difference, change = new_x - x, new_gradient - gradient
        curvature = float(difference @ change)
        if curvature > 1e-10 * float(change @ change) ** 0.5 * float(difference @ difference) ** 0.5:
            history.append((difference, change, curvature))
        x, value, gradient = new_x, new_value, new_gradient
        if step_number % 10 == 0:
            if reference - value < tol * abs(value):
                break
            reference = value
    return balanced(*network(x))


def _value_and_gradient(problem: Problem, S: NDArray, V: NDArray) -> tuple[float, NDArray]:
    H = problem.hidden(S)
    R = problem.target - problem.without_bias(H @ V)
    beta = problem.beta
    value = 0.5 * float(np.vdot(R, R)) + 0.5 * beta * float(np.vdot(S, S) + np.vdot(V, V))
    gradient_V = beta * V - H.T @ R
    pulled_back = R @ V.T
    pulled_back *= H > 0
    gradient_S = beta * S - problem.A.T @ pulled_back
    return value, np.concatenate([gradient_S.ravel(), gradient_V.ravel()])


def _two_loop(gradient: NDArray, history: deque[tuple[NDArray, NDArray, float]]) -> NDArray:
    direction = -gradient
    if not history:
        return direction / max(float(np.linalg.norm(gradient)), 1e-300)
    coefficients = []
    for difference, change, curvature in reversed(history):
        a = float(difference @ direction) / curvature
        coefficients.append(a)
        direction -= a * change
    _, change, curvature = history[-1]
    direction *= curvature / float(change @ change)
    for (difference, change, curvature), a in zip(history, reversed(coefficients), strict=True):
        direction += (a - float(change @ direction) / curvature) * difference
    return direction
