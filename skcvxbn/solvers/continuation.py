"""Networks along decreasing weight decay, near their optima and cheap: what cross-validation compares.

The optimal network changes little from one weight decay to the next. So a wide network descends once, and is
then followed: at every weight decay a short search adds the neurons whose dual constraints are violated, and
a short descent moves all of them. There is no convex program and no thorough search; the gap is estimated
from the short one, and stopped at where it is small or after a few rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from skcvxbn.arrays import astype, concat, like, to_numpy, zeros
from skcvxbn.solvers.ascent import Rounded
from skcvxbn.solvers.base import Options, Problem, Solution, balanced
from skcvxbn.solvers.descent import descend, random_network
from skcvxbn.solvers.neurons import Neurons
from skcvxbn.solvers.search import Candidates, random_starts, search, verified

# Rounds of search and descent at one weight decay: a short one and, where they are cheap, finer ones.
_ROUNDS, _DEAR_ROUNDS = 3, 1
_WIDTHS, _STEPS = (0.05,), 20
_FINE_WIDTHS, _FINE_STEPS = (0.1, 0.02), 30
# A descent ends when ten steps together gain less than this share of the tolerance.
_STANDSTILL = 0.1
# Rounds end with one that lowers the objective by less than this share of the tolerance, or that leaves a gap
# above the second.
_WORTHWHILE, _FAR = 0.2, 0.5
_FIRST_WIDTH, _LARGEST_WIDTH = 64, 256
# Operations on numbers of a forward pass that the largest width may not exceed, and those of one neuron up to
# which rounds are cheap; a kink takes this many.
_DEAREST_PASS, _CHEAP_NEURON, _KINK = 3e7, 6e4, 16
_STARTS, _STAGES = 48, (Rounded((0.3, 0.05, 0.01), 8, 48),)
# Neurons that may join, at least.
_LEAST_ROOM = 16
# Share of the largest neuron below which one leaves.
_NEGLIGIBLE = 1e-3


def follow(problem: Problem, betas: Iterable[float], options: Options) -> Iterator[Solution]:
    """Train networks along decreasing weight decay.

    Parameters
    ----------
    problem : Problem
        The training problem, in units of its own; its weight decay is not used.
    betas : iterable of float
        Weight decays, decreasing.
    options : Options
        `tol` is the relative gap to reach, as a short search estimates it. `max_iter`, `search_starts` and
        `verbose` are not used.

    Yields
    ------
    Solution
        A network for each weight decay. Its lower bound is good for telling how far the descent has got.
    """
    path = _Path(problem, options)
    for beta in betas:
        yield path.at(float(beta))


class _Path:
    """The network that is followed."""

    def __init__(self, problem: Problem, options: Options) -> None:
        self.problem, self.options = problem, options
        self.single = problem.astype(np.float32)
        self.idle = problem.zero
        (n_rows, rank), n_outputs = problem.shape, problem.n_outputs
        nothing = zeros((rank, 0), problem.A), zeros((0, n_outputs), problem.A)
        self.none = Neurons.of_network(problem, *nothing, 0.0)
        self.neurons, self.found = self.none, Candidates(*nothing, np.zeros(0))
        work = n_rows * (2 * rank + 3 * n_outputs + _KINK)
        self.largest_width = int(np.clip(_DEAREST_PASS // work, _FIRST_WIDTH, _LARGEST_WIDTH))
        self.n_rounds = _ROUNDS if work <= _CHEAP_NEURON else _DEAR_ROUNDS

    def at(self, beta: float) -> Solution:
        """Follow the network to a smaller weight decay."""
        problem = replace(self.problem, beta=beta)
        single = replace(self.single, beta=beta)
        tol, late = self.options.tol, partial(problem.rows.past, self.options.deadline)
        n_rounds, bound, gap, worthwhile = 0, -np.inf, np.inf, True
        while worthwhile and n_rounds < self.n_rounds and gap > tol and not late():
            n_rounds += 1
            last = self.neurons.objective
            self._join(problem)
            self._descend(problem, single, fine=n_rounds > 1)
            self._search(problem, single)
            objective = self.neurons.objective
            bound = min(problem.dual_bound(self.neurons.R, self.found.largest), objective)
            gap = 1 - bound / objective if objective > 0 else 0.0
            # The last network before the first round is that of another weight decay.
            gained = n_rounds == 1 or last - objective > _WORTHWHILE * tol * objective
            worthwhile = gained and gap <= _FAR
        S, V = balanced(self.neurons.S, self.neurons.U)
        # Merging has moved the neurons, and where the loss has kinks their bias is that of rounded ones.
        bias = self.neurons.bias
        objective = problem.objective(S, V, bias)
        bound = min(bound, objective)
        return Solution(
            S, V, self.neurons.R, objective, bound, "estimated", n_rounds, gap <= tol, "", to_numpy(bias)
        )

    def _join(self, problem: Problem) -> None:
        if len(self.neurons) == 0:
            S, V = random_network(self.single, _FIRST_WIDTH, self.options.rng)
            self.neurons = Neurons.of_network(problem, S, V, 0.0)
        room = max(self.largest_width - len(self.neurons), _LEAST_ROOM)
        violating = np.flatnonzero(self.found.values > problem.beta)
        if len(violating):
            self.neurons = self.neurons.joined(problem, self.found.take(violating[:room]))

    def _descend(self, problem: Problem, single: Problem, fine: bool) -> None:
        most = self.options.max_neurons
        self.neurons = self._descended(problem, single, self.neurons, fine)
        if most is not None and len(self.neurons) > most:
            self.neurons = self._descended(problem, single, self.neurons.largest(most), fine)
        if self.neurons.objective > (1 - 1e-6) * self.idle.value:
            self.neurons = replace(self.none, objective=self.idle.value)

    def _descended(self, problem: Problem, single: Problem, neurons: Neurons, fine: bool) -> Neurons:
        widths: tuple[float, ...] = _FINE_WIDTHS if fine else _WIDTHS
        S, V = balanced(astype(neurons.S, np.float64), astype(neurons.U, np.float64))
        S, V = descend(
            single,
            astype(S, np.float32),
            astype(V, np.float32),
            widths=widths,
            n_steps=_FINE_STEPS if fine else _STEPS,
            tol=_STANDSTILL * self.options.tol,
            bias=astype(neurons.bias, np.float32),
            deadline=self.options.deadline,
        )
        rounded = Neurons.of_network(problem, S, V, _NEGLIGIBLE, widths[-1], neurons.bias)
        return rounded.merged(problem)

    def _search(self, problem: Problem, single: Problem) -> None:
        """Climb from random points and from the best that was found for the last network."""
        A, R, rows = single.A, self.neurons.R, problem.rows
        random = random_starts(A.shape[1], R.shape[1], _STARTS, self.options.rng)
        S, U = (like(M.astype(np.float32), A) for M in random)
        last = self.found.take(np.arange(min(_STARTS, len(self.found.values))))
        S = concat([astype(last.S, np.float32), S], axis=1)
        U = concat([astype(last.U, np.float32), U], axis=0)
        candidates = search(A, astype(R, np.float32), S, U, stages=_STAGES, rows=rows)
        self.found = verified(problem.A, R, candidates, rows)
