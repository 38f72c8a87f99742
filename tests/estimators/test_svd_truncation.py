from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import hadamard
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from skcvxbn.estimators import svd_truncation
from skcvxbn.estimators.svd_truncation import SVDTruncation

TALL, WIDE = (60, 9), (9, 40)


def make_data(shape, decay=0.7, seed=0, offset=3.0):
    """Centred singular values that decay geometrically, plus an offset."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal(shape)
    U, _, Vt = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    values = 5 * decay ** np.arange(len(Vt))
    return (U * values) @ Vt + offset * rng.standard_normal(shape[1])


def reference(X, weights=None):
    """Weighted centred singular value decomposition by the textbook."""
    weights = np.ones(len(X)) if weights is None else weights
    mean = np.average(X, axis=0, weights=weights)
    _, values, Vt = np.linalg.svd(np.sqrt(weights)[:, None] * (X - mean), full_matrices=False)
    return mean, values, Vt


def projector(components):
    return components.T @ components


@pytest.fixture(params=["one block", "many blocks"])
def _blocks(request, monkeypatch):
    if request.param == "many blocks":
        monkeypatch.setattr(svd_truncation, "_BLOCK_SIZE", 64)


@parametrize_with_checks(
    [
        SVDTruncation(),
        SVDTruncation(output="scores"),
        SVDTruncation(n_components=None),
        SVDTruncation(n_components=1, output="scores"),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("shape", [TALL, WIDE, (12, 12)])
@pytest.mark.parametrize("n_components", [1, 3, 0.9, None])
@pytest.mark.parametrize("container", [np.asarray, np.asfortranarray, sp.csr_array, sp.csc_matrix])
def test_directions_are_those_of_the_full_decomposition(shape, n_components, container):
    X = make_data(shape)
    mean, values, Vt = reference(X)
    shares = values**2 / np.sum(values**2)
    k = {None: min(shape[0] - 1, shape[1]), 0.9: next(k for k in range(20) if shares[:k].sum() >= 0.9)}.get(
        n_components, n_components
    )
    fitted = SVDTruncation(n_components).fit(container(X))
    assert fitted.n_components_ == k
    assert fitted.components_.shape == (k, shape[1])
    assert_allclose(fitted.mean_, mean, rtol=1e-12)
    assert_allclose(fitted.singular_values_, values[:k], rtol=1e-8)
    assert_allclose(fitted.explained_variance_ratio_, shares[:k], rtol=1e-8)
    assert_allclose(np.abs(np.sum(fitted.components_ * Vt[:k], axis=1)), 1.0, rtol=1e-10)
    assert_allclose(fitted.components_ @ fitted.components_.T, np.eye(k), atol=1e-12)
    low_rank = mean + (X - mean) @ projector(Vt[:k])
    assert_allclose(fitted.transform(container(X)), low_rank, atol=1e-9)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("shape", [TALL, (12, 40)])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_directions_too_small_for_a_gram_matrix(shape, container):
    # The smallest directions are 1e-10 of the largest: their squares drown in the rounding of a Gram matrix.
    X = make_data(shape, decay=1e-10 ** (1 / 8), offset=0.0)
    _, values, Vt = reference(X)
    fitted = SVDTruncation(9).fit(container(X))
    assert_allclose(fitted.singular_values_, values[:9], rtol=1e-4)
    assert_allclose(fitted.components_ @ fitted.components_.T, np.eye(9), atol=1e-12)
    assert_allclose(np.abs(np.sum(fitted.components_ * Vt[:9], axis=1)), 1.0, rtol=1e-6)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_a_large_mean_costs_no_digits(shape):
    X = make_data(shape, offset=0.0)
    shift = 2.0**20 * np.arange(1, shape[1] + 1)
    X = (X + shift) - shift  # what survives the addition is exact in the shifted data
    fitted = SVDTruncation(5).fit(X + shift)
    expected = SVDTruncation(5).fit(X)
    assert_allclose(fitted.singular_values_, expected.singular_values_, rtol=1e-8)
    assert_allclose(fitted.components_, expected.components_, atol=1e-7)


def test_share_reached_exactly_keeps_no_further_direction():
    # Shares of 0.5, 0.3 and 0.2, up to a rounding that differs from seed to seed.
    for seed in range(20):
        rng = np.random.default_rng(seed)
        U, V = np.linalg.qr(make_data((30, 3), seed=seed, offset=0.0))[0], np.linalg.qr(rng.random((3, 3)))[0]
        X = U * np.sqrt([5, 3, 2]) @ V
        for share, expected in [(0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3)]:
            assert SVDTruncation(share).fit(X).n_components_ == expected


def test_numerical_rank():
    X = make_data(TALL)
    dependent = np.column_stack([X, X[:, :3] @ [1.0, 2.0, 3.0], X[:, 0], np.full(60, 0.1)])
    for n_components in (None, 12, 1 - 1e-15):
        assert SVDTruncation(n_components).fit(dependent).n_components_ == 9
    fitted = SVDTruncation(None).fit(dependent)
    assert_allclose(fitted.transform(dependent), dependent, atol=1e-12)
    assert_array_equal(fitted.mean_[-1], 0.1)
    assert_allclose(fitted.components_[:, -1], 0.0, atol=1e-15)


def test_rank_of_float32_data_ignores_their_rounding():
    X = make_data(TALL, offset=0.5).astype(np.float32)
    dependent = np.column_stack([X, (X[:, :3] @ [0.1, 0.2, 0.3]).astype(np.float32)])
    assert SVDTruncation(None).fit(dependent).n_components_ == 9


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_integer_weights_are_repeated_rows(shape, container):
    X = make_data(shape)
    weights = np.random.default_rng(1).integers(0, 4, size=shape[0])
    repeated = np.repeat(X, weights, axis=0)
    for n_components in (3, 0.9, None):
        weighted = SVDTruncation(n_components).fit(container(X), sample_weight=weights)
        expected = SVDTruncation(n_components).fit(repeated)
        assert_allclose(weighted.mean_, expected.mean_, rtol=1e-10)
        assert_allclose(weighted.singular_values_, expected.singular_values_, rtol=1e-8)
        assert_allclose(weighted.explained_variance_ratio_, expected.explained_variance_ratio_, rtol=1e-8)
        assert_allclose(weighted.components_, expected.components_, atol=1e-8)


def test_fractional_weights():
    X = make_data(TALL)
    weights = np.random.default_rng(2).uniform(0.1, 2.0, size=60)
    mean, values, Vt = reference(X, weights)
    fitted = SVDTruncation(4).fit(X, sample_weight=weights)
    assert_allclose(fitted.mean_, mean, rtol=1e-12)
    assert_allclose(fitted.singular_values_, values[:4], rtol=1e-10)
    assert_allclose(projector(fitted.components_), projector(Vt[:4]), atol=1e-9)


def test_rows_of_weight_zero_do_not_count():
    X = make_data(TALL)
    weights = np.ones(60)
    weights[:5] = 0
    outliers = X.copy()
    outliers[:5] = 1e300
    fitted = SVDTruncation(0.9).fit(outliers, sample_weight=weights)
    expected = SVDTruncation(0.9).fit(X[5:])
    assert_array_equal(fitted.components_, expected.components_)
    assert_array_equal(fitted.mean_, expected.mean_)


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("seed", range(3))
def test_signs_do_not_depend_on_the_order_of_rows(shape, seed):
    X = make_data(shape, seed=seed)
    # The entries of the directions of `tied` are all of the same size: rounding decides which is the largest.
    centred = X - X.mean(axis=0)
    tied = np.linalg.qr(centred[:, :8])[0] * 0.5 ** np.arange(8) @ hadamard(8)
    order = np.random.default_rng(seed).permutation(shape[0])
    for data in (X, tied):
        expected = SVDTruncation(6).fit(data).components_
        assert_allclose(SVDTruncation(6).fit(data[order]).components_, expected, atol=1e-7)
        assert_allclose(SVDTruncation(6).fit(np.repeat(data, 3, axis=0)).components_, expected, atol=1e-7)
        assert_allclose(expected.max(axis=1), np.abs(expected).max(axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(np.float64, s) for s in (1e-12, 1e12, 1e-170, 1e170)] + [(np.float32, s) for s in (1e-30, 1e30)],
)
@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_units_of_the_data_do_not_matter(dtype, scale, shape):
    X = make_data(shape).astype(dtype)
    tolerance = 1e-8 if dtype == np.float64 else 2e-5
    for n_components in (0.9, 3):
        expected = SVDTruncation(n_components).fit(X)
        scaled = SVDTruncation(n_components).fit(X * dtype(scale))
        assert scaled.n_components_ == expected.n_components_
        assert_allclose(scaled.components_, expected.components_, atol=tolerance)
        ratio = scaled.singular_values_.astype(float) / scale
        assert_allclose(ratio, expected.singular_values_, rtol=tolerance)
        output = scaled.transform(X * dtype(scale)).astype(float) / scale
        assert_allclose(output, expected.transform(X), atol=10 * tolerance)


@pytest.mark.parametrize("output", ["lowrank", "scores"])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_float32_stays_float32_and_is_accurate(output, container):
    X = make_data(TALL).astype(np.float32)
    fitted = SVDTruncation(4, output=output).fit(container(X))
    expected = SVDTruncation(4, output=output).fit(X.astype(np.float64))
    for name in ("mean_", "components_", "singular_values_", "explained_variance_ratio_"):
        assert getattr(fitted, name).dtype == np.float32
        assert_allclose(getattr(fitted, name), getattr(expected, name), rtol=1e-6, atol=1e-7)
    transformed = fitted.transform(container(X))
    assert transformed.dtype == np.float32
    assert_allclose(transformed, expected.transform(X.astype(np.float64)), atol=1e-5)
    assert fitted.inverse_transform(transformed).dtype == np.float32


@pytest.mark.parametrize("shape", [(900, 600), (600, 900)])
def test_large_sparse_data_by_lanczos_iterations(shape, monkeypatch):
    X = sp.random(*shape, density=0.01, random_state=0, format="csr")
    X = sp.csr_array(X @ sp.diags_array(1 / np.arange(1, shape[1] + 1)))
    weights = np.random.default_rng(1).integers(1, 4, size=shape[0]).astype(float)
    mean, values, Vt = reference(X.toarray(), weights)

    def refuse(*args, **kwargs):
        raise AssertionError("the data were made dense")

    monkeypatch.setattr(svd_truncation._CentredMatrix, "blocks", refuse)
    fitted = SVDTruncation(6, output="scores").fit(X, sample_weight=weights)
    assert_allclose(fitted.singular_values_, values[:6], rtol=1e-9)
    assert_allclose(fitted.explained_variance_ratio_, values[:6] ** 2 / np.sum(values**2), rtol=1e-9)
    assert_allclose(projector(fitted.components_), projector(Vt[:6]), atol=1e-8)
    assert_allclose(fitted.transform(X), (X.toarray() - mean) @ fitted.components_.T, atol=1e-10)


def test_lanczos_gives_way_when_the_mean_hides_the_variance():
    rng = np.random.default_rng(0)
    dense = sp.random(600, 510, density=0.02, random_state=0).toarray()
    dense[:, 0] = 1e9 + np.round(rng.standard_normal(600))
    _, values, Vt = reference(dense)
    fitted = SVDTruncation(2).fit(sp.csr_array(dense))
    assert_allclose(fitted.singular_values_, values[:2], rtol=1e-7)
    assert_allclose(projector(fitted.components_), projector(Vt[:2]), atol=1e-6)
    shares = values**2 / np.sum(values**2)
    assert_allclose(fitted.explained_variance_ratio_, shares[:2], rtol=1e-7)


@pytest.mark.parametrize("output", ["lowrank", "scores"])
def test_hidden_values_on_new_rows_are_those_of_the_untouched_rows(output):
    # The paper trains on truncated data and tests on untouched ones. Whatever is linear in the data and of
    # minimum norm cannot tell: least squares stands here for the hidden layer.
    X = make_data((80, 10))
    y = np.sin(X).sum(axis=1)
    X_train, X_test, y_train = X[:60], X[60:], y[:60]
    mean, _, Vt = reference(X_train)
    w = np.linalg.lstsq((X_train - mean) @ projector(Vt[:4]), y_train - y_train.mean(), rcond=1e-10)[0]
    model = make_pipeline(SVDTruncation(4, output=output), LinearRegression()).fit(X_train, y_train)
    assert_allclose(model.predict(X_test), (X_test - mean) @ w + y_train.mean(), atol=1e-9)


@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_round_trips(container):
    X, new = make_data(TALL), make_data(TALL, seed=5)
    low_rank = SVDTruncation(3).fit(container(X))
    scores = clone(low_rank).set_params(output="scores").fit(container(X))
    for data in (X, new):
        projected = low_rank.transform(container(data))
        assert_allclose(scores.inverse_transform(scores.transform(container(data))), projected, atol=1e-12)
        assert_array_equal(low_rank.inverse_transform(projected), projected)
        assert_allclose(low_rank.transform(projected), projected, atol=1e-12)
    assert_array_equal(clone(low_rank).fit_transform(container(X)), low_rank.transform(container(X)))
    with pytest.raises(ValueError, match=r"X has 9 features, but .* is expecting 3 features as input"):
        scores.inverse_transform(X)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_set_output_and_feature_names(library):
    module = pytest.importorskip(library)
    X = module.DataFrame({f"x{j}": column for j, column in enumerate(make_data(TALL).T)})
    low_rank = SVDTruncation(2).set_output(transform=library).fit_transform(X)
    assert isinstance(low_rank, module.DataFrame)
    assert list(low_rank.columns) == [f"x{j}" for j in range(9)]
    scores = SVDTruncation(2, output="scores").set_output(transform=library).fit_transform(X)
    assert isinstance(scores, module.DataFrame)
    assert list(scores.columns) == ["svdtruncation0", "svdtruncation1"]


@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("output", ["lowrank", "scores"])
def test_the_callers_data_are_untouched(container, output):
    original = make_data(TALL)
    X = container(original)
    buffer = X if isinstance(X, np.ndarray) else X.data
    buffer.flags.writeable = False
    weights = np.arange(60.0)
    weights.flags.writeable = False
    transformed = SVDTruncation(3, output=output).fit(X, sample_weight=weights).transform(X)
    assert not np.shares_memory(transformed, buffer)
    restored = SVDTruncation(3, output=output).fit(X).inverse_transform(transformed)
    assert not np.shares_memory(restored, transformed)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"n_components": 0}, ValueError, r"'n_components' .* int in the range \[1, inf\).* Got 0 instead"),
        ({"n_components": -1}, ValueError, "Got -1 instead"),
        ({"n_components": 1.0}, ValueError, r"float in the range \(0.0, 1.0\) or None. Got 1.0 instead"),
        ({"n_components": 0.0}, ValueError, "Got 0.0 instead"),
        ({"n_components": np.nan}, ValueError, "Got nan instead"),
        ({"n_components": True}, TypeError, "Got True instead"),
        ({"n_components": "mle"}, TypeError, "Got 'mle' instead"),
        ({"n_components": 10}, ValueError, r"n_components=10 must be between 1 and .*n_features\)=9"),
        ({"output": "full"}, ValueError, r"'output' .* among \{'lowrank', 'scores'\}. Got 'full' instead"),
        ({"output": None}, TypeError, "Got None instead"),
    ],
)
def test_invalid_parameters(parameters, error, message):
    with pytest.raises(error, match=message):
        SVDTruncation(**parameters).fit(make_data(TALL))


@pytest.mark.parametrize(
    ("X", "weights", "message"),
    [
        (np.full((5, 3), 0.1), None, "zero variance in every feature"),
        (sp.csr_array((5, 3)), None, "zero variance in every feature"),
        (np.eye(3), [0, 2, 0], "zero variance in every feature"),
        (np.ones((1, 3)), None, "1 sample"),
        (np.eye(3), [0, 0, 0], "at least one non-zero number"),
        (np.eye(3), [1, -1, 1], "[Nn]egative"),
        (np.eye(3), [1, np.nan, 1], "sample_weight contains NaN"),
        (np.eye(3), [1, 1], "sample_weight.shape"),
        (np.full((3, 3), np.inf), None, "contains"),
        (np.eye(3) * 1j, None, "Complex data not supported"),
    ],
)
def test_invalid_data(X, weights, message):
    with pytest.raises(ValueError, match=message):
        SVDTruncation(1).fit(X, sample_weight=weights)
