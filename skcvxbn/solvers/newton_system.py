"""Newton systems of the interior point method: ``(F^T W F + B) x = b``, ``B`` block diagonal.

``F x = sum_j D_j A x_j u_j^T`` maps the neurons to the output, ``W = M M^T`` is the curvature of the loss,
and ``B`` has one positive definite block ``L_j L_j^T`` a neuron. As a rule the unknowns are fewer than the
rows, and all of them are factorised. In the coordinates ``L^T x`` the matrix is the identity and a part which
an active cone constraint, or a neuron that vanishes, makes small: so it is well scaled however far the method
has come. The inner products of the columns of ``F`` are what costs most, and those of a quadratic loss are
the same in every step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from skcvxbn.losses import Curvature
from skcvxbn.solvers.base import Problem

# Tables of columns of ``F`` are made of about this many numbers.
_TABLE_ENTRIES = 2**18


class NewtonSystem:
    """The map ``F`` of given arrangements and output directions.

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
        self.problem, self.A, self.D, self.U = problem, problem.A, D, U
        self._gram: NDArray | None = None

    @cached_property
    def _columns(self) -> NDArray:
        return np.ascontiguousarray(self.A.T)

    def fit(self, X: NDArray) -> NDArray:
        """``F x``: of shape (n_samples, n_outputs)."""
        H = self.A @ X
        H *= self.D
        return H @ self.U

    def adjoint(self, R: NDArray) -> NDArray:
        """``F^T R``: of shape (rank + 1, n_neurons)."""
        if self.U.shape[1] == 1:
            return ((self._columns * R[:, 0]) @ self.D) * self.U[:, 0]
        return self.A.T @ (self.D * (R @ self.U.T))

    def gram(self, curvature: Curvature) -> NDArray:
        """``F^T W F``, less what the bias reaches, of shape (n_unknowns, n_unknowns); neurons one by one."""
        if self._gram is None or not self.problem.loss.quadratic:
            self._gram = self._weighted_gram(curvature)
        return self._gram

    def _weighted_gram(self, curvature: Curvature) -> NDArray:
        (n_samples, rank), n_neurons = self.A.shape, len(self.U)
        U = np.repeat(self.U, rank, axis=0)
        gram = np.zeros((len(U),) * 2)
        cross = np.zeros((self.U.shape[1], len(U)))
        size = max(1, _TABLE_ENTRIES // len(U))
        for start in range(0, n_samples, size):
            rows = slice(start, start + size)
            H = (self.D[rows, :, None] * self.A[rows, None, :]).reshape(-1, n_neurons * rank)
            weights = curvature.rows(rows)
            gram += weights.gram(H, U)
            if self.problem.fit_intercept:
                cross += weights.cross(self.A[rows, -1], H, U)
        if self.problem.fit_intercept:
            gram -= cross.T @ (inverse_along(self.problem, curvature) @ cross)
        return gram


def inverse_along(problem: Problem, curvature: Curvature) -> NDArray:
    """Inverse of the curvature along the bias."""
    along = curvature.along(problem.A[:, -1], problem.n_outputs).astype(np.float64)
    # One direction of the bias can be without effect: a softmax does not see the sum of its outputs.
    return np.linalg.pinv(along, hermitian=True, rcond=1e-14)


class FactorisedSystem(ABC):
    """``F^T W F + B`` with the bias eliminated, ready to be solved.

    Parameters
    ----------
    system : NewtonSystem
        ``F``.
    curvature : Curvature
        ``W``.
    blocks : ndarray of shape (n_neurons, rank + 1, rank + 1)
        The blocks of ``B``.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a block is not positive definite.
    """

    def __init__(self, system: NewtonSystem, curvature: Curvature, blocks: NDArray) -> None:
        problem = system.problem
        self._system, self._curvature = system, curvature
        self._bias = problem.A[:, -1] if problem.fit_intercept else None
        if self._bias is not None:
            self._inverse_along = inverse_along(problem, curvature)
        self._L_inverse = np.linalg.inv(np.linalg.cholesky(blocks))

    @abstractmethod
    def solve(self, b: NDArray, tol: float) -> tuple[NDArray, NDArray, NDArray]:
        """Solve for `b` of shape (rank + 1, n_neurons), to the relative accuracy `tol` or better.

        Returns
        -------
        X : ndarray of shape (rank + 1, n_neurons)
            The solution.
        image : ndarray of shape (n_samples, n_outputs)
            ``W F x``, less what the bias takes of it. With it, rather than with the product, the equations
            ``F^T image + B x = b`` hold whatever the accuracy.
        fit : ndarray of shape (n_samples, n_outputs)
            ``F x``.
        """

    def best_bias(self, pull: NDArray) -> NDArray:
        """Move of the bias with which ``pull - W E bias`` is orthogonal to its direction."""
        if self._bias is None:
            return np.zeros(pull.shape[1], dtype=pull.dtype)
        return self._inverse_along @ (self._bias @ pull)

    def taken_by_bias(self, pull: NDArray) -> NDArray:
        """Return what the best bias takes of a pull on the output."""
        if self._bias is None:
            return np.zeros_like(pull)
        return self._curvature @ np.outer(self._bias, self.best_bias(pull))

    def _halved(self, X: NDArray) -> NDArray:
        """``L^-1 x``, of shape (n_neurons, rank + 1)."""
        return np.matmul(self._L_inverse, X.T[:, :, None])[:, :, 0]

    def _restored(self, Y: NDArray) -> NDArray:
        """``L^-T y`` for `Y` of shape (n_neurons, rank + 1)."""
        return np.matmul(self._L_inverse.transpose(0, 2, 1), Y[:, :, None])[:, :, 0].T

    def _divide(self, X: NDArray) -> NDArray:
        # The two triangular factors, and not their product, keep what the stiff directions need.
        return self._restored(self._halved(X))


class DirectSystem(FactorisedSystem):
    """The whole system, factorised in the coordinates ``y = L^T x``: ``(I + L^-1 F^T W F L^-T) y = L^-1 b``.

    Parameters and errors are those of `FactorisedSystem`.
    """

    def __init__(self, system: NewtonSystem, curvature: Curvature, blocks: NDArray) -> None:
        super().__init__(system, curvature, blocks)
        n_neurons, rank = blocks.shape[:2]
        matrix = system.gram(curvature)
        for _ in range(2):
            # From the left, one neuron's rows at a time; the matrix is symmetric.
            matrix = np.matmul(self._L_inverse, matrix.reshape(n_neurons, rank, -1)).reshape(matrix.shape).T
        self._matrix = np.ascontiguousarray(matrix)
        self._matrix.flat[:: len(matrix) + 1] += 1
        self._factor = linalg.cho_factor(self._matrix, lower=True, check_finite=False)

    def solve(self, b: NDArray, tol: float) -> tuple[NDArray, NDArray, NDArray]:
        """Solve to the accuracy of floating point."""
        half = self._halved(b)
        y = self._divided(half.ravel())
        # Once more for the residual: soft directions next to stiff ones lose digits.
        y += self._divided(half.ravel() - self._matrix @ y)
        fit = self._system.fit(self._restored(y.reshape(half.shape)))
        pull = self._curvature @ fit
        image = pull - self.taken_by_bias(pull)
        return self._divide(b - self._system.adjoint(image)), image, fit

    def _divided(self, half: NDArray) -> NDArray:
        solved: NDArray = linalg.cho_solve(self._factor, half, check_finite=False)
        return solved
