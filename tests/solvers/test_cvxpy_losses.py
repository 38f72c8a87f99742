"""The reference program for every loss: values by definition, optimal intercepts, weights, and descents."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn import metrics

from skcvxbn import losses
from skcvxbn.arrangements import enumerate_arrangements
from skcvxbn.solvers.cvxpy_reference import solve_cvxpy
from skcvxbn.whitening import whiten

pytest.importorskip("cvxpy")

QUANTILE, EPSILON = 0.3, 0.5


@dataclass(frozen=True)
class Kind:
    """A loss, its targets from numbers with curvature, and its value for one weight a row."""

    bind: Callable
    targets: Callable
    value: Callable


def numbers(y):
    return y[:, None]


def signs(y):
    return np.where(y > 0, 1.0, -1.0)[:, None]


def classes(y):
    return np.eye(3)[np.argsort(np.argsort(y)) * 3 // len(y)]


def huber_value(Y, f, w):
    error = np.abs(f - Y)[:, 0]
    return w @ np.where(error < EPSILON, error**2 / 2, EPSILON * (error - EPSILON / 2))


KINDS = {
    "squared error": Kind(
        losses.squared_error,
        numbers,
        lambda Y, f, w: w.sum() / 2 * metrics.mean_squared_error(Y, f, sample_weight=w),
    ),
    "absolute error": Kind(
        losses.absolute_error,
        numbers,
        lambda Y, f, w: w.sum() * metrics.mean_absolute_error(Y, f, sample_weight=w),
    ),
    "quantile": Kind(
        functools.partial(losses.pinball, quantile=QUANTILE),
        numbers,
        lambda Y, f, w: w.sum() * metrics.mean_pinball_loss(Y, f, sample_weight=w, alpha=QUANTILE),
    ),
    "huber": Kind(functools.partial(losses.huber, epsilon=EPSILON), numbers, huber_value),
    "hinge": Kind(
        losses.hinge,
        signs,
        lambda Y, f, w: w.sum() * metrics.hinge_loss(Y[:, 0], f[:, 0], sample_weight=w),
    ),
    "squared hinge": Kind(
        losses.squared_hinge, signs, lambda Y, f, w: w @ (np.maximum(1 - Y * f, 0) ** 2)[:, 0] / 2
    ),
    "logistic": Kind(
        losses.log_loss,
        signs,
        lambda Y, f, w: w.sum() * metrics.log_loss(Y[:, 0], expit(f[:, 0]), sample_weight=w),
    ),
    "softmax": Kind(
        losses.log_loss,
        classes,
        lambda Y, f, w: w.sum() * metrics.log_loss(Y.argmax(axis=1), softmax(f, axis=1), sample_weight=w),
    ),
    "one hinge a class": Kind(
        losses.hinge,
        lambda y: 2 * classes(y) - 1,
        lambda Y, f, w: w @ np.maximum(1 - Y * f, 0).sum(axis=1),
    ),
}
SEVERAL = ("softmax", "one hinge a class")


@dataclass(frozen=True)
class Solved:
    """A problem and the reference's solution."""

    kind: Kind
    X: np.ndarray
    fit_intercept: bool
    Y: np.ndarray
    weight: np.ndarray
    beta: float
    A: np.ndarray
    result: object

    def value(self, S, V, shift):
        """Problem (N) by its definition, for outputs without weights."""
        F = np.maximum(self.A @ S, 0) @ V + self.A[:, -1:] * shift
        loss = self.kind.value(self.Y, F / np.sqrt(self.weight)[:, None], self.weight)
        return loss + self.beta * sum(
            np.linalg.norm(s) * np.linalg.norm(v) for s, v in zip(S.T, V, strict=True)
        )


def solve(name, X, y, weight, fit_intercept, beta=0.2):
    kind = KINDS[name]
    Y, A = kind.targets(y), whiten(X, weight).A
    result = solve_cvxpy(
        A, kind.bind(Y, weight), beta, enumerate_arrangements(A), fit_intercept=fit_intercept
    )
    return Solved(kind, X, fit_intercept, Y, weight, beta, A, result)


@functools.cache
def solved(name, fit_intercept):
    rng = np.random.default_rng(3)
    # Several outputs need many rounds: their arrangements are fewer.
    X = rng.standard_normal((12, 1 if name in SEVERAL else 2))
    y = np.sin(2 * X[:, 0]) + X[:, -1] ** 2 - 0.8 + 0.3 * rng.standard_normal(12)
    return solve(name, X, y, rng.integers(1, 4, 12).astype(float), fit_intercept)


@pytest.fixture(params=list(KINDS))
def name(request):
    return request.param


@pytest.fixture(params=[False, True])
def problem(request, name):
    return solved(name, request.param)


def test_the_objective_is_the_value_by_definition(problem):
    result = problem.result
    value = problem.value(result.S, result.V, result.shift)
    assert result.objective == pytest.approx(value, rel=1e-12)
    assert result.status == "optimal"
    # Not the network that is zero or constant: there would be little to see.
    assert result.S.shape[1] >= 2
    assert value < 0.9 * problem.value(result.S[:, :0], result.V[:0], result.shift)


def test_bounds_meet(problem):
    result = problem.result
    relative = 1e-5 if problem.Y.shape[1] > 1 else 1e-6
    assert 0 <= result.objective - result.lower_bound <= relative * result.objective


def test_the_dual_point_is_feasible_and_has_the_value(problem):
    result, A = problem.result, problem.A
    s = np.random.default_rng(0).standard_normal((A.shape[1], 50_000))
    s /= np.linalg.norm(s, axis=0)
    assert np.linalg.norm(result.dual.T @ np.maximum(A @ s, 0), axis=0).max() <= problem.beta * (1 + 1e-9)
    loss = problem.kind.bind(problem.Y, problem.weight)
    assert loss.largest_multiple(result.dual) >= 1 - 1e-12
    if problem.fit_intercept:
        np.testing.assert_allclose(A[:, -1] @ result.dual, 0, atol=1e-12)
    # Any outputs bound the dual value from above.
    rng = np.random.default_rng(1)
    for size in (0.1, 1.0, 10.0):
        F = size * rng.standard_normal(problem.Y.shape)
        value = problem.kind.value(problem.Y, F / np.sqrt(problem.weight)[:, None], problem.weight)
        assert result.lower_bound <= value + np.vdot(result.dual, F)


@pytest.mark.parametrize("smooth", ["squared error", "huber", "squared hinge", "logistic", "softmax"])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_without_kinks_the_dual_point_is_minus_the_gradient(smooth, fit_intercept):
    problem = solved(smooth, fit_intercept)
    result, root = problem.result, np.sqrt(problem.weight)[:, None]
    F = np.maximum(problem.A @ result.S, 0) @ result.V + problem.A[:, -1:] * result.shift
    for entry in np.ndindex(F.shape):
        along = np.zeros_like(F)
        along[entry] = 1e-6
        above, below = (
            problem.kind.value(problem.Y, G / root, problem.weight) for G in (F + along, F - along)
        )
        assert -result.dual[entry] == pytest.approx((above - below) / 2e-6, abs=1e-4)


def test_the_intercept_is_optimal(name):
    problem = solved(name, fit_intercept=True)
    result = problem.result

    def value(shift):
        return problem.value(result.S, result.V, shift)

    found = minimize(value, result.shift, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).fun
    assert found >= result.objective * (1 - 1e-7)
    # It is worth something, and without one there is none.
    assert value(0 * result.shift) > result.objective * (1 + 1e-4)
    without = solved(name, fit_intercept=False).result
    assert without.objective > result.objective * (1 + 1e-5)
    assert not without.shift.any()


def test_an_integer_weight_is_a_repeated_row(problem, name):
    rows = np.repeat(np.arange(12), problem.weight.astype(int))
    A, Y = whiten(problem.X[rows]).A, problem.Y[rows]
    loss = problem.kind.bind(Y, np.ones(len(rows)))
    repeated = solve_cvxpy(
        A, loss, problem.beta, enumerate_arrangements(A), fit_intercept=problem.fit_intercept
    )
    relative = 1e-5 if name in SEVERAL else 1e-7
    assert repeated.objective == pytest.approx(problem.result.objective, rel=relative)


def test_no_descent_on_the_network_finds_less(name, descend_from_random):
    problem = solved(name, fit_intercept=True)
    loss = problem.kind.bind(problem.Y, problem.weight)
    rng = np.random.default_rng(5)
    values = [
        problem.value(*descend_from_random(problem.A, loss, problem.beta, rng, n_neurons=8))
        for _ in range(36)
    ]
    assert problem.result.lower_bound <= min(values)
    assert problem.result.objective <= min(values) * (1 + 1e-6)
    # The descents are no straw men: the best one comes near.
    assert min(values) <= problem.result.objective * 1.02


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_above_the_largest_beta_the_network_is_constant(name, fit_intercept):
    problem = solved(name, fit_intercept)
    y = np.linspace(-1, 1, 12) ** 3 + 0.1
    above = solve(name, problem.X, y, problem.weight, fit_intercept, beta=1e3)
    result = above.result
    assert result.S.shape[1] == 0
    assert result.objective == pytest.approx(above.value(result.S, result.V, result.shift), rel=1e-12)
    assert result.lower_bound == pytest.approx(result.objective, rel=1e-6)
    for change in (0.1, -0.1):
        shift = result.shift + (change * np.arange(1, len(result.shift) + 1) if fit_intercept else 0)
        assert above.value(result.S, result.V, shift) >= result.objective * (1 - 1e-9)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("regression", ["squared error", "absolute error", "quantile"])
def test_the_scale_of_the_target_scales_the_solution(regression, scale):
    reference = solved(regression, fit_intercept=True)
    one, beta = reference.result, reference.beta
    Y, power = scale * reference.Y, 2 if regression == "squared error" else 1
    # Outputs are in units of the target, so beta is in units of the loss by that.
    loss = reference.kind.bind(Y, reference.weight)
    other = solve_cvxpy(
        reference.A,
        loss,
        beta * scale ** (power - 1),
        enumerate_arrangements(reference.A),
        fit_intercept=True,
    )
    assert other.objective == pytest.approx(scale**power * one.objective, rel=1e-7)
    assert other.lower_bound == pytest.approx(scale**power * one.lower_bound, rel=1e-6)
