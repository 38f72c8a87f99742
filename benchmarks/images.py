"""MNIST and CIFAR-10 by log loss: test accuracy and seconds, decompositions included, next to a perceptron.

CIFAR-10 is behind `SVDTruncation`, MNIST shrunk by the estimator. The perceptron has as many hidden units and
gets ten epochs.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from _tabular_sets import DATA_HELP, loader_of
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits

from skcvxbn import ConvexBNClassifier, SVDTruncation

MODELS: dict[str, dict[str, BaseEstimator]] = {
    "mnist": {
        "ConvexBNClassifier": ConvexBNClassifier(
            beta_ratio=5e-4, shrinkage=0.4, max_neurons=256, tol=1e-3, max_iter=1, random_state=0
        ),
        "MLPClassifier": MLPClassifier((256,), max_iter=10, random_state=0),
    },
    "cifar10": {
        "SVDTruncation, ConvexBNClassifier": make_pipeline(
            SVDTruncation(0.95, output="scores"),
            ConvexBNClassifier(beta=1, shrinkage=0.2, max_neurons=384, tol=1e-3, max_iter=1, random_state=0),
        ),
        "SVDTruncation, MLPClassifier": make_pipeline(
            SVDTruncation(0.95, output="scores"), MLPClassifier((384,), max_iter=10, random_state=0)
        ),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=DATA_HELP)
    parser.add_argument("--sets", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--threads", type=int, default=2, help="BLAS threads")
    args = parser.parse_args()
    load = loader_of(args.data)
    print(f"BLAS threads: {args.threads}")
    print(f"{'data':<8} {'method':<34} {'accuracy':>8} {'wall s':>7} {'CPU s':>7}  relative gap")
    for name in args.sets:
        X_train, y_train, X_test, y_test = load(name)
        X_train, X_test = (X.astype(np.float32) / 255 for X in (X_train, X_test))
        for method, model in MODELS[name].items():
            wall, cpu = perf_counter(), process_time()
            with threadpool_limits(args.threads), warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(X_train, y_train)
            wall, cpu = perf_counter() - wall, process_time() - cpu
            last = model[-1] if hasattr(model, "steps") else model
            gap = f"{last.dual_gap_ / last.objective_:.0e}" if hasattr(last, "dual_gap_") else "unknown"
            accuracy = model.score(X_test, y_test)
            print(f"{name:<8} {method:<34} {accuracy:8.4f} {wall:7.1f} {cpu:7.1f}  {gap}", flush=True)


if __name__ == "__main__":
    main()
