"""Sizes of neurons whose hidden and output directions are held fixed: quadratic programs in numbers >= 0."""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize

_TELL_APART = 1e-6
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
