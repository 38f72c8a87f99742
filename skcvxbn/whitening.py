"""Whitening: the change of variables that batch normalization hides (Section 2 of the paper).

A batch-normalized hidden neuron sees the data only through the column space of the centred data
matrix, so the training problem is stated in an orthonormal basis of that space. Everything else in
the library works with the matrix ``A = [U, 1/sqrt(n)]`` built here, whose columns are orthonormal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

# Rows are processed in blocks of about this many entries, so that the working copy of a tall matrix
# stays small next to the matrix itself.
_BLOCK_ENTRIES = 2**22


@dataclass(frozen=True)
class Whitening:
    """Orthonormal coordinates of a data matrix, and the way back to its features.

    Attributes
    ----------
    A : ndarray of shape (n_samples, rank + 1)
        ``sqrt(w) * [U, 1/sqrt(n)]`` with orthonormal columns, ``n`` being the sum of the weights.
    mean : ndarray of shape (n_features,)
        The weighted mean of the rows.
    projection : ndarray of shape (n_features, rank)
        The map ``U = (X - mean) @ projection``.
    singular_values : ndarray of shape (rank,)
        Singular values of the centred data after every column was divided by `scale`.
    scale : ndarray of shape (n_features,)
        The largest magnitude in each column (1 for a column of zeros).
    n_rows : float
        The number of training rows, each counted with its weight.
    """

    A: NDArray
    mean: NDArray
    projection: NDArray
    singular_values: NDArray
    scale: NDArray
    n_rows: float

    @property
    def rank(self) -> int:
        """Dimension of the span of the centred rows."""
        return self.projection.shape[1]

    def coordinates(self, X: NDArray) -> NDArray:
        """Coordinates of any rows, of shape (n, rank + 1), without a weight."""
        U = (X - self.mean) @ self.projection
        constant = np.full((len(X), 1), self.n_rows**-0.5, dtype=U.dtype)
        return np.hstack([U, constant])

    def truncated(self, X: NDArray, weight: NDArray, n_components: int | float) -> tuple[NDArray, Whitening]:
        """Keep the leading singular directions of the centred rows, in the units of the features.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            The rows that were whitened.
        weight : ndarray of shape (n_samples,)
            Their weights.
        n_components : int or float
            Number of directions, or share of the variance in (0, 1) that they are to explain.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            The rows of lower rank (equation 17 of the paper).
        Whitening
            Their coordinates. A network in them takes rows of full rank as well: to its weights the
            directions left out are zero.
        """
        if self.rank == 0:
            return X, self
        mean = self.mean.astype(np.float64)
        U = self.A[:, :-1].astype(np.float64)
        left, values, right = linalg.svd((U * np.sqrt(weight)[:, None]).T @ (X - mean), full_matrices=False)
        squares = values**2
        k = min(n_leading(squares / squares.sum(), n_components), self.rank)
        left, values, right = left[:, :k], values[:k], right[:k]
        rows = mean + (U @ left / np.sqrt(weight)[:, None]) @ (values[:, None] * right)
        dtype = self.A.dtype
        truncated = replace(
            self,
            A=np.hstack([U @ left, self.A[:, -1:]]).astype(dtype),
            projection=(self.projection @ left).astype(dtype),
            singular_values=linalg.svdvals(values[:, None] * right / self.scale).astype(dtype),
        )
        return rows.astype(dtype), truncated


def n_leading(shares: NDArray, n_components: int | float | None) -> int:
    """Count the directions asked for, given the share of the variance of each, in decreasing order."""
    if n_components is None:
        return len(shares)
    if isinstance(n_components, Integral):
        return int(n_components)
    # The slack lets directions that reach the share exactly do so whatever the rounding.
    return min(int((np.cumsum(shares) < n_components - 1e-12).sum()) + 1, len(shares))


def whiten(X: ArrayLike, sample_weight: ArrayLike | None = None) -> Whitening:
    """Compute an orthonormal basis of the centred data.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        The training rows, finite, as float32 or float64.
    sample_weight : array-like of shape (n_samples,), optional
        Positive weights. An integer weight is the same as repeating the row.

    Returns
    -------
    Whitening
        The basis, in the dtype of `X`; the decomposition itself is computed in float64.

    Notes
    -----
    *Rank.* Every column is divided by its largest magnitude, so that rounding in the input has the
    same size, ``eps`` (of the dtype of `X`), in every entry, whatever the units of the features. A
    matrix of such errors has norm at most about ``eps * (sqrt(n) + sqrt(d))`` (for unit weights); a
    direction is kept when its singular value exceeds eight times that. Constant, repeated and linearly
    dependent columns therefore drop out, and rescaling a feature changes nothing.

    *Cost.* The smaller of the two Gram matrices is decomposed. That squares the condition number, so
    the basis is orthonormalised a second time (as in CholeskyQR2), up to condition numbers of
    about 1e5; beyond that a Householder QR and the SVD of its triangular factor are used instead. The
    columns of `A` are orthonormal to about ``eps`` times the condition number of the scaled columns.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.whitening import whiten
    >>> X = np.array([[0.0, 1.0, 5.0], [1.0, 1.0, 5.0], [2.0, 3.0, 5.0], [4.0, 1.0, 5.0]])
    >>> whitening = whiten(X)
    >>> whitening.rank
    2
    >>> np.allclose(whitening.A.T @ whitening.A, np.eye(3))
    True
    """
    X = np.asarray(X)
    n_samples, n_features = X.shape
    dtype = X.dtype if X.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    weight = np.ones(n_samples) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    n_rows = float(weight.sum())
    root_weight = np.sqrt(weight)[:, None]

    largest = np.maximum(X.max(axis=0), -X.min(axis=0)).astype(np.float64)
    scale = np.where(largest > 0, largest, 1.0)
    # Scaling before the mean is taken keeps the sums in range for features as large as 1e300.
    mean = _scaled_mean(X, scale, weight) * scale
    noise = np.finfo(dtype).eps * np.sqrt(n_rows) * (1 + np.sqrt(n_features / n_samples))
    rows = _CentredRows(X, mean, scale, root_weight)

    if n_features <= n_samples:
        to_basis, singular_values = _decompose_tall(rows, 8 * noise)
    else:
        to_basis, singular_values = _decompose_wide(rows, 8 * noise)
    rank = len(singular_values)

    A = np.empty((n_samples, rank + 1), dtype=dtype)
    for block in rows.blocks():
        A[block, :rank] = rows.load(block) @ to_basis
    A[:, rank] = root_weight[:, 0] / np.sqrt(n_rows)
    return Whitening(
        A=A,
        mean=mean.astype(dtype),
        projection=(to_basis / scale[:, None]).astype(dtype),
        singular_values=singular_values.astype(dtype),
        scale=scale.astype(dtype),
        n_rows=n_rows,
    )


def _scaled_mean(X: NDArray, scale: NDArray, weight: NDArray) -> NDArray:
    # Two passes: the mean of the deviations from a first guess removes the rounding error of the first.
    share = weight / weight.sum()
    first = X[0] / scale
    total = np.zeros(X.shape[1])
    for block in _row_blocks(*X.shape):
        total += share[block] @ (X[block] / scale - first)
    return first + total


def _row_blocks(n_samples: int, n_features: int) -> list[slice]:
    size = max(1, _BLOCK_ENTRIES // max(n_features, 1))
    return [slice(start, min(start + size, n_samples)) for start in range(0, n_samples, size)]


@dataclass(frozen=True)
class _CentredRows:
    """Centred, column-scaled, weighted rows in float64, one block at a time."""

    X: NDArray
    mean: NDArray
    scale: NDArray
    root_weight: NDArray

    @property
    def shape(self) -> tuple[int, int]:
        return self.X.shape[0], self.X.shape[1]

    def blocks(self) -> list[slice]:
        return _row_blocks(*self.shape)

    def load(self, block: slice) -> NDArray:
        return (self.X[block] / self.scale - self.mean / self.scale) * self.root_weight[block]

    def all(self) -> NDArray:
        return self.load(slice(None))


def _decompose_tall(rows: _CentredRows, threshold: float) -> tuple[NDArray, NDArray]:
    """Map from scaled features to an orthonormal basis, and the singular values (n >= d)."""
    gram = np.zeros((rows.shape[1],) * 2)
    for block in rows.blocks():
        centred = rows.load(block)
        gram += centred.T @ centred
    values, V = linalg.eigh(gram)
    if _is_well_conditioned(values, threshold):
        values, V = values[::-1], V[:, ::-1]
        return _orthonormalised(rows, V / np.sqrt(values)), np.sqrt(values)
    R = linalg.qr(rows.all(), mode="r", overwrite_a=True, check_finite=False)[0][: rows.shape[1]]
    _, singular_values, Vt = linalg.svd(R, full_matrices=False, check_finite=False)
    keep = _significant(singular_values, threshold)
    to_basis = Vt[keep].T / singular_values[keep]
    return _orthonormalised(rows, to_basis), singular_values[keep]


def _decompose_wide(rows: _CentredRows, threshold: float) -> tuple[NDArray, NDArray]:
    """The same for d > n, from the n x n side, where the centred rows have rank at most n - 1."""
    centred = rows.all()
    values, U = linalg.eigh(centred @ centred.T)
    values, U = values[1:], U[:, 1:]
    if _is_well_conditioned(values, threshold):
        values, U = values[::-1], U[:, ::-1]
        return _orthonormalised(rows, centred.T @ (U / values)), np.sqrt(values)
    _, singular_values, Vt = linalg.svd(centred, full_matrices=False, check_finite=False)
    keep = _significant(singular_values, threshold)
    return _orthonormalised(rows, Vt[keep].T / singular_values[keep]), singular_values[keep]


def _is_well_conditioned(eigenvalues: NDArray, threshold: float) -> bool:
    """Whether a Gram matrix determines all directions, none of them near the rank threshold."""
    if eigenvalues.size == 0 or eigenvalues[0] <= 0:
        return False
    return bool(eigenvalues[0] > 1e-10 * eigenvalues[-1] and eigenvalues[0] > 4 * threshold**2)


def _significant(singular_values: NDArray, threshold: float) -> NDArray:
    rounding = np.finfo(np.float64).eps * len(singular_values) * singular_values.max(initial=0.0)
    return singular_values > max(threshold, rounding)


def _orthonormalised(rows: _CentredRows, to_basis: NDArray) -> NDArray:
    """Correct a nearly orthonormal basis by Cholesky factors of its Gram matrix (CholeskyQR2)."""
    rank = to_basis.shape[1]
    if rank == 0:
        return to_basis
    # One step squares the departure from orthonormality, so it is quickly at the rounding level.
    for _ in range(3):
        gram = np.zeros((rank, rank))
        for block in rows.blocks():
            U = rows.load(block) @ to_basis
            gram += U.T @ U
        error = np.abs(gram - np.eye(rank)).max(initial=0.0)
        to_basis = linalg.solve_triangular(linalg.cholesky(gram, lower=True), to_basis.T, lower=True).T
        if error < 1e-8:
            break
    return to_basis
