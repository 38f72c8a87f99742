"""The best bias is best from any start, and dual points are balanced within the domain."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from skcvxbn import losses
from skcvxbn.losses._bias import monotone_roots

ROWS = 1002


def shifted(F, direction, bias):
    return F + direction[:, None] * bias


def departure(loss, direction, F):
    """How far the columns of the dual point are from balance, next to their size."""
    R = loss.dual(F)
    return np.max(np.abs(direction @ R) / (direction @ np.abs(R) + 1e-30))


def large_problem(name, make_sample, *, imbalanced):
    """Many rows, of which in the classes after the first two each, if imbalanced."""
    rng = np.random.default_rng(0)
    row = np.arange(ROWS)
    label = np.maximum(2 - row // 2, 0) if imbalanced else row % 3
    if name == "softmax":
        Y = np.eye(3)[label]
    elif name in ("hinge", "squared hinge", "logistic"):
        Y = np.where(label > 0, 1.0, -1.0)[:, None]
    else:
        Y = rng.standard_normal((ROWS, 1)) + 10.0 * (label > 0)[:, None]
    return make_sample(name, Y)


OUTPUTS = {
    "zero": lambda Y, noise: 0 * Y,
    "noise": lambda Y, noise: noise,
    "large noise": lambda Y, noise: 300 * noise,
    "separable": lambda Y, noise: 1e3 * Y,
    "all wrong": lambda Y, noise: -1e3 * Y,
    "separable after a shift": lambda Y, noise: 1e3 * Y + 3e3 * np.arange(1, Y.shape[1] + 1),
}


def test_no_other_bias_is_better(sample):
    loss, direction = sample.loss, sample.direction
    rng = np.random.default_rng(1)
    for seed in range(3):
        F = sample.outputs(seed, size=2.0)
        bias = loss.best_bias(F, direction)
        best = loss.value(shifted(F, direction, bias))
        for size in (1e-6, 1e-3, 1.0, 100.0):
            for _ in range(10):
                other = bias + size * rng.standard_normal(bias.shape)
                assert best <= loss.value(shifted(F, direction, other)) * (1 + 1e-14)


def test_a_guess_changes_nothing_but_the_work(sample):
    loss, direction, F = sample.loss, sample.direction, sample.outputs(0)
    bias = loss.best_bias(F, direction)
    best = loss.value(shifted(F, direction, bias))
    for guess in (bias, bias + 1e-9, 0 * bias + 1e4, -1e4 * np.arange(1.0, len(bias) + 1), bias - 1e-3):
        other = loss.best_bias(F, direction, guess)
        assert loss.value(shifted(F, direction, other)) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("name", ["huber", "absolute error", "hinge", "squared hinge", "logistic", "softmax"])
@pytest.mark.parametrize("imbalanced", [False, True])
@pytest.mark.parametrize("outputs", list(OUTPUTS))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_hard_outputs_and_bad_starts(name, imbalanced, outputs, dtype, make_sample):
    sample = large_problem(name, make_sample, imbalanced=imbalanced)
    loss, direction = sample.loss, sample.direction
    noise = np.random.default_rng(2).standard_normal(sample.Y.shape)
    F = OUTPUTS[outputs](sample.Y, noise).astype(dtype).astype(np.float64)
    single, G, d = loss.astype(dtype), F.astype(dtype), direction.astype(dtype)
    best = least_value(loss, F, direction)
    # Moving the bias by its rounding changes the loss by so much.
    reach = 16 * float(np.finfo(dtype).eps) * (np.linalg.norm(F) + np.sqrt(ROWS))
    # Next to a kink of all rows, the bias is that of the loss whose kinks are rounded a little.
    rounded = 0.1 * float(np.finfo(dtype).eps) ** 0.5
    for start in (None, 1e4, -1e4):
        guess = None if start is None else start * np.arange(F.shape[1], 0, -1, dtype=dtype)
        bias = single.best_bias(G, d, guess)
        assert bias.dtype == dtype
        value, R = loss.evaluate(shifted(F, direction, bias.astype(np.float64)))
        allowance = reach * np.sum(direction[:, None] * steepest(loss, R)) + 1e-20
        assert value <= best * (1 + rounded) + allowance
        if name == "softmax":
            assert abs(bias.sum(dtype=np.float64)) <= 1e-6 * np.abs(bias).max() + 1e-9


def steepest(loss, R):
    """Slope of each row: the largest, which it may have next to a kink, or that of the dual point."""
    if isinstance(loss, losses.LinearQuadratic):
        bound = np.maximum(-loss.lower, loss.upper)
        return np.where(np.isfinite(bound), bound, np.abs(R))
    return np.abs(R)


def least_value(loss, F, direction):
    """Minimum over the bias: a kink, found by bounded search, or where the gradient is zero."""
    if isinstance(loss, losses.Softmax):
        bias = loss.best_bias(F, direction)
        value = loss.value(shifted(F, direction, bias))
        assert departure(loss, direction, shifted(F, direction, bias)) < 1e-9 or value < 1e-9
        return value

    def value_at(b):
        return loss.value(shifted(F, direction, np.array([b])))

    if isinstance(loss, losses.LinearQuadratic):
        kinks = np.unique(((loss.target - F)[:, 0] / direction).round(9))
        values = [value_at(b) for b in kinks[:: max(1, len(kinks) // 2000)]]
        middle = kinks[int(np.argmin(values))]
    else:
        middle = 0.0
    width = 10 * (np.abs(F).max() + 20) / direction.min()
    found = minimize_scalar(
        value_at, bounds=(middle - width, middle + width), method="bounded", options={"xatol": 1e-12}
    )
    return min(float(found.fun), value_at(middle))


def test_softmax_balances_the_classes():
    rng = np.random.default_rng(0)
    Y, weight = np.eye(4)[rng.choice(4, 500, p=[0.01, 0.09, 0.4, 0.5])], rng.uniform(0.5, 2, 500)
    loss, direction = losses.log_loss(Y, weight), np.sqrt(weight / weight.sum())
    for size in (0.0, 1.0, 10.0, 100.0):
        F = size * rng.standard_normal(Y.shape)
        bias = loss.best_bias(F, direction)
        assert departure(loss, direction, shifted(F, direction, bias)) < 1e-12
    # Without outputs the probabilities are the shares of the classes.
    zero = shifted(0 * F, direction, loss.best_bias(0 * F, direction))
    entropy = -np.sum(weight @ Y * np.log(weight @ Y / weight.sum()))
    assert loss.value(zero) == pytest.approx(entropy, rel=1e-13)


def test_median_and_quantile():
    rng = np.random.default_rng(0)
    y, weight = rng.standard_normal((101, 1)) + 1e6, np.ones(101)
    direction = np.full(101, 101**-0.5)
    for loss, expected in (
        (losses.absolute_error(y, weight), np.median(y)),
        (losses.pinball(y, weight, 0.25), np.quantile(y, 0.25, method="inverted_cdf")),
        (losses.squared_error(y, weight), np.mean(y)),
    ):
        bias = loss.best_bias(np.zeros((101, 1)), direction)
        assert bias[0] * direction[0] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [0.5, 5.0, 1e3])
@pytest.mark.parametrize("error", [0.0, 1e-6, 1e-2])
def test_a_balanced_dual_point_stays_in_the_domain(sample, dtype, size, error):
    loss, direction = sample.loss.astype(dtype), sample.direction.astype(dtype)
    F = sample.outputs(3, size).astype(dtype)
    bias = loss.best_bias(F, direction)
    R = loss.dual(shifted(F, direction, bias * (1 + dtype(error)) + dtype(error)))
    balanced = loss.balanced(R, direction)
    rounding = 30 * float(np.finfo(dtype).eps)
    assert np.abs(direction @ balanced).max() <= rounding * (direction @ np.abs(R)).max()
    assert loss.largest_multiple(balanced) >= 1 - rounding
    # Signs and sums, which no multiple sees.
    if sample.kind.targets in ("one sign", "signs"):
        assert (balanced * sample.Y >= 0).all()
    if sample.kind.targets == "classes":
        assert (np.where(sample.Y > 0, -1, 1) * balanced <= 0).all()
        np.testing.assert_allclose(balanced.sum(axis=1), 0, atol=rounding * np.abs(R).max())
    # A little: no more than the departure asks for.
    off = np.max(np.abs(direction @ R) / np.maximum(direction @ np.abs(R), 1e-30))
    assert np.linalg.norm(balanced - R) <= (20 * off + rounding) * np.linalg.norm(R) or size > 100


def test_roots_in_any_units_from_any_start():
    """A step, a slope that dies out and a slope that is nowhere zero, side by side."""
    root = np.array([3.0, -2.0, 5.0])
    calls = []

    def function(x):
        calls.append(x)
        y = x / unit - root
        value = np.array([np.sign(y[0]), np.tanh(y[1]), y[2] + np.arctan(y[2])])
        slope = np.array([0.0, 1 - value[1] ** 2, 1 + 1 / (1 + y[2] ** 2)]) / unit
        return np.maximum(value, 0), np.maximum(-value, 0), slope

    for unit in (1e-12, 1.0, 1e12):
        for start in (np.zeros(3), np.full(3, 1e4 * unit), np.array([-1e4, 1e-8, 5.0]) * unit):
            calls.clear()
            x = monotone_roots(function, start, np.full(3, unit))
            np.testing.assert_allclose(x / unit, root, rtol=1e-12)
            assert len(calls) < 90


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_start_in_a_tail_that_dies_out(dtype):
    """Newton's steps crawl there, and strides that grow meanwhile would end beyond the largest number."""
    rng = np.random.default_rng(0)
    Y = np.where(np.arange(50) < 25, -1.0, 1.0)[:, None]
    weight = np.where(Y[:, 0] < 0, 1e5, 1e-2)
    direction = np.sqrt(weight / weight.sum())
    F = np.where(Y < 0, 1e4 * rng.random((50, 1)), 280 + 10 * rng.random((50, 1)))
    loss = losses.log_loss(Y, weight).astype(dtype)
    evaluations = []

    class Counting(type(loss)):
        def dual(self, F):
            evaluations.append(F)
            return super().dual(F)

    for start in (-4.3e6, 4.3e6, 0.0):
        evaluations.clear()
        with np.errstate(all="raise", under="ignore"):
            bias = Counting(loss.slope, loss.scale).best_bias(
                F.astype(dtype), direction.astype(dtype), np.full(1, start, dtype)
            )
        assert len(evaluations) < 40
        # The classes can be separated.
        assert loss.value(shifted(F, direction, bias)) < 1e-12


def test_a_root_at_zero_is_found_in_a_few_steps():
    # Its relative size is all rounding: that must not be resolved.
    rng = np.random.default_rng(0)
    y = rng.standard_normal((300, 1))
    direction = np.full(300, 300**-0.5)
    for loss in (losses.huber(y, np.ones(300), 0.5), losses.absolute_error(y, np.ones(300)).smoothed(0.1)):
        F = shifted(0 * y, direction, loss.best_bias(0 * y, direction))
        evaluations = []

        class Counting(type(loss)):
            def _gradient(self, distance, rounding, *, log=evaluations):
                log.append(1)
                return super()._gradient(distance, rounding)

        again = Counting(loss.target, loss.rounding, loss.lower, loss.upper).best_bias(F, direction)
        assert np.abs(again).max() < 1e-12
        assert len(evaluations) <= 4


@pytest.mark.parametrize("start", [[21, -31, 17], [2846, 8632, -2092], [-235, -169, 1311]])
def test_the_hessian_of_softmax_is_singular_to_rounding_far_from_the_best_bias(start):
    loss = losses.log_loss(np.eye(3)[[2, 1, 2, 0]], np.ones(4))
    bias = loss.best_bias(np.zeros((4, 3)), np.full(4, 0.5), np.array(start, dtype=float))
    expected = 2 * np.log([0.25, 0.25, 0.5])
    np.testing.assert_allclose(bias, expected - expected.mean(), atol=1e-6)
