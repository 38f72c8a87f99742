"""Ascent on a landscape whose kinks are rounded less and less: the way to most maxima, in few steps.

The value of a hidden direction bends on every hyperplane ``a_k^T s = 0``, and on a kink gradient steps
stall. Where kinks are rounded over ``|a_k^T s| <= width`` they do not, and small maxima vanish, so that more
starts reach the large ones. The width is then lowered, and every stage starts next to its end.

Steps along the gradient have the lengths of Barzilai and Borwein (1988), which take the curvature along the
last step for that along the next: no line search, and all starts move at once, as columns of one matrix.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcvxbn.arrays import Array, lengths, like, namespace, numpy_dtype, tiny
from skcvxbn.solvers.landscape import Landscape, Points, unit

# The first step, in shares of the one to the linear maximum; and the longest, in radians.
_FIRST, _LONGEST = 0.5, 0.5
# The value may fall by this share in a step: it does so on the way to higher ones. After more the next step,
# from the old point, is a fourth as long.
_TOLERATED, _SHORTER = 1e-2, 0.25
# How much longer the next step is where there is no curvature to go by, and at most.
_LONGER, _MUCH_LONGER = 2.0, 100.0
# The widest kinks of one start after another.
_WIDEST = (1.0, 0.1, 0.03)


class Rounded(NamedTuple):
    """A part of a search on rounded kinks.

    Attributes
    ----------
    widths : tuple of float
        Half widths of the rounded kinks, one after the other, in units of the typical ``|a_k^T s|``. Wide
        kinks lead away from narrow maxima, so one start in three has all of them, one those up to 0.1, and
        one those up to 0.03.
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
        """Evaluations of so many starts."""
        del shape
        n_climbing = n_starts if self.n_best is None else min(n_starts, self.n_best)
        return n_climbing * len(self.widths) * (self.n_steps + 1)

    def limited(self, most: float, fewest: int, shape: tuple[int, int]) -> Rounded:
        """Return the stage for all points: it is cheap."""
        del most, fewest, shape
        return self

    def climb(self, landscape: Landscape, S: Array, U: Array) -> Points:
        """Let points climb; one that this does not improve on stays as it is."""
        return landscape.climbed(S, U, partial(self._ascend, landscape))

    def _ascend(
        self, landscape: Landscape, S: Array, U: Array, part: NDArray[np.intp]
    ) -> tuple[Array, Array]:
        typical = landscape.rows.count(landscape.A) ** -0.5
        widest = np.asarray(_WIDEST)[part % len(_WIDEST)]
        for width in self.widths:
            widths = typical * np.minimum(width, widest)
            S, U = _ascend(landscape, S, U, like(widths.astype(numpy_dtype(S)), S), self.n_steps)
        return S, U


def _ascend(landscape: Landscape, S: Array, U: Array, width: Array, n_steps: int) -> tuple[Array, Array]:
    xp = namespace(S)
    values, gradient, U = landscape.rounded(S, U, width)
    slope = _tangent(S, gradient)
    size = lengths(gradient, axis=0)
    step = _FIRST / xp.where(size > tiny(S), size, 1.0)
    for number in range(n_steps):
        length = step * lengths(slope, axis=0)
        step = step / xp.where(length > _LONGEST, length / _LONGEST, 1.0)
        new_S = unit(S + slope * step, axis=0)
        new_values, gradient, new_U = landscape.rounded(new_S, U, width)
        new_slope = _tangent(new_S, gradient)
        good = new_values >= values - _TOLERATED * xp.abs(values)
        next_step = _next_step(new_S - S, slope - new_slope, step, longer=number % 2 == 0)
        step = xp.where(good, next_step, _SHORTER * step)
        S, slope = xp.where(good, new_S, S), xp.where(good, new_slope, slope)
        values, U = xp.where(good, new_values, values), xp.where(good[:, None], new_U, U)
    return S, U


def _next_step(shift: Array, change: Array, step: Array, *, longer: bool) -> Array:
    """The longer or the shorter step that fits the curvature along the last one, ``shift``."""
    xp = namespace(shift)
    along = xp.sum(shift * change, axis=0)
    size = xp.sum(shift * shift, axis=0) if longer else xp.sum(change * change, axis=0)
    above, below = (size, along) if longer else (along, size)
    bent = (along > 0) & (above < _MUCH_LONGER * step * below)
    return xp.where(bent, above / xp.where(bent, below, 1.0), _LONGER * step)


def _tangent(S: Array, gradient: Array) -> Array:
    """Part of the gradients that is tangent to the sphere."""
    return gradient - S * namespace(S).sum(S * gradient, axis=0)
