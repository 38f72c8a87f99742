"""Hyperplane arrangements: the on/off patterns that a hidden neuron can take on the training rows.

A hidden neuron is (A s)_+ with A (n, q) the whitened data of :mod:`skcvxbn.whitening`. The rows on which it
is on are the boolean column D_k = [a_k^T s >= 0]; over the neurons with one D the network is linear in s,
which is what makes the program of Theorem 2.2 convex. A set of arrangements is a boolean array (n, P) with
distinct columns in lexicographic order (on before off, first row first): equal sets are equal arrays.

Where the columns come from: :func:`sampled_arrangements` (random gates, the paper's practice),
:func:`given_arrangements` (gates chosen by the user), :func:`enumerate_arrangements` (all of them).
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Patterns = NDArray[np.bool_]

# Two hyperplanes whose unit normals differ by less than this count as one. The entries of A carry rounding
# errors of about 1e-15, and each of the (few) projections of the enumeration may amplify them.
_PARALLEL = 1e-9
# Above this smallest singular value unit normals are safely independent, and every sign pattern is a cell.
_INDEPENDENT = 1e-6
# Gates are evaluated in blocks: a block of outputs is (n, _BLOCK) floats, while its patterns are bits.
_BLOCK = 64
# How many times the requested number of gates is drawn before a sample is accepted as it is.
_MAX_DRAWS = 10


def unique_arrangements(patterns: ArrayLike) -> Patterns:
    """Keep the distinct columns of a boolean array, in the order every function of this module returns.

    Parameters
    ----------
    patterns : array-like of bool of shape (n, P)
        One arrangement a column, in any order, possibly repeated.

    Returns
    -------
    ndarray of bool of shape (n, P')
        The distinct columns in lexicographic order, on (True) before off, the first row most significant.

    Examples
    --------
    >>> unique_arrangements([[True, False, True], [False, True, False]]).astype(int)
    array([[1, 0],
           [0, 1]])
    """
    columns = np.asarray(patterns, dtype=bool)
    return _unpack(np.unique(_pack(columns)), columns.shape[0])


def sampled_arrangements(
    X: ArrayLike, sample_weight: ArrayLike | None, n_arrangements: int, rng: np.random.Generator
) -> Patterns:
    """Sample arrangements of random gates, drawn in input space.

    The paper draws w ~ N(0, I) and takes 1[X w >= 0]. On data that are not centred nearly all of these are
    all on or all off, and on data of mixed units the largest column decides. The network itself is invariant
    to offset and scale (batch normalization removes both), so the gate is drawn in units of the data: with h
    = (X - mean) / std w, w ~ N(0, I), and t ~ N(0, 1), the pattern is [h + t std(h) >= 0]; t plays the part
    of alpha / gamma. Every such pattern is an arrangement of A, because h lies in the range of U and the
    offset in that of 1.

    The gates depend on `rng` and on the weighted mean and deviation of the columns only: not on the order of
    the rows, nor on whether a row is repeated or carries an integer weight, nor on the offset and the
    (positive) unit of a column.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Training rows, finite, of positive weight.
    sample_weight : array-like of shape (n,) or None
        Positive weights; None means one each.
    n_arrangements : int
        How many distinct arrangements are wanted, at least one. All on is always one of them (a linear
        neuron: worth more to the program than any gate, and the one that random gates find last); all off
        never is (a neuron that is zero on every row).
    rng : numpy.random.Generator
        Source of the gates.

    Returns
    -------
    ndarray of bool of shape (n, P)
        Distinct arrangements, P <= n_arrangements: fewer where the data have fewer, or where ten times as
        many gates did not show more.

    Raises
    ------
    ValueError
        If `n_arrangements` is not positive.

    Examples
    --------
    >>> X = [[0.0], [1.0], [2.0]]
    >>> sampled_arrangements(X, None, 100, np.random.default_rng(0)).astype(int)
    array([[1, 1, 1, 0, 0],
           [1, 1, 0, 1, 0],
           [1, 0, 0, 1, 1]])
    """
    _check_positive_integer("n_arrangements", n_arrangements)
    Z = np.asarray(X, dtype=np.float64)
    # By the largest entry first: the squares of tiny and huge columns then stay inside the floating range.
    Z = Z / np.maximum(np.abs(Z).max(axis=0), np.finfo(np.float64).tiny)
    weight = np.ones(Z.shape[0]) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    weight = weight / weight.sum()
    Z = Z - weight @ Z
    std = np.sqrt(weight @ Z**2)
    # A column that is constant up to rounding has no direction: its noise must not be blown up to unit size.
    varies = std > 10 * np.finfo(np.float64).eps
    Z = Z * np.divide(1.0, std, out=np.zeros_like(std), where=varies)

    # Patterns in the order of their draw; whole blocks, so that a larger sample contains the smaller one.
    seen = {_pack(np.ones((Z.shape[0], 1), dtype=bool))[0].tobytes(): None}
    for _ in range(0, _MAX_DRAWS * n_arrangements, _BLOCK):
        directions = rng.standard_normal((_BLOCK, Z.shape[1])).T
        offsets = rng.standard_normal(_BLOCK)
        H = Z @ directions
        H += offsets * np.sqrt(weight @ H**2)
        on = H >= 0
        for key in _pack(on[:, on.any(axis=0)]):
            if len(seen) < n_arrangements:
                seen.setdefault(key.tobytes())
        if len(seen) == n_arrangements:
            break
    return unique_arrangements(_unpack(np.frombuffer(b"".join(seen), dtype=np.uint8), Z.shape[0]))


def given_arrangements(X: ArrayLike, gates: ArrayLike) -> Patterns:
    """Compute the arrangements 1[X g >= 0] of the gate vectors that a user chose.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Training rows as the user passed them, neither centred nor scaled.
    gates : array-like of shape (d, P)
        One gate vector a column. For a gate with an offset, append a constant column to X.

    Returns
    -------
    ndarray of bool of shape (n, P')
        The distinct arrangements, P' <= P.

    Raises
    ------
    ValueError
        If `gates` is not a finite real array of shape (d, P) with P >= 1.

    Examples
    --------
    >>> given_arrangements([[1.0, 0.0], [-1.0, 1.0]], [[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]]).astype(int)
    array([[1, 1],
           [1, 0]])
    """
    rows = np.asarray(X, dtype=np.float64)
    W = _check_gates(gates, rows.shape[1])
    packed = [_pack(rows @ W[:, first : first + _BLOCK] >= 0) for first in range(0, W.shape[1], _BLOCK)]
    return _unpack(np.unique(np.concatenate(packed)), rows.shape[0])


def count_arrangements(n: int, q: int) -> int:
    """Count the arrangements of n rows in general position in q dimensions, 2 sum_{k<q} binom(n-1, k).

    Rows in general position are those of which any q are linearly independent (Cover, 1965). Rows in any
    other position have fewer arrangements.

    Parameters
    ----------
    n, q : int
        Number of rows and their rank; 1 if either is zero.

    Returns
    -------
    int
        The exact count, however large.

    Examples
    --------
    >>> count_arrangements(15, 3), count_arrangements(25, 3), count_arrangements(3, 10)
    (212, 602, 8)
    """
    if n == 0 or q == 0:
        return 1
    return 2 * sum(math.comb(n - 1, k) for k in range(min(n, q)))


def enumerate_arrangements(A: ArrayLike, *, max_arrangements: int = 100_000) -> Patterns:
    """List all arrangements of A: the sign patterns of the open cells that its hyperplanes cut out.

    The hyperplanes are a_k^T s = 0. Over all of these arrangements the convex program (Theorem 2.2) and the
    network's own problem have the same optimum. The patterns that occur only on the hyperplanes themselves
    are left out: there a row of D may be read either way. The list is exact in degenerate position too
    (repeated, opposite, dependent rows).

    Parameters
    ----------
    A : array-like of shape (n, q)
        Whitened rows, finite; a positive weight on a row changes nothing. A zero row is on in every
        arrangement (0 >= 0). Rows that are parallel up to 1e-9 count as parallel.
    max_arrangements : int, default=100_000
        The most arrangements that may have to be listed.

    Returns
    -------
    ndarray of bool of shape (n, P)
        Distinct arrangements. Negating s negates the pattern, so P is even (unless all rows are zero).

    Raises
    ------
    ValueError
        If :func:`count_arrangements` of the distinct hyperplanes exceeds `max_arrangements`; nothing is
        enumerated then. Also if A is not a finite real matrix, or if its hyperplanes are so near to a
        degenerate position that rounding hides which cells exist.

    Notes
    -----
    Deletion and restriction: adding a hyperplane to an arrangement splits the cells that it meets, and these
    are the cells of the arrangement that the earlier hyperplanes leave on it, one dimension lower. No linear
    program is solved, and the time is proportional to the number of cells.

    Examples
    --------
    >>> A = [[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]]
    >>> enumerate_arrangements(A).astype(int)
    array([[1, 1, 0, 0],
           [1, 0, 1, 0],
           [0, 0, 1, 1]])
    """
    _check_positive_integer("max_arrangements", max_arrangements)
    rows = np.asarray(A, dtype=np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"Expected a 2D array without NaN or infinity, got an array of shape {rows.shape}.")
    n = rows.shape[0]
    lengths = np.abs(rows).max(axis=1, initial=0.0)
    nonzero = np.flatnonzero(lengths > 0)
    if nonzero.size == 0:
        return np.ones((n, 1), dtype=bool)
    normals, group, opposite = distinct_hyperplanes(_unit(rows[nonzero] / lengths[nonzero, None]))
    normals = _in_row_space(normals)
    count = count_arrangements(*normals.shape)
    if count > max_arrangements:
        readable = str(count) if count < 10**15 else f"10^{math.log10(count):.1f}"
        raise ValueError(
            f"The {n} rows form {normals.shape[0]} distinct hyperplanes of rank {normals.shape[1]}, which "
            f"have up to {readable} arrangements, more than max_arrangements={max_arrangements}. "
            "Use fewer rows or directions, or arrangements='generated' or 'sampled'."
        )
    # Signs at one point of each pair of opposite cells; the other cell has the opposite signs.
    points = _half_cells(normals, normals.shape[1])
    on = np.ones((n, 2 * points.shape[0]), dtype=bool)
    positive = normals @ points.T > 0
    on[nonzero] = np.hstack([positive, ~positive])[group] != opposite[:, None]
    return unique_arrangements(on)


def _half_cells(normals: Floats, dimension: int) -> Floats:
    """Find a unit point (P/2, r) in one of each pair of opposite cells of distinct unit normals (p, r).

    The normals span at most `dimension` of the r coordinates, and the points lie in the same subspace.
    """
    if dimension <= 2:
        return _half_cells_in_plane(normals)
    if normals.shape[0] <= dimension and np.linalg.svd(normals, compute_uv=False)[-1] > _INDEPENDENT:
        return _half_cells_of_independent(normals)
    points = [normals[:1]]
    for k in range(1, normals.shape[0]):
        earlier, normal = normals[:k], normals[k]
        restricted = _unit(earlier - np.outer(earlier @ normal, normal))
        # Once more: for nearly parallel hyperplanes the first projection is all rounding along the normal.
        restricted = _unit(restricted - np.outer(restricted @ normal, normal))
        if dimension > 3:
            restricted = distinct_hyperplanes(restricted)[0]
        on_hyperplane = _half_cells(restricted, dimension - 1)
        # Half the distance to the earlier hyperplanes, to either side: two balls that touch none of them.
        step = 0.5 * np.abs(on_hyperplane @ earlier.T).min(axis=1)[:, None] * normal
        points += [on_hyperplane + step, on_hyperplane - step]
    return _one_point_a_cell(points, normals)


def _half_cells_of_independent(normals: Floats) -> Floats:
    """:func:`_half_cells` of linearly independent normals, which take every sign pattern."""
    p = normals.shape[0]
    bits = (np.arange(2 ** (p - 1))[:, None] >> np.arange(p)) & 1
    return _unit((1.0 - 2.0 * bits) @ np.linalg.pinv(normals).T)


def _one_point_a_cell(batches: list[Floats], normals: Floats) -> Floats:
    """Of the points made when hyperplane 0, 1, ... was added, keep one in each pair of opposite cells.

    A point made early may lie on a later hyperplane, where its signs would be rounding errors. The last one
    made inside a cell does not: a hyperplane that splits no cell around it misses its ball too. So it is
    safe, and enough, to keep the points that are as far from all hyperplanes as they were from those of their
    time.
    """
    kept, keys = [], []
    for i, batch in enumerate(batches):
        offsets = batch @ normals.T
        distance = np.abs(offsets)
        # Batches 2k - 1 and 2k were made when hyperplane k was added.
        ball = distance[:, : (i + 1) // 2 + 1].min(axis=1)
        good = distance.min(axis=1) >= 0.99 * ball
        kept.append(batch[good])
        keys.append(_pack(((offsets > 0) == (offsets[:, :1] > 0))[good].T))
    _, first = np.unique(np.concatenate(keys), return_index=True)
    # Each cell of a restriction splits one cell in two, so the number of cells is known beforehand.
    n_cells = 1 + sum(batch.shape[0] for batch in batches[1::2])
    if first.size != n_cells:
        raise ValueError(
            f"Rounding hides which cells exist ({first.size} found, {n_cells} expected, up to sign): the "
            "rows are too near to a degenerate position. Use generated or sampled arrangements."
        )
    return _unit(np.concatenate(kept)[first])


def _half_cells_in_plane(normals: Floats) -> Floats:
    """:func:`_half_cells` in one or two dimensions, by sorting angles; hyperplanes may repeat."""
    across = normals - np.outer(normals @ normals[0], normals[0])
    widest = np.linalg.norm(across, axis=1).argmax()
    if np.linalg.norm(across[widest]) < _PARALLEL:
        return normals[:1]
    basis = np.array([normals[0], across[widest] / np.linalg.norm(across[widest])])
    coordinates = normals @ basis.T
    angles = np.sort(np.arctan2(coordinates[:, 1], coordinates[:, 0]) % np.pi)
    gaps = np.diff(angles, append=angles[0] + np.pi)
    # The line of normal angle t runs along t + pi/2; a cell's bisector is halfway to the next line.
    middle = (angles + gaps / 2 + np.pi / 2)[gaps > _PARALLEL]
    return np.column_stack([np.cos(middle), np.sin(middle)]) @ basis


def distinct_hyperplanes(normals: Floats) -> tuple[Floats, NDArray[np.intp], Patterns]:
    """Merge unit normals (n, r) equal up to sign.

    Returns
    -------
    distinct : ndarray of shape (p, r)
    group : ndarray of shape (n,)
        Row i is parallel to distinct[group[i]]
    opposite : ndarray of bool of shape (n,)
        and whether it is its negative.
    """
    # A fixed direction that is nearly orthogonal to no row decides which of +a, -a stands for both.
    candidates = np.random.default_rng(0).standard_normal((normals.shape[1], 8))
    heights = normals @ candidates
    heights = heights[:, np.abs(heights).min(axis=0).argmax()]
    oriented = np.where(heights[:, None] < 0, -normals, normals)
    # Equal means in the same cluster along every coordinate, a cluster ending at a gap of _PARALLEL.
    labels = np.zeros(oriented.shape, dtype=np.intp)
    for j, column in enumerate(oriented.T):
        order = np.argsort(column)
        labels[order[1:], j] = np.cumsum(np.diff(column[order]) > _PARALLEL)
    _, first, group = np.unique(labels, axis=0, return_index=True, return_inverse=True)
    # NumPy 2.0 returned the inverse as a column.
    return oriented[first], group.reshape(-1), heights < 0


def _in_row_space(normals: Floats) -> Floats:
    """Coordinates (p, rank) of unit rows in an orthonormal basis of their span; the same hyperplanes."""
    _, singular_values, Vt = np.linalg.svd(normals, full_matrices=False)
    rank = int((singular_values > _PARALLEL * singular_values[0]).sum())
    return _unit(normals @ Vt[:rank].T)


def _unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _pack(patterns: Patterns) -> NDArray[np.void]:
    """One key of ceil(n / 8) bytes a column; sorting the keys sorts the columns, on before off."""
    packed = np.ascontiguousarray(np.packbits(~patterns, axis=0).T)
    return packed.view(f"V{packed.shape[1]}")[:, 0]


def _unpack(keys: NDArray[Any], n: int) -> Patterns:
    packed = keys.view(np.uint8).reshape(-1, -(-n // 8))
    return np.ascontiguousarray(~np.unpackbits(packed, axis=1, count=n).astype(bool).T)


def _check_positive_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be an int in the range [1, inf). Got {value!r} instead.")


def _check_gates(gates: ArrayLike, n_features: int) -> Floats:
    W = np.asarray(gates)
    if W.dtype.kind not in "biuf":
        raise ValueError(f"Gate vectors must be real numbers, got an array of dtype {W.dtype}.")
    if W.ndim != 2 or W.shape[0] != n_features or W.shape[1] == 0:
        raise ValueError(
            f"Gate vectors must form an array of shape (n_features, P) = ({n_features}, P) with P >= 1, one "
            f"gate a column. Got an array of shape {W.shape} instead."
        )
    if not np.isfinite(W).all():
        raise ValueError("Gate vectors contain NaN or infinity.")
    return W.astype(np.float64)
