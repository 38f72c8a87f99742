"""Truncation of the training data to its leading singular directions (equation 17 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    OneToOneFeatureMixin,
    TransformerMixin,
)
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from skcvxbn._sklearn import beside, check_sample_weight, on_host
from skcvxbn.distributed import refuse_shards
from skcvxbn.whitening import n_leading

_EPS = float(np.finfo(np.float64).eps)
# Float64 numbers in one dense block of rows: 64 MiB, large enough for BLAS to run at full speed.
_BLOCK_SIZE = 2**23
# Lanczos iterations beat the dense eigenproblem from this smaller side on, when it is as many times
# larger than the number of directions asked for.
_LANCZOS_MIN_SIDE, _LANCZOS_RATIO = 500, 10


class SVDTruncation(ClassNamePrefixFeaturesOutMixin, OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    r"""Keep the leading singular directions of the centred training data.

    Gradient descent on a batch-norm network learns the directions of small singular value last; a convex
    solver fits them at once, noise included. Truncating the training data gives the convex program the same
    implicit regularization, and makes it smaller: its cost grows with the number of directions kept.

    With the compact singular value decomposition :math:`X - 1\mu^T = U \Sigma V^T`, the training data become

    .. math:: X_k = 1\mu^T + \sum_{i \le k} \sigma_i u_i v_i^T = 1\mu^T + (X - 1\mu^T) V_k V_k^T .

    Parameters
    ----------
    n_components : int, float or None, default=0.95
        How many directions to keep. An int is their number, between 1 and ``min(n_samples, n_features)``.
        A float in (0, 1) is a share of the variance: the fewest directions that explain at least that
        share are kept. None keeps every direction of the numerical rank (see Notes). Directions beyond
        the numerical rank are rounding noise and never kept, so `n_components_` can be smaller than asked.
    output : {"lowrank", "scores"}, default="lowrank"
        What `transform` returns: "lowrank" the rows of :math:`X_k`, dense, in the original `n_features`
        columns; "scores" their coordinates :math:`(X - 1\mu^T) V_k`, in `n_components_` columns. The
        estimators of this package learn the same network from either; "scores" is smaller.

    Attributes
    ----------
    components_ : ndarray of shape (n_components_, n_features)
        The directions :math:`V_k^T`, orthonormal rows, by decreasing singular value. The largest entry of
        each, in absolute value, is positive.
    singular_values_ : ndarray of shape (n_components_,)
        The singular values of the centred data (weighted by the square root of `sample_weight`), in the
        units of `X`.
    explained_variance_ratio_ : ndarray of shape (n_components_,)
        Share of the variance along each direction kept.
    n_components_ : int
        Number of directions kept.
    mean_ : ndarray of shape (n_features,)
        Weighted mean of the training rows, in the units of `X`.
    n_features_in_ : int
        Number of features seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features seen during `fit`, when all of them are strings.

    See Also
    --------
    sklearn.decomposition.PCA : The same directions, without sample weights; returns the scores.

    Notes
    -----
    **New rows.** The paper truncates the training data and leaves the test data as they are, whereas
    `transform` projects every row. Predictions are the same. A network sees :math:`X_k` only through
    :math:`X_k w = 1\mu^T w + (X - 1\mu^T) V_k V_k^T w`, and batch normalization subtracts the mean
    :math:`\mu^T w`, so only :math:`V_k V_k^T w` matters and the hidden weights of minimum norm satisfy
    :math:`w = V_k V_k^T w`. A new row x and its projection :math:`\tilde x = \mu + V_k V_k^T (x - \mu)` then
    give the same hidden value,

    .. math:: \tilde x^T w = \mu^T w + (x - \mu)^T V_k V_k^T w = x^T w ,

    and the scores with weights :math:`V_k^T w` give :math:`x^T w - \mu^T w`, the same once normalized.

    **Accuracy.** The directions come from the smaller of the two Gram matrices, in float64 whatever the
    dtype of `X`, without a centred copy of `X`; when a direction to be kept is too small for the Gram
    matrix to resolve, from a blocked QR factorization. The numerical rank counts the singular values above
    ``sqrt(n_features) * max(eps, 16 * eps64)`` times the largest one, `eps` being the rounding unit of the
    dtype of `X` and `eps64` that of float64; it does not depend on the units of `X` or on repeated rows.

    **Sparse input** is never made dense as a whole: blocks of it are or, for a large matrix and a small int
    `n_components`, nothing is (Lanczos iterations with implicit centring). The output is always dense.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.estimators.svd_truncation import SVDTruncation
    >>> X = np.array([[0.0, 0.0], [2.0, 1.0], [4.0, 2.2], [6.0, 2.8]])
    >>> truncation = SVDTruncation(n_components=1).fit(X)
    >>> truncation.transform(X[2:]).round(1)
    array([[4.1, 2. ],
           [5.9, 2.9]])
    >>> truncation.set_params(output="scores").fit_transform(X).shape
    (4, 1)
    """

    def __init__(self, n_components: int | float | None = 0.95, *, output: str = "lowrank") -> None:
        self.n_components = n_components
        self.output = output

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> SVDTruncation:
        """Find the mean and the leading singular directions of the training data.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training data; never modified. Integers are read as float64.
        y : Ignored
            Present for compatibility with pipelines.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights. An integer weight is worth that many copies of the row, zero removes it.

        Returns
        -------
        self : SVDTruncation

        Raises
        ------
        TypeError, ValueError
            If a parameter is out of range, `X` has fewer than two rows or no variance over the rows of
            positive weight, or a weight is negative or not finite.
        """
        refuse_shards(type(self).__name__)
        self._check_parameters()
        X, sample_weight = on_host(X), on_host(sample_weight)
        X = validate_data(
            self, X, accept_sparse=("csr", "csc"), dtype=[np.float64, np.float32], ensure_min_samples=2
        )
        weights = np.ones(X.shape[0])
        if sample_weight is not None:
            weights = check_sample_weight(sample_weight, X)
            if not weights.all():
                X, weights = X[np.flatnonzero(weights)], weights[weights > 0]
        k: Any = self.n_components
        if isinstance(k, Integral) and int(k) > min(X.shape):
            raise ValueError(
                f"n_components={k} must be between 1 and min(n_samples, n_features)={min(X.shape)}."
            )
        matrix = _centre(X, weights)
        values, components, shares = _leading_directions(matrix, k)
        self.mean_ = matrix.mean.astype(X.dtype)
        self.components_ = components.astype(X.dtype)
        self.singular_values_ = values.astype(X.dtype)
        self.explained_variance_ratio_ = shares.astype(X.dtype)
        self.n_components_ = len(self.components_)
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """Project any rows on the directions kept.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training rows give what `fit_transform` returns for them.

        Returns
        -------
        X_new : ndarray of shape (n_samples, n_features) or (n_samples, n_components_)
            The projected rows ("lowrank") or their coordinates ("scores"), dense, in the dtype of `X`.
        """
        check_is_fitted(self)
        given, dtype = X, [np.float64, np.float32]
        X = validate_data(self, on_host(X), accept_sparse="csr", dtype=dtype, reset=False)
        mean = self.mean_.astype(np.float64)
        directions = np.ascontiguousarray(self.components_.T, dtype=np.float64)
        sparse = scipy.sparse.issparse(X)
        shift = mean @ directions if sparse else 0.0
        out = np.empty((X.shape[0], self._n_features_out), dtype=X.dtype)
        for rows in _slices(*X.shape):
            # Dense rows are centred first, so that nothing cancels when the mean is large.
            scores = (X[rows] if sparse else X[rows] - mean) @ directions - shift
            out[rows] = scores if self.output == "scores" else scores @ directions.T + mean
        return beside(out, given)

    def inverse_transform(self, X: Any) -> NDArray[Any]:
        """Return transformed rows to the original features.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, n_components_)
            What `transform` returned.

        Returns
        -------
        X_original : ndarray of shape (n_samples, n_features)
            The projected rows: with "scores" ``X @ components_ + mean_``, with "lowrank" a copy of `X`.
        """
        check_is_fitted(self)
        X = check_array(X, dtype=[np.float64, np.float32], copy=self.output == "lowrank")
        if X.shape[1] != self._n_features_out:
            expected = f"inverse_transform is expecting {self._n_features_out} features as input"
            raise ValueError(f"X has {X.shape[1]} features, but SVDTruncation.{expected}.")
        if self.output == "lowrank":
            return X
        return (X @ self.components_ + self.mean_).astype(X.dtype, copy=False)

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[np.object_]:
        """Names of the columns that `transform` returns.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the input features; must match `feature_names_in_` when that is defined.

        Returns
        -------
        feature_names_out : ndarray of str
            The input names with "lowrank"; "svdtruncation0", "svdtruncation1", ... with "scores".
        """
        if self.output == "lowrank":
            return OneToOneFeatureMixin.get_feature_names_out(self, input_features)
        return ClassNamePrefixFeaturesOutMixin.get_feature_names_out(self, input_features)

    @property
    def _n_features_out(self) -> int:
        return int(self.n_features_in_ if self.output == "lowrank" else self.n_components_)

    def __sklearn_tags__(self) -> Any:
        """Declare sparse input and the dtypes kept."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _check_parameters(self) -> None:
        """Refuse parameters that no data could make valid."""
        k: Any = self.n_components
        output: Any = self.output
        is_number = isinstance(k, Real) and not isinstance(k, bool)
        if k is not None and not (is_number and (int(k) >= 1 if isinstance(k, Integral) else 0 < k < 1)):
            accepted = "an int in the range [1, inf), a float in the range (0.0, 1.0) or None"
            message = f"The 'n_components' parameter of SVDTruncation must be {accepted}. Got {k!r} instead."
            raise ValueError(message) if is_number else TypeError(message)
        if not isinstance(output, str) or output not in ("lowrank", "scores"):
            message = "The 'output' parameter of SVDTruncation must be a str among {'lowrank', 'scores'}."
            message += f" Got {output!r} instead."
            raise ValueError(message) if isinstance(output, str) else TypeError(message)


class _Spectrum(NamedTuple):
    """Leading singular values and vectors of a centred matrix, by decreasing value."""

    values: NDArray[np.float64]
    # As columns: right singular vectors of X - mean (n_features rows), or left ones when X is wide.
    vectors: NDArray[np.float64]
    total: float  # sum of all the squared singular values, also of those not computed
    rounding: float  # absolute error that rounding leaves in a squared singular value


@dataclass(frozen=True)
class _CentredMatrix:
    """M = scale * sqrt(weights) * (X - mean), or its transpose when X is wide: the long side is the first.

    M is never formed: `blocks` yields it a few rows at a time. (X^T X - n mean mean^T, which centres the Gram
    matrix instead, cancels digits when the mean is large.)
    """

    X: Any
    mean: NDArray[np.float64]
    roots: NDArray[np.float64]
    scale: float  # a power of two that brings M near 1: no square overflows or underflows, nothing is rounded

    @property
    def wide(self) -> bool:
        return bool(self.X.shape[0] < self.X.shape[1])

    def blocks(self, at_least: int = 1) -> Iterator[NDArray[np.float64]]:
        """Yield the rows of M in dense blocks of `at_least` rows, the last one excepted."""
        for part in _slices(max(self.X.shape), min(self.X.shape), at_least):
            block = _dense(self.X[:, part] if self.wide else self.X[part])
            block = block - (self.mean[part] if self.wide else self.mean)
            block *= self.scale * (self.roots if self.wide else self.roots[part])[:, None]
            yield block.T if self.wide else block

    def gram(self) -> _Spectrum:
        """Decompose M^T M; rounding perturbs its eigenvalues by about eps times the largest."""
        gram = np.zeros((min(self.X.shape),) * 2)
        for block in self.blocks():
            gram += block.T @ block
        total = float(np.trace(gram))
        squares, vectors = np.linalg.eigh(gram)
        values = np.sqrt(squares[::-1].clip(min=0))
        return _Spectrum(values, vectors[:, ::-1], total, _EPS * values[0] ** 2)

    def triangle(self) -> _Spectrum:
        """Decompose R of M = QR; Q is never formed and R takes in one block after the other."""
        triangle = np.zeros((0, min(self.X.shape)))
        # Each step factorizes R again, which costs little when the block is the larger of the two.
        for block in self.blocks(at_least=2 * min(self.X.shape)):
            triangle = np.asarray(np.linalg.qr(np.vstack([triangle, block]), mode="r"))
        _, values, vectors = scipy.linalg.svd(triangle, full_matrices=False, check_finite=False)
        return _Spectrum(values, vectors.T, float(values @ values), 0.0)

    def lanczos(self, k: int) -> _Spectrum:
        """Decompose a sparse M by products with vectors; the vectors are those of the features."""
        roots = self.scale * self.roots
        weighted = scipy.sparse.diags(roots) @ self.X.astype(np.float64)
        operator = scipy.sparse.linalg.aslinearoperator
        centred = operator(weighted) - operator(roots[:, None]) @ operator(self.mean[None, :])
        # A fixed start, and not a vector of ones: centring maps that to zero in the wide case.
        start = np.random.default_rng(0).standard_normal(min(self.X.shape))
        _, values, vectors = scipy.sparse.linalg.svds(centred, k=k, v0=start)
        uncentred = float(weighted.multiply(weighted).sum())
        # Implicit centring subtracts numbers of the size of X, and leaves their rounding.
        total = max(uncentred - float(roots @ roots * (self.mean @ self.mean)), float(values @ values))
        return _Spectrum(np.asarray(values[::-1], float), vectors[::-1].T, total, _EPS * uncentred)

    def directions(self, spectrum: _Spectrum, kept: int) -> NDArray[np.float64]:
        """Return the first right singular vectors of X - mean as rows, signs fixed."""
        vectors = spectrum.vectors[:, :kept]
        if len(vectors) != len(self.mean):
            # The smaller a singular value, the more rounding leaks from the larger directions into
            # (X - mean)^T u / sigma; QR, taking them in order, removes that.
            vectors = np.concatenate([block @ vectors for block in self.blocks()]) / spectrum.values[:kept]
            vectors = np.linalg.qr(vectors)[0]
        # The sign is that of the largest entry; of entries that tie up to rounding, the first decides, so
        # that neither the order nor the repetition of rows can flip a direction.
        size = np.abs(vectors)
        first = (size >= (1 - 1e-6) * size.max(axis=0)).argmax(axis=0)
        return np.ascontiguousarray((vectors * np.sign(vectors[first, np.arange(kept)])).T)


def _centre(X: Any, weights: NDArray[np.float64]) -> _CentredMatrix:
    """Return X centred on its weighted mean and scaled; raise when it has no variance."""
    low, high = (_dense(extreme).ravel().astype(np.float64) for extreme in (X.min(axis=0), X.max(axis=0)))
    spread = float((high - low).max())
    if spread == 0:
        raise ValueError(
            f"Found X of shape {X.shape} with zero variance in every feature, while at least one feature "
            "that is not constant (over the rows of positive weight) is required by SVDTruncation."
        )
    sparse = scipy.sparse.issparse(X)
    total = weights @ X if sparse else sum(weights[rows] @ X[rows] for rows in _slices(*X.shape))
    # Rounding can put the mean of a constant column beside the constant; clipped, the column centres to zero.
    mean = np.clip(total / weights.sum(), low, high)
    X = X.asformat("csc" if X.shape[0] < X.shape[1] else "csr") if sparse else X
    return _CentredMatrix(X, mean, np.sqrt(weights), math.ldexp(1.0, min(-math.frexp(spread)[1], 1000)))


def _leading_directions(matrix: _CentredMatrix, n_components: Any) -> tuple[NDArray[np.float64], ...]:
    """Singular values, directions and shares of the variance, by the cheapest route that resolves them."""
    n_samples, n_features = matrix.X.shape
    routes: list[Callable[[], _Spectrum]] = [matrix.gram, matrix.triangle]
    k = int(n_components) if isinstance(n_components, Integral) else n_samples
    large = min(matrix.X.shape) >= max(_LANCZOS_MIN_SIDE, _LANCZOS_RATIO * k)
    if large and scipy.sparse.issparse(matrix.X):
        routes.insert(0, partial(matrix.lanczos, k))
    for route in routes:
        spectrum = route()
        squares = spectrum.values**2
        # Centring removes one dimension of the n_samples.
        kept = min(n_leading(squares / spectrum.total, n_components), n_samples - 1)
        # Half of the digits of the smallest square kept are then right at worst. Directions that are
        # dropped may be as small as they like, so a share of the variance rarely needs the QR route.
        if squares[kept - 1] * math.sqrt(_EPS) > spectrum.rounding:
            break
    # Rounding X to its dtype moves a singular value by less than eps times the largest, unless the mean
    # exceeds the spread. The factors sqrt(n_features) and, for float64 arithmetic, 16 are margins.
    eps = max(float(np.finfo(matrix.X.dtype).eps), 16 * _EPS)
    rank = int((spectrum.values > math.sqrt(n_features) * eps * spectrum.values[0]).sum())
    kept = min(kept, rank)
    directions = matrix.directions(spectrum, kept)
    return spectrum.values[:kept] / matrix.scale, directions, squares[:kept] / spectrum.total


def _slices(n_rows: int, n_columns: int, at_least: int = 1) -> Iterator[slice]:
    """Cut the rows of a matrix in blocks of about `_BLOCK_SIZE` entries."""
    step = max(_BLOCK_SIZE // n_columns, at_least, 1)
    return (slice(start, start + step) for start in range(0, n_rows, step))


def _dense(X: Any) -> NDArray[Any]:
    return np.asarray(X.toarray() if hasattr(X, "toarray") else X)
