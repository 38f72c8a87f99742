"""What the library needs of arrays beyond the array API standard, for NumPy, PyTorch and any other library.

Numerical code is written once, against the namespace of the arrays it is given (`namespace`). Arrays of a
training problem stay where they are; decisions are taken on the host, with NumPy.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array, to_device
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "Array",
    "Rows",
    "astype",
    "concat",
    "eps",
    "identity",
    "in_eights",
    "inner",
    "inner_products",
    "lengths",
    "like",
    "namespace",
    "numpy_dtype",
    "on_processor",
    "positive_part",
    "row_blocks",
    "row_largest",
    "row_sums",
    "take",
    "tiny",
    "to_numpy",
    "whole_numbers",
    "zeros",
]

# An array of any library that follows the array API standard.
Array = Any

_NAMESPACES: dict[type, Any] = {}

# Narrower products are not worth the halving.
_FEWEST_COLUMNS = 64
# Rows that a processor takes together: so many that what they need stays in its cache.
_BLOCK = 512
# Numbers that the rows of a pattern are told apart by. Their sums are exact in float64 up to 2^27 rows.
_N_NUMBERS, _NUMBER_BITS = 3, 26


class Rows:
    """Sums and extremes over all training rows; those at hand are all of them.

    Everything that training asks of the rows together passes through here: where each process has some of
    them, the processes need to talk about nothing else.

    Attributes
    ----------
    shared : bool
        Whether other processes have some of the rows.
    rank : int
        Number of this process.
    """

    shared = False
    rank = 0

    def total(self, x: Array) -> Array:
        """Sum over the rows of all processes, given the sum over those at hand."""
        return x

    def totals(self, *sums: Array) -> list[float]:
        """Several such sums that are one number each, on the host."""
        return to_numpy(self.total(namespace(sums[0]).stack(sums))).tolist()

    def largest(self, x: Array) -> Array:
        """Elementwise maximum over the rows of all processes, given that over those at hand."""
        return x

    def gathered(self, M: Array) -> Array:
        """Rows of all processes below one another, given those at hand."""
        return M

    def own(self, M: Array, n_rows: int) -> Array:
        """Those at hand, which are so many, of the rows of all processes."""
        del n_rows
        return M

    def everyone(self, value: Any) -> list[Any]:
        """What every process has, in their order, given what this one has: any small object."""
        return [value]

    def past(self, deadline: float) -> bool:
        """Whether the clock is past a value of ``time.monotonic()``: of several clocks, the first."""
        return time.monotonic() >= deadline

    def together(self) -> AbstractContextManager[None]:
        """Let the block end with an error in every process if it does in one."""
        return nullcontext()

    def agree(self, facts: dict[str, Any]) -> None:
        """Refuse facts, by name, that are not the same in every process."""

    def count(self, x: Array) -> int:
        """Return the number of rows of all processes, given an array of those at hand."""
        return int(x.shape[0])

    def numbers(self, n_rows: int) -> NDArray[np.float64]:
        """Random whole numbers, of shape (n_numbers, n_rows): other ones in every process."""
        return whole_numbers(n_rows, 0)


def whole_numbers(n_rows: int, seed: int) -> NDArray[np.float64]:
    """Random whole numbers that tell rows apart."""
    return np.random.RandomState(seed).randint(2**_NUMBER_BITS, size=(_N_NUMBERS, n_rows)).astype(np.float64)


def namespace(x: Array) -> Any:
    """Array API namespace of an array."""
    # Asked for so often that on a small problem the answer would cost as much as the arithmetic.
    known = _NAMESPACES.get(type(x))
    return _NAMESPACES.setdefault(type(x), array_namespace(x)) if known is None else known


def to_numpy(x: Array) -> NDArray[Any]:
    """Return the array in NumPy; a NumPy array is returned as it is."""
    return x if is_numpy_array(x) else np.asarray(to_device(x, "cpu") if is_torch_array(x) else x)


def like(x: NDArray[Any], other: Array) -> Array:
    """Return a NumPy array, its precision kept, in the library and on the device of another array."""
    if is_numpy_array(other):
        return x
    # A copy: libraries share memory with NumPy where they can, and warn where they may not write to it.
    return namespace(other).asarray(np.array(x), device=device(other))


def numpy_dtype(x: Array) -> np.dtype[Any]:
    """NumPy's name for the precision of an array."""
    return x.dtype if is_numpy_array(x) else np.dtype(str(x.dtype).rpartition(".")[2])


def astype(x: Array, dtype: DTypeLike) -> Array:
    """Return the array in a precision that is given in NumPy's terms."""
    xp = namespace(x)
    return xp.astype(x, getattr(xp, np.dtype(dtype).name), copy=False)


def eps(x: Array) -> float:
    """Precision of the numbers of an array."""
    return float(np.finfo(numpy_dtype(x)).eps)


def tiny(x: Array) -> float:
    """Smallest normal number of an array's precision."""
    return float(np.finfo(numpy_dtype(x)).tiny)


def take(x: Array, which: NDArray[Any], axis: int) -> Array:
    """Entries along an axis, given by a mask or by positions, in NumPy."""
    if which.dtype == np.bool_:
        which = np.flatnonzero(which)
    return namespace(x).take(x, like(which, x), axis=axis)


def zeros(shape: tuple[int, ...], other: Array) -> Array:
    """Zeros in the precision, library and place of another array."""
    if is_numpy_array(other):
        return np.zeros(shape, dtype=other.dtype)
    return namespace(other).zeros(shape, dtype=other.dtype, device=device(other))


def identity(size: int, other: Array) -> Array:
    """Identity matrix in the precision, library and place of another array."""
    return namespace(other).eye(size, dtype=other.dtype, device=device(other))


def concat(arrays: list[Array], axis: int) -> Array:
    """Join arrays along an axis."""
    return namespace(arrays[0]).concat(arrays, axis=axis)


def inner(x: Array, y: Array) -> Array:
    """Inner product of all entries, without a table of their products."""
    xp = namespace(x)
    return xp.reshape(x, (-1,)) @ xp.reshape(y, (-1,))


def inner_products(M: Array) -> Array:
    """Inner products of the columns; only NumPy sees by itself that one triangle of them is enough."""
    n_columns = M.shape[1]
    if is_numpy_array(M) or n_columns < 2 * _FEWEST_COLUMNS:
        return M.T @ M
    product, step = zeros((n_columns, n_columns), M), max(_FEWEST_COLUMNS, in_eights(n_columns // 8))
    for start in range(0, n_columns, step):
        stop = start + step
        product[start:stop, start:] = M[:, start:stop].T @ M[:, start:]
        product[stop:, start:stop] = product[start:stop, stop:].T
    return product


def in_eights(count: int) -> int:
    """Round up to a multiple of eight: matrix products of other shapes take up to a fifth more time."""
    return -(-count // 8) * 8


def lengths(M: Array, axis: int) -> Array:
    """Euclidean norms along an axis."""
    xp = namespace(M)
    return xp.sqrt(xp.sum(M * M, axis=axis))


def row_sums(M: Array) -> Array:
    """Sum of each row, as a column: a product, for rows of few numbers are slow to reduce one by one."""
    return M @ namespace(M).ones((M.shape[1], 1), dtype=M.dtype, device=device(M))


def row_largest(M: Array) -> Array:
    """Largest number of each row, as a column; all rows at once, for the reason of `row_sums`."""
    columns = zeros((M.shape[1], M.shape[0]), M)
    columns[...] = M.T
    return namespace(M).max(columns, axis=0)[:, None]


def positive_part(x: Array) -> Array:
    """``max(x, 0)``."""
    # For torch a scalar would be moved to the device first.
    return x.clamp(min=0) if is_torch_array(x) else namespace(x).maximum(x, 0)


def on_processor(x: Array) -> bool:
    """Whether an array is in the memory of the host."""
    return str(device(x)) == "cpu"


def row_blocks(x: Array) -> list[slice]:
    """Slices of the rows: few at a time on a processor, all of them on a GPU."""
    size = _BLOCK if on_processor(x) else max(x.shape[0], 1)
    return [slice(start, start + size) for start in range(0, x.shape[0], size)]
