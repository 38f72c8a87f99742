"""Prices of arrangements: how much the neurons of each would violate their dual constraint.

The dual constraint of an arrangement is ``u^T R^T D_i A s <= beta`` for all unit ``u`` and all unit ``s`` of
its cone. For one output it is most violated by the projections of ``+-A^T D_i R`` on the cone. For several
the output direction is searched by alternation, which may miss a larger value. A priced neuron is as long as
its dual value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.cone_projection import ConeProjector
from skcvxbn.solvers.owned_neurons import OwnedNeurons


@dataclass(frozen=True)
class _Effort:
    """Starts at singular vectors and random directions of each arrangement, and near known climbs; steps."""

    n_singular: int
    n_random: int
    n_near: int
    n_steps: int


# Quick rounds go on from what is known. Confirmations repeat, and their random directions differ.
_FIRST = _Effort(n_singular=1, n_random=2, n_near=0, n_steps=3)
_QUICK = _Effort(n_singular=0, n_random=0, n_near=0, n_steps=5)
_NEARBY = _Effort(n_singular=0, n_random=0, n_near=1, n_steps=20)
_LONG = _Effort(n_singular=0, n_random=1, n_near=1, n_steps=20)
# Random directions of an arrangement, at most, and in all: fewer where the projections that lead on from them
# are dear, whose price grows with the third power of the rank from about this one on.
_MOST_RANDOM, _RANDOM_IN_ALL, _DEAR_RANK = 8, 2000, 12
# A confirmation ends where the largest value rises by more than this share.
_HIGHER = 1e-6
# Climbs below this share of beta are given up.
_HOPEFUL = 0.5
# Of two climbs of one arrangement with a larger cosine of output directions one is left. Maxima have 0.99.
_ALIKE = 0.999
# Known climbs above this share of beta have others start near them, whose output directions are this far off
# by turns: most maxima that are still missing are next to known ones, and random starts do not find them.
_NEAR, _DISTANCES = 0.95, (0.3, 1.0)
# Projections of a smaller share of the length of their target are zero.
_ROUNDING = 1e-10
# A climb that grows by a smaller share than this has ended.
_STILL = 1e-7
# The first step of new climbs is rough, for far from the cone exact projections are dear and say little.
_ROUGH_PASSES, _EXACT_PASSES = 2, 100


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
    """Several outputs: alternation between the neuron and its output direction.

    An arrangement has few local maxima, and they last from dual point to dual point. So climbs go on from
    where they ended before.
    """

    exact = False

    def __init__(self, problem: Problem, patterns: NDArray) -> None:
        self._problem, self._patterns = problem, patterns
        self._random = np.random.RandomState(0)
        n_climbs = _RANDOM_IN_ALL / (1 + (problem.A.shape[1] / _DEAR_RANK) ** 3)
        n_random = int(min(max(n_climbs / patterns.shape[1], 1), _MOST_RANDOM))
        self._first = replace(_FIRST, n_random=max(n_random, _FIRST.n_random))
        self._confirmations = (replace(_LONG, n_random=n_random), _NEARBY)
        self._known = self._climbs(OwnedNeurons.none(problem))

    def at(self, R: NDArray, network: OwnedNeurons) -> OwnedNeurons:
        """Local maxima of the dual values, from those known so far and from the neurons in use."""
        return self._search(R, network, _QUICK if len(self._known.neurons) else self._first)

    def confirmed(self, R: NDArray, network: OwnedNeurons) -> OwnedNeurons:
        """The same from random directions too, until some find a larger value, before a bound is believed."""
        highest = float(self._known.neurons.sizes.max(initial=self._problem.beta))
        for effort in self._confirmations:
            priced = self._search(R, network, effort)
            value = float(priced.sizes.max(initial=self._problem.beta))
            if value > highest * (1 + _HIGHER):
                break
            highest = value
        return priced

    def _search(self, R: NDArray, network: OwnedNeurons, effort: _Effort) -> OwnedNeurons:
        # Of shape (arrangements, rank + 1, outputs).
        M = np.stack([(self._problem.A * r[:, None]).T @ self._patterns for r in R.T], axis=-1)
        M = M.transpose(1, 0, 2)
        climbs, level = self._known, _HOPEFUL * self._problem.beta
        in_use = network.take(network.unlike(climbs.neurons, _ALIKE))
        climbs = climbs.with_(self._climbs(in_use))
        if effort is not _QUICK:
            started = self._climbs(self._starts(M, effort)).stepped(M, 0.0, _ROUGH_PASSES)
            started = started.with_(self._near(M, effort.n_near))
            climbs = climbs.with_(started.take(started.neurons.unlike(climbs.neurons, _ALIKE)))
        still = climbs.take(np.zeros(0, dtype=int))
        for _ in range(effort.n_steps):
            climbs = climbs.stepped(M, level)
            growing = climbs.growth > _STILL
            still, climbs = still.with_(climbs.take(~growing)), climbs.take(growing)
        self._known = still.with_(climbs).distinct()
        return self._known.neurons

    def _climbs(self, neurons: OwnedNeurons) -> _Climbs:
        projector = ConeProjector(self._problem.A, self._patterns[:, neurons.owner])
        return _Climbs(neurons, projector, np.ones(len(neurons)))

    def _near(self, M: NDArray, n_near: int) -> _Climbs:
        """Climbs from output directions around those of known ones."""
        known = self._known.take(self._known.neurons.sizes > _NEAR * self._problem.beta)
        known = known.take(np.tile(np.arange(len(known.growth)), n_near))
        noise = self._random.standard_normal(known.neurons.U.shape) / math.sqrt(M.shape[2])
        noise *= np.resize(_DISTANCES, len(noise))[:, None]
        neurons = known.led(M, _unit(known.neurons.U + noise), 0.0, _ROUGH_PASSES)
        return replace(known, neurons=neurons, growth=np.ones(len(neurons))).take(neurons.sizes > 0)

    def _starts(self, M: NDArray, effort: _Effort) -> OwnedNeurons:
        """Singular vectors of both signs, and random directions; steps put them into the cone."""
        left, spectral, _ = np.linalg.svd(M, full_matrices=False)
        # No neuron of an arrangement whose spectral norm is at most beta violates its constraint.
        owner = np.flatnonzero(spectral[:, 0] > self._problem.beta)
        singular = left[owner, :, : effort.n_singular]
        random = self._random.standard_normal((len(owner), M.shape[1], effort.n_random))
        S = np.concatenate([singular, -singular, random], axis=2)
        owner = np.repeat(owner, S.shape[2])
        S = S.transpose(1, 0, 2).reshape(M.shape[1], -1)
        return OwnedNeurons(S, np.zeros((len(owner), M.shape[2])), owner)


@dataclass(frozen=True)
class _Climbs:
    """Climbs under way: where they are, the projections on their cones, and the share they grew by last."""

    neurons: OwnedNeurons
    projector: ConeProjector
    growth: NDArray

    def take(self, which: NDArray) -> _Climbs:
        """Keep some of the climbs."""
        which = np.arange(len(self.growth))[which]
        return _Climbs(self.neurons.take(which), self.projector.take(which), self.growth[which])

    def with_(self, other: _Climbs) -> _Climbs:
        """Add other climbs."""
        return _Climbs(
            self.neurons.with_(other.neurons),
            self.projector.with_(other.projector),
            np.concatenate([self.growth, other.growth]),
        )

    def distinct(self) -> _Climbs:
        """Keep the highest of those that are alike."""
        highest = self.take(np.argsort(-self.neurons.sizes, kind="stable"))
        nothing = highest.neurons.take(np.zeros(0, dtype=int))
        return highest.take(highest.neurons.unlike(nothing, _ALIKE))

    def stepped(self, M: NDArray, level: float, max_passes: int = _EXACT_PASSES) -> _Climbs:
        """Take a step with every climb; those that are not above a level, or are like a higher one, end."""
        image = np.einsum("jqc,qj->jc", M[self.neurons.owner], self.neurons.S / self.neurons.sizes)
        before = np.maximum(np.linalg.norm(image, axis=1), np.finfo(float).tiny)
        there = self.led(M, _unit(image), level, max_passes)
        climbs = replace(self, neurons=there, growth=there.sizes / before - 1)
        # Of a direction that is worth nothing there is no way up.
        return climbs.take(there.sizes > 0).distinct()

    def led(self, M: NDArray, U: NDArray, level: float, max_passes: int) -> OwnedNeurons:
        """Neurons that output directions lead to, of no size where that is not above a level."""
        owner = self.neurons.owner
        targets = np.einsum("jqc,jc->qj", M[owner], U)
        S = self.projector.project(targets, np.arange(len(owner)), level, max_passes)
        sizes = np.linalg.norm(S, axis=0)
        # Rounding leaves some length, in any direction, of a target whose projection is zero.
        rounding = _ROUNDING * np.linalg.norm(targets, axis=0)
        S = np.where(sizes > np.maximum(level, rounding), S / np.maximum(sizes, np.finfo(float).tiny), 0.0)
        image = np.einsum("jqc,qj->jc", M[owner], S)
        return OwnedNeurons(S * np.linalg.norm(image, axis=1), _unit(image), owner)


def _unit(V: NDArray) -> NDArray:
    return V / np.maximum(np.linalg.norm(V, axis=1, keepdims=True), np.finfo(float).tiny)
