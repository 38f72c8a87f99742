"""Roots of increasing functions, which is what the best bias of a loss is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from skcvxbn.arrays import Array, eps, like, numpy_dtype, to_numpy

_STEPS = 200
# A difference of this many units in the last place is rounding.
_ROUNDING = 8
# Newton's steps that lower the value by less are crawling: down an exponential tail by a factor of e each.
_FALL = 0.25


def monotone_roots(function: Callable[[Array], Array], start: Array, scale: Array) -> Array:
    """Find a zero of every component of a nondecreasing function, by Newton's method kept in a bracket.

    Parameters
    ----------
    function : callable
        From points, one a component, to a table of three rows: the positive parts of the values there, the
        negative parts, and the slopes.
    start : array of shape (n_components,)
        A guess.
    scale : array of shape (n_components,)
        Size of the numbers that a point is added to: the first steps are no longer, and smaller differences
        are rounding.

    Returns
    -------
    array of shape (n_components,)
        The zeros; one of each, where there are many.
    """
    rounding, scale = _ROUNDING * eps(start), to_numpy(scale)
    x = to_numpy(start).astype(np.float64)
    low, high = np.full_like(x, -np.inf), np.full_like(x, np.inf)
    stride = np.maximum(np.abs(x), scale)
    last = np.full_like(x, np.inf)
    for _ in range(_STEPS):
        up, down, slope = to_numpy(function(_given(x, start))).astype(np.float64)
        value = up - down
        zero = np.abs(value) <= rounding * (up + down)
        low, high = np.where(value <= 0, x, low), np.where(value >= 0, x, high)
        bracketed = np.isfinite(low) & np.isfinite(high)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            newton = x - value / slope
        # A slope next to zero sends Newton's step anywhere.
        inside = (newton > low) & (newton < high) & (bracketed | (np.abs(newton - x) <= stride))
        trusted = inside & (np.abs(value) < _FALL * last)
        outward = np.where(value < 0, x + stride, x - stride)
        with np.errstate(invalid="ignore"):
            safe = np.where(bracketed, (low + high) / 2, outward)
        new = np.where(zero, x, np.where(trusted, newton, safe))
        if np.all(np.abs(new - x) <= rounding / 4 * np.maximum(np.abs(x), scale)):
            break
        x, last, stride = new, np.abs(value), np.where(bracketed | trusted, stride, 4 * stride)
    return _given(x, start)


def _given(x: NDArray[np.float64], start: Array) -> Array:
    return like(x.astype(numpy_dtype(start)), start)
