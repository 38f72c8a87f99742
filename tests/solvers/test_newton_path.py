"""Newton's path to the top: its curvature, its shifts, and where it ends."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import lsq_linear

from skcvxbn.arrays import Rows
from skcvxbn.solvers import newton_path
from skcvxbn.solvers.landscape import Landscape, unit
from skcvxbn.solvers.newton_path import Newton, _RoundedKinks, _weighted_squares
from skcvxbn.solvers.search import random_starts
from skcvxbn.whitening import whiten

WIDTHS = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)


def instance(n_outputs, seed=0, rank=6, n=60):
    rng = np.random.default_rng([n_outputs, seed])
    A = whiten(rng.standard_normal((n, rank - 1))).A
    return Landscape(A, rng.standard_normal((n, n_outputs)), Rows())


def starts(landscape, n_starts, seed=0):
    rank, n_outputs = landscape.A.shape[1], landscape.R.shape[1]
    S, U = random_starts(rank, n_outputs, n_starts, np.random.RandomState(seed))
    return unit(S, axis=0), unit(U, axis=1)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_curvature_is_that_of_the_rows_that_bend_down(n_outputs):
    landscape = instance(n_outputs)
    A, width = landscape.A, np.geomspace(0.01, 0.2, 16)
    kinks = _RoundedKinks(landscape, width)
    point = kinks.at(*starts(landscape, 8 if n_outputs == 1 else 16))
    V = landscape.R @ point.U.T
    weights = np.where(np.abs(A @ point.S) < width, np.maximum(-V, 0), 0) / (2 * width)
    size = np.maximum(point.values, 0.1 * np.linalg.norm(point.gradient, axis=0))
    assert_allclose(kinks._bends(point), np.einsum("kp,kq,kr->pqr", weights / size, A, A), atol=1e-12)
    # The gradient of a small step, output directions held and all rows falling: minus curvature times step.
    falling = Landscape(A, -np.abs(landscape.R[:, :1]), Rows())
    kinks = _RoundedKinks(falling, width)
    S, _ = starts(falling, 8)
    point = kinks.at(S, np.ones((16, 1)))
    step = 1e-7 * np.random.default_rng(0).standard_normal(S.shape)
    change = kinks.at(S + step, point.U).gradient - kinks.at(S - step, point.U).gradient
    size = np.maximum(point.values, 0.1 * np.linalg.norm(point.gradient, axis=0))
    assert_allclose(change, -2 * size * np.einsum("pqr,rp->qp", kinks._bends(point), step), atol=1e-12)


@pytest.mark.parametrize("table", [1, 100, 2**22])
def test_weighted_squares_are_summed_for_every_point(table, monkeypatch):
    monkeypatch.setattr(newton_path, "_TABLE", table)
    rng = np.random.default_rng(0)
    A, weights = rng.standard_normal((30, 4)), rng.random((30, 7)) * (rng.random((30, 7)) < 0.2)
    weights[:, 2] = 0.0
    points, rows = np.nonzero(weights.T)
    products = _weighted_squares(A, rows, points, weights[rows, points], 7)
    assert_allclose(products, np.einsum("kp,kq,kr->pqr", weights, A, A), atol=1e-12)
    assert_allclose(_weighted_squares(A, rows[:0], points[:0], weights[:0, 0], 7), np.zeros((7, 4, 4)))


def test_a_narrower_width_begins_next_to_its_maximum():
    """Of points that have come to rest, the shift leaves less of the gradient than staying does."""
    landscape = instance(1, rank=8, n=200)
    typical = len(landscape.A) ** -0.5

    def unrest(S, U, width):
        gradient = landscape.rounded(S, U, width)[1]
        return np.linalg.norm(unit(gradient, axis=0) - S, axis=0)

    wide, narrow = (np.full(60, width * typical) for width in (0.003, 0.001))
    S, U = starts(landscape, 30)
    for width in (0.03, 0.01, 0.003):
        kinks = _RoundedKinks(landscape, np.full(60, width * typical))
        point, _ = kinks.climbed(kinks.at(S, U), np.zeros(60), 30)
        S, U = point.S, point.U
    resting = unrest(point.S, point.U, wide) < 1e-6
    assert resting.sum() >= 15
    shifted = kinks.narrowed(point, np.full(60, 1 / 3))
    before, after = (unrest(S, point.U, narrow)[resting] for S in (point.S, shifted))
    assert np.median(after / before) < 0.05


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_path_ends_at_a_maximum_on_its_kinks(n_outputs, seed):
    """There the hidden direction is that of the gradient less multipliers of the kinks it lies on."""
    landscape = instance(n_outputs, seed)
    A, n_maxima, n_kinks = landscape.A, 0, 0
    S, U, values = Newton(WIDTHS, 12).climb(landscape, *starts(landscape, 20))
    for s, u, value in zip(S.T, U, values, strict=True):
        hidden, v = A @ s, landscape.R @ u
        assert_allclose(np.maximum(hidden, 0) @ v, value, rtol=1e-12)
        on_kink = np.abs(hidden) < 1e-6
        gradient = A.T @ (v * ((hidden > 0) & ~on_kink))
        upper = np.where(on_kink, np.maximum(-v, 0), 0)[on_kink]
        if on_kink.any():
            multipliers = lsq_linear(A[on_kink].T, gradient, (0, upper + 1e-12)).x
            gradient = gradient - A[on_kink].T @ multipliers
        n_maxima += bool(value > 0 and np.linalg.norm(unit(gradient[:, None], axis=0)[:, 0] - s) < 2e-4)
        n_kinks += bool(on_kink.any())
    assert n_maxima >= 0.75 * (values > 0).sum()
    # Where output directions turn, many maxima are between the kinks.
    assert n_kinks >= (0.9 if n_outputs == 1 else 0.1) * len(values)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_half_of_the_points_begin_on_narrower_kinks(n_outputs):
    landscape = instance(n_outputs)
    S, U = starts(landscape, 6)
    together = np.sort(Newton(WIDTHS[:3], 4).climb(landscape, S, U)[2])
    apart = []
    for which, widths in ((slice(0, None, 2), WIDTHS[:3]), (slice(1, None, 2), (WIDTHS[1], *WIDTHS[1:3]))):
        apart.append(Newton(widths, 4).climb(landscape, S[:, which][:, :1], U[which][:1])[2])
    assert np.isin(np.round(np.concatenate(apart), 9), np.round(together, 9)).all()


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_single_precision_comes_as_far_as_matters(n_outputs):
    landscape = instance(n_outputs)
    S, U = starts(landscape, 30)
    single = Landscape(landscape.A.astype(np.float32), landscape.R.astype(np.float32), Rows())
    stage = Newton(WIDTHS, 6)
    narrow_S, narrow_U, narrow = stage.climb(single, S.astype(np.float32), U.astype(np.float32))
    assert narrow_S.dtype == narrow_U.dtype == narrow.dtype == np.float32
    assert_allclose(narrow.max(), stage.climb(landscape, S, U)[2].max(), rtol=1e-5)


def test_nothing_bends_where_no_row_falls():
    landscape = instance(1)
    rising = Landscape(landscape.A, np.abs(landscape.R), Rows())
    S, _ = starts(rising, 5)
    S, _, values = Newton(WIDTHS, 6).climb(rising, S[:, :5], np.ones((5, 1)))
    on = rising.A @ S > 0
    assert_allclose(S, unit(rising.A.T @ (on * rising.R), axis=0), atol=1e-12)
    assert (values > 0).all()


def test_a_dual_point_of_zero_leaves_all_points():
    landscape = instance(2)
    zero = Landscape(landscape.A, np.zeros_like(landscape.R), Rows())
    S, U = starts(zero, 5)
    same_S, _, values = Newton(WIDTHS, 3).climb(zero, S, U)
    assert_allclose(same_S, S, atol=1e-12)
    assert_allclose(values, 0)
