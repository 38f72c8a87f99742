"""Newton systems of many unknowns: conjugate gradients on the side of the output.

With ``K = M^T F``, less what the bias reaches, the system ``(F^T W F + B) x = b`` reads there

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
from skcvxbn.solvers.newton_system import DirectSystem, FactorisedSystem, NewtonSystem

# Eigenvalues below this are left to conjugate gradients, and those above it too where they are too many.
_SMALL_EIGENVALUE = 1.0
_LARGEST_FACTOR = 800
# The factor can have as many rows as the data have outputs instead; with one output this many. It is the more
# exact one: softly held directions next to large curvatures cost the other digits.
_LARGEST_ROWS = 2000
_MAX_ITER = 100
# Unknowns that are factorised directly, at most.
_LARGEST_DIRECT = 3000
# Iterations of conjugate gradients that the directions of one step take together, about, and multiplications
# that the passes through rows and neurons of an iteration, and through a factor, take in the time of one.
_ITERATIONS_PER_STEP, _PASS, _FACTOR_PASS = 25, 20, 12
# Steps over which the inner products of a quadratic loss are spread.
_STEPS = 20


def factorised(system: NewtonSystem, curvature: Curvature, blocks: NDArray) -> FactorisedSystem:
    """Factorise a system in the way that is the cheaper one for its size; see `FactorisedSystem`."""
    kind = DirectSystem if _is_direct(system.problem, len(blocks)) else PreconditionedSystem
    return kind(system, curvature, blocks)


class PreconditionedSystem(FactorisedSystem):
    """The system by conjugate gradients, of which the large part is factorised.

    Parameters and errors are those of `FactorisedSystem`.
    """

    def __init__(self, system: NewtonSystem, curvature: Curvature, blocks: NDArray) -> None:
        super().__init__(system, curvature, blocks)
        self._precondition = self._preconditioner(
            np.matmul(self._L_inverse.transpose(0, 2, 1), self._L_inverse)
        )

    def solve(self, b: NDArray, tol: float) -> tuple[NDArray, NDArray, NDArray]:
        """Solve to the relative accuracy `tol`."""
        Z = _conjugate_gradients(
            lambda R: R + self._forward(self._divide(self._backward(R))),
            self._precondition,
            self._forward(self._divide(b)),
            tol,
        )
        image = self._curvature.root(self._without_reached(Z))
        X = self._divide(b - self._system.adjoint(image))
        return X, image, self._system.fit(X)

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
        if len(neuron) > len(H) * U.shape[1] and _keeps_rows(system.problem):
            columns = self._columns(H, U)
            rows = _factor(columns @ columns.T)
            return lambda R: linalg.cho_solve(rows, R.ravel(), check_finite=False).reshape(R.shape)
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

    def _columns(self, H: NDArray, U: NDArray) -> NDArray:
        """Columns of ``K`` for the columns ``h_j u_j^T`` of ``F``, each of length n_samples * n_outputs."""
        n_outputs = U.shape[1]
        # The transposed root is a matrix for every row, whose columns are the images of the units.
        units = (np.broadcast_to(unit, (len(H), n_outputs)) for unit in np.eye(n_outputs, dtype=H.dtype))
        root = np.stack([self._curvature.root_transposed(unit) for unit in units], axis=-1)
        columns = ((root @ U.T) * H[:, None, :]).reshape(len(H) * n_outputs, len(U))
        if self._bias is None:
            return columns
        reached = (root * self._bias[:, None, None]).reshape(len(columns), n_outputs)
        return columns - reached @ (self._inverse_along @ (reached.T @ columns))


def work_of_system(problem: Problem, n_neurons: int) -> float:
    """Multiplications to factorise the system and solve it for the directions of one step, roughly."""
    direct = _is_direct(problem, n_neurons)
    return _direct_work(problem, n_neurons) if direct else _preconditioned_work(problem, n_neurons)


def _is_direct(problem: Problem, n_neurons: int) -> bool:
    n_samples, rank = problem.shape
    if rank * n_neurons > min(n_samples * problem.n_outputs, _LARGEST_DIRECT):
        return False
    return _direct_work(problem, n_neurons) <= _preconditioned_work(problem, n_neurons)


def _direct_work(problem: Problem, n_neurons: int) -> float:
    n_samples, rank = problem.shape
    unknowns = rank * n_neurons
    products = 0.5 * n_samples * unknowns**2
    if problem.loss.quadratic:
        products /= _STEPS
    elif problem.n_outputs > 1:
        # A root of the curvature has as many columns as there are outputs.
        products *= problem.n_outputs
    return products + unknowns**3 / 6 + 2.0 * rank * unknowns**2


def _preconditioned_work(problem: Problem, n_neurons: int) -> float:
    n_samples, rank = problem.shape
    part = _largest_part(problem, rank * n_neurons)
    rows = n_samples * problem.n_outputs
    if part > rows and _keeps_rows(problem):
        factor, solution = 0.5 * part * rows**2 + rows**3 / 6, float(rows) ** 2
    else:
        factor, solution = 0.5 * n_samples * part**2 + part**3 / 6, 2.0 * n_samples * part
    passes = 2.0 * n_samples * (rank + _PASS) * n_neurons + _FACTOR_PASS * solution
    return factor + _ITERATIONS_PER_STEP * passes


def _largest_part(problem: Problem, unknowns: int) -> int:
    """How many directions the preconditioner may keep."""
    return unknowns if _keeps_rows(problem) else min(unknowns, _LARGEST_FACTOR)


def _keeps_rows(problem: Problem) -> bool:
    """Whether the factor may have as many rows as the data have outputs."""
    if problem.n_outputs == 1:
        return problem.shape[0] <= _LARGEST_ROWS
    return problem.shape[0] * problem.n_outputs <= _LARGEST_FACTOR


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
