"""Newton systems of the interior point method: ``(F^T F + B) x = b``, ``B`` block diagonal.

``F x = sum_j D_j A x_j u_j^T`` (without what the bias reaches) maps the neurons to the fit, and ``B`` has one
positive definite block a neuron. On the side of the fit the same system reads

    x = B^-1 (b - F^T z) ,    (I + F B^-1 F^T) z = F B^-1 b ,

and there it is well conditioned but for the few directions in which a neuron is still free to move: those
of the large eigenvalues of ``B_j^-1``. An active cone constraint, and a neuron that vanishes, make the others
small. So the identity plus the large part, a matrix of low rank that shrinks as the method converges, is
factorised, and preconditions conjugate gradients on the whole.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from skcvxbn.solvers.base import Problem

# Eigenvalues below this are left to conjugate gradients, and those above it too where they are too many.
_SMALL_EIGENVALUE = 1.0
_LARGEST_FACTOR = 800
# With one output the factor can have as many rows as the data instead, which this many may be.
_LARGEST_ROWS = 2000
_MAX_ITER = 100


# Iterations of conjugate gradients that the directions of one step take together, about.
_ITERATIONS_PER_STEP = 25

NewtonSolver = Callable[[NDArray, float], NDArray]


class NewtonSystem:
    """``F^T F + B`` for given arrangements and output directions, and varying ``B``.

    Parameters
    ----------
    problem : Problem
        The training problem.
    D : ndarray of shape (n_samples, n_neurons)
        Arrangements, zeros and ones.
    U : ndarray of shape (n_neurons, n_outputs)
        Unit output directions.
    """

    def __init__(self, problem: Problem, D: NDArray, U: NDArray) -> None:
        self._problem, self._A, self._D, self._U = problem, problem.A, D, U
        self._one_output = U.shape[1] == 1

    def fit(self, X: NDArray) -> NDArray:
        """``F x``: of shape (n_samples, n_outputs)."""
        H = self._A @ X
        H *= self._D
        return self._problem.without_bias(H @ self._U)

    def adjoint(self, R: NDArray) -> NDArray:
        """``F^T R`` for `R` without bias: of shape (rank + 1, n_neurons)."""
        if self._one_output:
            return ((self._A * R).T @ self._D) * self._U[:, 0]
        return self._A.T @ (self._D * (R @ self._U.T))

    def factorise(self, blocks: NDArray) -> NewtonSolver:
        """Prepare ``B`` and return the solver of systems in matrices of shape (rank + 1, n_neurons).

        Parameters
        ----------
        blocks : ndarray of shape (n_neurons, rank + 1, rank + 1)
            The blocks of ``B``.

        Raises
        ------
        numpy.linalg.LinAlgError
            If a block is not positive definite.
        """
        L_inverse = np.linalg.inv(np.linalg.cholesky(blocks))
        B_inverse = np.matmul(L_inverse.transpose(0, 2, 1), L_inverse)
        precondition = self._preconditioner(B_inverse)

        def divide(X: NDArray) -> NDArray:
            # The two triangular factors, and not their product, keep what the stiff directions need.
            half = np.matmul(L_inverse, X.T[:, :, None])
            return np.matmul(L_inverse.transpose(0, 2, 1), half)[:, :, 0].T

        def solve(b: NDArray, tol: float) -> NDArray:
            Z = _conjugate_gradients(
                lambda R: R + self.fit(divide(self.adjoint(R))), precondition, self.fit(divide(b)), tol
            )
            return divide(b - self.adjoint(Z))

        return solve

    def _preconditioner(self, B_inverse: NDArray) -> Callable[[NDArray], NDArray]:
        """Inverse of ``I + W W^T``, ``W`` being ``F`` times the large part of the root of ``B^-1``."""
        eigenvalues, Q = np.linalg.eigh(B_inverse)
        threshold = _SMALL_EIGENVALUE
        limit = _largest_part(self._problem, eigenvalues.size)
        if eigenvalues.size > limit:
            threshold = max(threshold, float(np.partition(eigenvalues, -limit, axis=None)[-limit]))
        neuron, index = np.nonzero(eigenvalues > threshold)
        if len(neuron) == 0:
            return lambda R: R
        roots = np.sqrt(eigenvalues[neuron, index])
        W = self._A @ (Q[neuron, :, index] * roots[:, None]).T
        W *= self._D[:, neuron]
        W = self._problem.without_bias(W)
        U = self._U[neuron]
        if self._one_output and len(neuron) > len(W):
            factor = linalg.cho_factor(
                _plus_identity(W @ W.T), lower=True, overwrite_a=True, check_finite=False
            )
            return lambda R: linalg.cho_solve(factor, R, check_finite=False)
        gram = W.T @ W
        gram *= U @ U.T
        factor = linalg.cho_factor(_plus_identity(gram), lower=True, overwrite_a=True, check_finite=False)

        def precondition(R: NDArray) -> NDArray:
            reached = ((W.T @ R) * U).sum(axis=1)
            return R - W @ (linalg.cho_solve(factor, reached, check_finite=False)[:, None] * U)

        return precondition


def work_of_system(problem: Problem, n_neurons: int) -> float:
    """Multiplications to factorise the system and solve it for the directions of one step, roughly."""
    n_samples, rank = problem.A.shape
    part = _largest_part(problem, rank * n_neurons)
    smaller = min(part, n_samples) if problem.Y.shape[1] == 1 else part
    factor = 0.5 * n_samples * part * smaller + smaller**3 / 6
    return factor + _ITERATIONS_PER_STEP * 2.0 * n_samples * rank * n_neurons


def _largest_part(problem: Problem, unknowns: int) -> int:
    """How many directions the preconditioner may keep."""
    if problem.Y.shape[1] == 1 and len(problem.A) <= _LARGEST_ROWS:
        return unknowns
    return min(unknowns, _LARGEST_FACTOR)


def _conjugate_gradients(
    apply: Callable[[NDArray], NDArray],
    precondition: Callable[[NDArray], NDArray],
    b: NDArray,
    tol: float,
) -> NDArray:
    """Solve ``apply(x) = b`` to the relative accuracy `tol` in the norm of the inverse preconditioner."""
    residual = b
    step = precondition(residual)
    X = np.zeros_like(b)
    squared = first = float(np.vdot(residual, step))
    for _ in range(_MAX_ITER):
        if squared <= tol**2 * first:
            break
        image = apply(step)
        curvature = float(np.vdot(step, image))
        if curvature <= 0:
            # Underflow: what is left of the residual is nothing.
            break
        length = squared / curvature
        X = X + length * step
        residual = residual - length * image
        solved = precondition(residual)
        new_squared = float(np.vdot(residual, solved))
        step = solved + (new_squared / squared) * step
        squared = new_squared
    return X


def _plus_identity(M: NDArray) -> NDArray:
    M.flat[:: len(M) + 1] += 1
    return M
