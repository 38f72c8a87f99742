"""Output weights of neurons whose hidden directions are held fixed: quadratic programs, and a group lasso."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize

_TELL_APART = 1e-6
# Penalty of the alternating directions, as a typical neuron's cost for its size, and at least as a share of
# all inner products that is above the rounding of single precision; their relaxation.
_PENALTY, _LEAST_PENALTY, _RELAXATION = 0.05, 1e-6, 1.6
# They end when the conditions of an optimum hold to this share, or after so many steps; seen at intervals.
_ACCURACY, _MOST_STEPS, _STRIDE = 1e-5, 600, 20


def nonnegative_sizes(H: NDArray, y: NDArray, beta: float) -> NDArray:
    """Minimise ``1/2 ||H a - y||^2 + beta * sum(a)`` over ``a >= 0``.

    Parameters
    ----------
    H : ndarray of shape (n_samples, n_directions)
        Columns.
    y : ndarray of shape (n_samples,)
        Target.
    beta : float
        Cost of size.

    Returns
    -------
    ndarray of shape (n_directions,)
        The sizes.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.solvers.output_weights import nonnegative_sizes
    >>> nonnegative_sizes(np.eye(2), np.array([3.0, -1.0]), 0.5)
    array([2.5, 0. ])
    """
    if H.shape[1] >= len(H):
        # Columns that depend on one another are told apart by a square too small to matter.
        H = np.vstack([H, _TELL_APART * np.eye(H.shape[1])])
        y = np.concatenate([y, np.zeros(H.shape[1])])
    # With H^T r = beta the linear term is a part of the square.
    shift = np.linalg.lstsq(H.T, np.full(H.shape[1], beta), rcond=None)[0]
    return nonnegative_least_squares(H, y - shift)


def nonnegative_least_squares(M: NDArray, b: NDArray) -> NDArray:
    """Minimise ``||M x - b||`` over ``x >= 0``.

    Parameters
    ----------
    M : ndarray of shape (n_equations, n_unknowns)
        Matrix.
    b : ndarray of shape (n_equations,)
        Right-hand side.

    Returns
    -------
    ndarray of shape (n_unknowns,)
        The minimiser.
    """
    try:
        with warnings.catch_warnings():
            # Older SciPy forms normal equations, and warns where their rounding spoils the result.
            warnings.simplefilter("error", linalg.LinAlgWarning)
            return optimize.nnls(M, b)[0]
    except (RuntimeError, linalg.LinAlgWarning):
        # Its active-set method can also cycle.
        return optimize.lsq_linear(M, b, (0, np.inf), method="bvls").x


def improved_weights(gram: NDArray, linear: NDArray, V: NDArray, beta: float) -> NDArray:
    """Minimise ``1/2 tr(V^T gram V) - tr(linear^T V) + beta * sum_j ||v_j||``, a group lasso, from a start.

    Alternating direction method of multipliers with one factorisation. Neurons are alike, and have a large
    common part: gradient steps would take thousands where this takes some hundred.

    Parameters
    ----------
    gram : ndarray of shape (n_neurons, n_neurons)
        Inner products of the hidden outputs.
    linear : ndarray of shape (n_neurons, n_outputs)
        Inner products of the hidden outputs with the target.
    V : ndarray of shape (n_neurons, n_outputs)
        A start, whose typical size sets the penalty of the method.
    beta : float
        Cost of size.

    Returns
    -------
    ndarray of shape (n_neurons, n_outputs)
        The weights, of which those that are not needed are zero.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.solvers.output_weights import improved_weights
    >>> improved_weights(np.eye(2), np.array([[3.0], [-0.5]]), np.ones((2, 1)), 0.5).round(4) + 0.0
    array([[2.5],
           [0. ]])
    """
    sizes = np.linalg.norm(V, axis=1)
    total, trace = float(sizes.sum()), float(np.trace(gram))
    wanted = _PENALTY * beta * total / float(sizes @ sizes) if total > 0 else trace / max(len(gram), 1)
    # Rounding may have left the inner products a little short of positive semidefinite.
    penalty = max(wanted, _LEAST_PENALTY * trace) or 1.0
    inverse = np.linalg.inv(gram + penalty * np.eye(len(gram)))
    # What pulls at a neuron in excess of its cost is in balance at the optimum.
    pull = linear - gram @ V
    dual = pull * _shrinking(pull, beta) / penalty
    for step_number in range(1, _MOST_STEPS + 1):
        free = inverse @ (linear + penalty * (V - dual))
        dual += _RELAXATION * free + (1 - _RELAXATION) * V
        V = dual * (1 - _shrinking(dual, beta / penalty))
        dual -= V
        if step_number % _STRIDE == 0 and _is_optimal(V, linear - gram @ V, beta):
            break
    return V


def _is_optimal(V: NDArray, pull: NDArray, beta: float) -> bool:
    """Whether nothing pulls at a neuron by more than its cost, and at those in use by as much."""
    largest = float(np.linalg.norm(pull, axis=1).max(initial=0.0))
    cost = beta * float(np.linalg.norm(V, axis=1).sum())
    return largest <= beta * (1 + _ACCURACY) and cost - float(np.vdot(V, pull)) <= _ACCURACY * cost


def _shrinking(V: NDArray, most: float) -> NDArray:
    """Share of each row that is at most so long."""
    sizes = np.linalg.norm(V, axis=1, keepdims=True)
    return most / np.maximum(sizes, most)
