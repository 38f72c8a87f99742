"""Global optimality over all arrangements by generating neurons (the default solver).

The dual of the training problem has one constraint for every neuron, ``||R^T (A s)_+|| <= beta`` for all
unit ``s``. A wide network is first trained by descent. Then, in rounds, the few neurons it needs are
solved for, the residual is searched for violated constraints, and the neurons that violate them join. The
largest value the search finds turns the residual into a dual point, whose value bounds the optimum from
below: this is the gap that is reported.

A round solves for its neurons in one of three ways. Descent moves them through many arrangements at once
and is cheap, but stops short of the kinks. Output weights alone are a convex problem, and with each round's
maxima of the constraints as new directions the optimum is approached to second order. The program over the
neurons' arrangements is exact, but dear, and cannot leave these. So descent goes first, and weights make the
end; few neurons, and kinks of the loss, are for the program.
"""

from __future__ import annotations

import math
from contextlib import suppress
from enum import Enum
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from skcvxbn.arrays import Array, like, to_numpy, zeros
from skcvxbn.solvers.base import Options, Problem, Solution, balanced, without_negligible
from skcvxbn.solvers.descent import Interrupted
from skcvxbn.solvers.descent_round import Descent
from skcvxbn.solvers.dual_search import DualSearch
from skcvxbn.solvers.interior_point import solve_over_arrangements
from skcvxbn.solvers.neurons import Neurons
from skcvxbn.solvers.reach import GIVE_UP, GIVE_WAY, Reach
from skcvxbn.solvers.search import Candidates

_NEWCOMERS = 96
# In the program a newcomer closer than this to another one is worth less than it costs.
_APART = 0.999
# Multiplications of a search next to the convex program, in those of one of its steps, and at most.
_SEARCH_SHARE, _DEAREST_SEARCH = 10.0, 1e10
# Cosine from which on neurons are counted as one, where they are many next to what the program can take.
_NEARLY_ONE = 0.99
# Share of the largest neuron below which one does not reach the convex program.
_NEGLIGIBLE_AFTER_DESCENT, _NEGLIGIBLE = 5e-3, 1e-5
# Cost of rounding the loss' kinks, as a share of the gap of the last round: it makes the dual point unique,
# and sharper kinks would make the problem harder than such a gap is worth.
_ROUNDING = 0.1
# A gap smaller than this share of the last one is progress too.
_NARROWING = 0.9
# Rounds that lower the objective by a smaller share of the tolerance, turns of the gap, are standing still.
_STANDSTILL = 0.03
# Rounds between two broad searches, at most, and the share of a broad search's gap that is worth the next.
_NEARBY_ROUNDS, _MET = 3, 0.1
# Accuracy of output weights, and of the cosine from which on neurons are one, as shares of the gap: between
# neurons that close there may be kinks.
_WEIGHT_ACCURACY, _ONE = 0.03, 0.003
# Where searches are dear, a larger gap than this is not worth one that only tests it.
_WORTH_A_TEST = 0.1
# What merging neurons at the end may cost, as a share of the tolerance.
_MERGING = 1e-2

_CONVERGED, _INTERRUPTED = "converged", "interrupted"


class _Way(Enum):
    """How a round solves for its neurons."""

    DESCENT = 1
    TURNS = 2
    WEIGHTS = 3
    PROGRAM = 4


def generate_neurons(
    problem: Problem, options: Options, start: tuple[Array, Array] | None = None
) -> Solution:
    """Solve problem (N) over all arrangements.

    Parameters
    ----------
    problem : Problem
        The training problem.
    options : Options
        Tolerance, limits and the source of randomness.
    start : tuple of arrays, optional
        Hidden directions and output weights of a network to improve on.

    Returns
    -------
    Solution
        Certificate "estimated": the lower bound holds if the final search found the largest violation.
    """
    generation = _Generation(problem, options)
    try:
        generation.begin(start)
        while not generation.message:
            generation.round()
    except KeyboardInterrupt as stop:
        # The other processes are not where this one is.
        if problem.rows.shared:
            raise
        if isinstance(stop, Interrupted):
            generation.keep(*stop.network)
        generation.message = _INTERRUPTED
    return generation.solution()


class _Generation:
    """State of the rounds."""

    def __init__(self, problem: Problem, options: Options) -> None:
        self.problem, self.options = problem, options
        # Descent and search run in single precision: all that is reported is computed in the problem's own.
        single = problem.astype(np.float32)
        rank, n_outputs = problem.A.shape[1], problem.n_outputs
        nothing = zeros((rank, 0), problem.A), zeros((0, n_outputs), problem.A)
        self.neurons = self.best = Neurons.of_network(problem, *nothing, 0.0)
        self.descent = Descent(problem, single, options)
        self.duals = DualSearch(problem, single, options, self.neurons)
        self.way, self.gap, self.n_iter, self.standing_still = _Way.DESCENT, np.inf, 0, 0
        self.message = ""
        self.rounding = _ROUNDING
        self.newcomers = self.duals.found
        self.reach = Reach(problem, options)
        # With several outputs a round may well fail to improve, since directions turn by descent only; with
        # kinks of the loss too, since they become sharper.
        self.patience = 5 if not self.reach.several and self.reach.smooth else 6
        # Rounds since the last broad search, and its gap.
        self.n_nearby, self.broad_gap = 0, np.inf

    def begin(self, start: tuple[Array, Array] | None) -> None:
        """Train the first network by descent, or take the given one as it is."""
        if start is None:
            self.neurons = self.descent.first(self.neurons, self.rounding)
        else:
            self.neurons = Neurons.of_network(self.problem, *start, _NEGLIGIBLE)
        if self.reach.is_cheap(self._n_significant):
            self.way = _Way.TURNS
            self.neurons = self.neurons.take(self._significant())

    def round(self) -> None:
        """Solve for the neurons, search for violated constraints, and see whether to go on."""
        self.n_iter += 1
        if self.n_iter > 1:
            self._join()
        self._solve()
        progress = 1 - self.neurons.objective / self.best.objective if len(self.best) else 1.0
        if self.neurons.objective < self.best.objective:
            self.best = self.neurons
        last_gap = self.gap
        self._report(f"round {self.n_iter:3d}  objective {self.neurons.objective:.8e}", end="")
        self._check_in_step()
        self._search()
        self._report(f"  gap {self.gap:.1e}  neurons {len(self.neurons)}")
        self._decide(progress, self.gap < _NARROWING * last_gap)

    def _report(self, text: str, end: str = "\n") -> None:
        if self.options.verbose:
            print(text, end=end, flush=True)

    def _check_in_step(self) -> None:
        """Refuse to go on where processes, on machines that round differently, have come to other neurons."""
        rows = self.problem.rows
        if rows.shared:
            networks = b"".join(to_numpy(M).tobytes() for M in (self.neurons.S, self.neurons.U))
            digest = blake2b(networks, digest_size=8).hexdigest()
            rows.agree({f"the neurons after {self.n_iter} rounds": digest})

    def keep(self, S: Array, V: Array) -> None:
        """Take a network that an interrupt cut short, if it is the best so far."""
        neurons = Neurons.of_network(self.problem, S, V, _NEGLIGIBLE)
        if neurons.objective < self.best.objective:
            self.best = neurons

    def _join(self) -> None:
        problem, options = self.problem, self.options
        violating = np.flatnonzero(self.duals.found.values > problem.beta * (1 + 1e-3 * options.tol))
        # Descent improves the neurons it has at the same time, and pays for every newcomer in each step.
        n_neurons = len(self.neurons)
        n_new = max(_NEWCOMERS, 2 * n_neurons) if self._affordable else max(16, n_neurons // 10)
        newcomers = self.duals.found.take(violating)
        if self.way is _Way.PROGRAM:
            newcomers = newcomers.apart(_APART)
        self.newcomers = newcomers.take(np.arange(min(n_new, len(newcomers.values))))
        if self.way is not _Way.WEIGHTS:
            self.neurons = self.neurons.joined(problem, self.newcomers)

    @property
    def _n_significant(self) -> int:
        """Number of neurons that would reach the program."""
        return int(self._significant().sum())

    @property
    def _affordable(self) -> bool:
        return self.reach.affordable(self._n_significant)

    def _significant(self) -> NDArray:
        neurons = self.neurons
        threshold = _NEGLIGIBLE if self.way is _Way.PROGRAM else _NEGLIGIBLE_AFTER_DESCENT
        return without_negligible(neurons.S, neurons.U, threshold)

    def _solve(self) -> None:
        most = self.options.max_neurons
        if self.way is _Way.WEIGHTS:
            gap = float(np.clip(self.gap, self.options.tol, 1e-2))
            smoothed, accuracy = self.problem.smoothed(self.rounding), _WEIGHT_ACCURACY * gap
            self.neurons = self.neurons.reweighted(smoothed, self.newcomers, accuracy, 1 - _ONE * gap)
            return
        if self.n_iter > 1 and (self.way is not _Way.PROGRAM or not self._affordable):
            self._descend(self.newcomers)
        if most is not None and len(self.neurons) > most:
            self.neurons = self.neurons.largest(most)
            self._descend()
        if self.way is not _Way.DESCENT and len(self.neurons) and self._affordable:
            self._solve_program()

    def _descend(self, newcomers: Candidates | None = None) -> None:
        negligible = _NEGLIGIBLE if self.way is _Way.DESCENT else _NEGLIGIBLE_AFTER_DESCENT
        self.neurons = self.descent.round(self.neurons, self.rounding, negligible, newcomers)

    def _solve_program(self) -> None:
        """Solve the convex program over the arrangements of the neurons, on the host of every process."""
        # An objective accurate to e leaves an error of sqrt(2 e) in the residual, to be small next to beta.
        relative = max(self.options.tol, 0.3 * min(self.gap, 0.3))
        accuracy = (relative * self.problem.beta) ** 2 / (2 * self.neurons.objective)
        smoothed, rows = self.problem.smoothed(self.rounding), self.problem.rows
        neurons = self.neurons.needed(smoothed).merged(self.problem)
        S, R = solve_over_arrangements(
            smoothed.host,
            *(to_numpy(M) for M in (rows.gathered(neurons.patterns), neurons.U, neurons.S)),
            tol=float(np.clip(accuracy, 1e-13, 1e-6)),
            # Between processes clocks differ, and all are to take the same steps.
            deadline=math.inf if rows.shared else self.options.deadline,
        )
        S, R = (like(M, neurons.S) for M in (S, rows.own(R, neurons.R.shape[0])))
        self.neurons = neurons.solved(self.problem, S, R, _NEGLIGIBLE)

    def _search(self) -> None:
        gap = 1 - self._searched_bound() / self.neurons.objective
        # Rounding of s costs s / 2 ||R||^2 at most.
        cost = 0.5 * self.problem.length(self.neurons.R) ** 2 / self.neurons.objective
        self.rounding = _ROUNDING * float(np.clip(gap, self.options.tol, 1.0)) / max(cost, 1.0)
        self._state_gap()

    def _searched_bound(self) -> float:
        """Bound from a search that takes about half of the time of a round."""
        if self.way not in (_Way.WEIGHTS, _Way.PROGRAM):
            return self.duals.search(self.neurons)
        objective, self.n_nearby = self.neurons.objective, self.n_nearby + 1
        if self.way is _Way.WEIGHTS and self.n_nearby <= _NEARBY_ROUNDS:
            bound = self.duals.search(self.neurons, breadth=0.0)
            # What is known of the constraints is soon met, and no more is to be had from it.
            if 1 - bound / objective > max(_MET * self.broad_gap, self.options.tol):
                return bound
        breadth = min(_SEARCH_SHARE * self.reach.work(self._n_significant), _DEAREST_SEARCH)
        bound = self.duals.search(self.neurons, breadth=breadth)
        self.n_nearby, self.broad_gap = 0, 1 - bound / objective
        return bound

    def _state_gap(self) -> None:
        networks = [self.neurons] if self.best is self.neurons else [self.neurons, self.best]
        self.duals.refute(*(network.S for network in networks))
        self.gap = 1 - self.duals.lower_bound / self.best.objective

    def _decide(self, progress: float, narrower: bool) -> None:
        options = self.options
        if self.gap <= options.tol:
            self.duals.confirm((1 - options.tol) * self.best.objective)
            self._state_gap()
            if self.gap <= options.tol:
                self.message = _CONVERGED
                return
            if self.way is _Way.TURNS:
                self._begin_program()
            elif self.way is _Way.DESCENT and (neurons := self._within_reach()) is not None:
                # What only long searches find is for rounds that have them.
                self.neurons = neurons
                self._give_way()
        elif self.way is _Way.DESCENT:
            self._leave_descent(progress, narrower)
        elif self.way is _Way.WEIGHTS:
            if progress >= _STANDSTILL * options.tol or narrower:
                self.standing_still = 0
            elif self.n_nearby == 0:
                # What is known may be exhausted where a broad search would find more.
                self.standing_still += 1
            if self.standing_still >= self.patience:
                self.neurons, self.way, self.standing_still = self.best, _Way.PROGRAM, 0
        elif self.way is _Way.TURNS and progress < _STANDSTILL * self.gap and not narrower:
            self.neurons = self.best
            self._begin_program()
        elif progress < _STANDSTILL * options.tol and not narrower:
            self.standing_still += 1
        else:
            self.standing_still = 0
        if self.problem.rows.past(options.deadline):
            self.message = "max_time was reached"
        elif self.n_iter >= options.max_iter:
            self.message = "max_iter was reached"
        elif self.standing_still >= self.patience:
            self.message = "the objective stands still"

    def _leave_descent(self, progress: float, narrower: bool) -> None:
        """Give way to the program once descent no longer pays, or to nothing where that is out of reach."""
        reach, n_significant, gap = self.reach, self._n_significant, self.gap
        if reach.is_cheap(n_significant) and not reach.many_rows:
            self.way = _Way.TURNS
            return
        neurons, converges = self._within_reach(), reach.converges(n_significant, gap)
        price = reach.least_gain(len(self.neurons))
        if neurons is None:
            least = price
        elif converges:
            least, narrower = GIVE_WAY, False
        else:
            least = _STANDSTILL * self.options.tol
        # Rounds without progress after which others take over: more where their own are dear.
        patience = 0 if converges else 5 if reach.several else 1
        if self.n_iter == 1 or progress >= least or narrower:
            self.standing_still = 0
        elif neurons is not None and self.standing_still >= patience:
            self.neurons = neurons
            self._give_way()
        else:
            # Of dear rounds one without newcomers of use is enough.
            self.standing_still += self.patience if price == GIVE_UP else 1
        if self.way is _Way.DESCENT and self.n_iter > 1 and reach.is_far(n_significant, gap, progress):
            self.standing_still = self.patience

    def _within_reach(self) -> Neurons | None:
        """Return the neurons, or those nearly of one kind taken together, if a program is worth its time."""
        if self.reach.worthwhile(self._n_significant):
            return self.neurons
        if not self.reach.many_rows:
            return None
        gathered = self.neurons.take(np.flatnonzero(self._significant())).gathered(_NEARLY_ONE)
        return gathered if self.reach.worthwhile(len(gathered)) else None

    def _give_way(self) -> None:
        # Turns would cost the diversity of hundreds of neurons; several outputs need them.
        self.standing_still = 0
        if self.reach.several and not self.reach.weighs(self._n_significant):
            self.way = _Way.TURNS
        else:
            self._begin_program()

    def _begin_program(self) -> None:
        """Give the rounds to what leaves no arrangement that it is not shown."""
        self.way = _Way.WEIGHTS if self.reach.weighs(self._n_significant) else _Way.PROGRAM
        if self.duals.has_searched_broadly(self.neurons):
            # What refuted the bound of descent is what a search would find.
            self.n_nearby, self.broad_gap = 0, self.gap
        else:
            self.n_nearby = _NEARBY_ROUNDS
            self._search()

    def solution(self) -> Solution:
        """Return the best network and the best bound."""
        problem, best = self.problem, self.best
        worth_it = math.isfinite(self.gap) if self._affordable else self.gap <= _WORTH_A_TEST
        if self.message != _CONVERGED and worth_it:
            # Who cannot wait for the bound to be tested interrupts once more.
            with suppress(KeyboardInterrupt):
                self.duals.confirm(brief=not self._affordable)
        self._state_gap()
        lower_bound = self.duals.lower_bound
        # Descent leaves many neurons of a kind, whose output directions agree up to its accuracy.
        most = best.objective * (1 + _MERGING * self.options.tol)
        if self._closes(best.objective, lower_bound):
            # A gap that is just small enough has no room for it.
            most = min(most, lower_bound + self.options.tol * best.objective)
        merged = best.fewer(problem, most)
        S, V = balanced(merged.S, merged.U)
        objective = problem.objective(S, V, best.bias)
        idle = problem.zero.value
        if objective > (1 - 1e-9) * idle:
            # From beta_max on no neuron pays; what is left of them is the accuracy of the solver.
            S, V, objective = S[:, :0], V[:0, :], idle
        # The bound can only exceed the objective by what the solver left undone.
        lower_bound = min(lower_bound, objective)
        converged = self._closes(objective, lower_bound)
        message = "" if self.message == _CONVERGED else self.message
        return Solution(
            S, V, self.duals.point.R, objective, lower_bound, "estimated", self.n_iter, converged, message
        )

    def _closes(self, objective: float, lower_bound: float) -> bool:
        return objective - lower_bound <= self.options.tol * objective
