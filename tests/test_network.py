from __future__ import annotations

import sys
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skcvxbn import network as module
from skcvxbn.network import BatchNormAfterReLUNetwork, BatchNormNetwork


def make_network(n_features=4, n_neurons=5, n_outputs=3, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal
    return BatchNormNetwork(
        hidden_weights=normal((n_features, n_neurons)).astype(dtype),
        running_mean=normal(n_neurons).astype(dtype),
        running_var=rng.uniform(0.1, 9.0, n_neurons).astype(dtype),
        bn_weight=normal(n_neurons).astype(dtype),
        bn_bias=normal(n_neurons).astype(dtype),
        output_weights=normal((n_neurons, n_outputs)).astype(dtype),
        intercept=normal(n_outputs).astype(dtype),
    )


def rows(n=7, n_features=4, seed=1, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((n, n_features)).astype(dtype)


def forward_by_loops(network, X):
    """The definition, one row and one neuron at a time."""
    out = np.tile(network.intercept, (len(X), 1)).astype(float)
    for i, x in enumerate(X):
        for j in range(len(network.bn_weight)):
            h = sum(x[k] * network.hidden_weights[k, j] for k in range(len(x)))
            normalized = (h - network.running_mean[j]) / np.sqrt(network.running_var[j])
            out[i] += (
                max(normalized * network.bn_weight[j] + network.bn_bias[j], 0) * network.output_weights[j]
            )
    return out


@pytest.mark.parametrize("n_neurons", [0, 1, 5])
@pytest.mark.parametrize("block_entries", [1, 12, 2**22])
def test_forward_is_the_definition(n_neurons, block_entries, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ENTRIES", block_entries)
    network, X = make_network(n_neurons=n_neurons), rows()
    before = X.copy()
    assert_allclose(network.forward(X), forward_by_loops(network, X), rtol=1e-12, atol=1e-14)
    assert_array_equal(X, before)


def test_forward_accepts_what_numpy_reads_and_keeps_float32():
    network = make_network(dtype=np.float32)
    assert network.forward(rows(dtype=np.float32)).dtype == np.float32
    assert network.forward(rows()).dtype == np.float64
    assert_array_equal(network.forward([[1, 2, 3, 4]]), network.forward(np.array([[1.0, 2.0, 3.0, 4.0]])))
    assert network.forward(np.empty((0, 4))).shape == (0, 3)


def test_forward_keeps_the_digits_of_data_far_from_zero():
    # Folding the mean into the bias would lose them: that is what this network would compute.
    network = replace(
        make_network(n_neurons=1, n_outputs=1),
        hidden_weights=np.ones((4, 1)),
        running_mean=np.array([4e12]),
        running_var=np.array([1e-6]),
        bn_weight=np.array([1.0]),
        bn_bias=np.array([0.5]),
        output_weights=np.ones((1, 1)),
        intercept=np.zeros(1),
    )
    assert_allclose(network.forward(np.full((1, 4), 1e12 + 1)), [[4000.5]], rtol=1e-15)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.0, 0.5, 3.0, 1.0, 1.0]])
@pytest.mark.parametrize("n_neurons", [0, 5])
def test_objective_is_that_of_the_paper(n_neurons, weights):
    network, X = make_network(n_neurons=n_neurons), rows()
    Y = rows(n_features=3, seed=2)
    w = np.ones(7) if weights is None else np.array(weights)
    n = w.sum()
    loss = sum(w[i] * np.sum((forward_by_loops(network, X)[i] - Y[i]) ** 2) for i in range(7)) / 2
    gamma, alpha = np.sqrt(n) * network.bn_weight, np.sqrt(n) * network.bn_bias
    penalty = 0.7 / 2 * (np.sum(gamma**2) + np.sum(alpha**2) + np.sum(network.output_weights**2))
    assert_allclose(network.objective(X, Y, 0.7, weights), loss + penalty, rtol=1e-13)


def test_objective_of_one_output_takes_a_vector():
    network, X, y = make_network(n_outputs=1), rows(), np.arange(7.0)
    # Broadcast against a column, a vector would make a 7 x 7 residual.
    assert network.objective(X, y, 1.0) == network.objective(X, y[:, None], 1.0)


def test_objective_is_computed_in_float64():
    network = make_network(dtype=np.float32)
    X, Y = rows(dtype=np.float32), rows(n_features=3, seed=2)
    names = ("hidden_weights", "running_mean", "running_var", "bn_weight", "bn_bias", "output_weights")
    precise = replace(
        network,
        **{name: getattr(network, name).astype(np.float64) for name in names},
        intercept=network.intercept.astype(np.float64),
    )
    assert network.objective(X, Y, 0.3) == precise.objective(X.astype(np.float64), Y, 0.3)


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"bn_bias must be of shape \(5,\) .* Got an array of shape \(4,\)"):
        replace(make_network(), bn_bias=np.zeros(4))
    with pytest.raises(ValueError, match="must be 2D arrays"):
        replace(make_network(), output_weights=np.zeros(5))


def test_networks_are_immutable_and_hashable():
    network = make_network()
    with pytest.raises(FrozenInstanceError):
        network.bn_bias = np.zeros(5)
    assert network != make_network()
    assert len({network, network, make_network()}) == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_neurons", [0, 1, 5])
def test_to_torch_agrees_with_forward(n_neurons, dtype):
    torch = pytest.importorskip("torch")
    network, X = make_network(n_neurons=n_neurons, dtype=dtype), rows(dtype=dtype)
    random_state = torch.get_rng_state()
    exported = network.to_torch()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [type(layer).__name__ for layer in exported] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert not exported.training
    with torch.no_grad():
        out = exported(torch.from_numpy(X)).numpy()
    assert out.dtype == dtype
    tolerance = 100 * np.finfo(dtype).eps
    assert_allclose(out, network.forward(X), rtol=tolerance, atol=tolerance)


def test_to_torch_copies_the_parameters():
    torch = pytest.importorskip("torch")
    network = make_network()
    before = network.forward(rows())
    exported = network.to_torch()
    with torch.no_grad():
        for parameter in exported.parameters():
            parameter.zero_()
    assert_array_equal(network.forward(rows()), before)


def test_to_torch_without_torch_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        make_network().to_torch()


def test_batch_normalization_after_the_relu_is_another_architecture():
    before, X = make_network(n_outputs=1), rows()
    after = BatchNormAfterReLUNetwork(**vars(before))
    assert (before.bn_position, after.bn_position) == ("before", "after")
    H = np.maximum(X @ after.hidden_weights, 0)
    H = (H - after.running_mean) / np.sqrt(after.running_var) * after.bn_weight + after.bn_bias
    expected = H @ after.output_weights + after.intercept
    assert_allclose(after.forward(X), expected, rtol=1e-12)
    penalty = len(X) * (after.bn_weight @ after.bn_weight + after.bn_bias @ after.bn_bias)
    penalty += np.sum(after.output_weights**2)
    assert_allclose(after.objective(X, np.zeros(7), 0.3), 0.5 * (np.sum(expected**2) + 0.3 * penalty))


@pytest.mark.parametrize("n_neurons", [0, 5])
def test_to_torch_with_batch_normalization_after_the_relu(n_neurons):
    torch = pytest.importorskip("torch")
    network, X = BatchNormAfterReLUNetwork(**vars(make_network(n_neurons=n_neurons))), rows()
    exported = network.to_torch()
    assert [type(part).__name__ for part in exported] == ["Linear", "ReLU", "BatchNorm1d", "Linear"]
    with torch.no_grad():
        assert_allclose(exported(torch.from_numpy(X)).numpy(), network.forward(X), rtol=1e-12, atol=1e-12)
