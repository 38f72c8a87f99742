"""Projections on the cones of arrangements against nonnegative least squares over all rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls

from skcvxbn.solvers import output_weights
from skcvxbn.solvers.cone_projection import ConeProjector
from skcvxbn.whitening import whiten


def instance(n=60, d=4, n_cones=20, seed=0):
    rng = np.random.default_rng([n, d, seed])
    A = whiten(rng.standard_normal((n, d))).A
    patterns = A @ rng.standard_normal((A.shape[1], n_cones)) > 0
    return A, patterns, rng.standard_normal((A.shape[1], n_cones)), rng


def expected(A, patterns, targets):
    columns = []
    for pattern, target in zip(patterns.T, targets.T, strict=True):
        G = A * np.where(pattern, 1.0, -1.0)[:, None]
        columns.append(target + G.T @ nnls(-G.T, target)[0])
    return np.array(columns).T


@pytest.mark.parametrize(("n", "d"), [(60, 4), (12, 2), (3, 2), (200, 12), (5, 1)])
def test_projections_are_exact(n, d):
    A, patterns, targets, _ = instance(n, d)
    S = ConeProjector(A, patterns).project(targets, np.arange(20))
    np.testing.assert_allclose(S, expected(A, patterns, targets), atol=1e-10)


def test_what_is_remembered_changes_no_projection():
    A, patterns, targets, rng = instance()
    projector = ConeProjector(A, patterns)
    for size in (1.0, 1e-3, 1.0):
        targets = targets + size * rng.standard_normal(targets.shape)
        S = projector.project(targets, np.arange(20))
        np.testing.assert_allclose(S, expected(A, patterns, targets), atol=1e-10)


def test_members_of_the_cone_stay_where_they_are():
    A, _, targets, _ = instance()
    projector = ConeProjector(A, A @ targets > 0)
    for _ in range(2):
        np.testing.assert_array_equal(projector.project(targets, np.arange(20)), targets)


@pytest.mark.parametrize("max_passes", [0, 1, 100])
def test_short_of_exact_the_length_is_a_bound(max_passes):
    A, patterns, targets, rng = instance()
    projector = ConeProjector(A, patterns)
    projector.project(targets, np.arange(20))
    targets = targets + 0.3 * rng.standard_normal(targets.shape)
    exact = np.linalg.norm(expected(A, patterns, targets), axis=0)
    level = np.median(exact)
    S = projector.project(targets, np.arange(20), level, max_passes)
    lengths = np.linalg.norm(S, axis=0)
    assert (lengths >= exact - 1e-10).all()
    if max_passes == 100:
        np.testing.assert_allclose(lengths[exact > level], exact[exact > level])
        assert (lengths[exact <= level] <= level + 1e-10).all()


def test_cones_of_a_subset_are_those_asked_for():
    A, patterns, targets, _ = instance()
    cones = np.array([7, 3, 11])
    S = ConeProjector(A, patterns).project(targets[:, cones], cones)
    np.testing.assert_allclose(S, expected(A, patterns[:, cones], targets[:, cones]), atol=1e-10)


def test_cones_come_and_go_with_what_is_remembered():
    A, patterns, targets, _ = instance()
    projector = ConeProjector(A, patterns)
    S = projector.project(targets, np.arange(20))
    some, rest = np.array([7, 3, 11]), np.array([0, 1])
    moved = projector.take(some).with_(projector.take(rest))
    order = np.concatenate([some, rest])
    # Without a pass, what is remembered is all there is.
    again = moved.project(targets[:, order], np.arange(5), max_passes=0)
    np.testing.assert_allclose(again, S[:, order], atol=1e-12)


def test_a_solver_that_gives_up_is_replaced(monkeypatch):
    A, patterns, targets, _ = instance(n=12, d=2)
    reference = expected(A, patterns, targets)

    def gives_up(*args, **kwargs):
        raise RuntimeError("maximum number of iterations reached")

    monkeypatch.setattr(output_weights.optimize, "nnls", gives_up)
    S = ConeProjector(A, patterns).project(targets, np.arange(20))
    np.testing.assert_allclose(S, reference, atol=1e-8)
