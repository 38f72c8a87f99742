import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import load_iris

from skcvxbn import ConvexBNClassifier, ConvexBNClassifierCV, ConvexBNRegressor, beta_max
from skcvxbn.shrinkage import shrunk
from skcvxbn.whitening import whiten


def correlated(n_samples=60, n_features=6, seed=0):
    rng = np.random.RandomState(seed)
    X = rng.standard_normal((n_samples, n_features)) @ rng.standard_normal((n_features, n_features))
    return X * 10.0 ** np.arange(n_features) + 5.0


@pytest.mark.parametrize("share", [1e-3, 0.1, 0.5, 0.99])
def test_the_share_of_the_squares_is_taken(share):
    squares = np.sort(np.random.RandomState(0).uniform(0, 10, 20))
    factors, kept = shrunk(squares, share)
    tau = 1 / factors**2 - squares[kept]
    assert_allclose(tau, tau[0])
    assert_allclose((squares * tau[0] / (squares + tau[0])).sum(), share * squares.sum())


def test_directions_of_which_little_would_be_left_are_dropped():
    squares = np.array([1e-9, 1e-3, 1.0, 1.0, 2.0])
    factors, kept = shrunk(squares, 0.1)
    assert kept.tolist() == [4, 3, 2]
    assert_allclose(np.argsort(factors), np.argsort(-squares[kept]))


def test_data_without_variance_have_no_direction():
    factors, kept = shrunk(np.zeros(3), 0.2)
    assert len(factors) == len(kept) == 0
    assert whiten(np.ones((5, 2)), shrinkage=0.2).rank == 0


@pytest.mark.parametrize("shape", [(60, 6), (12, 30)])
def test_the_basis_is_that_of_standardised_rows_with_a_ridge(shape):
    X = correlated(*shape)
    whitening = whiten(X, shrinkage=0.1)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    assert_allclose(whitening.singular_values, np.linalg.svd(Z, compute_uv=False)[: whitening.rank])
    lengths = np.linalg.norm(whitening.A[:, :-1], axis=0)
    ratio = whitening.singular_values / lengths
    tau = ratio**2 - whitening.singular_values**2
    assert_allclose(tau, tau[0])
    gram = whitening.A.T @ whitening.A
    assert_allclose(gram, np.diag(np.append(lengths**2, 1.0)), atol=1e-10)
    assert_allclose(whitening.coordinates(X)[:, :-1], whitening.A[:, :-1], atol=1e-8)


def test_little_shrinkage_changes_little():
    X = correlated()
    plain, little = whiten(X).A, whiten(X, shrinkage=1e-12).A
    # The same space, the same inner products in it.
    assert_allclose(little @ little.T, plain @ plain.T, atol=1e-5)


def test_units_and_weights_of_rows_mean_the_same():
    X = correlated()
    weight = np.random.RandomState(1).randint(1, 4, len(X))
    A = whiten(X, weight, shrinkage=0.2).A
    scaled = whiten(X * [1, 2, 3, 1e-6, 1e6, 5] - 7, weight, shrinkage=0.2).A
    assert_allclose(scaled @ scaled.T, A @ A.T, atol=1e-7)
    repeated = whiten(np.repeat(X, weight, axis=0), shrinkage=0.2)
    assert_allclose(repeated.singular_values, whiten(X, weight, shrinkage=0.2).singular_values)


def test_a_column_of_rounding_is_constant():
    X = correlated()
    X[:, 2] = 1 + 1e-16 * np.random.RandomState(0).standard_normal(len(X))
    assert whiten(X, shrinkage=0.1).rank <= 5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_stated_objective_is_that_of_the_network(dtype):
    X, y = load_iris(return_X_y=True)
    X = X[:, 1:].astype(dtype)
    model = ConvexBNRegressor(shrinkage=0.3, beta=0.5, tol=1e-4, random_state=0).fit(X, y)
    assert model.network_.hidden_weights.dtype == dtype
    error = model.predict(X) - y
    n = len(X)
    penalty = n * (model.network_.bn_weight**2 + model.network_.bn_bias**2).sum()
    penalty += (model.network_.output_weights**2).sum()
    assert_allclose(0.5 * error @ error + 0.25 * penalty, model.objective_, rtol=1e-5)
    assert model.dual_gap_ <= 1e-4 * model.objective_


def test_enumerated_and_generated_agree_under_shrinkage():
    rng = np.random.RandomState(3)
    X = rng.standard_normal((12, 2)) @ [[1.0, 0.9], [0.0, 0.4]]
    y = np.sin(2 * X[:, 0]) + X[:, 1] ** 2
    settings = {"beta_ratio": 0.05, "shrinkage": 0.2, "tol": 1e-6, "random_state": 0}
    listed = ConvexBNRegressor(arrangements="enumerated", **settings).fit(X, y)
    generated = ConvexBNRegressor(**settings).fit(X, y)
    reference = ConvexBNRegressor(arrangements="enumerated", solver="cvxpy", **settings).fit(X, y)
    assert_allclose([listed.objective_, generated.objective_], reference.objective_, rtol=1e-5)


def test_a_warm_start_finds_the_same_optimum():
    X, y = load_iris(return_X_y=True)
    model = ConvexBNClassifier(shrinkage=0.2, warm_start=True, random_state=0).fit(X, y)
    first, n_iter = model.objective_, model.n_iter_
    model.fit(X, y)
    assert model.n_iter_ <= n_iter
    assert_allclose(model.objective_, first, rtol=1e-2)


def test_the_classifier_shrinks_unless_the_weight_decay_is_absolute():
    X, y = load_iris(return_X_y=True)
    assert ConvexBNClassifier(random_state=0).fit(X, y).beta_max_ == pytest.approx(
        beta_max(X, y, loss="log_loss", shrinkage=0.3)
    )
    assert ConvexBNClassifier(beta=1.0, random_state=0).fit(X, y).beta_max_ == pytest.approx(
        beta_max(X, y, loss="log_loss")
    )
    chosen = ConvexBNClassifierCV(beta_ratios=[0.1, 0.01], cv=2, random_state=0).fit(X, y)
    again = ConvexBNClassifier(
        beta_ratio=chosen.beta_ratio_, shrinkage=chosen.shrinkage_, random_state=0
    ).fit(X, y)
    assert chosen.beta_ == pytest.approx(again.beta_)


@pytest.mark.parametrize("shrinkage", [-0.1, 1.0, "much", None])
def test_shrinkage_is_a_share(shrinkage):
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match="'shrinkage' parameter of ConvexBNClassifier"):
        ConvexBNClassifier(shrinkage=shrinkage).fit(X, y)
    with pytest.raises(ValueError, match="'shrinkage' parameter of beta_max"):
        beta_max(X, y, shrinkage=shrinkage)


def test_components_are_cut_before_the_rest_shrinks():
    X, y = load_iris(return_X_y=True)
    model = ConvexBNClassifierCV(n_components=[1, 2], beta_ratios=[0.1], cv=2, random_state=0).fit(X, y)
    assert model.rank_ <= model.n_components_
