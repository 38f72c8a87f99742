"""Program (P) over a given set of arrangements: directions priced out exactly, then sized together.

At the optimum most arrangements carry no neuron, and a neuron matters by its direction more than by anything
else. So the program is solved over directions. Given the residual ``R``, the dual constraint
``u^T R^T D_i A s <= beta`` of an arrangement (unit ``u``, unit ``s`` with ``G_i s >= 0``) is most violated by
the projection of ``A^T D_i R u`` on its cone. All violating directions join those in use, and the output
weights of all are chosen together; two directions of one cone add up to a third one. Resizing makes the
constraints of the directions in use exact, and those of directions nearby exact to second order, so few
rounds do. Where they stand still, the interior point method solves for the directions in use within their
cones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skcvxbn.solvers.base import Options, Problem, Solution, balanced, without_negligible
from skcvxbn.solvers.cone_projection import ConeProjector
from skcvxbn.solvers.interior_point import solve_over_arrangements
from skcvxbn.solvers.neurons import merge
from skcvxbn.solvers.output_weights import group_lasso, nonnegative_sizes

# A round that leaves more than this share of the gap stands still.
_PROGRESS = 0.9
# The solver stops after this many rounds without progress on the smallest gap so far.
_PATIENCE = 6
# Directions that may join in a round, at least, and as a share of the rows.
_LEAST_NEWCOMERS, _NEWCOMERS_PER_ROW = 40, 0.5
# Rounding of the kinks of the loss while output weights are chosen, and the least curvature they are chosen
# by, as a share of the largest; how often their step is halved.
_ROUNDING, _LEAST_CURVATURE, _HALVINGS = 1e-2, 1e-3, 6
# Share of the tolerance to which the interior point method solves.
_SHARE = 0.1
# Neurons of one arrangement are merged where the cosine of their output directions is at least the first of
# these that costs little.
_COSINES = (0.5, 0.9, 0.99, 0.999, 1 - 1e-5, 1 - 1e-9)


@dataclass(frozen=True)
class _Neurons:
    """Neurons of given arrangements: directions, unit outputs, column of the arrangement, dual value."""

    S: NDArray
    U: NDArray
    owner: NDArray
    values: NDArray

    def take(self, which: NDArray) -> _Neurons:
        return _Neurons(self.S[:, which], self.U[which], self.owner[which], self.values[which])

    def with_(self, other: _Neurons) -> _Neurons:
        return _Neurons(
            np.hstack([self.S, other.S]),
            np.vstack([self.U, other.U]),
            np.concatenate([self.owner, other.owner]),
            np.concatenate([self.values, other.values]),
        )


def solve_fixed_arrangements(
    problem: Problem, options: Options, patterns: NDArray, *, complete: bool = False
) -> Solution:
    """Solve program (P) of Theorem 2.2 or, for several outputs, that of Theorem 2.3.

    Parameters
    ----------
    problem : Problem
        The training problem.
    options : Options
        Tolerance and limits.
    patterns : ndarray of bool, shape (n_samples, n_arrangements)
        The arrangements.
    complete : bool
        Whether they are all arrangements, so that the optimum is that of the network (N).

    Returns
    -------
    Solution
        Every neuron is feasible for (P): it lies in the cone of one of the arrangements, to rounding. For
        one output the lower bound is rigorous, and the certificate "restricted", or "exact" when the
        set is complete. For several outputs the dual constraint of an arrangement is not convex in the
        output direction, which is searched by alternation: the certificate is "estimated".
    """
    patterns = _distinct(patterns)
    several = problem.n_outputs > 1
    prices = _DirectionPrices(problem, patterns) if several else _SignPrices(problem, patterns)
    network = priced = _Neurons(
        np.zeros((problem.A.shape[1], 0)), np.zeros((0, problem.n_outputs)), np.zeros(0, int), np.zeros(0)
    )
    best, objective, lower_bound, gap, progress = network, np.inf, -np.inf, np.inf, True
    least_gap, patience, n_iter, message = np.inf, _PATIENCE, 0, "the limit of rounds was reached"
    for n_iter in range(1, options.max_iter + 1):
        if progress:
            accuracy = max(_SHARE * options.tol, _SHARE * min(gap, 0.1))
            network, R = _resized(problem, patterns, network, priced, accuracy)
        else:
            joined = _joined(best, _newcomers(problem, priced))
            network, R = _solved(
                problem.smoothed(_SHARE * options.tol), patterns, joined, _SHARE * options.tol
            )
        value = problem.objective(network.S, network.U)
        if value <= objective:
            best, objective = network, value
        priced, bound, exact = _priced(problem, prices, R, network, options.tol, objective)
        if exact:
            # A searched bound may have been refuted since.
            lower_bound = bound if several else max(lower_bound, bound)
        last, gap = gap, (objective - max(lower_bound, bound)) / objective
        if options.verbose:
            print(
                f"round {n_iter:3d}  objective {objective:.8e}  gap {gap:.1e}  neurons {len(network.U)}",
                flush=True,
            )
        if gap <= options.tol:
            message = ""
            break
        patience = _PATIENCE if gap < _PROGRESS * least_gap else patience - 1
        least_gap = min(gap, least_gap)
        if patience == 0:
            message = "the gap stands still"
            break
        if time.monotonic() >= options.deadline:
            message = "max_time was reached"
            break
        # After an exact solution resizing has another chance.
        progress = not progress or gap < _PROGRESS * last
    if not exact:
        # The bound so far was for orientation.
        lower_bound = _bound(problem, R, prices.confirmed(R, network))
    S, V = balanced(best.S, best.U)
    certificate = "estimated" if several else ("exact" if complete else "restricted")
    lower_bound = min(lower_bound, objective)
    converged = objective - lower_bound <= options.tol * objective
    return Solution(S, V, R, objective, lower_bound, certificate, n_iter, converged, message)


def _bound(problem: Problem, R: NDArray, priced: _Neurons) -> float:
    return problem.dual_bound(R, float(priced.values.max(initial=0.0)))


def _priced(
    problem: Problem,
    prices: _SignPrices | _DirectionPrices,
    R: NDArray,
    network: _Neurons,
    tol: float,
    objective: float,
) -> tuple[_Neurons, float, bool]:
    """Prices, the bound they give, and whether it is as good as the prices get."""
    priced = prices.at(R, network)
    bound = _bound(problem, R, priced)
    if prices.exact or objective - bound > tol * objective:
        return priced, bound, prices.exact
    priced = prices.confirmed(R, network)
    return priced, _bound(problem, R, priced), True


def _distinct(patterns: NDArray) -> NDArray:
    first = np.unique(np.packbits(patterns, axis=0), axis=1, return_index=True)[1]
    return patterns[:, np.sort(first)]


def _newcomers(problem: Problem, priced: _Neurons) -> _Neurons:
    """Violated constraints, the most violated first, no more than the rows can tell apart."""
    violated = np.flatnonzero(priced.values > problem.beta)
    order = violated[np.argsort(-priced.values[violated], kind="stable")]
    return priced.take(order[: max(_LEAST_NEWCOMERS, int(_NEWCOMERS_PER_ROW * len(problem.A)))])


def _resized(
    problem: Problem, patterns: NDArray, network: _Neurons, priced: _Neurons, accuracy: float
) -> tuple[_Neurons, NDArray]:
    """Choose the output weights of the directions in use and of the violating ones, and the dual point."""
    smooth = problem.smoothed(_ROUNDING)
    candidates = network.with_(_newcomers(problem, priced))
    if len(candidates.U) == 0:
        return candidates, smooth.feasible(smooth.zero.R)
    lengths = np.linalg.norm(candidates.S, axis=0)
    start = candidates.U * np.where(np.arange(len(lengths)) < len(network.U), lengths, 0.0)[:, None]
    H = patterns[:, candidates.owner] * (problem.A @ (candidates.S / lengths))
    V = _output_weights(smooth, H, candidates.U, start, accuracy)
    sizes = np.linalg.norm(V, axis=1)
    used = np.flatnonzero(sizes > 0)
    S, U = candidates.S / lengths * sizes, V / np.where(sizes > 0, sizes, 1.0)[:, None]
    sized = _Neurons(S, U, candidates.owner, candidates.values).take(used)
    # An objective accurate to e leaves an error of the order of its root in the residual and the prices.
    allowed = problem.objective(sized.S, sized.U) * (1 + accuracy**2)
    for cosine in _COSINES:
        merged = _merged(sized, cosine)
        if problem.objective(merged.S, merged.U) <= allowed:
            break
    return merged, smooth.dual_point(merged.S, merged.U)


def _output_weights(problem: Problem, H: NDArray, U: NDArray, start: NDArray, accuracy: float) -> NDArray:
    """Output weights of given columns, by a step of Newton's method on the loss: exact for a square."""
    output = problem.at(H @ start)
    weight = problem.loss.row_curvature(output.F)
    # Where the loss is linear its curvature, that of nothing, must not divide.
    roots = np.sqrt(np.maximum(weight, _LEAST_CURVATURE * max(float(weight.max()), 1.0)))
    columns, target = roots * H, roots * output.F + output.R / roots
    if problem.fit_intercept:
        direction = roots[:, 0] * problem.A[:, -1]
        direction /= np.linalg.norm(direction)
        columns = columns - np.outer(direction, direction @ columns)
        target = target - np.outer(direction, direction @ target)
    if problem.n_outputs == 1:
        V = U * nonnegative_sizes(columns * U[:, 0], target[:, 0], problem.beta)[:, None]
    else:
        V = group_lasso(columns, target, problem.beta, start, 0.1 * accuracy)
    before = output.value + problem.beta * np.linalg.norm(start, axis=1).sum()
    for halving in range(_HALVINGS):
        trial = start + 0.5**halving * (V - start)
        if problem.at(H @ trial).value + problem.beta * np.linalg.norm(trial, axis=1).sum() < before:
            return trial
    return start


def _merged(network: _Neurons, cosine: float) -> _Neurons:
    S, U, leaders = merge(network.S, network.U, network.owner, cosine)
    return _Neurons(S, U, network.owner[leaders], network.values[leaders])


def _joined(network: _Neurons, newcomers: _Neurons) -> _Neurons:
    """Add directions of new arrangements or outputs, as small neurons."""
    known = (newcomers.owner[:, None] == network.owner) & (newcomers.U @ network.U.T > 1 - 1e-9)
    new = newcomers.take(np.flatnonzero(~known.any(axis=1)))
    size = 1e-2 * np.linalg.norm(network.S, axis=0).mean() if len(network.U) else 1e-2
    return network.with_(_Neurons(size * new.S, new.U, new.owner, new.values))


def _solved(
    problem: Problem, patterns: NDArray, network: _Neurons, accuracy: float
) -> tuple[_Neurons, NDArray]:
    """Solve within the cones in use, drop those that the optimum does without, and give the dual point."""
    if len(network.U) == 0:
        return network, problem.feasible(problem.zero.R)
    D = patterns[:, network.owner]
    S, R = solve_over_arrangements(problem, D, network.U, network.S, tol=accuracy, max_iter=80)
    used = without_negligible(S, network.U, 1e-9)
    # The method keeps the constraints to its tolerance; the projection keeps them to rounding.
    S = ConeProjector(problem.A, D[:, used]).project(S[:, used], np.arange(np.count_nonzero(used)))
    kept = network.take(np.flatnonzero(used))
    return _Neurons(S, kept.U, kept.owner, kept.values).take(np.linalg.norm(S, axis=0) > 0), R


class _SignPrices:
    """One output: the dual constraints of all arrangements, for both signs of the output weight."""

    exact = True

    def __init__(self, problem: Problem, patterns: NDArray) -> None:
        self._problem, self._patterns = problem, patterns
        self._projector = ConeProjector(problem.A, np.hstack([patterns, patterns]))

    def confirmed(self, R: NDArray, network: _Neurons) -> _Neurons:
        """The same, for they are exact."""
        return self.at(R, network)

    def at(self, R: NDArray, network: _Neurons) -> _Neurons:
        """Dual values, of those above beta exact, with the directions that attain them."""
        del network
        n_arrangements = self._patterns.shape[1]
        gradients = (self._problem.A * R).T @ self._patterns
        cones = np.flatnonzero(np.tile(np.linalg.norm(gradients, axis=0) > self._problem.beta, 2))
        owner, signs = cones % n_arrangements, np.where(cones < n_arrangements, 1.0, -1.0)
        S = self._projector.project(gradients[:, owner] * signs, cones, self._problem.beta)
        values = np.linalg.norm(S, axis=0)
        return _Neurons(S / np.where(values > 0, values, 1.0), signs[:, None], owner, values)


class _DirectionPrices:
    """Several outputs: alternation between the neuron and its output direction."""

    exact = False

    def __init__(self, problem: Problem, patterns: NDArray) -> None:
        self._problem, self._patterns = problem, patterns
        self._quick = self._prepared(_Effort(n_starts=2, n_steps=3, hopeful=0.8))

    def _prepared(self, effort: _Effort) -> _Climb:
        n_starts = min(effort.n_starts, self._problem.n_outputs, self._problem.A.shape[1])
        owner = np.repeat(np.arange(self._patterns.shape[1]), 2 * n_starts)
        return _Climb(effort, n_starts, owner, ConeProjector(self._problem.A, self._patterns[:, owner]))

    def at(self, R: NDArray, network: _Neurons) -> _Neurons:
        """Local maxima of the dual values, from singular vectors and from the neurons in use."""
        return self._search(R, network, self._quick)

    def confirmed(self, R: NDArray, network: _Neurons) -> _Neurons:
        """The same by a longer search, before a bound is believed."""
        return self._search(R, network, self._prepared(_Effort(n_starts=4, n_steps=10, hopeful=0.5)))

    def _search(self, R: NDArray, network: _Neurons, climb: _Climb) -> _Neurons:
        # Of shape (arrangements, rank + 1, outputs).
        M = np.stack([(self._problem.A * r[:, None]).T @ self._patterns for r in R.T], axis=-1)
        M = M.transpose(1, 0, 2)
        _, spectral, right = np.linalg.svd(M, full_matrices=False)
        starts = right[:, : climb.n_starts]
        U = np.concatenate([starts, -starts], axis=1).reshape(-1, R.shape[1])
        # No neuron of an arrangement whose spectral norm is at most beta violates its constraint.
        feasible = spectral[climb.owner, 0] <= self._problem.beta
        cones = np.flatnonzero(~feasible)
        found = self._climbed(climb.projector, M, U[cones], climb.owner[cones], cones, climb.effort)
        if len(network.U) == 0:
            return found
        projector = ConeProjector(self._problem.A, self._patterns[:, network.owner])
        cones = np.arange(len(network.U))
        return found.with_(self._climbed(projector, M, network.U, network.owner, cones, climb.effort))

    def _climbed(
        self,
        projector: ConeProjector,
        M: NDArray,
        U: NDArray,
        owner: NDArray,
        cones: NDArray,
        effort: _Effort,
    ) -> _Neurons:
        level = effort.hopeful * self._problem.beta
        for _ in range(effort.n_steps):
            S = projector.project(np.einsum("jqc,jc->qj", M[owner], U), cones, level)
            hopeful = np.linalg.norm(S, axis=0) > level
            S, owner, cones = S[:, hopeful], owner[hopeful], cones[hopeful]
            image = np.einsum("jqc,qj->jc", M[owner], S)
            U = image / np.maximum(np.linalg.norm(image, axis=1, keepdims=True), np.finfo(float).tiny)
        S = projector.project(np.einsum("jqc,jc->qj", M[owner], U), cones, self._problem.beta)
        values = np.linalg.norm(S, axis=0)
        return _Neurons(S / np.where(values > 0, values, 1.0), U, owner, values)


@dataclass(frozen=True)
class _Effort:
    """Output directions of each sign to start from, steps, and the share of beta below which to give up."""

    n_starts: int
    n_steps: int
    hopeful: float


@dataclass(frozen=True)
class _Climb:
    effort: _Effort
    n_starts: int
    owner: NDArray
    projector: ConeProjector
