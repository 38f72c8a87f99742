from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import ValidationCurveDisplay

from skcvxbn import ConvexBNRegressor, ConvexBNRegressorCV, convex_bn_path
from skcvxbn.diagnostics import PathDisplay

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def closed_figures():
    # Figures that an earlier test left open: switching would close them, with a warning in old versions.
    plt.close("all")
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 3))
    return X, np.abs(X[:, 0]) + 0.3 * rng.standard_normal(40)


def lines(ax):
    return [line.get_xydata().T for line in ax.get_lines() if line.get_marker() == "."]


def test_an_estimator_is_drawn_at_its_components():
    X, y = data()
    model = ConvexBNRegressorCV(beta_ratios=5, eps=0.05, n_components=[1, 3], cv=3, random_state=0).fit(X, y)
    display = PathDisplay.from_estimator(model)
    score, objective, neurons = display.axes_
    which = slice(5, 10) if model.n_components_ == 3 else slice(0, 5)
    for ax, name in ((score, "test_score"), (objective, "objective"), (neurons, "n_neurons")):
        ((x, values),) = lines(ax)
        assert_allclose(x, model.beta_ratios_)
        assert_allclose(values, model.cv_results_[f"mean_{name}"][which])
        assert ax.get_xscale() == "log"
        assert model.beta_ratio_ in [line.get_xdata()[0] for line in ax.get_lines()]
    assert neurons.get_xlabel() == "beta_ratio"
    assert display.figure_ is score.figure


def test_a_path_is_drawn_with_its_gaps():
    X, y = data()
    path = convex_bn_path(X, y, betas=4, eps=0.1, random_state=0)
    _, axes = plt.subplots(2)
    display = PathDisplay.from_path(path, axes=axes)
    assert list(display.axes_) == list(axes)
    assert_allclose(lines(axes[0])[0], [path.betas, path.objectives])
    assert_allclose(lines(axes[1])[0], [path.betas, path.n_neurons])
    (band,) = axes[0].collections
    corners = band.get_paths()[0].vertices[:, 1]
    assert corners.min() == pytest.approx(path.lower_bounds.min())
    with pytest.raises(ValueError, match=r"axes must hold 2 Axes\. Got 1 instead"):
        PathDisplay.from_path(path, axes=axes[0])


def test_an_estimator_has_to_be_fitted():
    with pytest.raises(NotFittedError):
        PathDisplay.from_estimator(ConvexBNRegressorCV())


def test_the_validation_curve_of_scikit_learn():
    X, y = data()
    model = ConvexBNRegressor(tol=1e-2, random_state=0)
    display = ValidationCurveDisplay.from_estimator(
        model, X, y, param_name="beta_ratio", param_range=[1.0, 0.3, 0.1], cv=3
    )
    assert display.test_scores.shape == (3, 3)
    assert display.test_scores.mean(axis=1)[0] < display.test_scores.mean(axis=1)[2]
