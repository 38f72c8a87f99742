"""Networks along decreasing weight decay, near their optima and cheap: what cross-validation compares.

The optimal network changes little from one weight decay to the next. So a wide network descends once, and is
then followed: at every weight decay a short search adds the neurons whose dual constraints are violated, and
a short descent moves all of them. There is no convex program and no thorough search; the gap is estimated
from the short one, and stopped at where it is small or after a few rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from skcvxbn.arrays import Array, astype, concat, like, zeros
from skcvxbn.solvers.base import Options, Problem, Solution, balanced
from skcvxbn.solvers.descent import descend, random_network
from skcvxbn.solvers.neurons import Neurons
from skcvxbn.solvers.search import Candidates, Stage, random_starts, search, verified

# Rounds of search and descent at one weight decay, at most; where they are dear it is one, of fewer steps.
_ROUNDS, _WIDTHS, _STEPS = 3, (0.1, 0.02), 30
_DEAR_ROUNDS, _DEAR_WIDTHS, _DEAR_STEPS = 1, (0.05,), 20
_STANDSTILL = 1e-4
_FIRST_WIDTH, _LARGEST_WIDTH = 64, 256
# Operations on numbers of a forward pass that the largest width may not exceed; a kink takes this many.
_DEAREST_PASS, _KINK = 3e7, 16
_STARTS, _STAGES = 16, (Stage(10, 6, 48, 0.3),)
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
        affordable = int(_DEAREST_PASS / (n_rows * (2 * rank + 3 * n_outputs + _KINK)))
        self.largest_width = int(np.clip(affordable, _FIRST_WIDTH, _LARGEST_WIDTH))
        dear = affordable < _LARGEST_WIDTH
        self.n_rounds, self.n_steps = (_DEAR_ROUNDS, _DEAR_STEPS) if dear else (_ROUNDS, _STEPS)
        self.widths: tuple[float, ...] = _DEAR_WIDTHS if dear else _WIDTHS

    def at(self, beta: float) -> Solution:
        """Follow the network to a smaller weight decay."""
        problem = replace(self.problem, beta=beta)
        single = replace(self.single, beta=beta)
        n_rounds, converged, bound = 0, False, -np.inf
        while n_rounds < self.n_rounds and not converged and not problem.rows.past(self.options.deadline):
            n_rounds += 1
            self._join(problem)
            self._descend(problem, single)
            self._search(problem, single)
            objective = self.neurons.objective
            bound = min(problem.dual_bound(self.neurons.R, self.found.largest), objective)
            converged = objective - bound <= self.options.tol * objective
        S, V = balanced(self.neurons.S, self.neurons.U)
        # Merging has moved the neurons, and where the loss has kinks their bias is that of rounded ones.
        objective = problem.objective(S, V)
        bound = min(bound, objective)
        return Solution(S, V, self.neurons.R, objective, bound, "estimated", n_rounds, converged, "")

    def _join(self, problem: Problem) -> None:
        if len(self.neurons) == 0:
            S, V = random_network(self.single, _FIRST_WIDTH, self.options.rng)
            self.neurons = Neurons.of_network(problem, S, V, 0.0)
        room = max(self.largest_width - len(self.neurons), _STARTS)
        violating = np.flatnonzero(self.found.values > problem.beta)
        self.neurons = self.neurons.joined(problem, self.found.take(violating[:room]))

    def _descend(self, problem: Problem, single: Problem) -> None:
        S, V, most = self.neurons.S, self.neurons.U, self.options.max_neurons
        self.neurons = self._descended(problem, single, S, V)
        if most is not None and len(self.neurons) > most:
            kept = self.neurons.largest(most)
            self.neurons = self._descended(problem, single, kept.S, kept.U)
        if self.neurons.objective > (1 - 1e-6) * self.idle.value:
            self.neurons = replace(self.none, objective=self.idle.value)

    def _descended(self, problem: Problem, single: Problem, S: Array, V: Array) -> Neurons:
        S, V = balanced(astype(S, np.float64), astype(V, np.float64))
        S, V = descend(
            single,
            astype(S, np.float32),
            astype(V, np.float32),
            widths=self.widths,
            n_steps=self.n_steps,
            tol=_STANDSTILL,
            deadline=self.options.deadline,
        )
        return Neurons.of_network(problem, S, V, _NEGLIGIBLE, self.widths[-1]).merged(problem)

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
