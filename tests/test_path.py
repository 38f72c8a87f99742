from __future__ import annotations

import numpy as np
import pytest

from skcvxbn.path import beta_max
from skcvxbn.training import largest_beta
from skcvxbn.whitening import whiten


def data(n=25, d=1, n_outputs=1, seed=0):
    rng = np.random.default_rng([n, d, n_outputs, seed])
    X = rng.standard_normal((n, d))
    return X, np.sin(2 * X[:, :1]) + rng.standard_normal((n, n_outputs)) + 1.0


def brute_force(x, Y, fit_intercept, weight=None):
    """Maximise over a fine grid of the circle, on coordinates written out for one feature."""
    w = np.ones(len(x)) if weight is None else weight
    centred = x - np.average(x, weights=w)
    A = np.sqrt(w)[:, None] * np.c_[centred / np.sqrt(w @ centred**2), np.full(len(x), w.sum() ** -0.5)]
    target = np.sqrt(w)[:, None] * (Y - np.average(Y, axis=0, weights=w) if fit_intercept else Y)
    angle = np.linspace(0, 2 * np.pi, 100_001)
    hidden = np.maximum(A @ np.stack([np.cos(angle), np.sin(angle)]), 0)
    return np.linalg.norm(target.T @ hidden, axis=0).max()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_one_feature_agrees_with_brute_force(fit_intercept, n_outputs, seed):
    X, Y = data(n_outputs=n_outputs, seed=seed)
    expected = brute_force(X[:, 0], Y, fit_intercept)
    # The grid misses the maximum by the square of its step, or by the step at a kink.
    assert beta_max(X, Y, fit_intercept=fit_intercept) == pytest.approx(expected, rel=1e-4)
    assert beta_max(X, Y, fit_intercept=fit_intercept) >= expected * (1 - 1e-12)


def test_more_features_than_rows_have_a_closed_form():
    # The range of A is everything: the best neuron is y_+ or y_- itself, normalised.
    X, Y = data(8, 20)
    y = Y[:, 0]
    expected = max(np.linalg.norm(np.maximum(y, 0)), np.linalg.norm(np.maximum(-y, 0)))
    assert beta_max(X, y, fit_intercept=False) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_weights_are_repetitions_and_zero_removes(fit_intercept):
    X, Y = data(n_outputs=2)
    weight = np.random.default_rng(1).integers(0, 4, len(X))
    value = beta_max(X, Y, sample_weight=weight, fit_intercept=fit_intercept)
    repeated = beta_max(
        np.repeat(X, weight, axis=0), np.repeat(Y, weight, axis=0), fit_intercept=fit_intercept
    )
    assert value == pytest.approx(repeated, rel=1e-9)
    kept = weight > 0
    assert value >= brute_force(X[kept, 0], Y[kept], fit_intercept, weight[kept].astype(float)) * (1 - 1e-9)


@pytest.mark.parametrize("scale", [1e-200, 1e-12, 1e12, 1e100])
def test_the_target_scales_the_value(scale):
    X, Y = data(30, 4, 2)
    assert beta_max(X, scale * Y) == pytest.approx(scale * beta_max(X, Y), rel=1e-9)


def test_the_features_do_not_scale_it():
    X, Y = data(30, 4)
    one = beta_max(X, Y)
    assert beta_max(X * [1e-12, 1e12, -3.0, 1.0] + [0, 0, 50.0, -4.0], Y) == pytest.approx(one, rel=1e-7)
    assert beta_max(np.c_[X, X[:, 0], np.ones(30)], Y) == pytest.approx(one, rel=1e-9)


def test_an_offset_of_the_target_matters_without_an_intercept_only():
    X, Y = data(30, 3)
    assert beta_max(X, Y + 7.0) == pytest.approx(beta_max(X, Y), rel=1e-9)
    assert beta_max(X, Y + 7.0, fit_intercept=False) > 2 * beta_max(X, Y, fit_intercept=False)


def test_it_is_deterministic_and_needs_no_global_randomness():
    X, Y = data(40, 6, 2)
    np.random.seed(1)  # noqa: NPY002
    one = beta_max(X, Y)
    np.random.seed(2)  # noqa: NPY002
    assert beta_max(X, Y) == one


def test_shapes_of_the_target_and_constants():
    X, Y = data(12, 2)
    assert beta_max(X, Y[:, 0]) == beta_max(X, Y)
    assert beta_max(X, np.full(12, 3.0)) < 1e-12
    assert beta_max(X, np.zeros(12)) == 0
    # Features without variation leave the constant neuron: ||y|| along 1 / sqrt(n).
    assert beta_max(np.ones((4, 2)), np.ones(4), fit_intercept=False) == pytest.approx(2.0)


def test_no_neuron_exceeds_it():
    X, Y = data(40, 5, 3)
    A, target = whiten(X).A, Y - Y.mean(axis=0)
    s = np.random.default_rng(0).standard_normal((6, 100_000))
    values = np.linalg.norm(target.T @ np.maximum(A @ s, 0), axis=0) / np.linalg.norm(s, axis=0)
    assert largest_beta(A, target) >= values.max()
    assert largest_beta(A, target) <= np.linalg.norm(target, 2)


@pytest.mark.parametrize(
    ("X", "y", "weight", "message"),
    [
        ([[1.0], [np.nan]], [1.0, 2.0], None, "NaN"),
        ([[1.0], [2.0]], [1.0, np.inf], None, "infinity"),
        ([[1.0], [2.0]], [1.0, 2.0, 3.0], None, "inconsistent"),
        ([[1.0]], [1.0], None, "minimum of 2"),
        ([[1.0], [2.0]], [1.0, 2.0], [1.0, -1.0], "[Nn]egative"),
        ([[1.0], [2.0]], [1.0, 2.0], [0.0, 0.0], "non-zero"),
        (np.array([[1j], [2.0]]), [1.0, 2.0], None, "[Cc]omplex"),
    ],
)
def test_bad_input_is_refused(X, y, weight, message):
    with pytest.raises(ValueError, match=message):
        beta_max(X, y, sample_weight=weight)
