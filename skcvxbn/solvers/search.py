"""The search for violated dual constraints: maximise ``||R^T (A s)_+||`` over unit ``s``.

From random points, from those found before and from around them the way goes up in stages: by gradients on
rounded kinks (`ascent`), and to the top by Newton's method while these become sharp (`newton_path`). Between
stages points around one maximum, and those that will not come to matter, are left out.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from skcvxbn.arrays import Array, Rows, astype, concat, numpy_dtype, take, to_numpy
from skcvxbn.solvers.ascent import Rounded
from skcvxbn.solvers.landscape import Landscape, unit
from skcvxbn.solvers.newton_path import Newton

Stages = tuple[Rounded | Newton, ...]

# Kinks that are narrow from the start, and sharp in the end.
_TO_THE_TOP = (0.01, 0.003, 0.001, 0.0003, 0.0001)
QUICK: Stages = (Rounded((0.3, 0.05), 8, 96), Rounded((0.01,), 8, 48), Newton(_TO_THE_TOP, 3, n_best=24))
# The same without its dearest part, for a slightly lower maximum.
BRIEF: Stages = QUICK[:-1]
THOROUGH: Stages = (
    Rounded((0.3, 0.05), 10, 192),
    Rounded((0.01,), 10, 96),
    Newton(_TO_THE_TOP, 4, n_best=48),
)
# Wide kinks lead most starts to the widest maxima; these find the others.
NARROW: Stages = (Newton((0.03, *_TO_THE_TOP), 4),)
# As many maxima as there are. Starts are given up early: one that will end high is rarely among the low ones
# when kinks are still wide.
BROAD: Stages = (Rounded((0.3, 0.1), 8, share=0.9), Rounded((0.03,), 8, share=0.95))
# What is known to be near a maximum, and what a broad search has led near one.
NEARBY: Stages = (Newton((0.03, *_TO_THE_TOP), 3, n_best=600),)
TOPS: Stages = (Newton((0.03, *_TO_THE_TOP), 4, n_best=2000),)
# The last digits of what single precision has found.
FINISH: Stages = (Newton((0.0003, 0.0001, 0.00003, 0.00001), 2, n_best=16),)
# The last stage takes no more than this share of what a search may cost.
_LAST_SHARE, _FEWEST_LAST = 0.5, 8
# Evaluations of the rows that a search may cost, in multiplications.
_AFFORDABLE: dict[Stages, float] = {
    QUICK: 2e9,
    BRIEF: 2e9,
    THOROUGH: 4e9,
    NARROW: 8e9,
    BROAD: 8e9,
    NEARBY: 1e11,
    TOPS: 5e10,
    FINISH: 1e10,
}
# Starts of a search, at least, at most, and how many times that a quick one with so few may cost.
_FEWEST, _MOST, _DEAREST = 8, 2**20, 15.0
# Share of the starts of a broad search that is left after each stage, roughly.
_LEFT = 0.5
# Points that are compared together.
_TOGETHER = 256
# Angles, roughly, of starts near a known direction.
_ANGLES = (0.2, 0.4)
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

    def astype(self, dtype: DTypeLike) -> Candidates:
        """Return the directions in another precision."""
        return Candidates(astype(self.S, dtype), astype(self.U, dtype), self.values)

    def take(self, which: NDArray) -> Candidates:
        """Keep some of the candidates."""
        return Candidates(take(self.S, which, axis=1), take(self.U, which, axis=0), self.values[which])


def affordable_starts(A: Array, stages: Stages, effort: float = 1.0, rows: Rows = _ALL_ROWS) -> int:
    """How many starts a search of a share of the full effort may have on data of this size, at least 8."""
    return starts_for(effort * _AFFORDABLE[stages], A, stages, rows)


def quick_stages(A: Array, rows: Rows = _ALL_ROWS) -> Stages:
    """Stages of a quick search of data of this size."""
    shape = rows.count(A), A.shape[1]
    return QUICK if _work(_FEWEST, QUICK, shape) <= _DEAREST * _AFFORDABLE[QUICK] else BRIEF


def starts_for(work: float, A: Array, stages: Stages, rows: Rows = _ALL_ROWS) -> int:
    """How many starts a search of about so many multiplications has, at least 8."""
    shape = rows.count(A), A.shape[1]
    n_starts = bisect_right(range(_MOST), work, key=lambda n_starts: _work(n_starts, stages, shape)) - 1
    return max(_FEWEST, n_starts)


def _work(n_starts: int, stages: Stages, shape: tuple[int, int]) -> float:
    """Multiplications of a search from so many starts."""
    evaluations, left = 0.0, float(n_starts)
    for stage in _fitted(stages, shape):
        evaluations += stage.work(left, shape)
        left = _LEFT * left if stage.n_kept is None else min(left, stage.n_kept)
    return 2.0 * shape[0] * shape[1] * evaluations


def _fitted(stages: Stages, shape: tuple[int, int]) -> Stages:
    """Return the stages for data of this shape: a path to the top only for few points, where it is dear."""
    most = _LAST_SHARE * _AFFORDABLE.get(stages, math.inf) / (2.0 * shape[0] * shape[1])
    return tuple(stage.limited(most, _FEWEST_LAST, shape) for stage in stages)


def random_starts(
    rank: int, n_outputs: int, n_starts: int, rng: np.random.RandomState
) -> tuple[NDArray, NDArray]:
    """Uniform hidden and output directions; with one output, both signs of each hidden direction."""
    S = rng.standard_normal((rank, n_starts))
    if n_outputs == 1:
        return np.hstack([S, S]), np.repeat([[1.0], [-1.0]], n_starts, axis=0)
    return S, rng.standard_normal((n_starts, n_outputs))


def starts_near(S: NDArray, U: NDArray, n_starts: int, rng: np.random.RandomState) -> tuple[NDArray, NDArray]:
    """So many starts around unit directions, by turns: a neuron leaves narrow maxima next to it."""
    which = np.arange(n_starts if S.shape[1] else 0) % max(S.shape[1], 1)
    noise = rng.standard_normal((len(S), len(which))) / np.sqrt(len(S))
    return S[:, which] + np.resize(_ANGLES, len(which)) * noise, U[which]


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
    stages : tuple of Rounded and Sharp
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
    landscape = Landscape(A, R, rows)
    found = Candidates(unit(S, axis=0), unit(U, axis=1), np.zeros(S.shape[1]))
    for stage in _fitted(stages, (rows.count(A), A.shape[1])):
        if len(found.values) == 0:
            break
        found = _climbed(landscape, found, stage)
        if stage.share:
            found = found.take(found.values >= stage.share * max(found.largest, enough))
        # Duplicates go before the best are kept, or those around one maximum would crowd out the rest.
        found = found.take(_distinct(found.S, found.U, stage.n_kept))
    return found


def _climbed(landscape: Landscape, found: Candidates, stage: Rounded | Newton) -> Candidates:
    """Let the candidates climb, or the best of them, and order them anew."""
    order = np.arange(len(found.values))
    n_climbing = len(order) if stage.n_best is None else stage.n_best
    climbing, others = found.take(order[:n_climbing]), found.take(order[n_climbing:])
    S, U, values = stage.climb(landscape, climbing.S, climbing.U)
    S, U = concat([S, others.S], axis=1), concat([U, others.U], axis=0)
    return _ordered(S, U, np.concatenate([to_numpy(values), others.values]))


def _ordered(S: Array, U: Array, values: NDArray) -> Candidates:
    return Candidates(S, U, values).take(np.argsort(-values, kind="stable"))


def verified(A: Array, R: Array, candidates: Candidates, rows: Rows = _ALL_ROWS) -> Candidates:
    """Return the same candidates with values in the precision of `A`, whatever they were found in."""
    dtype = numpy_dtype(A)
    S, U = unit(astype(candidates.S, dtype), axis=0), unit(astype(candidates.U, dtype), axis=1)
    U, values = Landscape(A, R, rows).evaluate(S, U)
    return _ordered(S, U, to_numpy(values))


def _distinct(S: Array, U: Array, most: int | None = None) -> NDArray:
    """First columns that differ from every earlier one, in hidden or in output direction."""
    # In two or three dimensions maxima on neighbouring kinks can lie this close together; in more, the
    # room goes to points that are apart.
    return _apart(S, U, 1 - 1e-6 if S.shape[0] <= 3 else 0.9998, most)


def _apart(S: Array, U: Array, cosine: float, most: int | None = None) -> NDArray:
    kept: list[int] = []
    n_points, U = S.shape[1], to_numpy(U)
    most = n_points if most is None else most
    # A few at a time with those kept: all with all would be more than memory has room for.
    for start in range(0, n_points, _TOGETHER):
        block = np.arange(start, min(start + _TOGETHER, n_points))
        others = np.concatenate([np.array(kept, dtype=int), block])
        similar = _similar(S, U, others, block, cosine)
        new = similar[len(kept) :]
        dropped = np.any(similar[: len(kept)], axis=0, keepdims=True)[0]
        for i in range(len(block)):
            if not dropped[i]:
                kept.append(start + i)
                dropped |= new[i]
        if len(kept) >= most:
            break
    return np.array(kept[:most], dtype=int)


def _similar(S: Array, U: NDArray, others: NDArray, block: NDArray, cosine: float) -> NDArray:
    similar = to_numpy(take(S, others, axis=1).T @ take(S, block, axis=1) > cosine)
    # Few are: only for these the output directions are compared.
    first, second = np.divmod(np.flatnonzero(similar), len(block))
    similar[first, second] = (U[others[first]] * U[block[second]]).sum(axis=1) > cosine
    return similar
