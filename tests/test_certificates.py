"""The branch and bound against the enumeration of all arrangements, and the estimator's exact certificate."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import lsq_linear
from sklearn.exceptions import ConvergenceWarning

from skcvxbn import ConvexBNClassifier, ConvexBNRegressor
from skcvxbn.arrangements import enumerate_arrangements
from skcvxbn.certificates import bound_violation, prove, violation
from skcvxbn.certificates import proof as proof_module
from skcvxbn.solvers.base import Solution, balanced
from skcvxbn.whitening import whiten


def largest_violation(A, R):
    """Maximise over every arrangement: the longest projection of its gradient on its cone."""
    largest = 0.0
    for on in enumerate_arrangements(A).T:
        cone = np.where(on, 1.0, -1.0)[:, None] * A
        for v in (R[:, 0], -R[:, 0]):
            gradient = A.T @ (on * v)
            if np.linalg.norm(gradient) > largest:
                multipliers = lsq_linear(cone.T, -gradient, (0, np.inf), method="bvls", tol=1e-14).x
                largest = max(largest, float(np.linalg.norm(gradient + cone.T @ multipliers)))
    return largest


def rows(kind, n, rank, seed):
    """Whitened rows and a residual, in one of several positions."""
    rng = np.random.default_rng([n, rank, seed])
    X, r = rng.standard_normal((n, rank)), rng.standard_normal(n)
    weight = np.ones(n)
    if kind == "duplicate rows":
        X[n // 2 :] = X[: n - n // 2]
    elif kind == "ties":
        # A grid: many rows on common hyperplanes, in opposite pairs.
        X, r = np.round(X), np.round(r)
    elif kind == "zero residuals":
        r[::2] = 0
    elif kind == "weights":
        weight = rng.integers(1, 5, n) * 0.5
    elif kind == "positive residuals":
        r = np.abs(r)
    elif kind == "with intercept":
        r -= r.mean()
    elif kind == "one large residual":
        r[0] = 1e6
    return whiten(X, weight).A, r[:, None]


KINDS = (
    "general position",
    "duplicate rows",
    "ties",
    "zero residuals",
    "weights",
    "positive residuals",
    "with intercept",
    "one large residual",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "rank"), [(12, 1), (10, 2), (8, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_bound_is_the_maximum_over_all_arrangements(kind, n, rank, seed):
    A, R = rows(kind, n, rank, seed)
    truth = largest_violation(A, R)
    proof = bound_violation(A, R, tol=1e-7)
    assert proof.closed
    assert proof.message == ""
    assert proof.value == pytest.approx(truth, rel=1e-6)
    assert truth * (1 - 1e-12) <= proof.upper <= truth * (1 + 1e-6)


@pytest.mark.parametrize("n", [1, 5])
def test_rank_zero(n):
    R = np.arange(1.0, n + 1)[:, None] - 2
    proof = bound_violation(whiten(np.ones((n, 2))).A, R)
    assert proof.closed
    assert proof.upper == pytest.approx(abs(R.sum()) / np.sqrt(n), rel=1e-9)


def test_the_direction_attains_the_value():
    A, R = rows("general position", 30, 3, 0)
    proof = bound_violation(A, R)
    assert np.linalg.norm(proof.s) == pytest.approx(1)
    assert proof.u @ R.T @ np.maximum(A @ proof.s, 0) == pytest.approx(proof.value, rel=1e-9)


@pytest.mark.parametrize("max_regions", [1, 30, 150])
def test_a_bound_that_is_not_closed_holds(max_regions):
    A, R = rows("general position", 40, 3, 0)
    closed = bound_violation(A, R)
    proof = bound_violation(A, R, max_regions=max_regions)
    assert not proof.closed
    assert "regions" in proof.message
    assert proof.upper > closed.upper
    assert proof.value <= closed.value * (1 + 1e-9)


def test_no_time():
    A, R = rows("general position", 40, 3, 0)
    proof = bound_violation(A, R, max_time=0.0)
    assert not proof.closed
    assert "time" in proof.message
    assert proof.upper >= bound_violation(A, R).value


def test_the_bound_holds_at_points_dense_on_the_sphere():
    A, R = rows("with intercept", 60, 4, 0)
    proof = bound_violation(A, R, max_regions=3000)
    S = np.random.default_rng(1).standard_normal((5, 100_000))
    values = np.abs(R.T @ np.maximum(A @ (S / np.linalg.norm(S, axis=0)), 0))
    assert values.max() <= proof.value
    assert proof.value <= proof.upper


def test_a_target_is_enough():
    A, R = rows("general position", 30, 3, 0)
    closed = bound_violation(A, R)
    proof = bound_violation(A, R, target=1.3 * closed.value)
    assert proof.closed
    assert proof.n_regions < closed.n_regions
    assert closed.value <= proof.upper <= 1.3 * closed.value * (1 + 1e-9)


def test_scaling_the_residual_scales_the_bound():
    A, R = rows("general position", 15, 2, 0)
    proof, scaled = bound_violation(A, R), bound_violation(A, 1e-8 * R)
    assert scaled.upper == pytest.approx(1e-8 * proof.upper, rel=1e-6)


def test_no_residual():
    A, R = rows("general position", 15, 2, 0)
    proof = bound_violation(A, 0 * R)
    assert (proof.value, proof.upper, proof.closed) == (0, 0, True)


def test_an_interrupted_proof_keeps_its_bound(monkeypatch):
    A, R = rows("general position", 40, 3, 0)
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*args)

    original = violation._bisected
    monkeypatch.setattr(violation, "_bisected", interrupted)
    proof = bound_violation(A, R)
    monkeypatch.undo()
    assert "interrupted" in proof.message
    assert proof.upper >= bound_violation(A, R).value


def test_several_outputs_are_refused():
    A, R = rows("general position", 15, 2, 0)
    with pytest.raises(ValueError, match="one output"):
        bound_violation(A, np.hstack([R, R]))


ONE_OUTPUT = ("scalar", "scalar with intercept", "rank one", "weights and intercept", "repeated rows")


@pytest.mark.parametrize("name", ONE_OUTPUT)
def test_the_exact_lower_bound_is_below_the_optimum_and_close(cases, name):
    case, problem = cases[name], cases[name].problem
    y = problem.loss.target[:, 0] / np.sqrt(case.weight)
    model = ConvexBNRegressor(
        beta=problem.beta, fit_intercept=problem.fit_intercept, certificate="exact", random_state=0
    ).fit(case.X, y, case.weight)
    assert model.certificate_ == "exact"
    # The reference is a feasible point, up to the feasibility tolerance of its solver.
    assert model.lower_bound_ <= case.reference.objective * (1 + 1e-9)
    assert model.lower_bound_ >= case.reference.lower_bound * (1 - 1e-4)
    assert model.dual_gap_ <= 1e-4 * model.objective_


def poor_network(problem):
    """Two random neurons, far from optimal, whose estimate says that they are optimal."""
    rng = np.random.default_rng(0)
    S, V = balanced(rng.standard_normal((problem.A.shape[1], 2)), rng.standard_normal((2, 1)))
    objective = problem.objective(S, V)
    return Solution(S, V, problem.dual_point(S, V), objective, objective, "estimated", 1, True, "")


def test_the_proof_trains_on_with_the_neurons_that_it_finds(cases, options):
    case = cases["scalar with intercept"]
    proved = prove(case.problem, poor_network(case.problem), options(tol=1e-4), max_time=60)
    assert proved.certificate == "exact"
    assert proved.converged
    assert proved.message == ""
    assert proved.objective == pytest.approx(case.reference.objective, rel=1e-4)
    assert proved.lower_bound <= case.reference.objective * (1 + 1e-9)


def test_the_proof_respects_the_largest_number_of_neurons(cases, options):
    case = cases["scalar with intercept"]
    network = poor_network(case.problem)
    proved = prove(case.problem, network, options(tol=1e-4, max_neurons=2), max_time=60)
    assert not proved.converged
    assert proved.S.shape[1] == 2
    assert 0 < proved.lower_bound <= case.reference.objective
    assert proved.objective == pytest.approx(network.objective)


def curved(n, rank, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, rank))
    return X, np.sin(2 * X[:, 0]) + X[:, -1] ** 2 + 0.1 * rng.standard_normal(n)


def test_two_classes_have_one_output():
    X, y = curved(25, 2)
    model = ConvexBNClassifier(certificate="exact", tol=1e-4, random_state=0).fit(X, y > 0)
    assert model.certificate_ == "exact"
    assert model.dual_gap_ <= 1e-4 * model.objective_


def test_a_proof_that_is_not_closed_warns_and_bounds():
    X, y = curved(40, 4)
    proved = ConvexBNRegressor(certificate="exact", certificate_max_time=1e-3, tol=1e-3, random_state=0)
    with pytest.warns(ConvergenceWarning, match=r"proof is not closed.*raise certificate_max_time"):
        proved.fit(X, y)
    estimated = ConvexBNRegressor(tol=1e-3, random_state=0).fit(X, y)
    assert proved.certificate_ == "exact"
    assert 0 <= proved.lower_bound_ < estimated.objective_


def test_enumerated_arrangements_are_exact_already():
    X, y = curved(10, 2)
    enumerated = ConvexBNRegressor(arrangements="enumerated").fit(X, y)
    exact = ConvexBNRegressor(arrangements="enumerated", certificate="exact").fit(X, y)
    assert exact.certificate_ == "exact"
    assert exact.lower_bound_ == enumerated.lower_bound_


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"certificate": "proved"}, "'certificate' parameter"),
        ({"certificate": "exact", "certificate_max_time": 0}, "'certificate_max_time' parameter"),
        ({"certificate": "exact", "arrangements": "sampled"}, "requires arrangements='generated'"),
    ],
)
def test_invalid_parameters(given, message):
    X, y = curved(10, 2)
    with pytest.raises(ValueError, match=message):
        ConvexBNRegressor(**given).fit(X, y)


def test_what_cannot_be_proved_is_refused_before_training():
    X, y = curved(30, 11)
    model = ConvexBNRegressor(certificate="exact", verbose=1)
    with pytest.raises(ValueError, match=r"rank 10 at most.*Got rank 11"):
        model.fit(X, y)
    with pytest.raises(ValueError, match=r"one output.*Got 2 outputs"):
        model.fit(X[:, :2], np.column_stack([y, y]))
    assert not hasattr(model, "network_")


def test_an_interrupt_during_the_proof_keeps_the_network(monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    X, y = curved(25, 2)
    monkeypatch.setattr(proof_module, "bound_violation", interrupted)
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        model = ConvexBNRegressor(certificate="exact", random_state=0).fit(X, y)
    assert (model.certificate_, model.lower_bound_) == ("exact", 0)
    assert model.score(X, y) > 0.9


def test_single_precision():
    X, y = curved(25, 2)
    model = ConvexBNRegressor(certificate="exact", tol=1e-3, random_state=0).fit(X.astype(np.float32), y)
    assert model.network_.hidden_weights.dtype == np.float32
    double = ConvexBNRegressor(certificate="exact", tol=1e-3, random_state=0).fit(X, y)
    assert model.lower_bound_ <= double.objective_
    assert double.lower_bound_ <= model.objective_
