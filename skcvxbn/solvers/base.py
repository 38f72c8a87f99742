"""The training problem in whitened coordinates, and what every solver returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from skcvxbn import in_place
from skcvxbn.arrays import (
    Array,
    Rows,
    astype,
    inner,
    lengths,
    like,
    namespace,
    row_blocks,
    to_numpy,
    zeros,
)
from skcvxbn.backend import Backend
from skcvxbn.losses import Loss


@dataclass(frozen=True, eq=False)
class Problem:
    """Problem (N): the two-layer network in whitened coordinates.

    Minimise ``L(F) + beta * sum_j ||s_j|| ||v_j||`` with ``F = sum_j (A s_j)_+ v_j^T``, and with an output
    bias that costs nothing when `fit_intercept` is true.

    Its arrays are of one library and on one device, that of `A`, and so are the networks and dual points
    that its methods take and return.

    Parameters
    ----------
    A : array of shape (n_samples, rank + 1)
        Whitened rows, ``A.T @ A = I``; its last column is the direction of the bias.
    loss : Loss
        Loss of the weighted outputs, bound to the targets.
    beta : float
        Weight decay.
    fit_intercept : bool
        Whether the bias is free. It is then always at its best, so that the columns of the dual point are
        orthogonal to its direction: that is the dual constraint which belongs to it.
    """

    A: Array
    loss: Loss
    beta: float
    fit_intercept: bool

    @property
    def rows(self) -> Rows:
        """How to sum over the training rows."""
        return self.loss.rows

    @property
    def shape(self) -> tuple[int, int]:
        """Number of training rows and length of a hidden direction."""
        return self.rows.count(self.A), self.A.shape[1]

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        return self.loss.shape[1]

    @cached_property
    def zero(self) -> Output:
        """Output of the network without a neuron: the best constant."""
        return self.at(zeros(self.loss.shape, self.A))

    @cached_property
    def host(self) -> Problem:
        """The problem of the rows of all processes, in NumPy."""
        if isinstance(self.A, np.ndarray) and not self.rows.shared:
            return self

        def whole(M: Array) -> NDArray[Any]:
            return to_numpy(self.rows.gathered(M))

        return replace(self, A=whole(self.A), loss=replace(self.loss.mapped(whole), rows=Rows()))

    def on(self, backend: Backend) -> Problem:
        """Return the problem, given in NumPy, where the backend works."""
        return replace(self, A=backend.array(self.A), loss=self.loss.mapped(backend.array))

    def hidden(self, S: Array) -> Array:
        """Hidden layer ``(A s_j)_+``, of shape (n_samples, n_neurons)."""
        hidden = zeros((self.A.shape[0], S.shape[1]), S)
        for rows in row_blocks(self.A):
            in_place.relu(in_place.matmul(self.A[rows, :], S, out=hidden[rows, :]))
        return hidden

    def length(self, R: Array) -> float:
        """Euclidean norm of a table of all rows."""
        return math.sqrt(*self.rows.totals(inner(R, R)))

    def fingerprints(self, patterns: Array) -> NDArray[np.float64]:
        """Numbers that tell arrangements apart, of shape (n_arrangements, n_numbers), on the host.

        Sums of random whole numbers over the rows that are switched on, exact in any order: two different
        arrangements have the same with a probability of at most 2^-78.
        """
        numbers = like(self.rows.numbers(patterns.shape[0]), self.A)
        sums = zeros((patterns.shape[1], numbers.shape[0]), numbers)
        for block in row_blocks(self.A):
            sums += astype(patterns[block, :], np.float64).T @ numbers[:, block].T
        return to_numpy(self.rows.total(sums))

    def at(self, F: Array, guess: Array | None = None) -> Output:
        """Evaluate the loss at the outputs `F` with the best bias, of which there may be a guess."""
        bias = zeros((self.n_outputs,), F)
        if self.fit_intercept:
            direction = self.A[:, -1]
            bias = self.loss.best_bias(F, direction, guess)
            F = F + direction[:, None] * bias
        value, R = self.loss.evaluate(F)
        return Output(F, bias, value, R)

    def output(self, S: Array, V: Array, guess: Array | None = None) -> Output:
        """Evaluate the loss at the output of a network with the best bias, of which there may be a guess."""
        return self.at(self.hidden(S) @ V, guess)

    def dual_point(self, S: Array, V: Array) -> Array:
        """Minus the gradient of the loss at the output of a network: its natural dual point."""
        return self.feasible(self.output(S, V).R)

    def feasible(self, R: Array) -> Array:
        """Correct the rounding in a dual point that the constraint of the bias is exact."""
        return self.loss.balanced(R, self.A[:, -1]) if self.fit_intercept else R

    def penalty(self, S: Array, V: Array) -> float:
        """``sum_j ||s_j|| ||v_j||``."""
        return float(lengths(S, axis=0) @ lengths(V, axis=1))

    def objective(self, S: Array, V: Array, guess: Array | None = None) -> float:
        """Objective of the network (N), which needs no feasible `S`; of the bias there may be a guess."""
        return self.output(S, V, guess).value + self.beta * self.penalty(S, V)

    def dual_bound(self, R: Array, largest: float) -> float:
        """Lower bound from the best multiple of a dual point.

        Parameters
        ----------
        R : array of shape (n_samples, n_outputs)
            A dual point, orthogonal to the bias.
        largest : float
            ``max ||R.T @ (A s)_+||`` over unit ``s``. The bound holds if this value does.
        """
        room = self.beta / largest if largest > 0 else math.inf
        return self.loss.dual_value(self._best_multiple(R, room) * R)

    def sufficient_violation(self, R: Array, wanted: float) -> float:
        """Return the largest violation for which the dual bound at `R` is the one wanted; 0 if none is."""
        best = self._best_multiple(R, math.inf)

        def excess(t: float) -> float:
            return self.loss.dual_value(t * R) - wanted

        if excess(best) < 0:
            return 0.0
        # A multiple of zero is worth nothing, and the dual objective rises from there to the best one.
        least = brentq(excess, 0.0, best, rtol=1e-14) if excess(0.0) < 0 else 0.0
        # brentq may end on either side.
        return self.beta / (least * (1 + 1e-12)) if least > 0 else math.inf

    def _best_multiple(self, R: Array, room: float) -> float:
        """Multiple of `R`, at most `room`, of the largest dual value, which is concave along `R`."""

        def slope(t: float) -> float:
            return self.loss.dual_slope(t * R, R)

        if self.length(R) == 0:
            return 0.0
        high = min(room, self.loss.largest_multiple(R))
        if not math.isfinite(high):
            high = 1.0
            while slope(high) > 0 and high < 1e12:
                high *= 2
        if slope(high) >= 0:
            return high
        return float(brentq(slope, 0.0, high, rtol=1e-14)) if slope(0.0) > 0 else 0.0

    def astype(self, dtype: Any) -> Problem:
        """Return the same problem in another precision."""
        return replace(self, A=astype(self.A, dtype), loss=self.loss.astype(dtype))

    def smoothed(self, width: float) -> Problem:
        """Return the problem with the kinks of the loss rounded."""
        loss = self.loss.smoothed(width)
        return self if loss is self.loss else replace(self, loss=loss)


@dataclass(frozen=True, eq=False)
class Output:
    """The loss at one output.

    Attributes
    ----------
    F : array of shape (n_samples, n_outputs)
        The output, bias included.
    bias : array of shape (n_outputs,)
        Coefficients of the bias' direction.
    value : float
        The loss.
    R : array of shape (n_samples, n_outputs)
        Dual point.
    """

    F: Array
    bias: Array
    value: float
    R: Array


@dataclass(frozen=True)
class Solution:
    """A network in whitened coordinates and how far from optimal it may be.

    Attributes
    ----------
    S : ndarray of shape (rank + 1, n_neurons)
        Hidden directions.
    V : ndarray of shape (n_neurons, n_outputs)
        Output weights. Neuron ``j`` contributes ``(A s_j)_+ v_j^T`` and costs
        ``beta * ||s_j|| * ||v_j||``.
    R : ndarray of shape (n_samples, n_outputs)
        Dual point that the lower bound is from.
    objective, lower_bound : float
        The optimum lies between the two, as far as the certificate goes.
    certificate : {"exact", "restricted", "estimated"}
        What the lower bound is worth.
    n_iter : int
        Rounds of the solver.
    converged : bool
        Whether the relative gap is at most the tolerance asked for.
    message : str
        Why the solver stopped, in words for the user.
    bias : ndarray of shape (n_outputs,), optional
        Coefficients of the bias' direction, up to the solver's accuracy; None where they are not known.
    """

    S: NDArray
    V: NDArray
    R: NDArray
    objective: float
    lower_bound: float
    certificate: str
    n_iter: int
    converged: bool
    message: str
    bias: NDArray | None = None


@dataclass(frozen=True)
class Options:
    """What limits a solver, apart from the problem.

    Attributes
    ----------
    tol : float
        Relative gap ``(objective - lower_bound) / objective`` to reach.
    max_iter : int
        Largest number of rounds.
    max_neurons : int or None
        Largest number of neurons of the network.
    search_starts : int
        Random starting points of the final search for violated dual constraints.
    rng : numpy.random.RandomState
        Source of those points.
    verbose : int
        1 prints a line a round.
    deadline : float
        Value of ``time.monotonic()`` at which to stop.
    """

    tol: float
    max_iter: int
    max_neurons: int | None
    search_starts: int
    rng: np.random.RandomState
    verbose: int = 0
    deadline: float = math.inf


def balanced(S: Array, V: Array) -> tuple[Array, Array]:
    """Rescale every neuron so that ``||s_j|| = ||v_j||``, without changing the network."""
    xp, hidden, output = namespace(S), lengths(S, axis=0), lengths(V, axis=1)
    root = xp.sqrt(hidden * output)
    safe = root > 0
    hidden, output = xp.where(safe, hidden, 1.0), xp.where(safe, output, 1.0)
    return S / hidden * root, V / output[:, None] * root[:, None]


def without_negligible(S: Array, V: Array, threshold: float) -> NDArray[np.bool_]:
    """Mask of the neurons whose size is more than `threshold` times the largest, on the host."""
    size = to_numpy(lengths(S, axis=0) * lengths(V, axis=1))
    return size > threshold * size.max(initial=0.0)
