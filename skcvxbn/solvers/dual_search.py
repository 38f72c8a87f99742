"""Dual points, and the search that says how feasible they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from skcvxbn.arrays import Array, astype, concat, lengths, like, numpy_dtype, take, tiny, to_numpy
from skcvxbn.solvers.base import Options, Problem
from skcvxbn.solvers.neurons import Neurons
from skcvxbn.solvers.search import (
    QUICK,
    SHARP,
    THOROUGH,
    Candidates,
    Stages,
    affordable_starts,
    random_starts,
    search,
    verified,
)

_QUICK_STARTS = 64
# Tolerance from which on a looser one takes fewer starts.
_PRECISE = 1e-4
# Batches of random starts, at most, behind the bound that is reported; the first two are always taken. From
# this tolerance on its margin covers what short climbs miss.
_BATCHES, _LOOSE_BATCHES, _LOOSE = (THOROUGH, SHARP, SHARP), (QUICK, QUICK), 3e-2
# Maxima that even a thorough search misses are narrow and exceed those found by a little: some of the
# tolerance is kept for them.
_MARGIN = 0.5
# Random starts of a larger batch, in those of others.
_LARGER = 4


@dataclass(frozen=True)
class DualPoint:
    """A dual point, the network it belongs to, and the largest violation found for it so far.

    Attributes
    ----------
    R : array of shape (n_samples, n_outputs)
        The dual point.
    neurons : Neurons
        The network.
    largest : float
        The largest ``||R^T (A s)_+||`` over unit ``s`` found.
    """

    R: Array
    neurons: Neurons
    largest: float


class DualSearch:
    """The best dual point so far, and the constraints that the last one searched violates.

    Parameters
    ----------
    problem : Problem
        The training problem.
    single : Problem
        The same in single precision, in which a maximum is found to six digits.
    options : Options
        Tolerance, number of starts and source of randomness.
    idle : Neurons
        The network without a neuron.
    """

    def __init__(self, problem: Problem, single: Problem, options: Options, idle: Neurons) -> None:
        self._problem, self._single, self._options = problem, single, options
        self.found = Candidates(idle.S, idle.U, np.zeros(0))
        self.point = DualPoint(problem.feasible(problem.zero.R), idle, np.inf)
        self._refuted = False

    @property
    def lower_bound(self) -> float:
        """Lower bound of the optimum, if no neuron violates more than those found, by more than a margin."""
        return self._bound(self.point.R, self.point.largest)

    def _bound(self, R: Array, largest: float) -> float:
        return self._problem.dual_bound(R, largest * (1 + _MARGIN * self._options.tol))

    def search(self, neurons: Neurons, *, thorough: bool) -> float:
        """Search for violations of a network's dual point, keep it if it is the best; return its bound."""
        self.found = self._searched(neurons.R, neurons, THOROUGH if thorough else QUICK)
        self.refute()
        bound = self._bound(neurons.R, self.found.largest)
        if bound > self.lower_bound:
            self.point = DualPoint(neurons.R, neurons, self.found.largest)
        return bound

    def confirm(self) -> None:
        """Search the best dual point from fresh starts until a batch of them finds nothing larger.

        Of many bounds one will pass by luck: where one has been refuted before, a larger batch comes last.
        """
        known, largest, slack = self.point.largest, 0.0, 1 + 1e-3 * self._options.tol
        loose = self._options.tol >= _LOOSE
        for number, stages in enumerate(_LOOSE_BATCHES if loose else _BATCHES, start=1):
            self.found = self._searched(self.point.R, self.point.neurons, stages)
            if number > 1 and self.found.largest <= largest * slack:
                break
            largest = self.found.largest
        if self._refuted and not loose and self.found.largest <= known * slack:
            self.found = self._searched(self.point.R, self.point.neurons, SHARP, _LARGER)
        self._refuted |= self.found.largest > known * slack
        self.refute()

    def refute(self, *others: Array) -> None:
        """Test the dual point with all that was found since: the largest of several bounds may be mistaken.

        Parameters
        ----------
        *others : array of shape (rank + 1, n_directions)
            More hidden directions to test it with.
        """
        for S in (self.found.S, *others):
            largest = float(self._values(S, self.point.R).max(initial=0.0))
            self.point = replace(self.point, largest=max(self.point.largest, largest))

    def _values(self, S: Array, R: Array) -> NDArray:
        """``||R^T (A s)_+|| / ||s||`` for each column, on the host."""
        outputs = self._problem.rows.total(self._problem.hidden(S).T @ R)
        return to_numpy(lengths(outputs, axis=1)) / np.maximum(to_numpy(lengths(S, axis=0)), tiny(S))

    def _searched(self, R: Array, neurons: Neurons, stages: Stages, times: int = 1) -> Candidates:
        """Climb from random points, so many times more than usual, and from what was most violated."""
        options, found = self._options, self.found
        A, rows = (self._single if options.tol >= 1e-5 else self._problem).A, self._problem.rows
        dtype = numpy_dtype(A)
        # A gap of percents needs no violation to the last digit.
        effort = math.sqrt(min(1.0, _PRECISE / options.tol))
        wanted = _QUICK_STARTS if stages is QUICK else max(8, int(times * effort * options.search_starts))
        n_starts = min(wanted, affordable_starts(A, stages, effort, rows))
        S, U = concat([neurons.S, found.S], axis=1), concat([neurons.U, found.U], axis=0)
        most_violated = np.argsort(-self._values(S, R), kind="stable")[:n_starts]
        S, U = take(S, most_violated, axis=1), take(U, most_violated, axis=0)
        random = random_starts(A.shape[1], R.shape[1], n_starts, options.rng)
        random_S, random_U = (like(M.astype(dtype), A) for M in random)
        # A short neuron may be too short for single precision.
        S = S / lengths(S, axis=0)
        S, U = concat([astype(S, dtype), random_S], axis=1), concat([astype(U, dtype), random_U], axis=0)
        candidates = search(A, astype(R, dtype), S, U, stages=stages, rows=rows)
        return verified(self._problem.A, R, candidates, rows)
