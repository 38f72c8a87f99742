"""The neurons a solver works with, and how they merge, leave and join."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from skcvxbn import in_place
from skcvxbn.arrays import (
    Array,
    astype,
    concat,
    lengths,
    like,
    namespace,
    numpy_dtype,
    take,
    to_numpy,
    zeros,
)
from skcvxbn.solvers.base import Problem, without_negligible
from skcvxbn.solvers.output_weights import ACCURACY
from skcvxbn.solvers.reweighting import NO_WEIGHT, best_weights, reweighted
from skcvxbn.solvers.search import Candidates

# A new neuron enters with this share of the size of the largest.
_ENTRY_SIZE = 1e-3
# Output directions of a larger cosine are the same up to rounding.
_SAME = 1 - 1e-6
# Cosines of output directions at which neurons of one arrangement may be merged.
_COSINES = (0.99, 0.9999, _SAME)
# A pull that is smaller than its cost by this share is one that a neuron may yet need.
_SLACK = 1e-5


@dataclass(frozen=True)
class Neurons:
    """Neurons ``(A s_j)_+ u_j^T`` with unit ``u_j``, and the arrangement each is solved for in.

    Attributes
    ----------
    S : array of shape (rank + 1, n_neurons)
        Hidden directions, as long as the neuron is large.
    U : array of shape (n_neurons, n_outputs)
        Unit output directions.
    patterns : array of bool, shape (n_samples, n_neurons)
        Arrangements. On a kink they say on which side the neuron counts.
    objective : float
        Objective of the network they make.
    R : array of shape (n_samples, n_outputs)
        Dual point that belongs to it.
    bias : array of shape (n_outputs,)
        Coefficients of the bias' direction, a guess where the neurons have moved since.
    """

    S: Array
    U: Array
    patterns: Array
    objective: float
    R: Array
    bias: Array

    @classmethod
    def of_network(
        cls,
        problem: Problem,
        S: Array,
        V: Array,
        negligible: float,
        rounding: float = 0.0,
        guess: Array | None = None,
    ) -> Neurons:
        """Neurons of a network of any scaling, but for those of less than this share of the largest.

        Of the bias there may be a guess.

        Where the loss has kinks, its subgradients are too many to choose the dual point from: it is that of
        the loss with kinks rounded by `rounding`.
        """
        dtype = numpy_dtype(problem.A)
        S, V = astype(S, dtype), astype(V, dtype)
        alive = without_negligible(S, V, negligible)
        S, V = take(S, alive, axis=1), take(V, alive, axis=0)
        sizes = lengths(V, axis=1)
        S, U = S * sizes, V / sizes[:, None]
        H = problem.A @ S
        patterns = H > 0
        output = problem.smoothed(rounding).at(in_place.relu(H) @ U, guess)
        value = problem.loss.value(output.F) if rounding else output.value
        objective = value + problem.beta * problem.penalty(S, U)
        return cls(S, U, patterns, objective, problem.feasible(output.R), output.bias)

    def __len__(self) -> int:
        """Return the number of neurons."""
        return int(self.U.shape[0])

    def take(self, which: NDArray) -> Neurons:
        """Keep some of the neurons."""
        S, patterns = (take(M, which, axis=1) for M in (self.S, self.patterns))
        return replace(self, S=S, U=take(self.U, which, axis=0), patterns=patterns)

    @property
    def sizes(self) -> NDArray:
        """Sizes of the neurons, on the host."""
        return to_numpy(lengths(self.S, axis=0))

    def largest(self, n_neurons: int) -> Neurons:
        """Keep the largest neurons, in their order."""
        return self.take(np.sort(np.argsort(-self.sizes, kind="stable")[:n_neurons]))

    def solved(self, problem: Problem, S: Array, R: Array, negligible: float) -> Neurons:
        """Return the same neurons with other hidden directions, but for the negligible ones."""
        kept = replace(self, S=S, R=R).take(without_negligible(S, self.U, negligible))
        return replace(kept, objective=problem.objective(kept.S, kept.U, self.bias))

    def needed(self, problem: Problem) -> Neurons:
        """Leave out those that would get no weight if hidden directions stayed where they are, by far.

        The others have the weights they would get. Those that need a little more pull for one stay, small.
        """
        S, V, bias = best_weights(problem, self.S, self.U, self.bias)
        used = without_negligible(S, V, NO_WEIGHT)
        if not used.any():
            return self
        H = problem.hidden(S)
        pull = to_numpy(lengths(problem.rows.total(H.T @ problem.at(H @ V, bias).R), axis=1))
        small = _ENTRY_SIZE * float(namespace(V).max(lengths(V, axis=1)))
        V = namespace(V).where(like(used, V)[:, None], V, small * self.U)
        sizes = lengths(V, axis=1)
        neurons = replace(self, S=S * sizes, U=V / sizes[:, None], bias=bias)
        return neurons.take(np.flatnonzero(used | (pull > (1 - _SLACK) * problem.beta)))

    def reweighted(self, problem: Problem, newcomers: Candidates, accuracy: float, cosine: float) -> Neurons:
        """Best output weights of the hidden directions of neurons and newcomers; those of no use leave.

        Weights are exact to this share of their cost at most. Neurons of a larger cosine are added up.
        """
        S = concat([self.S, astype(newcomers.S, numpy_dtype(self.S))], axis=1)
        V = concat([self.U, zeros(newcomers.U.shape, self.U)], axis=0)
        accuracy = min(accuracy, ACCURACY)
        S, V, bias = reweighted(problem, S, V, self.bias, accuracy)
        if V.shape[0] == 0:
            return self
        S, V, _ = gather(S, V, cosine)
        S, V, bias = reweighted(problem, S, V, bias, accuracy)
        return Neurons.of_network(problem, S, V, NO_WEIGHT, guess=bias)

    def merged(self, problem: Problem, cosine: float = _SAME) -> Neurons:
        """Add up neurons of one arrangement whose output directions agree."""
        first: dict[bytes, int] = {}
        arrangements = problem.fingerprints(self.patterns)
        owner = np.array([first.setdefault(row.tobytes(), len(first)) for row in arrangements], dtype=int)
        S, U, leaders = merge(to_numpy(self.S), to_numpy(self.U), owner, cosine)
        return replace(self.take(leaders), S=like(S, self.S), U=like(U, self.U))

    def fewer(self, problem: Problem, most: float) -> Neurons:
        """Merge neurons as boldly as the objective stays at most at what is allowed."""
        for cosine in _COSINES:
            merged = self.merged(problem, cosine)
            if problem.objective(merged.S, merged.U, self.bias) <= most:
                return merged
        return self

    def gathered(self, cosine: float) -> Neurons:
        """Add up neurons that are nearly of one kind, whatever their arrangements: a start for descent."""
        S, U, leaders = gather(self.S, self.U, cosine)
        return replace(self.take(leaders), S=S, U=U)

    def joined(self, problem: Problem, newcomers: Candidates) -> Neurons:
        """Let in the newcomers whose arrangement and output direction are new."""
        dtype = numpy_dtype(self.S)
        # A maximiser of the search lies on hyperplanes, where the sign of a_k^T s is rounding.
        resolution = 1e-9 if numpy_dtype(newcomers.S) == np.float64 else 1e-6
        S, U = astype(newcomers.S, dtype), astype(newcomers.U, dtype)
        size = _ENTRY_SIZE * float(self.sizes.max(initial=0)) if len(self) else 1e-2
        hidden = problem.A @ S
        entering = replace(self, S=size * S, U=U, patterns=hidden > resolution)
        known = set(self._keys(problem))
        new = np.array([key not in known for key in entering._keys(problem)], dtype=bool)
        entering = entering.take(np.flatnonzero(new))
        return replace(
            self,
            S=concat([self.S, entering.S], axis=1),
            U=concat([self.U, entering.U], axis=0),
            patterns=concat([self.patterns, entering.patterns], axis=1),
        )

    def _keys(self, problem: Problem) -> list[tuple[bytes, bytes]]:
        arrangements = problem.fingerprints(self.patterns)
        rounded = np.round(to_numpy(self.U), 3) + 0.0
        return [(a.tobytes(), u.tobytes()) for a, u in zip(arrangements, rounded, strict=True)]


def gather(S: Array, V: Array, cosine: float) -> tuple[Array, Array, NDArray]:
    """Add up neurons whose hidden and output directions agree to this cosine, whatever their arrangements.

    Returns
    -------
    S, U : tuple of arrays
        The sums: hidden directions, as long as the neuron is large, and unit output directions.
    leaders : ndarray of int
        The largest neuron of each sum.
    """
    weights = lengths(V, axis=1)
    hidden, U = to_numpy(S * weights), to_numpy(V / weights[:, None])
    sizes = np.linalg.norm(hidden, axis=0)
    directions = hidden / sizes
    similar = directions.T @ directions > cosine
    owner = np.full(len(sizes), -1)
    for j in np.argsort(-sizes, kind="stable"):
        if owner[j] < 0:
            owner[similar[j] & (owner < 0)] = j
    hidden, U, leaders = merge(hidden, U, owner, cosine)
    return like(hidden, S), like(U, S), leaders


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
