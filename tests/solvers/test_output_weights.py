"""Sizes of fixed directions against their optimality conditions."""

from __future__ import annotations

import numpy as np
import pytest

from skcvxbn.solvers import output_weights
from skcvxbn.solvers.output_weights import improved_weights, nonnegative_sizes


def instance(n=30, n_directions=12):
    rng = np.random.default_rng([n, n_directions])
    H = np.maximum(rng.standard_normal((n, n_directions)), 0)
    return H / np.linalg.norm(H, axis=0), rng.standard_normal(n)


@pytest.mark.parametrize("beta", [1e-3, 0.1, 1.0, 10.0])
def test_sizes_satisfy_the_optimality_conditions(beta):
    H, y = instance()
    sizes = nonnegative_sizes(H, y, beta)
    slack = beta - H.T @ (y - H @ sizes)
    assert sizes.min() >= 0
    assert slack.min() >= -1e-8
    np.testing.assert_allclose(slack[sizes > 0], 0, atol=1e-8)


def test_a_solver_that_gives_up_is_replaced(monkeypatch):
    H, y = instance()
    expected = nonnegative_sizes(H, y, 0.1)

    def gives_up(*args, **kwargs):
        raise RuntimeError("maximum number of iterations reached")

    monkeypatch.setattr(output_weights.optimize, "nnls", gives_up)
    np.testing.assert_allclose(nonnegative_sizes(H, y, 0.1), expected, atol=1e-6)


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("start", ["nothing", "too large", "of the wrong sign"])
def test_weights_satisfy_the_optimality_conditions(n_outputs, start):
    # More neurons than rows, each of them twice: the inner products are singular.
    H = np.repeat(instance(20, 40)[0], 2, axis=1)
    Y = np.random.default_rng(3).standard_normal((20, n_outputs))
    gram, linear, beta = H.T @ H, H.T @ Y, 0.3
    V = {"nothing": 0 * linear, "too large": 100 * linear, "of the wrong sign": -linear}[start]
    V = improved_weights(gram, linear, V, beta, 1e-8)
    pull, sizes = np.linalg.norm(linear - gram @ V, axis=1), np.linalg.norm(V, axis=1)
    assert 0 < (sizes > 0).sum() < len(sizes)
    assert pull.max() <= beta * (1 + 1e-8)
    assert beta * sizes.sum() - np.vdot(V, linear - gram @ V) <= 1e-8 * beta * sizes.sum()


def test_inner_products_that_rounding_made_indefinite_are_no_obstacle():
    H = np.repeat(instance(20, 40)[0], 5, axis=1)
    Y = np.random.default_rng(3).standard_normal((20, 2))
    noise = 1e-7 * np.random.default_rng(4).standard_normal((200, 200))
    gram, linear = H.T @ H + noise + noise.T, H.T @ Y
    assert np.linalg.eigvalsh(gram)[0] < -1e-7
    V = improved_weights(gram, linear, np.zeros((200, 2)), 0.3)
    exact = improved_weights(H.T @ H, linear, np.zeros((200, 2)), 0.3)

    def objective(V):
        return 0.5 * np.linalg.norm(H @ V - Y) ** 2 + 0.3 * np.linalg.norm(V, axis=1).sum()

    assert objective(V) == pytest.approx(objective(exact), rel=1e-4)
