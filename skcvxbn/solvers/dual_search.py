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
    FINISH,
    NARROW,
    NEARBY,
    QUICK,
    THOROUGH,
    TOPS,
    Candidates,
    Stages,
    affordable_starts,
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
# Tolerance from which on a looser one takes fewer starts, and one from which on single precision will do.
_PRECISE, _SINGLE = 1e-4, 1e-5
# From this tolerance on the margin of a bound covers what short climbs miss.
_LOOSE = 3e-2
# Maxima that even a thorough search misses are narrow and exceed those found by a little: some of the
# tolerance is kept for them.
_MARGIN = 0.5
# The second kind of batch is larger by one for so many bounds that were tried, up to so many times.
_TRIED, _LARGEST = 8, 4
# Random starts of a broad search, at most.
_MOST_STARTS = 8192
# Neurons from which on a broad search confirms a bound, and its multiplications.
_MANY, _BREADTH = 64, 1e10
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
        self._searched_broadly_last: Neurons | None = None

    @property
    def lower_bound(self) -> float:
        """Lower bound of the optimum, if no neuron violates more than those found, by more than a margin."""
        return self._bound(self.point.R, self.point.largest)

    def _bound(self, R: Array, largest: float) -> float:
        return self._problem.dual_bound(R, largest * (1 + _MARGIN * self._options.tol))

    def has_searched_broadly(self, neurons: Neurons) -> bool:
        """Whether `found` is what a broad search for a network's violations found."""
        return self._searched_broadly_last is neurons

    def search(self, neurons: Neurons, *, breadth: float | None = None) -> float:
        """Search for violations of a network's dual point, keep it if it is the best; return its bound.

        Parameters
        ----------
        neurons : Neurons
            The network.
        breadth : float, optional
            A search for as many as there are climbs from all that were nearly violated, and takes about so
            many multiplications for random starts. By default it is a quick one, for the largest.
        """
        if breadth is None:
            stages = quick_stages(self._problem.A, self._problem.rows)
            self.found = self._searched(neurons.R, neurons, stages)
        else:
            self.found = self._searched_broadly(neurons.R, neurons, breadth)
        self._n_tried += 1
        self.refute()
        # Broad searches are blind to all that is not violated.
        largest = max(self.found.largest, 0.0 if breadth is None else self._problem.beta)
        bound = self._bound(neurons.R, largest)
        if bound > self.lower_bound:
            self.point = DualPoint(neurons.R, neurons, largest)
        return bound

    def confirm(self, least: float = -math.inf, *, brief: bool = False) -> None:
        """Search the best dual point from fresh starts until a batch of them finds nothing larger.

        Of many bounds one will pass by luck: the more were tried, the larger is the batch.

        Parameters
        ----------
        least : float
            A lower bound that is smaller is of no use, and not tested further.
        brief : bool
            Whether batches are to be as short as the searches of the rounds.
        """
        largest, slack = 0.0, 1 + 1e-3 * self._options.tol
        tries = 1 + self._n_tried // _TRIED
        # The first two are always taken.
        batches = [QUICK, QUICK] if self._options.tol >= _LOOSE else [THOROUGH, NARROW, NARROW]
        if brief:
            batches = 2 * [quick_stages(self._problem.A, self._problem.rows)]
        R, neurons = self.point.R, self.point.neurons
        if len(neurons) > _MANY and batches[0] is THOROUGH:
            # Where neurons are many, so are narrow maxima next to them: these take thousands of starts.
            batches = [TOPS, THOROUGH, NARROW]
        for number, stages in enumerate(batches, start=1):
            if stages is TOPS:
                self.found = self._searched_broadly(R, neurons, _BREADTH, next_to_neurons=True)
            else:
                times = min(tries, _LARGEST) if stages is NARROW else 1
                self.found = self._searched(R, neurons, stages, times=times)
            self.refute()
            if (number > 1 and self.found.largest <= largest * slack) or self.lower_bound < least:
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

    def _searched(self, R: Array, neurons: Neurons, stages: Stages, *, times: int = 1) -> Candidates:
        """Climb from random points, so many times more than usual, and from what was most violated."""
        self._searched_broadly_last = None
        rows, effort = self._problem.rows, self._effort
        A = self._single.A
        wanted = max(8, int(times * effort * self._options.search_starts))
        if stages in (QUICK, BRIEF):
            wanted = _QUICK_STARTS
            # With one output a start goes both ways.
            effort /= 2 if R.shape[1] == 1 else 1
        n_starts = min(wanted, affordable_starts(A, stages, effort, rows))
        known = self._most_violated(R, neurons, self.found, 0.0, n_starts).astype(numpy_dtype(A))
        S, U = self._fresh(known, n_starts, n_starts)
        S, U = concat([known.S, S], axis=1), concat([known.U, U], axis=0)
        found = search(A, astype(R, numpy_dtype(A)), S, U, stages=stages, rows=rows)
        if self._options.tol >= _SINGLE:
            return verified(self._problem.A, R, found, rows)
        # What is stated to seven digits is searched for in six, and then finished.
        found = found.astype(numpy_dtype(self._problem.A))
        return search(self._problem.A, R, found.S, found.U, stages=FINISH, rows=rows)

    def _searched_broadly(
        self, R: Array, neurons: Neurons, breadth: float, *, next_to_neurons: bool = False
    ) -> Candidates:
        """Climb from all that is nearly violated and, in so many multiplications, from fresh starts.

        Of these some are near all that is known, or only near neurons.
        """
        self._searched_broadly_last = neurons if breadth else None
        rows, A, beta = self._problem.rows, self._single.A, self._problem.beta
        narrow_R = astype(R, np.float32)
        known = self._most_violated(R, neurons, self._maxima, _NEAR * beta, _MOST_KNOWN)
        known = known.astype(np.float32)
        found = search(A, narrow_R, known.S, known.U, stages=NEARBY, rows=rows)
        if breadth:
            centres = known
            if next_to_neurons:
                nothing = self._maxima.take(np.zeros(0, dtype=int))
                centres = self._most_violated(R, neurons, nothing, _NEAR * beta, _MOST_KNOWN)
            S, U = self._fresh(centres.astype(np.float32), *self._n_fresh(breadth))
            new = search(A, narrow_R, S, U, stages=BROAD, rows=rows, enough=beta)
            new = new.take(new.values >= _NEAR * beta)
            # Not together with those that are known: on their tops these would leave no room for others.
            found = found.joined(search(A, narrow_R, new.S, new.U, stages=TOPS, rows=rows))
        # Of several that lead to one maximum each is a neuron to join as long as it is violated.
        found = found.joined(known.take(known.values > beta))
        self._maxima = verified(self._problem.A, R, found, rows)
        return self._maxima

    def _n_fresh(self, breadth: float) -> tuple[int, int]:
        """Random starts of a broad search, and starts near what is known."""
        rows, A = self._problem.rows, self._single.A
        least = min(max(8, int(self._effort * self._options.search_starts)), _BROAD_STARTS)
        least = min(least, affordable_starts(A, BROAD, self._effort, rows))
        n_starts = max(least, min(starts_for(breadth, A, BROAD, rows), _MOST_STARTS))
        # The later searches go on from what the random starts of the first have led to.
        return n_starts // 2 if len(self._maxima.values) else n_starts, n_starts

    @property
    def _effort(self) -> float:
        """A gap of percents needs no violation to the last digit."""
        return math.sqrt(min(1.0, _PRECISE / self._options.tol))

    def _fresh(self, known: Candidates, n_random: int, n_near: int) -> tuple[Array, Array]:
        """Random starts, and others near known directions."""
        S, U, rng = known.S, known.U, self._options.rng
        random = random_starts(S.shape[0], U.shape[1], n_random, rng)
        near = starts_near(to_numpy(S), to_numpy(U), n_near, rng)
        new_S, new_U = np.hstack([random[0], near[0]]), np.vstack([random[1], near[1]])
        dtype = numpy_dtype(S)
        return like(new_S.astype(dtype), S), like(new_U.astype(dtype), U)

    def _most_violated(
        self, R: Array, neurons: Neurons, others: Candidates, least: float, most: int
    ) -> Candidates:
        """Directions of neurons and others whose constraints are violated most."""
        S, U = concat([neurons.S, others.S], axis=1), concat([neurons.U, others.U], axis=0)
        values = self._values(S, R)
        order = np.argsort(-values, kind="stable")[:most]
        order = order[values[order] >= least]
        S, U = take(S, order, axis=1), take(U, order, axis=0)
        # A short neuron may be too short for single precision.
        S = S / lengths(S, axis=0)
        return Candidates(S, U, values[order])
