"""Roots of increasing functions, which is what the best bias of a loss is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_STEPS = 200


def monotone_roots(function: Callable[[Array], tuple[Array, Array]], start: Array) -> Array:
    """Find a zero of every component of a nondecreasing function, by Newton's method kept in a bracket.

    Parameters
    ----------
    function : callable
        From points, one a component, to the values and the slopes there.
    start : ndarray of shape (n_components,)
        A guess.

    Returns
    -------
    ndarray of shape (n_components,)
        The zeros; one of each, where there are many.
    """
    x = start.astype(np.float64)
    low, high = np.full_like(x, -np.inf), np.full_like(x, np.inf)
    stride = np.maximum(np.abs(x), 1e-3)
    last = np.full_like(x, np.inf)
    for _ in range(_STEPS):
        value, slope = (np.asarray(v, dtype=np.float64) for v in function(x.astype(start.dtype)))
        low, high = np.where(value <= 0, x, low), np.where(value >= 0, x, high)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            newton = x - value / slope
        inside = np.isfinite(newton) & (newton > low) & (newton < high) & (np.abs(value) < 0.5 * last)
        last = np.abs(value)
        bracketed = np.isfinite(low) & np.isfinite(high)
        middle = np.where(bracketed, low / 2 + high / 2, np.where(value < 0, x + stride, x - stride))
        stride = np.where(bracketed, stride, 4 * stride)
        new = np.where(value == 0, x, np.where(inside, newton, middle))
        resolution = 2 * np.finfo(start.dtype).eps * np.abs(x)
        if np.all((np.abs(new - x) <= resolution) | (value == 0)):
            break
        x = new
    return x.astype(start.dtype)
