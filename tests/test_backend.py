"""Array libraries and devices that training runs on: choice, errors, agreement, what is left behind."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import weakref
from dataclasses import fields, is_dataclass
from functools import partial

import numpy as np
import pytest
from joblib import Memory
from numpy.testing import assert_allclose, assert_array_equal

from skcvxbn import (
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    arrays,
    beta_max,
    convex_bn_path,
    factorisations,
)
from skcvxbn.arrays import row_blocks
from skcvxbn.backend import NUMPY, resolve
from skcvxbn.estimators import _base
from skcvxbn.solvers import reach
from skcvxbn.whitening import whiten

REGRESSION_LOSSES = ("squared_error", "absolute_error", "huber", "pinball")
CLASSIFICATION_LOSSES = ("log_loss", "hinge", "squared_hinge", "squared_error")


def data(n=40, d=3, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    y = np.abs(X[:, 0]) + 0.5 * X[:, 1] + 0.2 * rng.standard_normal(n)
    return X.astype(dtype), y


def classes(y, n_classes):
    return np.searchsorted(np.quantile(y, np.arange(1, n_classes) / n_classes), y)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(params=["cpu", "cuda"])
def device(request, torch):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch.cuda.is_available() is false")
    return request.param


# The choice


def test_numpy_needs_no_device():
    assert resolve("numpy", None) is resolve("numpy", "cpu") is NUMPY


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_numpy_has_no_gpu(device):
    with pytest.raises(ValueError, match=r"for a GPU choose backend='torch'"):
        resolve("numpy", device)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cpu:0", ""])
def test_devices_have_names(device):
    with pytest.raises(ValueError, match="The 'device' parameter must be None, 'cpu', 'cuda' or 'cuda:k'"):
        resolve("torch", device)


def test_without_torch_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    X, y = data()
    with pytest.raises(ImportError, match="pip install torch"):
        ConvexBNRegressor(backend="torch").fit(X, y)


def test_without_a_gpu_the_error_says_what_is_missing(torch, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve("torch", None).device == "cpu"
    X, y = data()
    with pytest.raises(
        ValueError, match=r"device='cuda' is not available.*finds no CUDA GPU.*pip install torch"
    ):
        ConvexBNRegressor(backend="torch", device="cuda").fit(X, y)


def test_gpus_are_counted(torch, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve("torch", None).device == "cuda"
    assert resolve("torch", "cuda:1").device == "cuda:1"
    with pytest.raises(ValueError, match=r"device='cuda:2' is not available.*finds 2 GPU\(s\)"):
        resolve("torch", "cuda:2")


@pytest.mark.parametrize(
    "fit",
    [
        lambda X, y: ConvexBNRegressor(backend="jax").fit(X, y),
        lambda X, y: ConvexBNRegressor(device=0).fit(X, y),
        lambda X, y: ConvexBNRegressorCV(backend="jax").fit(X, y),
        lambda X, y: convex_bn_path(X, y, backend="jax"),
        lambda X, y: beta_max(X, y, device=0),
    ],
)
def test_parameters_are_checked_in_the_words_of_scikit_learn(fit):
    with pytest.raises(ValueError, match=r"The '(backend|device)' parameter of .* must be"):
        fit(*data())


@pytest.mark.parametrize("arrangements", ["sampled", "enumerated", np.eye(3)])
@pytest.mark.parametrize("solver", ["auto", "cvxpy"])
def test_given_arrangements_are_for_numpy(arrangements, solver, torch):
    model = ConvexBNRegressor(backend="torch", device="cpu", arrangements=arrangements, solver=solver)
    with pytest.raises(ValueError, match="it requires arrangements='generated'"):
        model.fit(*data())


# Agreement


def agree(numpy, torch, X, rtol=1e-5):
    """Both are within the gap of the optimum, and so close that their networks are the same function."""
    assert torch.certificate_ == numpy.certificate_
    assert torch.beta_max_ == pytest.approx(numpy.beta_max_, rel=rtol)
    assert torch.objective_ == pytest.approx(numpy.objective_, rel=rtol)
    assert torch.lower_bound_ == pytest.approx(numpy.lower_bound_, rel=rtol)
    assert torch.rank_ == numpy.rank_
    assert_allclose(torch.singular_values_, numpy.singular_values_, rtol=rtol)
    assert torch.network_.hidden_weights.dtype == numpy.network_.hidden_weights.dtype == X.dtype


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", REGRESSION_LOSSES)
def test_regressors_agree_with_numpy(loss, dtype, fit_intercept, device):
    X, y = data(dtype=dtype)
    weight = np.random.default_rng(1).integers(1, 4, len(y)) * 0.5
    parameters = {"loss": loss, "fit_intercept": fit_intercept, "beta_ratio": 0.1, "tol": 1e-5}
    one, other = (
        ConvexBNRegressor(**parameters, **where, random_state=0).fit(X, y, weight)
        for where in ({}, {"backend": "torch", "device": device})
    )
    agree(one, other, X)
    # The squared error is strongly convex: outputs are as close as the root of the gap.
    if loss == "squared_error":
        apart = np.sum(weight * (one.predict(X) - other.predict(X)) ** 2)
        assert apart <= 4 * (one.dual_gap_ + other.dual_gap_) + 1e-5 * one.objective_


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("loss", CLASSIFICATION_LOSSES)
def test_classifiers_agree_with_numpy(loss, n_classes, device):
    X, y = data()
    labels = classes(y, n_classes)
    # With several outputs the search and descent, in single precision, stop earlier; and where the loss has
    # kinks too, how many rounds it takes is a matter of luck, on either backend.
    tol = 1e-5 if n_classes == 2 else 1e-4
    parameters = {"loss": loss, "beta_ratio": 0.2, "tol": tol, "max_iter": 60}
    one, other = (
        ConvexBNClassifier(**parameters, **where, random_state=0).fit(X, labels)
        for where in ({}, {"backend": "torch", "device": device})
    )
    agree(one, other, X, rtol=tol)
    assert np.mean(one.predict(X) == other.predict(X)) > 0.95


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_descent_alone_agrees_within_the_gaps(n_outputs, device, monkeypatch):
    monkeypatch.setattr(reach, "_AFFORDABLE", 0)
    X, y = data(150, 5)
    Y = y if n_outputs == 1 else np.stack([y, np.maximum(X[:, 1], 0)], axis=1)
    one, other = (
        ConvexBNRegressor(beta_ratio=0.1, tol=2e-2, **where, random_state=0).fit(X, Y)
        for where in ({}, {"backend": "torch", "device": device})
    )
    assert other.lower_bound_ <= one.objective_
    assert one.lower_bound_ <= other.objective_
    assert other.dual_gap_ <= 2e-2 * other.objective_


def test_wide_data_agree_with_numpy(device):
    X, y = data(12, 30)
    one, other = (
        ConvexBNRegressor(beta_ratio=0.1, **where, random_state=0).fit(X, y)
        for where in ({}, {"backend": "torch", "device": device})
    )
    agree(one, other, X, rtol=1e-4)


@pytest.mark.parametrize("as_on_a_gpu", [False, True])
@pytest.mark.parametrize("kind", ["tall", "dependent", "wide", "wide and dependent"])
def test_whitening_agrees_with_numpy(kind, as_on_a_gpu, device, monkeypatch):
    X, weight = data(30, 80 if "wide" in kind else 4)[0], np.random.default_rng(1).uniform(0.5, 2, 30)
    if kind == "dependent":
        X = np.hstack([X, X @ np.ones((4, 2)), np.ones((30, 1))])
    if kind == "wide and dependent":
        X[20:] = X[:10]
    one = whiten(X, weight)
    if as_on_a_gpu:
        # PyTorch factorises there; it can here as well.
        monkeypatch.setattr(factorisations, "on_processor", lambda x: False)
    other = whiten(X, weight, backend=resolve("torch", device))
    assert other.rank == one.rank
    assert_allclose(other.A @ other.A.T, one.A @ one.A.T, atol=1e-10)
    assert_allclose(other.A, other.coordinates(X) * np.sqrt(weight)[:, None], atol=1e-10)
    assert_allclose(other.singular_values, one.singular_values, rtol=1e-10)


def test_rows_are_taken_all_at_once_on_a_gpu(torch, monkeypatch):
    X, y = data(3000, 4)
    monkeypatch.setattr(reach, "_AFFORDABLE", 0)
    parameters = {"backend": "torch", "device": "cpu", "beta_ratio": 0.1, "tol": 1e-2, "random_state": 0}
    assert len(row_blocks(torch.zeros(3000, 1))) == 6
    one = ConvexBNRegressor(**parameters).fit(X, y)
    monkeypatch.setattr(arrays, "on_processor", lambda x: False)
    assert len(row_blocks(torch.zeros(3000, 1))) == 1
    other = ConvexBNRegressor(**parameters).fit(X, y)
    assert other.objective_ == pytest.approx(one.objective_, rel=1e-2)


def test_cross_validation_and_paths_agree_with_numpy(device):
    X, y = data()
    there = {"backend": "torch", "device": device}
    one, other = (
        ConvexBNRegressorCV(beta_ratios=4, eps=0.05, cv=3, random_state=0, **where).fit(X, y)
        for where in ({}, there)
    )
    assert_allclose(one.cv_results_["mean_test_score"], other.cv_results_["mean_test_score"], rtol=0.05)
    assert one.n_splits_ == other.n_splits_ == 3
    labels = classes(y, 2)
    model = ConvexBNClassifierCV(beta_ratios=2, eps=0.2, cv=2, random_state=0, **there).fit(X, labels)
    assert model.score(X, labels) > 0.7

    assert beta_max(X, y, **there) == pytest.approx(beta_max(X, y), rel=1e-6)
    paths = [convex_bn_path(X, y, betas=3, eps=0.1, tol=1e-4, random_state=0, **at) for at in ({}, there)]
    assert_allclose(paths[0].objectives, paths[1].objectives, rtol=2e-4)


def test_warm_starts_and_proofs_on_any_device(device):
    X, y = data(30, 2)
    model = ConvexBNRegressor(
        backend="torch", device=device, beta_ratio=0.2, warm_start=True, certificate="exact", tol=1e-2
    )
    first = model.fit(X, y).objective_
    assert model.fit(X, y).certificate_ == "exact"
    assert model.objective_ == pytest.approx(first, rel=1e-2)


# What is left behind


def values_within(value, seen):
    """Everything that an object holds, however deep."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    yield value
    inside = []
    if isinstance(value, dict):
        inside = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set):
        inside = list(value)
    elif is_dataclass(value):
        inside = [getattr(value, entry.name) for entry in fields(value)]
    if hasattr(value, "__dict__"):
        inside.append(vars(value))
    for part in inside:
        yield from values_within(part, seen)


def n_tensors(torch):
    return sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects())


@pytest.mark.parametrize(
    "estimator", [ConvexBNRegressor, partial(ConvexBNClassifierCV, beta_ratios=2, eps=0.1, cv=2)]
)
def test_no_tensor_is_left_in_a_fitted_estimator_nor_anywhere(estimator, device, torch):
    X, y = data()
    model = estimator(backend="torch", device=device, tol=1e-2, random_state=0)
    # The first fit leaves the workspace of PyTorch's own libraries behind.
    model.fit(X, classes(y, 2))
    gc.collect()
    before = n_tensors(torch)
    allocated = torch.cuda.memory_allocated() if device == "cuda" else 0
    model.fit(X, classes(y, 2))
    held = list(values_within(model, {}))
    assert any(isinstance(value, np.ndarray) for value in held)
    assert not any(isinstance(value, torch.Tensor) for value in held)
    gc.collect()
    assert n_tensors(torch) == before
    assert device == "cpu" or torch.cuda.memory_allocated() == allocated


def test_a_pickle_is_read_without_torch(device, tmp_path):
    X, y = data()
    model = ConvexBNRegressor(backend="torch", device=device, tol=1e-2, random_state=0).fit(X, y)
    (tmp_path / "model").write_bytes(pickle.dumps((model, X, model.predict(X))))
    script = (
        "import sys, pathlib, pickle, numpy\n"
        "class Refusal:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name.partition('.')[0] != 'torch'\n"
        "sys.meta_path.insert(0, Refusal())\n"
        f"model, X, expected = pickle.loads(pathlib.Path({str(tmp_path / 'model')!r}).read_bytes())\n"
        "numpy.testing.assert_array_equal(model.predict(X), expected)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_data_of_the_caller_are_left_alone(device):
    X, y = data()
    weight = np.ones(len(y))
    before = X.copy(), y.copy(), weight.copy()
    for array in (X, y, weight):
        array.flags.writeable = False
    ConvexBNRegressor(backend="torch", device=device, tol=1e-2, random_state=0).fit(X, y, weight)
    for array, copy in zip((X, y, weight), before, strict=True):
        assert_array_equal(array, copy)


def test_what_is_cached_is_numpy_and_for_one_device(device, tmp_path, torch):
    X, y = data()
    memory = Memory(tmp_path, verbose=0)
    fits = [
        ConvexBNRegressor(memory=memory, tol=1e-2, random_state=0, **where).fit(X, y)
        for where in ({}, {"backend": "torch", "device": device}, {"backend": "torch", "device": device})
    ]
    # Whitening and beta_max, once for each of the two.
    outputs = list(tmp_path.rglob("output.pkl"))
    assert len(outputs) == 4
    assert not any(b"torch._utils" in path.read_bytes() for path in outputs)
    assert fits[2].objective_ == fits[1].objective_


def test_no_setting_of_torch_is_changed(device, torch):
    def settings():
        matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        return matmul, cudnn, torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()

    before, state = settings(), torch.get_rng_state()
    ConvexBNRegressor(backend="torch", device=device, tol=1e-2).fit(*data())
    assert settings() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_that_does_not_suffice_is_named_and_released(torch, monkeypatch):
    """The device is the processor's here: what counts is that the failure is told and nothing held."""
    held = []

    def solve(problem, *_, **__):
        table = torch.ones(10)
        held.extend([weakref.ref(table), weakref.ref(problem.A)])
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore.")

    monkeypatch.setattr(_base, "solve", solve)
    X, y = data()
    model = ConvexBNRegressor(backend="torch", device="cpu")
    with pytest.raises(
        MemoryError, match=r"Tried to allocate 20.00 GiB\. Remedies: .*max_neurons.*float32"
    ) as error:
        model.fit(X, y)
    # Although the error is still held.
    assert [reference() for reference in held] == [None, None]
    assert error.value.__suppress_context__
    assert not hasattr(model, "network_")


def test_training_in_numpy_does_not_load_torch():
    script = (
        "import sys, numpy\nfrom skcvxbn import ConvexBNRegressor\n"
        "ConvexBNRegressor(tol=0.1).fit(numpy.eye(6), numpy.arange(6.0))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
