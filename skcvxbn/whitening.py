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

from skcvxbn.arrays import (
    Array,
    Rows,
    astype,
    eps,
    identity,
    inner_products,
    like,
    namespace,
    take,
    to_numpy,
    zeros,
)
from skcvxbn.backend import NUMPY, Backend
from skcvxbn.factorisations import eigh, right_singular_vectors, triangular_factor, without_gram
from skcvxbn.shrinkage import shrunk

# Rows are processed in blocks of about this many entries, so that the working copy of a tall matrix
# stays small next to the matrix itself.
_BLOCK_ENTRIES = 2**22


@dataclass(frozen=True)
class Whitening:
    """Orthonormal coordinates of a data matrix, and the way back to its features.

    Attributes
    ----------
    A : ndarray of shape (n_samples, rank + 1)
        ``sqrt(w) * [U, 1/sqrt(n)]`` with orthonormal columns, ``n`` being the sum of the weights. With
        shrinkage the columns of `U` are orthogonal and shorter than one.
    mean : ndarray of shape (n_features,)
        The weighted mean of the rows.
    projection : ndarray of shape (n_features, rank)
        The map ``U = (X - mean) @ projection``.
    singular_values : ndarray of shape (rank,)
        Singular values of the centred data after every column was divided by `scale`.
    scale : ndarray of shape (n_features,)
        The largest magnitude in each column (1 for a column of zeros); with shrinkage its standard
        deviation.
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


def whiten(
    X: ArrayLike,
    sample_weight: ArrayLike | None = None,
    shrinkage: float = 0.0,
    backend: Backend = NUMPY,
) -> Whitening:
    """Compute an orthonormal basis of the centred data, or a shrunk one.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        The training rows, finite, as float32 or float64.
    sample_weight : array-like of shape (n_samples,), optional
        Positive weights. An integer weight is the same as repeating the row.
    shrinkage : float, default=0.0
        Share of the variance of the standardised features, at least 0 and less than 1, that the basis leaves
        out, most of it in the directions of small variance.
    backend : Backend
        Where it is computed.

    Returns
    -------
    Whitening
        The basis, in NumPy, in the dtype of `X`; the decomposition itself is computed in float64.

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

    *Shrinkage.* An orthonormal basis gives all directions the same weight, those included in which the
    data hardly vary: see :func:`skcvxbn.shrinkage.shrunk`.

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
    dtype = X.dtype if X.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    weight = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    data = _Data(backend.array(X), backend.array(weight), backend.rows)
    n_samples, n_features = data.shape
    (n_rows,) = data.rows.totals(namespace(data.weight).sum(data.weight))

    noise = np.finfo(dtype).eps * np.sqrt(n_rows) * (1 + np.sqrt(n_features / n_samples))
    rows = _CentredRows(data, *_middle_and_scale(data, n_rows))
    if shrinkage > 0:
        rows = _standardised(rows, n_rows)
        to_basis, singular_values = _decompose_shrunk(rows, shrinkage)
    else:
        decompose = _decompose_tall if n_features <= n_samples else _decompose_wide
        to_basis, singular_values = decompose(rows, 8 * noise)
    rank = len(singular_values)

    A = np.empty((len(X), rank + 1), dtype=dtype)
    for block in rows.blocks():
        A[block, :rank] = to_numpy(astype(rows.load(block) @ to_basis, dtype))
    A[:, rank] = np.sqrt(weight / n_rows)
    mean, scale = to_numpy(rows.centre * rows.scale), to_numpy(rows.scale)
    return Whitening(
        A=A,
        mean=mean.astype(dtype),
        projection=(to_numpy(to_basis) / scale[:, None]).astype(dtype),
        singular_values=singular_values.astype(dtype),
        scale=scale.astype(dtype),
        n_rows=n_rows,
    )


@dataclass(frozen=True)
class _Data:
    """The rows at hand and their weights, where the backend works."""

    X: Array
    weight: Array
    rows: Rows

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.count(self.X), self.X.shape[1]

    def blocks(self) -> list[slice]:
        n_samples, n_features = self.X.shape
        size = max(1, _BLOCK_ENTRIES // max(n_features, 1))
        return [slice(start, min(start + size, n_samples)) for start in range(0, n_samples, size)]


def _middle_and_scale(data: _Data, n_rows: float) -> tuple[Array, Array]:
    """Weighted mean of the columns in units of their scale, and the scale."""
    xp, X = namespace(data.X), data.X
    extremes = xp.stack([xp.max(X, axis=0), -xp.min(X, axis=0)])
    highest, lowest = to_numpy(data.rows.largest(extremes)).astype(np.float64) * np.array([[1.0], [-1.0]])
    largest = np.maximum(highest, -lowest)
    scale = np.where(largest > 0, largest, 1.0)
    # Scaling before the mean is taken keeps the sums in range for features as large as 1e300. The mean of the
    # deviations from a first guess has less of a rounding error than the mean.
    guess = like((highest / scale + lowest / scale) / 2, X)
    scale = like(scale, X)
    total = zeros(guess.shape, guess)
    for block in data.blocks():
        total += data.weight[block] @ (X[block, :] / scale - guess)
    return guess + data.rows.total(total) / n_rows, scale


@dataclass(frozen=True)
class _CentredRows:
    """Centred, column-scaled, weighted rows in float64, one block at a time."""

    data: _Data
    centre: Array
    scale: Array

    @property
    def n_features(self) -> int:
        return self.data.shape[1]

    def blocks(self) -> list[slice]:
        return self.data.blocks()

    def load(self, block: slice) -> Array:
        data = self.data
        weight = namespace(data.weight).sqrt(data.weight[block])
        # In place: a block of an image set is larger than any cache.
        rows = astype(data.X[block, :], np.float64) / self.scale
        rows -= self.centre
        rows *= weight[:, None]
        return rows

    def all(self) -> Array:
        return self.load(slice(None))

    def gram(self, to_basis: Array | None = None) -> Array:
        """Inner products of the columns, or of their images under a map."""
        size = self.n_features if to_basis is None else to_basis.shape[1]
        products = zeros((size, size), self.scale)
        for block in self.blocks():
            columns = self.load(block)
            if to_basis is not None:
                columns = columns @ to_basis
            products += inner_products(columns)
        return self.data.rows.total(products)


def _decompose_tall(rows: _CentredRows, threshold: float) -> tuple[Array, NDArray]:
    """Map from scaled features to an orthonormal basis, and the singular values (n >= d)."""
    values, V = eigh(rows.gram())
    if _is_well_conditioned(values, threshold):
        return _from_eigenvectors(rows, V, values)
    # Of the factors of the parts the factor is that of the whole.
    R = triangular_factor(rows.data.rows.gathered(triangular_factor(rows.all())))
    return _from_singular_vectors(rows, R, threshold)


def _decompose_wide(rows: _CentredRows, threshold: float) -> tuple[Array, NDArray]:
    """The same for d > n, from the n x n side, where the centred rows have rank at most n - 1."""
    centred = rows.data.rows.gathered(rows.all())
    values, U = eigh(centred @ centred.T)
    values, U = values[1:], U[:, 1:]
    if _is_well_conditioned(values, threshold):
        return _from_eigenvectors(rows, centred.T @ U / like(np.sqrt(values), U), values)
    return _from_singular_vectors(rows, centred, threshold)


def _from_eigenvectors(rows: _CentredRows, V: Array, values: NDArray) -> tuple[Array, NDArray]:
    """Basis and singular values from right singular vectors and squares, in increasing order."""
    V = namespace(V).flip(V, axis=1)
    singular_values = np.sqrt(values[::-1])
    return _orthonormalised(rows, V / like(singular_values, V)), singular_values


def _from_singular_vectors(rows: _CentredRows, M: Array, threshold: float) -> tuple[Array, NDArray]:
    singular_values, Vt = right_singular_vectors(M)
    keep = _significant(singular_values, threshold)
    singular_values = singular_values[keep]
    V = take(Vt, keep, axis=0).T
    return _orthonormalised(rows, V / like(singular_values, V)), singular_values


def _standardised(rows: _CentredRows, n_rows: float) -> _CentredRows:
    """Scale to columns of variance one; those that vary by no more than rounding stay as they are."""
    xp = namespace(rows.scale)
    squares = zeros(rows.scale.shape, rows.scale)
    for block in rows.blocks():
        entries = rows.load(block)
        entries *= entries
        squares += xp.sum(entries, axis=0)
    deviation = to_numpy(rows.data.rows.total(squares / n_rows)) ** 0.5
    factor = like(np.where(deviation > 8 * eps(rows.data.X), deviation, 1.0), rows.scale)
    return replace(rows, scale=rows.scale * factor, centre=rows.centre / factor)


def _decompose_shrunk(rows: _CentredRows, share: float) -> tuple[Array, NDArray]:
    """Map from standardised features to the shrunk basis, and the singular values."""
    if rows.n_features <= rows.data.shape[0]:
        squares, V = eigh(rows.gram())
        factors, kept = shrunk(squares, share)
        return take(V, kept, axis=1) * like(factors, V), np.sqrt(squares[kept])
    centred = rows.data.rows.gathered(rows.all())
    squares, U = eigh(centred @ centred.T)
    factors, kept = shrunk(squares, share)
    roots = np.sqrt(squares[kept])
    return (centred.T @ take(U, kept, axis=1)) * like(factors / roots, U), roots


def _is_well_conditioned(eigenvalues: NDArray, threshold: float) -> bool:
    """Whether a Gram matrix determines all directions, none of them near the rank threshold."""
    if eigenvalues.size == 0 or eigenvalues[0] <= 0:
        return False
    return bool(eigenvalues[0] > 1e-10 * eigenvalues[-1] and eigenvalues[0] > 4 * threshold**2)


def _significant(singular_values: NDArray, threshold: float) -> NDArray:
    rounding = np.finfo(np.float64).eps * len(singular_values) * singular_values.max(initial=0.0)
    return singular_values > max(threshold, rounding)


def _orthonormalised(rows: _CentredRows, to_basis: Array) -> Array:
    """Correct a nearly orthonormal basis by Cholesky factors of its Gram matrix (CholeskyQR2)."""
    rank = to_basis.shape[1]
    if rank == 0:
        return to_basis
    xp = namespace(to_basis)
    # One step squares the departure from orthonormality, so it is quickly at the rounding level.
    for _ in range(3):
        gram = rows.gram(to_basis)
        error = float(xp.max(xp.abs(gram - identity(rank, gram))))
        to_basis = without_gram(to_basis, gram)
        if error < 1e-8:
            break
    return to_basis
