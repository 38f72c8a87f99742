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

from skcvxbn import in_place
from skcvxbn.arrays import (
    Array,
    Rows,
    astype,
    inner_products,
    lengths,
    like,
    namespace,
    numpy_dtype,
    positive_part,
    take,
    to_numpy,
    transposed_product,
)

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

    def take(self, which: NDArray) -> Candidates:
        """Keep some of the candidates."""
        return Candidates(take(self.S, which, axis=1), take(self.U, which, axis=0), self.values[which])


def affordable_starts(A: Array, stages: Stages, effort: float = 1.0, rows: Rows = _ALL_ROWS) -> int:
    """How many starts a search of a share of the full effort may have on data of this size, at least 8."""
    n_rows, rank = rows.count(A), A.shape[1]
    n_steps = effort * _AFFORDABLE[stages] / (2.0 * n_rows * rank / _stride(n_rows, rank))
    first, last = (stage.n_outer * stage.n_inner for stage in stages)
    n_kept = stages[0].n_kept or math.inf
    n_starts = n_steps / (first + last)
    # Only so many go on to the last stage.
    return max(8, int(n_starts if n_starts <= n_kept else (n_steps - n_kept * last) / first))


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

    Returns
    -------
    Candidates
        Distinct local maxima.
    """
    S, U = _unit(S, axis=0), _unit(U, axis=1)
    stride = _stride(rows.count(A), A.shape[1])
    if stride > 1:
        found = search(*_sample(A, R, stride, rows), S, U, stages=stages, rows=rows)
        S, U, stages = found.S, found.U, _LAST_WORD
    found = Candidates(S, U, np.zeros(S.shape[1]))
    for stage in stages:
        S, U, values = _climb(A, R, found.S, found.U, stage, rows)
        found = _ordered(S, U, to_numpy(values))
        # Duplicates go before the best are kept, or those around one maximum would crowd out the rest.
        found = found.take(_distinct(found.S, found.U)[: stage.n_kept])
    return found


def _ordered(S: Array, U: Array, values: NDArray) -> Candidates:
    return Candidates(S, U, values).take(np.argsort(-values, kind="stable"))


def _stride(n_rows: int, rank: int) -> int:
    enough = max(_SAMPLE_ROWS, 16 * rank)
    return n_rows // enough if n_rows >= 4 * enough else 1


def _sample(A: Array, R: Array, stride: int, rows: Rows) -> tuple[Array, Array]:
    """Evenly spaced rows, scaled so that the columns of the sample have at most length one together."""
    every = np.arange(0, A.shape[0], stride)
    sample = take(A, every, axis=0)
    gram = to_numpy(rows.total(inner_products(sample))).astype(np.float64)
    return sample / math.sqrt(np.linalg.eigvalsh(gram)[-1]), take(R, every, axis=0)


def verified(A: Array, R: Array, candidates: Candidates, rows: Rows = _ALL_ROWS) -> Candidates:
    """Return the same candidates with values in the precision of `A`, whatever they were found in."""
    dtype = numpy_dtype(A)
    S, U = _unit(astype(candidates.S, dtype), axis=0), _unit(astype(candidates.U, dtype), axis=1)
    U, values = _evaluate(A, R, S, U, rows)
    return _ordered(S, U, to_numpy(values))


def _climb(A: Array, R: Array, S: Array, U: Array, stage: Stage, rows: Rows) -> tuple[Array, ...]:
    """Convex-concave steps from each start; a start that they do not improve on stays as it is."""
    xp, dtype = namespace(A), numpy_dtype(A)
    start_S, start_U, start_values = S, *_evaluate(A, R, S, U, rows)
    V = R @ U.T
    lower = positive_part(-V)
    hidden = A @ S
    multipliers = lower * astype(hidden > 0, dtype)
    widths = stage.width / math.sqrt(rows.count(A)) * np.resize(_SHARES, S.shape[1])
    for sharpening in np.geomspace(1, _SHARPENING, stage.n_outer).tolist():
        slope = _slope(hidden, widths / sharpening)
        gradient = rows.total(transposed_product(A, positive_part(V) * slope))
        multipliers, direction = _box_least_squares(A, gradient, lower, multipliers, stage.n_inner, rows)
        new_S = _unit(direction, axis=0, zeros=S)
        moved, S = float(xp.max(xp.abs(new_S - S))), new_S
        if moved < _STANDSTILL:
            break
        hidden = A @ S
        if R.shape[1] > 1:
            U = _output_directions(R, hidden, U, rows)
            V = R @ U.T
            lower = positive_part(-V)
            multipliers = xp.minimum(multipliers, lower)
    U, values = _evaluate(A, R, S, U, rows)
    worse = values < start_values
    return (
        xp.where(worse, start_S, S),
        xp.where(worse[:, None], start_U, U),
        xp.maximum(values, start_values),
    )


def _slope(hidden: Array, widths: NDArray) -> Array:
    """Slope of the ReLU with its kink rounded over ``[-width, width]``, by columns."""
    if not widths.any():
        return astype(hidden > 0, numpy_dtype(hidden))
    slope = hidden * like((0.5 / np.maximum(widths, _SHARP)).astype(numpy_dtype(hidden)), hidden)
    slope += 0.5
    return in_place.clip(slope, 1.0, out=slope)


def _evaluate(A: Array, R: Array, S: Array, U: Array, rows: Rows) -> tuple[Array, Array]:
    """Best output directions and the values there; with one output the sign of `U` is kept."""
    hidden = A @ S
    if R.shape[1] > 1:
        U = _output_directions(R, hidden, U, rows)
    return U, rows.total(namespace(A).sum(positive_part(hidden) * (R @ U.T), axis=0))


def _output_directions(R: Array, hidden: Array, U: Array, rows: Rows) -> Array:
    return _unit(rows.total((R.T @ positive_part(hidden)).T), axis=1, zeros=U)


def _box_least_squares(
    A: Array, target: Array, upper: Array, start: Array, n_iter: int, rows: Rows
) -> tuple[Array, Array]:
    """Accelerated projected gradient for ``min ||target - A^T x||`` over ``0 <= x <= upper``, by columns."""
    x, extrapolated, momentum = start + 0.0, start, 1.0
    for _ in range(n_iter):
        new = A @ (target - rows.total(transposed_product(A, extrapolated)))
        new += extrapolated
        in_place.clip(new, upper, out=new)
        new_momentum = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        # The old point is not needed again: its memory takes the extrapolated one.
        in_place.subtract(new, x, out=x)
        x *= (momentum - 1) / new_momentum
        x += new
        x, extrapolated, momentum = new, x, new_momentum
    return x, target - rows.total(transposed_product(A, x))


def _distinct(S: Array, U: Array) -> NDArray:
    """Indices of columns that differ from every earlier one, in hidden or in output direction."""
    # In two or three dimensions maxima on neighbouring kinks can lie this close together; in more, the
    # room goes to points that are apart.
    cosine = 1 - 1e-6 if S.shape[0] <= 3 else 0.9998
    similar = to_numpy(namespace(S).minimum(S.T @ S, U @ U.T) > cosine)
    keep: list[int] = []
    dropped = np.zeros(len(similar), dtype=bool)
    for i in range(len(similar)):
        if not dropped[i]:
            keep.append(i)
            dropped |= similar[i]
    return np.array(keep, dtype=int)


def _unit(M: Array, axis: int, zeros: Array | None = None) -> Array:
    """Columns or rows of length one; zeros are those of another matrix, or stay."""
    xp, norm = namespace(M), lengths(M, axis=axis)
    norm = norm[None, :] if axis == 0 else norm[:, None]
    unit = M / xp.where(norm > 0, norm, 1.0)
    return unit if zeros is None else xp.where(norm > 0, unit, zeros)
