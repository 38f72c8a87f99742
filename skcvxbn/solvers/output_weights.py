"""Output weights of neurons whose hidden directions are held fixed: quadratic programs, and a group lasso."""

from __future__ import annotations

import warnings
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize

_TELL_APART = 1e-6
# Penalty of the alternating directions: at the start as a typical neuron's cost for its size, at least as a
# share of all inner products that is above the rounding of single precision, and most change at a time.
_PENALTY, _LEAST_PENALTY, _CHANGE = 0.05, 1e-6, 5.0
# Their relaxation, and steps at a time.
_RELAXATION, _STEPS = 1.6, 40
# What Newton's method adds to the inner products, as a share of all, for the same reason.
_DAMPING = 1e-8
# The two take turns until the conditions of an optimum hold to this share, or for so many rounds.
ACCURACY, _ROUNDS = 1e-5, 15


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
    """Minimise ``1/2 tr(V^T gram V) - tr(linear^T V) + beta * sum_j ||v_j||``, a group lasso, from a start.

    Neurons are alike, and have a large common part: gradient steps would take thousands. Here the alternating
    direction method of multipliers finds which neurons are needed, in some dozen steps, and Newton's method
    their sizes, in one or two.

    Parameters
    ----------
    gram : ndarray of shape (n_neurons, n_neurons)
        Inner products of the hidden outputs.
    linear : ndarray of shape (n_neurons, n_outputs)
        Inner products of the hidden outputs with the target.
    V : ndarray of shape (n_neurons, n_outputs)
        A start, whose typical size sets the penalty of the first steps.
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

    sizes, trace = np.linalg.norm(V, axis=1), float(np.trace(gram))
    typical = float(sizes @ sizes) / (float(sizes.sum()) or 1.0)
    penalty = _PENALTY * beta / typical if typical > 0 else trace / max(len(gram), 1)
    # What pulls at a neuron in excess of its cost is in balance at the optimum.
    dual = _shortened(linear - gram @ V, beta)
    V, dual, penalty = _alternated(gram, linear, V, dual, beta, penalty)
    for _ in range(_ROUNDS):
        if _is_optimal(V, linear - gram @ V, beta, accuracy):
            break
        resized = V
        # The inner products that rounding leaves may have no factor.
        with suppress(np.linalg.LinAlgError):
            resized = _resized(gram, linear, V, beta)
        if value(resized) < value(V):
            V, dual = resized, _shortened(linear - gram @ resized, beta)
        else:
            V, dual, penalty = _alternated(gram, linear, V, dual, beta, penalty)
    return V


def _alternated(
    gram: NDArray, linear: NDArray, V: NDArray, dual: NDArray, beta: float, penalty: float
) -> tuple[NDArray, NDArray, float]:
    """Some steps of the alternating direction method of multipliers, and the penalty for the next ones."""
    # Rounding may have left the inner products a little short of positive semidefinite.
    penalty = max(penalty, _LEAST_PENALTY * float(np.trace(gram))) or 1.0
    inverse = np.linalg.inv(gram + penalty * np.eye(len(gram)))
    free = last = V
    for _ in range(_STEPS):
        last, free = V, inverse @ (linear + penalty * V - dual)
        moved = dual + penalty * (_RELAXATION * free + (1 - _RELAXATION) * V)
        dual = _shortened(moved, beta)
        V = (moved - dual) / penalty
    # A large penalty keeps the two sets of weights together, and a small one lets them move.
    apart = float(np.linalg.norm(free - V) * np.linalg.norm(dual))
    moving = penalty * float(np.linalg.norm(V - last) * np.linalg.norm(V))
    if apart > 0 and moving > 0:
        penalty *= min(max((apart / moving) ** 0.5, 1 / _CHANGE), _CHANGE)
    return V, dual, penalty


def _resized(gram: NDArray, linear: NDArray, V: NDArray, beta: float) -> NDArray:
    r"""Take a step of Newton's method on the sizes of the neurons.

    As :math:`\|v\| = \min_s (\|v\|^2 / s + s) / 2`, the weights of given sizes are a ridge regression's, and
    what is left to minimise over sizes is smooth and convex. Its gradient is
    :math:`(\beta - \|p_j\|^2 / \beta) / 2` for the pull :math:`p_j` at a neuron, and its Hessian
    :math:`p_j^T p_k K_{jk} / \beta^2` with :math:`K = (G^{-1} + \mathrm{diag}(s) / \beta)^{-1}`: of the order
    of the number of neurons, for any number of outputs.
    """
    sizes, pulls = np.linalg.norm(V, axis=1), np.linalg.norm(linear - gram @ V, axis=1)
    taking_part = np.flatnonzero((sizes > 0) | (pulls > beta))
    G, target, sizes = gram[np.ix_(taking_part, taking_part)], linear[taking_part], sizes[taking_part]
    roots = np.sqrt(sizes / beta)[:, None]
    scaled = roots * G
    factor = np.linalg.cholesky(np.eye(len(G)) + scaled * roots.T)
    half = linalg.solve_triangular(factor, scaled, lower=True, check_finite=False)
    pull = target - half.T @ linalg.solve_triangular(factor, roots * target, lower=True, check_finite=False)
    hessian = (G - half.T @ half) * (pull @ pull.T)
    hessian += _DAMPING * beta**2 * (float(np.trace(G)) or 1.0) * np.eye(len(G))
    wanted = hessian @ sizes + beta / 2 * (np.sum(pull**2, axis=1) - beta**2)
    # Sizes that would be negative are zero, and the others are solved for again.
    left, found = np.arange(len(G)), np.linalg.solve(hessian, wanted)
    while np.any(found <= 0):
        left = left[found > 0]
        found = np.linalg.solve(hessian[np.ix_(left, left)], wanted[left])
    resized = np.zeros_like(V)
    resized[taking_part[left]] = np.linalg.solve(G[np.ix_(left, left)] + np.diag(beta / found), target[left])
    return resized


def _is_optimal(V: NDArray, pull: NDArray, beta: float, accuracy: float) -> bool:
    """Whether nothing pulls at a neuron by more than its cost, and at those in use by as much."""
    largest = float(np.linalg.norm(pull, axis=1).max(initial=0.0))
    cost = beta * float(np.linalg.norm(V, axis=1).sum())
    return largest <= beta * (1 + accuracy) and cost - float(np.vdot(V, pull)) <= accuracy * cost


def _shortened(V: NDArray, most: float) -> NDArray:
    """Rows, of which those that are longer than that are made so long."""
    return V * (most / np.maximum(np.linalg.norm(V, axis=1, keepdims=True), most))
