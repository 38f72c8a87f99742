from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.decomposition import PCA

from skcvxbn.deep_network import (
    BatchNormLayer,
    DeepBatchNormNetwork,
    extract_features,
    is_torch_module,
    random_layer,
)
from skcvxbn.network import BatchNormNetwork


def random_head(n_features, n_outputs=2, seed=1):
    rng = np.random.default_rng(seed)
    shapes = [(n_features, 3), 3, 3, 3, 3, (3, n_outputs), n_outputs]
    arrays = [rng.standard_normal(shape) for shape in shapes]
    arrays[2] = np.abs(arrays[2]) + 0.1
    return BatchNormNetwork(*arrays)


def data(n=12, d=3):
    return np.random.default_rng(0).standard_normal((n, d)) * [1.0, 1e3, 1e-3] + [0.0, 5.0, 1.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_random_layer_has_the_statistics_of_the_rows(dtype):
    X, weight = data().astype(dtype), np.arange(1.0, 13.0)
    layer = random_layer(X, 30, np.random.RandomState(0), weight)
    H = X.astype(np.float64) @ layer.weights
    mean = np.average(H, axis=0, weights=weight)
    tolerance = 1e-4 if dtype is np.float32 else 1e-12
    assert_allclose(layer.running_mean, mean, rtol=tolerance, atol=tolerance)
    variance = np.average((H - mean) ** 2, axis=0, weights=weight)
    assert_allclose(layer.running_var, variance, rtol=tolerance)
    assert layer.forward(X).dtype == dtype


def test_every_row_has_kinks_and_units_do_not_matter():
    X = data()
    layer = random_layer(X, 24, np.random.RandomState(0), np.ones(12))
    before_relu = (X @ layer.weights - layer.running_mean) / np.sqrt(layer.running_var) + layer.bn_bias
    assert_array_equal(np.sum(np.abs(before_relu) < 1e-10, axis=1), 2)
    rescaled = random_layer(X * [8.0, 0.5, 2.0], 24, np.random.RandomState(0), np.ones(12))
    assert_allclose(rescaled.forward(X * [8.0, 0.5, 2.0]), layer.forward(X), atol=1e-10)


def test_no_neuron_is_off_at_every_row():
    X = np.arange(8.0)[:, None] / 7
    out = random_layer(X, 200, np.random.RandomState(0), np.ones(8)).forward(X)
    assert out.max(axis=0).min() > 0.1


def test_constant_features_are_ignored():
    X = np.column_stack([np.full(12, 0.1), data()[:, 0]])
    layer = random_layer(X, 5, np.random.RandomState(0), np.ones(12))
    assert_array_equal(layer.weights[0], 0)
    constant = random_layer(X[:, :1], 5, np.random.RandomState(0), np.ones(12))
    assert_array_equal(constant.forward(X[:, :1]), 0)


def test_the_chain_is_extractor_then_layers_then_head():
    X, Y = data(), np.random.default_rng(4).standard_normal((12, 2))
    pca = PCA(2).fit(X)
    first = random_layer(pca.transform(X), 6, np.random.RandomState(0), np.ones(12))
    second = random_layer(first.forward(pca.transform(X)), 4, np.random.RandomState(1), np.ones(12))
    network = DeepBatchNormNetwork(random_head(4), (first, second), pca)
    features = second.forward(first.forward(pca.transform(X)))
    assert_array_equal(network.features(X), features)
    assert_allclose(network.forward(X), network.head.forward(features), rtol=1e-12)
    assert network.objective(X, Y, 0.5) == network.head.objective(features, Y, 0.5)
    with pytest.raises(TypeError, match="PCA is not a torch module"):
        network.to_torch()


def test_sparse_outputs_of_a_transformer_are_made_dense():
    from sklearn.feature_extraction.text import CountVectorizer

    words = ["a cat", "a dog", "dog dog"]
    vectorizer = CountVectorizer().fit(words)
    assert_array_equal(extract_features(vectorizer, words), [[1, 0], [0, 1], [0, 2]])


def test_without_torch_nothing_is_a_torch_module(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert not is_torch_module(np.tanh)


def test_export_of_hidden_layers():
    torch = pytest.importorskip("torch")
    X = data()
    layer = random_layer(X, 6, np.random.RandomState(0), np.ones(12))
    network = DeepBatchNormNetwork(random_head(6), (layer,))
    module = network.to_torch()
    assert not module.training
    names = [type(part).__name__ for part in module]
    assert names == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    with torch.no_grad():
        assert_allclose(module(torch.from_numpy(X)).numpy(), network.forward(X), atol=1e-10)


def torch_extractor(torch):
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(1, 3, 3)
    return torch.nn.Sequential(
        convolution, torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.Dropout(0.5)
    ).train()


def test_a_torch_module_runs_in_evaluation_mode_and_is_left_as_it_was():
    torch = pytest.importorskip("torch")
    module = torch_extractor(torch)
    module[3].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    images = np.random.default_rng(0).standard_normal((600, 1, 5, 5))
    copy = images.copy()
    features = extract_features(module, images)
    assert features.shape == (600, 27)
    assert features.dtype == np.float32
    # Evaluation mode: rows do not depend on their batch, and nothing is dropped.
    assert_allclose(extract_features(module, images[:3]), features[:3], atol=1e-6)
    assert [part.training for part in module.modules()] == [True, True, True, True, False]
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in module.parameters())
    assert_array_equal(images, copy)
    assert_array_equal(extract_features(module, torch.from_numpy(images)), features)


def test_a_failing_torch_module_is_left_in_its_mode():
    torch = pytest.importorskip("torch")
    module = torch_extractor(torch)
    with pytest.raises(RuntimeError):
        extract_features(module, np.zeros((2, 3)))
    assert module.training


def test_modules_without_parameters_and_with_half_precision():
    torch = pytest.importorskip("torch")
    X = np.random.default_rng(0).standard_normal((4, 2, 2))
    assert_array_equal(extract_features(torch.nn.Flatten(), X), X.reshape(4, 4))
    half = torch.nn.Linear(2, 3).to(torch.bfloat16)
    assert extract_features(half, X[:, 0]).dtype == np.float32


def test_export_of_a_torch_extractor():
    torch = pytest.importorskip("torch")
    module = torch_extractor(torch)
    images = np.random.default_rng(0).standard_normal((6, 1, 5, 5)).astype(np.float32)
    network = DeepBatchNormNetwork(random_head(27), (), module)
    exported = network.to_torch().to(torch.float64)
    with torch.no_grad():
        out = exported(torch.from_numpy(images).to(torch.float64))
    assert_allclose(out.numpy(), network.forward(images), rtol=1e-4, atol=1e-4)
    assert module.training
    assert exported[0] is not module


def test_a_layer_is_compared_by_identity():
    layer = BatchNormLayer(np.eye(1), np.zeros(1), np.ones(1), np.ones(1), np.zeros(1))
    assert layer != BatchNormLayer(np.eye(1), np.zeros(1), np.ones(1), np.ones(1), np.zeros(1))
