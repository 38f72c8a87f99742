"""The library's reference: the convex program (P) of Theorem 2.2 written out in cvxpy.

Over given arrangements D_i = diag(1[A s >= 0]), G_i = (2 D_i - I) A, and unit output directions g_l,

    minimise    L(F) + beta sum_il || h_il ||_2
    subject to  F = sum_il D_i A h_il g_l^T + e b^T ,  G_i h_il >= 0,

with b = 0 unless there is an intercept; the multiplier of F is the dual point. The losses are written out
here once more: the program does not rely on the formulas of :mod:`skcvxbn.losses`. One output has the
directions +1 and -1 only: this is (P), exactly.

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
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar, nnls

from skcvxbn.losses import LinearQuadratic, Logistic, Loss, Softmax

Floats = NDArray[np.float64]
Patterns = NDArray[np.bool_]

# What an interior-point method leaves of a zero: a share of all lengths, or a length where outputs are one.
_ZERO_SHARE, _ZERO_LENGTH = 1e-6, 1e-7
# Longer steps, as by default, can end so close to the boundary of an exponential cone that none can follow.
_STEP = 0.9
# Weight of ||mu|| in a projection: without, the equations for mu are singular where many give one point.
_RIDGE = 1e-7
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
        the dual value of `dual`, which is scaled until every constraint holds by the bound below. Rigorous up
        to rounding.
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
    loss: Loss,
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
    loss : Loss
        Loss of the outputs, bound to the targets and weighted like the rows of A.
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
    >>> from skcvxbn.losses import squared_error
    >>> A = np.array([[-1.0, 1.0], [1.0, 1.0]]) / np.sqrt(2)
    >>> loss = squared_error(np.array([[2.0], [-1.0]]), np.ones(2))
    >>> result = solve_cvxpy(A, loss, 0.5, enumerate_arrangements(A), fit_intercept=False)
    >>> round(result.objective, 6), round(result.objective - result.lower_bound, 6)
    (1.25, 0.0)

    Theorem 2.1 gives the same: beta (||y_+|| + ||y_-||) - beta^2 = 0.5 (2 + 1) - 0.25.
    """
    # Solved in units of its own, so that the solver's absolute tolerances mean the same at every scale.
    output, value = loss.unit(A[:, -1] if fit_intercept else None)
    program = _Program(
        A, loss.scaled(output, value), beta * (output / value), arrangements, fit_intercept, tol, verbose
    )
    C, rng, lowest = loss.shape[1], np.random.default_rng(random_state), np.inf
    on_somewhere = np.flatnonzero(arrangements.any(axis=0))
    start = np.vstack([np.eye(C), -np.eye(C)])
    index, G = np.repeat(on_somewhere, len(start)), np.tile(start, (on_somewhere.size, 1))
    for rounds in range(1, max_rounds + 1):
        S, shift, R, status = program.solve(index, G)
        lengths = np.linalg.norm(S, axis=0)
        used = lengths > max(_ZERO_SHARE * lengths.sum(), _ZERO_LENGTH)
        if C == 1 or rounds == max_rounds:
            break
        new = list(_violated_pairs(A, R, program.beta * (1 + direction_tol), arrangements, rng))
        if not new:
            break
        objective = program.network_objective(S, G, shift)
        # While the objective stays, what is dropped could be found again for ever.
        if objective < lowest * (1 - direction_tol):
            lowest, index, G = objective, index[used], G[used]
        index = np.concatenate([index, [i for i, _ in new]])
        G = np.vstack([G, [g for _, g in new]])
    # Once more over the neurons that are used: what the dropped ones carried goes to them.
    index, G = index[used], G[used]
    S, shift, _, status = program.solve(index, G)
    objective = program.network_objective(S, G, shift)
    lower_bound, dual, bound = _dual_bound(A, program.loss, program.beta, R, arrangements)
    return CvxpyResult(
        S=output * S,
        V=G,
        arrangement=index,
        shift=output * shift,
        objective=value * objective,
        lower_bound=value * lower_bound,
        bound=bound,
        dual=(value / output) * dual,
        n_rounds=rounds,
        status=status,
    )


@dataclass(frozen=True)
class _Program:
    """The program restricted to pairs (arrangement `index[l]`, output direction `G[l]`)."""

    A: Floats
    loss: Loss
    beta: float
    arrangements: Patterns
    fit_intercept: bool
    tol: float
    verbose: bool

    def solve(self, index: NDArray[np.intp], G: Floats) -> tuple[Floats, Floats, Floats, str]:
        """Return the blocks (q, m), the intercept's coefficients (C,), the dual point and cvxpy's status."""
        import cvxpy as cp

        fitted, shift = cp.Variable(self.loss.shape), cp.Variable((1, self.loss.shape[1]))
        network, H = self.A[:, -1:] @ shift, None
        value, constraints = _written_out(self.loss, fitted)
        # Without neurons no H: one that is held at zero, next to its penalty, has stopped the solver.
        if index.size:
            H = cp.Variable((self.A.shape[1], index.size))
            D = self.arrangements[:, index].astype(np.float64)
            network += cp.multiply(D, self.A @ H) @ G
            value += self.beta * cp.sum(cp.norm(H, 2, axis=0))
            constraints.append(cp.multiply(2 * D - 1, self.A @ H) >= 0)
        fit = fitted == network
        if not self.fit_intercept:
            constraints.append(shift == 0)
        elif isinstance(self.loss, Softmax):
            # A constant added to all outputs changes nothing.
            constraints.append(cp.sum(shift) == 0)
        problem = cp.Problem(cp.Minimize(value), [fit, *constraints])
        tolerances = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), self.tol)
        with warnings.catch_warnings(), suppress(cp.SolverError):
            # cvxpy warns of an inaccurate solution: the status and the gap to the lower bound say it better.
            warnings.simplefilter("ignore", UserWarning)
            problem.solve(cp.CLARABEL, verbose=self.verbose, max_step_fraction=_STEP, **tolerances)
        if fitted.value is None:
            raise RuntimeError(f"cvxpy (CLARABEL) found no solution: status {problem.status}.")
        S = np.zeros((self.A.shape[1], 0)) if H is None else H.value
        R = _in_domain(self.loss, fit.dual_value)
        if self.fit_intercept:
            R = self.loss.balanced(R, self.A[:, -1])
        return S, self.fit_intercept * shift.value[0], R, str(problem.status)

    def network_objective(self, S: Floats, V: Floats, shift: Floats) -> float:
        """Evaluate (N): the objective of the real network, with its own activations."""
        fitted = np.maximum(self.A @ S, 0) @ V + np.outer(self.A[:, -1], shift)
        penalty = np.linalg.norm(S, axis=0) @ np.linalg.norm(V, axis=1)
        return self.loss.value(fitted) + self.beta * float(penalty)


def _written_out(loss: Loss, F: Any) -> tuple[Any, list[Any]]:
    """Write the loss of the variable `F` in cvxpy: an expression to minimise, and constraints."""
    import cvxpy as cp

    if isinstance(loss, Logistic):
        margin = cp.multiply(loss.slope, F)
        return cp.sum(cp.multiply(loss.scale, cp.logistic(-margin))), []
    if isinstance(loss, Softmax):
        logits = cp.multiply(loss.slope, F)
        own = cp.sum(cp.multiply(loss.indicator, logits), axis=1)
        return loss.scale[:, 0] @ (cp.log_sum_exp(logits, axis=1) - own), []
    assert isinstance(loss, LinearQuadratic)
    error = F - loss.target
    if loss.lower is None or loss.upper is None:
        return cp.sum_squares(error) / (2 * loss.rounding), []
    # The error splits into a part that costs its square and a part that costs the bounds of the slope; where
    # there is no bound there is no such part.
    above, below = cp.Variable(F.shape, nonneg=True), cp.Variable(F.shape, nonneg=True)
    up, down = np.isfinite(loss.upper), np.isfinite(loss.lower)
    value = cp.sum(cp.multiply(np.where(up, loss.upper, 0), above))
    value -= cp.sum(cp.multiply(np.where(down, loss.lower, 0), below))
    constraints = [cp.multiply(~up, above) == 0, cp.multiply(~down, below) == 0]
    rest = error - above + below
    if loss.rounding > 0:
        return value + cp.sum_squares(rest) / (2 * loss.rounding), constraints
    return value, [*constraints, rest == 0]


def _in_domain(loss: Loss, R: Floats) -> Floats:
    """Move a dual point, which the solver found to its tolerance, into the domain of the dual objective."""
    if isinstance(loss, Logistic):
        return loss.scale * loss.slope * np.clip(R / (loss.scale * loss.slope), 0, 1)
    if isinstance(loss, Softmax):
        P = np.maximum(loss.indicator - R / (loss.scale * loss.slope), 0)
        return loss.scale * loss.slope * (loss.indicator - P / P.sum(axis=1, keepdims=True))
    return R if loss.box is None else np.clip(R, loss.box.lower, loss.box.upper)


def _project_on_cone(cone: Floats, target: Floats) -> Floats:
    """Project `target` (q,) on {h : cone h >= 0}: target + cone^T mu for the mu >= 0 that shortens it most.

    Whatever mu >= 0, || target + cone^T mu || >= target^T h for all unit h in the cone: its length is an
    upper bound of the maximum even when mu is not exact, and the maximum itself when it is.
    """
    # In units of the target: the tolerance of nnls is absolute in some versions of SciPy.
    n, length = len(cone), np.linalg.norm(target) or 1.0
    mu, _ = nnls(np.vstack([cone.T, _RIDGE * np.eye(n)]), np.pad(-target / length, (0, n)), maxiter=50 * n)
    return target + length * (cone.T @ mu)


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
        g = M.T @ h / np.linalg.norm(M.T @ h)
    return _project_on_cone(cone, M @ g), g


def _dual_bound(
    A: Floats, loss: Loss, beta: float, R: Floats, arrangements: Patterns
) -> tuple[float, Floats, str]:
    """Dual value of the best feasible multiple of a dual point, that multiple, how feasibility was shown."""
    largest, bound = 0.0, "cone" if R.shape[1] == 1 else "spectral"
    products = [A[on].T @ R[on] for on in arrangements.T]
    spectral = np.array([float(np.linalg.norm(M, 2)) for M in products])
    # Cells in decreasing order of the cheap bound: once it is below the largest value the rest cannot matter.
    for i in np.argsort(-spectral):
        if spectral[i] <= max(largest, beta * (1 - 1e-9)):
            largest = max(largest, float(spectral[i]))
            break
        cone = np.where(arrangements[:, i], 1.0, -1.0)[:, None] * A
        if R.shape[1] == 1:
            g = products[i][:, 0]
            value = max(float(np.linalg.norm(_project_on_cone(cone, sign * g))) for sign in (1, -1))
        else:
            bound = "semidefinite"
            value = min(float(spectral[i]), _semidefinite_bound(products[i], cone))
        largest = max(largest, value)
    room = beta / largest if largest > 0 else np.inf
    multiple = _best_multiple(loss, R, min(room, loss.largest_multiple(R)))
    return loss.dual_value(multiple * R), multiple * R, bound


def _best_multiple(loss: Loss, R: Floats, most: float) -> float:
    """Multiple of `R`, at most `most`, of the largest dual value, which is concave along `R`."""

    def negative(t: float) -> float:
        return -loss.dual_value(t * R)

    if not np.isfinite(most):
        most = 2.0
        while negative(most) < negative(most / 2):
            most *= 2
    found = minimize_scalar(negative, bounds=(0.0, most), method="bounded", options={"xatol": 1e-9 * most})
    return min((most, float(found.x), 0.0), key=negative)


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
    with warnings.catch_warnings(), suppress(cp.SolverError):
        warnings.simplefilter("ignore", UserWarning)
        problem.solve(solver=cp.CLARABEL)
    if nonnegative.dual_value is None:
        return float(np.sqrt(scale))
    N = np.maximum(nonnegative.dual_value + nonnegative.dual_value.T, 0) / 2 * scale
    return float(np.sqrt(max(np.linalg.eigvalsh(M @ M.T + cone.T @ N @ cone)[-1], 0)))
