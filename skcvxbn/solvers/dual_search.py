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
    BRIEF,
    BROAD,
    NEARBY,
    QUICK,
    THOROUGH,
    Candidates,
    Stages,
    affordable_starts,
    other_stages,
    quick_stages,
    random_starts,
    search,
    starts_for,
    starts_near,
    verified,
)

_QUICK_STARTS = 256
# A broad search has no more where the convex program is cheap.
_BROAD_STARTS = 128
# Tolerance from which on a looser one takes fewer starts.
_PRECISE = 1e-4
# From this tolerance on the margin of a bound covers what short climbs miss.
_LOOSE = 3e-2
# Maxima that even a thorough search misses are narrow and exceed those found by a little: some of the
# tolerance is kept for them.
_MARGIN = 0.5
# The second kind of batch is larger by one for so many bounds that were tried, up to so many times.
_TRIED, _LARGEST = 8, 4
# Random starts of a broad search, at most.
_MOST_STARTS = 4096
# Known points worth more than this share of the weight decay are climbed from again, at most so many.
_NEAR, _MOST_KNOWN = 0.97, 2048


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
        self.found = self._maxima = Candidates(idle.S, idle.U, np.zeros(0))
        self.point = DualPoint(problem.feasible(problem.zero.R), idle, np.inf)
        self._n_tried = 0

    @property
    def lower_bound(self) -> float:
        """Lower bound of the optimum, if no neuron violates more than those found, by more than a margin."""
        return self._bound(self.point.R, self.point.largest)

    def _bound(self, R: Array, largest: float) -> float:
        return self._problem.dual_bound(R, largest * (1 + _MARGIN * self._options.tol))

    def search(self, neurons: Neurons, *, worth: float = 0.0) -> float:
        """Search for violations of a network's dual point, keep it if it is the best; return its bound.

        If it is worth any multiplications, the search is broad and takes about so many, or more.
        """
        stages = BROAD if worth else quick_stages(self._problem.A, self._problem.rows)
        self.found = self._searched(neurons.R, neurons, stages, worth=worth)
        self._n_tried += 1
        self.refute()
        # Broad searches are blind to all that is not violated.
        largest = max(self.found.largest, self._problem.beta if worth else 0.0)
        bound = self._bound(neurons.R, largest)
        if bound > self.lower_bound:
            self.point = DualPoint(neurons.R, neurons, largest)
        return bound

    def confirm(self) -> None:
        """Search the best dual point from fresh starts until a batch of them finds nothing larger.

        Of many bounds one will pass by luck: the more were tried, the larger is the batch.
        """
        largest, slack = 0.0, 1 + 1e-3 * self._options.tol
        other, tries = other_stages(self._problem.A, self._problem.rows), 1 + self._n_tried // _TRIED
        # The first two are always taken.
        batches = [QUICK, QUICK] if self._options.tol >= _LOOSE else [THOROUGH, other, other]
        for number, stages in enumerate(batches, start=1):
            times = min(tries, _LARGEST) if stages is other else 1
            self.found = self._searched(self.point.R, self.point.neurons, stages, times=times)
            self.refute()
            if number > 1 and self.found.largest <= largest * slack:
                break
            largest = self.found.largest
        self._maxima = self._maxima.joined(self.found)

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

    def _searched(
        self, R: Array, neurons: Neurons, stages: Stages, *, times: int = 1, worth: float = 0.0
    ) -> Candidates:
        """Climb from random points, so many times more than usual, and from what was most violated."""
        options, rows = self._options, self._problem.rows
        A = (self._single if options.tol >= 1e-5 else self._problem).A
        # A gap of percents needs no violation to the last digit.
        effort = math.sqrt(min(1.0, _PRECISE / options.tol))
        wanted = max(8, int(times * effort * options.search_starts))
        if stages is BROAD:
            wanted = min(wanted, _BROAD_STARTS)
        elif stages in (QUICK, BRIEF):
            wanted = _QUICK_STARTS
            # With one output a start goes both ways.
            effort /= 2 if R.shape[1] == 1 else 1
        n_starts = min(wanted, affordable_starts(A, stages, effort, rows))
        if worth:
            n_starts = max(n_starts, min(starts_for(worth, A, stages, rows), _MOST_STARTS))
        narrow_R, beta = astype(R, numpy_dtype(A)), self._problem.beta
        if stages is BROAD:
            S, U = self._most_violated(R, neurons, self._maxima, _NEAR * beta, _MOST_KNOWN)
        else:
            S, U = self._most_violated(R, neurons, self.found, 0.0, n_starts)
        new_S, new_U = self._fresh(S, U, n_starts)
        if stages is BROAD:
            new = search(A, narrow_R, new_S, new_U, stages=stages, rows=rows, enough=beta)
            found = search(A, narrow_R, S, U, stages=NEARBY, rows=rows).joined(new)
        else:
            S, U = concat([S, new_S], axis=1), concat([U, new_U], axis=0)
            found = search(A, narrow_R, S, U, stages=stages, rows=rows)
        found = verified(self._problem.A, R, found, rows)
        if stages is BROAD:
            self._maxima = found
        return found

    def _fresh(self, S: Array, U: Array, n_starts: int) -> tuple[Array, Array]:
        """Random starts, and as many near known directions."""
        rng = self._options.rng
        random = random_starts(S.shape[0], U.shape[1], n_starts, rng)
        near = starts_near(to_numpy(S), to_numpy(U), n_starts, rng)
        new_S, new_U = np.hstack([random[0], near[0]]), np.vstack([random[1], near[1]])
        dtype = numpy_dtype(S)
        return like(new_S.astype(dtype), S), like(new_U.astype(dtype), U)

    def _most_violated(
        self, R: Array, neurons: Neurons, others: Candidates, least: float, most: int
    ) -> tuple[Array, Array]:
        """Directions of neurons and others whose constraints are violated most, in the search's precision."""
        S, U = concat([neurons.S, others.S], axis=1), concat([neurons.U, others.U], axis=0)
        values = self._values(S, R)
        order = np.argsort(-values, kind="stable")[:most]
        order = order[values[order] >= least]
        S, U = take(S, order, axis=1), take(U, order, axis=0)
        # A short neuron may be too short for single precision.
        S = S / lengths(S, axis=0)
        dtype = np.float32 if self._options.tol >= 1e-5 else numpy_dtype(S)
        return astype(S, dtype), astype(U, dtype)
