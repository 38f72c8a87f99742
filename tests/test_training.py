from __future__ import annotations

import numpy as np
import pytest
from joblib import Memory
from numpy.testing import assert_allclose, assert_array_equal

from skcvxbn import ConvexBNRegressor, SVDTruncation, training
from skcvxbn.solvers import Options, solve
from skcvxbn.targets import regression_targets
from skcvxbn.training import prepare


def make_data(n=20, d=4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * np.arange(1, d + 1)
    return X, np.abs(X[:, -1]) + rng.standard_normal(n), rng.integers(1, 4, n) * 1.0


def prepared(X, y, weight, **parameters):
    return prepare(
        X, regression_targets(y, "squared_error", 1.35, 0.5), weight, fit_intercept=True, **parameters
    )


def test_repeated_rows_are_weighted_rows():
    X, y, weight = make_data()
    times = weight.astype(int)
    one = prepared(X, y, weight)
    other = prepared(np.repeat(X, times, axis=0)[::-1], np.repeat(y, times)[::-1], np.ones(times.sum()))
    for name in ("X", "Y", "weight", "offset", "beta_max"):
        assert_array_equal(getattr(one, name), getattr(other, name))


def test_the_network_has_the_objective_of_the_solution():
    X, y, weight = make_data()
    problem = prepared(X, y, weight)
    beta = 0.1 * problem.beta_max
    options = Options(tol=1e-4, max_iter=20, max_neurons=None, search_starts=64, rng=np.random.RandomState(0))
    solution = solve(problem.at(beta), options)
    network = problem.network(solution)
    assert problem.objective(network, beta) == pytest.approx(solution.objective, rel=1e-9)
    S, V = problem.start(network)
    assert problem.at(beta).objective(S, V) == pytest.approx(solution.objective, rel=1e-9)
    assert prepared(X[:, :2], y, weight).start(network) is None


@pytest.mark.parametrize("n_components", [1, 3, 0.8, 0.99999, 7])
def test_truncated_rows_are_those_of_the_transformer(n_components):
    X, y, weight = make_data()
    truncation = SVDTruncation(min(n_components, 4)).fit(X, sample_weight=weight)
    expected = prepared(truncation.transform(X), y, weight)
    problem = prepared(X, y, weight, n_components=n_components)
    assert problem.whitening.rank == truncation.n_components_
    order, other = np.argsort(problem.Y[:, 0]), np.argsort(expected.Y[:, 0])
    assert_allclose(problem.X[order], expected.X[other], atol=1e-12)
    A, B = problem.whitening.A[order], expected.whitening.A[other]
    # The basis is arbitrary, the space that it spans is not.
    assert_allclose(A @ A.T, B @ B.T, atol=1e-12)
    assert_allclose(A.T @ A, np.eye(A.shape[1]), atol=1e-12)
    assert problem.beta_max == pytest.approx(expected.beta_max, rel=1e-6)
    centred = problem.whitening.coordinates(problem.X) * np.sqrt(problem.weight)[:, None]
    assert_allclose(centred, problem.whitening.A, atol=1e-12)


def test_nothing_is_truncated_from_rows_without_variance():
    problem = prepared(np.ones((5, 3)), np.arange(5.0), np.ones(5), n_components=2)
    assert problem.whitening.rank == 0


def test_memory_keeps_what_does_not_depend_on_beta(tmp_path, monkeypatch):
    # joblib tells functions apart by module and name: the counters keep both.
    counts = {"whiten": 0, "largest_beta": 0}

    class Counting:
        def __init__(self, memory):
            self.memory = memory

        def cache(self, function):
            cached = self.memory.cache(function)

            def call(*args):
                counts[function.__name__] += not cached.check_call_in_cache(*args)
                return cached(*args)

            return call

    X, y, _ = make_data()
    memory = Counting(Memory(tmp_path, verbose=0))
    model = ConvexBNRegressor(tol=1e-2, random_state=0, memory=memory)
    fits = [model.set_params(beta_ratio=ratio).fit(X, y).objective_ for ratio in (0.5, 0.2, 0.1)]
    assert counts == {"whiten": 1, "largest_beta": 1}
    model.fit(X[1:], y[1:])
    assert counts == {"whiten": 2, "largest_beta": 2}
    model.set_params(loss="huber").fit(X, y)
    assert counts["whiten"] == 2
    plain = ConvexBNRegressor(tol=1e-2, random_state=0, beta_ratio=0.1).fit(X, y)
    assert plain.objective_ == fits[-1]
    assert training.prepare is prepare


def test_memory_may_be_a_folder_and_nothing_else(tmp_path):
    X, y, _ = make_data()
    model = ConvexBNRegressor(tol=1e-2, random_state=0, memory=str(tmp_path)).fit(X, y)
    assert any(tmp_path.rglob("*whiten*"))
    assert model.predict(X).shape == y.shape
    with pytest.raises(ValueError, match="The 'memory' parameter of ConvexBNRegressor must be"):
        ConvexBNRegressor(memory=3).fit(X, y)


@pytest.mark.parametrize("seed", range(3))
def test_a_short_search_finds_the_largest_weight_decay_too(seed):
    training = prepared(*make_data(60, 5, seed))
    assert training.rough_beta_max == pytest.approx(training.beta_max, rel=1e-5)
