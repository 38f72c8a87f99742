"""Minimum-norm solutions of underdetermined linear systems: one Gram matrix and one Cholesky factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from skcvxbn.network import row_blocks

Floats = NDArray[np.float64]

# Smallest reciprocal condition number of a Gram matrix that is trusted. In float64 it proves full rank (the
# Gram matrix of rows of lower rank has one below n_rows * eps); in float32 refinement decides as well.
_SMALLEST_RCOND = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 4e-6}
_MAX_REFINEMENTS = 10
# Relative residual at which refinement stops: the objective of K neurons is then right to sqrt(K) times that.
_ACCURATE = 1e-11
# Binary exponent beyond which squares may leave the range of float32.
_LARGE_EXPONENT = 40


class RankError(ValueError):
    """The rows are not linearly independent.

    Parameters
    ----------
    rank : int
        The rank found.
    required : int
        The rank needed.
    """

    def __init__(self, rank: int, required: int) -> None:
        super().__init__(f"The rows have rank {rank}, while rank {required} is required.")
        self.rank = rank
        self.required = required


def minimum_norm_solution(
    M: NDArray[Any], targets: Floats, *, noise: float, dependency: Floats | None = None
) -> Floats:
    r"""Solve ``M @ W = targets`` for independent rows, each column of `W` as short as possible.

    Parameters
    ----------
    M : ndarray of shape (n_rows, n_columns)
        The matrix, float32 or float64; the arithmetic that costs is done in its dtype where that is safe.
    targets : ndarray of shape (n_rows, n_targets)
        Right sides; orthogonal to `dependency`.
    noise : float
        Bound of the norm of the errors in `M`: directions of smaller singular values do not count.
    dependency : ndarray of shape (n_rows,), optional
        The one unit vector with ``dependency @ M = 0`` that is known, as centring leaves it: the rank
        required is then one less than the number of rows.

    Returns
    -------
    ndarray of shape (n_columns, n_targets)
        The solution, in float64.

    Raises
    ------
    RankError
        If the rank is lower than required. It is checked whatever the targets are.

    Notes
    -----
    ``W = M.T @ inv(M @ M.T) @ targets``. With a dependency e the Gram matrix is singular, and
    ``M @ M.T + t * outer(e, e)`` gives the same `W` for any positive t. Forming the Gram matrix squares
    the condition number, so the solution is refined with the residual in float64. When a condition
    estimate says that this cannot work, the singular value decomposition takes over.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.interpolation import minimum_norm_solution
    >>> M, target = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]), np.array([[2.0], [6.0]])
    >>> minimum_norm_solution(M, target, noise=1e-15)[:, 0]
    array([1., 1., 3.])
    """
    required = len(M) - (dependency is not None)
    if M.shape[1] < required:
        raise RankError(_rank(linalg.svdvals(M.astype(np.float64)), noise), required)
    levels = [np.float32, np.float64] if M.dtype == np.float32 else [np.float64]
    for dtype in levels:
        solve = _cholesky_solver(M, np.dtype(dtype), dependency)
        if solve is not None:
            W, converged = _refined(M, targets, solve, dependency)
            if converged or dtype is np.float64:
                return W
    return _by_singular_values(M, targets, noise, required, dependency)


def _cholesky_solver(
    M: NDArray[Any], dtype: np.dtype, dependency: Floats | None
) -> Callable[[Floats], Floats] | None:
    """Map targets to the minimum-norm solution, or nothing if the Gram matrix is too ill-conditioned."""
    rows = M.astype(dtype, copy=False)
    gram = rows @ rows.T
    lapack: Any = linalg.get_lapack_funcs(("potrf", "pocon", "lange"), (gram,))
    potrf, pocon, lange = lapack
    norm = float(lange("1", gram.T))
    # A symmetric matrix in C order is the same matrix in Fortran order after transposition: no copy is made.
    if dependency is not None:
        # The mean eigenvalue as the size: the condition number is not made worse.
        size = float(np.trace(gram, dtype=np.float64)) / max(len(gram) - 1, 1)
        update: Any = linalg.get_blas_funcs("syr", (gram,))
        gram = update(size, dependency.astype(dtype), lower=True, a=gram.T, overwrite_a=True).T
    factor, failed = potrf(gram.T, lower=True, overwrite_a=True, clean=False)
    if failed or not norm > 0:
        return None
    rcond, _ = pocon(factor, norm, uplo="L")
    if not rcond > _SMALLEST_RCOND[dtype]:
        return None

    def solve(targets: Floats) -> Floats:
        multipliers = linalg.cho_solve((factor, True), targets.astype(dtype), check_finite=False)
        return (rows.T @ multipliers).astype(np.float64)

    return solve


def _refined(
    M: NDArray[Any], targets: Floats, solve: Callable[[Floats], Floats], dependency: Floats | None
) -> tuple[Floats, bool]:
    """Iterative refinement until rounding stops it; whether the residual came down to rounding."""
    sizes = np.linalg.norm(targets, axis=0)
    scale = np.where(sizes > 0, sizes, 1.0)

    def remainder(W: Floats) -> tuple[Floats, float]:
        residual = targets - product(M, W)
        if dependency is not None:
            # Only the rounding of M reaches this direction, and no W can do anything about it.
            residual -= np.outer(dependency, dependency @ residual)
        return residual, float((np.linalg.norm(residual, axis=0) / scale).max(initial=0.0))

    W = solve(targets)
    residual, error = remainder(W)
    for _ in range(_MAX_REFINEMENTS):
        if error <= _ACCURATE:
            break
        better = W + solve(residual)
        residual, smaller = remainder(better)
        if not smaller < error:
            break
        stalled = smaller > 0.5 * error
        W, error = better, smaller
        if stalled:
            break
    return W, bool(error <= 10 * _ACCURATE)


def _by_singular_values(
    M: NDArray[Any], targets: Floats, noise: float, required: int, dependency: Floats | None
) -> Floats:
    U, values, Vt = linalg.svd(M.astype(np.float64), full_matrices=False, check_finite=False)
    rank = _rank(values, noise)
    if rank < required:
        raise RankError(rank, required)
    U, values, Vt = U[:, :required], values[:required], Vt[:required]
    return _refined(M, targets, lambda right: Vt.T @ ((U.T @ right) / values[:, None]), dependency)[0]


def _rank(values: Floats, noise: float) -> int:
    rounding = np.finfo(np.float64).eps * len(values) * values.max(initial=0.0)
    return int((values > max(noise, rounding)).sum())


def product(M: NDArray[Any], W: Floats) -> Floats:
    """Compute ``M @ W`` in float64, without a float64 copy of all of `M`.

    Parameters
    ----------
    M : ndarray of shape (n_rows, n_columns)
        Rows of any floating dtype.
    W : ndarray of shape (n_columns, n_targets)
        Columns in float64.

    Returns
    -------
    ndarray of shape (n_rows, n_targets)
        The product.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.interpolation import product
    >>> product(np.ones((2, 3), np.float32), np.ones((3, 1))).dtype
    dtype('float64')
    """
    if M.dtype == np.float64:
        return np.asarray(M @ W)
    out = np.empty((len(M), W.shape[1]))
    for rows in row_blocks(*M.shape):
        np.matmul(M[rows].astype(np.float64), W, out=out[rows])
    return out


def scaled_rows(X: NDArray[Any], root: Floats, *, centre: bool) -> tuple[NDArray[Any], Floats, float, float]:
    """Weight, centre and scale rows for :func:`minimum_norm_solution`.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_columns)
        The rows, float32 or float64.
    root : ndarray of shape (n_rows,)
        Roots of their weights.
    centre : bool
        Whether the weighted mean is subtracted.

    Returns
    -------
    M : ndarray of shape (n_rows, n_columns)
        ``root * (X - mean) / scale`` in the dtype of `X`.
    mean : ndarray of shape (n_columns,)
        The mean subtracted, zero without `centre`.
    scale : float
        A power of two, so nothing is rounded: near the largest entry where its square could overflow.
    noise : float
        Bound of the norm of the errors that the rounding of `X` leaves in `M`, with a margin.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.interpolation import scaled_rows
    >>> M, mean, scale, _ = scaled_rows(np.array([[1.0], [17.0]]), np.ones(2), centre=True)
    >>> M[:, 0], mean, scale
    (array([-8.,  8.]), array([9.]), 1.0)
    """
    mean = np.zeros(X.shape[1], dtype=X.dtype)
    if centre:
        share = root**2 / (root @ root)
        mean = np.asarray(sum(share[rows] @ X[rows] for rows in row_blocks(*X.shape)), dtype=X.dtype)
    M = X - mean
    largest = max(float(X.max()), -float(X.min()))
    exponent = int(np.frexp(largest)[1])
    # Usual magnitudes need no scaling, which saves a pass.
    scale = 1.0 if abs(exponent) < _LARGE_EXPONENT else float(np.ldexp(1.0, exponent))
    factor = root / scale
    if not (factor == 1).all():
        M *= factor[:, None].astype(X.dtype)
    noise = 8 * float(np.finfo(X.dtype).eps) * largest / scale * float(root.max())
    noise *= np.sqrt(len(X)) + np.sqrt(X.shape[1])
    return M, mean.astype(np.float64), scale, noise
