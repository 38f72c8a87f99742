"""The cone constraints ``(2 D_j - I) A s_j >= 0`` that a neuron is near to.

Of the hyperplanes ``a_k^T s = 0`` a neuron will touch no more than it has directions, and among thousands
of rows those are nearly always some of the few hundred that were nearest. The others need not be looked at
before the end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class ConeConstraints:
    """The same number of constraints for every neuron.

    Parameters
    ----------
    A : ndarray of shape (n_samples, rank + 1)
        Whitened rows.
    sign : ndarray of shape (n_samples, n_neurons)
        Arrangements, as signs.
    distance : ndarray of shape (n_samples, n_neurons)
        How far each neuron is from each of its constraints; the smallest are taken.
    n_constraints : int
        How many, at most `n_samples`.
    """

    def __init__(self, A: NDArray, sign: NDArray, distance: NDArray, n_constraints: int) -> None:
        if n_constraints < len(A):
            nearest = np.argpartition(distance, n_constraints, axis=0)[:n_constraints]
            self._rows = A[nearest.T] * np.take_along_axis(sign, nearest, axis=0).T[:, :, None]
        else:
            self._rows = A * sign.T[:, :, None]

    def margins(self, S: NDArray) -> NDArray:
        """Left-hand sides, of shape (n_neurons, n_constraints)."""
        return np.matmul(self._rows, S.T[:, :, None])[:, :, 0]

    def adjoint(self, multiplier: NDArray) -> NDArray:
        """Sums of the normals, times multipliers, of shape (rank + 1, n_neurons)."""
        return np.matmul(multiplier[:, None, :], self._rows)[:, 0, :].T

    def grams(self, weights: NDArray) -> NDArray:
        """Weighted sums of the normals' squares, of shape (n_neurons, rank + 1, rank + 1)."""
        return np.matmul(self._rows.transpose(0, 2, 1), self._rows * weights[:, :, None])
