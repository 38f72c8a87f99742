"""Newton's method on kinks that are rounded ever less: from near a maximum onto its kinks.

For one output direction, ``v = R u``, a maximum over unit ``s`` of the value on kinks rounded over
``|a_k^T s| <= width`` is where ``s`` has the direction of the gradient ``g``. Rows with ``v_k < 0`` within
the width bend the value down there, by

    C = sum_k |v_k| / (2 width) a_k a_k^T / (s^T g) ,

and Newton's step solves ``(I + C) step = g / (s^T g) - s``. Rows with ``v_k > 0`` bend it up: no maximum lies
on their kinks, and without them every step leads up, to begin with. Steps that come out lower are damped.

When the width falls to a share of itself, kinks keep their multipliers, ``|v_k| (1 + a_k^T s / width) / 2``,
if ``a_k^T s`` falls to that share too. So ``s`` is first shifted by the solution of

    (I + C) shift = -(1 - share) C s ,

without which all is lost with every new width: few kinks are within it, and steps lead away over the others.
The last shift, to a share of zero, ends on the kinks themselves.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcvxbn.arrays import (
    Array,
    identity,
    like,
    namespace,
    numpy_dtype,
    positive_part,
    row_blocks,
    take,
    to_numpy,
    zeros,
)
from skcvxbn.solvers.landscape import Landscape, Points, better, unit

# Damping after a step that came out lower, how much more after the next, and below which it ends.
_DAMPED, _MORE, _LEAST = 4.0, 4.0, 1.0
# The value may fall by this share, the precision of single numbers.
_TOLERATED = 1e-7
# The curvature of a value that is small, or negative, is that at this share of the gradient's length.
_SMALL = 0.1
# Evaluations that a step takes as long as, without its curvature.
_PRICE = 4.0
# Numbers of a table of rows within the width.
_TABLE = 2**22


class Newton(NamedTuple):
    """A part of a search that leads points near a maximum onto its kinks.

    Attributes
    ----------
    widths : tuple of float
        Half widths of the rounded kinks, one after the other, in units of the typical ``|a_k^T s|``. Every
        other point begins with the second: wide kinks lead away from narrow maxima.
    n_steps : int
        Steps on each.
    n_kept : int or None
        How many of the best points go on.
    n_best : int or None
        How many of the best points climb; the others go on as they are.
    share : float
        Points worth less than this share of the largest go no further.
    """

    widths: tuple[float, ...]
    n_steps: int
    n_kept: int | None = None
    n_best: int | None = None
    share: float = 0.0

    def work(self, n_starts: float, shape: tuple[int, int]) -> float:
        """Evaluations of so many starts on so many rows and directions, or what takes as long."""
        n_climbing = n_starts if self.n_best is None else min(n_starts, self.n_best)
        (n_rows, rank), evaluations = shape, 0.0
        for width in self.widths:
            n_within = min(n_rows, rank + width * n_rows)
            curvature = (n_within * rank**2 + rank**3 / 3) / (2.0 * n_rows * rank)
            evaluations += (self.n_steps + 1) * (_PRICE + curvature)
        return n_climbing * evaluations

    def limited(self, most: float, fewest: int, shape: tuple[int, int]) -> Newton:
        """Return the stage for fewer points, if it would take more evaluations than allowed."""
        if self.n_best is None:
            return self
        return self._replace(n_best=int(min(self.n_best, max(fewest, most / self.work(1, shape)))))

    def climb(self, landscape: Landscape, S: Array, U: Array) -> Points:
        """Let points climb; one that this does not improve on stays as it is."""
        return landscape.climbed(S, U, partial(self._follow, landscape))

    def _follow(
        self, landscape: Landscape, S: Array, U: Array, part: NDArray[np.intp]
    ) -> tuple[Array, Array]:
        typical = landscape.rows.count(landscape.A) ** -0.5
        widest = np.asarray(self.widths[:2])[part % len(self.widths[:2])]
        damping, ends = zeros((S.shape[1],), S), []
        for width, narrower in zip(self.widths, (*self.widths[1:], 0.0), strict=True):
            here, there = (np.minimum(value, widest) for value in (width, narrower))
            kinks = _RoundedKinks(landscape, like((typical * here).astype(numpy_dtype(S)), S))
            point, damping = kinks.climbed(kinks.at(S, U), damping, self.n_steps)
            S, U = kinks.narrowed(point, like((there / here).astype(numpy_dtype(S)), S)), point.U
            ends = [point.S, S]
        # A kink that lets go is not for the last shift.
        return better(*((end, *landscape.evaluate(end, U)) for end in ends))[:2]


class _Point(NamedTuple):
    """Hidden and output directions, with values and gradients there."""

    S: Array
    U: Array
    values: Array
    gradient: Array


class _RoundedKinks:
    """A landscape whose kinks are rounded, for every point over a width of its own."""

    def __init__(self, landscape: Landscape, width: Array) -> None:
        self._landscape, self._width = landscape, width

    def at(self, S: Array, U: Array) -> _Point:
        """Evaluate points."""
        values, gradient, U = self._landscape.rounded(S, U, self._width)
        return _Point(S, U, values, gradient)

    def climbed(self, point: _Point, damping: Array, n_steps: int) -> tuple[_Point, Array]:
        """Take Newton's steps, damped where they came out lower."""
        xp = namespace(damping)
        for _ in range(n_steps):
            size = _size(point)
            step = self._solved(self._bends(point), point.gradient / size - point.S, damping)
            new = self.at(unit(point.S + step, axis=0, zeros=point.S), point.U)
            good = new.values >= point.values - _TOLERATED * xp.abs(point.values)
            less = xp.where(damping > _LEAST, damping / _MORE, 0.0)
            damping = xp.where(good, less, xp.maximum(_MORE * damping, 0 * damping + _DAMPED))
            point = _Point(
                xp.where(good, new.S, point.S),
                xp.where(good[:, None], new.U, point.U),
                xp.where(good, new.values, point.values),
                xp.where(good, new.gradient, point.gradient),
            )
        return point, damping

    def narrowed(self, point: _Point, share: Array) -> Array:
        """Where the maxima will be when the width has fallen to a share of itself."""
        C, columns = self._bends(point), point.S.T[:, :, None]
        pull = namespace(C).matmul(C, columns)[:, :, 0].T
        shift = self._solved(C, (share - 1) * pull, 0 * point.values)
        return unit(point.S + shift, axis=0, zeros=point.S)

    @staticmethod
    def _solved(C: Array, targets: Array, damping: Array) -> Array:
        """Solve ``((1 + damping) I + C) x = target`` for each point."""
        diagonal = (1 + damping)[:, None, None] * identity(C.shape[1], C)
        return namespace(C).linalg.solve(C + diagonal, targets.T[:, :, None])[:, :, 0].T

    def _bends(self, point: _Point) -> Array:
        """How kinks bend the value down, of shape (n_points, rank + 1, rank + 1)."""
        land = self._landscape
        # A pass over all rows; what follows is for the few that are near.
        within = np.zeros((point.S.shape[1], land.A.shape[0]), dtype=np.bool_)
        for rows in row_blocks(land.A):
            near = namespace(point.S).abs(point.S.T @ land.A[rows, :].T) < self._width[:, None]
            within[:, rows] = to_numpy(near)
        number, row = np.divmod(np.flatnonzero(within), within.shape[1])
        V = take(land.R, row, axis=0) * take(point.U, number, axis=0)
        weights = positive_part(-namespace(V).sum(V, axis=1)) / (2 * take(self._width, number, axis=0))
        falling = np.flatnonzero(to_numpy(weights) > 0)
        products = _weighted_squares(
            land.A, row[falling], number[falling], take(weights, falling, axis=0), len(within)
        )
        return land.rows.total(products) / _size(point)[:, None, None]


def _size(point: _Point) -> Array:
    xp = namespace(point.values)
    length = xp.sqrt(xp.sum(point.gradient * point.gradient, axis=0))
    size = xp.maximum(point.values, _SMALL * length)
    return xp.where(size > 0, size, 1.0)


def _weighted_squares(A: Array, rows: NDArray, points: NDArray, weights: Array, n_points: int) -> Array:
    """``sum w_k a_k a_k^T`` over the rows of every point, given in the order of the points."""
    xp, rank = namespace(A), A.shape[1]
    counts = np.bincount(points, minlength=n_points)
    place = np.arange(len(points)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Rows of every point side by side, as many places as the point with most of them needs; those left over
    # have a row of zeros.
    most = max(int(counts.max(initial=0)), 1)
    which = np.full((n_points, most), len(rows), dtype=np.intp)
    which[points, place] = np.arange(len(rows))
    scaled = take(A, rows, axis=0) * xp.sqrt(weights)[:, None]
    scaled = xp.concat([scaled, zeros((1, rank), A)], axis=0)
    products, together = [], max(1, _TABLE // (most * rank))
    for start in range(0, n_points, together):
        some = which[start : start + together]
        table = xp.reshape(take(scaled, some.ravel(), axis=0), (*some.shape, rank))
        products.append(xp.matmul(xp.permute_dims(table, (0, 2, 1)), table))
    return products[0] if len(products) == 1 else xp.concat(products, axis=0)
