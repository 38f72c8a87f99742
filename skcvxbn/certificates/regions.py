r"""Upper bounds of the violation over regions of directions, for branch and bound over all of them.

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

    max { (g - A_N^T lambda)^T s : s in the cone, ||s|| <= 1 }
        = || projection of g - A_N^T lambda on the cone ||

for *every* ``lambda`` in its box, so a minimisation over ``lambda`` that stops anywhere gives a valid bound.
The projection is a search over ``x0`` alone; it too may be inexact, at the price of a correction. Once no
row of the first kind changes sign in a region, its bound is exact, on kinks as well as at smooth maxima.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skcvxbn.arrangements import distinct_hyperplanes

Floats = NDArray[np.float64]

# Steps of the minimisation over the multipliers, between which the regions that are decided leave.
_STAGES = (0, 5, 5, 10, 20, 40, 80, 160)
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Rows:
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


@dataclass(frozen=True)
class Regions:
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
        """Number of regions."""
        return len(self.bound)

    def take(self, which: NDArray | slice) -> Regions:
        """Keep some of the regions."""
        return Regions(
            self.face[which], self.lower[which], self.upper[which], self.sign[which], self.bound[which]
        )


@dataclass(frozen=True)
class Relaxation:
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


def merged_rows(A: Floats, v: Floats) -> Rows:
    """Add up parallel rows, which differ by their weights or, after rounding, in the last digits."""
    lengths = np.linalg.norm(A, axis=1)
    used = np.flatnonzero(lengths > 0)
    unit = A[used] / lengths[used, None]
    _, group, opposite = distinct_hyperplanes(unit)
    _, first, group = np.unique(2 * group + opposite, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    normals, scaled = unit[first], v[used] * lengths[used]
    error = float(np.abs(scaled) @ np.linalg.norm(unit - normals[group], axis=1))
    return Rows(A, v, normals, np.bincount(group, weights=scaled).astype(np.float64), np.abs(normals), error)


def faces(rows: Rows) -> Regions:
    """Every face of the cube, for both output directions."""
    q = rows.A.shape[1]
    face = np.tile(np.vstack([np.eye(q), -np.eye(q)]), (2, 1))
    lower, upper = np.where(face != 0, face, -1.0), np.where(face != 0, face, 1.0)
    sign = np.repeat([[1.0], [-1.0]], 2 * q, axis=0)
    # The hidden layer is nonnegative and no longer than s.
    bound = np.linalg.norm(np.maximum(sign * rows.v, 0), axis=1)
    return Regions(face, lower, upper, sign, bound)


def joined(parts: list[Regions]) -> Regions:
    """Put lists of regions one after the other."""
    return Regions(
        np.concatenate([part.face for part in parts]),
        np.concatenate([part.lower for part in parts]),
        np.concatenate([part.upper for part in parts]),
        np.concatenate([part.sign for part in parts]),
        np.concatenate([part.bound for part in parts]),
    )


def relax(rows: Rows, regions: Regions) -> Relaxation:
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
    return Relaxation(linear, kinks, limits, multipliers, chord, low, slope)


def minimise(regions: Regions, relaxation: Relaxation, threshold: float) -> tuple[Floats, Floats]:
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


def axis_to_halve(
    rows: Rows, regions: Regions, relaxation: Relaxation, which: NDArray, S: Floats
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
