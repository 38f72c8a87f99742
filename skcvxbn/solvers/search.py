"""The search for violated dual constraints: maximise ``||R^T (A s)_+||`` over unit ``s``.

For one output direction ``v = R u`` the function ``v^T (A s)_+`` is a difference of convex functions of
``s``, whose maximisers often lie on hyperplanes ``a_k^T s = 0`` with ``v_k < 0``. The convex-concave
procedure linearises the convex part (rows with ``v_k > 0``) at the current ``s`` and maximises the rest
exactly. By duality that maximum over the unit ball is

    min || g - A^T lambda ||   over  0 <= lambda_k <= (-v_k)_+ ,      g = A^T (1[A s > 0] v_+),

and the maximiser is ``g - A^T lambda*``, normalised. Since ``A^T A = I`` the box-constrained least
squares problem has Lipschitz constant one, and many starts are solved at once as columns of one matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_STANDSTILL = 1e-10


class Stage(NamedTuple):
    """Effort of one part of a search.

    Attributes
    ----------
    n_outer : int
        Convex-concave steps.
    n_inner : int
        Projected gradient steps in each. Many steps solved halfway find more than few solved exactly:
        an exact step stops at the first fixed point.
    n_kept : int or None
        How many of the best points go on to the next stage.
    width : float
        Half width, in units of the typical ``|a_k^T s|``, over which the kinks of the convex part are
        rounded in the first step; it falls to a thirtieth in the last. In a rounded landscape small maxima
        vanish and more starts end in the wide ones, but narrow ones vanish too: a fourth of the starts
        have this width, the others a third, a tenth and none of it.
    """

    n_outer: int
    n_inner: int
    n_kept: int | None
    width: float


Stages = tuple[Stage, ...]

QUICK = (Stage(20, 8, 48, 0.3), Stage(8, 30, None, 0.0))
THOROUGH = (Stage(40, 12, 96, 0.3), Stage(20, 30, None, 0.0))
# Rounded landscapes lead most starts to the widest maxima; this finds the others.
SHARP = (Stage(10, 30, 96, 0.0), Stage(60, 30, None, 0.0))
# Multiplications a search may cost.
_AFFORDABLE: dict[Stages, float] = {QUICK: 2e9, THOROUGH: 4e9, SHARP: 4e9}
_SHARPENING = 30.0
_SHARES = (1.0, 0.0, 0.3, 0.1)
_SHARP = 1e-12
# On many rows a sample of about this many is climbed on; all of them have the last word.
_SAMPLE_ROWS = 2**13
_LAST_WORD = (Stage(4, 10, None, 0.0),)


@dataclass(frozen=True)
class Candidates:
    """Neurons found by a search, the most violated first.

    Attributes
    ----------
    S : ndarray of shape (rank + 1, n_candidates)
        Unit hidden directions.
    U : ndarray of shape (n_candidates, n_outputs)
        Unit output directions.
    values : ndarray of shape (n_candidates,)
        ``||R^T (A s)_+||``, in decreasing order.
    """

    S: NDArray
    U: NDArray
    values: NDArray

    @property
    def largest(self) -> float:
        """The largest value found, a lower bound of the maximum over all ``s``."""
        return float(self.values[0]) if len(self.values) else 0.0

    def take(self, which: NDArray) -> Candidates:
        """Keep some of the candidates."""
        return Candidates(self.S[:, which], self.U[which], self.values[which])


def affordable_starts(A: NDArray, stages: Stages, effort: float = 1.0) -> int:
    """How many starts a search of a share of the full effort may have on data of this size, at least 8."""
    climbed = A.size / _stride(A)
    work_per_start = 2.0 * climbed * sum(stage.n_outer * stage.n_inner for stage in stages)
    return max(8, int(effort * _AFFORDABLE[stages] / work_per_start))


def random_starts(
    rank: int, n_outputs: int, n_starts: int, rng: np.random.RandomState
) -> tuple[NDArray, NDArray]:
    """Uniform hidden and output directions; with one output, both signs of each hidden direction."""
    S = rng.standard_normal((rank, n_starts))
    if n_outputs == 1:
        return np.hstack([S, S]), np.repeat([[1.0], [-1.0]], n_starts, axis=0)
    return S, rng.standard_normal((n_starts, n_outputs))


def search(
    A: NDArray,
    R: NDArray,
    S: NDArray,
    U: NDArray,
    *,
    stages: Stages = QUICK,
) -> Candidates:
    """Local maxima of ``||R^T (A s)_+||`` over unit ``s``, climbed from given starts.

    Parameters
    ----------
    A : ndarray of shape (n_samples, rank + 1)
        Whitened rows.
    R : ndarray of shape (n_samples, n_outputs)
        The residual, or any dual point.
    S, U : ndarray of shape (rank + 1, n_starts) and (n_starts, n_outputs)
        Starting hidden and output directions, of any length.
    stages : tuple of Stage
        Effort: each stage goes on from the best points of the one before.

    Returns
    -------
    Candidates
        Distinct local maxima.
    """
    S, U = _unit(S, axis=0), _unit(U, axis=1)
    if _stride(A) > 1:
        sample, sampled_R = _sample(A, R)
        found = search(sample, sampled_R, S, U, stages=stages)
        S, U, stages = found.S, found.U, _LAST_WORD
    values = np.zeros(S.shape[1])
    for stage in stages:
        S, U, values = _climb(A, R, S, U, stage)
        # Duplicates go before the best are kept, or those around one maximum would crowd out the rest.
        order = np.argsort(-values, kind="stable")
        order = order[_distinct(S[:, order], U[order])][: stage.n_kept]
        S, U, values = S[:, order], U[order], values[order]
    return Candidates(S, U, values)


def _stride(A: NDArray) -> int:
    rows = max(_SAMPLE_ROWS, 16 * A.shape[1])
    return len(A) // rows if len(A) >= 4 * rows else 1


def _sample(A: NDArray, R: NDArray) -> tuple[NDArray, NDArray]:
    """Evenly spaced rows, scaled so that the columns of the sample have at most length one together."""
    stride = _stride(A)
    rows = np.ascontiguousarray(A[::stride])
    return rows / np.linalg.norm(rows, 2), np.ascontiguousarray(R[::stride])


def verified(A: NDArray, R: NDArray, candidates: Candidates) -> Candidates:
    """Return the same candidates with values in the precision of `A`, whatever they were found in."""
    S, U = _unit(candidates.S.astype(A.dtype), axis=0), _unit(candidates.U.astype(A.dtype), axis=1)
    U, values = _evaluate(A, R, S, U)
    order = np.argsort(-values, kind="stable")
    return Candidates(S[:, order], U[order], values[order])


def _climb(A: NDArray, R: NDArray, S: NDArray, U: NDArray, stage: Stage) -> tuple[NDArray, ...]:
    """Convex-concave steps from each start; a start that they do not improve on stays as it is."""
    start_S, start_U, start_values = S, *_evaluate(A, R, S, U)
    V = R @ U.T
    lower = np.maximum(-V, 0)
    hidden = A @ S
    multipliers = lower * (hidden > 0)
    widths = stage.width / math.sqrt(len(A)) * np.resize(_SHARES, S.shape[1]).astype(A.dtype)
    for sharpening in np.geomspace(1, _SHARPENING, stage.n_outer).tolist():
        gradient = A.T @ (np.maximum(V, 0) * _slope(hidden, widths / sharpening))
        multipliers, direction = _box_least_squares(A, gradient, lower, multipliers, stage.n_inner)
        norm = np.linalg.norm(direction, axis=0)
        new_S = np.where(norm > 0, direction / np.where(norm > 0, norm, 1.0), S)
        moved, S = float(np.abs(new_S - S).max()), new_S
        if moved < _STANDSTILL:
            break
        hidden = A @ S
        if R.shape[1] > 1:
            U = _output_directions(R, hidden, U)
            V = R @ U.T
            lower = np.maximum(-V, 0)
            multipliers = np.minimum(multipliers, lower)
    U, values = _evaluate(A, R, S, U)
    worse = values < start_values
    return (
        np.where(worse, start_S, S),
        np.where(worse[:, None], start_U, U),
        np.maximum(values, start_values),
    )


def _slope(hidden: NDArray, widths: NDArray) -> NDArray:
    """Slope of the ReLU with its kink rounded over ``[-width, width]``, by columns."""
    if not widths.any():
        return hidden > 0
    slope = hidden * (0.5 / np.maximum(widths, _SHARP))
    slope += 0.5
    return np.minimum(np.maximum(slope, 0, out=slope), 1, out=slope)


def _evaluate(A: NDArray, R: NDArray, S: NDArray, U: NDArray) -> tuple[NDArray, NDArray]:
    """Best output directions and the values there; with one output the sign of `U` is kept."""
    hidden = A @ S
    if R.shape[1] > 1:
        U = _output_directions(R, hidden, U)
    return U, np.einsum("kj,kj->j", np.maximum(hidden, 0), R @ U.T)


def _output_directions(R: NDArray, hidden: NDArray, U: NDArray) -> NDArray:
    outputs = np.maximum(hidden, 0).T @ R
    norm = np.linalg.norm(outputs, axis=1, keepdims=True)
    return np.where(norm > 0, outputs / np.where(norm > 0, norm, 1.0), U)


def _box_least_squares(
    A: NDArray, target: NDArray, upper: NDArray, start: NDArray, n_iter: int
) -> tuple[NDArray, NDArray]:
    """Accelerated projected gradient for ``min ||target - A^T x||`` over ``0 <= x <= upper``, by columns."""
    x, extrapolated, momentum = start.copy(), start, 1.0
    for _ in range(n_iter):
        new = A @ (target - A.T @ extrapolated)
        new += extrapolated
        np.maximum(new, 0, out=new)
        np.minimum(new, upper, out=new)
        new_momentum = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        # The old point is not needed again: its memory takes the extrapolated one.
        np.subtract(new, x, out=x)
        x *= (momentum - 1) / new_momentum
        x += new
        x, extrapolated, momentum = new, x, new_momentum
    return x, target - A.T @ x


def _distinct(S: NDArray, U: NDArray) -> NDArray:
    """Indices of columns that differ from every earlier one, in hidden or in output direction."""
    # In two or three dimensions maxima on neighbouring kinks can lie this close together; in more, the
    # room goes to points that are apart.
    cosine = 1 - 1e-6 if len(S) <= 3 else 0.9998
    similar = np.minimum(S.T @ S, U @ U.T) > cosine
    keep: list[int] = []
    dropped = np.zeros(len(similar), dtype=bool)
    for i in range(len(similar)):
        if not dropped[i]:
            keep.append(i)
            dropped |= similar[i]
    return np.array(keep, dtype=int)


def _unit(M: NDArray, axis: int) -> NDArray:
    norm = np.linalg.norm(M, axis=axis, keepdims=True)
    return M / np.where(norm > 0, norm, 1.0)
