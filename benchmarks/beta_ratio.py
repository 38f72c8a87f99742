"""The measurement behind the default `beta_ratio`: test error of each ratio, next to a multilayer perceptron.

Every data set has at most `--rows` training rows, drawn at random; targets of a regression are
standardised with the training rows, so that its error is the RMSE in units of their standard deviation.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from time import perf_counter

import numpy as np
from _tabular_sets import DATA_HELP, Split, is_regression, loader_of, sets_of, split
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from skcvxbn import ConvexBNClassifier, ConvexBNRegressor


def main() -> None:
    args = _arguments()
    load = loader_of(args.data)
    names = args.sets or sets_of(args.data)
    methods = [f"{ratio:g}" for ratio in args.ratios] + ["MLP"]
    errors = np.empty((len(names), len(methods)))

    print(f"at most {args.rows} training rows, medians of {args.repeats} splits, BLAS threads {args.threads}")
    print(f"{'data set':<20} {'beta_ratio':>10} {'error':>8} {'seconds':>8} {'neurons':>8} {'rel. gap':>9}")
    with threadpool_limits(args.threads):
        for i, name in enumerate(names):
            splits = [split(load, name, args.rows, seed) for seed in range(args.repeats)]
            for j, method in enumerate(methods):
                runs = [_run(method, rows, seed, args.max_iter) for seed, rows in enumerate(splits)]
                error, seconds, neurons, gap = np.median(runs, axis=0)
                errors[i, j] = error
                row = f"{name:<20} {method:>10} {error:8.4f} {seconds:8.2f} {neurons:8.0f} {gap:9.1e}"
                print(row, flush=True)
    _print_summary(args.ratios, errors)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help=DATA_HELP)
    parser.add_argument("--sets", nargs="+", help="names of data sets (default: all)")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.001, 0.003, 0.01, 0.03, 0.1])
    parser.add_argument("--rows", type=int, default=1000, help="largest number of training rows")
    parser.add_argument("--max-iter", type=int, default=3, help="rounds of each fit")
    parser.add_argument("--repeats", type=int, default=1, help="number of splits and seeds, from 0")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads")
    return parser.parse_args()


def _run(method: str, rows: Split, seed: int, max_iter: int) -> tuple[float, float, float, float]:
    """Test error, seconds, neurons and relative gap of one fit."""
    X_train, y_train, X_test, y_test = rows
    regression = is_regression(y_train)
    model = _model(method, regression, seed, max_iter)
    with warnings.catch_warnings():
        # Stopping at max_iter is the set-up of this benchmark; the gap is in the table.
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = perf_counter()
        model.fit(X_train, y_train)
        seconds = perf_counter() - start
    miss = model.predict(X_test) - y_test
    error = np.sqrt(np.mean(miss**2)) if regression else np.mean(miss != 0)
    if method == "MLP":
        return float(error), seconds, model[-1].hidden_layer_sizes[0], np.nan
    return float(error), seconds, model.n_neurons_, model.dual_gap_ / model.objective_


def _model(method: str, regression: bool, seed: int, max_iter: int) -> BaseEstimator:
    if method == "MLP":
        mlp = MLPRegressor if regression else MLPClassifier
        return make_pipeline(StandardScaler(), mlp(random_state=seed))
    convex = ConvexBNRegressor if regression else ConvexBNClassifier
    return convex(beta_ratio=float(method), max_iter=max_iter, random_state=seed)


def _print_summary(ratios: list[float], errors: NDArray) -> None:
    """Rank the ratios among themselves on every set (1 is best, ties share), and count wins and ties."""
    ours, mlp = errors[:, :-1], errors[:, -1:]
    ranks = rankdata(ours, axis=1).mean(axis=0)
    wins, ties = (ours < mlp).sum(axis=0), (ours == mlp).sum(axis=0)
    print(f"\n{'beta_ratio':>10} {'mean rank':>10} {'wins against the MLP':>21} {'ties':>5} {'sets':>5}")
    for ratio, rank, win, tie in zip(ratios, ranks, wins, ties, strict=True):
        print(f"{ratio:10g} {rank:10.2f} {win:21d} {tie:5d} {len(errors):5d}")


if __name__ == "__main__":
    main()
