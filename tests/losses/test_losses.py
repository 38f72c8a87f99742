"""Every loss is what it is called, with its gradient, its conjugate, and the domain of that."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.special import logsumexp

from skcvxbn import losses


def dual_points(sample, number=6):
    """Points of the domain of the dual objective: gradients, and averages of them."""
    points = [sample.loss.dual(sample.outputs(seed, size=2.0)) for seed in range(10, 10 + number)]
    return points + [0.7 * R + 0.3 * Q for R, Q in pairwise(points)]


def test_value(sample):
    for seed, size in ((0, 0.5), (1, 1.0), (2, 5.0)):
        f = sample.outputs(seed, size) / np.sqrt(sample.weight)[:, None]
        expected = sample.kind.value(sample.Y, f, sample.weight)
        assert sample.loss.value(np.sqrt(sample.weight)[:, None] * f) == pytest.approx(expected, rel=1e-12)


def test_an_integer_weight_is_a_repeated_row(sample, make_sample):
    weight = np.arange(1, len(sample.Y) + 1) % 3 + 1
    rows = np.repeat(np.arange(len(sample.Y)), weight)
    weighted, repeated = (
        sample.kind.bind(sample.Y, weight.astype(float)),
        sample.kind.bind(sample.Y[rows], np.ones(len(rows))),
    )
    f = sample.outputs(0)
    assert weighted.value(np.sqrt(weight)[:, None] * f) == pytest.approx(repeated.value(f[rows]), rel=1e-13)


def test_the_dual_point_is_minus_the_gradient(sample):
    loss, step = sample.loss, 1e-6
    for seed in range(4):
        F, along = sample.outputs(seed), sample.outputs(100 + seed)
        slope = (loss.value(F + step * along) - loss.value(F - step * along)) / (2 * step)
        assert -np.vdot(loss.dual(F), along) == pytest.approx(slope, rel=1e-7, abs=1e-8)


def test_value_and_dual_are_evaluate(sample):
    F = sample.outputs(0)
    value, R = sample.loss.evaluate(F)
    assert value == sample.loss.value(F)
    np.testing.assert_array_equal(R, sample.loss.dual(F))
    assert sample.loss.shape == F.shape == R.shape


def test_the_dual_value_bounds_the_loss_from_below(sample):
    loss = sample.loss
    for R in dual_points(sample):
        for seed in range(30):
            F = sample.outputs(seed, size=3.0)
            assert loss.dual_value(R) <= loss.value(F) + np.vdot(R, F) + 1e-10


def test_the_bound_is_attained_at_the_gradient(sample):
    for seed in range(5):
        F = sample.outputs(seed)
        value, R = sample.loss.evaluate(F)
        # Fenchel-Young; a loss with kinks is rounded by 1e-9 for its dual point.
        assert sample.loss.dual_value(R) == pytest.approx(value + np.vdot(R, F), rel=1e-8)


def test_slope_of_the_dual_value(sample):
    loss = sample.loss
    R, Q = dual_points(sample)[:2]
    for t in (0.2, 0.7):
        point, along, step = t * R, Q - R, 1e-5
        slope = (loss.dual_value(point + step * along) - loss.dual_value(point - step * along)) / (2 * step)
        assert loss.dual_slope(point, along) == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_the_domain_ends_at_the_largest_multiple(sample):
    loss = sample.loss
    for R in dual_points(sample):
        most = loss.largest_multiple(R)
        assert most >= 1 - 1e-12
        if np.isinf(most):
            continue
        inside, outside = 0.999 * most * R, 1.001 * most * R
        # Far out along the signs of R one entry at a time: L(F) + <R, F> is bounded below in the domain only.
        rays = []
        for entry in np.ndindex(R.shape):
            F = np.zeros_like(R)
            F[entry] = -1e7 * np.sign(R[entry])
            rays.append((loss.value(F) + np.vdot(inside, F), loss.value(F) + np.vdot(outside, F)))
        within, beyond = np.min(rays, axis=0)
        assert within >= loss.dual_value(inside)
        assert beyond < -1.0


def test_zero_is_in_every_domain(sample):
    zero = np.zeros_like(sample.Y)
    assert sample.loss.largest_multiple(zero) == np.inf
    # The least value that the loss can have at all is zero.
    assert sample.loss.dual_value(zero) == 0


@pytest.mark.parametrize("output", [1e-9, 0.3, 1e9])
def test_other_units(sample, output):
    loss, value = sample.loss, 7.0
    scaled = loss.scaled(output, value)
    for seed in range(3):
        F = sample.outputs(seed)
        assert value * scaled.value(F / output) == pytest.approx(loss.value(F), rel=1e-12)
        R = loss.dual(F)
        # The dual variable is a value per output.
        np.testing.assert_allclose(scaled.dual(F / output), output / value * R, rtol=1e-9, atol=1e-12)
        Q = output / value * R
        assert value * scaled.dual_value(Q) == pytest.approx(loss.dual_value(R), rel=1e-9, abs=1e-9)
        assert scaled.largest_multiple(Q) == pytest.approx(loss.largest_multiple(R), rel=1e-9)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("with_bias", [False, True])
def test_in_its_own_units_the_dual_variable_starts_at_one(sample, size, with_bias):
    loss = sample.loss.scaled(1 / size, 1 / size)
    direction = sample.direction if with_bias else None
    output, value = loss.unit(direction)
    unit = loss.scaled(output, value)
    start = np.zeros(loss.shape)
    if with_bias:
        start = np.outer(direction, unit.best_bias(start, direction))
    assert np.linalg.norm(unit.dual(start)) == pytest.approx(1, rel=1e-6)
    # Both units are natural ones: a loss of order one, reached by outputs of order one.
    assert 0.1 < unit.value(start) < 10 * np.sqrt(start.size)
    assert unit.unit(direction) == pytest.approx((1, 1), rel=1e-6)


def test_rounded_kinks(sample):
    loss = sample.loss
    for width in (1e-3, 0.2, 30.0):
        smooth = loss.smoothed(width)
        if isinstance(loss, losses.LinearQuadratic) and loss.lower is not None and width > loss.rounding:
            bound = np.maximum(-loss.lower, loss.upper)
            allowance = (width - loss.rounding) / 2 * np.sum(bound**2)
        else:
            allowance = 0.0
        for seed in range(5):
            F = sample.outputs(seed)
            value, R = smooth.evaluate(F)
            assert loss.value(F) - allowance - 1e-12 <= value <= loss.value(F) + 1e-12
            assert loss.largest_multiple(R) >= 1
            if allowance > 0:
                assert smooth.curvature(F).weights.max() <= 1 / width * (1 + 1e-12)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_values_at_kinks_are_exact_in_any_units(size, offset):
    rng = np.random.default_rng(0)
    Y = size * (rng.standard_normal((8, 1)) + offset)
    error = size * np.array([[0, 1e-3, -1e-3, 2e-6, -1, 1, 0, 3.0]]).T
    weight = rng.uniform(0.5, 2, 8)
    F = np.sqrt(weight)[:, None] * (Y + error)
    # What is left of the errors, the offset being so much larger.
    left = F / np.sqrt(weight)[:, None] - Y
    expected = weight @ np.abs(left)
    loss = losses.absolute_error(Y, weight)
    value, R = loss.evaluate(F)
    assert value == pytest.approx(expected[0], rel=1e-7)
    # One or minus one away from the kink, nothing at it.
    clear = np.abs(error) >= 1e-3 * size
    np.testing.assert_array_equal(R[clear], (-np.sign(error) * np.sqrt(weight)[:, None])[clear])
    assert np.abs(R[error == 0]).max() < 0.5


def test_rows_of_the_softmax_add_up_to_zero():
    rng = np.random.default_rng(0)
    Y, weight = np.eye(4)[rng.integers(0, 4, 20)], rng.uniform(0.5, 2, 20)
    loss = losses.log_loss(Y, weight)
    for size in (1.0, 30.0):
        F = size * rng.standard_normal(Y.shape)
        np.testing.assert_allclose(loss.dual(F).sum(axis=1), 0, atol=1e-15)
        assert loss.value(F + rng.standard_normal((20, 1))) == pytest.approx(loss.value(F), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_losses_of_sure_rows_are_not_rounded_away(dtype):
    margin = np.array([[10.0], [20.0], [40.0], [80.0]], dtype=dtype)
    one = np.ones((4, 1), dtype=dtype)
    binary = losses.log_loss(one, np.ones(4, dtype=dtype))
    both = losses.log_loss(np.tile(np.eye(2, dtype=dtype)[:1], (4, 1)), np.ones(4, dtype=dtype))
    F = np.hstack([margin, 0 * margin])
    exact = np.exp(-margin.astype(np.float64))
    for row in range(4):
        alone = slice(row, row + 1)
        for loss, G in ((binary, margin), (both, F)):
            R = loss.dual(G)[alone]
            assert abs(R[0, 0]) == pytest.approx(exact[row, 0], rel=1e-4)
    rel = 20 * float(np.finfo(dtype).eps)
    assert binary.value(margin) == pytest.approx(np.log1p(exact).sum(), rel=rel)
    assert both.value(F) == pytest.approx(np.log1p(exact).sum(), rel=rel)


def test_in_single_precision(sample):
    loss, F = sample.loss, sample.outputs(0)
    single, G = loss.astype(np.float32), F.astype(np.float32)
    direction = sample.direction.astype(np.float32)
    value, R = single.evaluate(G)
    assert isinstance(value, float)
    assert value == pytest.approx(loss.value(F), rel=1e-5)
    np.testing.assert_allclose(R, loss.dual(F), atol=1e-5)
    curvature = single.smoothed(0.5).curvature(G)
    results = {
        "dual": R,
        "smoothed dual": single.smoothed(0.5).dual(G),
        "scaled dual": single.scaled(2.0, 3.0).dual(G),
        "bias": single.best_bias(G, direction),
        "balanced": single.balanced(R, direction),
        "curvature": curvature @ G,
        "gram": curvature.gram(G, np.eye(G.shape[1], dtype=np.float32)),
        "along": curvature.along(direction, G.shape[1]),
        "row curvature": single.row_curvature(G),
    }
    assert {name: M.dtype for name, M in results.items()} == dict.fromkeys(results, np.dtype(np.float32))
    for name, number in {
        "dual value": single.dual_value(R),
        "slope": single.dual_slope(R, R),
        "multiple": single.largest_multiple(R),
    }.items():
        assert isinstance(number, float), name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_outputs_overflow_nothing(sample, dtype, size):
    loss, direction = sample.loss.astype(dtype), sample.direction.astype(dtype)
    F = (size * sample.Y + sample.outputs(0)).astype(dtype)
    # An underflow is a probability of zero, as it should be.
    with np.errstate(all="raise", under="ignore"):
        value, R = loss.evaluate(F)
        G = F + direction[:, None] * loss.best_bias(F, direction)
        results = [R, loss.dual(G), loss.balanced(loss.dual(G), direction), loss.smoothed(0.1).dual(F)]
        results += [loss.row_curvature(F), loss.curvature(F) @ F]
        numbers = [value, loss.dual_value(R), loss.dual_slope(R, R)]
        loss.unit(direction)
        assert loss.largest_multiple(R) > 0
    assert all(np.isfinite(M).all() for M in results)
    assert np.isfinite(numbers).all()


def test_log_loss_of_large_outputs():
    logits = np.array([[3e3, 0, -2e3], [0, 1e4, 0], [-500.0, -510, -1e4]])
    Y = np.eye(3)[[1, 1, 1]]
    expected = np.sum(logsumexp(logits, axis=1) - logits[:, 1])
    assert losses.log_loss(Y, np.ones(3)).value(logits) == pytest.approx(expected, rel=1e-14)
    assert losses.log_loss(np.array([[1.0], [-1.0]]), np.ones(2)).value(np.array([[-3e3], [2e3]])) == 5e3
