"""Numerical code on arrays of any library, and on rows that are spread over processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skcvxbn import in_place
from skcvxbn.arrays import (
    Rows,
    in_eights,
    inner_products,
    like,
    row_largest,
    row_sums,
    take,
    to_numpy,
)
from skcvxbn.backend import Backend
from skcvxbn.losses import (
    LinearQuadratic,
    absolute_error,
    hinge,
    huber,
    log_loss,
    pinball,
    squared_error,
    squared_hinge,
)
from skcvxbn.solvers import solve
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.descent import descend, random_network
from skcvxbn.solvers.neurons import Neurons
from skcvxbn.solvers.reweighting import reweighted
from skcvxbn.solvers.search import THOROUGH, random_starts, search
from skcvxbn.whitening import whiten

N_ROWS = 60
LOSSES = {
    "squared_error": squared_error,
    "absolute_error": absolute_error,
    "huber": partial(huber, epsilon=0.7),
    "pinball": partial(pinball, quantile=0.3),
    "hinge": hinge,
    "squared_hinge": squared_hinge,
    "log_loss": log_loss,
}


def data(n_outputs, n=N_ROWS, d=4):
    rng = np.random.default_rng(n_outputs)
    X = rng.standard_normal((n, d))
    return X, np.abs(X[:, :n_outputs]) - 1 + 0.1 * rng.standard_normal((n, n_outputs)), rng.uniform(0.5, 2, n)


def bound_loss(name, Y, weight):
    """Bind a loss to targets of its kind: numbers, signs or classes."""
    if name == "log_loss" and Y.shape[1] > 1:
        return log_loss(np.eye(Y.shape[1])[Y.argmax(axis=1)], weight)
    return LOSSES[name](Y if name in list(LOSSES)[:4] else np.where(Y > 0, 1.0, -1.0), weight)


def make(name, n_outputs, fit_intercept=True):
    X, Y, weight = data(n_outputs)
    loss = bound_loss(name, Y, weight)
    output, value = loss.unit(np.sqrt(weight / weight.sum()))
    return Problem(whiten(X, weight).A, loss.scaled(output, value), 0.1, fit_intercept)


EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)
OUTPUTS = pytest.mark.parametrize("n_outputs", [1, 3])


# Any library


@pytest.fixture
def strict(monkeypatch):
    """A backend of arrays that can do what the array API standard says, and nothing else."""
    xp = pytest.importorskip("array_api_strict")

    def written(value, out):
        out[...] = value
        return out

    def clip(x, upper, out):
        return written(xp.minimum(xp.maximum(x, xp.zeros_like(x)), xp.zeros_like(x) + upper), out)

    # What is not in the standard. The convex program is solved in NumPy.
    replacements = {
        "matmul": lambda x, y, out: written(x @ y, out),
        "thin_matmul": lambda x, y, out: written(x @ y, out),
        "subtract": lambda x, y, out: written(x - y, out),
        "clip": clip,
        "clip_both": lambda x, bound, out: written(clip(x + bound, 2 * bound, xp.zeros_like(x)) - bound, out),
        "positive": lambda x, out: written(xp.astype(x > 0, x.dtype), out),
        "relu": lambda x: clip(x, np.inf, x),
    }
    for name, replacement in replacements.items():
        given = getattr(in_place, name)
        monkeypatch.setattr(
            in_place,
            name,
            lambda x, *rest, given=given, strictly=replacement, **out: (
                given if isinstance(x, np.ndarray) else strictly
            )(x, *rest, **out),
        )

    class Strict(Backend):
        def array(self, x):
            return xp.asarray(np.array(x))

    return Strict()


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("n_columns", [1, 16, 17])
def test_sums_and_maxima_of_rows(n_columns, library):
    asarray = np.asarray if library == "numpy" else pytest.importorskip("torch").asarray
    rng = np.random.default_rng(n_columns)
    M = rng.standard_normal((30, n_columns))
    given = asarray(M)
    assert_allclose(to_numpy(row_sums(given)), M.sum(axis=1, keepdims=True), rtol=1e-9)
    assert_array_equal(to_numpy(row_largest(given)), M.max(axis=1, keepdims=True))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("n_columns", [0, 5, 128, 129, 131, 257, 700])
def test_inner_products_of_columns(n_columns, library):
    asarray = np.asarray if library == "numpy" else pytest.importorskip("torch").asarray
    M = np.random.default_rng(n_columns).standard_normal((30, n_columns))
    assert_allclose(to_numpy(inner_products(asarray(M))), M.T @ M, rtol=1e-9, atol=1e-12)


def test_rounding_up_to_eights():
    assert [in_eights(count) for count in (0, 1, 8, 9, 229)] == [0, 8, 8, 16, 232]


@OUTPUTS
@EVERY_LOSS
def test_losses_on_strict_arrays(name, n_outputs, strict):
    here = make(name, n_outputs)
    there = here.on(strict)
    rng = np.random.default_rng(0)
    F, along = rng.standard_normal((2, N_ROWS, n_outputs))
    direction, strict_F = here.A[:, -1], strict.array(F)
    one, other = here.at(F), there.at(strict_F)
    assert type(other.F) is type(strict_F)
    assert other.value == pytest.approx(one.value, rel=1e-12)
    for attribute in ("F", "bias", "R"):
        assert_allclose(to_numpy(getattr(other, attribute)), getattr(one, attribute), rtol=1e-8, atol=1e-8)
    R = here.feasible(one.R)
    assert_allclose(to_numpy(there.feasible(other.R)), R, rtol=1e-8, atol=1e-8)
    R, strict_R = 0.5 * R, strict.array(0.5 * R)
    assert there.loss.dual_value(strict_R) == pytest.approx(here.loss.dual_value(R), rel=1e-12)
    slopes = here.loss.dual_slope(R, along), there.loss.dual_slope(strict_R, strict.array(along))
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-12)
    assert there.loss.largest_multiple(strict_R) == pytest.approx(here.loss.largest_multiple(R), rel=1e-12)
    assert there.loss.unit(strict.array(direction)) == pytest.approx(here.loss.unit(direction), rel=1e-9)
    curvature = here.smoothed(0.1).loss.row_curvature(F)
    assert_allclose(to_numpy(there.smoothed(0.1).loss.row_curvature(strict_F)), curvature, rtol=1e-12)
    assert there.dual_bound(strict_R, 2.0) == pytest.approx(here.dual_bound(R, 2.0), rel=1e-9)


@pytest.mark.parametrize("fit_intercept", [False, True])
@OUTPUTS
def test_descent_and_search_on_strict_arrays(n_outputs, fit_intercept, strict):
    here = make("squared_error", n_outputs, fit_intercept)
    there = here.on(strict)
    S, V = random_network(here, 10, np.random.RandomState(0))
    found, other = (
        descend(problem, like(S, problem.A), like(V, problem.A), widths=(0.3, 0.1), n_steps=10)
        for problem in (here, there)
    )
    for one, two in zip(found, other, strict=True):
        assert_allclose(to_numpy(two), one, rtol=1e-6, atol=1e-8)
    starts = random_starts(here.A.shape[1], n_outputs, 20, np.random.RandomState(0))
    one = search(here.A, here.zero.R, *starts, stages=THOROUGH)
    two = search(there.A, there.zero.R, *(strict.array(M) for M in starts), stages=THOROUGH)
    assert_allclose(two.values, one.values, rtol=1e-6)


@pytest.mark.parametrize(("name", "n_outputs"), [("squared_error", 1), ("huber", 1), ("log_loss", 3)])
def test_the_solver_on_strict_arrays(name, n_outputs, strict, options):
    here = make(name, n_outputs)
    one, two = (solve(problem, options(1e-3)) for problem in (here, here.on(strict)))
    assert isinstance(two.S, np.ndarray)
    assert two.objective == pytest.approx(one.objective, rel=2e-3)
    assert one.converged
    assert two.converged


def test_torch_is_not_torn_between_precisions():
    torch = pytest.importorskip("torch")
    x = torch.ones((2, 3), dtype=torch.float32)
    assert like(np.zeros(2), x).dtype == torch.float64
    assert take(x, np.array([True, False]), axis=0).shape == (1, 3)


# Rows spread over processes


@pytest.fixture
def free_threads(monkeypatch):
    """Before Python 3.12 cached properties are locked for all instances: threads could not meet in one."""
    for owner, name in ((LinearQuadratic, "_spread"), (Problem, "zero")):
        monkeypatch.setattr(vars(owner)[name], "lock", nullcontext(), raising=False)


class Shared(Rows):
    """Rows of one of several threads, which stand for processes: each has an equal part."""

    def __init__(self, rank, table, barrier):
        self.rank, self.table, self.barrier = rank, table, barrier

    def exchanged(self, x):
        self.table[self.rank] = x
        self.barrier.wait()
        values = list(self.table)
        self.barrier.wait()
        return values

    def total(self, x):
        return sum(self.exchanged(x))

    def largest(self, x):
        return np.max(self.exchanged(x), axis=0)

    def gathered(self, M):
        return np.vstack(self.exchanged(M))

    def count(self, x):
        return int(sum(self.exchanged(x.shape[0])))

    def numbers(self, n_rows):
        size = self.count(np.empty((n_rows, 0)))
        return super().numbers(size)[:, self.rank * n_rows : (self.rank + 1) * n_rows]


def in_parts(work, n_parts=3):
    """Do the work on parts of the rows at once: it takes a function of a table, its part, and the rows."""
    table, barrier = [None] * n_parts, threading.Barrier(n_parts, timeout=10)

    def one(rank):
        size = N_ROWS // n_parts
        return work(lambda M: M[rank * size : (rank + 1) * size], Shared(rank, table, barrier))

    with ThreadPoolExecutor(n_parts) as pool:
        return list(pool.map(one, range(n_parts)))


def part_of(problem, part, rows):
    return replace(problem, A=part(problem.A), loss=replace(problem.loss.mapped(part), rows=rows))


@pytest.mark.usefixtures("free_threads")
@OUTPUTS
@EVERY_LOSS
def test_losses_add_up_over_parts_of_the_rows(name, n_outputs):
    whole = make(name, n_outputs)
    F, along = np.random.default_rng(0).standard_normal((2, N_ROWS, n_outputs))

    def quantities(problem, F, along):
        output = problem.at(F)
        R = problem.feasible(output.R)
        loss = problem.loss
        return output.R, {
            "shape": problem.shape,
            "value": output.value,
            "bias": output.bias,
            "length": problem.length(R),
            "dual value": loss.dual_value(0.5 * R),
            "dual slope": loss.dual_slope(0.5 * R, R),
            "multiple": loss.largest_multiple(R),
            "unit": loss.unit(problem.A[:, -1]),
            "trusted": loss.trusted(along),
            "bound": problem.dual_bound(R, 3.0),
            "smoothed": problem.smoothed(0.1).at(F).value,
        }

    R, expected = quantities(whole, F, along)
    results = in_parts(lambda part, rows: quantities(part_of(whole, part, rows), part(F), part(along)))
    assert_allclose(np.vstack([own for own, _ in results]), R, rtol=1e-7, atol=1e-9)
    for _, found in results:
        for key, value in expected.items():
            assert_allclose(found[key], value, rtol=1e-7, atol=1e-9, err_msg=key)


@pytest.mark.usefixtures("free_threads")
@OUTPUTS
def test_training_on_parts_of_the_rows(n_outputs):
    whole = make("log_loss" if n_outputs > 1 else "huber", n_outputs)
    S, V = random_network(whole, 12, np.random.RandomState(0))
    starts = random_starts(whole.A.shape[1], n_outputs, 20, np.random.RandomState(0))

    def work(problem):
        network = descend(problem, S, V, widths=(0.3, 0.1), n_steps=20)
        neurons = Neurons.of_network(problem, *network, 1e-3)
        found = search(problem.A, neurons.R, *starts, stages=THOROUGH, rows=problem.rows)
        joined = neurons.joined(problem, found).merged(problem)
        weighted = reweighted(problem.smoothed(0.1), joined.S, joined.U, joined.bias)
        joined = Neurons.of_network(problem, *weighted[:2], 0.0)
        return network, found.values, problem.fingerprints(neurons.patterns), joined

    network, values, fingerprints, joined = work(whole)
    for other_network, other_values, other_fingerprints, other_joined in in_parts(
        lambda part, rows: work(part_of(whole, part, rows))
    ):
        for one, other in zip(network, other_network, strict=True):
            assert_allclose(other, one, rtol=1e-6, atol=1e-9)
        assert_allclose(other_values[:3], values[:3], rtol=1e-6)
        assert_array_equal(other_fingerprints, fingerprints)
        assert len(other_joined) == len(joined)
        assert other_joined.objective == pytest.approx(joined.objective, rel=1e-9)


@pytest.mark.parametrize("kind", ["tall", "dependent", "wide"])
def test_whitening_parts_of_the_rows(kind):
    X, _, weight = data(1, d=80 if kind == "wide" else 4)
    if kind == "dependent":
        X = np.hstack([X, X @ np.ones((4, 2))])
    whole = whiten(X, weight)
    parts = in_parts(lambda part, rows: whiten(part(X), part(weight), backend=Backend(rows=rows)))
    A = np.vstack([part.A for part in parts])
    assert_allclose(A.T @ A, np.eye(whole.rank + 1), atol=1e-10)
    assert_allclose(A @ A.T, whole.A @ whole.A.T, atol=1e-10)
    for part in parts:
        assert part.n_rows == pytest.approx(whole.n_rows, rel=1e-14)
        assert_allclose(part.mean, whole.mean, atol=1e-14)
        assert_allclose(part.singular_values, whole.singular_values, rtol=1e-10)
        assert_array_equal(part.projection, parts[0].projection)


def test_fingerprints_tell_arrangements_apart_whatever_the_order():
    problem = make("squared_error", 1)
    patterns = np.random.default_rng(0).standard_normal((N_ROWS, 300)) > 0
    patterns[:, 1] = patterns[:, 0]
    patterns[5, 2:4] = [False, True]
    patterns[:5, 3] = patterns[:5, 2]
    patterns[6:, 3] = patterns[6:, 2]
    found = problem.fingerprints(patterns)
    assert_array_equal(found[0], found[1])
    assert len(np.unique(found, axis=0)) == len(np.unique(patterns, axis=1).T) == 299
    assert_array_equal(problem.fingerprints(patterns[:, ::-1]), found[::-1])
