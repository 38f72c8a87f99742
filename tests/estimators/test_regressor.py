from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV

from skcvxbn import ConvexBNRegressor
from skcvxbn.estimators._base import DEFAULT_BETA_RATIO
from skcvxbn.solvers import dual_search


def make_data(seed=0, n=15):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 2))
    return X, np.sin(2 * X[:, 0]) + X[:, 1] ** 2 + 0.1 * rng.standard_normal(n)


def model(**parameters):
    return ConvexBNRegressor(**{"beta_ratio": 0.1, "random_state": 0, **parameters})


def objective_by_batch_norm(network, X, Y, beta, weight=None):
    """The paper's objective, with batch normalization recomputed from the rows and no running statistics."""
    weight = np.ones(len(X)) if weight is None else np.asarray(weight, float)
    n = weight.sum()
    H = X @ network.hidden_weights
    H = H - np.average(H, axis=0, weights=weight)
    gamma, alpha = np.sqrt(n) * network.bn_weight, np.sqrt(n) * network.bn_bias
    normalized = H / np.sqrt(weight @ H**2) * gamma + alpha / np.sqrt(n)
    out = np.maximum(normalized, 0) @ network.output_weights + network.intercept
    loss = weight @ np.sum((out - Y.reshape(out.shape)) ** 2, axis=1)
    return 0.5 * loss + 0.5 * beta * (np.sum(gamma**2) + np.sum(alpha**2) + np.sum(network.output_weights**2))


@pytest.mark.parametrize(("seed", "optimum"), [(0, 4.084557), (1, 5.324644), (2, 3.901770)])
def test_known_optima(seed, optimum):
    X, y = make_data(seed)
    fitted = model(beta=0.3, fit_intercept=False, tol=1e-6).fit(X, y - y.mean())
    assert_allclose(fitted.objective_, optimum, rtol=1e-6)
    assert fitted.lower_bound_ <= optimum * (1 + 1e-7)
    assert fitted.intercept_ == 0


def test_diabetes_reaches_the_known_optimum():
    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    fitted = model(beta=1.41495, fit_intercept=False).fit(X, y)
    assert 133.13 <= fitted.objective_ <= 133.16
    assert fitted.lower_bound_ <= 133.131
    assert fitted.dual_gap_ <= 1e-4 * fitted.objective_


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("n_outputs", [None, 1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_objective_is_that_of_the_network(fit_intercept, n_outputs, weighted):
    X, y = make_data()
    Y = y if n_outputs is None else np.column_stack([y, y**2, X[:, 0]])[:, :n_outputs]
    weight = np.arange(15) % 4 if weighted else None
    fitted = model(fit_intercept=fit_intercept).fit(X, Y, weight)
    kept = slice(None) if weight is None else weight > 0
    expected = objective_by_batch_norm(
        fitted.network_, X[kept], Y[kept], fitted.beta_, None if weight is None else weight[kept]
    )
    assert_allclose(fitted.objective_, expected, rtol=1e-10)
    assert fitted.dual_gap_ == fitted.objective_ - fitted.lower_bound_ >= 0
    assert fitted.predict(X).shape == Y.shape
    assert_array_equal(fitted.predict(X), fitted.network_.forward(X).reshape(Y.shape))
    assert np.shape(fitted.intercept_) == (() if n_outputs is None else (n_outputs,))
    assert fitted.n_neurons_ == fitted.network_.hidden_weights.shape[1]
    assert fitted.rank_ == len(fitted.singular_values_) == 2


def test_the_intercept_is_the_best_one():
    X, y = make_data()
    fitted = model().fit(X, y + 7)
    assert_allclose(np.mean(fitted.predict(X)), np.mean(y + 7), rtol=1e-10)
    assert fitted.intercept_ == fitted.network_.intercept[0]


def test_beta_is_a_share_of_beta_max():
    X, y = make_data()
    fitted = model(beta_ratio=0.3).fit(X, y)
    assert_allclose(fitted.beta_, 0.3 * fitted.beta_max_)
    assert_allclose(
        model(beta=fitted.beta_, beta_ratio=7.0).fit(X, y).objective_, fitted.objective_, rtol=1e-9
    )
    assert ConvexBNRegressor().beta_ratio == DEFAULT_BETA_RATIO


def test_no_neuron_is_worth_beta_max():
    X, y = make_data()
    for ratio in (1.001, 50.0):
        fitted = model(beta_ratio=ratio).fit(X, y)
        assert fitted.n_neurons_ == 0
        assert_allclose(fitted.predict(X), y.mean(), rtol=1e-12)
        assert_allclose(fitted.objective_, 0.5 * np.sum((y - y.mean()) ** 2), rtol=1e-12)
    assert model(beta_ratio=0.9).fit(X, y).n_neurons_ > 0


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_constant_features_give_a_constant_prediction(fit_intercept):
    _, y = make_data()
    X = np.full((15, 3), 0.1)
    fitted = model(fit_intercept=fit_intercept, beta_ratio=1e-6).fit(X, y + 5)
    assert fitted.rank_ == 0
    assert_allclose(fitted.predict(X + np.arange(3.0)), np.mean(y + 5), rtol=1e-4)


@pytest.mark.parametrize("value", [0.1, -3e9, 0.0])
def test_a_constant_target_is_predicted_exactly(value):
    X, _ = make_data()
    fitted = model().fit(X, np.full(15, value), np.linspace(0.1, 1.7, 15))
    assert_array_equal(fitted.predict(X), value)
    assert (fitted.n_neurons_, fitted.objective_, fitted.dual_gap_) == (0, 0, 0)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_units_of_the_target_do_not_matter(scale):
    X, y = make_data()
    # So tight that rounding, which other units change, does not show in where the solver stops.
    fitted, scaled = (model(tol=1e-8).fit(X, target) for target in (y, scale * y))
    assert_allclose(scaled.predict(X) / scale, fitted.predict(X), rtol=1e-6, atol=1e-7)
    assert_allclose(scaled.beta_max_ / scale, fitted.beta_max_, rtol=1e-9)
    assert_allclose(scaled.objective_ / scale**2, fitted.objective_, rtol=1e-8)


@pytest.mark.parametrize("scale", [1e-12, 1e12, [1e12, 1e-12]])
def test_units_of_the_features_do_not_matter(scale):
    X, y = make_data()
    fitted, scaled = (model(tol=1e-8).fit(rows, y) for rows in (X, X * scale))
    assert_allclose(scaled.predict(X * scale), fitted.predict(X), rtol=1e-6, atol=1e-7)


def test_float32_is_kept():
    X, y = make_data()
    fitted = model(tol=1e-3).fit(X.astype(np.float32), y)
    assert {array.dtype for array in vars(fitted.network_).values()} == {np.dtype(np.float32)}
    assert fitted.predict(X.astype(np.float32)).dtype == np.float32
    assert_allclose(fitted.objective_, model().fit(X, y).objective_, rtol=2e-3)


@pytest.mark.parametrize("arrangements", ["generated", "sampled", "enumerated", "gates"])
def test_arrangements_and_their_certificates(arrangements):
    X, y = make_data()
    given = np.random.default_rng(0).standard_normal((2, 20)) if arrangements == "gates" else arrangements
    fitted = model(arrangements=given, beta=0.3, fit_intercept=False, n_arrangements=20).fit(X, y - y.mean())
    kind = {"generated": "estimated", "enumerated": "exact"}.get(arrangements, "restricted")
    assert fitted.certificate_ == kind
    assert_allclose(fitted.dual_gap_, 0, atol=1e-4 * fitted.objective_)
    # Fewer arrangements can only cost.
    assert fitted.objective_ >= 4.084557 * (1 - 1e-6)


def test_solver_cvxpy_needs_arrangements():
    X, y = make_data()
    with pytest.raises(ValueError, match=r"requires arrangements='sampled', .* Got arrangements='generated'"):
        model(solver="cvxpy").fit(X, y)


def test_solver_cvxpy_agrees():
    X, y = make_data()
    fitted = model(solver="cvxpy", arrangements="enumerated", beta=0.3, fit_intercept=False)
    fitted.fit(X, y - y.mean())
    assert_allclose(fitted.objective_, 4.084557, rtol=1e-5)
    assert fitted.certificate_ == "exact"


def test_max_neurons_is_a_limit():
    X, y = make_data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = model(max_neurons=3, beta_ratio=0.01).fit(X, y)
    assert 1 <= fitted.n_neurons_ <= 3
    assert fitted.lower_bound_ <= model(beta_ratio=0.01).fit(X, y).objective_


def test_warm_start_begins_at_the_last_network(monkeypatch):
    X, y = make_data()
    starts = []
    from skcvxbn.estimators import _base

    def solve(problem, options, **arguments):
        starts.append((problem, arguments["start"]))
        return original(problem, options, **arguments)

    original = _base.solve
    monkeypatch.setattr(_base, "solve", solve)
    fitted = model(warm_start=True).fit(X, y)
    first = fitted.objective_
    fitted.fit(X, y)
    fitted.fit(X[:, :1], y)
    fitted.fit(X[:, :1], np.column_stack([y, y]))
    problem, start = starts[1]
    assert_allclose(problem.objective(*start), first, rtol=1e-8)
    assert [start is None for _, start in starts] == [True, False, True, True]
    starts.clear()
    model().fit(X, y).fit(X, y)
    assert [start for _, start in starts] == [None, None]


def test_not_converging_warns_with_remedies():
    X, y = load_diabetes(return_X_y=True)
    message = r"stopped at a relative gap of .* above tol=1e-10, after 1 of max_iter=1 .*SVDTruncation"
    with pytest.warns(ConvergenceWarning, match=message) as record:
        fitted = model(max_iter=1, tol=1e-10).fit(X[:100], y[:100])
    # The warning points at the line that called fit.
    assert record[0].filename == __file__
    assert fitted.n_iter_ == 1
    assert np.isfinite(fitted.lower_bound_)


def test_max_time_ends_training_with_a_valid_gap():
    X, y = load_diabetes(return_X_y=True)
    message = r"max_time was reached.*To close the gap, raise max_time or tol"
    with pytest.warns(ConvergenceWarning, match=message):
        fitted = model(max_time=1e-3, tol=1e-6).fit(X, y)
    assert 0 <= fitted.lower_bound_ < fitted.objective_
    best = model(beta=fitted.beta_, tol=1e-3).fit(X, y)
    assert fitted.lower_bound_ <= best.objective_ <= fitted.objective_


def test_an_interrupt_keeps_the_best_network(monkeypatch):
    X, y = load_diabetes(return_X_y=True)
    search = dual_search.search
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return search(*args, **kwargs)

    monkeypatch.setattr(dual_search, "search", interrupted)
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        fitted = model(tol=1e-8).fit(X, y)
    assert fitted.score(X, y) > 0.5
    assert fitted.objective_ == pytest.approx(fitted.network_.objective(X, y[:, None], fitted.beta_))


BAD_PARAMETERS = {
    "beta": [0.0, -1.0, np.nan, np.inf, "1"],
    "beta_ratio": [0.0, -1.0, np.nan, None],
    "fit_intercept": ["yes"],
    "arrangements": ["all", None],
    "n_arrangements": [0, 2.5],
    "max_neurons": [0, 2.5],
    "solver": ["admm", None],
    "tol": [0.0, np.nan],
    "max_iter": [0, 1.5],
    "max_time": [0, -1.0, "1 s"],
    "search_starts": [0],
    "warm_start": ["no"],
    "random_state": ["seed"],
    "verbose": [-1],
}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, values in BAD_PARAMETERS.items() for v in values])
def test_bad_parameters_are_refused_in_scikit_learn_words(name, value):
    X, y = make_data()
    with pytest.raises(ValueError, match=rf"The '{name}' parameter of ConvexBNRegressor must be .* Got "):
        ConvexBNRegressor(**{name: value}).fit(X, y)


BAD_DATA = {
    "NaN in X": (np.full((4, 2), np.nan), np.ones(4), None, "contains NaN"),
    "infinity in y": (np.eye(4), [1, 2, np.inf, 3], None, "infinity"),
    "one row": (np.ones((1, 2)), [1.0], None, r"1 sample\(s\).* minimum of 2 is required"),
    "no rows": (np.ones((0, 2)), [], None, r"0 sample\(s\)"),
    "1D X": (np.ones(4), np.ones(4), None, "Expected 2D array"),
    "3D y": (np.eye(4), np.ones((4, 1, 1)), None, "dim 3"),
    "inconsistent": (np.eye(4), np.ones(3), None, "inconsistent numbers of samples"),
    "complex X": (1j * np.eye(4), np.ones(4), None, "Complex data not supported"),
    "complex y": (np.eye(4), 1j * np.ones(4), None, "Complex data not supported"),
    "strings in X": (np.full((4, 2), "a"), np.ones(4), None, "could not convert string to float"),
    "strings in y": (np.eye(4), ["a", "b", "c", "d"], None, "could not convert string to float"),
    "negative weight": (np.eye(4), np.ones(4), [1, 1, 1, -1], "Negative values"),
    "NaN weight": (np.eye(4), np.ones(4), [1, 1, 1, np.nan], "contains NaN"),
    "zero weights": (np.eye(4), np.ones(4), np.zeros(4), "at least one non-zero"),
    "too few weights": (np.eye(4), np.ones(4), np.ones(3), r"sample_weight.shape == \(3,\)"),
}


@pytest.mark.parametrize(("X", "y", "weight", "message"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_are_refused_and_change_nothing(X, y, weight, message):
    fitted = model().fit(*make_data())
    before = pickle.dumps(vars(fitted))
    with pytest.raises(ValueError, match=message):
        fitted.fit(X, y, weight)
    assert pickle.dumps(vars(fitted)) == before


@pytest.mark.parametrize("which", ["X", "y"])
def test_sparse_data_are_refused(which):
    X, y = make_data()
    X, y = (sp.csr_array(X), y) if which == "X" else (X, sp.csr_array(y[:, None]))
    with pytest.raises(TypeError, match=f"Sparse data was passed for {which}, but dense data is required"):
        model().fit(X, y)


@pytest.mark.parametrize("gates", [np.ones((3, 4)), np.ones(2), np.full((2, 1), np.nan)])
def test_bad_gates_are_refused(gates):
    with pytest.raises(ValueError, match="Gate vectors"):
        model(arrangements=gates).fit(*make_data())


def test_too_many_arrangements_are_refused():
    X = np.random.default_rng(0).standard_normal((200, 12))
    with pytest.raises(ValueError, match="arrangements, more than max_arrangements"):
        model(arrangements="enumerated").fit(X, X[:, 0])


def test_a_single_row_of_positive_weight_is_predicted_everywhere():
    X, y = make_data()
    fitted = model().fit(X, y, np.eye(15)[3])
    assert_allclose(fitted.predict(X), y[3])


def test_the_callers_arrays_are_left_alone():
    X, y = make_data()
    weight = np.linspace(0, 1, 15)
    copies = X.copy(), y.copy(), weight.copy()
    model().fit(X, y, weight).predict(X)
    for array, copy in zip((X, y, weight), copies, strict=True):
        assert_array_equal(array, copy)


def test_order_and_repetition_of_rows_do_not_matter():
    X, y = make_data()
    weight = np.arange(15) % 4
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(15), weight))
    fitted, repeated = model().fit(X, y, weight), model().fit(X[rows], y[rows])
    assert_array_equal(fitted.predict(X), repeated.predict(X))
    # Zeros of either sign are the same number.
    X[:, 0] = np.where(X[:, 0] < 0, -0.0, X[:, 0])
    assert_array_equal(model().fit(X, y).predict(X), model().fit(X + 0.0, y).predict(X))


def test_same_seed_same_network_and_pickling():
    X, y = make_data()
    fitted = model().fit(X, y)
    assert_array_equal(clone(fitted).fit(X, y).predict(X), fitted.predict(X))
    assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(X), fitted.predict(X))


def test_seeds_agree_within_the_gap():
    X, y = make_data(n=40)
    fits = [model(random_state=seed).fit(X, y) for seed in range(3)]
    assert max(f.lower_bound_ for f in fits) <= min(f.objective_ for f in fits) * (1 + 1e-9)


def test_feature_names_survive_a_failed_fit():
    pandas = pytest.importorskip("pandas")
    X, y = make_data()
    fitted = model().fit(pandas.DataFrame(X, columns=["a", "b"]), y)
    with pytest.raises(ValueError, match="Gate vectors"):
        fitted.set_params(arrangements=np.ones((7, 1))).fit(X[:, :1], y)
    assert (list(fitted.feature_names_in_), fitted.n_features_in_) == (["a", "b"], 2)


def test_predict_before_fit():
    with pytest.raises(NotFittedError):
        model().predict(np.eye(2))


def test_grid_search_over_beta_ratio():
    X, y = make_data(n=40)
    search = GridSearchCV(model(tol=1e-3), {"beta_ratio": [0.05, 0.9]}, cv=3).fit(X, y)
    assert search.best_params_ == {"beta_ratio": 0.05}


def test_targets_whose_squares_overflow_are_refused():
    y = np.arange(10.0) * 1e200
    with pytest.raises(ValueError, match=r"y contains values whose squares .* magnitude is 9.0e\+200"):
        ConvexBNRegressor().fit(np.arange(10.0)[:, None], y)
