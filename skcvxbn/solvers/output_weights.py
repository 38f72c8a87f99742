"""Output weights of given hidden directions: the training problem with the hidden layer held fixed.

Over ``V``, a row for every column of ``H``,

    minimise  1/2 || H V - Y ||_F^2 + beta * sum_j || v_j ||_2 .

With one output and known signs this is a problem in nonnegative sizes; otherwise it is the group lasso.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize

_TELL_APART = 1e-6
# Cycles of the group lasso: sweeps over the rows in use, then Newton steps.
_CYCLES, _SWEEPS, _NEWTON_STEPS, _HALVINGS = 200, 10, 5, 6
# Added to the curvatures of Newton's method, next to columns of length at most one and to that of the norm.
_RIDGE = 1e-8
_POWER_STEPS, _GRADIENT_STEPS = 20, 150


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


def improved_sizes(gram: NDArray, linear: NDArray, sizes: NDArray) -> NDArray:
    """Lower ``1/2 a^T gram a - linear^T a`` over ``a >= 0`` from a start, by accelerated gradient steps.

    Unlike `nonnegative_sizes` it serves neurons of any output directions, in any precision, and is not exact.

    Parameters
    ----------
    gram : ndarray of shape (n_neurons, n_neurons)
        Inner products of the neurons' outputs.
    linear : ndarray of shape (n_neurons,)
        Inner products with the target, less the cost of size.
    sizes : ndarray of shape (n_neurons,)
        A start.

    Returns
    -------
    ndarray of shape (n_neurons,)
        The sizes.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.solvers.output_weights import improved_sizes
    >>> improved_sizes(np.eye(2), np.array([2.5, -1.5]), np.ones(2)).round(6)
    array([2.5, 0. ])
    """
    vector = np.ones_like(linear)
    for _ in range(_POWER_STEPS):
        vector = gram @ vector
        vector /= max(float(np.linalg.norm(vector)), float(np.finfo(vector.dtype).tiny))
    # The power method falls a little short of the largest eigenvalue.
    lipschitz = 1.05 * float(vector @ (gram @ vector))
    extrapolated, momentum = sizes, 1.0
    for _ in range(_GRADIENT_STEPS if lipschitz > 0 else 0):
        new = np.maximum(extrapolated - (gram @ extrapolated - linear) / lipschitz, 0)
        new_momentum = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        extrapolated = new + (momentum - 1) / new_momentum * (new - sizes)
        sizes, momentum = new, new_momentum
    return sizes


def group_lasso(H: NDArray, Y: NDArray, beta: float, V: NDArray, tol: float = 1e-8) -> NDArray:
    """Minimise ``1/2 ||H V - Y||_F^2 + beta * sum_j ||v_j||`` by sweeps and Newton steps.

    Parameters
    ----------
    H : ndarray of shape (n_samples, n_directions)
        Columns.
    Y : ndarray of shape (n_samples, n_outputs)
        Targets.
    beta : float
        Weight of the norms, positive.
    V : ndarray of shape (n_directions, n_outputs)
        A start.
    tol : float
        Violation of the optimality conditions that may be left, as a share of `beta`.

    Returns
    -------
    ndarray of shape (n_directions, n_outputs)
        The weights, exact zeros included.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.solvers.output_weights import group_lasso
    >>> group_lasso(np.eye(2), np.array([[3.0, 4.0], [0.1, 0.1]]), 1.0, np.zeros((2, 2)))
    array([[2.4, 3.2],
           [0. , 0. ]])
    """
    gram, moments, V = H.T @ H, H.T @ Y, V.copy()
    for _ in range(_CYCLES):
        gradient = gram @ V - moments
        lengths = np.linalg.norm(V, axis=1)
        active = lengths > 0
        direction = V / np.where(active, lengths, 1.0)[:, None]
        excess = np.linalg.norm(gradient + beta * direction, axis=1) - np.where(active, 0.0, beta)
        if excess.max() <= tol * beta:
            break
        _sweep(gram, moments, beta, V, np.flatnonzero(active | (excess > 0)))
        for _ in range(_SWEEPS):
            _sweep(gram, moments, beta, V, np.flatnonzero(V.any(axis=1)))
        before: int = -1
        while before != (count := int(np.count_nonzero(V.any(axis=1)))):
            # As long as Newton's method puts rows to zero.
            active, before = np.flatnonzero(V.any(axis=1)), count
            V[active] = _newton(gram[np.ix_(active, active)], moments[active], beta, V[active])
    return V


def _sweep(gram: NDArray, moments: NDArray, beta: float, V: NDArray, rows: NDArray) -> None:
    """Minimise over one row after the other, in place."""
    for j in rows:
        z = moments[j] - gram[j] @ V + gram[j, j] * V[j]
        length = np.sqrt(z @ z)
        V[j] = z * (max(1 - beta / length, 0.0) / gram[j, j]) if length > 0 else 0.0


def _newton(gram: NDArray, moments: NDArray, beta: float, V: NDArray) -> NDArray:
    """Newton steps in nonzero rows, until one of them becomes zero or the objective is no longer lowered."""
    n_rows, n_outputs = V.shape

    def objective(V: NDArray) -> float:
        return float(np.vdot(V, 0.5 * gram @ V - moments) + beta * np.linalg.norm(V, axis=1).sum())

    value = objective(V)
    for _ in range(_NEWTON_STEPS if n_rows else 0):
        lengths = np.linalg.norm(V, axis=1)
        direction = V / lengths[:, None]
        gradient = gram @ V - moments + beta * direction
        curvature = (1 + _RIDGE) * np.eye(n_outputs) - direction[:, :, None] * direction[:, None, :]
        hessian = np.zeros((n_rows, n_outputs, n_rows, n_outputs))
        outputs, rows = np.arange(n_outputs), np.arange(n_rows)
        hessian[:, outputs, :, outputs] = gram
        hessian[rows, :, rows, :] += beta / lengths[:, None, None] * curvature
        matrix = hessian.reshape(V.size, V.size)
        # Directions that nearly agree make the Gram matrix singular.
        matrix.flat[:: V.size + 1] += _RIDGE
        factor = linalg.cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
        step = -linalg.cho_solve(factor, gradient.ravel(), check_finite=False).reshape(V.shape)
        for halving in range(_HALVINGS):
            trial = V + 0.5**halving * step
            # Past zero the model of the norm is wrong, but zero is where such a row is going.
            trial[(trial * V).sum(axis=1) <= 0] = 0
            trial_value = objective(trial)
            if trial_value < value:
                break
        else:
            break
        decrease, V, value = value - trial_value, trial, trial_value
        if decrease <= 1e-15 * abs(value) or not V.any(axis=1).all():
            break
    return V
