"""Projections on the cones ``{s : G_i s >= 0}`` of arrangements, ``G_i = (2 D_i - I) A``.

For a target ``t`` the projection is ``t + G_i^T mu`` for the ``mu >= 0`` that makes it shortest, and its
length is the maximum of ``t^T s`` over unit ``s`` of the cone (or zero). Every ``mu >= 0`` gives a vector too
long, never one too short: a bound of that maximum, valid however far ``mu`` is from optimal. Only about as
many rows as ``A`` has columns carry a multiplier, so nonnegative least squares is solved over few rows, and
those that turn out violated join.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skcvxbn.solvers.output_weights import nonnegative_least_squares

# A row is violated beyond this share of the length of its target.
_FEASIBLE = 1e-12
_MAX_PASSES = 100


class ConeProjector:
    """Projections on the cones of given arrangements, for targets that change little by little.

    Parameters
    ----------
    A : ndarray of shape (n_samples, rank + 1)
        Whitened rows.
    patterns : ndarray of bool, shape (n_samples, n_cones)
        The arrangement of every cone.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.solvers.cone_projection import ConeProjector
    >>> projector = ConeProjector(np.eye(2), np.array([[True], [True]]))
    >>> projector.project(np.array([[3.0], [-4.0]]), np.array([0]))
    array([[3.],
           [0.]])
    """

    def __init__(self, A: NDArray, patterns: NDArray) -> None:
        self._A, self._patterns = A, patterns
        # The rows that held the last projection on a cone, and how strongly: a start for the next.
        self._rows = np.zeros((patterns.shape[1], A.shape[1]), dtype=np.intp)
        self._forces = np.zeros((patterns.shape[1], A.shape[1]))

    def take(self, cones: NDArray) -> ConeProjector:
        """Keep some of the cones, with what is remembered of them."""
        kept = ConeProjector(self._A, self._patterns[:, cones])
        kept._rows, kept._forces = self._rows[cones], self._forces[cones]
        return kept

    def with_(self, other: ConeProjector) -> ConeProjector:
        """Add other cones, with what is remembered of them."""
        both = ConeProjector(self._A, np.hstack([self._patterns, other._patterns]))
        both._rows = np.vstack([self._rows, other._rows])
        both._forces = np.vstack([self._forces, other._forces])
        return both

    def project(
        self, targets: NDArray, cones: NDArray, level: float = 0.0, max_passes: int = _MAX_PASSES
    ) -> NDArray:
        """Project targets on cones, exactly where the result is longer than `level`.

        Parameters
        ----------
        targets : ndarray of shape (rank + 1, n_targets)
            The vectors to project.
        cones : ndarray of int, shape (n_targets,)
            The cone of each; no cone twice.
        level : float
            A projection that is known to be no longer than this is not improved further: what is returned
            for it is too long, and need not lie in the cone.
        max_passes : int
            How often violated rows may join. With too few, what is returned is too long.

        Returns
        -------
        ndarray of shape (rank + 1, n_targets)
            The projections.
        """
        S = self._by_last_multipliers(targets, cones)
        lengths = np.linalg.norm(targets, axis=0)
        undecided = np.flatnonzero(np.linalg.norm(S, axis=0) > level)
        rows = [self._rows[cone][self._forces[cone] > 0] for cone in cones[undecided]]
        for n_pass in range(max_passes):
            if len(undecided) == 0:
                break
            margins = self._A @ S[:, undecided]
            np.negative(margins, where=~self._patterns[:, cones[undecided]], out=margins)
            worst = self._most_violated(margins)
            remaining = []
            for column, j in enumerate(undecided):
                new = worst[:, column]
                new = new[margins[new, column] < -_FEASIBLE * lengths[j]]
                # A multiple of the last multipliers is feasible perhaps, but not the projection.
                if len(new) or (n_pass == 0 and len(rows[column])):
                    rows[column] = np.union1d(rows[column], new)
                    S[:, j], rows[column] = self._over_rows(targets[:, j], cones[j], rows[column])
                    if np.linalg.norm(S[:, j]) > level:
                        remaining.append(column)
            undecided, rows = undecided[remaining], [rows[column] for column in remaining]
        return S

    def _most_violated(self, margins: NDArray) -> NDArray:
        count = min(self._A.shape[1], len(margins))
        return np.argpartition(margins, count - 1, axis=0)[:count]

    def _by_last_multipliers(self, targets: NDArray, cones: NDArray) -> NDArray:
        """The shortest vector that a multiple of the last multipliers gives."""
        rows, forces = self._rows[cones], self._forces[cones]
        orientation = np.where(self._patterns[rows, cones[:, None]], 1.0, -1.0)
        push = np.einsum("jk,jkq->qj", forces * orientation, self._A[rows])
        squared = np.maximum((push**2).sum(axis=0), np.finfo(float).tiny)
        return targets + np.maximum(-(push * targets).sum(axis=0) / squared, 0) * push

    def _over_rows(self, target: NDArray, cone: int, rows: NDArray) -> tuple[NDArray, NDArray]:
        """Project on the cone of some rows only; of these, return those that hold the projection."""
        orientation = np.where(self._patterns[rows, cone], 1.0, -1.0)
        G = self._A[rows] * orientation[:, None]
        multipliers = nonnegative_least_squares(-G.T, target)
        holding = np.flatnonzero(multipliers > 0)
        kept = holding[np.argsort(-multipliers[holding], kind="stable")[: self._rows.shape[1]]]
        self._rows[cone], self._forces[cone] = 0, 0.0
        self._rows[cone, : len(kept)], self._forces[cone, : len(kept)] = rows[kept], multipliers[kept]
        return target + G.T @ multipliers, rows[holding]
