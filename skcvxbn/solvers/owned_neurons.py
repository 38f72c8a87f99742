"""Neurons that belong to given arrangements."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from skcvxbn.solvers.base import Problem, without_negligible
from skcvxbn.solvers.neurons import merge
from skcvxbn.solvers.output_weights import nonnegative_least_squares

# Cosines of output directions that neurons of one arrangement may be merged at, and sizes, as shares of the
# largest, below which neurons may be left out: from the boldest, the first that costs little is taken.
_COSINES = (0.5, 0.9, 0.99, 0.999, 1 - 1e-5, 1 - 1e-9)
_NEGLIGIBLE = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
# Singular values below this share of the largest are rounding.
_RANK = 1e-12
# Bounds of a common factor of the sizes of a network near the optimum, and its accuracy.
_FACTORS, _FACTOR_ACCURACY = (0.5, 2.0), 1e-10


@dataclass(frozen=True)
class OwnedNeurons:
    """Neurons of given arrangements.

    Attributes
    ----------
    S : ndarray of shape (rank + 1, n_neurons)
        Hidden directions, as long as the neuron is large.
    U : ndarray of shape (n_neurons, n_outputs)
        Unit output directions.
    owner : ndarray of int, shape (n_neurons,)
        Column of the arrangement of each.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.solvers.owned_neurons import OwnedNeurons
    >>> twice = OwnedNeurons(np.array([[3.0, 1.0]]), np.ones((2, 1)), np.array([7, 7]))
    >>> len(twice), twice.merged(1.0).S
    (2, array([[4.]]))
    """

    S: NDArray
    U: NDArray
    owner: NDArray

    @classmethod
    def none(cls, problem: Problem) -> OwnedNeurons:
        """No neuron."""
        rank, n_outputs = problem.A.shape[1], problem.n_outputs
        return cls(np.zeros((rank, 0)), np.zeros((0, n_outputs)), np.zeros(0, dtype=int))

    def __len__(self) -> int:
        """Return the number of neurons."""
        return len(self.U)

    @property
    def sizes(self) -> NDArray:
        """Lengths of the hidden directions."""
        return np.linalg.norm(self.S, axis=0)

    def take(self, which: NDArray) -> OwnedNeurons:
        """Keep some of the neurons."""
        return OwnedNeurons(self.S[:, which], self.U[which], self.owner[which])

    def with_(self, other: OwnedNeurons) -> OwnedNeurons:
        """Add other neurons."""
        return OwnedNeurons(
            np.hstack([self.S, other.S]),
            np.vstack([self.U, other.U]),
            np.concatenate([self.owner, other.owner]),
        )

    def resized(self, sizes: NDArray) -> OwnedNeurons:
        """Return the neurons with other sizes; those that get none leave."""
        used = np.flatnonzero(sizes > 0)
        kept = self.take(used)
        return replace(kept, S=kept.S / kept.sizes * sizes[used])

    def reweighted(self, V: NDArray) -> OwnedNeurons:
        """Return the neurons with other output weights, those of unit hidden directions."""
        sizes = np.linalg.norm(V, axis=1)
        resized = self.resized(sizes)
        return replace(resized, U=V[sizes > 0] / sizes[sizes > 0, None])

    def merged(self, cosine: float) -> OwnedNeurons:
        """Add up neurons of one arrangement whose output directions agree to this cosine."""
        S, U, leaders = merge(self.S, self.U, self.owner, cosine)
        return OwnedNeurons(S, U, self.owner[leaders])

    def unlike(self, others: OwnedNeurons, cosine: float) -> NDArray:
        """Find the first neurons that are not like another one, and those of `others` even less.

        Parameters
        ----------
        others : OwnedNeurons
            Neurons to differ from.
        cosine : float
            Two neurons of one arrangement are alike where that of their output directions is larger.

        Returns
        -------
        ndarray of int
            Their numbers, in order.
        """
        known: dict[int, list[NDArray]] = {}
        for owner, u in zip(others.owner, others.U, strict=True):
            known.setdefault(int(owner), []).append(u)
        kept: list[int] = []
        for j, (owner, u) in enumerate(zip(self.owner, self.U, strict=True)):
            directions = known.setdefault(int(owner), [])
            if all(u @ other <= cosine for other in directions):
                directions.append(u)
                kept.append(j)
        return np.array(kept, dtype=int)

    def rescaled(self, problem: Problem) -> OwnedNeurons:
        """Multiply all sizes by the best common factor, so that the dual point prices the network exactly."""
        F, penalty = problem.hidden(self.S) @ self.U, problem.beta * self.sizes.sum()

        def objective(factor: float) -> float:
            return problem.at(factor * F).value + factor * penalty

        factor = optimize.minimize_scalar(objective, bounds=_FACTORS, options={"xatol": _FACTOR_ACCURACY}).x
        return self.resized(factor * self.sizes) if objective(factor) < objective(1.0) else self

    def fewer(self, problem: Problem, patterns: NDArray, allowed: float) -> OwnedNeurons:
        """Merge neurons and leave some out, as far as the objective stays at most at what is allowed."""

        def cheap(network: OwnedNeurons) -> bool:
            return problem.objective(network.S, network.U) <= allowed

        network = self
        if len(network) > np.prod(problem.loss.shape):
            vertex = network._vertex(problem, patterns)
            network = vertex if cheap(vertex) else network
        trials = (network.merged(cosine) for cosine in _COSINES)
        network = next(filter(cheap, trials), network)
        masks = (without_negligible(network.S, network.U, share) for share in _NEGLIGIBLE)
        trials = (network.take(np.flatnonzero(mask)) for mask in masks)
        return next(filter(cheap, trials), network)

    def _vertex(self, problem: Problem, patterns: NDArray) -> OwnedNeurons:
        """Of all sizes with the same output and the same sum, those of a vertex.

        It has no more neurons than there are equations: outputs of all rows, and one for the sum.
        """
        hidden = patterns[:, self.owner] * (problem.A @ self.S)
        outputs = (hidden[:, None, :] * self.U.T).reshape(-1, len(self))
        # In orthonormal rows: older SciPy forms normal equations, whose rounding would spoil any others.
        _, values, equations = np.linalg.svd(np.vstack([outputs, self.sizes]), full_matrices=False)
        equations = equations[values > _RANK * values[0]]
        return self.resized(self.sizes * nonnegative_least_squares(equations, equations.sum(axis=1)))
