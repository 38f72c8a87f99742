"""The neurons a solver works with, and how they merge, leave and join."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from skcvxbn.solvers.base import Problem, without_negligible
from skcvxbn.solvers.output_weights import improved_sizes
from skcvxbn.solvers.search import Candidates

# A new neuron enters with this share of the size of the largest.
_ENTRY_SIZE = 1e-3
# Sizes below this share of the largest are zeros of the quadratic program.
_NO_SIZE = 1e-5
# How often a change of the sizes is halved before it is given up.
_HALVINGS = 4
# Output directions of a larger cosine are the same up to rounding.
_SAME = 1 - 1e-6


@dataclass(frozen=True)
class Neurons:
    """Neurons ``(A s_j)_+ u_j^T`` with unit ``u_j``, and the arrangement each is solved for in.

    Attributes
    ----------
    S : ndarray of shape (rank + 1, n_neurons)
        Hidden directions, as long as the neuron is large.
    U : ndarray of shape (n_neurons, n_outputs)
        Unit output directions.
    patterns : ndarray of bool, shape (n_samples, n_neurons)
        Arrangements. On a kink they say on which side the neuron counts.
    objective : float
        Objective of the network they make.
    R : ndarray of shape (n_samples, n_outputs)
        Dual point that belongs to it.
    """

    S: NDArray
    U: NDArray
    patterns: NDArray
    objective: float
    R: NDArray

    @classmethod
    def of_network(
        cls, problem: Problem, S: NDArray, V: NDArray, negligible: float, rounding: float = 0.0
    ) -> Neurons:
        """Neurons of a network of any scaling, but for those of less than this share of the largest.

        Where the loss has kinks, its subgradients are too many to choose the dual point from: it is that of
        the loss with kinks rounded by `rounding`.
        """
        dtype = problem.A.dtype
        S, V = S.astype(dtype, copy=False), V.astype(dtype, copy=False)
        alive = without_negligible(S, V, negligible)
        S, V = S[:, alive], V[alive]
        lengths = np.linalg.norm(V, axis=1)
        S, U = S * lengths, V / lengths[:, None]
        H = problem.A @ S
        patterns = H > 0
        output = problem.smoothed(rounding).at(np.maximum(H, 0, out=H) @ U)
        value = problem.loss.value(output.F) if rounding else output.value
        objective = value + problem.beta * problem.penalty(S, U)
        return cls(S, U, patterns, objective, problem.feasible(output.R))

    def __len__(self) -> int:
        """Return the number of neurons."""
        return len(self.U)

    def take(self, which: NDArray) -> Neurons:
        """Keep some of the neurons."""
        return replace(self, S=self.S[:, which], U=self.U[which], patterns=self.patterns[:, which])

    def solved(self, problem: Problem, S: NDArray, R: NDArray, negligible: float) -> Neurons:
        """Return the same neurons with other hidden directions, but for the negligible ones."""
        kept = replace(self, S=S, R=R).take(without_negligible(S, self.U, negligible))
        return replace(kept, objective=problem.objective(kept.S, kept.U))

    def merged(self, cosine: float = _SAME) -> Neurons:
        """Add up neurons of one arrangement whose output directions agree."""
        first: dict[bytes, int] = {}
        packed = np.packbits(self.patterns, axis=0).T
        owner = np.array([first.setdefault(pattern.tobytes(), len(first)) for pattern in packed], dtype=int)
        S, U, leaders = merge(self.S, self.U, owner, cosine)
        return replace(self.take(leaders), S=S, U=U)

    def joined(self, problem: Problem, newcomers: Candidates) -> Neurons:
        """Let in the newcomers whose arrangement and output direction are new."""
        dtype = self.S.dtype
        # A maximiser of the search lies on hyperplanes, where the sign of a_k^T s is rounding.
        resolution = 1e-9 if newcomers.S.dtype == np.float64 else 1e-6
        S, U = newcomers.S.astype(dtype), newcomers.U.astype(dtype)
        size = _ENTRY_SIZE * float(np.linalg.norm(self.S, axis=0).max(initial=0)) if len(self) else 1e-2
        on = problem.A @ S
        entering = replace(self, S=size * S, U=U, patterns=on > resolution)
        known = set(self._keys())
        new = np.array([key not in known for key in entering._keys()], dtype=bool)
        entering = entering.take(np.flatnonzero(new))
        return replace(
            self,
            S=np.hstack([self.S, entering.S]),
            U=np.vstack([self.U, entering.U]),
            patterns=np.hstack([self.patterns, entering.patterns]),
        )

    def resized(self, problem: Problem) -> Neurons:
        """Find the best sizes for fixed directions; neurons that get none leave.

        A nonnegative quadratic program in as many unknowns as neurons, the Newton model of the loss, by
        accelerated projected gradient steps: it brings newcomers to their place at the price of one matrix
        product. `problem` is one whose loss has no kinks.
        """
        if len(self) == 0:
            return self
        dtype = problem.A.dtype
        sizes = np.linalg.norm(self.S, axis=0)
        directions, U = (self.S / sizes).astype(dtype), self.U.astype(dtype)
        H, sizes = problem.hidden(directions), sizes.astype(dtype)
        output = problem.at(H @ (U * sizes[:, None]))
        value = output.value + problem.beta * float(sizes.sum())
        decrease = np.einsum("kj,kj->j", H, output.R @ U.T) - problem.beta
        gram = _weighted_gram(problem, H, problem.loss.row_curvature(output.F)) * (U @ U.T)
        move = improved_sizes(gram, gram @ sizes + decrease, sizes) - sizes
        for halving in range(_HALVINGS):
            trial = sizes + 0.5**halving * move
            if problem.at(H @ (U * trial[:, None])).value + problem.beta * float(trial.sum()) < value:
                break
        else:
            return self
        resized = replace(self, S=directions.astype(self.S.dtype) * trial.astype(self.S.dtype))
        return resized.take(np.flatnonzero(trial > _NO_SIZE * trial.max(initial=0)))

    def _keys(self) -> list[tuple[bytes, bytes]]:
        packed = np.packbits(self.patterns, axis=0).T
        rounded = np.round(self.U, 3) + 0.0
        return [(p.tobytes(), u.tobytes()) for p, u in zip(packed, rounded, strict=True)]


def merge(S: NDArray, U: NDArray, owner: NDArray, cosine: float) -> tuple[NDArray, NDArray, NDArray]:
    """Add up neurons of one arrangement whose output directions agree: cones are closed under addition.

    Where the directions are equal this never costs more; where they are not it is to second order in their
    angle and that of the hidden directions.

    Parameters
    ----------
    S : ndarray of shape (rank + 1, n_neurons)
        Hidden directions, as long as the neuron is large.
    U : ndarray of shape (n_neurons, n_outputs)
        Unit output directions.
    owner : ndarray of int, shape (n_neurons,)
        Arrangement of each.
    cosine : float
        Least cosine of output directions that agree.

    Returns
    -------
    S, U : tuple of ndarray
        The sums.
    leaders : ndarray of int
        The largest neuron of each sum.
    """
    sizes = np.linalg.norm(S, axis=0)
    group = np.full(len(sizes), -1)
    leaders: list[int] = []
    for j in np.argsort(-sizes, kind="stable"):
        if group[j] < 0:
            same = (group < 0) & (owner == owner[j])
            group[same & (U @ U[j] >= cosine)] = len(leaders)
            group[j] = len(leaders)
            leaders.append(j)
    which = np.array(leaders, dtype=int)
    if len(which) == len(sizes):
        return S[:, which], U[which], which
    V = np.zeros((len(which), U.shape[1]), dtype=U.dtype)
    np.add.at(V, group, U * sizes[:, None])
    total = np.zeros((len(S), len(which)), dtype=S.dtype)
    np.add.at(total.T, group, S.T)
    lengths = np.linalg.norm(V, axis=1)
    # The spread of the output directions shortens their sum.
    total *= lengths / np.bincount(group, weights=sizes)
    return total, V / lengths[:, None], which


def _weighted_gram(problem: Problem, H: NDArray, weight: NDArray) -> NDArray:
    """Inner products of the columns of `H`, rows weighted, without what the bias reaches."""
    roots = np.sqrt(weight)
    weighted = roots * H
    if problem.fit_intercept:
        direction = roots[:, 0] * problem.A[:, -1]
        direction /= max(float(np.linalg.norm(direction)), float(np.finfo(direction.dtype).tiny))
        weighted -= np.outer(direction, direction @ weighted)
    return weighted.T @ weighted
