"""Rows sharded over processes: two of them on this machine, against one that has all rows.

The processes run this file as a program, once a scenario, and leave what they found in a file.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning

from skcvxbn import (
    ClosedFormBNNet,
    ConvexBNClassifier,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    SVDTruncation,
    beta_max,
    convex_bn_path,
    sharded_rows,
)
from skcvxbn.distributed import ProcessRows
from skcvxbn.solvers import first_network

N_PROCESSES, TIME_LIMIT = 2, 240
TORCH = {"backend": "torch", "device": "cpu"}
QUICK = TORCH | {"search_starts": 64}


def data(n=70, d=2, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    y = np.abs(X[:, 0]) + 0.5 * X[:, 1] + 0.2 * rng.standard_normal(n)
    # Every fifth row does not count.
    return X, y, np.arange(n) % 5 * 0.5


def shard(M, rank):
    """Parts of unequal size."""
    return np.split(M, [len(M) // 3])[rank]


# One network for each: its estimator, rows, targets and weights.


def squared_error():
    X, y, weight = data()
    return ConvexBNRegressor(beta_ratio=0.1, tol=1e-6, random_state=0, **QUICK), X, y, weight


def huber_of_two_targets_in_single_precision():
    X, y, weight = data()
    # More features than their rank, which a QR decomposition of the rows of all processes finds.
    X = np.hstack([X, X @ np.ones((2, 2))]).astype(np.float32)
    model = ConvexBNRegressor(loss="huber", beta_ratio=0.3, tol=1e-3, random_state=0, **QUICK)
    return model, X, np.stack([y, X[:, 0] * X[:, 1]], axis=1), weight


def classes_not_in_every_shard():
    X, y, weight = data()
    labels = np.array(["few", "many", "some"])[np.digitize(y, [0.2, 1.0])]
    order = np.argsort(labels, kind="stable")
    # Every process draws a seed of its own.
    model = ConvexBNClassifier(beta_ratio=0.1, class_weight="balanced", tol=1e-3, **QUICK)
    return model, X[order], labels[order], weight[order]


def rows_in_batches():
    X, y, weight = data(6000)
    return ConvexBNRegressor(beta_ratio=0.1, tol=1e-3, random_state=0, **QUICK), X, y, weight


def out_of_time():
    X, y, weight = data()
    return ConvexBNRegressor(tol=1e-9, max_time=0.5, random_state=0, **QUICK), X, y, weight


# The largest relative difference of the objective from that of a single process. Where descent makes the end,
# two runs agree within their gaps.
CASES = {
    squared_error: 1e-8,
    huber_of_two_targets_in_single_precision: 1e-4,
    classes_not_in_every_shard: 1e-3,
    rows_in_batches: 1e-3,
    out_of_time: None,
}


def fit_all(rank):
    models = {}
    for case in CASES:
        model, X, y, weight = case()
        with sharded_rows():
            models[case.__name__] = model.fit(*(shard(M, rank) for M in (X, y, weight)))
    return models


def exchange(rank):
    """What the processes find of tables of all rows, in NumPy and in PyTorch."""
    import torch

    rows, found = ProcessRows(), {}
    for name, M in tables().items():
        for library in (np.asarray, torch.asarray):
            own = library(shard(M, rank))
            whole = rows.gathered(own)
            back = rows.own(whole, len(own))
            assert type(whole) is type(back) is type(own)
            assert_array_equal(np.asarray(back), np.asarray(own))
            sums = None if M.dtype == bool else np.asarray(rows.total(own.sum(0)))
            largest = np.asarray(rows.largest(own[0]))
            found[name, library.__module__] = np.asarray(whole), sums, largest, rows.count(own)
    group = torch.distributed.new_group([0])
    if rank == 1:
        with pytest.raises(ValueError, match="a group that this process belongs to"):
            ProcessRows(group)
    assert len({tuple(numbers) for numbers in np.hstack(rows.everyone(rows.numbers(50))).T}) == 100
    return found


def tables():
    rng = np.random.default_rng(0)
    M = rng.standard_normal((10, 3))
    return {"double": M, "single": M.astype(np.float32), "bool": M > 0, "no column": M[:, :0]}


def refuse_all(rank):
    """What each process is told when one of them, or both, cannot go on."""
    X, y, weight = (shard(M, rank) for M in data())
    first = rank == 0
    spoilt = np.where(np.arange(len(X))[:, None] == 3, np.nan, X)
    words, numbers = np.full(len(y), "a"), np.zeros(len(y))
    fits = {
        "features": lambda: ConvexBNRegressor(**TORCH).fit(X[:, : 1 + first], y),
        "nan": lambda: ConvexBNRegressor(**TORCH).fit(X if first else spoilt, y),
        "beta": lambda: ConvexBNRegressor(beta=1.0 + first, **TORCH).fit(X, y),
        "precision": lambda: ConvexBNRegressor(**TORCH).fit(X.astype("f4" if first else "f8"), y),
        "estimator": lambda: (ConvexBNRegressor if first else ConvexBNClassifier)(**TORCH).fit(X, y > 0),
        "targets": lambda: ConvexBNRegressor(**TORCH).fit(X, y[:, None] if first else y),
        "labels": lambda: ConvexBNClassifier(**TORCH).fit(X, words if first else numbers),
        "weights": lambda: ConvexBNRegressor(**TORCH).fit(X, y, weight * first),
        "one class": lambda: ConvexBNClassifier(**TORCH).fit(X, words),
        "numpy": lambda: ConvexBNRegressor().fit(X, y),
        "memory": lambda: ConvexBNRegressor(memory="cache", **TORCH).fit(X, y),
        "exact": lambda: ConvexBNRegressor(certificate="exact", **TORCH).fit(X, y),
        "sampled": lambda: ConvexBNRegressor(arrangements="sampled", **TORCH).fit(X, y),
        "ConvexBNRegressorCV": lambda: ConvexBNRegressorCV(**TORCH).fit(X, y),
        "ClosedFormBNNet": lambda: ClosedFormBNNet().fit(X, y),
        "SVDTruncation": lambda: SVDTruncation().fit(X),
        "beta_max": lambda: beta_max(X, y, **TORCH),
        "convex_bn_path": lambda: convex_bn_path(X, y, **TORCH),
        "drift": lambda: drifting(rank).fit(X, y),
    }
    messages = {}
    with sharded_rows():
        for name, fit in fits.items():
            with pytest.raises(ValueError) as caught:  # noqa: PT011
                fit()
            messages[name] = str(caught.value)
    # Outside of the block rows are all there is.
    messages["alone"] = SVDTruncation().fit(X).mean_
    return messages


def drifting(rank):
    """Return a model whose second process rounds in another way, as on another machine."""

    def descend(*args, **kwargs):
        S, V = original(*args, **kwargs)
        return S * (1 + 1e-6 * rank), V

    original, first_network.descend = first_network.descend, descend
    return ConvexBNRegressor(random_state=0, **TORCH)


def fail(rank, fault):
    """Fit, with a fault in the second process in the middle of it."""
    model, X, y, weight = squared_error()
    total, n_calls = ProcessRows.total, 0

    def total_or_fault(rows, x):
        nonlocal n_calls
        n_calls += 1
        if rank == 1 and n_calls == 500:
            fault()
        return total(rows, x)

    ProcessRows.total = total_or_fault
    with sharded_rows():
        model.fit(*(shard(M, rank) for M in (X, y, weight)))


def killed(rank):
    fail(rank, lambda: os.kill(os.getpid(), signal.SIGKILL))


def stuck(rank):
    fail(rank, lambda: time.sleep(TIME_LIMIT))


def interrupted(rank):
    def interrupt():
        raise KeyboardInterrupt

    fail(rank, interrupt)


SCENARIOS = {work.__name__: work for work in (fit_all, exchange, refuse_all, killed, stuck, interrupted)}


def main(scenario, rank, folder):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    dist.init_process_group(
        "gloo",
        init_method=(Path(folder) / "meeting").as_uri(),
        rank=int(rank),
        world_size=N_PROCESSES,
        timeout=timedelta(seconds=5 if scenario == "stuck" else TIME_LIMIT),
    )
    found = SCENARIOS[scenario](int(rank))
    (Path(folder) / rank).write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


def processes(scenario, folder):
    command = [sys.executable, __file__, scenario]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if sys.platform == "linux":
        # Whatever the name of this machine stands for.
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    return [
        subprocess.Popen(
            [*command, str(rank), str(folder)], stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(N_PROCESSES)
    ]


def run(scenario, folder):
    """Run a scenario to its end and return what the processes found."""
    started = processes(scenario, folder)
    try:
        errors = [process.communicate(timeout=TIME_LIMIT)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * N_PROCESSES, "\n".join(errors)
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(N_PROCESSES)]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def fits(torch, tmp_path_factory):
    return run("fit_all", tmp_path_factory.mktemp("fits"))


@pytest.fixture(scope="module")
def refusals(torch, tmp_path_factory):
    return run("refuse_all", tmp_path_factory.mktemp("refusals"))


# The network


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_all_processes_have_the_same_network(fits, case):
    one, other = (vars(models[case.__name__]) for models in fits)
    fitted = [name for name in one if name.endswith("_")]
    assert {"network_", "objective_", "lower_bound_", "beta_max_", "n_features_in_"} <= set(fitted)
    assert pickle.dumps([one[name] for name in fitted]) == pickle.dumps([other[name] for name in fitted])


@pytest.mark.parametrize("case", [case for case, rel in CASES.items() if rel], ids=lambda case: case.__name__)
def test_the_network_is_that_of_a_single_process(fits, case):
    model, X, y, weight = case()
    single, sharded = model.fit(X, y, weight), fits[0][case.__name__]
    assert sharded.objective_ == pytest.approx(single.objective_, rel=CASES[case])
    assert sharded.beta_max_ == pytest.approx(single.beta_max_, rel=1e-6)
    assert sharded.dual_gap_ <= sharded.tol * sharded.objective_
    assert_allclose(sharded.singular_values_, single.singular_values_, rtol=1e-6)
    outputs = [m.network_.forward(X)[weight > 0] for m in (single, sharded)]
    # A sum of squares whose value is within the gap of the least one is this close to its minimiser.
    assert np.abs(outputs[0] - outputs[1]).max() <= 3 * np.sqrt(single.tol * single.objective_)


def test_the_objective_is_that_of_all_rows(fits):
    _, X, y, weight = squared_error()
    model = fits[1]["squared_error"]
    assert model.network_.objective(X, y, model.beta_, weight) == pytest.approx(model.objective_, rel=1e-12)


def test_classes_and_their_weights_are_those_of_all_rows(fits):
    model, X, labels, weight = classes_not_in_every_shard()
    assert set(shard(labels, 0)) < set(labels)
    model.set_params(backend="numpy", tol=0.5).fit(X, labels, weight)
    assert_array_equal(fits[0]["classes_not_in_every_shard"].classes_, model.classes_)
    assert_allclose(fits[0]["classes_not_in_every_shard"].class_weight_, model.class_weight_, rtol=1e-12)


def test_the_end_of_the_time_is_that_of_all_processes(fits):
    assert fits[0]["out_of_time"].dual_gap_ > 1e-9


# What processes exchange


def test_tables_of_unequal_parts(torch, tmp_path):
    for found in run("exchange", tmp_path):
        for (name, _), (whole, sums, largest, size) in found.items():
            M = tables()[name]
            assert whole.dtype == M.dtype
            assert_array_equal(whole, M)
            assert size == len(M)
            if sums is not None:
                assert_allclose(sums, M.sum(axis=0), rtol=1e-5, atol=1e-6)
            assert_array_equal(largest, np.maximum(M[0], M[len(M) // 3]))


# Errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("features", "agree about the number of features: process 0 has 2, process 1 has 1"),
        ("beta", "agree about beta: process 0 has 2.0, process 1 has 1.0"),
        ("precision", "agree about the precision of X: process 0 has 'float32', process 1 has 'float64'"),
        ("targets", r"agree about the shape of y: process 0 has \(1,\), process 1 has \(\)"),
        ("labels", "agree about whether y are strings: process 0 has True, process 1 has False"),
        ("estimator", "agree about the class of the estimator: process 0 has 'ConvexBNRegressor'"),
        ("drift", "agree about the neurons after 1 rounds"),
        ("one class", "contains only one class: 'a'"),
        ("numpy", "Sharded rows require backend='torch'"),
        ("memory", "Sharded rows require memory=None. Got 'cache' instead"),
        ("exact", "Sharded rows require certificate='estimated'"),
        ("sampled", "arrangements='generated'"),
        ("ConvexBNRegressorCV", "ConvexBNRegressorCV needs all rows in one process"),
        ("ClosedFormBNNet", "ClosedFormBNNet needs all rows in one process"),
        ("SVDTruncation", "SVDTruncation needs all rows in one process"),
        ("beta_max", "beta_max needs all rows in one process"),
        ("convex_bn_path", "convex_bn_path needs all rows in one process"),
    ],
)
def test_every_process_is_told(refusals, name, message):
    for messages in refusals:
        with pytest.raises(ValueError, match=message):
            raise ValueError(messages[name])


@pytest.mark.parametrize(("name", "message"), [("nan", "contains NaN"), ("weights", "non-zero number")])
def test_the_other_process_is_told_whose_rows_are_wrong(refusals, name, message):
    other, own = (messages[name] for messages in refusals)
    assert message in own
    assert other.startswith("Process 1 of 2 stopped with an error. ValueError:")
    assert message in other


def test_the_block_ends(refusals):
    X = data()[0]
    for rank, messages in enumerate(refusals):
        assert_allclose(messages["alone"], shard(X, rank).mean(axis=0))


def test_a_group_is_required(torch):
    with pytest.raises(RuntimeError, match=r"call torch\.distributed\.init_process_group"), sharded_rows():
        pass


def test_torch_is_required(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"), sharded_rows():
        pass


@pytest.mark.parametrize("fault", ["killed", "stuck", "interrupted"])
def test_a_lost_process_ends_the_others(torch, tmp_path, fault):
    survivor, lost = processes(fault, tmp_path)
    try:
        error = survivor.communicate(timeout=TIME_LIMIT / 2)[1]
    finally:
        survivor.kill()
        lost.kill()
        lost.communicate()
    assert survivor.returncode == 1
    assert "Training on sharded rows cannot go on in process 0 of 2" in error


if __name__ == "__main__":
    main(*sys.argv[1:])
