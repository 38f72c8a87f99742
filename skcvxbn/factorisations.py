"""Factorisations of matrices: by LAPACK through SciPy on a processor, by the array library on a GPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from skcvxbn.arrays import Array, like, namespace, on_processor, to_numpy


def eigh(M: Array) -> tuple[NDArray[np.float64], Array]:
    """Eigenvalues of a symmetric matrix in increasing order, on the host, and its eigenvectors."""
    if on_processor(M):
        values, vectors = linalg.eigh(to_numpy(M))
        return values, like(vectors, M)
    values, vectors = namespace(M).linalg.eigh(M)
    return to_numpy(values), vectors


def right_singular_vectors(M: Array) -> tuple[NDArray[np.float64], Array]:
    """Singular values in decreasing order, on the host, and the right singular vectors as rows."""
    if on_processor(M):
        _, values, vectors = linalg.svd(to_numpy(M), full_matrices=False, check_finite=False)
        return values, like(vectors, M)
    _, values, vectors = namespace(M).linalg.svd(M, full_matrices=False)
    return to_numpy(values), vectors


def triangular_factor(M: Array) -> Array:
    """``R`` of the QR decomposition of a tall matrix, which is overwritten."""
    if on_processor(M):
        R = linalg.qr(to_numpy(M), mode="r", overwrite_a=True, check_finite=False)[0]
        return like(R[: M.shape[1]], M)
    return namespace(M).linalg.qr(M, mode="r")[1]


def without_gram(B: Array, gram: Array) -> Array:
    """Make columns of a given Gram matrix orthonormal: ``B L^-T``, ``L`` being its Cholesky factor."""
    if on_processor(gram):
        L = linalg.cholesky(to_numpy(gram), lower=True)
        return like(linalg.solve_triangular(L, to_numpy(B).T, lower=True).T, B)
    xp = namespace(gram)
    return xp.linalg.solve_triangular(xp.linalg.cholesky(gram), B.T, upper=False).T
