"""Prices of arrangements against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from skcvxbn.arrangements import enumerate_arrangements
from skcvxbn.losses import LinearQuadratic
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.owned_neurons import OwnedNeurons
from skcvxbn.solvers.prices import prices_of
from skcvxbn.whitening import whiten


def instance(n_outputs=1, beta=0.2, seed=0):
    rng = np.random.default_rng([n_outputs, seed])
    A = whiten(rng.standard_normal((10, 2))).A
    problem = Problem(A, LinearQuadratic(rng.standard_normal((10, n_outputs)), 1.0), beta, False)
    return problem, enumerate_arrangements(A), problem.zero.R


def dual_value(problem, on, target):
    """Largest product of the target and a unit vector of the cone: its distance from the polar cone."""
    cone = np.where(on, 1.0, -1.0)[:, None] * problem.A
    return np.sqrt(2 * lsq_linear(-cone.T, target, (0, np.inf), method="bvls").cost)


def assert_attained(problem, patterns, R, priced):
    """Every priced neuron lies in its cone and has the dual value that it is as long as."""
    used = priced.take(np.flatnonzero(priced.sizes > problem.beta))
    assert len(used)
    directions = used.S / used.sizes
    margins = np.where(patterns[:, used.owner], 1, -1) * (problem.A @ directions)
    assert margins.min() >= -1e-10
    values = ((R.T @ (patterns[:, used.owner] * (problem.A @ directions))) * used.U.T).sum(axis=0)
    np.testing.assert_allclose(values, used.sizes, rtol=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_one_output_is_priced_exactly(seed):
    problem, patterns, R = instance(seed=seed)
    prices = prices_of(problem, patterns)
    assert prices.exact
    priced = prices.at(R, OwnedNeurons.none(problem))
    assert_attained(problem, patterns, R, priced)
    found = {
        (int(owner), float(u[0])): size
        for owner, u, size in zip(priced.owner, priced.U, priced.sizes, strict=True)
    }
    for i, on in enumerate(patterns.T):
        for sign in (1.0, -1.0):
            value = dual_value(problem, on, sign * problem.A.T @ (on * R[:, 0]))
            # What is not above beta is not priced, or too high but not above beta.
            assert max(found.get((i, sign), 0.0), problem.beta) == pytest.approx(max(value, problem.beta))


@pytest.mark.parametrize("n_outputs", [2, 3])
def test_several_outputs_are_searched(n_outputs):
    problem, patterns, R = instance(n_outputs)
    prices = prices_of(problem, patterns)
    assert not prices.exact
    none = OwnedNeurons.none(problem)
    quick, confirmed = prices.at(R, none), prices.confirmed(R, none)
    for priced in (quick, confirmed):
        assert_attained(problem, patterns, R, priced)
    assert confirmed.sizes.max() >= quick.sizes.max() * (1 - 1e-12)
    # No unit vector of a dense sample violates its constraint more.
    s = np.random.default_rng(0).standard_normal((3, 20_000))
    values = np.linalg.norm(R.T @ problem.hidden(s / np.linalg.norm(s, axis=0)), axis=0)
    assert values.max() <= confirmed.sizes.max() * (1 + 1e-9)
    assert values.max() >= confirmed.sizes.max() * 0.99


def test_neurons_in_use_are_priced_too():
    problem, patterns, R = instance(2)
    prices = prices_of(problem, patterns)
    best = prices.confirmed(R, OwnedNeurons.none(problem))
    best = best.take(best.sizes.argmax(keepdims=True))
    assert prices.at(R, best).sizes.max() >= best.sizes.max() * (1 - 1e-12)


def test_climbs_go_on_from_where_they_ended():
    problem, patterns, R = instance(3)
    prices, none = prices_of(problem, patterns), OwnedNeurons.none(problem)
    largest = [prices.at(share * R, none).sizes.max() / share for share in (1.0, 0.9, 0.8, 0.7)]
    assert (np.diff(largest) >= -1e-12 * largest[0]).all()
    assert prices.confirmed(R, none).sizes.max() >= largest[-1] * (1 - 1e-12)


def test_a_feasible_dual_point_has_no_price_above_beta():
    problem, patterns, R = instance()
    none = OwnedNeurons.none(problem)
    largest = prices_of(problem, patterns).at(R, none).sizes.max()
    feasible = prices_of(problem, patterns).at(0.999 * problem.beta / largest * R, none)
    assert feasible.sizes.max(initial=0.0) <= problem.beta


def test_maxima_of_like_output_directions_are_told_apart():
    """On a narrow cone the value is largest at both edges, whose output directions have a cosine of 0.988."""
    angle = np.radians(1.5)
    edge = np.array([np.sin(angle), np.cos(angle)]) / (np.sqrt(2) * np.cos(angle))
    A = np.array([edge, edge * [1, -1], [np.sqrt(1 - np.tan(angle) ** 2), 0.0]])
    np.testing.assert_allclose(A.T @ A, np.eye(2), atol=1e-12)
    R = A @ np.diag([1.0, 3.0])
    problem = Problem(A, LinearQuadratic(R, 1.0), 0.5, False)
    priced = prices_of(problem, np.ones((3, 1), dtype=bool)).at(R, OwnedNeurons.none(problem))
    assert 0.98 < priced.U[0] @ priced.U[1] < 0.99
    directions = priced.S / priced.sizes
    np.testing.assert_allclose(np.sort(directions[1]), [-np.sin(angle), np.sin(angle)], atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_largest_value_of_every_arrangement_is_found(seed):
    """Against thirty random output directions of each, led to where alternation ends."""
    rng = np.random.default_rng([3, seed])
    A = whiten(rng.standard_normal((30, 3))).A
    problem = Problem(A, LinearQuadratic(rng.standard_normal((30, 3)), 1.0), 0.1, False)
    R, patterns = problem.zero.R, A @ rng.standard_normal((4, 20)) > 0
    none, prices = OwnedNeurons.none(problem), prices_of(problem, patterns)
    prices.at(R, none)
    confirmed = prices.confirmed(R, none)
    for number, on in enumerate(patterns.T):
        cone, M = np.where(on, 1.0, -1.0)[:, None] * A, A.T @ (on[:, None] * R)
        largest = problem.beta
        for u in rng.standard_normal((30, 3)):
            for _ in range(20):
                target = M @ (u / np.linalg.norm(u))
                s = target + cone.T @ lsq_linear(-cone.T, target, (0, np.inf), method="bvls").x
                if np.linalg.norm(s) < 1e-9:
                    break
                u = M.T @ s / np.linalg.norm(s)
                largest = max(largest, float(np.linalg.norm(u)))
        found = confirmed.sizes[confirmed.owner == number].max(initial=problem.beta)
        assert found >= largest * (1 - 1e-6)
