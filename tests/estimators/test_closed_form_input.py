from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_array_equal
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import FunctionTransformer

from skcvxbn import ClosedFormBNClassifier, ClosedFormBNNet


def make_data(n=14, d=20, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) + 1
    return X, np.sin(2 * X[:, 0]) + X[:, 1] + 0.1 * rng.standard_normal(n)


BAD_PARAMETERS = {
    "beta": [0.0, -1.0, np.nan, np.inf, "1"],
    "beta_ratio": [0.0, -1.0, np.nan, None],
    "fit_intercept": ["yes"],
    "hidden_layer_sizes": ["none", None, 5],
    "feature_extractor": ["pca", np.tanh],
    "bn_position": ["between", None],
    "random_state": ["seed"],
}


@pytest.mark.parametrize("estimator", [ClosedFormBNNet, ClosedFormBNClassifier])
@pytest.mark.parametrize(("name", "value"), [(k, v) for k, values in BAD_PARAMETERS.items() for v in values])
def test_bad_parameters_are_refused_in_scikit_learn_words(estimator, name, value):
    X = make_data()[0]
    with pytest.raises(ValueError, match=rf"The '{name}' parameter of {estimator.__name__} must be .* Got "):
        estimator(**{name: value}).fit(X, np.arange(14) % 2)


@pytest.mark.parametrize("sizes", [(0,), (10, -1), (2.5,), ("a",)])
def test_bad_widths_are_refused(sizes):
    with pytest.raises(ValueError, match="hidden_layer_sizes must hold integers greater than zero"):
        ClosedFormBNNet(hidden_layer_sizes=sizes).fit(*make_data())


BAD_DATA = {
    "NaN in X": (np.full((4, 5), np.nan), np.ones(4), None, "contains NaN"),
    "infinity in y": (np.eye(4), [1, 2, np.inf, 3], None, "infinity"),
    "one row": (np.ones((1, 2)), [1.0], None, r"1 sample\(s\).* minimum of 2 is required"),
    "inconsistent": (np.eye(4), np.ones(3), None, "inconsistent numbers of samples"),
    "negative weight": (np.eye(4), np.ones(4), [1, 1, 1, -1], "Negative values"),
    "zero weights": (np.eye(4), np.ones(4), np.zeros(4), "at least one non-zero"),
    "acute angles": (np.eye(4), np.arange(8.0).reshape(4, 2), None, "no closed form"),
}


@pytest.mark.parametrize("extract", [False, True])
@pytest.mark.parametrize(("X", "y", "weight", "message"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_are_refused_and_change_nothing(X, y, weight, message, extract):
    model = ClosedFormBNNet().fit(*make_data())
    if extract:
        model.set_params(feature_extractor=FunctionTransformer(validate=False).fit(np.eye(4)))
    before = pickle.dumps(vars(model))
    with pytest.raises(ValueError, match=message):
        model.fit(X, y, weight)
    assert pickle.dumps(vars(model)) == before


def test_one_class_and_sparse_rows_are_refused():
    X = make_data()[0]
    with pytest.raises(ValueError, match=r"at least 2 classes .* only one class: .*1"):
        ClosedFormBNClassifier().fit(X, np.arange(14) % 2, np.arange(14) % 2)
    with pytest.raises(TypeError, match="Sparse data was passed for X"):
        ClosedFormBNNet().fit(sp.csr_array(X), np.ones(14))
    with pytest.raises(NotFittedError):
        ClosedFormBNNet().predict(X)
    with pytest.raises(NotFittedError):
        ClosedFormBNNet(feature_extractor=PCA(2).fit(X)).predict(X)


def test_the_callers_arrays_are_left_alone():
    X, y = make_data()
    weight = np.linspace(0, 1, 14)
    copies = X.copy(), y.copy(), weight.copy()
    for bn_position in ("before", "after"):
        ClosedFormBNNet(bn_position=bn_position).fit(X, y, weight).predict(X)
    for array, copy in zip((X, y, weight), copies, strict=True):
        assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("y", "weight", "message"),
    [
        ([1, 2, 3, np.nan], None, "contains NaN"),
        ([1, 2, 3], None, "inconsistent"),
        (np.ones(4), -np.ones(4), "Negative values"),
    ],
)
def test_what_is_wrong_with_y_is_said_before_features_are_extracted(y, weight, message):
    def extract(X):
        raise AssertionError

    extractor = FunctionTransformer(extract).fit(np.eye(4))
    with pytest.raises(ValueError, match=message):
        ClosedFormBNNet(feature_extractor=extractor).fit(np.eye(4), y, weight)
