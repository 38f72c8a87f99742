"""Sizes of fixed directions against their optimality conditions."""

from __future__ import annotations

import numpy as np
import pytest

from skcvxbn.solvers import output_weights
from skcvxbn.solvers.output_weights import nonnegative_sizes


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
