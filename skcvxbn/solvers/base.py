"""The training problem in whitened coordinates, and what every solver returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Problem:
    """Problem (N): the two-layer network in whitened coordinates, squared error.

    Minimise ``1/2 ||F - Y||_F^2 + beta * sum_j ||s_j|| ||v_j||`` with
    ``F = sum_j (A s_j)_+ v_j^T``, and with an unpenalised output bias when `fit_intercept` is true.

    Parameters
    ----------
    A : ndarray of shape (n_samples, rank + 1)
        Whitened rows, ``A.T @ A = I``; its last column is the direction of the bias.
    Y : ndarray of shape (n_samples, n_outputs)
        Targets, each row multiplied by the root of its weight.
    beta : float
        Weight decay.
    fit_intercept : bool
        Whether the bias is free. It is then eliminated: every quantity that lives on the rows is
        projected on the complement of the bias direction, which is also the dual constraint that the
        columns of the dual variable sum to zero.
    """

    A: NDArray
    Y: NDArray
    beta: float
    fit_intercept: bool
    target: NDArray = field(init=False)

    def __post_init__(self) -> None:
        """Centre the targets once."""
        object.__setattr__(self, "target", self.without_bias(self.Y))

    def without_bias(self, M: NDArray) -> NDArray:
        """Project the columns of `M` on what the bias cannot reach."""
        if not self.fit_intercept:
            return M
        bias = self.A[:, -1]
        return M - np.outer(bias, bias @ M)

    def hidden(self, S: NDArray) -> NDArray:
        """Hidden layer ``(A s_j)_+``, of shape (n_samples, n_neurons)."""
        H = self.A @ S
        return np.maximum(H, 0, out=H)

    def residual(self, S: NDArray, V: NDArray) -> NDArray:
        """``Y - F`` at the best bias: minus the gradient of the loss, so the natural dual point."""
        return self.target - self.without_bias(self.hidden(S) @ V)

    def penalty(self, S: NDArray, V: NDArray) -> float:
        """``sum_j ||s_j|| ||v_j||``."""
        return float(np.linalg.norm(S, axis=0) @ np.linalg.norm(V, axis=1))

    def objective(self, S: NDArray, V: NDArray) -> float:
        """Objective of the network (N), which needs no feasibility of `S`."""
        R = self.residual(S, V)
        return 0.5 * float(np.vdot(R, R)) + self.beta * self.penalty(S, V)

    def dual_bound(self, R: NDArray, largest: float) -> float:
        """Lower bound from a dual point along `R`.

        Parameters
        ----------
        R : ndarray of shape (n_samples, n_outputs)
            A residual.
        largest : float
            ``max ||R.T @ (A s)_+||`` over unit ``s``. The bound holds if this value does.
        """
        squared = float(np.vdot(R, R))
        if squared == 0:
            return 0.0
        inner = float(np.vdot(R, self.target))
        # The dual objective t <R, Y> - t^2/2 ||R||^2 is maximal at inner/squared, feasible to beta/largest.
        t = inner / squared if largest <= 0 else min(self.beta / largest, inner / squared)
        t = max(t, 0.0)
        return t * inner - 0.5 * t * t * squared


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
    """

    S: NDArray
    V: NDArray
    objective: float
    lower_bound: float
    certificate: str
    n_iter: int
    converged: bool
    message: str


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


def balanced(S: NDArray, V: NDArray) -> tuple[NDArray, NDArray]:
    """Rescale every neuron so that ``||s_j|| = ||v_j||``, without changing the network."""
    hidden, output = np.linalg.norm(S, axis=0), np.linalg.norm(V, axis=1)
    root = np.sqrt(hidden * output)
    safe = root > 0
    hidden, output = np.where(safe, hidden, 1.0), np.where(safe, output, 1.0)
    return S / hidden * root, V / output[:, None] * root[:, None]


def without_negligible(S: NDArray, V: NDArray, threshold: float) -> NDArray:
    """Mask of the neurons whose size is more than `threshold` times the largest."""
    size = np.linalg.norm(S, axis=0) * np.linalg.norm(V, axis=1)
    return size > threshold * size.max(initial=0.0)
