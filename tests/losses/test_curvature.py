"""The Hessians of the losses, by their definition."""

from __future__ import annotations

import numpy as np
import pytest

from skcvxbn.losses import Softmax
from skcvxbn.losses.curvature import Categorical, Diagonal


@pytest.fixture
def smooth(sample):
    """The loss, its kinks rounded, and outputs with curvature in some rows."""
    return sample.loss.smoothed(1.0), sample.outputs(0)


def matrix(curvature, shape):
    """The whole of W, from products with unit vectors."""
    units = np.eye(np.prod(shape)).reshape(-1, *shape)
    return np.array([(curvature @ unit).ravel() for unit in units])


def columns(H, U):
    """Rank-one outputs h_j u_j^T, one a row."""
    return np.einsum("nj,jc->jnc", H, U).reshape(H.shape[1], -1)


def test_it_is_the_derivative_of_the_gradient(smooth):
    loss, F = smooth
    rng, step = np.random.default_rng(1), 1e-6
    curvature = loss.curvature(F)
    for _ in range(4):
        along = rng.standard_normal(F.shape)
        change = (loss.dual(F - step * along) - loss.dual(F + step * along)) / (2 * step)
        assert np.abs(change).max() > 1e-3
        np.testing.assert_allclose(curvature @ along, change, rtol=1e-6, atol=1e-8)


def test_one_block_a_row_symmetric_and_positive(smooth):
    loss, F = smooth
    W = matrix(loss.curvature(F), F.shape)
    np.testing.assert_allclose(W, W.T, atol=1e-15)
    assert np.linalg.eigvalsh(W).min() >= -1e-14
    row = np.repeat(np.arange(len(F)), F.shape[1])
    assert not W[row[:, None] != row].any()


def test_the_root(smooth):
    loss, F = smooth
    curvature = loss.curvature(F)
    units = np.eye(F.size).reshape(-1, *F.shape)
    # Row k of each is the image of unit k: M^T, and M.
    M_transposed = np.array([curvature.root(unit).ravel() for unit in units])
    M = np.array([curvature.root_transposed(unit).ravel() for unit in units])
    np.testing.assert_allclose(M, M_transposed.T, atol=1e-15)
    np.testing.assert_allclose(M @ M.T, matrix(curvature, F.shape), atol=1e-14)


def test_gram(smooth):
    loss, F = smooth
    rng = np.random.default_rng(2)
    H, U = rng.standard_normal((len(F), 5)), rng.standard_normal((5, F.shape[1]))
    curvature = loss.curvature(F)
    expected = columns(H, U) @ matrix(curvature, F.shape) @ columns(H, U).T
    np.testing.assert_allclose(curvature.gram(H, U), expected, rtol=1e-12, atol=1e-13)


def test_along_the_bias(smooth, sample):
    loss, F = smooth
    curvature, d, C = loss.curvature(F), sample.direction, F.shape[1]
    E = columns(np.tile(d[:, None], C), np.eye(C))
    np.testing.assert_allclose(curvature.along(d, C), E @ matrix(curvature, F.shape) @ E.T, atol=1e-14)


def test_across_to_the_bias(smooth, sample):
    loss, F = smooth
    rng, d, C = np.random.default_rng(3), sample.direction, F.shape[1]
    H, U = rng.standard_normal((len(F), 5)), rng.standard_normal((5, C))
    curvature = loss.curvature(F)
    E = columns(np.tile(d[:, None], C), np.eye(C))
    expected = E @ matrix(curvature, F.shape) @ columns(H, U).T
    np.testing.assert_allclose(curvature.cross(d, H, U), expected, rtol=1e-12, atol=1e-13)


def test_the_largest_eigenvalue(smooth):
    loss, F = smooth
    curvature = loss.curvature(F)
    largest = np.linalg.eigvalsh(matrix(curvature, F.shape))[-1]
    assert largest <= curvature.largest * (1 + 1e-12)
    if not isinstance(loss, Softmax):
        assert curvature.largest == pytest.approx(largest, rel=1e-12)


def test_a_trusted_move_changes_the_logits_little(sample):
    loss = sample.loss
    move = sample.outputs(1, size=30.0)
    most = loss.trusted(move)
    if sample.kind.targets in ("one sign", "classes"):
        # The logits, which are the outputs without weights, may change by two.
        assert np.abs(most * move / np.sqrt(sample.weight)[:, None]).max() == pytest.approx(2, rel=1e-12)
        assert loss.scaled(3.0, 5.0).trusted(move / 3) == pytest.approx(most, rel=1e-12)
    else:
        assert most == np.inf
    assert loss.trusted(0 * move) == np.inf


def test_row_curvature_is_an_upper_bound_and_near(smooth):
    loss, F = smooth
    W, C = matrix(loss.curvature(F), F.shape), F.shape[1]
    blocks = np.array([W[i : i + C, i : i + C] for i in range(0, F.size, C)])
    largest = np.linalg.eigvalsh(blocks)[:, -1]
    bound = loss.row_curvature(F)
    assert bound.shape == (len(F), 1)
    assert (bound[:, 0] >= largest * (1 - 1e-12)).all()
    # Exact where outputs are not coupled; twice it at most where they are.
    assert (bound[:, 0] <= largest * (2 if isinstance(loss, Softmax) else 1) * (1 + 1e-12)).all()


def test_of_sure_rows_it_is_not_rounded_away(make_sample):
    margin = np.array([[12.0], [20.0], [60.0]], dtype=np.float32)
    sample = make_sample("logistic", np.ones((3, 1)))
    curvature = sample.loss.astype(np.float32).curvature(margin)
    np.testing.assert_allclose(curvature.weights, np.exp(-margin), rtol=1e-4)


def test_a_weight_for_all_outputs_is_the_same_weight_for_each():
    rng = np.random.default_rng(0)
    weight, H, U, d = (
        rng.uniform(0, 2, (6, 1)),
        rng.standard_normal((6, 4)),
        rng.standard_normal((4, 3)),
        rng.random(6),
    )
    one, each = Diagonal(weight), Diagonal(np.tile(weight, 3))
    F = rng.standard_normal((6, 3))
    np.testing.assert_allclose(one @ F, each @ F, atol=1e-15)
    np.testing.assert_allclose(one.gram(H, U), each.gram(H, U), rtol=1e-12)
    np.testing.assert_allclose(one.along(d, 3), each.along(d, 3), rtol=1e-12)


def test_of_certain_probabilities_there_is_none():
    curvature = Categorical(np.eye(3), np.ones((3, 1)))
    F = np.random.default_rng(0).standard_normal((3, 3))
    np.testing.assert_array_equal(curvature @ F, 0)
    np.testing.assert_array_equal(curvature.along(np.ones(3), 3), 0)
