"""Rows in arrays of other libraries, where scikit-learn dispatches on them: predictions come back in them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal

from skcvxbn import (
    ClosedFormBNClassifier,
    ClosedFormBNNet,
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    SVDTruncation,
)
from skcvxbn._sklearn import on_host

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
y = np.abs(X[:, 0]) + 0.5 * X[:, 1]
three = np.digitize(y, [0.3, 1.0])
weight = np.arange(40) % 3 + 0.5

# Models, targets and what is asked of them.
CASES = {
    "regressor": (ConvexBNRegressor(tol=1e-2, random_state=0), y, ["predict"]),
    "two targets": (ConvexBNRegressor(tol=1e-1, random_state=0), np.stack([y, -y], axis=1), ["predict"]),
    "two classes": (
        ConvexBNClassifier(random_state=0),
        three > 1,
        ["predict", "decision_function", "predict_proba", "predict_log_proba"],
    ),
    "three classes": (
        ConvexBNClassifier(random_state=0),
        three,
        ["predict", "decision_function", "predict_proba", "predict_log_proba"],
    ),
    "cross-validation": (
        ConvexBNClassifierCV(beta_ratios=2, cv=2, random_state=0),
        three,
        ["predict", "predict_proba"],
    ),
    "closed form": (ClosedFormBNNet(random_state=0), y, ["predict"]),
    "closed form, classes": (
        ClosedFormBNClassifier(random_state=0),
        three,
        ["predict", "decision_function"],
    ),
    "truncation": (SVDTruncation(2, output="scores"), y, ["transform"]),
}


@pytest.fixture(params=["torch", "array_api_strict, second device"])
def library(request):
    """Return a function that takes NumPy arrays to a library, and one that says where an array is."""
    if not os.environ.get("SCIPY_ARRAY_API"):
        pytest.skip("SCIPY_ARRAY_API is not set")
    name, _, other = request.param.partition(", ")
    module = pytest.importorskip(name)
    device = module.Device("device1") if other else "cpu"

    def to(M):
        return module.asarray(np.array(M), device=device)

    def place(M):
        return type(M), M.device, str(M.dtype).rpartition(".")[2]

    with sklearn.config_context(array_api_dispatch=True):
        yield to, place


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("case", CASES)
def test_predictions_are_where_the_rows_are(case, library):
    to, place = library
    model, target, methods = CASES[case]
    expected, found = sklearn.clone(model), sklearn.clone(model)
    with sklearn.config_context(array_api_dispatch=False):
        expected.fit(X, target, sample_weight=weight)
    found.fit(to(X), to(target), sample_weight=to(weight))
    for name, attribute in vars(found).items():
        if name.endswith("_") and isinstance(getattr(expected, name), np.ndarray):
            assert isinstance(attribute, np.ndarray)
    for method in methods:
        there, here = getattr(found, method)(to(X)), getattr(expected, method)(X)
        assert place(there) == place(to(here))
        assert_allclose(on_host(there), here)
    assert_array_equal(getattr(found, methods[0])(X), getattr(expected, methods[0])(X))


def test_single_precision_is_kept(library):
    to, _ = library
    single = X.astype(np.float32)
    prediction = ConvexBNRegressor(tol=1e-1, random_state=0).fit(to(single), to(y)).predict(to(single))
    assert str(prediction.dtype).endswith("float32")


def test_labels_that_are_strings_stay_in_numpy(library):
    to, _ = library
    labels = np.array(["a", "b", "c"])[three]
    model = ConvexBNClassifier(random_state=0).fit(to(X), labels)
    assert isinstance(model.predict(to(X)), np.ndarray)
    assert set(model.predict(to(X))) <= set(labels)
    assert not isinstance(model.predict_proba(to(X)), np.ndarray)


def test_scores_of_arrays_of_one_library(library):
    to, _ = library
    model = ConvexBNRegressor(tol=1e-2, random_state=0).fit(X, y)
    assert float(model.score(to(X), to(y))) == pytest.approx(model.score(X, y))


def test_without_dispatch_predictions_are_numpy():
    torch = pytest.importorskip("torch")
    model = ConvexBNRegressor(tol=1e-1, random_state=0).fit(X, y)
    assert isinstance(model.predict(torch.asarray(X)), np.ndarray)
