"""Prices of arrangements: how much the neurons of each would violate their dual constraint.

The dual constraint of an arrangement is ``u^T R^T D_i A s <= beta`` for all unit ``u`` and all unit ``s`` of
its cone. For one output it is most violated by the projections of ``+-A^T D_i R`` on the cone. For several
the output direction is searched by alternation. A priced neuron is as long as its dual value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.cone_projection import ConeProjector
from skcvxbn.solvers.owned_neurons import OwnedNeurons


class Prices(Protocol):
    """What the solver asks of the prices.

    Attributes
    ----------
    exact : bool
        Whether there is no larger dual value.
    """

    exact: bool

    def at(self, R: NDArray, network: OwnedNeurons) -> OwnedNeurons:
        """Neurons that may violate their constraint at a dual point, given those in use."""
        ...

    def confirmed(self, R: NDArray, network: OwnedNeurons) -> OwnedNeurons:
        """The same by a longer search, before a bound is believed."""
        ...


def prices_of(problem: Problem, patterns: NDArray) -> Prices:
    """Prepare to price arrangements.

    Parameters
    ----------
    problem : Problem
        The training problem.
    patterns : ndarray of bool, shape (n_samples, n_arrangements)
        The arrangements.

    Returns
    -------
    Prices
        Exact for one output, searched for several.
    """
    return (_SignPrices if problem.n_outputs == 1 else _DirectionPrices)(problem, patterns)


class _SignPrices:
    """One output: the dual constraints of all arrangements, for both signs of the output weight."""

    exact = True

    def __init__(self, problem: Problem, patterns: NDArray) -> None:
        self._problem, self._patterns = problem, patterns
        self._projector = ConeProjector(problem.A, np.hstack([patterns, patterns]))

    def at(self, R: NDArray, network: OwnedNeurons) -> OwnedNeurons:
        """Dual values, of those above beta exact, with the directions that attain them."""
        del network
        n_arrangements = self._patterns.shape[1]
        gradients = (self._problem.A * R).T @ self._patterns
        cones = np.flatnonzero(np.tile(np.linalg.norm(gradients, axis=0) > self._problem.beta, 2))
        owner, signs = cones % n_arrangements, np.where(cones < n_arrangements, 1.0, -1.0)
        S = self._projector.project(gradients[:, owner] * signs, cones, self._problem.beta)
        return OwnedNeurons(S, signs[:, None], owner)

    def confirmed(self, R: NDArray, network: OwnedNeurons) -> OwnedNeurons:
        """The same, for they are exact."""
        return self.at(R, network)


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

    def at(self, R: NDArray, network: OwnedNeurons) -> OwnedNeurons:
        """Local maxima of the dual values, from singular vectors and from the neurons in use."""
        return self._search(R, network, self._quick)

    def confirmed(self, R: NDArray, network: OwnedNeurons) -> OwnedNeurons:
        """The same by a longer search, before a bound is believed."""
        return self._search(R, network, self._prepared(_Effort(n_starts=4, n_steps=10, hopeful=0.5)))

    def _search(self, R: NDArray, network: OwnedNeurons, climb: _Climb) -> OwnedNeurons:
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
        if len(network) == 0:
            return found
        projector = ConeProjector(self._problem.A, self._patterns[:, network.owner])
        cones = np.arange(len(network))
        return found.with_(self._climbed(projector, M, network.U, network.owner, cones, climb.effort))

    def _climbed(
        self,
        projector: ConeProjector,
        M: NDArray,
        U: NDArray,
        owner: NDArray,
        cones: NDArray,
        effort: _Effort,
    ) -> OwnedNeurons:
        level = effort.hopeful * self._problem.beta
        for _ in range(effort.n_steps):
            S = projector.project(np.einsum("jqc,jc->qj", M[owner], U), cones, level)
            hopeful = np.linalg.norm(S, axis=0) > level
            S, owner, cones = S[:, hopeful], owner[hopeful], cones[hopeful]
            image = np.einsum("jqc,qj->jc", M[owner], S)
            U = image / np.maximum(np.linalg.norm(image, axis=1, keepdims=True), np.finfo(float).tiny)
        S = projector.project(np.einsum("jqc,jc->qj", M[owner], U), cones, self._problem.beta)
        return OwnedNeurons(S, U, owner)


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
