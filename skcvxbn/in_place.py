"""Operations that write where they are told: on large tables allocation costs as much as arithmetic.

They are not part of the array API standard; NumPy and PyTorch have them.
"""

from __future__ import annotations

from array_api_compat import is_torch_array

from skcvxbn.arrays import Array, namespace


def matmul(x: Array, y: Array, out: Array) -> Array:
    """``out = x @ y``."""
    return namespace(out).matmul(x, y, out=out)


def multiply(x: Array, factor: float, out: Array) -> Array:
    """``out = factor * x``."""
    return namespace(out).multiply(x, factor, out=out)


def subtract(x: Array, y: Array, out: Array) -> Array:
    """``out = x - y``."""
    return namespace(out).subtract(x, y, out=out)


def clip(x: Array, upper: Array | float, out: Array) -> Array:
    """``out = min(max(x, 0), upper)``."""
    xp = namespace(out)
    if not is_torch_array(out):
        return xp.minimum(xp.maximum(x, 0, out=out), upper, out=out)
    if isinstance(upper, float):
        return xp.clamp(x, 0, upper, out=out)
    return xp.minimum(xp.clamp(x, 0, out=out), upper, out=out)


def relu(x: Array) -> Array:
    """``x = max(x, 0)``."""
    return x.clamp_(min=0) if is_torch_array(x) else namespace(x).maximum(x, 0, out=x)
