"""Program (P) over a given set of arrangements: their neurons priced out, then solved for together.

At the optimum most arrangements carry no neuron. So the program is solved over few of them. Given a dual
point, every arrangement is priced (`prices`): the neuron of its cone that violates the dual constraint most
joins those in use, and all of them are solved for together, in one of two ways.

Where the loss is smooth and has one output, or is a square, only the output weights are chosen at first: a
problem in as many numbers as there are directions, or a group lasso of as many groups. Two directions of one
cone add up to a third. The constraints of the directions in use become exact, and those of directions nearby
exact to second order, so few rounds do.

Where that stands still it takes turns with the interior point method, which solves for the neurons within
their cones. Where kinks of the loss would make its dual point jump from round to round, and for several
outputs of a curved loss, that method does all. It stops at a share of the gap, well inside the feasible set
of the dual, where prices change little from round to round (Gondzio, Gonzalez-Brevis and Munari, 2013).
"""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from skcvxbn.solvers.base import Options, Problem, Solution, balanced, without_negligible
from skcvxbn.solvers.cone_projection import ConeProjector
from skcvxbn.solvers.interior_point import solve_over_arrangements
from skcvxbn.solvers.output_weights import improved_weights, nonnegative_sizes
from skcvxbn.solvers.owned_neurons import OwnedNeurons
from skcvxbn.solvers.prices import prices_of

# A round that leaves more than this share of the gap, and lowers the objective by less than that share of it,
# stands still.
_PROGRESS, _DESCENT = 0.9, 0.01
# The solver stops after this many rounds without progress; with several outputs, whose gap goes up and down
# while weights are chosen, it waits for so many until it solves the program instead.
_PATIENCE, _WAIT = 6, 5
# Neurons that may join in a round: at least, where weights are chosen as a share of the rows, and where the
# program is solved as a share of those in use.
_LEAST_NEWCOMERS, _NEWCOMERS_PER_ROW, _NEWCOMERS_PER_NEURON = 40, 0.5, 0.5
# A loss that rounding its kinks by this much changes is not smooth.
_ROUGH = 1e-2
# A searched bound is confirmed where the gap falls below this, and then below a share of the last such gap:
# what a quick search misses would keep many rounds busy in vain.
_CONFIRMED_BELOW, _CONFIRMED_SHARE = 1e-2, 1e-2
# Rounding of the kinks in the program, as a share of the tolerance: it makes the dual point unique.
_ROUNDING = 0.05
# Least curvature by which output weights are chosen, as a share of the largest; how often a step is halved.
_LEAST_CURVATURE, _HALVINGS = 1e-3, 6
# Accuracy to which a group lasso is solved; weights below this share of the largest are zeros.
_WEIGHT_ACCURACY, _NO_WEIGHT = 1e-7, 1e-7
# Accuracy to which the program is solved, as a share of the gap; that of the first rounds; most steps.
_SHARE, _LEAST_ACCURATE, _MOST_STEPS = 0.03, 1e-2, 80
# Neurons below this share of the largest leave, in units of the accuracy of the program.
_NEGLIGIBLE = 0.1
# Newcomers join as neurons of this size, as a share of the typical one.
_ENTRY_SIZE = 1e-2
# Shares of the gap by which the cosine of the output directions of two neurons of one arrangement may differ
# from one: where a newcomer is not new, and where neurons merge, their weights chosen or the program solved.
# Fewer directions bend the dual point.
_ALIKE, _MERGING_WEIGHTED, _MERGING = 1e-3, 0.03, 0.3
# Share of what the tolerance leaves that the objective may rise by, for fewer neurons, at the end.
_FEWER = 0.5
_CONVERGED, _INTERRUPTED = "converged", "interrupted"


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
    program = _Program(problem, options, patterns)
    try:
        while not program.message:
            program.round()
    except KeyboardInterrupt:
        program.message = _INTERRUPTED
    return program.solution(complete)


class _Program:
    """State of the rounds."""

    def __init__(self, problem: Problem, options: Options, patterns: NDArray) -> None:
        self.problem, self.options, self.patterns = problem, options, _distinct(patterns)
        self.rounded = problem.smoothed(_ROUNDING * options.tol)
        self.prices = prices_of(problem, self.patterns)
        smooth = problem.smoothed(_ROUGH) is problem
        self.weighable = smooth and (problem.n_outputs == 1 or problem.loss.quadratic)
        self.weights_only = self.weighable
        self.network = self.best = self.priced = OwnedNeurons.none(problem)
        self.objective = problem.zero.value
        # Of a dual point of zero.
        self.R = np.zeros_like(problem.zero.R)
        self.bound, self.believed = problem.dual_bound(self.R, 0.0), self.prices.exact
        self.gap = self.least_gap = self.reference_gap = math.inf
        self.confirmed_below = _CONFIRMED_BELOW
        self.accuracy, self.patience, self.n_iter, self.message = _LEAST_ACCURATE, _PATIENCE, 0, ""

    def round(self) -> None:
        """Solve over the neurons in use and those priced last, and price the arrangements anew."""
        self.n_iter += 1
        self.network, R = self._weighted() if self.weights_only else self._solved()
        objective = self.problem.objective(self.network.S, self.network.U)
        # A round that lowers the objective counts too, for far from the optimum no dual point is good.
        lower = objective < self.objective * (1 - _DESCENT * min(self.gap, 1.0))
        if objective <= self.objective:
            self.best, self.objective = self.network, objective
        self._price(R)
        if self.options.verbose:
            print(
                f"round {self.n_iter:3d}  objective {self.objective:.8e}  gap {self.gap:.1e}"
                f"  neurons {len(self.network)}",
                flush=True,
            )
        self._decide(lower)

    def _price(self, R: NDArray) -> None:
        """Price the arrangements at a dual point, and state the gap."""
        tol, believed = self.options.tol, self.prices.exact
        self.priced = self.prices.at(R, self.network)
        bound = self._bound(R)
        gap = 1 - bound / self.objective
        if not believed and gap <= max(tol, self.confirmed_below):
            self.confirmed_below = _CONFIRMED_SHARE * gap
            self.priced, believed = self.prices.confirmed(R, self.network), True
            bound = self._bound(R)
            if bound < self.objective * (1 - tol):
                # What was found is worth some rounds, whatever the gap seemed to be.
                self.reference_gap = math.inf
        # The best bound so far counts only where it is exact: a searched one may have been refuted since.
        self.gap = 1 - (max(bound, self.bound) if self.prices.exact else bound) / self.objective
        if bound >= self.bound or (believed and (not self.believed or self.gap <= tol)):
            self.R, self.bound, self.believed = R, bound, believed

    def _bound(self, R: NDArray) -> float:
        # Prices of at most beta are not computed.
        return self.problem.dual_bound(R, float(self.priced.sizes.max(initial=self.problem.beta)))

    def _decide(self, lower: bool) -> None:
        options = self.options
        progress = self.gap < _PROGRESS * self.reference_gap
        if progress:
            self.reference_gap = self.gap
        self.least_gap = min(self.gap, self.least_gap)
        self.patience = _PATIENCE if progress or lower else self.patience - 1
        if self.gap <= options.tol:
            self.message = _CONVERGED
        elif self.patience == 0:
            self.message = "the gap stands still"
        elif self.weighable and not progress and self._waited():
            # Where the one way stands still the other has another chance.
            self.weights_only = not self.weights_only
        if self.message:
            return
        if time.monotonic() >= options.deadline:
            self.message = "max_time was reached"
        elif self.n_iter >= options.max_iter:
            self.message = "the limit of rounds was reached"

    def _waited(self) -> bool:
        """Whether the gap has stood still for long enough to try the other way."""
        waits = self.weights_only and self.problem.n_outputs > 1
        return not waits or _PATIENCE - self.patience >= _WAIT

    def _violating(self) -> OwnedNeurons:
        """Neurons whose dual constraint is violated, the most violated first."""
        values = self.priced.sizes
        violated = np.flatnonzero(values > self.problem.beta)
        return self.priced.take(violated[np.argsort(-values[violated], kind="stable")])

    def _weighted(self) -> tuple[OwnedNeurons, NDArray]:
        """Choose the output weights of the directions in use and of violating ones; the dual point."""
        problem, network = self.problem, self.network
        most = max(_LEAST_NEWCOMERS, int(_NEWCOMERS_PER_ROW * len(problem.A)))
        violating = self._violating()
        newcomers = violating.take(np.arange(min(most, len(violating))))
        candidates = network.with_(newcomers)
        if len(candidates) == 0:
            return candidates, problem.feasible(problem.zero.R)
        directions = candidates.resized(np.ones(len(candidates)))
        H = self.patterns[:, directions.owner] * (problem.A @ directions.S)
        start = np.concatenate([network.sizes, np.zeros(len(newcomers))])
        V = _output_weights(problem, H, start[:, None] * directions.U, directions.U)
        network = directions.reweighted(V).merged(1 - _MERGING_WEIGHTED * min(self.least_gap, 1.0))
        return network, problem.dual_point(network.S, network.U)

    def _solved(self) -> tuple[OwnedNeurons, NDArray]:
        """Solve within the cones in use and the violated ones; the dual point."""
        problem, network = self.problem, self.network
        candidates = self._joined()
        if len(candidates) == 0:
            return candidates, problem.feasible(self.rounded.zero.R)
        least = _SHARE * self.options.tol
        if len(candidates) > len(network):
            self.accuracy = float(np.clip(_SHARE * self.gap, least, _LEAST_ACCURATE))
        else:
            # What is missing is accuracy.
            self.accuracy = min(least, _SHARE * self.accuracy)
        D = self.patterns[:, candidates.owner]
        S, R = solve_over_arrangements(
            self.rounded, D, candidates.U, candidates.S, tol=self.accuracy, max_iter=_MOST_STEPS
        )
        # Where the gap stands still, what left may be what it lacks.
        dispensable = _NEGLIGIBLE * min(self.accuracy, _SHARE * self.least_gap)
        negligible = dispensable if self.patience == _PATIENCE else 0.0
        used = np.flatnonzero(without_negligible(S, candidates.U, negligible))
        # The method keeps the constraints to its tolerance; the projection keeps them to rounding.
        S = ConeProjector(problem.A, D[:, used]).project(S[:, used], np.arange(len(used)))
        network = OwnedNeurons(S, candidates.U[used], candidates.owner[used])
        network = network.take(np.flatnonzero(network.sizes > 0))
        return network.merged(1 - _MERGING * min(self.least_gap, 1.0)), R

    def _joined(self) -> OwnedNeurons:
        """Let in violating neurons of new arrangements or output directions, as small ones."""
        network = self.network
        most = max(_LEAST_NEWCOMERS, int(_NEWCOMERS_PER_NEURON * len(network)))
        new = self._violating()
        new = new.take(new.unlike(network, 1 - _ALIKE * min(self.least_gap, 1.0))[:most])
        typical = network.sizes.mean() if len(network) else 1.0
        return network.with_(new.resized(np.full(len(new), _ENTRY_SIZE * typical)))

    def solution(self, complete: bool) -> Solution:
        """Return the best network and the best bound."""
        problem, tol = self.problem, self.options.tol
        if not self.prices.exact and self.message not in (_CONVERGED, _INTERRUPTED):
            # What was believed may have been refuted since.
            self.priced = self.prices.confirmed(self.R, self.network)
            self.bound = self._bound(self.R)
        left = max(tol * self.objective - (self.objective - self.bound), 0.0)
        best = self.best.fewer(problem, self.patterns, self.objective + _FEWER * left).rescaled(problem)
        S, V = balanced(best.S, best.U)
        objective = problem.objective(S, V)
        lower_bound = min(self.bound, objective)
        certificate = "estimated" if not self.prices.exact else ("exact" if complete else "restricted")
        converged = objective - lower_bound <= tol * objective
        message = "" if self.message == _CONVERGED else self.message
        return Solution(S, V, self.R, objective, lower_bound, certificate, self.n_iter, converged, message)


def _distinct(patterns: NDArray) -> NDArray:
    first = np.unique(np.packbits(patterns, axis=0), axis=1, return_index=True)[1]
    return patterns[:, np.sort(first)]


def _output_weights(problem: Problem, H: NDArray, start: NDArray, U: NDArray) -> NDArray:
    """Weights of given columns, by a step of Newton's method on the loss: exact for a square.

    For one output those of the signs `U`, for several any.
    """
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
        found = U * nonnegative_sizes(columns * U[:, 0], target[:, 0], problem.beta)[:, None]
    else:
        found = _group_lasso(columns, target, start, problem.beta)

    def value(V: NDArray) -> float:
        return problem.at(H @ V).value + problem.beta * float(np.linalg.norm(V, axis=1).sum())

    before = value(start)
    for halving in range(_HALVINGS):
        trial = start + 0.5**halving * (found - start)
        if value(trial) < before:
            return trial
    return start


def _group_lasso(columns: NDArray, target: NDArray, V: NDArray, beta: float) -> NDArray:
    """Minimise ``1/2 ||columns V - target||^2 + beta * sum_j ||v_j||``, from a start."""
    V = improved_weights(columns.T @ columns, columns.T @ target, V, beta, _WEIGHT_ACCURACY)
    sizes = np.linalg.norm(V, axis=1, keepdims=True)
    return np.where(sizes > _NO_WEIGHT * sizes.max(), V, 0.0)
