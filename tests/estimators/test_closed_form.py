from __future__ import annotations

import pickle
from dataclasses import fields

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skcvxbn import (
    BatchNormNetwork,
    ClosedFormBNClassifier,
    ClosedFormBNNet,
    ConvexBNClassifier,
    ConvexBNRegressor,
    DeepBatchNormNetwork,
    SVDTruncation,
)
from skcvxbn.estimators import _closed_form


def make_data(n=14, d=20, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) + 1
    return X, np.sin(2 * X[:, 0]) + X[:, 1] + 0.1 * rng.standard_normal(n)


def norms(y):
    return np.linalg.norm(np.maximum(y, 0)), np.linalg.norm(np.minimum(y, 0))


def objective_by_batch_norm(network, X, Y, beta):
    """The paper's objective, with batch normalization recomputed from the rows and no running statistics."""
    n = len(X)
    H = X @ network.hidden_weights
    H = np.maximum(H, 0) if network.bn_position == "after" else H
    H = H - H.mean(axis=0)
    gamma, alpha = np.sqrt(n) * network.bn_weight, np.sqrt(n) * network.bn_bias
    H = H / np.linalg.norm(H, axis=0) * gamma + alpha / np.sqrt(n)
    H = np.maximum(H, 0) if network.bn_position == "before" else H
    out = H @ network.output_weights + network.intercept
    loss = np.sum((out - Y.reshape(out.shape)) ** 2)
    return 0.5 * loss + 0.5 * beta * (np.sum(gamma**2) + np.sum(alpha**2) + np.sum(network.output_weights**2))


@pytest.mark.parametrize("beta", [0.01, 0.3])
def test_the_objective_is_the_formula(beta):
    X, y = make_data()
    model = ClosedFormBNNet(beta).fit(X, y)
    formula = beta * sum(norms(y)) - beta**2
    assert_allclose(model.objective_, formula, rtol=1e-10)
    assert_allclose(model.lower_bound_, formula, rtol=1e-10)
    assert_allclose(objective_by_batch_norm(model.network_, X, y, beta), formula, rtol=1e-10)
    assert 0 <= model.dual_gap_ == model.objective_ - model.lower_bound_ <= 1e-12 * formula
    assert (model.certificate_, model.n_neurons_, model.rank_) == ("exact", 2, 13)
    assert (model.beta_, model.beta_max_) == (beta, max(norms(y)))
    assert model.hidden_layer_sizes_ == ()
    assert model.residual_ < 1e-13
    assert isinstance(model.network_, BatchNormNetwork)
    assert_array_equal(model.predict(X), model.network_.forward(X)[:, 0])


def test_a_neuron_is_absent_when_beta_exceeds_its_norm():
    X, y = make_data()
    small, large = sorted(norms(y))
    for beta, n_neurons in ((0.99 * small, 2), (1.01 * small, 1), (1.01 * large, 0)):
        model = ClosedFormBNNet(beta).fit(X, y)
        assert model.n_neurons_ == n_neurons
        parts = [beta * t - beta**2 / 2 if t > beta else t**2 / 2 for t in (small, large)]
        assert_allclose(model.objective_, sum(parts), rtol=1e-10)
    assert_array_equal(model.predict(X), 0)


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_certified_solver_agrees(fit_intercept, weighted):
    X, y = make_data(9, 12)
    weight = np.arange(9) % 4 if weighted else None
    model = ClosedFormBNNet(0.4, fit_intercept=fit_intercept).fit(X, y, weight)
    certified = ConvexBNRegressor(beta=0.4, fit_intercept=fit_intercept, tol=1e-7, random_state=0)
    certified.fit(X, y, weight)
    assert_allclose(model.objective_, certified.objective_, atol=1.01 * certified.dual_gap_ + 1e-12)
    assert_allclose(model.beta_max_, certified.beta_max_, rtol=1e-6)
    assert_allclose(model.network_.objective(X, y, 0.4, weight), model.objective_, rtol=1e-12)


@pytest.mark.parametrize("labels", [[0, 1, 2] * 4, ["a", "b"] * 6, [2, 2, 2, 2, 2, 2, 2, 2, 2, 5, 5, 7]])
def test_the_classifier_is_theorem_2_4(labels):
    X, labels, beta = make_data(12)[0], np.array(labels), 0.5
    model = ClosedFormBNClassifier(beta).fit(X, labels)
    counts = np.unique(labels, return_counts=True)[1]
    formula = np.sum(beta * np.sqrt(counts) - beta**2 / 2)
    assert_allclose(model.objective_, formula, rtol=1e-10)
    assert_allclose(model.lower_bound_, formula, rtol=1e-10)
    assert model.n_neurons_ == len(counts)
    assert_array_equal(model.predict(X), labels)
    assert_array_equal(model.classes_, np.unique(labels))
    shape = (12,) if len(counts) == 2 else (12, len(counts))
    assert model.decision_function(X).shape == shape


def test_the_certified_classifier_agrees():
    X, y = make_data(9, 12)[0], [0, 1, 2] * 3
    model = ClosedFormBNClassifier(0.4).fit(X, y)
    certified = ConvexBNClassifier(
        beta=0.4, loss="squared_error", fit_intercept=False, tol=1e-3, random_state=0
    )
    certified.fit(X, y)
    assert_allclose(model.objective_, certified.objective_, atol=1.01 * certified.dual_gap_)


def test_several_targets_of_disjoint_supports():
    X, y = make_data()
    Y = np.column_stack([np.where(X[:, 2] > 1, y, 0), np.where(X[:, 2] > 1, 0, y)])
    model = ClosedFormBNNet(0.1).fit(X, Y)
    formula = sum(0.1 * t - 0.005 for column in Y.T for t in norms(column))
    assert_allclose(model.objective_, formula, rtol=1e-10)
    assert model.n_neurons_ == 4
    assert model.predict(X).shape == Y.shape
    assert model.intercept_.shape == (2,)


def test_general_targets_are_refused_and_the_certified_solver_is_offered():
    X, y = make_data()
    Y = np.column_stack([y, y**2])
    with pytest.raises(ValueError, match=r"no closed form.*ConvexBNRegressor is certified for any targets"):
        ClosedFormBNNet().fit(X, Y)
    with pytest.raises(ValueError, match="fit_intercept=True with 2 outputs"):
        ClosedFormBNNet(fit_intercept=True).fit(X, Y)
    after = ClosedFormBNNet(0.1, bn_position="after").fit(X, Y)
    formula = np.sum(0.1 * np.linalg.svd(Y, compute_uv=False) - 0.005)
    assert_allclose(after.objective_, formula, rtol=1e-10)


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_batch_normalization_after_the_relu_is_one_neuron(fit_intercept):
    X, y = make_data()
    model = ClosedFormBNNet(0.3, bn_position="after", fit_intercept=fit_intercept).fit(X, y)
    size = np.linalg.norm(y - y.mean() * fit_intercept)
    assert_allclose(model.objective_, 0.3 * size - 0.045, rtol=1e-10)
    assert_allclose(objective_by_batch_norm(model.network_, X, y, 0.3), 0.3 * size - 0.045, rtol=1e-10)
    assert (model.n_neurons_, model.rank_, model.network_.bn_position) == (1, 14, "after")


def tall_data(n=40, d=2):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n, d))
    return X, np.abs(X[:, 0]) + 2 * X[:, -1]


@pytest.mark.parametrize("d", [1, 2, 39])
@pytest.mark.parametrize("bn_position", ["before", "after"])
def test_more_rows_than_features_get_a_hidden_layer_by_default(d, bn_position):
    X, y = tall_data(d=d)
    model = ClosedFormBNNet(0.2, random_state=0, bn_position=bn_position).fit(X, y)
    needed = d < 39 or bn_position == "after"
    assert model.hidden_layer_sizes_ == ((320,) if needed else ())
    formula = 0.2 * sum(norms(y)) - 0.04 if bn_position == "before" else 0.2 * np.linalg.norm(y) - 0.02
    assert_allclose(model.objective_, formula, rtol=1e-10)
    assert_allclose(model.network_.objective(X, y, 0.2), model.objective_, rtol=1e-12)
    assert model.rank_ == 39 + (bn_position == "after")
    assert isinstance(model.network_, DeepBatchNormNetwork) == needed


def test_the_width_is_smaller_where_memory_asks_for_it(monkeypatch):
    monkeypatch.setattr(_closed_form, "_MAX_ENTRIES", 40 * 100)
    assert ClosedFormBNNet(random_state=0).fit(*tall_data()).hidden_layer_sizes_ == (100,)
    monkeypatch.setattr(_closed_form, "_MAX_ENTRIES", 1)
    assert ClosedFormBNNet(random_state=0).fit(*tall_data()).hidden_layer_sizes_ == (80,)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((), "The 2 features of X have rank 2 after centring, while rank 39 .* on 40 distinct rows. Add a"),
        ((100, 7), "The 7 features of the last hidden layer have rank 7 .* Widen the last entry"),
    ],
)
def test_a_rank_that_is_too_low_is_an_error(sizes, message):
    model = ClosedFormBNNet(hidden_layer_sizes=sizes, random_state=0)
    message += ".* a width of at least 39 is necessary, .* ConvexBNRegressor needs no such condition"
    with pytest.raises(ValueError, match=message):
        model.fit(*tall_data())
    assert not hasattr(model, "n_features_in_")
    with pytest.raises(ValueError, match="rank 2, while rank 3 "):
        ClosedFormBNNet(hidden_layer_sizes=(), bn_position="after").fit(np.eye(3)[:, :2], [1, 2, 3])


@pytest.mark.parametrize("sizes", [(100,), [90, 120]])
def test_hidden_layers_and_their_export(sizes):
    torch = pytest.importorskip("torch")
    X, y = tall_data()
    model = ClosedFormBNNet(0.2, hidden_layer_sizes=sizes, random_state=0).fit(X, y)
    assert model.hidden_layer_sizes_ == tuple(sizes)
    assert_allclose(model.objective_, 0.2 * sum(norms(y)) - 0.04, rtol=1e-10)
    with torch.no_grad():
        exported = model.network_.to_torch()(torch.from_numpy(X)).numpy()
    assert_allclose(exported[:, 0], model.predict(X), atol=1e-8)
    other = ClosedFormBNNet(0.2, hidden_layer_sizes=sizes, random_state=1).fit(X, y)
    assert_allclose(other.objective_, model.objective_, rtol=1e-10)
    new = np.linspace(-1, 1, 6).reshape(3, 2)
    assert np.abs(other.predict(new) - model.predict(new)).max() > 1e-3
    assert_array_equal(clone(model).fit(X, y).predict(new), model.predict(new))


def test_a_fitted_transformer_is_neither_fitted_again_nor_cloned_away():
    X, y = make_data(14, 30)
    extractor = make_pipeline(StandardScaler(), PCA(13)).fit(X)
    state = pickle.dumps(extractor)
    model = ClosedFormBNNet(0.2, feature_extractor=extractor).fit(X, y)
    assert_allclose(model.objective_, 0.2 * sum(norms(y)) - 0.04, rtol=1e-10)
    assert model.network_.feature_extractor is extractor
    assert_array_equal(model.predict(X[:3]), model.network_.forward(X[:3])[:, 0])
    assert clone(model).feature_extractor is extractor
    search = GridSearchCV(model, {"beta": [0.1, 0.2]}, cv=2, error_score="raise").fit(X, y)
    assert search.best_estimator_.feature_extractor is extractor
    assert pickle.dumps(extractor) == state
    with pytest.raises(NotFittedError):
        ClosedFormBNNet(feature_extractor=StandardScaler()).fit(X, y)


def test_a_rank_of_extracted_features_that_is_too_low_is_an_error_unless_layers_follow():
    X, y = make_data(14, 30)
    extractor = PCA(5).fit(X)
    with pytest.raises(ValueError, match=r"features of feature_extractor have rank 5 .* Add a hidden layer"):
        ClosedFormBNNet(feature_extractor=extractor).fit(X, y)
    model = ClosedFormBNNet(0.2, feature_extractor=extractor, hidden_layer_sizes=(60,), random_state=0)
    assert_allclose(model.fit(X, y).objective_, 0.2 * sum(norms(y)) - 0.04, rtol=1e-10)


def test_words_can_be_features():
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = ["a red cat", "a blue dog", "green fish swim", "birds fly", "no animal", "some thing else"]
    y = [1.0, -1.0, 2.0, 0.5, 0.0, -2.0]
    model = ClosedFormBNNet(0.1, feature_extractor=TfidfVectorizer().fit(words)).fit(words, y)
    assert_allclose(model.objective_, 0.1 * sum(norms(np.array(y))) - 0.01, rtol=1e-10)
    assert model.predict(["a red fish"]).shape == (1,)


def test_a_torch_module_on_images():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Conv2d(1, 40, 3), torch.nn.BatchNorm2d(40), torch.nn.ReLU()).double()
    images, labels = load_digits(return_X_y=True)
    images = images[:120].reshape(-1, 1, 8, 8) / 16
    model = ClosedFormBNClassifier(0.5, feature_extractor=body).fit(images, labels[:120])
    counts = np.bincount(labels[:120])
    assert_allclose(model.objective_, np.sum(0.5 * np.sqrt(counts) - 0.125), rtol=1e-10)
    assert body.training
    assert clone(model).feature_extractor is body
    exported = model.network_.to_torch()
    with torch.no_grad():
        out = exported(torch.from_numpy(images[:5])).numpy()
    assert_allclose(out, model.decision_function(images[:5]), atol=1e-9)
    assert model.predict(torch.from_numpy(images[:5])).shape == (5,)


def test_rows_of_equal_features_count_as_one():
    X, y = make_data()
    X, y = np.vstack([X, X[:3], X[:1]]), np.concatenate([y, y[:3] + 0.5, y[:1]])
    model = ClosedFormBNNet(0.3).fit(X, y)
    assert model.rank_ == 13
    assert_allclose(model.objective_, model.network_.objective(X, y, 0.3), rtol=1e-12)
    certified = ConvexBNRegressor(beta=0.3, fit_intercept=False, tol=1e-6, random_state=0).fit(X, y)
    assert_allclose(model.objective_, certified.objective_, atol=1.01 * certified.dual_gap_)
    assert certified.lower_bound_ <= model.objective_ * (1 + 1e-9)


def test_rows_are_equal_when_all_their_features_are():
    # Rows that agree in all but the last digit of one feature have almost the same projection.
    X = make_data(6, 40)[0]
    near = X.copy()
    near[:, 7] = np.nextafter(near[:, 7], np.inf)
    merged = _closed_form._one_row_per_point(
        np.vstack([X, near, -0.0 * X[:1], 0.0 * X[:1]]), np.ones((14, 1)), np.ones(14)
    )
    assert len(merged[0]) == 13
    assert_array_equal(np.sort(merged[2]), [1.0] * 12 + [2.0])


def test_equal_rows_with_different_labels():
    X, y = make_data()[0], np.arange(14) % 2
    X[1] = X[0]
    model = ClosedFormBNClassifier(0.3).fit(X, y)
    codes = 2.0 * y - 1
    assert_allclose(model.objective_, model.network_.objective(X, codes, 0.3), rtol=1e-12)
    with pytest.raises(ValueError, match="Rows of equal features count as one"):
        ClosedFormBNClassifier().fit(X, np.arange(14) % 3)


@pytest.mark.parametrize("data", [make_data, tall_data])
def test_order_and_repetition_of_rows_do_not_matter(data):
    X, y = data()
    weight = np.arange(len(X)) % 4
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(len(X)), weight))
    model = ClosedFormBNNet(0.3, random_state=0)
    fitted, repeated = clone(model).fit(X, y, weight), clone(model).fit(X[rows], y[rows])
    assert_allclose(fitted.predict(X), repeated.predict(X), rtol=1e-10, atol=1e-12)
    kept = weight > 0
    assert_allclose(
        clone(model).fit(X[kept], y[kept], weight[kept]).predict(X), fitted.predict(X), rtol=1e-12
    )


def test_float32_is_kept_and_the_objective_is_right_to_its_digits():
    X, y = make_data()
    model = ClosedFormBNNet(0.3).fit(X.astype(np.float32), y)
    network = model.network_
    assert {getattr(network, field.name).dtype for field in fields(network)} == {np.dtype(np.float32)}
    assert model.predict(X.astype(np.float32)).dtype == np.float32
    assert_allclose(model.objective_, 0.3 * sum(norms(y)) - 0.09, rtol=1e-6)


def test_ill_conditioned_features_warn_and_the_gap_is_stated():
    U = np.linalg.qr(np.random.default_rng(0).standard_normal((14, 14)))[0]
    X, y = U * np.geomspace(1, 1e-12, 14) @ U.T, make_data()[1]
    with pytest.warns(
        ConvergenceWarning, match=r"so ill-conditioned, or so far from zero, that with float64"
    ) as record:
        model = ClosedFormBNNet(0.3).fit(X, y)
    assert record[0].filename == __file__
    assert model.residual_ > 1e-8
    assert_allclose(model.lower_bound_, 0.3 * sum(norms(y)) - 0.09, rtol=1e-12)
    assert_allclose(model.objective_, model.network_.objective(X, y, 0.3), rtol=1e-12)


def test_features_far_from_zero_keep_the_digits_they_have():
    X, y = make_data()
    formula = 0.3 * sum(norms(y)) - 0.09
    assert_allclose(ClosedFormBNNet(0.3).fit(X + 1e5, y).objective_, formula, rtol=1e-9)
    with pytest.warns(ConvergenceWarning, match="so far from zero"):
        model = ClosedFormBNNet(0.3).fit(X + 1e11, y)
    # Of the sixteen digits of a feature, five are left.
    assert_allclose(model.objective_, formula, rtol=1e-4)
    assert model.lower_bound_ <= formula * (1 + 1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e-12, 1e12, 1e200])
def test_units_of_the_features_do_not_matter(scale):
    X, y = make_data()
    fitted, scaled = ClosedFormBNNet(0.3).fit(X, y), ClosedFormBNNet(0.3).fit(X * scale, y)
    assert_allclose(scaled.predict(X * scale), fitted.predict(X), atol=1e-10)
    assert_allclose(scaled.objective_, fitted.objective_, rtol=1e-10)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e9])
def test_constant_targets(value):
    X, _ = make_data()
    model = ClosedFormBNNet(beta_ratio=1e-3, fit_intercept=True).fit(X, np.full(14, value))
    assert_array_equal(model.predict(X), value)
    assert (model.n_neurons_, model.objective_, model.dual_gap_) == (0, 0, 0)
    shrunk = ClosedFormBNNet(beta_ratio=1e-3).fit(X, np.full(14, value))
    assert_allclose(shrunk.predict(X + 1), 0.999 * value, rtol=1e-12)


def test_a_single_row_of_positive_weight():
    X, y = make_data()
    model = ClosedFormBNNet(beta_ratio=0.5).fit(X, y, np.eye(14)[3])
    assert_allclose(model.predict(X), 0.5 * y[3])


def test_truncation_regularizes_the_closed_form():
    X, y = load_digits(return_X_y=True)
    noise = np.random.default_rng(0).standard_normal((len(X), 400))
    split = train_test_split(np.hstack([X, noise]), y, train_size=300, random_state=0)
    X_train, X_test, y_train, y_test = split
    plain = ClosedFormBNClassifier(1.0).fit(X_train, y_train)
    truncated = make_pipeline(
        SVDTruncation(30, output="scores"), ClosedFormBNClassifier(1.0, random_state=0)
    ).fit(X_train, y_train)
    assert plain.hidden_layer_sizes_ == ()
    assert truncated.score(X_test, y_test) > plain.score(X_test, y_test) + 0.1
    assert_allclose(truncated[-1].objective_, plain.objective_, rtol=1e-10)


def test_pickling_and_search():
    X, y = load_iris(return_X_y=True)
    model = ClosedFormBNClassifier(random_state=0).fit(X, y)
    assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))
    search = GridSearchCV(model, {"beta_ratio": [0.01, 0.99]}, cv=3).fit(X, y)
    assert search.best_score_ > 0.9
