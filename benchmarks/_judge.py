"""One judge for every method: the objective by one function, the gap by one search from the same starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from _first_order import Network, Run
from _problems import Case
from numpy.typing import NDArray

from skcvxbn.solvers.search import QUICK, THOROUGH, Candidates, affordable_starts, random_starts, search

# A method has reached an objective when it is this close, relatively.
REACHED = 1e-6
# Random starts of the common search, which is the quick one on large problems.
_MOST_STARTS, _STARTS_OF_LARGE = 128, 16


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
    A, n_outputs = case.training.A, case.problem.n_outputs
    if case.is_large:
        stages, n_starts = QUICK, _STARTS_OF_LARGE
    else:
        stages, n_starts = THOROUGH, min(4 * affordable_starts(A, THOROUGH), _MOST_STARTS)
    S, U = random_starts(A.shape[1], n_outputs, n_starts, np.random.RandomState(seed))
    best = _double(best_of(answered).networks[-1])
    size = np.linalg.norm(best[0], axis=0) * np.linalg.norm(best[1], axis=1)
    largest = np.argsort(-size)[:n_starts]
    S, U = np.hstack([S, best[0][:, largest]]), np.vstack([U, best[1][largest]])
    found = _search(case, case.problem.dual_point(*best), S, U, stages)
    S = np.hstack([S, found.S[:, :n_starts]])
    U = np.vstack([U, found.U[:n_starts]])
    verdicts = []
    for run in answered:
        network = _double(run.networks[-1])
        points = [case.problem.dual_point(*network), run.dual_point]
        bounds = [
            case.problem.dual_bound(R, _search(case, R, S, U, stages).largest)
            for R in points
            if R is not None
        ]
        used = np.linalg.norm(network[0], axis=0) * np.linalg.norm(network[1], axis=1)
        n_neurons = int((used > 1e-4 * used.max(initial=0)).sum())
        verdicts.append(Verdict(run, run.objectives[-1], min(max(bounds), run.objectives[-1]), n_neurons))
    return verdicts


def _search(case: Case, R: NDArray, S: NDArray, U: NDArray, stages: tuple) -> Candidates:
    A = case.training.A
    size = float(np.linalg.norm(R))
    found = search(A, (R / size).astype(A.dtype), S.astype(A.dtype), U.astype(A.dtype), stages=stages)
    return Candidates(found.S, found.U, found.values * size)


def _double(network: Network) -> Network:
    return network[0].astype(np.float64), network[1].astype(np.float64)
