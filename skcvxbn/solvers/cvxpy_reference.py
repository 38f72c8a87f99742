"""The library's reference: the convex program (P) of Theorem 2.2 written out in cvxpy, squared error.

Over given arrangements D_i = diag(1[A s >= 0]), G_i = (2 D_i - I) A, and unit output directions g_l,

    minimise    1/2 || sum_il D_i A h_il g_l^T + e b^T - Y ||_F^2 + beta sum_il || h_il ||_2
    subject to  G_i h_il >= 0,

with b = 0 unless there is an intercept. One output has the directions +1 and -1 only: this is (P), exactly.

Several outputs have a continuum of directions, and over all of them the program is that of Theorem 2.3: its
norm ||S||_{c,*} is the least sum of ||h_il|| over the decompositions S = sum_l h_il g_l^T. That norm cannot
be computed in general (already deciding max_{h in cone} ||M h|| is hard), so the directions are generated:
solve over some, look in the dual for pairs (i, g) that would lower the objective, repeat. The restriction to
the pairs found so far is an upper bound, attained by a real network. A search that finds nothing is not a
proof, so the lower bound comes from a relaxation of the dual constraints instead (see :class:`CvxpyResult`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Floats = NDArray[np.float64]
Patterns = NDArray[np.bool_]

# What an interior-point method leaves of a zero: a share of all lengths together, or a length for targets of
# unit size.
_ZERO_SHARE, _ZERO_LENGTH = 1e-6, 1e-7
# The semidefinite bound uses this many of a cone's inequalities: any subset is valid, all are slow.
_SDP_ROWS = 30


@dataclass(frozen=True)
class CvxpyResult:
    """Solution of the reference program.

    Attributes
    ----------
    S : ndarray of shape (q, m)
        Hidden directions of the neurons that are not zero; neuron j satisfies G s_j >= 0 for its arrangement
        up to the solver's feasibility tolerance, and costs beta ||s_j||.
    V : ndarray of shape (m, C)
        Output weights, unit rows; +1 or -1 for one output.
    arrangement : ndarray of shape (m,)
        The column of `arrangements` that neuron j belongs to.
    shift : ndarray of shape (C,)
        Coefficients of e = A[:, -1], the intercept; zero without one.
    objective : float
        Problem (N) at (S, V, shift): the real network's value, which is the program's own up to the solver's
        feasibility tolerance.
    lower_bound : float
        No point of the program over these arrangements, and any output directions, has a smaller objective:
        the dual value of the residual, scaled until every constraint holds by the bound below. Rigorous up to
        rounding.
    bound : {"cone", "spectral", "semidefinite"}
        How max ||R^T D_i A h|| over unit h in the cone i was bounded for that. "cone": exactly (one output),
        by projection on the cone. "spectral": by the norm of R^T D_i A, forgetting the cone. "semidefinite":
        by the relaxation of h h^T to H with G_i H G_i^T >= 0, where the spectral norm was too large.
    dual : ndarray of shape (n, C)
        The dual point of that value.
    n_rounds : int
        Programs solved, not counting the last one over the used neurons; 1 for one output. At
        `max_rounds` violated pairs may remain: see the bound.
    status : str
        cvxpy's status of the last program, "optimal" as a rule.
    """

    S: Floats
    V: Floats
    arrangement: NDArray[np.intp]
    shift: Floats
    objective: float
    lower_bound: float
    bound: str
    dual: Floats
    n_rounds: int
    status: str


def solve_cvxpy(
    A: Floats,
    Y: Floats,
    beta: float,
    arrangements: Patterns,
    *,
    fit_intercept: bool,
    tol: float = 1e-8,
    direction_tol: float = 1e-6,
    max_rounds: int = 50,
    random_state: int | np.random.Generator | None = 0,
    verbose: bool = False,
) -> CvxpyResult:
    """Solve the convex program over given arrangements by an interior-point method.

    Made for checking other solvers at small size: time and memory grow with n times the number of
    arrangements.

    Parameters
    ----------
    A : ndarray of shape (n, q)
        Whitened rows, A^T A = I; the last column is the unit vector of the intercept.
    Y : ndarray of shape (n, C)
        Targets, weighted like the rows of A.
    beta : float
        Weight decay, positive.
    arrangements : ndarray of bool of shape (n, P)
        One arrangement a column (:mod:`skcvxbn.arrangements`).
    fit_intercept : bool
        Whether an unpenalised multiple of A[:, -1] is added to each output.
    tol : float, default=1e-8
        Gap and feasibility tolerance of the solver (CLARABEL), relative.
    direction_tol : float, default=1e-6
        Several outputs: a pair (arrangement, direction) is added when it violates its dual constraint by more
        than this share.
    max_rounds : int, default=50
        Several outputs: most programs solved.
    random_state : int, Generator or None, default=0
        Several outputs: starts of the search for directions.
    verbose : bool, default=False
        Print the solver's log.

    Returns
    -------
    CvxpyResult
        Neurons, objective and lower bound.

    Raises
    ------
    RuntimeError
        If the solver returns no solution.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.arrangements import enumerate_arrangements
    >>> A = np.array([[-1.0, 1.0], [1.0, 1.0]]) / np.sqrt(2)
    >>> Y = np.array([[2.0], [-1.0]])
    >>> result = solve_cvxpy(A, Y, 0.5, enumerate_arrangements(A), fit_intercept=False)
    >>> round(result.objective, 6), round(result.objective - result.lower_bound, 6)
    (1.25, 0.0)

    Theorem 2.1 gives the same: beta (||y_+|| + ||y_-||) - beta^2 = 0.5 (2 + 1) - 0.25.
    """
    # Solved for targets of unit size, so that the solver's absolute tolerances mean the same at every scale.
    scale = float(np.linalg.norm(Y)) or 1.0
    program = _Program(A, Y / scale, beta / scale, arrangements, fit_intercept, tol, verbose)
    rng = np.random.default_rng(random_state)
    C = Y.shape[1]
    on_somewhere = np.flatnonzero(arrangements.any(axis=0))
    start = np.vstack([np.eye(C), -np.eye(C)])
    index, G = np.repeat(on_somewhere, len(start)), np.tile(start, (on_somewhere.size, 1))
    for rounds in range(1, max_rounds + 1):
        S, shift, status = program.solve(index, G)
        # Before small blocks go: their sum matters to the dual, whose error is first order in the residual.
        residual = program.residual(index, G, S, shift)
        if fit_intercept:
            residual -= np.outer(A[:, -1], A[:, -1] @ residual)
        lengths = np.linalg.norm(S, axis=0)
        used = lengths > max(_ZERO_SHARE * lengths.sum(), _ZERO_LENGTH)
        index, G, S = index[used], G[used], S[:, used]
        if C == 1 or rounds == max_rounds:
            break
        new = list(_violated_pairs(A, residual, program.beta * (1 + direction_tol), arrangements, rng))
        if not new:
            break
        index = np.concatenate([index, [i for i, _ in new]])
        G = np.vstack([G, [g for _, g in new]])
    # Once more over the neurons that are used: what the dropped ones carried goes to them.
    S, shift, status = program.solve(index, G)
    objective = program.network_objective(S, G, shift)
    lower_bound, dual, bound = _dual_bound(A, program.Y, program.beta, residual, arrangements)
    return CvxpyResult(
        S=scale * S,
        V=G,
        arrangement=index,
        shift=scale * shift,
        objective=scale**2 * objective,
        lower_bound=scale**2 * lower_bound,
        bound=bound,
        dual=scale * dual,
        n_rounds=rounds,
        status=status,
    )


@dataclass(frozen=True)
class _Program:
    """The program restricted to pairs (arrangement `index[l]`, output direction `G[l]`)."""

    A: Floats
    Y: Floats
    beta: float
    arrangements: Patterns
    fit_intercept: bool
    tol: float
    verbose: bool

    def solve(self, index: NDArray[np.intp], G: Floats) -> tuple[Floats, Floats, str]:
        """Return the blocks (q, m), the intercept's coefficients (C,), and cvxpy's status."""
        import cvxpy as cp

        if index.size == 0:
            shift = self.A[:, -1] @ self.Y if self.fit_intercept else np.zeros(self.Y.shape[1])
            return np.zeros((self.A.shape[1], 0)), shift, "optimal"
        D = self.arrangements[:, index].astype(np.float64)
        H = cp.Variable((self.A.shape[1], index.size))
        shift = cp.Variable((1, self.Y.shape[1]))
        pre_activation = self.A @ H
        fitted = cp.multiply(D, pre_activation) @ G + self.A[:, -1:] @ shift
        loss = cp.sum_squares(fitted - self.Y) / 2
        constraints = [cp.multiply(2 * D - 1, pre_activation) >= 0]
        if not self.fit_intercept:
            constraints.append(shift == 0)
        problem = cp.Problem(cp.Minimize(loss + self.beta * cp.sum(cp.norm(H, 2, axis=0))), constraints)
        tolerances = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), self.tol)
        with warnings.catch_warnings():
            # cvxpy warns of an inaccurate solution: the status and the gap to the lower bound say it better.
            warnings.simplefilter("ignore", UserWarning)
            problem.solve(solver=cp.CLARABEL, verbose=self.verbose, **tolerances)
        if H.value is None:
            raise RuntimeError(f"cvxpy (CLARABEL) found no solution: status {problem.status}.")
        b = shift.value[0] if self.fit_intercept else np.zeros(self.Y.shape[1])
        return H.value, b, str(problem.status)

    def residual(self, index: NDArray[np.intp], G: Floats, S: Floats, shift: Floats) -> Floats:
        return self.Y - (self.arrangements[:, index] * (self.A @ S)) @ G - np.outer(self.A[:, -1], shift)

    def network_objective(self, S: Floats, V: Floats, shift: Floats) -> float:
        """Evaluate (N): the objective of the real network, with its own activations."""
        fitted = np.maximum(self.A @ S, 0) @ V + np.outer(self.A[:, -1], shift)
        penalty = np.linalg.norm(S, axis=0) @ np.linalg.norm(V, axis=1)
        return float(np.sum((self.Y - fitted) ** 2) / 2 + self.beta * penalty)


def _project_on_cone(cone: Floats, target: Floats) -> Floats:
    """Project `target` (q,) on {h : cone h >= 0}: target + cone^T mu for the mu >= 0 that shortens it most.

    Whatever mu >= 0, || target + cone^T mu || >= target^T h for all unit h in the cone: its length is an
    upper bound of the maximum even when mu is not exact, and the maximum itself when it is.
    """
    mu, _ = nnls(cone.T, -target, maxiter=50 * cone.shape[0])
    return target + cone.T @ mu


def _violated_pairs(
    A: Floats, R: Floats, level: float, arrangements: Patterns, rng: np.random.Generator
) -> Iterator[tuple[int, Floats]]:
    """Search pairs (arrangement, g) with max_{h in cone} g^T R^T D A h > level: local maxima over g, h."""
    C = R.shape[1]
    for i, on in enumerate(arrangements.T):
        M = A[on].T @ R[on]
        _, singular_values, right = np.linalg.svd(M, full_matrices=False)
        if singular_values[0] <= level:
            continue
        cone = np.where(on, 1.0, -1.0)[:, None] * A
        starts = np.vstack([np.eye(C), -np.eye(C), right, -right, rng.standard_normal((2, C))])
        found: list[Floats] = []
        for g in starts / np.linalg.norm(starts, axis=1, keepdims=True):
            h, g = _ascend(M, cone, g)
            if np.linalg.norm(h) > level and all(g @ other < 1 - 1e-9 for other in found):
                found.append(g)
                yield i, g


def _ascend(M: Floats, cone: Floats, g: Floats, n_iter: int = 30) -> tuple[Floats, Floats]:
    """Alternate h <- projection of M g on the cone, g <- M^T h normalised; return h and the g it is for."""
    value = -np.inf
    for _ in range(n_iter):
        h = _project_on_cone(cone, M @ g)
        length = float(np.linalg.norm(h))
        if length <= value * (1 + 1e-12) or length == 0:
            break
        value = length
        image = M.T @ h
        g = image / np.linalg.norm(image)
    return _project_on_cone(cone, M @ g), g


def _dual_bound(
    A: Floats, Y: Floats, beta: float, R: Floats, arrangements: Patterns
) -> tuple[float, Floats, str]:
    """Dual value of the best feasible multiple of the residual, that multiple, how feasibility was shown."""
    largest, bound = 0.0, "cone"
    products = [A[on].T @ R[on] for on in arrangements.T]
    spectral = np.array([float(np.linalg.norm(M, 2)) for M in products])
    if Y.shape[1] > 1:
        bound = "spectral"
    # Cells in decreasing order of the cheap bound: once it is below the largest value the rest cannot matter.
    for i in np.argsort(-spectral):
        if spectral[i] <= max(largest, beta * (1 - 1e-9)):
            largest = max(largest, float(spectral[i]))
            break
        cone = np.where(arrangements[:, i], 1.0, -1.0)[:, None] * A
        if Y.shape[1] == 1:
            g = products[i][:, 0]
            value = max(float(np.linalg.norm(_project_on_cone(cone, sign * g))) for sign in (1, -1))
        else:
            bound = "semidefinite"
            value = min(float(spectral[i]), _semidefinite_bound(products[i], cone))
        largest = max(largest, value)
    room = beta / largest if largest > 0 else np.inf
    squared = float(np.sum(R**2))
    inner = float(np.sum(R * Y))
    step = max(0.0, min(room, inner / squared)) if squared > 0 else 0.0
    return step * inner - step**2 * squared / 2, step * R, bound


def _semidefinite_bound(M: Floats, cone: Floats) -> float:
    """Upper bound of max ||M^T h|| over unit h with cone h >= 0.

    Relaxed: maximise <M M^T, H> over H psd of trace one with cone H cone^T >= 0 entrywise. What is returned
    is the value of its dual, lambda_max(M M^T + cone^T N cone), at the multipliers N made symmetric and
    non-negative: valid however well the program was solved.
    """
    import cvxpy as cp

    top = np.linalg.svd(M)[0][:, 0]
    distance = cone @ top * np.sign(np.sum(cone @ top))
    cone = cone[np.argsort(distance)[:_SDP_ROWS]]
    scale = np.linalg.norm(M, 2) ** 2
    H = cp.Variable((M.shape[0], M.shape[0]), PSD=True)
    nonnegative = cone @ H @ cone.T >= 0
    problem: Any = cp.Problem(cp.Maximize(cp.trace(M @ M.T @ H) / scale), [nonnegative, cp.trace(H) == 1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            problem.solve(solver=cp.CLARABEL)
    except cp.SolverError:
        return float(np.sqrt(scale))
    if nonnegative.dual_value is None:
        return float(np.sqrt(scale))
    N = np.maximum(nonnegative.dual_value + nonnegative.dual_value.T, 0) / 2 * scale
    return float(np.sqrt(max(np.linalg.eigvalsh(M @ M.T + cone.T @ N @ cone)[-1], 0)))
