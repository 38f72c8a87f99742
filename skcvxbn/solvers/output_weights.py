"""Output weights of neurons whose hidden directions are held fixed: quadratic programs, and a group lasso."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize

_TELL_APART = 1e-6
# Damping of the first step, as a share of all inner products; by how much it falls after a step that leads
# down, and rises after another; the least, that of rounding, and the largest, with which nothing moves.
_DAMPING, _LESS, _MORE, _LEAST, _LARGEST = 1e-7, 0.1, 100.0, 1e-13, 1.0
# Values that differ by this share are equal up to rounding.
_EQUAL = 1e-15
# What keeps a Hessian definite, as a share of its trace.
_DEFINITE = 1e-13
# Share to which the conditions of an optimum hold, and most steps.
ACCURACY, _STEPS = 1e-5, 30


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


def improved_weights(
    gram: NDArray, linear: NDArray, V: NDArray, beta: float, accuracy: float = ACCURACY
) -> NDArray:
    r"""Minimise ``1/2 tr(V^T gram V) - tr(linear^T V) + beta * sum_j ||v_j||``, a group lasso, from a start.

    Neurons are alike, and have a large common part: gradient steps would take thousands. Here Newton's method
    finds their sizes, one number a neuron for any number of outputs, in a few steps. Inner products may be
    singular, and with rounding indefinite: to what a step minimises a little of :math:`\|V - V_0\|^2` is
    added, for the last weights :math:`V_0`. A step that does not lead down is repeated with more of it.

    Parameters
    ----------
    gram : ndarray of shape (n_neurons, n_neurons)
        Inner products of the hidden outputs.
    linear : ndarray of shape (n_neurons, n_outputs)
        Inner products of the hidden outputs with the target.
    V : ndarray of shape (n_neurons, n_outputs)
        A start.
    beta : float
        Cost of size.
    accuracy : float
        Share of their cost to which the pulls at neurons are balanced.

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

    def value(V: NDArray) -> float:
        return float(np.vdot(V, gram @ V / 2 - linear)) + beta * float(np.linalg.norm(V, axis=1).sum())

    lowest, scale, damping, least = value(V), float(np.trace(gram)), _DAMPING, _LEAST
    for _ in range(_STEPS):
        if damping > _LARGEST or _is_optimal(V, linear - gram @ V, beta, accuracy):
            break
        try:
            moved = _resized(gram, linear, V, beta, damping * scale)
        except np.linalg.LinAlgError:
            # What rounding leaves of the inner products has no factor with less.
            damping = least = damping / _LESS
            continue
        reached = value(moved)
        if reached <= lowest + _EQUAL * abs(lowest):
            V, lowest, damping = moved, reached, max(_LESS * damping, least)
        else:
            damping *= _MORE
    return V


def _resized(gram: NDArray, linear: NDArray, V: NDArray, beta: float, damping: float) -> NDArray:
    r"""Take a step of Newton's method on the sizes of the neurons.

    As :math:`\|v\| = \min_s (\|v\|^2 / s + s) / 2`, the weights of given sizes are a ridge regression's, and
    what is left to minimise over sizes is smooth and convex. Its gradient is
    :math:`(\beta - \|p_j\|^2 / \beta) / 2` for the pull :math:`p_j` at a neuron, and its Hessian
    :math:`p_j^T p_k K_{jk} / \beta^2` with :math:`K = (G^{-1} + \mathrm{diag}(s) / \beta)^{-1}`: of the order
    of the number of neurons, for any number of outputs. The damping is that of the square of the change.
    """
    sizes, pulls = np.linalg.norm(V, axis=1), np.linalg.norm(linear - gram @ V, axis=1)
    taking_part = np.flatnonzero((sizes > 0) | (pulls > beta))
    sizes, G = sizes[taking_part], _with_diagonal(gram, taking_part, damping)
    target = linear[taking_part] + damping * V[taking_part]
    roots = np.sqrt(sizes / beta)[:, None]
    scaled = roots * G
    factor = linalg.cholesky(np.eye(len(G)) + scaled * roots.T, lower=True, check_finite=False)
    half = linalg.solve_triangular(factor, scaled, lower=True, check_finite=False)
    pull = target - half.T @ linalg.solve_triangular(factor, roots * target, lower=True, check_finite=False)
    hessian = (G - half.T @ half) * (pull @ pull.T)
    wanted = hessian @ sizes + beta / 2 * (np.sum(pull**2, axis=1) - beta**2)
    # Sizes that would be negative are zero, and the others are solved for again.
    left, found = np.arange(len(G)), np.zeros(0)
    while len(left) > 0:
        found = _solved(_with_diagonal(hessian, left, _DEFINITE * float(np.trace(hessian))), wanted[left])
        if np.all(found > 0):
            break
        left = left[found > 0]
    resized = np.zeros_like(V)
    if len(left) > 0:
        resized[taking_part[left]] = _solved(_with_diagonal(G, left, beta / found), target[left])
    return resized


def _with_diagonal(M: NDArray, which: NDArray, added: NDArray | float) -> NDArray:
    """Some rows and columns of a square matrix, with something added to the diagonal."""
    part = M[np.ix_(which, which)]
    part.flat[:: len(part) + 1] += added
    return part


def _solved(M: NDArray, b: NDArray) -> NDArray:
    """Solve a system of equations with a positive definite matrix."""
    return linalg.cho_solve(linalg.cho_factor(M, lower=True, check_finite=False), b, check_finite=False)


def _is_optimal(V: NDArray, pull: NDArray, beta: float, accuracy: float) -> bool:
    """Whether nothing pulls at a neuron by more than its cost, and at those in use by as much."""
    largest = float(np.linalg.norm(pull, axis=1).max(initial=0.0))
    cost = beta * float(np.linalg.norm(V, axis=1).sum())
    return largest <= beta * (1 + accuracy) and cost - float(np.vdot(V, pull)) <= accuracy * cost
