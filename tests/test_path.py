from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning

from skcvxbn import ConvexBNClassifier, ConvexBNRegressor, path, training
from skcvxbn.path import beta_max, convex_bn_path
from skcvxbn.targets import CLASSIFICATION_LOSSES, REGRESSION_LOSSES
from skcvxbn.training import largest_beta
from skcvxbn.whitening import whiten


def data(n=25, d=1, n_outputs=1, seed=0):
    rng = np.random.default_rng([n, d, n_outputs, seed])
    X = rng.standard_normal((n, d))
    return X, np.sin(2 * X[:, :1]) + rng.standard_normal((n, n_outputs)) + 1.0


def brute_force(x, Y, fit_intercept, weight=None):
    """Maximise over a fine grid of the circle, on coordinates written out for one feature."""
    w = np.ones(len(x)) if weight is None else weight
    centred = x - np.average(x, weights=w)
    A = np.sqrt(w)[:, None] * np.c_[centred / np.sqrt(w @ centred**2), np.full(len(x), w.sum() ** -0.5)]
    target = np.sqrt(w)[:, None] * (Y - np.average(Y, axis=0, weights=w) if fit_intercept else Y)
    angle = np.linspace(0, 2 * np.pi, 100_001)
    hidden = np.maximum(A @ np.stack([np.cos(angle), np.sin(angle)]), 0)
    return np.linalg.norm(target.T @ hidden, axis=0).max()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_one_feature_agrees_with_brute_force(fit_intercept, n_outputs, seed):
    X, Y = data(n_outputs=n_outputs, seed=seed)
    expected = brute_force(X[:, 0], Y, fit_intercept)
    # The grid misses the maximum by the square of its step, or by the step at a kink.
    assert beta_max(X, Y, fit_intercept=fit_intercept) == pytest.approx(expected, rel=1e-4)
    assert beta_max(X, Y, fit_intercept=fit_intercept) >= expected * (1 - 1e-12)


def test_more_features_than_rows_have_a_closed_form():
    # The range of A is everything: the best neuron is y_+ or y_- itself, normalised.
    X, Y = data(8, 20)
    y = Y[:, 0]
    expected = max(np.linalg.norm(np.maximum(y, 0)), np.linalg.norm(np.maximum(-y, 0)))
    assert beta_max(X, y, fit_intercept=False) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_weights_are_repetitions_and_zero_removes(fit_intercept):
    X, Y = data(n_outputs=2)
    weight = np.random.default_rng(1).integers(0, 4, len(X))
    value = beta_max(X, Y, sample_weight=weight, fit_intercept=fit_intercept)
    repeated = beta_max(
        np.repeat(X, weight, axis=0), np.repeat(Y, weight, axis=0), fit_intercept=fit_intercept
    )
    assert value == pytest.approx(repeated, rel=1e-9)
    kept = weight > 0
    assert value >= brute_force(X[kept, 0], Y[kept], fit_intercept, weight[kept].astype(float)) * (1 - 1e-9)


@pytest.mark.parametrize("scale", [1e-200, 1e-12, 1e12, 1e100])
def test_the_target_scales_the_value(scale):
    X, Y = data(30, 4, 2)
    assert beta_max(X, scale * Y) == pytest.approx(scale * beta_max(X, Y), rel=1e-9)


def test_the_features_do_not_scale_it():
    X, Y = data(30, 4)
    one = beta_max(X, Y)
    assert beta_max(X * [1e-12, 1e12, -3.0, 1.0] + [0, 0, 50.0, -4.0], Y) == pytest.approx(one, rel=1e-7)
    assert beta_max(np.c_[X, X[:, 0], np.ones(30)], Y) == pytest.approx(one, rel=1e-9)


def test_an_offset_of_the_target_matters_without_an_intercept_only():
    X, Y = data(30, 3)
    assert beta_max(X, Y + 7.0) == pytest.approx(beta_max(X, Y), rel=1e-9)
    assert beta_max(X, Y + 7.0, fit_intercept=False) > 2 * beta_max(X, Y, fit_intercept=False)


def test_it_is_deterministic_and_needs_no_global_randomness():
    X, Y = data(40, 6, 2)
    np.random.seed(1)  # noqa: NPY002
    one = beta_max(X, Y)
    np.random.seed(2)  # noqa: NPY002
    assert beta_max(X, Y) == one


def test_shapes_of_the_target_and_constants():
    X, Y = data(12, 2)
    assert beta_max(X, Y[:, 0]) == beta_max(X, Y)
    assert beta_max(X, np.full(12, 3.0)) < 1e-12
    assert beta_max(X, np.zeros(12)) == 0
    # Features without variation leave the constant neuron: ||y|| along 1 / sqrt(n).
    assert beta_max(np.ones((4, 2)), np.ones(4), fit_intercept=False) == pytest.approx(2.0)


def test_no_neuron_exceeds_it():
    X, Y = data(40, 5, 3)
    A, target = whiten(X).A, Y - Y.mean(axis=0)
    s = np.random.default_rng(0).standard_normal((6, 100_000))
    values = np.linalg.norm(target.T @ np.maximum(A @ s, 0), axis=0) / np.linalg.norm(s, axis=0)
    assert largest_beta(A, target) >= values.max()
    assert largest_beta(A, target) <= np.linalg.norm(target, 2)


@pytest.mark.parametrize(
    ("X", "y", "weight", "message"),
    [
        ([[1.0], [np.nan]], [1.0, 2.0], None, "NaN"),
        ([[1.0], [2.0]], [1.0, np.inf], None, "infinity"),
        ([[1.0], [2.0]], [1.0, 2.0, 3.0], None, "inconsistent"),
        ([[1.0]], [1.0], None, "minimum of 2"),
        ([[1.0], [2.0]], [1.0, 2.0], [1.0, -1.0], "[Nn]egative"),
        ([[1.0], [2.0]], [1.0, 2.0], [0.0, 0.0], "non-zero"),
        (np.array([[1j], [2.0]]), [1.0, 2.0], None, "[Cc]omplex"),
    ],
)
def test_bad_input_is_refused(X, y, weight, message):
    with pytest.raises(ValueError, match=message):
        beta_max(X, y, sample_weight=weight)


def iris(n_classes):
    X, y = load_iris(return_X_y=True)
    keep = y < n_classes
    return X[keep][::2], np.array(["a", "b", "c"])[y[keep][::2]]


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("loss", REGRESSION_LOSSES)
def test_it_is_that_of_a_regressor(loss, fit_intercept):
    X, Y = data(20, 3, 2)
    weight = np.arange(20) % 3
    shape = {"loss": loss, "epsilon": 0.7, "quantile": 0.3, "fit_intercept": fit_intercept}
    fitted = ConvexBNRegressor(beta=1e6, **shape).fit(X, Y, weight)
    assert beta_max(X, Y, sample_weight=weight, **shape) == fitted.beta_max_


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("loss", sorted(set(CLASSIFICATION_LOSSES) - set(REGRESSION_LOSSES)))
def test_it_is_that_of_a_classifier(loss, n_classes):
    X, y = iris(n_classes)
    limit = beta_max(X, y, loss=loss)
    for share in (1.001, 0.9):
        fitted = ConvexBNClassifier(beta=share * limit, loss=loss, tol=1e-2, random_state=0).fit(X, y)
        assert fitted.beta_max_ == limit
        # The gradient of the hinge is not unique at the constant, and its beta_max an upper bound.
        assert (fitted.n_neurons_ == 0) == (share > 1) or (loss == "hinge" and share < 1)


def test_bad_parameters_are_refused_in_scikit_learn_words():
    X, Y = data()
    with pytest.raises(ValueError, match="The 'loss' parameter of beta_max must be a str among"):
        beta_max(X, Y, loss="log")
    with pytest.raises(
        ValueError, match="The 'eps' parameter of convex_bn_path must be a float in the range"
    ):
        convex_bn_path(X, Y, eps=1.0)
    with pytest.raises(ValueError, match=r"at least 2 classes.* only one class: 'a'"):
        beta_max(X, ["a"] * 25, loss="hinge")
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        beta_max(X, Y[:, 0], loss="log_loss")
    for betas in ([1.0, -1.0], [[1.0]], [np.inf]):
        with pytest.raises(ValueError, match="betas"):
            convex_bn_path(X, Y, betas=betas)


@pytest.mark.parametrize("loss", ["squared_error", "huber", "log_loss"])
def test_every_network_of_the_path_has_a_small_gap_and_agrees_with_a_fit(loss):
    X, Y = data(30, 3)
    y = np.where(Y[:, 0] > 1, "yes", "no") if loss == "log_loss" else Y[:, 0]
    weight = np.arange(30) % 4
    walked = convex_bn_path(
        X, y, betas=5, eps=0.03, loss=loss, sample_weight=weight, tol=1e-4, random_state=0
    )
    limit = beta_max(X, y, loss=loss, sample_weight=weight)
    np.testing.assert_allclose(walked.betas, limit * np.geomspace(1, 0.03, 5))
    assert walked.n_neurons[0] == 0
    assert np.all(walked.n_neurons[1:] > 0)
    assert np.all(walked.dual_gaps <= 1e-4 * walked.objectives)
    estimator = ConvexBNClassifier if loss == "log_loss" else ConvexBNRegressor
    for beta, network, objective in zip(walked.betas, walked.networks, walked.objectives, strict=True):
        cold = estimator(beta=beta, loss=loss, tol=1e-4, random_state=1).fit(X, y, weight)
        assert objective == pytest.approx(cold.objective_, rel=1e-4)
        output = network.forward(X)[weight > 0]
        np.testing.assert_allclose(output, cold.network_.forward(X)[weight > 0], atol=0.2)


def test_objectives_are_those_of_the_networks():
    X, Y = data(30, 3, 2)
    walked = convex_bn_path(X, Y, betas=[0.3, 1.0, 0.5, 1.0], random_state=0)
    assert walked.betas.tolist() == [1.0, 0.5, 0.3]
    for beta, network, objective in zip(walked.betas, walked.networks, walked.objectives, strict=True):
        assert objective == pytest.approx(network.objective(X, Y, beta), rel=1e-12)


def test_one_whitening_and_every_start_is_the_last_network(monkeypatch):
    whitenings, solutions, starts = [], [], []
    whiten, solve = training.whiten, path.solve

    def counted(*args):
        whitenings.append(args)
        return whiten(*args)

    def recorded(problem, options, start=None):
        starts.append(start)
        solutions.append(solve(problem, options, start=start))
        return solutions[-1]

    monkeypatch.setattr(training, "whiten", counted)
    monkeypatch.setattr(path, "solve", recorded)
    X, Y = data(30, 3)
    convex_bn_path(X, Y, betas=4, eps=0.1, random_state=0)
    assert len(whitenings) == 1
    assert starts[:2] == [None, None]
    for solution, start in zip(solutions[1:], starts[2:], strict=False):
        assert start[0] is solution.S
        assert start[1] is solution.V


def test_a_constant_target_has_a_path_without_neurons():
    X, _ = data()
    walked = convex_bn_path(X, np.full(25, 3.0), betas=3)
    assert walked.n_neurons.tolist() == [0, 0, 0]
    assert walked.dual_gaps.tolist() == [0, 0, 0]


def test_gaps_that_stay_open_are_one_warning():
    X, Y = data(60, 5)
    with pytest.warns(ConvergenceWarning, match="above tol=1e-09 for . of 4 weight decays") as record:
        walked = convex_bn_path(X, Y, betas=4, eps=0.01, tol=1e-9, max_iter=1, max_neurons=3, random_state=0)
    assert [warning.filename for warning in record] == [__file__]
    assert np.all(walked.n_neurons <= 3)
