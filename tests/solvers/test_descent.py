from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skcvxbn.losses import LinearQuadratic
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.descent import Interrupted, _alive, _SmoothNetwork, descend, random_network
from skcvxbn.whitening import whiten

WIDTHS = (0.5, 0.1, 0.02, 0.004, 1e-3)


def make(n_outputs=1, fit_intercept=False, beta=0.2):
    rng = np.random.default_rng(n_outputs)
    A = whiten(rng.standard_normal((25, 4))).A
    return Problem(A, LinearQuadratic(rng.standard_normal((25, n_outputs)), 1.0), beta, fit_intercept)


BOTH = pytest.mark.parametrize(("n_outputs", "fit_intercept"), [(1, False), (1, True), (3, False), (3, True)])


@BOTH
@pytest.mark.parametrize("width", [1.0, 0.1, 1e-3])
def test_the_gradient_is_the_slope_of_the_value(width, n_outputs, fit_intercept):
    problem = make(n_outputs, fit_intercept)
    S, V = random_network(problem, 6, np.random.RandomState(0))
    smooth = _SmoothNetwork(problem, S, V, width)
    x, step = smooth.start(S, V), 1e-6
    value, gradient = smooth(x)
    # The value by its definition: half a parabola between -w and w, the bias fitted by least squares.
    T, w = problem.A @ S, width * np.linalg.norm(S, axis=0) / 5
    H = np.where(np.abs(T) < w, (T + w) ** 2 / (4 * w), np.maximum(T, 0))
    R = problem.loss.target - H @ V
    if fit_intercept:
        R -= problem.A[:, -1:] @ np.linalg.lstsq(problem.A[:, -1:], R, rcond=None)[0]
    expected = 0.5 * np.sum(R**2) + 0.1 * (np.sum(S**2) + np.sum(V**2))
    assert value == pytest.approx(expected, rel=1e-12)
    for i in range(0, len(x), 3):
        e = np.zeros_like(x)
        e[i] = step
        slope = (smooth(x + e)[0] - smooth(x - e)[0]) / (2 * step)
        assert gradient[i] == pytest.approx(slope, abs=1e-6)


@BOTH
def test_more_steps_never_cost_more_and_neurons_are_balanced(n_outputs, fit_intercept):
    problem = make(n_outputs, fit_intercept)
    S, V = random_network(problem, 12, np.random.RandomState(0))
    before = S.copy(), V.copy()
    values = []
    for n_steps in (0, 1, 2, 5, 10, 20, 40, 80):
        new_S, new_V = descend(problem, S, V, widths=(0.1,), n_steps=n_steps)
        values.append(_SmoothNetwork(problem, S, V, 0.1)(np.concatenate([new_S.ravel(), new_V.ravel()]))[0])
        assert_allclose(np.linalg.norm(new_S, axis=0), np.linalg.norm(new_V, axis=1), rtol=1e-9, atol=1e-12)
    # Balancing after the last step can only lower the value further.
    assert (np.diff(values) <= 1e-12 * values[0]).all()
    assert values[-1] < 0.8 * values[0]
    assert_array_equal(S, before[0])
    assert_array_equal(V, before[1])


@BOTH
def test_descent_ends_near_a_stationary_point(n_outputs, fit_intercept):
    problem = make(n_outputs, fit_intercept)
    S, V = random_network(problem, 12, np.random.RandomState(0))
    S, V = descend(problem, S, V, widths=WIDTHS, n_steps=300)
    size = np.linalg.norm(S, axis=0) * np.linalg.norm(V, axis=1)
    alive = size > 1e-3 * size.max()
    R = problem.dual_point(S, V)
    along = np.einsum("nj,nc,jc->j", problem.hidden(S), R, V)[alive]
    # Along its own scale each neuron is stationary, kink or not: v^T R^T (A s)_+ = beta ||s|| ||v||.
    assert_allclose(along, problem.beta * size[alive], rtol=1e-3, atol=1e-4)


def test_an_interrupt_carries_the_network_reached(monkeypatch):
    problem, calls, evaluate = make(), [], _SmoothNetwork.__call__
    S, V = random_network(problem, 12, np.random.RandomState(0))

    def interrupted(self, x):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return evaluate(self, x)

    monkeypatch.setattr(_SmoothNetwork, "__call__", interrupted)
    with pytest.raises(Interrupted) as stop:
        descend(problem, S, V, widths=(0.1,), n_steps=100)
    assert problem.objective(*stop.value.network) < 0.9 * problem.objective(S, V)


def test_a_deadline_ends_the_descent():
    problem = make()
    S, V = random_network(problem, 12, np.random.RandomState(0))
    late = descend(problem, S, V, widths=WIDTHS, n_steps=100, deadline=time.monotonic() - 1)
    assert problem.objective(*late) == pytest.approx(problem.objective(S, V))


def test_random_networks_have_about_a_third_of_the_dual_point_at_zero():
    problem = make(2, True)
    S, V = random_network(problem, 40, np.random.RandomState(1))
    output = np.linalg.norm(problem.hidden(S) @ V)
    assert output == pytest.approx(0.3 * np.linalg.norm(problem.zero.R))
    assert_allclose(np.linalg.norm(S, axis=0), np.linalg.norm(V, axis=1))


def test_an_early_stop_saves_steps_and_little_else():
    problem = make()
    S, V = random_network(problem, 60, np.random.RandomState(0))
    exact = problem.objective(*descend(problem, S, V, widths=WIDTHS, n_steps=500))
    early = problem.objective(*descend(problem, S, V, widths=WIDTHS, n_steps=500, tol=1e-3))
    assert exact <= early <= 1.02 * exact


def test_dead_neurons_stay_only_to_make_up_eights():
    rng = np.random.RandomState(0)
    S, V = rng.standard_normal((4, 20)), rng.standard_normal((20, 2))
    size = np.r_[np.full(9, 1e-12), np.ones(11)]
    kept_S, kept_V = _alive(S * size, V)
    assert kept_V.shape == (16, 2)
    assert_array_equal(kept_S[:, -11:], S[:, 9:])
    size[:7] = 0
    assert _alive(S * size, V)[1].shape == (13, 2)
    assert _alive(S * 0, V)[1].shape == (0, 2)


def test_nothing_to_descend_from():
    problem = make()
    S, V = descend(problem, np.zeros((5, 0)), np.zeros((0, 1)), widths=WIDTHS, n_steps=10)
    assert S.shape == (5, 0)
    assert V.shape == (0, 1)


def test_above_the_largest_beta_the_network_vanishes():
    problem = make(beta=100.0)
    S, V = descend(
        problem, *random_network(problem, 10, np.random.RandomState(0)), widths=WIDTHS, n_steps=100
    )
    assert problem.objective(S, V) == pytest.approx(0.5 * np.sum(problem.loss.target**2), rel=1e-9)


def test_float32_stays_float32():
    wide = make(2, True)
    narrow = wide.astype(np.float32)
    S, V = random_network(narrow, 10, np.random.RandomState(0))
    assert S.dtype == V.dtype == np.float32
    S, V = descend(narrow, S, V, widths=WIDTHS, n_steps=100)
    assert S.dtype == V.dtype == np.float32
    reference = descend(wide, *random_network(wide, 10, np.random.RandomState(0)), widths=WIDTHS, n_steps=100)
    assert narrow.objective(S, V) == pytest.approx(wide.objective(*reference), rel=0.05)
