"""One judge for every method: the objective by one function, the gap by one search from the same starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from _first_order import Network, Run
from _problems import Case
from numpy.typing import NDArray

from skcvxbn.solvers.landscape import unit
from skcvxbn.solvers.search import (
    BROAD,
    QUICK,
    TOPS,
    Candidates,
    random_starts,
    search,
    starts_near,
    verified,
)

# A method has reached an objective when it is this close, relatively.
REACHED = 1e-6
# Random starts of the common search, which has as many near what is known, and of the quick one where the
# rows have more numbers than this.
_STARTS, _STARTS_OF_LARGE, _LARGE = 4096, 16, 1e6
# Directions of the best answer, and what was found from it, that every search starts from too.
_MOST_KNOWN = 1000


@dataclass(frozen=True)
class Verdict:
    """The answer of a method. The bound holds as far as the search found the largest violation."""

    run: Run
    objective: float
    lower_bound: float
    n_neurons: int

    @property
    def gap(self) -> float:
        return (self.objective - self.lower_bound) / self.objective


def score(case: Case, run: Run) -> Run:
    """Recompute the objective of every network; what a method printed about earlier ones stays."""
    values = [case.problem.objective(*_double(network)) for network in run.networks]
    kept = run.objectives[: len(run.seconds) - len(values)]
    run.objectives = [*kept, *values]
    # For the judgement only the answer is needed: the others would fill the memory.
    run.networks = run.networks[-1:]
    return run


def best_of(runs: list[Run]) -> Run:
    """The run that ends lowest."""
    return min(runs, key=lambda run: run.objectives[-1] if run.objectives else np.inf)


def seconds_to(runs: list[Run], objective: float) -> float:
    """CPU seconds after which the first of the runs has reached the objective; infinite if none has."""
    target = objective * (1 + REACHED)
    return min(
        (t for run in runs for t, value in zip(run.seconds, run.objectives, strict=True) if value <= target),
        default=np.inf,
    )


def judge(case: Case, runs: list[Run], seed: int = 0) -> list[Verdict]:
    """Gap of every answer, from the same starts: random ones, and what was found from the best answer.

    A method that states a dual point is judged by that one, or its network's own, whichever is the better.
    """
    answered = [run for run in runs if run.networks]
    if not answered:
        return []
    best = _double(best_of(answered).networks[-1])
    known = _largest(*best, _MOST_KNOWN)
    search_for = (_BroadSearch if case.problem.A.size < _LARGE else _QuickSearch)(case, seed)
    known = search_for(case.problem.dual_point(*best), known)
    known = known.take(np.arange(min(_MOST_KNOWN, len(known.values))))
    verdicts = []
    for run in answered:
        network = _double(run.networks[-1])
        points = [case.problem.dual_point(*network), run.dual_point]
        bounds = [case.problem.dual_bound(R, search_for(R, known).largest) for R in points if R is not None]
        used = np.linalg.norm(network[0], axis=0) * np.linalg.norm(network[1], axis=1)
        n_neurons = int((used > 1e-4 * used.max(initial=0)).sum())
        verdicts.append(Verdict(run, run.objectives[-1], min(max(bounds), run.objectives[-1]), n_neurons))
    return verdicts


class _QuickSearch:
    """A search for the most violated constraint, from a few random starts and the largest known ones."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.A = case, case.training.A
        self.random = _random_starts(case, _STARTS_OF_LARGE, seed)

    def __call__(self, R: NDArray, known: Candidates) -> Candidates:
        size = float(np.linalg.norm(R))
        few = known.take(np.arange(min(_STARTS_OF_LARGE, len(known.values))))
        starts = self.random.joined(few).astype(self.A.dtype)
        found = search(self.A, (R / size).astype(self.A.dtype), starts.S, starts.U, stages=QUICK)
        return Candidates(found.S, found.U, found.values * size)


class _BroadSearch:
    """A search for all violated constraints: climbs from thousands of starts to the very tops."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.seed, self.A = case, seed, case.problem.A.astype(np.float32)
        self.random = _random_starts(case, _STARTS, seed).astype(np.float32)

    def __call__(self, R: NDArray, known: Candidates) -> Candidates:
        narrow_R, known = (R / np.linalg.norm(R)).astype(np.float32), known.astype(np.float32)
        near = starts_near(known.S, known.U, _STARTS, np.random.RandomState(self.seed))
        S, U = np.hstack([self.random.S, near[0]]), np.vstack([self.random.U, near[1]])
        new = search(self.A, narrow_R, S.astype(np.float32), U.astype(np.float32), stages=BROAD)
        # Not together, or those that are known would leave new ones no room.
        tops = [search(self.A, narrow_R, found.S, found.U, stages=TOPS) for found in (new, known)]
        return verified(self.case.problem.A, R, tops[0].joined(tops[1]))


def _largest(S: NDArray, V: NDArray, n_neurons: int) -> Candidates:
    """Directions of the largest neurons of a network."""
    size = np.linalg.norm(S, axis=0) * np.linalg.norm(V, axis=1)
    order = np.argsort(-size)[:n_neurons]
    order = order[size[order] > 0]
    return Candidates(unit(S[:, order], axis=0), unit(V[order], axis=1), size[order])


def _random_starts(case: Case, n_starts: int, seed: int) -> Candidates:
    rank, n_outputs = case.problem.A.shape[1], case.problem.n_outputs
    S, U = random_starts(rank, n_outputs, n_starts, np.random.RandomState(seed))
    return Candidates(unit(S, axis=0), unit(U, axis=1), np.zeros(S.shape[1]))


def _double(network: Network) -> Network:
    return network[0].astype(np.float64), network[1].astype(np.float64)
