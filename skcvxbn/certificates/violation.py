"""The largest violation of a dual constraint, bracketed: branch and bound over regions of directions."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from skcvxbn.certificates.regions import (
    Floats,
    Regions,
    Rows,
    axis_to_halve,
    faces,
    joined,
    merged_rows,
    minimise,
    relax,
)
from skcvxbn.solvers.search import NARROW, QUICK, affordable_starts, random_starts, search

_STARTS = 64
# Entries of one block of regions times rows: small enough to stay in the cache.
_BLOCK_ENTRIES = 10**5
_LARGEST_BLOCK, _LEAST_BLOCK = 4096, 32
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class ViolationBound:
    """Brackets of the largest violation ``max ||R^T (A s)_+||`` over unit ``s``.

    Attributes
    ----------
    value : float
        The largest value found, attained at `s`.
    upper : float
        No unit ``s`` has a larger value. A proof, rounding included.
    s : ndarray of shape (rank + 1,)
        Unit hidden direction.
    u : ndarray of shape (1,)
        Its output direction, 1 or -1.
    closed : bool
        Whether `upper` is as small as was asked for.
    n_regions : int
        How many regions were bounded.
    seconds : float
        Wall time taken.
    message : str
        Why the proof ended before it closed; empty if it closed.
    """

    value: float
    upper: float
    s: Floats
    u: Floats
    closed: bool
    n_regions: int
    seconds: float
    message: str


@dataclass
class _Incumbent:
    """The best unit direction so far, and the value up to which a region is of no interest."""

    value: float
    s: Floats
    sign: float
    target: float
    tol: float

    @property
    def threshold(self) -> float:
        return max(self.target, self.value * (1 + self.tol))


def bound_violation(
    A: NDArray,
    R: NDArray,
    *,
    S: NDArray | None = None,
    target: float = 0.0,
    tol: float = 1e-6,
    max_time: float = np.inf,
    max_regions: int = 4_000_000,
) -> ViolationBound:
    """Bound ``max ||R^T (A s)_+||`` over all unit ``s`` from above, by proof, for one output.

    Parameters
    ----------
    A : ndarray of shape (n_samples, rank + 1)
        Whitened rows.
    R : ndarray of shape (n_samples, 1)
        The residual, or any dual point.
    S : ndarray of shape (rank + 1, n_candidates), optional
        Directions to start the search for a large value from, the neurons of a network, say.
    target : float
        A bound this small is good enough; a larger one makes the proof much cheaper.
    tol : float
        Relative distance of the bound from the largest value found that is good enough.
    max_time : float
        Seconds after which the proof ends with the bound it has.
    max_regions : int
        Number of regions after which it does. An open region takes about ``24 (rank + 2)`` bytes.

    Returns
    -------
    ViolationBound
        The bound holds whether or not the proof was closed.

    Raises
    ------
    ValueError
        If `R` has several columns.

    Notes
    -----
    The bound includes an allowance for rounding of ``8 q (n + q) eps ||R||`` (q = rank + 1), which covers the
    sums it is computed from.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.certificates import bound_violation
    >>> from skcvxbn.whitening import whiten
    >>> rng = np.random.default_rng(0)
    >>> A = whiten(rng.standard_normal((30, 2))).A
    >>> proof = bound_violation(A, rng.standard_normal((30, 1)))
    >>> proof.closed, proof.value <= proof.upper <= proof.value * (1 + 1e-5)
    (True, True)
    """
    if R.ndim != 2 or R.shape[1] != 1:
        raise ValueError(f"The proof is for one output only: expected R of shape (n, 1), got {R.shape}.")
    start_time = time.monotonic()
    A, R = A.astype(np.float64), R.astype(np.float64)
    size = float(np.linalg.norm(R))
    n, q = A.shape
    if size == 0:
        return ViolationBound(0.0, 0.0, np.eye(q)[0], np.ones(1), True, 0, 0.0, "")
    rows = merged_rows(A, R[:, 0] / size)
    incumbent = _first_incumbent(rows, S, target / size, tol)
    upper, n_regions, message = _branch(rows, incumbent, start_time + max_time, max_regions)
    upper += rows.error + 8 * q * (n + q) * float(np.finfo(np.float64).eps)
    return ViolationBound(
        value=incumbent.value * size,
        upper=max(upper, incumbent.value) * size,
        s=incumbent.s,
        u=np.array([incumbent.sign]),
        closed=not message,
        n_regions=n_regions,
        seconds=time.monotonic() - start_time,
        message=message,
    )


def _first_incumbent(rows: Rows, S: NDArray | None, target: float, tol: float) -> _Incumbent:
    q = rows.A.shape[1]
    n_starts = min(_STARTS, affordable_starts(rows.A, NARROW))
    starts, signs = random_starts(q, 1, n_starts, np.random.RandomState(0))
    if S is not None:
        starts = np.hstack([S, S, starts])
        signs = np.vstack([np.repeat([[1.0], [-1.0]], S.shape[1], axis=0), signs])
    found = search(rows.A, rows.v[:, None], starts.astype(np.float64), signs, stages=NARROW)
    return _Incumbent(found.largest, found.S[:, 0], float(found.U[0, 0]), target, tol)


def _branch(rows: Rows, incumbent: _Incumbent, deadline: float, max_regions: int) -> tuple[float, int, str]:
    """Bound and bisect regions, the largest bounds first, until none is above the threshold.

    Returns
    -------
    upper : float
        The largest bound of a region that was not divided.
    n_regions : int
        How many were bounded.
    message : str
        Why it ended early, if it did.
    """
    block = int(np.clip(_BLOCK_ENTRIES // len(rows.normals), _LEAST_BLOCK, _LARGEST_BLOCK))
    waiting, closed, n_regions, message = faces(rows), 0.0, 0, ""
    while len(waiting) and not message:
        # Many blocks at a time, so that the cost of keeping the list in order does not grow with its length.
        chosen = max(block, len(waiting) // 8)
        order = np.argpartition(-waiting.bound, min(chosen, len(waiting)) - 1)
        batch, parts = waiting.take(order[:chosen]), [waiting.take(order[chosen:])]
        for first in range(0, len(batch), block):
            if message:
                parts.append(batch.take(slice(first, None)))
                break
            part = batch.take(slice(first, first + block))
            try:
                children = _bisected(rows, part, incumbent)
            except KeyboardInterrupt:
                parts.append(part)
                message = "it was interrupted"
                continue
            n_regions += len(part)
            settled = children.bound <= incumbent.threshold
            closed = max(closed, float(children.bound[settled].max(initial=0.0)))
            parts.append(children.take(~settled))
            if time.monotonic() > deadline:
                message = "its time is up"
            elif n_regions >= max_regions:
                message = f"it has bounded {n_regions} regions, its limit"
        waiting = joined(parts)
    if not len(waiting):
        message = ""
    return max(closed, float(waiting.bound.max(initial=0.0))), n_regions, message


def _bisected(rows: Rows, regions: Regions, incumbent: _Incumbent) -> Regions:
    """Bound the regions and halve those above the threshold; the others are returned whole."""
    relaxation = relax(rows, regions)
    bound, S = minimise(regions, relaxation, incumbent.threshold)
    regions = replace(regions, bound=np.minimum(bound, regions.bound))
    open_ = np.flatnonzero(regions.bound > incumbent.threshold)
    whole = regions.take(regions.bound <= incumbent.threshold)
    if len(open_) == 0:
        return whole
    halved, S = regions.take(open_), S[open_]
    _improve(rows, incumbent, halved, S)
    axis = axis_to_halve(rows, halved, relaxation, open_, S)
    each = np.arange(len(open_))
    lower, upper = halved.lower.copy(), halved.upper.copy()
    middle = (lower[each, axis] + upper[each, axis]) / 2
    upper[each, axis] = lower[each, axis] = middle
    return joined([whole, replace(halved, upper=upper), replace(halved, lower=lower)])


def _improve(rows: Rows, incumbent: _Incumbent, regions: Regions, S: Floats) -> None:
    """Raise the incumbent if the violation at the maximisers of the relaxation is larger."""
    norm = np.maximum(np.linalg.norm(S, axis=1), _TINY)
    values = regions.sign[:, 0] * (np.maximum(S @ rows.A.T, 0) @ rows.v) / norm
    best = int(values.argmax())
    if values[best] <= incumbent.value * (1 + 1e-12):
        return
    start, sign = S[[best]].T / norm[best], regions.sign[[best]]
    found = search(rows.A, rows.v[:, None], start, sign, stages=QUICK)
    if found.largest > incumbent.value:
        incumbent.value, incumbent.s, incumbent.sign = found.largest, found.S[:, 0], float(found.U[0, 0])
