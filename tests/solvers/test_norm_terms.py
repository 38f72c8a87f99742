"""The norms of the interior point method against what defines them."""

from __future__ import annotations

from decimal import Context, Decimal, localcontext

import numpy as np
import pytest

from skcvxbn.solvers.norm_terms import NormMove, NormTerm

BETA = 0.7


def instance(scale=1.0, seed=0):
    """A point inside the cones, `scale` away from their boundary."""
    rng = np.random.default_rng(seed)
    S, Z = rng.standard_normal((4, 6)), rng.standard_normal((4, 6))
    room = scale * BETA * rng.uniform(0.1, 0.9, 6)
    Z *= (BETA - room) / np.linalg.norm(Z, axis=0)
    return NormTerm(BETA, S, scale * rng.uniform(0.1, 1, 6), Z, room), rng


def test_products_are_inner_products():
    term, _ = instance()
    t = np.linalg.norm(term.S, axis=0) + term.excess
    np.testing.assert_allclose(term.products, BETA * t - (term.S * term.Z).sum(axis=0))


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_curvature_is_positive_definite_and_symmetric(scale):
    term, _ = instance(scale)
    blocks = term.curvature
    np.testing.assert_allclose(blocks, blocks.transpose(0, 2, 1))
    assert (np.linalg.eigvalsh(blocks) > 0).all()


def test_a_move_that_follows_the_pull_keeps_the_first_dual_coordinate():
    # The linearised equations in full: H (dt, ds) + (0, -dz) = tau x^-1 - y with H x = y, where only
    # beta, the first coordinate of y, stands still.
    term, rng = instance()
    tau, dS = 0.3, rng.standard_normal(term.S.shape)
    move = term.move(dS, tau, term.no_correction())
    t = np.linalg.norm(term.S, axis=0) + term.excess
    for j in range(dS.shape[1]):
        x, y = np.r_[t[j], term.S[:, j]], np.r_[BETA, -term.Z[:, j]]
        J = np.diag([1.0] + [-1.0] * 4)
        # Nesterov and Todd's scaling point w: H = (2 J w w^T J - (w^T J w) J) / (w^T J w)^2 maps x to y.
        unit_x, unit_y = x / np.sqrt(x @ J @ x), y / np.sqrt(y @ J @ y)
        w = unit_x + J @ unit_y
        w /= np.sqrt(w @ J @ w)
        H = np.sqrt((y @ J @ y) / (x @ J @ x)) * (2 * np.outer(J @ w, J @ w) - J)
        np.testing.assert_allclose(H @ x, y)
        left = H @ np.r_[move.t[j], dS[:, j]] + np.r_[0, -move.Z[:, j]]
        np.testing.assert_allclose(left, tau * (J @ x) / (x @ J @ x) - y)


def test_newton_steps_centre():
    term, _ = instance()
    tau = 0.05
    for _ in range(30):
        nothing = np.zeros_like(term.S)
        move = term.move(nothing, tau, term.no_correction())
        term = term.moved(move, term.step_length(move))
    t = np.linalg.norm(term.S, axis=0) + term.excess
    np.testing.assert_allclose(term.products, tau, rtol=1e-6)
    np.testing.assert_allclose(t * term.Z, BETA * term.S, atol=1e-6)


def test_the_correction_is_what_a_step_leaves_out():
    # With it a step of length h misses the centre by a third power of h, without it by a second.
    def missed(term, move):
        new = term.moved(move, 1.0)
        t = np.linalg.norm(new.S, axis=0) + new.excess
        return np.abs(t * new.Z - BETA * new.S).max() + np.abs(new.products - 0.05).max()

    ratios = []
    for h in (1e-1, 1e-2):
        term, rng = instance()
        for _ in range(40):
            centring = term.move(np.zeros_like(term.S), 0.05, term.no_correction())
            term = term.moved(centring, term.step_length(centring))
        dS = h * rng.standard_normal(term.S.shape) * term.excess
        plain = term.move(dS, 0.05, term.no_correction())
        corrected = term.move(dS, 0.05, term.correction(plain))
        ratios.append(missed(term, corrected) / missed(term, plain))
    assert ratios[1] < 0.2 * ratios[0]


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_the_longest_step_ends_just_inside(scale):
    term, rng = instance(scale)
    move = term.move(10 * rng.standard_normal(term.S.shape), 0.0, term.no_correction())
    length = term.step_length(move)
    assert 0 < length < 1
    inside = term.moved(move, length)
    assert (inside.excess > 0).all()
    assert (inside.room > 0).all()
    beyond = length / 0.995 * 1.001
    t = np.linalg.norm(term.S, axis=0) + term.excess + beyond * move.t
    outside = np.linalg.norm(term.S + beyond * move.S, axis=0) - t
    outside = np.maximum(outside, np.linalg.norm(term.Z + beyond * move.Z, axis=0) - BETA)
    assert outside.max() > 0


def test_the_distance_to_the_boundary_keeps_its_digits():
    # As small a distance is the rounding of the norm in double precision.
    term, rng = instance(1e-15)
    move = NormMove(*(1e-16 * rng.standard_normal(shape) for shape in ((4, 6), 6, (4, 6))))
    moved = term.moved(move, term.step_length(move))

    def norm(vector):
        return sum(Decimal(float(entry)) ** 2 for entry in vector).sqrt()

    with localcontext(Context(prec=60)):
        for j in range(6):
            step = Decimal(term.step_length(move))
            t = norm(term.S[:, j]) + Decimal(float(term.excess[j])) + step * Decimal(float(move.t[j]))
            assert float(t - norm(moved.S[:, j])) == pytest.approx(moved.excess[j], rel=0.2)
            room = norm(term.Z[:, j]) + Decimal(float(term.room[j])) - norm(moved.Z[:, j])
            assert float(room) == pytest.approx(moved.room[j], rel=0.2)


def shrunk(G, recentring):
    """Minimise ``1/2 ||s - g||^2 + beta ||s||`` for every column, and count the steps."""
    term = NormTerm.start(BETA, np.zeros_like(G), 1.0)
    n_steps = 0
    while np.abs(G - term.S - term.Z).max() > 1e-12 or term.products.max() > 1e-12:
        n_steps += 1
        assert n_steps < 60

        def direction(tau, correction, term=term):
            # Stationarity, z + dz = g - s - ds, for the linearised dz.
            matrix = term.curvature + np.eye(len(G))
            rhs = G - term.S - term.pull(tau, correction)
            return term.move(np.linalg.solve(matrix, rhs.T[:, :, None])[:, :, 0].T, tau, correction)

        predictor = direction(0.0, term.no_correction())
        reached = term.moved(predictor, term.step_length(predictor)).products.mean()
        tau = (reached / term.products.mean()) ** 3 * term.products.mean()
        correction = term.correction(predictor)
        move = direction(tau, correction)
        for _ in range(3 if recentring else 0):
            correction = term.recentred(move, min(1.0, term.step_length(move) + 0.3), tau, 10.0, correction)
            corrected = direction(tau, correction)
            if term.step_length(corrected) < term.step_length(move):
                break
            move = corrected
        term = term.moved(move, term.step_length(move))
    return term, n_steps


def test_the_minimiser_with_a_norm_is_the_shrunk_vector():
    rng = np.random.default_rng(0)
    G = rng.standard_normal((4, 40)) * 10.0 ** rng.uniform(-3, 2, 40)
    lengths = np.linalg.norm(G, axis=0)
    steps = []
    for recentring in (False, True):
        term, n_steps = shrunk(G, recentring)
        np.testing.assert_allclose(term.S, np.maximum(1 - BETA / lengths, 0) * G, atol=1e-7)
        np.testing.assert_allclose(term.Z, np.minimum(1, BETA / lengths) * G, atol=1e-7)
        steps.append(n_steps)
    assert steps[1] < steps[0] < 30
