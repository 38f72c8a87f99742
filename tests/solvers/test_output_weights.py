"""Output weights of fixed hidden directions against their optimality conditions."""

from __future__ import annotations

import numpy as np
import pytest

from skcvxbn.solvers import output_weights
from skcvxbn.solvers.output_weights import group_lasso, nonnegative_sizes


def instance(n=30, n_directions=12, n_outputs=3, seed=0):
    rng = np.random.default_rng([n, n_directions, n_outputs, seed])
    H = np.maximum(rng.standard_normal((n, n_directions)), 0)
    H /= np.linalg.norm(H, axis=0)
    return H, rng.standard_normal((n, n_outputs)), rng


@pytest.mark.parametrize("beta", [1e-3, 0.1, 1.0, 10.0])
def test_sizes_satisfy_the_optimality_conditions(beta):
    H, Y, _ = instance(n_outputs=1)
    sizes = nonnegative_sizes(H, Y[:, 0], beta)
    slack = beta - H.T @ (Y[:, 0] - H @ sizes)
    assert sizes.min() >= 0
    assert slack.min() >= -1e-8
    np.testing.assert_allclose(slack[sizes > 0], 0, atol=1e-8)


def test_a_solver_that_gives_up_is_replaced(monkeypatch):
    H, Y, _ = instance(n_outputs=1)
    expected = nonnegative_sizes(H, Y[:, 0], 0.1)

    def gives_up(*args, **kwargs):
        raise RuntimeError("maximum number of iterations reached")

    monkeypatch.setattr(output_weights.optimize, "nnls", gives_up)
    np.testing.assert_allclose(nonnegative_sizes(H, Y[:, 0], 0.1), expected, atol=1e-6)


@pytest.mark.parametrize("beta", [1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("n_outputs", [2, 5])
@pytest.mark.parametrize("n_directions", [1, 12, 50])
def test_weights_satisfy_the_optimality_conditions(n_directions, n_outputs, beta):
    H, Y, rng = instance(n_directions=n_directions, n_outputs=n_outputs)
    for start in (np.zeros((n_directions, n_outputs)), rng.standard_normal((n_directions, n_outputs))):
        V = group_lasso(H, Y, beta, start, 1e-6)
        correlation = H.T @ (Y - H @ V)
        lengths = np.linalg.norm(V, axis=1)
        used = lengths > 0
        assert np.linalg.norm(correlation, axis=1).max() <= beta * (1 + 1e-5)
        expected = beta * V[used] / lengths[used, None]
        np.testing.assert_allclose(correlation[used], expected, atol=1e-5 * beta)


def test_equal_columns_are_no_obstacle():
    H, Y, _ = instance(n_directions=4)
    twice = np.hstack([H, H])
    V = group_lasso(twice, Y, 0.1, np.zeros((8, 3)))
    one = group_lasso(H, Y, 0.1, np.zeros((4, 3)))
    np.testing.assert_allclose(twice @ V, H @ one, atol=1e-6)


def test_the_start_is_left_untouched():
    H, Y, rng = instance()
    start = rng.standard_normal((12, 3))
    before = start.copy()
    group_lasso(H, Y, 0.1, start)
    np.testing.assert_array_equal(start, before)
