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
    """

    S: NDArray
    U: NDArray
    patterns: NDArray
    objective: float = np.inf

    @classmethod
    def of_network(cls, problem: Problem, S: NDArray, V: NDArray, negligible: float) -> Neurons:
        """Neurons of a network of any scaling, but for those of less than this share of the largest."""
        dtype = problem.A.dtype
        S, V = S.astype(dtype, copy=False), V.astype(dtype, copy=False)
        alive = without_negligible(S, V, negligible)
        S, V = S[:, alive], V[alive]
        lengths = np.linalg.norm(V, axis=1)
        S, U = S * lengths, V / lengths[:, None]
        return cls(S, U, problem.A @ S > 0, problem.objective(S, U))

    def __len__(self) -> int:
        """Return the number of neurons."""
        return len(self.U)

    def take(self, which: NDArray) -> Neurons:
        """Keep some of the neurons."""
        return Neurons(self.S[:, which], self.U[which], self.patterns[:, which], self.objective)

    def solved(self, problem: Problem, S: NDArray, negligible: float) -> Neurons:
        """Return the same neurons with other hidden directions, but for the negligible ones."""
        kept = replace(self, S=S).take(without_negligible(S, self.U, negligible))
        return replace(kept, objective=problem.objective(kept.S, kept.U))

    def merged(self) -> Neurons:
        """Add up neurons of the same arrangement and output direction, which never costs more."""
        first: dict[tuple[bytes, bytes], int] = {}
        groups = np.array([first.setdefault(key, len(first)) for key in self._keys()], dtype=int)
        if len(first) == len(groups):
            return self
        S = np.zeros((len(self.S), len(first)), dtype=self.S.dtype)
        np.add.at(S.T, groups, self.S.T)
        return replace(self.take(np.unique(groups, return_index=True)[1]), S=S)

    def joined(self, problem: Problem, newcomers: Candidates) -> Neurons:
        """Let in the newcomers whose arrangement and output direction are new."""
        dtype = self.S.dtype
        # A maximiser of the search lies on hyperplanes, where the sign of a_k^T s is rounding.
        resolution = 1e-9 if newcomers.S.dtype == np.float64 else 1e-6
        S, U = newcomers.S.astype(dtype), newcomers.U.astype(dtype)
        size = _ENTRY_SIZE * float(np.linalg.norm(self.S, axis=0).max(initial=0)) if len(self) else 1e-2
        on = problem.A @ S
        entering = Neurons(size * S, U, on > resolution)
        known = set(self._keys())
        new = np.array([key not in known for key in entering._keys()], dtype=bool)
        entering = entering.take(np.flatnonzero(new))
        return Neurons(
            np.hstack([self.S, entering.S]),
            np.vstack([self.U, entering.U]),
            np.hstack([self.patterns, entering.patterns]),
            self.objective,
        )

    def resized(self, problem: Problem) -> Neurons:
        """Find the best sizes for fixed directions; neurons that get none leave.

        A nonnegative quadratic program in as many unknowns as neurons, by accelerated projected gradient
        steps: it brings newcomers to their place at the price of one matrix product.
        """
        if len(self) == 0:
            return self
        dtype = problem.A.dtype
        sizes = np.linalg.norm(self.S, axis=0)
        directions, U = (self.S / sizes).astype(dtype), self.U.astype(dtype)
        H = problem.hidden(directions)
        linear = np.einsum("kj,kj->j", H, problem.target @ U.T) - problem.beta
        H = problem.without_bias(H)
        gram = (H.T @ H) * (U @ U.T)
        sizes = improved_sizes(gram, linear, sizes.astype(dtype))
        resized = replace(self, S=directions.astype(self.S.dtype) * sizes.astype(self.S.dtype))
        return resized.take(np.flatnonzero(sizes > _NO_SIZE * sizes.max(initial=0)))

    def _keys(self) -> list[tuple[bytes, bytes]]:
        packed = np.packbits(self.patterns, axis=0).T
        rounded = np.round(self.U, 3) + 0.0
        return [(p.tobytes(), u.tobytes()) for p, u in zip(packed, rounded, strict=True)]
