"""The Newton systems of the interior point method against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest

from skcvxbn.losses import Diagonal, LinearQuadratic
from skcvxbn.losses.curvature import Categorical
from skcvxbn.solvers import newton_system, preconditioned_system
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.newton_system import DirectSystem, NewtonSystem
from skcvxbn.solvers.preconditioned_system import PreconditionedSystem, factorised, work_of_system
from skcvxbn.whitening import whiten

UNIT = Diagonal(np.ones((15, 1)))


def instance(n=15, d=3, n_neurons=6, n_outputs=1, fit_intercept=True, seed=0):
    rng = np.random.default_rng([n, d, n_neurons, n_outputs, seed])
    A = whiten(rng.standard_normal((n, d))).A
    problem = Problem(A, LinearQuadratic(rng.standard_normal((n, n_outputs)), 1.0), 0.1, fit_intercept)
    D = (A @ rng.standard_normal((A.shape[1], n_neurons)) > 0).astype(float)
    U = rng.standard_normal((n_neurons, n_outputs))
    U /= np.linalg.norm(U, axis=1, keepdims=True)
    return problem, D, U, rng


def spread_blocks(rng, n_neurons, rank, low, high):
    """Positive definite blocks whose eigenvalues span these powers of ten."""
    Q = np.linalg.qr(rng.standard_normal((n_neurons, rank, rank)))[0]
    values = 10.0 ** rng.uniform(low, high, (n_neurons, rank))
    return np.matmul(Q * values[:, None, :], Q.transpose(0, 2, 1))


def curvature_of(kind, n, n_outputs, rng):
    """A curvature with large and small weights."""
    if kind == "unit":
        return Diagonal(np.ones((n, 1)))
    if kind == "diagonal":
        return Diagonal(10.0 ** rng.uniform(-3, 3, (n, n_outputs)))
    P = rng.dirichlet(np.full(n_outputs, 0.5), size=n)
    return Categorical(P, rng.uniform(0.5, 2, (n, 1)))


def dense(system, curvature, blocks):
    """The matrix itself, column by column, from the definition of ``F``; the bias by its Schur complement."""
    n_neurons, rank = blocks.shape[:2]
    basis = np.eye(n_neurons * rank).reshape(-1, n_neurons, rank).transpose(0, 2, 1)
    fits = [system.fit(X) for X in basis]
    F = np.stack([fit.ravel() for fit in fits], axis=1)
    WF = np.stack([(curvature @ fit).ravel() for fit in fits], axis=1)
    matrix = F.T @ WF
    if system.problem.fit_intercept:
        e, n_outputs = system.A[:, -1:], system.problem.n_outputs
        E = [e * unit for unit in np.eye(n_outputs)]
        WE = np.stack([(curvature @ column).ravel() for column in E], axis=1)
        EWE = np.stack([column.ravel() for column in E], axis=1).T @ WE
        matrix -= (F.T @ WE) @ np.linalg.pinv(EWE) @ (WE.T @ F)
    for j, block in enumerate(blocks):
        matrix[j * rank : (j + 1) * rank, j * rank : (j + 1) * rank] += block
    return matrix


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_fit_is_the_definition_and_adjoint_its_transpose(n_outputs, fit_intercept):
    problem, D, U, rng = instance(n_outputs=n_outputs, fit_intercept=fit_intercept)
    X = rng.standard_normal((problem.A.shape[1], 6))
    system = NewtonSystem(problem, D, U)
    expected = sum(np.outer(D[:, j] * (problem.A @ X[:, j]), U[j]) for j in range(6))
    np.testing.assert_allclose(system.fit(X), expected, atol=1e-12)
    R = rng.standard_normal(problem.loss.shape)
    assert np.vdot(system.adjoint(R), X) == pytest.approx(np.vdot(R, system.fit(X)))


# Stiff blocks only, for which nothing is factorised, soft ones on both sides of it, and both together.
@pytest.mark.parametrize(("low", "high"), [(1, 4), (-4, -1), (-6, 8)])
@pytest.mark.parametrize("n_neurons", [2, 30])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("way", [DirectSystem, PreconditionedSystem])
@pytest.mark.parametrize(
    ("n_outputs", "kind"), [(1, "unit"), (3, "unit"), (1, "diagonal"), (3, "diagonal"), (3, "categorical")]
)
def test_solutions_are_those_of_the_dense_matrix(
    n_outputs, kind, way, fit_intercept, n_neurons, low, high, monkeypatch
):
    # Tables of a few rows each.
    monkeypatch.setattr(newton_system, "_TABLE_ENTRIES", 500)
    problem, D, U, rng = instance(n_neurons=n_neurons, n_outputs=n_outputs, fit_intercept=fit_intercept)
    rank = problem.A.shape[1]
    system = NewtonSystem(problem, D, U)
    blocks = spread_blocks(rng, n_neurons, rank, low, high)
    curvature = curvature_of(kind, len(problem.A), n_outputs, rng)
    matrix = dense(system, curvature, blocks)
    expected = rng.standard_normal((rank, n_neurons))
    b = (matrix @ expected.T.ravel()).reshape(n_neurons, rank).T
    solved, image, fit = way(system, curvature, blocks).solve(b, 1e-12)
    # The energy norm is that in which Newton's method measures its directions.
    error = (solved - expected).T.ravel()
    assert error @ matrix @ error <= 1e-10 * (expected.T.ravel() @ matrix @ expected.T.ravel())
    held = system.adjoint(image) + np.einsum("jab,bj->aj", blocks, solved)
    np.testing.assert_allclose(held, b, rtol=0, atol=1e-9 * np.abs(b).max())
    # Softly held directions cost digits.
    np.testing.assert_allclose(fit, system.fit(solved), rtol=0, atol=1e-4 * np.abs(fit).max())


def test_the_inner_products_of_a_quadratic_loss_are_computed_once(monkeypatch):
    problem, D, U, rng = instance()
    system, blocks = NewtonSystem(problem, D, U), spread_blocks(rng, 6, problem.A.shape[1], -1, 1)
    DirectSystem(system, UNIT, blocks)
    monkeypatch.setattr(Diagonal, "gram", None)
    factor = DirectSystem(system, UNIT, 2 * blocks)
    b = rng.standard_normal((problem.A.shape[1], 6))
    monkeypatch.undo()
    expected = DirectSystem(NewtonSystem(problem, D, U), UNIT, 2 * blocks).solve(b, 0.0)[0]
    np.testing.assert_array_equal(factor.solve(b, 0.0)[0], expected)


def test_few_unknowns_are_factorised_directly_and_many_are_not(monkeypatch):
    problem, D, U, rng = instance(n=40, n_neurons=9)
    blocks, system = spread_blocks(rng, 9, 4, -1, 1), NewtonSystem(problem, D, U)
    weights = Diagonal(np.ones((40, 1)))
    assert isinstance(factorised(system, weights, blocks), DirectSystem)
    monkeypatch.setattr(preconditioned_system, "_LARGEST_DIRECT", 35)
    assert isinstance(factorised(system, weights, blocks), PreconditionedSystem)
    monkeypatch.undo()
    # More unknowns than rows.
    problem, D, U, rng = instance(n=15, n_neurons=9)
    blocks, system = spread_blocks(rng, 9, 4, -1, 1), NewtonSystem(problem, D, U)
    assert isinstance(factorised(system, UNIT, blocks), PreconditionedSystem)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_a_smaller_preconditioner_changes_no_solution(n_outputs, monkeypatch):
    problem, D, U, rng = instance(n_neurons=20, n_outputs=n_outputs)
    blocks = spread_blocks(rng, 20, problem.A.shape[1], -2, 2)
    b = rng.standard_normal((problem.A.shape[1], 20))
    system = NewtonSystem(problem, D, U)
    one = PreconditionedSystem(system, UNIT, blocks).solve(b, 1e-13)[0]
    monkeypatch.setattr(preconditioned_system, "_LARGEST_ROWS", 0)
    monkeypatch.setattr(preconditioned_system, "_LARGEST_FACTOR", 5)
    np.testing.assert_allclose(
        PreconditionedSystem(system, UNIT, blocks).solve(b, 1e-13)[0], one, rtol=1e-7, atol=1e-9
    )


def test_a_looser_tolerance_takes_fewer_iterations(monkeypatch):
    problem, D, U, rng = instance(n_neurons=20)
    monkeypatch.setattr(preconditioned_system, "_SMALL_EIGENVALUE", np.inf)
    system = NewtonSystem(problem, D, U)
    factor = PreconditionedSystem(system, UNIT, spread_blocks(rng, 20, problem.A.shape[1], -2, 0))
    b = rng.standard_normal((problem.A.shape[1], 20))
    counts = []
    fit = system.fit
    for tol in (1e-2, 1e-10):
        calls = []
        monkeypatch.setattr(system, "fit", lambda X, calls=calls: calls.append(1) or fit(X))
        factor.solve(b, tol)
        counts.append(len(calls))
    assert counts[0] < counts[1]


@pytest.mark.parametrize("way", [DirectSystem, PreconditionedSystem])
def test_an_indefinite_block_is_an_error(way):
    problem, D, U, _ = instance()
    with pytest.raises(np.linalg.LinAlgError):
        way(NewtonSystem(problem, D, U), UNIT, -np.eye(problem.A.shape[1])[None].repeat(6, axis=0))


@pytest.mark.parametrize("way", [DirectSystem, PreconditionedSystem])
def test_a_right_hand_side_of_zeros_has_the_solution_zero(way):
    problem, D, U, rng = instance()
    blocks = spread_blocks(rng, 6, problem.A.shape[1], -1, 1)
    for part in way(NewtonSystem(problem, D, U), UNIT, blocks).solve(np.zeros((problem.A.shape[1], 6)), 1e-8):
        np.testing.assert_array_equal(part, 0)


def test_the_work_grows_with_the_neurons():
    problem = instance()[0]
    assert work_of_system(problem, 10) < work_of_system(problem, 20)


def test_the_work_is_that_of_the_way_taken():
    problem = instance(n=40)[0]
    many = Problem(problem.A, LinearQuadratic(np.ones((40, 1)), 1.0), 0.1, True)
    direct, other = work_of_system(many, 10), work_of_system(many, 11)
    # From 41 unknowns on the rows are fewer.
    assert direct < other
    assert direct < 40 * 40**2
