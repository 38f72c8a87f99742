"""Whitening against numpy's own factorisations: orthonormality, span, rank, weights, the map of new rows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from skcvxbn.whitening import whiten

base = np.random.default_rng(0).standard_normal((30, 4))
# Data, and the rank of the centred rows.
DATA = {
    "tall": (base, 4),
    "wide": (np.random.default_rng(1).standard_normal((6, 40)), 5),
    "square": (base[:4], 3),
    "constant column": (np.c_[base, np.full(30, 7.0)], 4),
    "constant column of inexact mean": (np.c_[base, np.full(30, 0.1)], 4),
    "zero column": (np.c_[base, np.zeros(30)], 4),
    "repeated columns": (base[:, [0, 1, 1, 2, 0]], 3),
    "dependent columns": (np.c_[base[:, :2], base[:, :2] @ [1.0, -3.0]], 2),
    "units from 1e-12 to 1e12": (base * [1e-12, 1e12, 1.0, 1e-3], 4),
    "units from 1e-300 to 1e300": (base * [1e-300, 1e300, 1.0, 1e150], 4),
    "far from zero": (np.add(base, [1e6, -1e9, 0.0, 1e3]), 4),
    "repeated rows": (np.repeat(base[:3], 5, axis=0), 2),
    "rank one": (np.outer(base[:, 0], [1.0, -2.0, 5.0]), 1),
    "single column": (base[:, :1], 1),
    "two rows": (base[:2], 1),
    "one row": (base[:1], 0),
    "no variation": (np.ones((5, 3)), 0),
    "graded": (base @ np.diag([1.0, 1e-3, 1e-6, 1e-9]) @ np.linalg.qr(base[:4])[0], 4),
    "integers": (np.arange(12).reshape(6, 2) ** 2 % 7, 2),
}
# Rounding in the data, and so in the basis, is this much larger where spread is small next to size.
ACCURACY = {"graded": 1e-7, "far from zero": 1e-6}


def span_error(U, X):
    """Largest relative distance of a centred, scaled column of X from the span of U."""
    scaled = X / np.where(np.abs(X).max(axis=0) > 0, np.abs(X).max(axis=0), 1)
    centred = scaled - scaled.mean(axis=0)
    return np.abs(centred - U @ (U.T @ centred)).max()


@pytest.mark.parametrize("name", DATA)
def test_the_basis_is_orthonormal_and_spans_the_centred_columns(name):
    X, rank = DATA[name]
    whitening = whiten(X)
    assert whitening.rank == rank
    assert whitening.A.shape == (len(X), rank + 1)
    assert_allclose(whitening.A.T @ whitening.A, np.eye(rank + 1), atol=ACCURACY.get(name, 1e-12))
    assert_allclose(whitening.A[:, -1], len(X) ** -0.5)
    assert span_error(whitening.A[:, :-1], X) < ACCURACY.get(name, 1e-12)
    assert whitening.n_rows == len(X)


@pytest.mark.parametrize("name", [name for name in DATA if name != "units from 1e-300 to 1e300"])
def test_coordinates_take_the_training_rows_to_the_basis(name):
    X, _ = DATA[name]
    whitening = whiten(X)
    assert_allclose(whitening.coordinates(X), whitening.A, atol=ACCURACY.get(name, 1e-9))
    # The map is affine: the midpoint of two rows goes to the midpoint of their coordinates.
    X = X.astype(float)
    middle = whitening.coordinates((X[:1] + X[-1:]) / 2)
    assert_allclose(middle, (whitening.A[:1] + whitening.A[-1:]) / 2, atol=ACCURACY.get(name, 1e-9))


def test_singular_values_are_those_of_the_scaled_columns():
    X = base * [1.0, 5.0, 1e-4, 1e4]
    scaled = X / np.abs(X).max(axis=0)
    expected = np.linalg.svd(scaled - scaled.mean(axis=0), compute_uv=False)
    assert_allclose(whiten(X).singular_values, expected, rtol=1e-12)


def test_a_vandermonde_matrix_loses_its_condition_and_not_the_square_of_it():
    t = np.linspace(0, 1, 60)
    for degree in (4, 7, 9, 14):
        X = t[:, None] ** np.arange(1, degree + 1)
        centred = X - X.mean(axis=0)  # The largest entry of every column is one: none is rescaled.
        values = np.linalg.svd(centred, compute_uv=False)
        whitening = whiten(X)
        accuracy = 100 * np.finfo(float).eps * values[0] / values[whitening.rank - 1]
        assert_allclose(whitening.A.T @ whitening.A, np.eye(whitening.rank + 1), atol=accuracy)
        # All directions clearly above rounding are kept, none clearly below it is.
        assert np.sum(values > 1e-12 * values[0]) <= whitening.rank <= np.sum(values > 1e-16 * values[0])
        assert span_error(whitening.A[:, :-1], X) < accuracy


@pytest.mark.parametrize("shape", [(25, 3), (5, 9)])
def test_an_integer_weight_is_a_repeated_row(shape):
    rng = np.random.default_rng(2)
    X, weight = rng.standard_normal(shape), rng.integers(1, 5, shape[0])
    weighted, repeated = whiten(X, weight), whiten(np.repeat(X, weight, axis=0))
    assert_allclose(weighted.A.T @ weighted.A, np.eye(weighted.rank + 1), atol=1e-12)
    assert weighted.rank == repeated.rank
    assert weighted.n_rows == repeated.n_rows == weight.sum()
    assert_allclose(weighted.mean, repeated.mean, atol=1e-14)
    # The bases may differ by a rotation: the inner products of rows do not.
    ours, theirs = weighted.coordinates(X), repeated.coordinates(X)
    assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-12)
    assert_allclose(weighted.A, np.sqrt(weight)[:, None] * ours, atol=1e-12)


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_the_unit_of_the_weights_does_not_matter(unit):
    weight = np.random.default_rng(3).uniform(0.5, 2.0, 30)
    one, other = whiten(base, weight), whiten(base, unit * weight)
    assert other.rank == one.rank
    assert_allclose(other.A @ other.A.T, one.A @ one.A.T, atol=1e-12)


def test_rescaling_and_moving_the_features_changes_nothing():
    one = whiten(base).A
    other = whiten(base * [1e-12, -1e12, 3.0, 1e5] + [0.0, 0.0, 50.0, -1e6]).A
    assert_allclose(other @ other.T, one @ one.T, atol=1e-9)


@pytest.mark.parametrize("shape", [(40, 5), (5, 40)])
def test_float32_is_decomposed_in_float64(shape):
    X = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    whitening = whiten(X)
    for part in (whitening.A, whitening.mean, whitening.projection, whitening.coordinates(X)):
        assert part.dtype == np.float32
    exact = whiten(X.astype(np.float64))
    assert whitening.rank == exact.rank == min(shape[1], shape[0] - 1)
    assert_allclose(whitening.A @ whitening.A.T, exact.A @ exact.A.T, atol=1e-6)
    assert_allclose(whitening.coordinates(X), whitening.A, atol=2e-6)
    # A column that repeats another up to float32 rounding is no direction.
    repeated = np.c_[X[:, :2], X[:, :1] * np.float32(1 / 3)]
    assert whiten(repeated).rank == 2


def test_the_data_are_left_as_they_are():
    X, weight = base.copy(), np.ones(30)
    whiten(X, weight)
    np.testing.assert_array_equal(X, base)
    np.testing.assert_array_equal(weight, 1)


def test_blocks_of_rows_add_up(monkeypatch):
    X = np.random.default_rng(5).standard_normal((101, 3))
    whole = whiten(X)
    monkeypatch.setattr("skcvxbn.whitening._BLOCK_ENTRIES", 12)
    assert_allclose(whiten(X).A @ whiten(X).A.T, whole.A @ whole.A.T, atol=1e-13)
