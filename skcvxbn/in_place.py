"""Operations that write where they are told: on large tables allocation costs as much as arithmetic.

They are not part of the array API standard; NumPy and PyTorch have them.
"""

from __future__ import annotations

import numpy as np
from array_api_compat import is_torch_array

from skcvxbn.arrays import Array, namespace


def matmul(x: Array, y: Array, out: Array) -> Array:
    """``out = x @ y``."""
    return namespace(out).matmul(x, y, out=out)


def thin_matmul(x: Array, y: Array, out: Array) -> Array:
    """``out = x @ y`` for a `y` of few columns."""
    if is_torch_array(out):
        # The libraries behind torch.matmul take several times as long for few columns as for few rows.
        return out.copy_((y.T @ x.T).T)
    return matmul(x, y, out)


def subtract(x: Array, y: Array, out: Array) -> Array:
    """``out = x - y``."""
    return namespace(out).subtract(x, y, out=out)


def clip(x: Array, upper: Array | float, out: Array) -> Array:
    """``out = min(max(x, 0), upper)``."""
    if isinstance(upper, float):
        return _between(x, upper, out)
    return namespace(out).minimum(_between(x, None, out), upper, out=out)


def clip_both(x: Array, bound: float, out: Array) -> Array:
    """``out = min(max(x, -bound), bound)``."""
    if is_torch_array(out):
        return namespace(out).clamp(x, -bound, bound, out=out)
    return np.clip(x, -bound, bound, out=out)


def positive(x: Array, out: Array) -> Array:
    """``out = 1`` where ``x > 0``, else 0."""
    return namespace(out).greater(x, 0, out=out)


def relu(x: Array) -> Array:
    """``x = max(x, 0)``."""
    return _between(x, None, x)


def _between(x: Array, upper: float | None, out: Array) -> Array:
    if is_torch_array(out):
        return namespace(out).clamp(x, 0, upper, out=out)
    # NumPy is faster with two bounds than with one.
    return np.clip(x, 0, np.inf if upper is None else upper, out=out)
