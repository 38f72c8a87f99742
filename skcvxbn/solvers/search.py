"""The search for violated dual constraints: maximise ``||R^T (A s)_+||`` over unit ``s``.

From random points and those found before, `climb` goes up in stages; between them points around one
maximum, and those that will not come to matter, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skcvxbn.arrays import Array, Rows, astype, concat, namespace, numpy_dtype, take, to_numpy
from skcvxbn.solvers.climb import Landscape, Stage, unit

Stages = tuple[Stage, ...]

QUICK = (Stage(20, 8, 48, 0.3), Stage(8, 30, None, 0.0))
# Half of that, for a slightly lower maximum.
BRIEF = (Stage(16, 6, 48, 0.3), Stage(6, 10, None, 0.0))
THOROUGH = (Stage(40, 12, 96, 0.3), Stage(20, 30, None, 0.0))
# Rounded landscapes lead most starts to the widest maxima; this finds the others.
SHARP = (Stage(10, 30, 96, 0.0), Stage(60, 30, None, 0.0))
# As many maxima as there are. Starts are given up early: one that will end high is rarely among the low ones
# after ten steps.
BROAD = (Stage(10, 12, None, 0.3, 0.8), Stage(10, 12, None, 0.0, 0.9), Stage(10, 30, None, 0.0))
# What is known to be near a maximum takes the last stage only.
NEARBY = BROAD[-1:]
# Multiplications a search may cost.
_AFFORDABLE: dict[Stages, float] = {QUICK: 2e9, BRIEF: 2e9, THOROUGH: 4e9, SHARP: 4e9, BROAD: 8e9}
# Starts of a search, at least, and how many times that a quick one with so few may cost.
_FEWEST, _DEAREST = 8, 10.0
# Share of the starts of a broad search that is left after each stage, roughly.
_LEFT = 0.5
_ALL_ROWS = Rows()


@dataclass(frozen=True)
class Candidates:
    """Neurons found by a search, the most violated first.

    Attributes
    ----------
    S : array of shape (rank + 1, n_candidates)
        Unit hidden directions.
    U : array of shape (n_candidates, n_outputs)
        Unit output directions.
    values : ndarray of shape (n_candidates,)
        ``||R^T (A s)_+||``, in decreasing order, on the host.
    """

    S: Array
    U: Array
    values: NDArray

    @property
    def largest(self) -> float:
        """The largest value found, a lower bound of the maximum over all ``s``."""
        return float(self.values[0]) if len(self.values) else 0.0

    def joined(self, others: Candidates) -> Candidates:
        """Candidates of both, those that are alike only once."""
        S, U = concat([self.S, others.S], axis=1), concat([self.U, others.U], axis=0)
        both = _ordered(S, U, np.concatenate([self.values, others.values]))
        return both.take(_distinct(both.S, both.U))

    def apart(self, cosine: float) -> Candidates:
        """Leave out candidates closer than this to a better one, in hidden and in output direction."""
        return self.take(_apart(self.S, self.U, cosine))

    def take(self, which: NDArray) -> Candidates:
        """Keep some of the candidates."""
        return Candidates(take(self.S, which, axis=1), take(self.U, which, axis=0), self.values[which])


def affordable_starts(A: Array, stages: Stages, effort: float = 1.0, rows: Rows = _ALL_ROWS) -> int:
    """How many starts a search of a share of the full effort may have on data of this size, at least 8."""
    return starts_for(effort * _AFFORDABLE[stages], A, stages, rows)


def quick_stages(A: Array, rows: Rows = _ALL_ROWS) -> Stages:
    """Stages of a quick search of data of this size."""
    n_rows, rank = rows.count(A), A.shape[1]
    n_steps = sum(stage.n_outer * stage.n_inner for stage in QUICK)
    return QUICK if _FEWEST * n_steps * 2.0 * n_rows * rank <= _DEAREST * _AFFORDABLE[QUICK] else BRIEF


def starts_for(work: float, A: Array, stages: Stages, rows: Rows = _ALL_ROWS) -> int:
    """How many starts a search of about so many multiplications has, at least 8."""
    n_rows, rank = rows.count(A), A.shape[1]
    n_steps = work / (2.0 * n_rows * rank)
    # Of some only so many go on to the last stage, of others a share to each.
    n_kept = stages[0].n_kept
    steps = [stage.n_outer * stage.n_inner for stage in stages]
    if n_kept is None:
        return max(_FEWEST, int(n_steps / sum(_LEFT**k * n for k, n in enumerate(steps))))
    n_starts = n_steps / sum(steps)
    return max(_FEWEST, int(n_starts if n_starts <= n_kept else (n_steps - n_kept * steps[1]) / steps[0]))


def random_starts(
    rank: int, n_outputs: int, n_starts: int, rng: np.random.RandomState
) -> tuple[NDArray, NDArray]:
    """Uniform hidden and output directions; with one output, both signs of each hidden direction."""
    S = rng.standard_normal((rank, n_starts))
    if n_outputs == 1:
        return np.hstack([S, S]), np.repeat([[1.0], [-1.0]], n_starts, axis=0)
    return S, rng.standard_normal((n_starts, n_outputs))


def search(
    A: Array,
    R: Array,
    S: Array,
    U: Array,
    *,
    stages: Stages = QUICK,
    rows: Rows = _ALL_ROWS,
    enough: float = 0.0,
) -> Candidates:
    """Local maxima of ``||R^T (A s)_+||`` over unit ``s``, climbed from given starts.

    Parameters
    ----------
    A : array of shape (n_samples, rank + 1)
        Whitened rows.
    R : array of shape (n_samples, n_outputs)
        The residual, or any dual point.
    S, U : array of shape (rank + 1, n_starts) and (n_starts, n_outputs)
        Starting hidden and output directions, of any length.
    stages : tuple of Stage
        Effort: each stage goes on from the best points of the one before.
    rows : Rows
        How to sum over the rows.
    enough : float
        A value that matters: the largest that is known, or the weight decay.

    Returns
    -------
    Candidates
        Distinct local maxima.
    """
    S, U = unit(S, axis=0), unit(U, axis=1)
    landscape = Landscape(A, R, rows)
    found = Candidates(S, U, np.zeros(S.shape[1]))
    for stage in stages:
        if len(found.values) == 0:
            break
        S, U, values = landscape.climb(found.S, found.U, stage)
        found = _ordered(S, U, to_numpy(values))
        if stage.share:
            found = found.take(found.values >= stage.share * max(found.largest, enough))
        # Duplicates go before the best are kept, or those around one maximum would crowd out the rest.
        found = found.take(_distinct(found.S, found.U)[: stage.n_kept])
    return found


def _ordered(S: Array, U: Array, values: NDArray) -> Candidates:
    return Candidates(S, U, values).take(np.argsort(-values, kind="stable"))


def verified(A: Array, R: Array, candidates: Candidates, rows: Rows = _ALL_ROWS) -> Candidates:
    """Return the same candidates with values in the precision of `A`, whatever they were found in."""
    dtype = numpy_dtype(A)
    S, U = unit(astype(candidates.S, dtype), axis=0), unit(astype(candidates.U, dtype), axis=1)
    U, values = Landscape(A, R, rows).evaluate(S, U)
    return _ordered(S, U, to_numpy(values))


def _distinct(S: Array, U: Array) -> NDArray:
    """Indices of columns that differ from every earlier one, in hidden or in output direction."""
    # In two or three dimensions maxima on neighbouring kinks can lie this close together; in more, the
    # room goes to points that are apart.
    return _apart(S, U, 1 - 1e-6 if S.shape[0] <= 3 else 0.9998)


def _apart(S: Array, U: Array, cosine: float) -> NDArray:
    similar = to_numpy(namespace(S).minimum(S.T @ S, U @ U.T) > cosine)
    keep: list[int] = []
    dropped = np.zeros(len(similar), dtype=bool)
    for i in range(len(similar)):
        if not dropped[i]:
            keep.append(i)
            dropped |= similar[i]
    return np.array(keep, dtype=int)
