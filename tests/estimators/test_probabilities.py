"""Classification: probabilities, class weights, and data on which losses overflow or have no minimum."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from skcvxbn import ConvexBNClassifier, SVDTruncation
from skcvxbn.estimators import _base

LOSSES = ["log_loss", "squared_error", "hinge", "squared_hinge"]


def model(**parameters):
    return ConvexBNClassifier(**{"beta_ratio": 0.3, "random_state": 0, "max_iter": 100, **parameters})


def make_data(n_classes, n=45):
    """Classes that overlap, of different sizes."""
    rng = np.random.default_rng(n_classes)
    X = rng.standard_normal((n, 2))
    labels = np.digitize(X[:, 0] + X[:, 1] ** 2 + 0.5 * rng.standard_normal(n), [1.0, 2.5][: n_classes - 1])
    return X, np.array(["few", "some", "x"])[labels]


@pytest.fixture(autouse=True)
def no_floating_point_errors():
    with np.errstate(all="raise", under="ignore"):
        yield


@pytest.mark.parametrize("n_classes", [2, 3])
def test_probabilities_and_outputs_agree(n_classes):
    X, y = make_data(n_classes)
    fitted = model().fit(X, y)
    P, decision = fitted.predict_proba(X), fitted.decision_function(X)
    assert P.shape == (45, n_classes)
    assert P.min() >= 0
    assert_allclose(P.sum(axis=1), 1, rtol=1e-14)
    assert_allclose(np.log(P), fitted.predict_log_proba(X), rtol=1e-12, atol=1e-15)
    assert_array_equal(fitted.predict(X), fitted.classes_[P.argmax(axis=1)])
    if n_classes == 2:
        assert_allclose(decision, np.log(P[:, 1] / P[:, 0]), rtol=1e-9, atol=1e-12)
        assert_array_equal(decision > 0, fitted.predict(X) == fitted.classes_[1])
    else:
        assert_allclose(decision - decision[:, :1], np.log(P / P[:, :1]), rtol=1e-9, atol=1e-12)
    # The loss is what the probabilities say it is; the best intercept gets the shares of the classes right.
    loss = log_loss(y, P, labels=fitted.classes_) * 45
    assert 0 < loss < fitted.objective_
    assert_allclose(P.mean(axis=0), [np.mean(y == c) for c in fitted.classes_], rtol=1e-7)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_certain_probabilities_have_logarithms(n_classes):
    X, y = make_data(n_classes)
    fitted = model(beta_ratio=0.01, tol=1e-2).fit(X, y)
    far = np.vstack([1e6 * X, np.full((1, 2), 1e300)])
    P, logarithms = fitted.predict_proba(far), fitted.predict_log_proba(far)
    assert {0.0, 1.0} <= set(P.ravel())
    assert np.isfinite(logarithms).all()
    assert logarithms.max() <= 0
    assert logarithms.min() < -1e5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_class_weights_are_weights_of_rows(loss, n_classes):
    X, y = make_data(n_classes)
    classes, counts = np.unique(y, return_counts=True)
    given = dict(zip(classes.tolist(), [3.0, 0.5, 1.0], strict=False))
    for class_weight, factors in (
        (given, list(given.values())),
        ("balanced", 45 / (n_classes * counts)),
        ({classes[0]: 2}, [2.0] + [1.0] * (n_classes - 1)),
    ):
        weights = np.asarray(factors)[np.searchsorted(classes, y)]
        fitted = model(loss=loss, class_weight=class_weight, tol=1e-2).fit(X, y)
        by_row = model(loss=loss, tol=1e-2).fit(X, y, weights)
        assert_allclose(fitted.class_weight_, factors, rtol=1e-14)
        assert_array_equal(fitted.decision_function(X), by_row.decision_function(X))
        assert fitted.objective_ == by_row.objective_
    # And both multiply.
    once = model(loss=loss, class_weight=given, tol=1e-2).fit(X, y, np.arange(45) % 2 + 1)
    both = np.asarray(list(given.values()))[np.searchsorted(classes, y)] * (np.arange(45) % 2 + 1)
    twice = model(loss=loss, tol=1e-2).fit(X, y, both)
    assert_array_equal(once.decision_function(X), twice.decision_function(X))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_a_weight_of_two_is_a_row_repeated(loss, class_weight):
    X, y = make_data(2, 30)
    weight = np.arange(30) % 3
    rows = np.repeat(np.arange(30), weight)
    weighted = model(loss=loss, class_weight=class_weight).fit(X, y, weight)
    repeated = model(loss=loss, class_weight=class_weight).fit(X[rows], y[rows])
    assert_array_equal(weighted.class_weight_, repeated.class_weight_)
    assert_array_equal(weighted.decision_function(X), repeated.decision_function(X))


def test_balance_moves_the_border():
    X, y = make_data(2, 200)
    X, y = X[(y == "few") | (np.arange(200) % 6 == 0)], y[(y == "few") | (np.arange(200) % 6 == 0)]
    rare = min(np.unique(y), key=lambda label: np.sum(y == label))
    plain, balanced = model().fit(X, y), model(class_weight="balanced").fit(X, y)
    recall = [np.mean(m.predict(X)[y == rare] == rare) for m in (plain, balanced)]
    assert recall[1] > recall[0] + 0.1


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ({"few": 0, "some": 1}, r"positive and finite numbers. Got \{'few': 0, 'some': 1\} instead"),
        ({"few": -1.0}, "positive and finite numbers. Got"),
        ({"few": np.nan}, "positive and finite numbers. Got"),
        ({"few": np.inf}, "positive and finite numbers. Got"),
        ({"few": "2"}, "positive and finite numbers. Got"),
        ({"few": None}, "positive and finite numbers. Got"),
        ({"one": 1.0, "two": 2.0}, r"\['few', 'some'\], are not in class_weight"),
        ("even", "'class_weight' parameter of ConvexBNClassifier must be"),
        ([1.0, 2.0], "'class_weight' parameter of ConvexBNClassifier must be"),
    ],
)
def test_bad_class_weights_are_refused_before_training(class_weight, message, monkeypatch):
    monkeypatch.setattr(_base, "prepare", None)
    with pytest.raises(ValueError, match=message):
        model(class_weight=class_weight).fit(*make_data(2))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_separable_data_with_weak_regularization(loss, dtype):
    X, y = load_iris(return_X_y=True)
    setosa = np.where(y == 0, "setosa", "other")
    fitted = model(loss=loss, beta_ratio=1e-4, max_iter=10).fit(X.astype(dtype), setosa)
    decision = fitted.decision_function(X.astype(dtype))
    assert decision.dtype == dtype
    assert np.isfinite(decision).all()
    assert fitted.score(X.astype(dtype), setosa) == 1
    assert 0 <= fitted.lower_bound_ <= fitted.objective_ < np.inf
    if loss == "log_loss":
        assert np.abs(decision).min() > 5
        assert np.isfinite(fitted.predict_log_proba(X.astype(dtype))).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_one_row_in_a_thousand(loss, class_weight, dtype):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((1001, 2)).astype(dtype), np.zeros(1001, dtype=int)
    # Alone in its corner, so that a network can find it.
    X[0], y[0] = 6.0, 1
    fitted = model(loss=loss, class_weight=class_weight, beta_ratio=0.1, tol=1e-2, max_iter=5).fit(X, y)
    assert np.isfinite(fitted.decision_function(X)).all()
    assert 0 < fitted.lower_bound_ <= fitted.objective_
    assert fitted.beta_ > 0
    if class_weight == "balanced":
        assert fitted.score(X, y) == 1
    if loss == "log_loss":
        assert_allclose(
            np.average(fitted.predict_proba(X)[:, 1], weights=fitted.class_weight_[y]),
            np.average(y, weights=fitted.class_weight_[y]),
            rtol=1e-3,
        )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("share", [0.3, 0.02])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_precision_does_not_change_beta_max(loss, share, weighted):
    """A constant puts all rows of a class at the kink of the hinge: single precision tells them apart."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 2)).astype(np.float32)
    y, weight = np.arange(100) < 100 * share, rng.uniform(0.5, 2, 100) if weighted else None
    single, double = (
        model(loss=loss, beta_ratio=0.8, tol=1e-2, max_iter=2).fit(X.astype(dtype), y, weight)
        for dtype in (np.float32, np.float64)
    )
    assert_allclose(single.beta_max_, double.beta_max_, rtol=1e-4)
    assert single.lower_bound_ <= double.objective_ * (1 + 1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_constant_features_give_the_shares_of_the_classes(loss, n_classes, dtype):
    _, y = make_data(n_classes)
    X = np.full((45, 3), 0.1, dtype=dtype)
    fitted = model(loss=loss).fit(X, y)
    assert (fitted.rank_, fitted.n_neurons_) == (0, 0)
    largest = max(fitted.classes_, key=lambda label: np.sum(y == label))
    assert set(fitted.predict(X)) == {largest}
    if loss == "log_loss":
        shares = [np.mean(y == label) for label in fitted.classes_]
        assert_allclose(fitted.predict_proba(X)[0], shares, rtol=1e-6)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_other_losses_are_calibrated_from_outside(n_classes):
    X, y = make_data(n_classes, 90)
    calibrated = CalibratedClassifierCV(model(loss="hinge", tol=1e-2), cv=3).fit(X, y)
    P = calibrated.predict_proba(X)
    assert_allclose(P.sum(axis=1), 1, rtol=1e-12)
    assert calibrated.score(X, y) > max(np.mean(y == label) for label in np.unique(y))


def test_the_loss_is_a_parameter_to_search_over():
    X, y = make_data(2)
    search = GridSearchCV(model(tol=1e-2), {"loss": LOSSES, "class_weight": [None, "balanced"]}, cv=2)
    search.fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.loss == search.best_params_["loss"]
    # Scoring by probabilities asks for the loss that has them.
    by_probability = GridSearchCV(
        model(tol=1e-2), {"beta_ratio": [0.1, 0.3]}, scoring="neg_log_loss", cv=2
    ).fit(X, y)
    assert by_probability.best_score_ > -np.log(2)


def test_behind_a_truncation_and_after_pickling():
    X, y = load_breast_cancer(return_X_y=True)
    pipeline = make_pipeline(SVDTruncation(8, output="scores"), model(beta_ratio=0.1, tol=1e-2)).fit(
        X[::2], y[::2]
    )
    P = pipeline.predict_proba(X)
    assert pipeline.score(X[1::2], y[1::2]) > 0.9
    again = pickle.loads(pickle.dumps(pipeline))
    assert_array_equal(again.predict_proba(X), P)
    assert_array_equal(again.predict_log_proba(X), pipeline.predict_log_proba(X))


def test_the_loss_of_the_fit_is_that_of_the_error():
    fitted = model().fit(*make_data(2))
    fitted.set_params(loss="hinge")
    with pytest.raises(AttributeError) as raised:
        _ = fitted.predict_proba
    assert re.search(r"for loss='log_loss' only. Got loss='hinge'", str(raised.value.__cause__))
