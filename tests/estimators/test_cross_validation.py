from __future__ import annotations

import pickle

import joblib
import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import get_scorer, log_loss, make_scorer, mean_absolute_error
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, ShuffleSplit
from sklearn.pipeline import make_pipeline

from skcvxbn import (
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    SVDTruncation,
)

RATIOS = [0.8, 0.3, 0.1]


def regression(n=60, n_outputs=None):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 4)) * [3, 2, 1, 0.1]
    y = np.abs(X[:, 0]) - X[:, 1] + 0.5 * rng.standard_normal(n)
    return X, y if n_outputs is None else np.column_stack([y, X[:, 0] ** 2, y])[:, :n_outputs]


def classification(n_classes=3):
    X, y = load_iris(return_X_y=True)
    keep = y < n_classes
    return X[keep][::2], np.array(["x", "y", "z"])[y[keep][::2]]


def regressor(**parameters):
    return ConvexBNRegressorCV(
        **{"beta_ratios": RATIOS, "cv": 3, "tol": 1e-3, "random_state": 0, **parameters}
    )


def classifier(**parameters):
    return ConvexBNClassifierCV(
        **{"beta_ratios": RATIOS, "cv": 3, "tol": 1e-3, "random_state": 0, **parameters}
    )


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "huber", "pinball"])
def test_the_last_fit_is_that_of_the_regressor(loss):
    X, y = regression()
    weight = np.arange(60) % 4
    model = regressor(loss=loss, quantile=0.4, tol=1e-2).fit(X, y, weight)
    plain = ConvexBNRegressor(
        beta_ratio=model.beta_ratio_, loss=loss, quantile=0.4, tol=1e-2, random_state=0
    ).fit(X, y, weight)
    for name in vars(plain):
        if name.endswith("_") and name != "network_":
            assert_array_equal(getattr(model, name), getattr(plain, name))
    assert_array_equal(model.predict(X), plain.predict(X))


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("loss", ["log_loss", "squared_hinge"])
def test_the_last_fit_is_that_of_the_classifier(loss, n_classes):
    X, y = classification(n_classes)
    model = classifier(loss=loss, class_weight="balanced").fit(X, y)
    plain = ConvexBNClassifier(
        beta_ratio=model.beta_ratio_,
        shrinkage=model.shrinkage_,
        loss=loss,
        class_weight="balanced",
        tol=1e-3,
        random_state=0,
    ).fit(X, y)
    assert_array_equal(model.classes_, ["x", "y", "z"][:n_classes])
    assert_array_equal(model.decision_function(X), plain.decision_function(X))
    assert model.beta_ == plain.beta_ == model.beta_ratio_ * model.beta_max_
    assert hasattr(model, "predict_proba") == (loss == "log_loss")


# Accuracy jumps where a row is on the border, as one is at the shrinkages of the first case.
@pytest.mark.parametrize(("scoring", "shares"), [(None, [0.1, 0.5]), ("accuracy", [0.3])])
def test_scores_are_those_of_a_grid_search(scoring, shares):
    X, y = classification()
    cv = KFold(3, shuffle=True, random_state=0)
    model = classifier(cv=cv, cv_tol=1e-3, scoring=scoring, shrinkage=shares, refit=False).fit(X, y)
    plain = ConvexBNClassifier(tol=1e-3, random_state=0)
    grid = {"beta_ratio": RATIOS, "shrinkage": shares}
    search = GridSearchCV(plain, grid, cv=cv, scoring=scoring or "neg_log_loss").fit(X, y)
    for name in ["mean_test_score", *(f"split{i}_test_score" for i in range(3))]:
        # There the first parameter varies slowest.
        theirs = search.cv_results_[name].reshape(len(RATIOS), len(shares)).T.ravel()
        assert_allclose(model.cv_results_[name], theirs, atol=5e-3)
    assert model.best_score_ == pytest.approx(search.best_score_, abs=5e-3)
    assert {"beta_ratio": model.beta_ratio_, "shrinkage": model.shrinkage_} == search.best_params_


def test_results_have_the_form_of_a_grid_search():
    X, y = regression()
    model = regressor(n_components=[None, 2], shrinkage=[0.0, 0.2]).fit(X, y)
    results = model.cv_results_
    params = [
        {"beta_ratio": ratio, "n_components": k, "shrinkage": share}
        for k in (None, 2)
        for share in (0.0, 0.2)
        for ratio in RATIOS
    ]
    assert results["params"] == params
    assert_array_equal(results["param_beta_ratio"], RATIOS * 4)
    assert results["param_n_components"].tolist() == [None] * 6 + [2] * 6
    assert_array_equal(results["param_shrinkage"], ([0.0] * 3 + [0.2] * 3) * 2)
    scores = np.array([results[f"split{i}_test_score"] for i in range(3)])
    assert_allclose(results["mean_test_score"], scores.mean(axis=0))
    assert_allclose(results["std_test_score"], scores.std(axis=0))
    assert results["rank_test_score"][model.best_index_] == 1
    assert model.best_score_ == results["mean_test_score"].max()
    chosen = {name: getattr(model, f"{name}_") for name in ("beta_ratio", "n_components", "shrinkage")}
    assert params[model.best_index_] == chosen
    for name in ("objective", "n_neurons", "fit_time", "score_time"):
        assert np.all(results[f"mean_{name}"] > 0)
        assert np.all(results[f"std_{name}"] >= 0)
    assert model.n_splits_ == 3


def test_the_grid_goes_from_the_constant_to_eps():
    X, y = regression()
    model = regressor(beta_ratios=4, eps=0.05, refit=False).fit(X, y)
    assert_allclose(model.beta_ratios_, np.geomspace(1, 0.05, 4))
    assert_allclose(model.betas_, np.geomspace(model.beta_max_, 0.05 * model.beta_max_, 4))
    assert model.beta_ in model.betas_
    assert model.cv_results_["mean_n_neurons"][0] == 0
    folds = KFold(3).split(X)
    constant = [-0.5 * np.mean((y[test] - y[train].mean()) ** 2) for train, test in folds]
    assert model.cv_results_["mean_test_score"][0] == pytest.approx(np.mean(constant))
    assert regressor(beta_ratios=[0.1, 0.5, 0.1], refit=False).fit(X, y).beta_ratios_.tolist() == [0.5, 0.1]


def test_one_standard_error_is_the_simplest_network_about_as_good():
    X, y = load_diabetes(return_X_y=True)
    parameters = {"beta_ratios": 8, "eps": 0.03, "n_components": [None, 4], "refit": False}
    best = regressor(**parameters).fit(X[:200], y[:200])
    simple = regressor(selection_rule="one_standard_error", **parameters).fit(X[:200], y[:200])
    mean = best.cv_results_["mean_test_score"]
    assert_array_equal(mean, simple.cv_results_["mean_test_score"])
    scores = [best.cv_results_[f"split{i}_test_score"][best.best_index_] for i in range(3)]
    enough = best.best_score_ - np.std(scores, ddof=1) / np.sqrt(3)
    assert simple.n_components_ == best.n_components_
    assert simple.beta_ratio_ > best.beta_ratio_
    assert simple.best_score_ >= enough
    assert mean[simple.best_index_ - 1] < enough


@pytest.mark.parametrize("k", [2, 0.9])
def test_components_are_those_of_the_transformer_in_front(k):
    X, y = regression()
    model = regressor(beta_ratios=[0.1], n_components=k).fit(X, y)
    plain = make_pipeline(SVDTruncation(k), ConvexBNRegressor(beta_ratio=0.1, tol=1e-3, random_state=0))
    plain.fit(X, y)
    assert model.n_components_ == k
    assert model.rank_ == plain[-1].rank_ == 2
    assert model.objective_ == pytest.approx(plain[-1].objective_, rel=1e-3)
    # The rows that are predicted need no truncation.
    new = X[::-1] + 0.1
    assert_allclose(model.predict(new), plain.predict(new), atol=0.05)
    expected = model.network_.objective(SVDTruncation(k).fit_transform(X), y, model.beta_)
    assert model.objective_ == pytest.approx(expected, rel=1e-9)


def test_the_better_truncation_is_chosen():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 30)) * np.r_[5, 5, np.ones(28)]
    y = X[:, 0] + np.abs(X[:, 1])
    model = regressor(n_components=[None, 2, 1]).fit(X, y)
    assert (model.n_components_, model.rank_) == (2, 2)


@pytest.mark.parametrize(("backend", "n_jobs"), [("threading", 2), ("loky", 2)])
def test_backends_agree_to_the_last_bit(backend, n_jobs):
    X, y = classification()
    alone = classifier().fit(X, y)
    with joblib.parallel_config(backend):
        together = classifier(n_jobs=n_jobs).fit(X, y)
    for i in range(3):
        name = f"split{i}_test_score"
        assert_array_equal(alone.cv_results_[name], together.cv_results_[name])
    assert_array_equal(alone.decision_function(X), together.decision_function(X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_dask_cluster_agrees_too():
    distributed = pytest.importorskip("distributed")
    X, y = regression()
    alone = regressor().fit(X, y)
    with (
        distributed.Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None),
        joblib.parallel_config(backend="dask"),
    ):
        together = regressor().fit(X, y)
    assert_array_equal(alone.predict(X), together.predict(X))


@pytest.mark.parametrize("arrangements", ["sampled", "enumerated", "gates"])
def test_folds_choose_from_the_arrangements_of_the_estimator(arrangements):
    X, y = regression(24)
    gates = np.random.default_rng(1).standard_normal((4, 15)) if arrangements == "gates" else arrangements
    model = regressor(arrangements=gates, n_components=1, n_arrangements=5, tol=1e-2).fit(X, y)
    assert model.certificate_ == ("exact" if arrangements == "enumerated" else "restricted")
    free = regressor(n_components=1, tol=1e-2, refit=False).fit(X, y)
    ours, best = model.cv_results_["mean_objective"], free.cv_results_["mean_objective"]
    if arrangements == "enumerated":
        assert_allclose(ours, best, rtol=2e-2)
    else:
        assert np.all(ours >= 0.99 * best)


def test_several_targets():
    X, y = regression(n_outputs=2)
    model = regressor().fit(X, y)
    assert model.predict(X).shape == (60, 2)
    assert model.score(X, y) > 0.8


def test_weights_count_in_scores():
    X, y = regression()
    weight = np.arange(60) % 3
    model = regressor(refit=False, beta_ratios=[1.0]).fit(X, y, weight)
    expected = []
    for train, test in KFold(3).split(X):
        mean = np.average(y[train], weights=weight[train])
        expected.append(-0.5 * np.average((y[test] - mean) ** 2, weights=weight[test]))
    assert_allclose([model.cv_results_[f"split{i}_test_score"][0] for i in range(3)], expected)
    custom = regressor(refit=False, beta_ratios=[1.0], scoring="neg_mean_squared_error").fit(X, y, weight)
    assert_allclose(custom.best_score_, 2 * np.mean(expected))


def test_groups_reach_the_splitter():
    X, y = regression()
    groups = np.arange(60) // 12
    model = regressor(cv=GroupKFold(5), refit=False).fit(X, y, groups=groups)
    assert model.n_splits_ == 5
    with pytest.raises(ValueError, match="groups"):
        regressor(cv=GroupKFold(5)).fit(X, y)
    with pytest.raises(ValueError, match=r"Passing \['rows'\] to fit .*enable_metadata_routing"):
        regressor().fit(X, y, rows=groups)


def test_metadata_are_routed():
    X, y = regression()
    groups, weight = np.arange(60) // 12, np.arange(60) % 3 + 1.0
    with sklearn.config_context(enable_metadata_routing=True):
        for weighted in (True, False):
            scorer = get_scorer("neg_mean_squared_error").set_score_request(sample_weight=weighted)
            model = regressor(
                cv=GroupKFold(5), scoring=scorer, refit=False, beta_ratios=[1.0]
            ).set_fit_request(sample_weight=True)
            model.fit(X, y, sample_weight=weight, groups=groups)
            expected = []
            for train, test in GroupKFold(5).split(X, y, groups):
                errors = (y[test] - np.average(y[train], weights=weight[train])) ** 2
                expected.append(-np.average(errors, weights=weight[test] if weighted else None))
            assert model.best_score_ == pytest.approx(np.mean(expected))
        default = regressor(refit=False).fit(X, y, sample_weight=weight)
        assert default.best_score_ < 0


def test_scorers():
    X, y = regression()
    scorer = make_scorer(mean_absolute_error, greater_is_better=False)
    by_callable = regressor(scoring=scorer, refit=False).fit(X, y)
    by_name = regressor(scoring="neg_mean_absolute_error", refit=False).fit(X, y)
    assert_array_equal(by_callable.cv_results_["mean_test_score"], by_name.cv_results_["mean_test_score"])
    X, y = classification()
    model = classifier(cv=[(np.arange(0, 75, 2), np.arange(1, 75, 2))], refit=False).fit(X, y)
    fold = ConvexBNClassifier(
        beta_ratio=model.beta_ratio_, shrinkage=model.shrinkage_, tol=1e-3, random_state=0
    ).fit(X[::2], y[::2])
    assert model.best_score_ == pytest.approx(-log_loss(y[1::2], fold.predict_proba(X[1::2])), abs=5e-3)


def test_scores_that_are_not_finite_are_not_chosen():
    X, y = regression()

    def undefined(model, X, y):
        return np.nan if len(model.network_.bn_weight) else 1.0

    model = regressor(beta_ratios=[1.0, 0.1], scoring=undefined, refit=False).fit(X, y)
    assert model.beta_ratio_ == 1
    assert model.cv_results_["rank_test_score"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="All the mean test scores are non-finite"):
        regressor(beta_ratios=[0.1], scoring=undefined).fit(X, y)


def test_without_refit_there_is_no_network():
    X, y = regression()
    model = regressor().fit(X, y)
    model.set_params(refit=False).fit(X, y)
    assert not hasattr(model, "network_")
    assert model.beta_ == model.beta_ratio_ * model.beta_max_
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_a_failed_fit_changes_nothing():
    X, y = classification()
    model = classifier().fit(X, y)
    before = pickle.dumps(vars(model))
    with pytest.raises(ValueError, match="contains NaN"):
        model.fit(np.full_like(X, np.nan), y)
    with pytest.raises(ValueError, match="n_splits=3 cannot be greater"):
        model.fit(X[:4], ["x", "y", "x", "y"])
    assert pickle.dumps(vars(model)) == before


def test_a_training_part_without_a_class_is_refused():
    X, y = classification()
    with pytest.raises(ValueError, match=r"Split 0 of cv has no training rows of the class .*'x'"):
        classifier(cv=KFold(3)).fit(X, y)
    with pytest.raises(
        ValueError, match="Split 0 of cv has a part whose rows are none or all of weight zero"
    ):
        regressor().fit(X, np.arange(75.0), np.arange(75) < 25)


BAD_PARAMETERS = {
    "beta_ratios": [0, "20", [0.1, -1.0], [[0.1]], [np.nan]],
    "eps": [0.0, 1.0],
    "shrinkage": [1.0, -0.1, "auto", [0.1, 1.0], ["half"], []],
    "n_components": [0, 1.5, -0.5, "all", [None, 0], [2.5]],
    "cv": ["five"],
    "scoring": ["log", 3],
    "selection_rule": ["one_se"],
    "refit": ["yes"],
    "cv_tol": [0.0],
    "n_jobs": [1.5],
    "loss": ["log_loss"],
    "tol": [-1.0],
}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, values in BAD_PARAMETERS.items() for v in values])
def test_bad_parameters_are_refused(name, value):
    X, y = regression()
    with pytest.raises(ValueError, match=name):
        ConvexBNRegressorCV(**{name: value}).fit(X, y)


def test_what_the_last_fit_refuses_is_refused_before_the_folds():
    X, y = regression()

    def never(model, X, y):
        raise AssertionError("a fold was scored")

    with pytest.raises(ValueError, match="solver='cvxpy' solves the convex program over given arrangements"):
        regressor(solver="cvxpy", scoring=never).fit(X, y)
    wide = np.random.default_rng(0).standard_normal((60, 20))
    with pytest.raises(ValueError, match="rank 10 at most"):
        regressor(certificate="exact", scoring=never).fit(wide, y)


@pytest.mark.parametrize(
    ("cross_validated", "plain"),
    [(ConvexBNRegressorCV, ConvexBNRegressor), (ConvexBNClassifierCV, ConvexBNClassifier)],
)
def test_parameters_are_those_of_the_plain_estimator(cross_validated, plain):
    ours, theirs = cross_validated().get_params(), plain().get_params()
    common = theirs.keys() - {"beta", "beta_ratio", "warm_start"}
    # The shrinkage of a classifier is chosen too; the networks of cross-validation are compared by their
    # predictions, which the last digits of the gap do not change.
    different = {name for name in common if ours[name] != theirs[name]}
    assert different == ({"shrinkage"} if plain is ConvexBNClassifier else {"tol"})
    assert set(ours) - common == {
        *(
            "beta_ratios",
            "eps",
            "n_components",
            "cv",
            "scoring",
            "selection_rule",
            "refit",
            "cv_tol",
            "n_jobs",
        )
    }


def test_clones_and_pickles():
    X, y = regression()
    model = regressor().fit(X, y)
    assert_array_equal(clone(model).fit(X, y).predict(X), model.predict(X))
    assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))


def test_only_the_last_fit_warns():
    X, y = load_diabetes(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match="ConvexBNRegressorCV .* above tol=1e-10") as record:
        regressor(tol=1e-10, max_iter=1, cv=ShuffleSplit(2, random_state=0)).fit(X[:100], y[:100])
    assert [warning.filename for warning in record] == [__file__]
