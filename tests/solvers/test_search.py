"""The search against brute force over the sphere."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skcvxbn.arrays import Rows
from skcvxbn.solvers import landscape as landscape_module
from skcvxbn.solvers import search as search_module
from skcvxbn.solvers.ascent import Rounded
from skcvxbn.solvers.landscape import Landscape
from skcvxbn.solvers.newton_path import Newton
from skcvxbn.solvers.search import (
    BRIEF,
    BROAD,
    NARROW,
    NEARBY,
    QUICK,
    THOROUGH,
    affordable_starts,
    quick_stages,
    random_starts,
    search,
    starts_for,
    starts_near,
    verified,
)
from skcvxbn.whitening import whiten


def grid(rank):
    """Points dense on the unit circle or the unit sphere."""
    if rank == 2:
        angle = np.linspace(0, 2 * np.pi, 200_001)
        return np.stack([np.cos(angle), np.sin(angle)])
    # The Fibonacci lattice.
    k = np.arange(200_000) + 0.5
    height, angle = 1 - 2 * k / len(k), np.pi * (1 + 5**0.5) * k
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height])


def value(A, R, S):
    return np.linalg.norm(R.T @ np.maximum(A @ S, 0), axis=0)


def instance(rank, n_outputs, seed, n=20):
    rng = np.random.default_rng([rank, n_outputs, seed])
    return whiten(rng.standard_normal((n, rank - 1))).A, rng.standard_normal((n, n_outputs))


def run(A, R, n_starts=100, stages=THOROUGH, seed=0):
    starts = random_starts(A.shape[1], R.shape[1], n_starts, np.random.RandomState(seed))
    return search(A, R, *starts, stages=stages)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("rank", [2, 3])
def test_the_maximum_is_at_least_that_of_a_grid(rank, n_outputs, seed):
    A, R = instance(rank, n_outputs, seed)
    S = grid(rank)
    best = max(value(A, R, block).max() for block in np.array_split(S, 10, axis=1))
    found = run(A, R)
    assert found.largest >= best - 1e-9
    # The grid is within 0.01 of every point of the sphere and the value has Lipschitz constant ||R||.
    assert found.largest <= best + 0.01 * np.linalg.norm(R)


@pytest.mark.parametrize("stages", [QUICK, THOROUGH, NARROW])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_candidates_are_unit_distinct_sorted_and_worth_what_they_say(n_outputs, stages):
    A, R = instance(5, n_outputs, 0, n=30)
    found = run(A, R, stages=stages)
    assert len(found.values) > 1
    assert_allclose(np.linalg.norm(found.S, axis=0), 1)
    assert_allclose(np.linalg.norm(found.U, axis=1), 1)
    assert (np.diff(found.values) <= 0).all()
    assert found.largest == found.values[0]
    assert_allclose(found.values, np.einsum("kj,kj->j", np.maximum(A @ found.S, 0), R @ found.U.T))
    positive = found.values > 0
    assert_allclose(found.values[positive], value(A, R, found.S)[positive])
    same = (found.S.T @ found.S > 0.9998) & (found.U @ found.U.T > 0.9998)
    assert_array_equal(same, np.eye(len(found.values), dtype=bool))


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_a_start_is_never_made_worse(n_outputs):
    A, R = instance(6, n_outputs, 3, n=40)
    S, U = random_starts(6, n_outputs, 20, np.random.RandomState(1))
    for s, u in zip(S.T, U, strict=True):
        # With several outputs the start is worth its best output direction.
        worth = np.maximum(A @ s, 0) @ R / np.linalg.norm(s)
        before = float(worth @ u / np.linalg.norm(u)) if n_outputs == 1 else np.linalg.norm(worth)
        assert search(A, R, s[:, None], u[None]).largest >= before - 1e-12


def test_a_maximiser_is_kept():
    A, R = instance(4, 1, 1, n=30)
    best = run(A, R).take(np.array([0]))
    again = search(A, R, 7.0 * best.S, 3.0 * best.U)
    assert again.largest >= best.largest - 1e-12
    assert float(again.S[:, 0] @ best.S[:, 0]) > 0.999


def test_maximisers_on_hyperplanes_are_found():
    # Ascent by s <- A^T D v stops where it meets a hyperplane; the value beyond is found all the same.
    on_hyperplane = 0
    for seed in range(6):
        A, R = instance(3, 1, seed)
        s = run(A, R).S[:, 0]
        on_hyperplane += np.abs(A @ s).min() < 1e-7
    assert on_hyperplane >= 2


def test_the_search_is_deterministic_and_leaves_its_input():
    A, R = instance(4, 2, 0)
    S, U = random_starts(4, 2, 30, np.random.RandomState(0))
    copies = [M.copy() for M in (A, R, S, U)]
    one, two = search(A, R, S, U), search(A, R, S, U)
    assert_array_equal(one.S, two.S)
    assert_array_equal(one.values, two.values)
    for M, copy in zip((A, R, S, U), copies, strict=True):
        assert_array_equal(M, copy)


def test_scale_and_rotation_of_the_dual_point():
    A, R = instance(3, 2, 4)
    largest = run(A, R).largest
    assert run(A, 1e-9 * R).largest == pytest.approx(1e-9 * largest, rel=1e-6)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    assert run(A, R @ rotation).largest == pytest.approx(largest, rel=1e-9)


def test_zero_rows_and_a_zero_dual_point():
    A, R = instance(3, 1, 0)
    padded = run(np.vstack([A, np.zeros((2, 3))]), np.vstack([R, [[5.0], [-5.0]]]))
    assert padded.largest == pytest.approx(run(A, R).largest, rel=1e-9)
    assert run(A, np.zeros_like(R)).largest == 0


def test_one_row_of_data_has_the_obvious_maximum():
    found = run(np.array([[1.0]]), np.array([[-2.0, 1.5]]))
    assert found.largest == pytest.approx(2.5)


def test_float32_stays_float32_and_agrees():
    A, R = instance(3, 1, 2)
    S, U = random_starts(3, 1, 100, np.random.RandomState(0))
    narrow = search(*(M.astype(np.float32) for M in (A, R, S, U)), stages=THOROUGH)
    assert narrow.S.dtype == np.float32
    assert narrow.largest == pytest.approx(run(A, R).largest, rel=1e-4)


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("stage", [Newton((0.03, 0.01), 3), Rounded((0.1, 0.03), 5)])
def test_points_worth_little_go_no_further(n_outputs, stage):
    A, R = instance(5, n_outputs, 0, n=30)
    every, some = (run(A, R, stages=(stage._replace(share=share),)) for share in (0.0, 0.8))
    kept = every.values >= 0.8 * every.largest
    assert 0 < kept.sum() < len(kept)
    assert_array_equal(some.values, every.values[kept])
    starts = random_starts(5, n_outputs, 100, np.random.RandomState(0))
    none = search(A, R, *starts, stages=BROAD, enough=2 * every.largest)
    assert len(none.values) == 0
    assert none.largest == 0


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("stages", [QUICK, BROAD])
def test_it_does_not_matter_which_starts_climb_together(n_outputs, stages, monkeypatch):
    A, R = instance(4, n_outputs, 0, n=25)
    together = run(A, R, stages=stages)
    monkeypatch.setattr(landscape_module, "_TABLE", 1)
    monkeypatch.setattr(landscape_module, "_FEWEST_COLUMNS", 7)
    assert_allclose(run(A, R, stages=stages).values, together.values, rtol=1e-9)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_candidates_can_be_thinned_out_and_joined(n_outputs):
    A, R = instance(5, n_outputs, 0, n=30)
    found = run(A, R)
    apart = found.apart(0.5)
    assert 1 < len(apart.values) < len(found.values)
    assert apart.largest == found.largest
    close = np.minimum(apart.S.T @ apart.S, apart.U @ apart.U.T) > 0.5
    assert_array_equal(close, np.eye(len(close), dtype=bool))
    # Every other one is close to a better one that was kept.
    closest = np.minimum(found.S.T @ apart.S, found.U @ apart.U.T) > 0.5
    better = apart.values >= found.values[:, None]
    assert (closest & better).any(axis=1).all()
    both = apart.joined(found)
    assert_allclose(both.values, found.values)


def test_with_one_output_only_the_sign_of_its_direction_counts():
    A, R = instance(4, 1, 2, n=25)
    S, U = random_starts(4, 1, 30, np.random.RandomState(0))
    assert_array_equal(search(A, R, S, 5 * U).values, search(A, R, S, U).values)
    of_one_sign = [search(A, R, S[:, U[:, 0] == sign], U[U[:, 0] == sign]).largest for sign in (1, -1)]
    assert search(A, R, S, U).largest == max(of_one_sign)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_dual_point_of_one_sign(sign):
    # Without rows that lower it the largest value is that of a single linear piece, or of none.
    A, R = instance(4, 1, 2, n=25)
    R = sign * np.abs(R)
    found = run(A, R)
    assert found.largest == pytest.approx(value(A, R, found.S[:, :1])[0])
    directions = np.random.default_rng(0).standard_normal((4, 100_000))
    assert found.largest >= value(A, R, directions / np.linalg.norm(directions, axis=0)).max()


def test_candidates_of_single_precision_are_verified_in_double():
    A, R = instance(30, 3, 2)
    narrow = verified(A, R, run(A.astype(np.float32), R.astype(np.float32)))
    assert narrow.S.dtype == np.float64
    assert_allclose(np.linalg.norm(narrow.S, axis=0), 1, rtol=1e-14)
    exact = np.linalg.norm(np.maximum(A @ narrow.S, 0).T @ R, axis=1)
    assert_allclose(narrow.values, exact, rtol=1e-12)
    assert (np.diff(narrow.values) <= 0).all()


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_rounded_values_and_gradients(n_outputs):
    A, R = instance(5, n_outputs, 0, n=40)
    S, U = random_starts(5, n_outputs, 20, np.random.RandomState(0))
    S = S / np.linalg.norm(S, axis=0)
    width = np.geomspace(1e-3, 0.3, S.shape[1])
    values, gradient, U = Landscape(A, R, Rows()).rounded(S, U, width)
    slope = np.clip(0.5 + A @ S / (2 * width), 0, 1)
    assert_allclose(gradient, A.T @ (slope * (R @ U.T)), rtol=1e-10, atol=1e-12)
    assert_allclose(values, np.sum(S * gradient, axis=0), rtol=1e-10, atol=1e-12)

    def rounded_relu(H):
        return np.where(np.abs(H) < width, (H + width) ** 2 / (4 * width), np.maximum(H, 0))

    # For fixed output directions it is the gradient of the rounded hidden layer's inner product with them.
    step = 1e-6 * np.random.default_rng(0).standard_normal(S.shape)
    change = rounded_relu(A @ (S + step)) - rounded_relu(A @ (S - step))
    assert_allclose(np.sum(change * (R @ U.T), axis=0), 2 * np.sum(step * gradient, axis=0), rtol=1e-5)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_kinks_of_no_width_are_those_of_the_landscape(n_outputs):
    A, R = instance(4, n_outputs, 1, n=30)
    S, U = random_starts(4, n_outputs, 20, np.random.RandomState(0))
    S, landscape = S / np.linalg.norm(S, axis=0), Landscape(A, R, Rows())
    values, _, new_U = landscape.rounded(S, U, np.full(S.shape[1], 1e-12))
    exact_U, exact = landscape.evaluate(S, U)
    assert_allclose(values, exact, rtol=1e-9)
    assert_allclose(new_U, exact_U, rtol=1e-9)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_only_the_best_points_climb_where_these_are_limited(n_outputs):
    A, R = instance(5, n_outputs, 0, n=30)
    starts = random_starts(5, n_outputs, 40, np.random.RandomState(0))
    first = Rounded((0.1,), 5)
    before = search(A, R, *starts, stages=(first,))
    after = search(A, R, *starts, stages=(first, Newton((0.03, 0.01), 3, n_best=3)))
    assert np.isin(after.values, before.values).sum() >= len(before.values) - 6
    assert after.largest >= before.largest


def test_starts_near_known_directions():
    rng = np.random.RandomState(0)
    S, U = random_starts(9, 2, 5, rng)
    S /= np.linalg.norm(S, axis=0)
    near, sides = starts_near(S, U, 400, rng)
    assert near.shape == (9, 400)
    assert_array_equal(sides, U[np.arange(400) % 5])
    cosines = np.sum(near * S[:, np.arange(400) % 5], axis=0) / np.linalg.norm(near, axis=0)
    angles = np.arccos(cosines)
    assert 0.15 < np.median(angles[::2]) < 0.22 < 0.3 < np.median(angles[1::2]) < 0.42
    assert starts_near(S[:, :0], U[:0], 7, rng)[0].shape == (9, 0)


def test_a_quick_search_is_brief_where_its_fewest_starts_are_dear():
    assert quick_stages(np.broadcast_to(1.0, (20_000, 50))) is QUICK
    assert quick_stages(np.broadcast_to(1.0, (200_000, 500))) is BRIEF
    A, R = instance(30, 3, 2)
    full, brief = (run(A, R, stages=stages) for stages in (QUICK, BRIEF))
    assert 0.98 * full.largest <= brief.largest <= full.largest * (1 + 1e-6)


def test_starts_are_as_many_as_the_budget_allows():
    assert affordable_starts(np.broadcast_to(1.0, (10**7, 100)), THOROUGH) == 8
    assert affordable_starts(np.ones((100, 5)), QUICK) > 1000
    assert affordable_starts(np.ones((100, 5)), THOROUGH) > 1000
    # Of a stage without a limit about half are left.
    a_start = 2.0 * 500 * 10 * (2 * 9 + 0.5 * 9)
    assert starts_for(1e8, np.ones((500, 10)), BROAD) == int(1e8 / a_start)
    # A step to the top takes as long as four, and the few rows within the width for every two directions.
    rows_within = sum(10 + 500 * width for width in (0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001))
    a_start = 4 * (6 * 4.0 * 2 * 500 * 10 + rows_within * 10**2 + 6 * 10**3 / 3)
    assert starts_for(1e8, np.ones((500, 10)), NEARBY) == int(1e8 / a_start)
    S, U = random_starts(4, 1, 10, np.random.RandomState(0))
    assert_array_equal(S[:, :10], S[:, 10:])
    assert_array_equal(U[:, 0], np.repeat([1, -1], 10))


@pytest.mark.parametrize("together", [1, 7, 1000])
def test_points_are_told_apart_however_many_are_compared_together(together, monkeypatch):
    rng = np.random.default_rng(0)
    S, U = rng.standard_normal((3, 60)), np.sign(rng.standard_normal((60, 1)))
    S /= np.linalg.norm(S, axis=0)
    close = np.minimum(S.T @ S, U @ U.T) > 0.9
    expected = list(range(60))
    for j in range(60):
        if j in expected:
            expected = [k for k in expected if k <= j or not close[j, k]]
    monkeypatch.setattr(search_module, "_TOGETHER", together)
    assert_array_equal(search_module._apart(S, U, 0.9), expected)
    assert_array_equal(search_module._apart(S, U, 0.9, 5), expected[:5])
