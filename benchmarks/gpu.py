"""Time of an iteration against that of its matrix products, and time to an objective, on processors and GPUs.

Problems of the size of CIFAR-10 and CIFAR-100 (50 000 x 3072, 10 and 100 classes, log loss, single precision)
from a seeded generator. An iteration is a quasi-Newton step of the descent; its floating point operations are
those of its matrix products, and what they could reach is measured by one large product. Without torch or
without a GPU it says so and runs the rest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from skcvxbn import solvers
from skcvxbn.arrays import Array, namespace
from skcvxbn.backend import Backend, resolve
from skcvxbn.solvers.base import Options, Problem, balanced
from skcvxbn.solvers.descent import _minimise, _SmoothNetwork, random_network
from skcvxbn.solvers.neuron_generation import _Generation
from skcvxbn.targets import class_targets
from skcvxbn.training import prepare

METHODS = {"numpy": ("numpy", None), "torch-cpu": ("torch", "cpu"), "torch-cuda": ("torch", "cuda")}
N_CLASSES = {"cifar10": 10, "cifar100": 100}
# As the default of the classifiers.
SHRINKAGE = 0.3
WIDTH = 0.1
COLUMNS = (
    "prepared, s", "rank", "step, s", "GFLOP/s", "one product", "share", "to the objective, s",
    "last objective", "after, s", "gap",
)  # fmt: skip


class Measured(NamedTuple):
    """What one method took on one problem."""

    prepared: float
    rank: int
    step: float
    speed: float
    peak: float
    trajectory: list[tuple[float, float]]
    gap: float

    def cells(self, target: float) -> list[str]:
        reached = [seconds for seconds, objective in self.trajectory if objective <= target]
        seconds, objective = self.trajectory[-1]
        return [
            f"{self.prepared:.3g}",
            str(self.rank),
            f"{self.step:.4g}",
            f"{self.speed / 1e9:.0f}",
            f"{self.peak / 1e9:.0f}",
            f"{self.speed / self.peak:.0%}",
            f"{reached[0]:.3g}" if reached else "never",
            f"{objective:.6g}",
            f"{seconds:.3g}",
            f"{self.gap:.0e}",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=N_CLASSES, default=list(N_CLASSES))
    parser.add_argument("--backends", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=3072)
    parser.add_argument("--neurons", type=int, default=256, help="of the timed steps")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of descent")
    parser.add_argument("--beta-ratio", type=float, default=0.01)
    parser.add_argument("--max-iter", type=int, default=3, help="rounds of the solver")
    parser.add_argument("--max-time", type=float, default=600, help="seconds for the rounds of a method")
    parser.add_argument("--within", type=float, default=0.01, help="excess over the best to reach")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    args = parser.parse_args()

    methods = dict(_available(args.backends, args.threads))
    if not methods:
        raise SystemExit("None of the backends is available.")
    with threadpool_limits(args.threads):
        for name in args.problems:
            X, codes = _data(args.rows, args.features, N_CLASSES[name])
            results = {}
            for method, backend in methods.items():
                results[method] = _measure(X, codes, N_CLASSES[name], backend, args)
            _print(name, results, args)


def _available(names: list[str], threads: int) -> Iterator[tuple[str, Backend]]:
    for name in names:
        try:
            backend = resolve(*METHODS[name])
        except (ImportError, ValueError) as error:
            print(f"{name} is left out: {error}\n")
            continue
        if backend.name == "torch":
            import torch

            torch.set_num_threads(threads)
            if name == "torch-cuda":
                print(f"{name}: {torch.cuda.get_device_name()}\n")
        yield name, backend


def _data(n_rows: int, n_features: int, n_classes: int) -> tuple[NDArray, NDArray]:
    """Rows whose spectrum falls as that of images does, and classes from a random network on them."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, n_features), dtype=np.float32)
    X *= np.arange(1, n_features + 1, dtype=np.float32) ** -0.8
    n_seen = min(64, n_features)
    hidden = np.maximum(X[:, :n_seen] @ rng.standard_normal((n_seen, 128), dtype=np.float32), 0)
    scores = hidden @ rng.standard_normal((128, n_classes), dtype=np.float32)
    scores = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    return X, (scores + 0.5 * rng.standard_normal(scores.shape, dtype=np.float32)).argmax(axis=1)


def _measure(
    X: NDArray, codes: NDArray, n_classes: int, backend: Backend, args: argparse.Namespace
) -> Measured:
    start = perf_counter()
    targets, weight = class_targets(codes, n_classes, "log_loss"), np.ones(len(X))
    training = prepare(X, targets, weight, fit_intercept=True, shrinkage=SHRINKAGE, backend=backend)
    problem = training.at(args.beta_ratio * training.beta_max)
    problem, _, unit = solvers._in_own_units(solvers._in_one_precision(problem))
    prepared = perf_counter() - start
    step, speed = _descent(problem.astype(np.float32), args)
    trajectory, gap = _rounds(problem, unit, args)
    rank = training.whitening.rank
    return Measured(prepared, rank, step, speed, _speed_of_product(backend), trajectory, gap)


def _descent(problem: Problem, args: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a step, and floating point operations a second."""
    network = balanced(*random_network(problem, args.neurons, np.random.RandomState(0)))
    smooth = _SmoothNetwork(problem, *network, WIDTH)
    x, n_evaluated = smooth.start(*network), 0

    def counted(x: Array) -> tuple[float, Array]:
        nonlocal n_evaluated
        n_evaluated += 1
        return smooth(x)

    _minimise(counted, x, 2, 0.0, lambda: False)
    n_evaluated = 0
    seconds = _seconds(lambda: _minimise(counted, x, args.steps, 0.0, lambda: False), problem.A)
    n_rows, rank = problem.shape
    # With A twice, with the output weights, the residuals and both of them once each.
    operations = 2.0 * n_rows * args.neurons * (2 * rank + 3 * problem.n_outputs)
    return seconds / args.steps, n_evaluated * operations / seconds


def _rounds(
    problem: Problem, unit: float, args: argparse.Namespace
) -> tuple[list[tuple[float, float]], float]:
    """Seconds and best objective after every round, and the last relative gap."""
    rng = np.random.RandomState(0)
    start = perf_counter()
    generation = _Generation(problem, Options(0.05, args.max_iter, None, 512, rng))
    generation.begin(None)
    # The objective has been to the host: nothing is still under way.
    trajectory = [(perf_counter() - start, generation.neurons.objective * unit)]
    while not generation.message and perf_counter() - start < args.max_time:
        generation.round()
        trajectory.append((perf_counter() - start, generation.best.objective * unit))
    return trajectory, generation.gap


def _speed_of_product(backend: Backend) -> float:
    """Floating point operations a second of one large product in single precision."""
    size = 2048 if backend.device == "cpu" else 8192
    M = backend.array(np.random.default_rng(0).standard_normal((size, size), dtype=np.float32))
    _seconds(lambda: M @ M, M)
    n_products = 4 if backend.device == "cpu" else 20

    def products() -> None:
        for _ in range(n_products):
            M @ M

    return n_products * 2.0 * size**3 / _seconds(products, M)


def _seconds(work: Callable[[], Any], where: Array) -> float:
    """Seconds of some work, all of it done."""
    _wait(where)
    start = perf_counter()
    work()
    _wait(where)
    return perf_counter() - start


def _wait(where: Array) -> None:
    # What is asked for later on one device ends later.
    float(namespace(where).sum(where[:1, :1]))


def _print(name: str, results: dict[str, Measured], args: argparse.Namespace) -> None:
    target = (1 + args.within) * min(result.trajectory[-1][1] for result in results.values())
    print(
        f"{name}: {args.rows} x {args.features} float32, {N_CLASSES[name]} classes, {args.neurons} neurons, "
        f"{args.threads} thread(s); objective to reach {target:.6g}\n"
    )
    print("| method | " + " | ".join(COLUMNS) + " |\n|" + " --- |" * (len(COLUMNS) + 1))
    for method, result in results.items():
        print(f"| {method} | " + " | ".join(result.cells(target)) + " |", flush=True)
    print()


if __name__ == "__main__":
    main()
