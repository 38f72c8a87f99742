"""Climbing ``||R^T (A s)_+||`` on the unit sphere from many starts at once.

For one output direction ``v = R u`` the function ``v^T (A s)_+`` is a difference of convex functions of
``s``, whose maximisers often lie on hyperplanes ``a_k^T s = 0`` with ``v_k < 0``. The convex-concave
procedure linearises the convex part (rows with ``v_k > 0``) at the current ``s`` and maximises the rest
exactly. By duality that maximum over the unit ball is

    min || g - A^T lambda ||   over  0 <= lambda_k <= (-v_k)_+ ,      g = A^T (1[A s > 0] v_+),

and the maximiser is ``g - A^T lambda*``, normalised. Since ``A^T A = I`` the box-constrained least
squares problem has Lipschitz constant at most one, and many starts are solved at once as columns of one
matrix. With one output the starts of a sign share ``v``, and each of the two parts needs its own rows only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcvxbn import in_place
from skcvxbn.arrays import (
    Array,
    Rows,
    astype,
    concat,
    inner_products,
    lengths,
    like,
    namespace,
    numpy_dtype,
    on_processor,
    positive_part,
    take,
    to_numpy,
    transposed_product,
)

_STANDSTILL = 1e-10
_SHARPENING = 30.0
_SHARES = (1.0, 0.0, 0.3, 0.1)
_SHARP = 1e-12
# Numbers of a table that stays in the cache of a processor, and the fewest columns it may have.
_TABLE, _FEWEST_COLUMNS = 2**16, 64
# With more directions than this the norm of some of the rows is not worth its computation.
_MANY_DIRECTIONS = 256


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
    share : float
        Points worth less than this share of the largest go no further.
    """

    n_outer: int
    n_inner: int
    n_kept: int | None
    width: float
    share: float = 0.0


class Landscape:
    """``||R^T (A s)_+||`` as a function of the hidden direction ``s``.

    Parameters
    ----------
    A : array of shape (n_samples, rank + 1)
        Whitened rows.
    R : array of shape (n_samples, n_outputs)
        The residual, or any dual point.
    rows : Rows
        How to sum over the rows.
    """

    def __init__(self, A: Array, R: Array, rows: Rows) -> None:
        self.A, self.R, self.rows = A, R, rows
        self._of_sign: dict[int, _SharedDirection] = {}

    def evaluate(self, S: Array, U: Array) -> tuple[Array, Array]:
        """Best output directions and the values there; with one output the sign of `U` is kept."""
        hidden = self.A @ S
        if self.R.shape[1] > 1:
            U = _output_directions(self.R, hidden, U, self.rows)
        return U, self.rows.total(namespace(S).sum(positive_part(hidden) * (self.R @ U.T), axis=0))

    def climb(self, S: Array, U: Array, stage: Stage) -> tuple[Array, Array, Array]:
        """Convex-concave steps from each start; a start that they do not improve on stays as it is.

        Parameters
        ----------
        S, U : array of shape (rank + 1, n_starts) and (n_starts, n_outputs)
            Unit hidden and output directions.
        stage : Stage
            How many steps.

        Returns
        -------
        S, U : tuple of arrays
            Where they lead, in another order.
        values : array of shape (n_starts,)
            ``||R^T (A s)_+||``, or ``u R^T (A s)_+`` with one output.
        """
        widths = stage.width / math.sqrt(self.rows.count(self.A)) * np.resize(_SHARES, S.shape[1])
        parts = [
            self._climb_together(take(S, part, axis=1), take(U, part, axis=0), stage, widths[part])
            for part in self._parts(U)
        ]
        if len(parts) == 1:
            return parts[0]
        climbed_S, climbed_U, values = (list(arrays) for arrays in zip(*parts, strict=True))
        return concat(climbed_S, axis=1), concat(climbed_U, axis=0), concat(values, axis=0)

    def _parts(self, U: Array) -> list[NDArray[np.intp]]:
        """Starts that climb together: of one sign where there is one output, and few on a processor."""
        groups = [np.arange(U.shape[0])]
        if self.R.shape[1] == 1:
            positive = to_numpy(U[:, 0]) > 0
            groups = [np.flatnonzero(positive), np.flatnonzero(~positive)]
        # Equally many in every process: they sum over their rows together.
        size = max(_TABLE // self.rows.count(self.A), _FEWEST_COLUMNS) if on_processor(U) else U.shape[0]
        return [group[i : i + size] for group in groups for i in range(0, len(group), size)]

    def _climb_together(
        self, S: Array, U: Array, stage: Stage, widths: NDArray[np.float64]
    ) -> tuple[Array, Array, Array]:
        xp = namespace(S)
        start_S, start_U, start_values = S, *self.evaluate(S, U)
        parts = self._split(S, start_U)
        multipliers = parts.upper * astype(parts.falling @ S > 0, numpy_dtype(S))
        for sharpening in np.geomspace(1, _SHARPENING, stage.n_outer).tolist():
            gradient = self.rows.total(parts.gradient(S, widths / sharpening))
            multipliers, direction = _box_least_squares(
                parts.falling, gradient, parts.upper, multipliers, stage.n_inner, self.rows
            )
            new_S = unit(direction, axis=0, zeros=S)
            moved, S = float(xp.max(xp.abs(new_S - S))), new_S
            if moved < _STANDSTILL:
                break
            multipliers = parts.turned(S, multipliers)
        U, values = self.evaluate(S, U)
        worse = values < start_values
        return (
            xp.where(worse, start_S, S),
            xp.where(worse[:, None], start_U, U),
            xp.maximum(values, start_values),
        )

    def _split(self, S: Array, U: Array) -> _SharedDirection | _OwnDirections:
        if self.R.shape[1] > 1:
            return _OwnDirections(self, S, U)
        sign = 1 if float(U[0, 0]) > 0 else -1
        if sign not in self._of_sign:
            self._of_sign[sign] = _SharedDirection(self, sign)
        return self._of_sign[sign]


class _SharedDirection:
    """Convex and concave part of ``v^T (A s)_+`` where all starts have the same `v`.

    Attributes
    ----------
    falling : array of shape (n_falling, rank + 1)
        Rows of the concave part, divided by their norm as a matrix.
    upper : array of shape (n_falling, 1)
        Bounds of their multipliers.
    """

    def __init__(self, landscape: Landscape, sign: int) -> None:
        v = sign * landscape.R
        positive, negative = (np.flatnonzero(to_numpy(side)) for side in (v[:, 0] > 0, v[:, 0] < 0))
        self._rising = take(landscape.A, positive, axis=0)
        self._weighted = self._rising * take(v, positive, axis=0)
        falling = take(landscape.A, negative, axis=0)
        norm = _norm(falling, landscape.rows)
        self.falling, self.upper = falling / norm, -norm * take(v, negative, axis=0)

    def gradient(self, S: Array, widths: NDArray[np.float64]) -> Array:
        """Gradient of the convex part, its kinks rounded."""
        return transposed_product(self._weighted, _slope(self._rising @ S, widths))

    def turned(self, S: Array, multipliers: Array) -> Array:
        """Keep the multipliers: no direction turns."""
        del S
        return multipliers


class _OwnDirections:
    """Convex and concave part of ``v^T (A s)_+`` where each start has a `v` of its own, which turns."""

    def __init__(self, landscape: Landscape, S: Array, U: Array) -> None:
        self._landscape, self.falling = landscape, landscape.A
        self._set(landscape.A @ S, U)

    def _set(self, hidden: Array, U: Array) -> None:
        V = self._landscape.R @ U.T
        self._hidden, self._U = hidden, U
        self._raising, self.upper = positive_part(V), positive_part(-V)

    def gradient(self, S: Array, widths: NDArray[np.float64]) -> Array:
        """Gradient of the convex part, its kinks rounded."""
        del S
        return transposed_product(self.falling, self._raising * _slope(self._hidden, widths))

    def turned(self, S: Array, multipliers: Array) -> Array:
        """Turn the output directions to the best for the hidden directions."""
        land, hidden = self._landscape, self.falling @ S
        self._set(hidden, _output_directions(land.R, hidden, self._U, land.rows))
        return namespace(S).minimum(multipliers, self.upper)


def unit(M: Array, axis: int, zeros: Array | None = None) -> Array:
    """Columns or rows of length one; zeros are those of another matrix, or stay."""
    xp, norm = namespace(M), lengths(M, axis=axis)
    norm = norm[None, :] if axis == 0 else norm[:, None]
    scaled = M / xp.where(norm > 0, norm, 1.0)
    return scaled if zeros is None else xp.where(norm > 0, scaled, zeros)


def _norm(M: Array, rows: Rows) -> float:
    """Norm of some of the whitened rows as a matrix, at most one, or a bound of it."""
    if M.shape[1] > _MANY_DIRECTIONS:
        return 1.0
    gram = to_numpy(rows.total(inner_products(M))).astype(np.float64)
    largest = float(np.linalg.eigvalsh(gram)[-1])
    return math.sqrt(largest) * (1 + 1e-6) if largest > 0 else 1.0


def _slope(hidden: Array, widths: NDArray[np.float64]) -> Array:
    """Slope of the ReLU with its kink rounded over ``[-width, width]``, by columns."""
    if not widths.any():
        return astype(hidden > 0, numpy_dtype(hidden))
    slope = hidden * like((0.5 / np.maximum(widths, _SHARP)).astype(numpy_dtype(hidden)), hidden)
    slope += 0.5
    return in_place.clip(slope, 1.0, out=slope)


def _output_directions(R: Array, hidden: Array, U: Array, rows: Rows) -> Array:
    return unit(rows.total((R.T @ positive_part(hidden)).T), axis=1, zeros=U)


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
