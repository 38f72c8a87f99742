"""Accuracy and training time on the digits data: default parameters next to a multilayer perceptron."""

from __future__ import annotations

import argparse
import warnings
from time import perf_counter

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from skcvxbn import ConvexBNClassifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="number of splits and seeds, from 0")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads")
    args = parser.parse_args()

    X, y = load_digits(return_X_y=True)
    methods = {"ConvexBNClassifier()": _convex, "StandardScaler + MLPClassifier(max_iter=300)": _mlp}
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    print(f"digits {X.shape}, 70/30 splits, BLAS threads: {args.threads}")
    print(f"{'method':<46} {'seed':>6} {'accuracy':>9} {'seconds':>8}")
    with threadpool_limits(args.threads):
        for seed in range(args.repeats):
            split = train_test_split(X, y, test_size=0.3, random_state=seed, stratify=y)
            for name, create in methods.items():
                results[name].append(_measure(create(seed), *split))
                print(_row(name, str(seed), *results[name][-1]), flush=True)
    for name, values in results.items():
        print(_row(name, "median", *np.median(values, axis=0)))


def _convex(seed: int) -> ClassifierMixin:
    return ConvexBNClassifier(random_state=seed)


def _mlp(seed: int) -> ClassifierMixin:
    return make_pipeline(StandardScaler(), MLPClassifier(max_iter=300, random_state=seed))


def _measure(model: ClassifierMixin, X_train, X_test, y_train, y_test) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = perf_counter()
        model.fit(X_train, y_train)
        seconds = perf_counter() - start
    return model.score(X_test, y_test), seconds


def _row(name: str, seed: str, accuracy: float, seconds: float) -> str:
    return f"{name:<46} {seed:>6} {accuracy:9.4f} {seconds:8.2f}"


if __name__ == "__main__":
    main()
