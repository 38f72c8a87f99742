"""Shrinkage of a basis: less weight for the directions in which the data hardly vary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

# Directions of which less than this share of what is kept of the largest would be left are dropped.
_LEAST_SHARE = 0.1


def shrunk(squares: NDArray[np.float64], share: float) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    r"""Lengths that take a share of the variance of the data, most of it where the variance is small.

    With :math:`Z = P \Sigma Q^T` the SVD of the standardised rows, an orthonormal basis is
    :math:`Z Q \Sigma^{-1}`, and batch normalization in it divides a neuron by its standard deviation. It
    gives all directions the same weight, those included in which the data hardly vary. The shrunk basis is
    :math:`Z Q (\Sigma^2 + \tau)^{-1/2}`: it divides by the standard deviation that the neuron would have if
    every standardised feature carried independent noise of the total square :math:`\tau`, which is chosen
    so that :math:`\sum_i \sigma_i^2 \tau / (\sigma_i^2 + \tau)` is the given share of
    :math:`\sum_i \sigma_i^2`. Towards zero this is the orthonormal basis, towards one a multiple of `Z`.

    Parameters
    ----------
    squares : ndarray of shape (n_directions,)
        Squared singular values of the standardised rows, in increasing order.
    share : float
        The share, above 0 and below 1.

    Returns
    -------
    factors : ndarray of shape (n_kept,)
        The factors ``(squares + tau) ** -0.5`` of the directions that are kept.
    kept : ndarray of int, shape (n_kept,)
        These directions, in decreasing order of their squares. Those are dropped that would be left with less
        than a tenth of what the largest one keeps of its square.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.shrinkage import shrunk
    >>> factors, kept = shrunk(np.array([0.0, 1.0, 100.0]), share=0.01)
    >>> kept.tolist()
    [2, 1]
    >>> bool(np.isclose((1 - factors**2 * [100, 1]) @ [100, 1], 1.01))
    True
    """
    largest = squares.max(initial=0.0)
    present = squares > np.finfo(np.float64).eps * len(squares) * largest
    if not present.any():
        return np.zeros(0), np.zeros(0, dtype=np.intp)
    values = squares[present]

    def excess(logarithm: float) -> float:
        return float((values / (1 + values * np.exp(-logarithm))).sum() - share * values.sum())

    # At these ends the share taken of every direction is too small, and too large.
    odds = share / (1 - share)
    ends = np.log(odds * values[0]) - 1e-6, np.log(odds * values[-1]) + 1e-6
    tau = np.exp(brentq(excess, *ends))
    left = squares / (squares + tau)
    kept = np.flatnonzero(present & (left >= _LEAST_SHARE * left[-1]))[::-1]
    return 1 / np.sqrt(squares[kept] + tau), kept
