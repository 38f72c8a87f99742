"""What the search climbs: ``||R^T (A s)_+||`` on the unit sphere, as it is and with rounded kinks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from skcvxbn import in_place
from skcvxbn.arrays import (
    Array,
    Rows,
    concat,
    lengths,
    namespace,
    on_processor,
    row_blocks,
    take,
    zeros,
)

# Numbers of a table that stays in the cache of a processor, and the fewest columns it may have.
_TABLE, _FEWEST_COLUMNS = 2**16, 64

# Hidden and output directions with their values, and what takes hidden and output directions elsewhere.
Points = tuple[Array, Array, Array]
Climb = Callable[[Array, Array, NDArray[np.intp]], tuple[Array, Array]]


class Landscape:
    """``||R^T (A s)_+||`` as a function of the hidden direction ``s``.

    With one output the sign of the output direction is given, and the value is ``u R^T (A s)_+``.

    Parameters
    ----------
    A : array of shape (n_samples, rank + 1)
        Whitened rows.
    R : array of shape (n_samples, n_outputs)
        The residual, or any dual point.
    rows : Rows
        How to sum over the rows.
    """

    def __init__(self, A: Array, R: Array, rows: Rows) -> None:
        self.A, self.R, self.rows = A, R, rows
        self._blocks = row_blocks(A)
        self._one_output = R.shape[1] == 1
        # Half of each is what a neuron that is on for half of every row would have.
        self._mean = 0.5 * rows.total(A.T @ R)
        self._weighted = A * R if self._one_output else A

    def evaluate(self, S: Array, U: Array) -> tuple[Array, Array]:
        """Best output directions and the values there; with one output the sign of `U` is kept."""
        outputs = zeros((self.R.shape[1], S.shape[1]), S)
        for rows in self._blocks:
            outputs += self.R[rows, :].T @ in_place.relu(self.A[rows, :] @ S)
        return self._valued(self.rows.total(outputs), U)

    def rounded(self, S: Array, U: Array, width: Array) -> tuple[Array, Array, Array]:
        """Values, gradients and output directions by columns, kinks rounded over ``|a_k^T s| <= width``.

        With ``c = min(max(a_k^T s / (2 width), -1/2), 1/2)`` the slope of the rounded ReLU is ``c + 1/2``.
        Of the two terms the second gives sums over all rows that are known, and so no table has to hold it.
        The value is that of the slope times ``a_k^T s``, so that it is the inner product of gradient and `S`.
        """
        scaled = S / (2 * width)
        if self._one_output:
            gradient = zeros(S.shape, S)
            for rows in self._blocks:
                T = self.A[rows, :] @ scaled
                in_place.clip_both(T, 0.5, out=T)
                gradient += self._weighted[rows, :].T @ T
            gradient = (self.rows.total(gradient) + self._mean) * U[:, 0]
            return namespace(S).sum(S * gradient, axis=0), gradient, U
        return self._rounded_outputs(S, scaled, width)

    def _rounded_outputs(self, S: Array, scaled: Array, width: Array) -> tuple[Array, Array, Array]:
        slopes = zeros((self.A.shape[0], S.shape[1]), S)
        outputs, gradient = zeros((self.R.shape[1], S.shape[1]), S), zeros(S.shape, S)
        for rows in self._blocks:
            T = self.A[rows, :] @ scaled
            T *= in_place.clip_both(T, 0.5, out=slopes[rows, :])
            outputs += self.R[rows, :].T @ T
        outputs = self.rows.total(outputs) * (2 * width) + self._mean.T @ S
        U, values = self._valued(outputs, zeros((S.shape[1], self.R.shape[1]), S))
        for rows in self._blocks:
            T = self.R[rows, :] @ U.T
            T *= slopes[rows, :]
            gradient += self.A[rows, :].T @ T
        return values, self.rows.total(gradient) + self._mean @ U.T, U

    def _valued(self, outputs: Array, U: Array) -> tuple[Array, Array]:
        if self._one_output:
            return U, outputs[0, :] * U[:, 0]
        return unit(outputs.T, axis=1, zeros=U), lengths(outputs, axis=0)

    def climbed(self, S: Array, U: Array, climb: Climb) -> Points:
        """Let points climb, few at a time; one that a climb does not improve on stays as it is.

        Parameters
        ----------
        S, U : array of shape (rank + 1, n_starts) and (n_starts, n_outputs)
            Unit hidden and output directions.
        climb : callable
            Takes some of them, with their positions among all, to other ones.

        Returns
        -------
        S, U : tuple of arrays
            Where they lead, in another order.
        values : array of shape (n_starts,)
            ``||R^T (A s)_+||``, or ``u R^T (A s)_+`` with one output.
        """
        ends = []
        for part in self._parts(U):
            start = take(S, part, axis=1), *self.evaluate(take(S, part, axis=1), take(U, part, axis=0))
            new_S, new_U = climb(*start[:2], part)
            ends.append(better(start, (new_S, *self.evaluate(new_S, new_U))))
        if len(ends) == 1:
            return ends[0]
        climbed_S, climbed_U, values = (list(arrays) for arrays in zip(*ends, strict=True))
        return concat(climbed_S, axis=1), concat(climbed_U, axis=0), concat(values, axis=0)

    def _parts(self, U: Array) -> Iterator[NDArray[np.intp]]:
        # Equally many in every process: they sum over their rows together.
        size = max(_TABLE // self.rows.count(self.A), _FEWEST_COLUMNS) if on_processor(U) else U.shape[0]
        every = np.arange(U.shape[0])
        for start in range(0, len(every), size):
            yield every[start : start + size]


def unit(M: Array, axis: int, zeros: Array | None = None) -> Array:
    """Columns or rows of length one; zeros are those of another matrix, or stay."""
    xp, norm = namespace(M), lengths(M, axis=axis)
    norm = norm[None, :] if axis == 0 else norm[:, None]
    scaled = M / xp.where(norm > 0, norm, 1.0)
    return scaled if zeros is None else xp.where(norm > 0, scaled, zeros)


def better(start: Points, end: Points) -> Points:
    """Of two places of every point the one of the larger value."""
    (start_S, start_U, before), (S, U, after) = start, end
    xp, worse = namespace(S), after < before
    return (
        xp.where(worse, start_S, S),
        xp.where(worse[:, None], start_U, U),
        xp.maximum(after, before),
    )
