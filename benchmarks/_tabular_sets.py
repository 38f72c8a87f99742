"""Data sets of the tabular benchmarks: those of a folder, or those embedded in scikit-learn."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.model_selection import train_test_split

EMBEDDED = {
    "breast_cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
    "digits": datasets.load_digits,
    "wine": datasets.load_wine,
}
DATA_HELP = (
    "folder of .npz files and a load.py with load(name, test_size=, seed=), which returns X_train, y_train, "
    "X_test, y_test; without it, the sets embedded in scikit-learn"
)

Split = tuple[NDArray, NDArray, NDArray, NDArray]
Loader = Callable[..., Split]


def sets_of(folder: Path | None) -> list[str]:
    return sorted(EMBEDDED) if folder is None else sorted(path.stem for path in folder.glob("*.npz"))


def loader_of(folder: Path | None) -> Loader:
    if folder is None:
        return _embedded
    spec = importlib.util.spec_from_file_location("benchmark_data", folder / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load


def _embedded(name: str, *, test_size: float, seed: int) -> Split:
    X, y = EMBEDDED[name](return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=test_size, random_state=seed)
    return X_train, y_train, X_test, y_test


def is_regression(y: NDArray) -> bool:
    return y.dtype.kind == "f"


def split(load: Loader, name: str, n_rows: int | None, seed: int) -> Split:
    """At most `n_rows` training rows, drawn at random; a regression's target standardised with them."""
    X_train, y_train, X_test, y_test = load(name, test_size=0.2, seed=seed)
    rows = np.random.default_rng(seed).permutation(len(y_train))[:n_rows]
    X_train, y_train = X_train[rows].astype(np.float64), y_train[rows]
    if is_regression(y_train):
        mean, std = y_train.mean(), y_train.std()
        y_train, y_test = (y_train - mean) / std, (y_test - mean) / std
    return X_train, y_train, X_test.astype(np.float64), y_test
