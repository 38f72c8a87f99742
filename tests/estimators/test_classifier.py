from __future__ import annotations

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.utils.multiclass import check_classification_targets

from skcvxbn import ConvexBNClassifier, ConvexBNRegressor


def model(**parameters):
    return ConvexBNClassifier(**{"beta_ratio": 0.1, "random_state": 0, **parameters})


def make_data(n_classes, n=60):
    X, y = load_iris(return_X_y=True)
    keep = y < n_classes
    X, y = X[keep], y[keep]
    order = np.random.default_rng(0).permutation(len(y))[:n]
    return X[order], y[order]


def test_two_classes_are_a_regression_on_signs():
    X, y = make_data(2)
    fitted = model(loss="squared_error", tol=1e-4).fit(X, np.array(["no", "yes"])[y])
    regression = ConvexBNRegressor(beta_ratio=0.1, shrinkage=0.3, random_state=0).fit(X, 2.0 * y - 1)
    assert_array_equal(fitted.classes_, ["no", "yes"])
    assert_array_equal(fitted.decision_function(X), regression.predict(X))
    assert_array_equal(fitted.predict(X) == "yes", regression.predict(X) > 0)
    assert fitted.objective_ == regression.objective_
    assert isinstance(fitted.intercept_, float)
    assert fitted.network_.output_weights.shape[1] == 1


def test_several_classes_are_a_regression_on_indicators():
    X, y = make_data(3)
    fitted = model(loss="squared_error", tol=1e-4).fit(X, y)
    indicators = (y[:, None] == [0, 1, 2]).astype(float)
    regression = ConvexBNRegressor(beta_ratio=0.1, shrinkage=0.3, random_state=0).fit(X, indicators)
    assert_array_equal(fitted.decision_function(X), regression.predict(X))
    assert_array_equal(fitted.predict(X), regression.predict(X).argmax(axis=1))
    assert fitted.objective_ == regression.objective_
    assert fitted.intercept_.shape == (3,)
    # Indicators sum to one in every row, and so do the predictions on average.
    assert_allclose(fitted.decision_function(X).sum(axis=1).mean(), 1.0)


LABELS = {
    "int": [30, -10, 20],
    "float": [2.0, 0.0, 1.0],
    "bool": [True, False],
    "str": ["b", "a", "c"],
    "object": np.array(["one", "two", "three"], dtype=object),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_of_any_type(labels):
    labels = np.asarray(labels)
    X, y = make_data(len(labels))
    named = labels[y]
    fitted = model().fit(X, named)
    assert_array_equal(fitted.classes_, np.unique(labels))
    predicted = fitted.predict(X)
    assert predicted.dtype == labels.dtype
    check_classification_targets(predicted)
    assert np.mean(predicted == named) > 0.9


def test_the_order_of_the_labels_does_not_matter():
    X, y = make_data(2)
    one, other = model().fit(X, y), model().fit(X, 1 - y)
    assert_allclose(one.decision_function(X), -other.decision_function(X), atol=1e-3)
    assert_allclose(one.objective_, other.objective_, rtol=2e-4)


def test_classes_without_weight_are_not_learned():
    X, y = make_data(3)
    fitted = model().fit(X, y, (y != 1).astype(float))
    removed = model().fit(X[y != 1], y[y != 1])
    assert_array_equal(fitted.classes_, [0, 2])
    assert_array_equal(fitted.decision_function(X), removed.decision_function(X))


def test_one_class_is_refused_and_changes_nothing():
    X, y = make_data(3)
    fitted = model().fit(X, y)
    before = pickle.dumps(vars(fitted))
    with pytest.raises(ValueError, match=r"at least 2 classes in the data.* only one class: 'a'"):
        fitted.fit(X[:, :2], np.full(len(y), "a", dtype=object))
    with pytest.raises(ValueError, match="only one class"):
        fitted.fit(X[:, :2], y, (y == 1).astype(float))
    assert pickle.dumps(vars(fitted)) == before


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0.1, 0.2, 0.3, 0.4], "Unknown label type: continuous"),
        ([[0, 1], [1, 0], [1, 1], [0, 0]], r"y should be a 1d array"),
        ([0, 1, 0], "inconsistent numbers of samples"),
        ([0, 1, np.nan, 1], "contains NaN"),
    ],
)
def test_bad_targets_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        model().fit(np.eye(4), y)


def test_parameters_are_those_of_the_regressor():
    own, others = ConvexBNClassifier().get_params(), ConvexBNRegressor().get_params()
    assert own.keys() ^ others.keys() == {"class_weight", "epsilon", "quantile"}
    different = {name for name in own.keys() & others.keys() if own[name] != others[name]}
    assert different == {"beta_ratio", "loss", "shrinkage", "tol"}
    with pytest.raises(ValueError, match="The 'beta' parameter of ConvexBNClassifier must be a float"):
        model(beta=-1.0).fit(*make_data(2))
    with pytest.raises(ValueError, match="solver='cvxpy'"):
        model(solver="cvxpy").fit(*make_data(2))


@pytest.mark.parametrize("loss", ["squared_error", "hinge", "squared_hinge"])
@pytest.mark.parametrize("method", ["predict_proba", "predict_log_proba"])
def test_only_the_log_loss_has_probabilities(loss, method):
    assert hasattr(model(), method)
    fitted = model(loss=loss).fit(*make_data(2))
    assert not hasattr(fitted, method)
    # available_if hides its reason behind a general one.
    with pytest.raises(AttributeError, match=f"no attribute '{method}'") as raised:
        getattr(fitted, method)
    assert f"loss={loss!r}" in str(raised.value.__cause__)
    assert "CalibratedClassifierCV" in str(raised.value.__cause__)


def test_real_data_without_scaling():
    X, y = load_breast_cancer(return_X_y=True)
    fitted = model(tol=1e-3).fit(X[::2], y[::2])
    # The most frequent class alone scores 0.63.
    assert fitted.score(X[1::2], y[1::2]) > 0.93
    assert fitted.dual_gap_ <= 1e-3 * fitted.objective_


def test_same_seed_same_network():
    X, y = make_data(3)
    fitted = model().fit(X, y)
    assert_array_equal(clone(fitted).fit(X, y).decision_function(X), fitted.decision_function(X))


@pytest.mark.parametrize("estimator", [ConvexBNClassifier, ConvexBNRegressor])
@pytest.mark.parametrize(
    ("given", "dtype", "expected"),
    [
        (np.float64, None, np.float64),
        (np.float32, None, np.float32),
        (np.int64, None, np.float64),
        (np.float64, "float32", np.float32),
        (np.float32, "float64", np.float64),
    ],
)
def test_the_precision_is_that_of_the_rows_or_the_one_asked_for(estimator, given, dtype, expected):
    X, y = make_data(2)
    X = (10 * X).astype(given)
    before = X.copy()
    fitted = estimator(beta_ratio=0.3, dtype=dtype, random_state=0).fit(X, y)
    assert fitted.network_.hidden_weights.dtype == fitted.network_.output_weights.dtype == expected
    assert_array_equal(X, before)


def test_precisions_are_two():
    with pytest.raises(ValueError, match="The 'dtype' parameter of ConvexBNClassifier must be a str among"):
        model(dtype="float16").fit(*make_data(2))
