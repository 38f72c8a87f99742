"""The training problems of the solver benchmarks, in raw and in whitened coordinates."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes, load_digits

from skcvxbn import SVDTruncation
from skcvxbn.losses import LinearQuadratic
from skcvxbn.solvers import Problem
from skcvxbn.training import largest_beta
from skcvxbn.whitening import Whitening, whiten

# beta as a share of beta_max; the last one is weak enough for hundreds of neurons.
RATIOS = (0.1, 0.01, 0.001)
# Betas that published figures refer to.
FIXED_BETAS = {"diabetes": (1.41495, 1.0, 0.14), "cifar10": (1.0,)}
NEEDS_DATA = ("california_housing", "mnist", "cifar10")


@dataclass(frozen=True)
class Case:
    """One data set at one weight decay. No output bias: this is the network of the paper.

    `problem` is in double precision and judges every method; `training`, in the precision of the data, is
    what the library is given.
    """

    name: str
    X: NDArray
    whitening: Whitening
    problem: Problem
    training: Problem
    beta_ratio: float

    @property
    def label(self) -> str:
        return f"{self.name}, beta {self.problem.beta:.6g}"

    @property
    def is_large(self) -> bool:
        return len(self.X) > 10_000


def cases(name: str, data: Path | None, betas: list[float] | None, ratios: list[float]) -> Iterator[Case]:
    """One case for every weight decay, from strong to weak."""
    X, Y = _load(name, data)
    whitening = whiten(X)
    largest = largest_beta(whitening.A, Y)
    if betas is None:
        chosen = {ratio * largest for ratio in ratios} if name != "diabetes" else set()
        betas = [*chosen, *FIXED_BETAS.get(name, ())]
    for beta in sorted(set(betas), reverse=True):
        training = Problem(whitening.A, LinearQuadratic(Y, 1.0), beta, False)
        exact = training.astype(np.float64)
        yield Case(name, X, whitening, exact, training, beta / largest)


def available(data: Path | None) -> list[str]:
    names = ["diabetes", "teacher", "digits"]
    return names if data is None else [*names, *NEEDS_DATA]


def _load(name: str, data: Path | None) -> tuple[NDArray, NDArray]:
    if name == "diabetes":
        X, y = load_diabetes(return_X_y=True)
        return X, _standardised(y)
    if name == "teacher":
        return _teacher()
    if name == "digits":
        X, y = load_digits(return_X_y=True)
        return X / 16, np.eye(10)[y]
    if data is None:
        raise ValueError(f"The problem {name!r} requires --data.")
    load = _loader_of(data)
    X, y = load(name, test_size=0.2, seed=0)[:2]
    if name == "california_housing":
        return X.astype(np.float64), _standardised(y)
    X = X.astype(np.float32) / 255
    if name == "cifar10":
        X = SVDTruncation(0.95, output="scores").fit_transform(X)
    return X, np.eye(10, dtype=np.float32)[y]


def _teacher() -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1000, 20))
    signal = np.maximum(X @ rng.standard_normal((20, 5)), 0) @ rng.standard_normal(5)
    return X, _standardised(signal + 0.1 * signal.std() * rng.standard_normal(1000))


def _standardised(y: NDArray) -> NDArray:
    return ((y - y.mean()) / y.std())[:, None]


def _loader_of(folder: Path) -> Callable[..., tuple[NDArray, ...]]:
    spec = importlib.util.spec_from_file_location("benchmark_data", folder / "load.py")
    if spec is None or spec.loader is None:
        raise ValueError(f"No load.py in {folder}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load
