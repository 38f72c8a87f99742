"""The convex-concave procedure: climbing ``||R^T (A s)_+||`` onto its kinks.

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
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcvxbn import in_place
from skcvxbn.arrays import (
    Array,
    Rows,
    astype,
    inner_products,
    namespace,
    numpy_dtype,
    positive_part,
    take,
    to_numpy,
    transposed_product,
)
from skcvxbn.solvers.ascent import Rounded
from skcvxbn.solvers.landscape import Landscape, Points, unit

_STANDSTILL = 1e-10
# With more directions than this the norm of some of the rows is not worth its computation.
_MANY_DIRECTIONS = 256
# A projected gradient step takes this many times the time of an evaluation of the landscape.
_PRICE = 2.0


class Sharp(NamedTuple):
    """A part of a search on the kinks as they are.

    Attributes
    ----------
    n_outer : int
        Convex-concave steps.
    n_inner : int
        Projected gradient steps in each. Many steps solved halfway find more than few solved exactly:
        an exact step stops at the first fixed point.
    n_kept : int or None
        How many of the best points go on.
    n_best : int or None
        How many of the best points climb; the others go on as they are.
    share : float
        Points worth less than this share of the largest go no further.
    n_always : int
        How many of the best points climb on sharp kinks even where rounded ones come nearly as far.
    """

    n_outer: int
    n_inner: int
    n_kept: int | None = None
    n_best: int | None = None
    share: float = 0.0
    n_always: int = 0

    def work(self, n_starts: float) -> float:
        """Evaluations of so many starts."""
        n_climbing = n_starts if self.n_best is None else min(n_starts, self.n_best)
        return n_climbing * self.n_outer * self.n_inner * _PRICE

    def limited(self, most: float, fewest: int) -> Sharp:
        """Return the stage for fewer points, if it would take more evaluations than allowed."""
        if self.n_best is None:
            return self
        return self._replace(n_best=int(min(self.n_best, max(fewest, most / self.work(1)))))

    def rounded(self, widths: tuple[float, ...], n_steps: int) -> tuple[Rounded | Sharp, ...]:
        """Return stages, mostly on rounded kinks, in place of this one."""
        rounded = Rounded(widths, n_steps, self.n_kept, self.n_best, self.share)
        return (rounded, self._replace(n_best=self.n_always)) if self.n_always else (rounded,)

    def climb(self, landscape: Landscape, S: Array, U: Array) -> Points:
        """Let points climb; one that this does not improve on stays as it is."""
        steps = _Procedure(landscape)
        return landscape.climbed(S, U, partial(steps.climb, self), by_sign=True)


class _Procedure:
    """Convex-concave steps on one landscape."""

    def __init__(self, landscape: Landscape) -> None:
        self._landscape = landscape
        self._of_sign: dict[int, _SharedDirection] = {}

    def climb(self, stage: Sharp, S: Array, U: Array, part: NDArray[np.intp]) -> tuple[Array, Array]:
        del part
        xp, rows = namespace(S), self._landscape.rows
        parts = self._split(S, U)
        multipliers = parts.upper * astype(parts.falling @ S > 0, numpy_dtype(S))
        for _ in range(stage.n_outer):
            gradient = rows.total(parts.gradient(S))
            multipliers, direction = _box_least_squares(
                parts.falling, gradient, parts.upper, multipliers, stage.n_inner, rows
            )
            new_S = unit(direction, axis=0, zeros=S)
            moved, S = float(xp.max(xp.abs(new_S - S))), new_S
            if moved < _STANDSTILL:
                break
            multipliers = parts.turned(S, multipliers)
        return S, U

    def _split(self, S: Array, U: Array) -> _SharedDirection | _OwnDirections:
        if self._landscape.R.shape[1] > 1:
            return _OwnDirections(self._landscape, S, U)
        sign = 1 if float(U[0, 0]) > 0 else -1
        if sign not in self._of_sign:
            self._of_sign[sign] = _SharedDirection(self._landscape, sign)
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

    def gradient(self, S: Array) -> Array:
        """Gradient of the convex part."""
        return transposed_product(self._weighted, astype(self._rising @ S > 0, numpy_dtype(S)))

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

    def gradient(self, S: Array) -> Array:
        """Gradient of the convex part."""
        del S
        on = astype(self._hidden > 0, numpy_dtype(self._hidden))
        return transposed_product(self.falling, self._raising * on)

    def turned(self, S: Array, multipliers: Array) -> Array:
        """Turn the output directions to the best for the hidden directions."""
        land, hidden = self._landscape, self.falling @ S
        outputs = land.rows.total((land.R.T @ positive_part(hidden)).T)
        self._set(hidden, unit(outputs, axis=1, zeros=self._U))
        return namespace(S).minimum(multipliers, self.upper)


def _norm(M: Array, rows: Rows) -> float:
    """Norm of some of the whitened rows as a matrix, at most one, or a bound of it."""
    if M.shape[1] > _MANY_DIRECTIONS:
        return 1.0
    gram = to_numpy(rows.total(inner_products(M))).astype(np.float64)
    largest = float(np.linalg.eigvalsh(gram)[-1])
    return math.sqrt(largest) * (1 + 1e-6) if largest > 0 else 1.0


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
