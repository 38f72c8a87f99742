r"""A proof of how far a dual point is from feasible: branch and bound over all arrangements at once.

The lower bound of a fit rests on the largest value of ``||R^T (A s)_+||`` over unit ``s``. For one output
that is the larger of two maxima of ``phi(s) = v^T (A s)_+``, with ``v = R`` and with ``v = -R``. The solvers
search for it; here it is bounded from above, without listing arrangements.

*Regions.* The directions are divided into the 2q cones over the faces of a cube, and these into cones over
boxes: with ``x = s / x0``, ``x0`` being plus or minus the coordinate of the face, ``lower <= x <= upper``.

*Bound.* On a cone each row has ``a_k^T s`` between two multiples ``l_k x0`` and ``h_k x0``, found by interval
arithmetic. If the interval does not contain zero, ``(a_k^T s)_+`` is linear there. Where it does,

- if ``v_k > 0``, the term is at most its chord, ``h_k (a_k^T s - l_k x0) / (h_k - l_k)``, linear again;
- if ``v_k < 0``, it is concave and stays as it is: the smallest of ``-lambda a_k^T s`` over
  ``0 <= lambda <= -v_k``.

With ``g`` the sum of the linear terms and ``A_N`` the rows of the second kind, ``phi`` is at most

    max { (g - A_N^T lambda)^T s : s in the cone, ||s|| <= 1 } = || projection of g - A_N^T lambda on the cone ||

for *every* ``lambda`` in its box, so a minimisation over ``lambda`` that stops anywhere gives a valid bound.
The projection is a search over ``x0`` alone; it too may be inexact, at the price of a correction. Once no
row of the first kind changes sign in a region, its bound is exact: the branching ends after finitely many
steps, at maxima on kinks as well as at smooth ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from skcvxbn.arrangements import distinct_hyperplanes
from skcvxbn.solvers import solve
from skcvxbn.solvers.base import Options, Problem, Solution
from skcvxbn.solvers.search import QUICK, THOROUGH, affordable_starts, random_starts, search

Floats = NDArray[np.float64]

_STARTS = 64
# Networks that are proved, at most: every one but the first holds a neuron that the search had missed.
_ATTEMPTS = 5
# Entries of one block of regions times rows: small enough to stay in the cache.
_BLOCK_ENTRIES = 10**5
_LARGEST_BLOCK, _LEAST_BLOCK = 4096, 32
# Steps of the minimisation over the multipliers, between which the regions that are decided leave.
_STAGES = (0, 5, 5, 10, 20, 40, 80, 160)
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


@dataclass(frozen=True)
class _Regions:
    """Cones over boxes on the faces of the cube, one a row.

    Attributes
    ----------
    face : ndarray of shape (n_regions, q)
        The outward unit normal of the face: ``x0 = face^T s``.
    lower, upper : ndarray of shape (n_regions, q)
        The box; along `face` both equal `face`.
    sign : ndarray of shape (n_regions, 1)
        1 or -1, the output direction.
    bound : ndarray of shape (n_regions,)
        An upper bound of the value, inherited or computed.
    """

    face: Floats
    lower: Floats
    upper: Floats
    sign: Floats
    bound: Floats

    def __len__(self) -> int:
        return len(self.bound)

    def take(self, which: NDArray | slice) -> _Regions:
        return _Regions(
            self.face[which], self.lower[which], self.upper[which], self.sign[which], self.bound[which]
        )


@dataclass(frozen=True)
class _Rows:
    """The data of a proof.

    Attributes
    ----------
    A, v : ndarray of shape (n, q) and (n,)
        Whitened rows, and the residual scaled to unit length.
    normals, weights : ndarray of shape (p, q) and (p,)
        The same function, ``weights^T (normals s)_+``, with parallel rows added up: unit normals. Where rows
        of either sign were parallel, their kinks would be relaxed one by one, and no region small enough.
    magnitude : ndarray of shape (p, q)
        Absolute values of the normals.
    error : float
        How much the two functions may differ at unit ``s``.
    """

    A: Floats
    v: Floats
    normals: Floats
    weights: Floats
    magnitude: Floats
    error: float


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


@dataclass(frozen=True)
class _Relaxation:
    """What is maximised on each region in place of the violation.

    Attributes
    ----------
    linear : ndarray of shape (n_regions, q)
        The linear part ``g``.
    kinks : ndarray of shape (n_regions, m, q)
        Normals of the concave part, padded with zeros.
    limits : ndarray of shape (n_regions, m)
        ``-v_k`` of those rows, the upper limits of the multipliers.
    multipliers : ndarray of shape (n_regions, m)
        Current multipliers.
    chord : ndarray of shape (n_regions, n)
        ``v_k`` where a chord was taken, else zero.
    low, slope : ndarray of shape (n_regions, n)
        ``l_k``, and the slope of the chord.
    """

    linear: Floats
    kinks: Floats
    limits: Floats
    multipliers: Floats
    chord: Floats
    low: Floats
    slope: Floats


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
    rows = _merged(A, R[:, 0] / size)
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


def _merged(A: Floats, v: Floats) -> _Rows:
    """Add up parallel rows, which differ by their weights or, after rounding, in the last digits."""
    lengths = np.linalg.norm(A, axis=1)
    used = np.flatnonzero(lengths > 0)
    unit = A[used] / lengths[used, None]
    _, group, opposite = distinct_hyperplanes(unit)
    _, first, group = np.unique(2 * group + opposite, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    normals, scaled = unit[first], v[used] * lengths[used]
    error = float(np.abs(scaled) @ np.linalg.norm(unit - normals[group], axis=1))
    return _Rows(A, v, normals, np.bincount(group, weights=scaled), np.abs(normals), error)


def _first_incumbent(rows: _Rows, S: NDArray | None, target: float, tol: float) -> _Incumbent:
    q = rows.A.shape[1]
    n_starts = min(_STARTS, affordable_starts(rows.A, THOROUGH))
    starts, signs = random_starts(q, 1, n_starts, np.random.RandomState(0))
    if S is not None:
        starts = np.hstack([S, S, starts])
        signs = np.vstack([np.repeat([[1.0], [-1.0]], S.shape[1], axis=0), signs])
    found = search(rows.A, rows.v[:, None], starts.astype(np.float64), signs, stages=THOROUGH)
    return _Incumbent(found.largest, found.S[:, 0], float(found.U[0, 0]), target, tol)


def _branch(rows: _Rows, incumbent: _Incumbent, deadline: float, max_regions: int) -> tuple[float, int, str]:
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
    waiting, closed, n_regions, message = _faces(rows), 0.0, 0, ""
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
        waiting = _joined(parts)
    if not len(waiting):
        message = ""
    return max(closed, float(waiting.bound.max(initial=0.0))), n_regions, message


def _faces(rows: _Rows) -> _Regions:
    """Every face of the cube, for both output directions."""
    q = rows.A.shape[1]
    face = np.tile(np.vstack([np.eye(q), -np.eye(q)]), (2, 1))
    lower, upper = np.where(face != 0, face, -1.0), np.where(face != 0, face, 1.0)
    sign = np.repeat([[1.0], [-1.0]], 2 * q, axis=0)
    # The hidden layer is nonnegative and no longer than s.
    bound = np.linalg.norm(np.maximum(sign * rows.v, 0), axis=1)
    return _Regions(face, lower, upper, sign, bound)


def _joined(parts: list[_Regions]) -> _Regions:
    return _Regions(
        np.concatenate([part.face for part in parts]),
        np.concatenate([part.lower for part in parts]),
        np.concatenate([part.upper for part in parts]),
        np.concatenate([part.sign for part in parts]),
        np.concatenate([part.bound for part in parts]),
    )


def _bisected(rows: _Rows, regions: _Regions, incumbent: _Incumbent) -> _Regions:
    """Bound the regions and halve those above the threshold; the others are returned whole."""
    relaxation = _relaxation(rows, regions)
    bound, S = _minimised(regions, relaxation, incumbent.threshold)
    regions = replace(regions, bound=np.minimum(bound, regions.bound))
    open_ = np.flatnonzero(regions.bound > incumbent.threshold)
    whole = regions.take(regions.bound <= incumbent.threshold)
    if len(open_) == 0:
        return whole
    halved, S = regions.take(open_), S[open_]
    _improve(rows, incumbent, halved, S)
    axis = _axis_to_halve(rows, halved, relaxation, open_, S)
    each = np.arange(len(open_))
    lower, upper = halved.lower.copy(), halved.upper.copy()
    middle = (lower[each, axis] + upper[each, axis]) / 2
    upper[each, axis] = lower[each, axis] = middle
    return _joined([whole, replace(halved, upper=upper), replace(halved, lower=lower)])


def _relaxation(rows: _Rows, regions: _Regions) -> _Relaxation:
    """Chords for the convex part, and the rows of the concave part that change sign."""
    v = regions.sign * rows.weights
    centre, width = (regions.lower + regions.upper) / 2, (regions.upper - regions.lower) / 2
    middle, radius = centre @ rows.normals.T, width @ rows.magnitude.T
    low, high = middle - radius, middle + radius
    mixed = (low < 0) & (high > 0)
    slope = np.where(mixed, high / np.where(mixed, high - low, 1.0), low >= 0)
    kinked = mixed & (v < 0)
    chord = np.where(mixed & (v > 0), v, 0.0)
    linear = np.where(kinked, 0.0, v * slope) @ rows.normals
    linear -= (chord * slope * low).sum(axis=1, keepdims=True) * regions.face

    # The rows of the concave part differ from region to region and are few: each region lists its own.
    region, row = np.nonzero(kinked)
    count = kinked.sum(axis=1)
    place = np.arange(len(row)) - (np.cumsum(count) - count)[region]
    kinks = np.zeros((len(regions), int(count.max(initial=0)), rows.normals.shape[1]))
    limits, multipliers = np.zeros((2, *kinks.shape[:2]))
    kinks[region, place] = rows.normals[row]
    limits[region, place] = -v[region, row]
    multipliers[region, place] = -(v * slope)[region, row]
    return _Relaxation(linear, kinks, limits, multipliers, chord, low, slope)


def _minimised(regions: _Regions, relaxation: _Relaxation, threshold: float) -> tuple[Floats, Floats]:
    """Bounds of regions, each minimised over its multipliers until it is decided, and the maximisers."""
    bound = np.full(len(regions), np.inf)
    S = np.zeros_like(regions.lower)
    alive = np.arange(len(regions))
    x0 = np.ones((len(regions), 1))
    linear, kinks, limits = relaxation.linear, relaxation.kinks, relaxation.limits
    multipliers, steps = relaxation.multipliers, _step_sizes(kinks)
    for n_steps in _STAGES:
        lower, upper = regions.lower[alive], regions.upper[alive]
        for_descent = (linear, kinks, limits, multipliers, steps, lower, upper, x0)
        multipliers = _descended(*for_descent, n_steps=n_steps)
        p = linear - _combination(multipliers, kinks)
        s, x0 = _project(p, lower, upper, x0, 4)
        value = _support(p, s, lower, upper, regions.face[alive])
        better = value < bound[alive]
        bound[alive[better]] = value[better]
        S[alive] = s
        # Where the relaxation itself exceeds the threshold at s, no multipliers can bring the bound below.
        attained = (linear * s).sum(axis=1) - (limits * np.maximum(_products(kinks, s), 0)).sum(axis=1)
        undecided = (bound[alive] > threshold) & (attained <= threshold * np.linalg.norm(s, axis=1))
        if not undecided.any():
            break
        alive, x0, linear, kinks = alive[undecided], x0[undecided], linear[undecided], kinks[undecided]
        limits, multipliers, steps = limits[undecided], multipliers[undecided], steps[undecided]
    return bound, S


def _step_sizes(kinks: Floats) -> Floats:
    """Step sizes for which projected gradient steps on the multipliers descend: ``1 / ||K^T K||``.

    The norm is at most the Frobenius norm of the fourth power to the power of a quarter, and close to it.
    """
    power = np.linalg.matrix_power(np.matmul(kinks.transpose(0, 2, 1), kinks), 4)
    curvature = np.sqrt(np.sqrt(np.linalg.norm(power, axis=(1, 2))))[:, None]
    # Without any kink there is nothing to step on.
    return 1 / np.where(curvature > 0, curvature, 1.0)


def _descended(
    linear: Floats,
    kinks: Floats,
    limits: Floats,
    multipliers: Floats,
    steps: Floats,
    lower: Floats,
    upper: Floats,
    x0: Floats,
    *,
    n_steps: int,
) -> Floats:
    """Accelerated projected gradient steps on ``1/2 ||projection of g - A_N^T lambda||^2``, with restarts."""
    extrapolated, momentum = multipliers, np.ones((len(multipliers), 1))
    for _ in range(n_steps):
        s, x0 = _project(linear - _combination(extrapolated, kinks), lower, upper, x0, 2)
        new = np.clip(extrapolated + steps * _products(kinks, s), 0, limits)
        move = new - multipliers
        uphill = ((extrapolated - new) * move).sum(axis=1, keepdims=True) > 0
        momentum = np.where(uphill, 1.0, momentum)
        new_momentum = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        extrapolated = new + (momentum - 1) / new_momentum * move
        multipliers, momentum = new, new_momentum
    return multipliers


def _combination(multipliers: Floats, kinks: Floats) -> Floats:
    return np.matmul(multipliers[:, None, :], kinks)[:, 0]


def _products(kinks: Floats, s: Floats) -> Floats:
    return np.matmul(kinks, s[:, :, None])[:, :, 0]


def _project(p: Floats, lower: Floats, upper: Floats, x0: Floats, n_steps: int) -> tuple[Floats, Floats]:
    """Project on the cones, by Newton's method for ``x0``: the rest of the projection clips."""
    for _ in range(n_steps):
        edge = np.where((p < lower * x0) | (lower == upper), lower, np.where(p > upper * x0, upper, 0.0))
        # The edge along the face is never zero.
        x0 = np.maximum((edge * p).sum(axis=1, keepdims=True), 0) / (edge**2).sum(axis=1, keepdims=True)
    return np.clip(p, lower * x0, upper * x0), x0


def _support(p: Floats, s: Floats, lower: Floats, upper: Floats, face: Floats) -> Floats:
    """Upper bound of ``max p^T z`` over unit ``z`` in the cones, from any points `s`.

    In a cone ``(p - s)^T z <= excess * x0(z)``, so that ``p^T z <= (s + excess * face)^T z``. The excess is
    zero when `s` is the projection of `p`.
    """
    rest = p - s
    excess = np.maximum(rest * lower, rest * upper).sum(axis=1, keepdims=True)
    return np.linalg.norm(s + np.maximum(excess, 0) * face, axis=1)


def _improve(rows: _Rows, incumbent: _Incumbent, regions: _Regions, S: Floats) -> None:
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


def _axis_to_halve(
    rows: _Rows, regions: _Regions, relaxation: _Relaxation, which: NDArray, S: Floats
) -> NDArray[np.intp]:
    """Choose the side to which the error of the chords at the maximiser of the relaxation is due."""
    width = (regions.upper - regions.lower) / 2
    x = S / np.maximum((S * regions.face).sum(axis=1, keepdims=True), _TINY)
    offsets = x @ rows.normals.T
    low = relaxation.low[which]
    error = relaxation.chord[which] * (relaxation.slope[which] * (offsets - low) - np.maximum(offsets, 0))
    radius = np.maximum(width @ rows.magnitude.T, _TINY)
    score = width * ((error / radius) @ rows.magnitude)
    # Without any chord the sides themselves decide, which is what makes the regions small.
    return (score + 1e-12 * width).argmax(axis=1)


def prove(problem: Problem, solution: Solution, options: Options, *, max_time: float) -> Solution:
    """Replace the estimated lower bound of a solution by a proof about networks of any width.

    The dual point is the residual of the network. Where the proof finds a neuron that the search had missed,
    the network is trained on with it, and the new one is proved; of all networks and of all bounds the best
    are kept.

    Parameters
    ----------
    problem : Problem
        The training problem, of one output.
    solution : Solution
        A network.
    options : Options
        Those of the solver, whose tolerance is also that of the proof.
    max_time : float
        Seconds for all of this.

    Returns
    -------
    Solution
        Certificate "exact".
    """
    deadline = time.monotonic() + max_time
    best, lower_bound, newest, message = solution, 0.0, solution, ""
    for attempt in range(_ATTEMPTS):
        R = problem.residual(newest.S, newest.V)
        target = _sufficient(problem, R, best.objective * (1 - 0.9 * options.tol))
        remaining = max(deadline - time.monotonic(), 0.0)
        proof = bound_violation(
            problem.A, R, S=newest.S, target=target, tol=0.1 * options.tol, max_time=remaining
        )
        lower_bound = max(lower_bound, problem.dual_bound(R, proof.upper))
        message = "" if proof.closed else f"the proof is not closed: {proof.message}"
        if options.verbose:
            gap = 1 - lower_bound / best.objective
            print(f"proof {attempt + 1}  gap {gap:.1e}  regions {proof.n_regions}  {message}", flush=True)
        if not proof.closed or proof.value <= target or attempt == _ATTEMPTS - 1:
            break
        newest = solve(problem, options, start=_with_newcomer(newest, proof))
        best = min(best, newest, key=lambda candidate: candidate.objective)
    lower_bound = min(lower_bound, best.objective)
    converged = best.objective - lower_bound <= options.tol * best.objective
    if not (converged or message):
        message = "the proof is closed, but found neurons that the search had missed"
    return replace(best, lower_bound=lower_bound, certificate="exact", converged=converged, message=message)


def _sufficient(problem: Problem, R: NDArray, wanted: float) -> float:
    """Return the largest violation for which the dual bound at `R` is the one wanted; 0 if none is."""
    squared, inner = float(np.vdot(R, R)), float(np.vdot(R, problem.target))
    discriminant = inner**2 - 2 * squared * wanted
    if discriminant < 0 or inner <= 0:
        return 0.0
    # The smaller root t of t inner - t^2/2 squared = wanted; the bound has t = beta / violation.
    return problem.beta * (inner + float(np.sqrt(discriminant))) / (2 * wanted)


def _with_newcomer(solution: Solution, proof: ViolationBound) -> tuple[NDArray, NDArray]:
    size = 1e-2 * np.linalg.norm(solution.S, axis=0).mean() if solution.S.size else 1e-2
    S = np.hstack([solution.S, (size * proof.s[:, None]).astype(solution.S.dtype)])
    V = np.vstack([solution.V, (size * proof.u[None]).astype(solution.V.dtype)])
    return S, V
