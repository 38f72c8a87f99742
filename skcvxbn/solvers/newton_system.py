"""Newton systems of the interior point method: ``(F^T W F + B) x = b``, ``B`` block diagonal.

``F x = sum_j D_j A x_j u_j^T`` maps the neurons to the output, ``W = M M^T`` is the curvature of the loss,
and ``B`` has one positive definite block a neuron. With ``K = M^T F``, less what the bias reaches, the same
system reads on the side of the output

    x = B^-1 (b - K^T z) ,    (I + K B^-1 K^T) z = K B^-1 b ,

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

from skcvxbn.losses import Curvature
from skcvxbn.solvers.base import Problem

# Eigenvalues below this are left to conjugate gradients, and those above it too where they are too many.
_SMALL_EIGENVALUE = 1.0
_LARGEST_FACTOR = 800
# With one output the factor can have as many rows as the data instead, which this many may be.
_LARGEST_ROWS = 2000
_MAX_ITER = 100


# Iterations of conjugate gradients that the directions of one step take together, about.
_ITERATIONS_PER_STEP = 25


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

    def fit(self, X: NDArray) -> NDArray:
        """``F x``: of shape (n_samples, n_outputs)."""
        H = self.A @ X
        H *= self.D
        return H @ self.U

    def adjoint(self, R: NDArray) -> NDArray:
        """``F^T R``: of shape (rank + 1, n_neurons)."""
        if self.U.shape[1] == 1:
            return ((self.A * R).T @ self.D) * self.U[:, 0]
        return self.A.T @ (self.D * (R @ self.U.T))


class FactorisedSystem:
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
            # One direction of the bias can be without effect: a softmax does not see the sum of its outputs.
            along = curvature.along(self._bias, problem.n_outputs).astype(np.float64)
            self._inverse_along = np.linalg.pinv(along, hermitian=True, rcond=1e-14)
        self._L_inverse = np.linalg.inv(np.linalg.cholesky(blocks))
        self._precondition = self._preconditioner(
            np.matmul(self._L_inverse.transpose(0, 2, 1), self._L_inverse)
        )

    def solve(self, b: NDArray, tol: float) -> tuple[NDArray, NDArray]:
        """Solve for `b` of shape (rank + 1, n_neurons), to the relative accuracy `tol`.

        Returns
        -------
        X : ndarray of shape (rank + 1, n_neurons)
            The solution.
        image : ndarray of shape (n_samples, n_outputs)
            ``W F x``, less what the bias takes of it. With it, rather than with the product, the equations
            ``F^T image + B x = b`` hold whatever the accuracy.
        """
        Z = _conjugate_gradients(
            lambda R: R + self._forward(self._divide(self._backward(R))),
            self._precondition,
            self._forward(self._divide(b)),
            tol,
        )
        image = self._curvature.root(self._without_reached(Z))
        return self._divide(b - self._system.adjoint(image)), image

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

    def _without_reached(self, Z: NDArray) -> NDArray:
        """Project on what ``M^T E`` does not reach."""
        if self._bias is None:
            return Z
        reached = self.best_bias(self._curvature.root(Z))
        return Z - self._curvature.root_transposed(np.outer(self._bias, reached))

    def _forward(self, X: NDArray) -> NDArray:
        return self._without_reached(self._curvature.root_transposed(self._system.fit(X)))

    def _backward(self, Z: NDArray) -> NDArray:
        return self._system.adjoint(self._curvature.root(self._without_reached(Z)))

    def _divide(self, X: NDArray) -> NDArray:
        # The two triangular factors, and not their product, keep what the stiff directions need.
        half = np.matmul(self._L_inverse, X.T[:, :, None])
        return np.matmul(self._L_inverse.transpose(0, 2, 1), half)[:, :, 0].T

    def _preconditioner(self, B_inverse: NDArray) -> Callable[[NDArray], NDArray]:
        """Inverse of ``I + V V^T``, ``V`` being ``K`` times the large part of the root of ``B^-1``."""
        system, curvature = self._system, self._curvature
        eigenvalues, Q = np.linalg.eigh(B_inverse)
        threshold = _SMALL_EIGENVALUE / max(curvature.largest, 1.0)
        limit = _largest_part(system.problem, eigenvalues.size)
        if eigenvalues.size > limit:
            threshold = max(threshold, float(np.partition(eigenvalues, -limit, axis=None)[-limit]))
        neuron, index = np.nonzero(eigenvalues > threshold)
        if len(neuron) == 0:
            return lambda R: R
        H = system.A @ (Q[neuron, :, index] * np.sqrt(eigenvalues[neuron, index])[:, None]).T
        H *= system.D[:, neuron]
        U = system.U[neuron]
        if U.shape[1] == 1 and len(neuron) > len(H):
            columns = self._columns(H)
            rows = _factor(columns @ columns.T)
            return lambda R: linalg.cho_solve(rows, R, check_finite=False)
        gram = curvature.gram(H, U)
        if self._bias is not None:
            cross = curvature.cross(self._bias, H, U)
            gram -= cross.T @ (self._inverse_along @ cross)
        factor = _factor(gram)

        def precondition(R: NDArray) -> NDArray:
            reached = ((H.T @ curvature.root(self._without_reached(R))) * U).sum(axis=1)
            taken = linalg.cho_solve(factor, reached, check_finite=False)
            return R - self._without_reached(curvature.root_transposed(H @ (taken[:, None] * U)))

        return precondition

    def _columns(self, H: NDArray) -> NDArray:
        """Columns of ``K`` for one output and the columns `H` of ``F``; their signs are of no matter."""
        H = self._curvature.root_transposed(H)
        if self._bias is None:
            return H
        direction = self._curvature.root_transposed(self._bias[:, None])[:, 0]
        return H - np.outer(direction, self._inverse_along[0, 0] * (direction @ H))


def work_of_system(problem: Problem, n_neurons: int) -> float:
    """Multiplications to factorise the system and solve it for the directions of one step, roughly."""
    n_samples, rank = problem.shape
    part = _largest_part(problem, rank * n_neurons)
    smaller = min(part, n_samples) if problem.n_outputs == 1 else part
    factor = 0.5 * n_samples * part * smaller + smaller**3 / 6
    return factor + _ITERATIONS_PER_STEP * 2.0 * n_samples * rank * n_neurons


def _largest_part(problem: Problem, unknowns: int) -> int:
    """How many directions the preconditioner may keep."""
    if problem.n_outputs == 1 and problem.shape[0] <= _LARGEST_ROWS:
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


def _factor(M: NDArray) -> tuple[NDArray, bool]:
    """Cholesky factor of ``I + M``."""
    M.flat[:: len(M) + 1] += 1
    return linalg.cho_factor(M, lower=True, overwrite_a=True, check_finite=False)
