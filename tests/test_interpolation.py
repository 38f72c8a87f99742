from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from skcvxbn import interpolation
from skcvxbn.interpolation import RankError, minimum_norm_solution, scaled_rows


def matrix(n, d, smallest=1.0, seed=0):
    """Rows with singular values from one down to `smallest`."""
    rng = np.random.default_rng(seed)
    U = np.linalg.qr(rng.standard_normal((n, n)))[0]
    V = np.linalg.qr(rng.standard_normal((d, n)))[0]
    return U * np.geomspace(1, smallest, n) @ V.T


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-6])
def test_it_is_the_pseudoinverse(smallest):
    M, targets = matrix(8, 20, smallest), np.random.default_rng(1).standard_normal((8, 3))
    W = minimum_norm_solution(M, targets, noise=1e-14)
    assert_allclose(M @ W, targets, atol=1e-15 / smallest * 10)
    assert_allclose(W, np.linalg.pinv(M) @ targets, atol=1e-15 / smallest**2 * 10)


def test_refinement_gives_back_the_digits_that_the_gram_matrix_loses():
    M, targets = matrix(30, 40, 1e-4), np.random.default_rng(1).standard_normal((30, 1))
    naive = M.T @ np.linalg.solve(M @ M.T, targets)
    refined = minimum_norm_solution(M, targets, noise=1e-14)

    def error(W):
        return np.linalg.norm(M @ W - targets) / np.linalg.norm(targets)

    assert error(refined) < 1e-11 < error(naive)


def test_the_condition_estimate_chooses_the_decomposition(monkeypatch):
    used = []
    by_singular_values = interpolation._by_singular_values
    monkeypatch.setattr(
        interpolation, "_by_singular_values", lambda *args: used.append("svd") or by_singular_values(*args)
    )
    targets = np.ones((8, 1))
    minimum_norm_solution(matrix(8, 20, 1e-3), targets, noise=1e-14)
    assert used == []
    minimum_norm_solution(matrix(8, 20, 1e-8), targets, noise=1e-14)
    assert used == ["svd"]


def test_float32_arithmetic_only_where_it_is_safe(monkeypatch):
    used = []
    cholesky_solver = interpolation._cholesky_solver

    def spy(M, dtype, dependency):
        used.append(dtype.name)
        return cholesky_solver(M, dtype, dependency)

    monkeypatch.setattr(interpolation, "_cholesky_solver", spy)
    targets = np.ones((8, 1))
    for smallest, expected in ((1e-1, ["float32"]), (1e-4, ["float32", "float64"])):
        used.clear()
        M = matrix(8, 20, smallest).astype(np.float32)
        W = minimum_norm_solution(M, targets, noise=1e-9)
        assert used == expected
        # Refined in float64 whatever the factor.
        assert_allclose(M.astype(np.float64) @ W, targets, atol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(8, 20), (8, 5)])
def test_the_rank_is_checked_even_where_the_targets_are_in_reach(n, d):
    M = np.random.default_rng(0).standard_normal((n, d))
    M[-1] = M[0] + M[1]
    with pytest.raises(RankError, match=f"rank {min(n - 1, d)}, while rank {n}") as caught:
        minimum_norm_solution(M, M @ np.ones((d, 1)), noise=1e-14)
    assert (caught.value.rank, caught.value.required) == (min(n - 1, d), n)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_a_known_dependency_costs_no_rank(dtype, offset):
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((9, 9)) + offset).astype(dtype)
    root = np.sqrt(rng.uniform(0.5, 2, 9))
    unit = root / np.linalg.norm(root)
    targets = rng.standard_normal((9, 2))
    targets -= np.outer(unit, unit @ targets)
    M, mean, scale, noise = scaled_rows(X, root, centre=True)
    assert_allclose(mean, np.average(X.astype(float), axis=0, weights=root**2), rtol=1e-6)
    W = minimum_norm_solution(M, targets, noise=noise, dependency=unit)
    reached = root[:, None] * ((X.astype(np.float64) - mean) @ W) / scale
    reached -= np.outer(unit, unit @ reached)
    eps = np.finfo(dtype).eps
    assert_allclose(reached, targets, atol=200 * eps * max(offset, 1))


@pytest.mark.parametrize("magnitude", [1e-250, 1e-30, 1e30, 1e250])
def test_magnitudes_neither_overflow_nor_underflow(magnitude):
    X = np.random.default_rng(0).standard_normal((4, 6)) * magnitude
    M, mean, scale, noise = scaled_rows(X, np.ones(4), centre=False)
    W = minimum_norm_solution(M, np.ones((4, 1)), noise=noise)
    assert_allclose(M @ W, 1, rtol=1e-10)
    assert_allclose(M * scale, X, rtol=1e-15)
    assert not mean.any()
