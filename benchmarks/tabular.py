"""Estimators side by side on tabular data: error, log loss and seconds of every set, then ranks and wins.

Seconds are those of fit and predict, once as CPU time of the process and once by the clock. A repeat is a
random split; where `load` keeps an official split, the repeats differ only in the order of the training rows
and in the seed of the estimator. `mlp-tuned` chooses its penalty by cross-validation on the training rows.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from _tabular_methods import OURS, PEERS, candidates, seeded
from _tabular_report import Result, append, print_header, print_row, print_summary, read
from _tabular_sets import DATA_HELP, Split, is_regression, loader_of, sets_of, split
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

TASKS = ("classification", "regression")
# Sets of images are no tables, and large: they are used when they are named.
IMAGES = {"cifar10", "mnist"}


def main() -> None:
    args = _arguments()
    stored = {} if args.peers is None else read(args.peers)
    if stored:
        print(f"{len(stored)} results are stored: those of peers are taken from {args.peers}")
    print(f"threads: {args.threads}, no further repeat after {args.budget:g} CPU seconds", end="")
    print("" if args.rows is None else f", at most {args.rows} training rows")
    with threadpool_limits(args.threads):
        for task in args.tasks:
            results = _compare(task, args, stored)
            if results:
                print_summary(results, PEERS)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    methods = [*OURS, *PEERS]
    parser.add_argument("--data", type=Path, help=DATA_HELP)
    parser.add_argument("--sets", nargs="+", help="names of data sets (default: all but mnist and cifar10)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--rows", type=int, help="largest number of training rows (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="number of splits and seeds, from 0")
    parser.add_argument(
        "--budget",
        type=float,
        default=60,
        help="CPU seconds of a method on a set after which it gets no further repeat there",
    )
    parser.add_argument(
        "--beta-ratios", type=float, nargs="+", default=[], help="one row each for the library's estimators"
    )
    parser.add_argument(
        "--parameters",
        type=_parameters,
        default={},
        help="further parameters of the library's estimators, as a JSON object",
    )
    parser.add_argument(
        "--out", type=Path, help="file that new results are appended to, one JSON object a line"
    )
    parser.add_argument(
        "--peers",
        type=Path,
        help="such a file: peers that have results there (this machine's) are not run again",
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of BLAS and OpenMP")
    return parser.parse_args()


def _parameters(text: str) -> dict[str, Any]:
    try:
        parameters = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(parameters, dict):
        raise argparse.ArgumentTypeError(f"not a JSON object: {text}")
    return parameters


def _compare(task: str, args: argparse.Namespace, stored: dict[tuple, Result]) -> list[Result]:
    """Run every method on every set of the task, a row each as soon as it is known."""
    regression = task == "regression"
    models = candidates(
        args.methods, regression=regression, ratios=args.beta_ratios, parameters=args.parameters
    )
    load = loader_of(args.data)
    names = args.sets or [name for name in sets_of(args.data) if name not in IMAGES]
    width = max(map(len, models))
    results: list[Result] = []
    print_header(task, width)
    for name in names:
        splits = [split(load, name, args.rows, seed) for seed in range(args.repeats)]
        if is_regression(splits[0][1]) != regression:
            continue
        for method, model in models.items():
            # Stored results have the names of peers: a row of ours is always run.
            known = stored if method in PEERS else {}
            runs = _repeats(name, task, method, model, splits, known, args)
            reused = sum(run.key in known for run in runs)
            print_row(runs, width, f"{reused} stored" if reused else "")
            results += runs
    return results


def _repeats(
    name: str,
    task: str,
    method: str,
    model: BaseEstimator,
    splits: list[Split],
    known: dict[tuple, Result],
    args: argparse.Namespace,
) -> list[Result]:
    """One result a split, fewer where the budget is spent."""
    runs: list[Result] = []
    for seed, rows in enumerate(splits):
        if sum(run.cpu_seconds for run in runs) > args.budget:
            break
        key = (name, method, seed, len(rows[0]), args.threads)
        if key in known:
            runs.append(known[key])
            continue
        measured = _measure(seeded(model, seed), rows)
        run = Result(name, task, method, seed, len(rows[0]), *measured, args.threads)
        if args.out:
            append(args.out, run)
        runs.append(run)
    return runs


def _measure(model: BaseEstimator, rows: Split) -> tuple[float, float, float, float, int]:
    """Score, log loss, CPU and wall seconds, and the number of ConvergenceWarnings of one fit."""
    X_train, y_train, X_test, y_test = rows
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        cpu, wall = process_time(), perf_counter()
        prediction = model.fit(X_train, y_train).predict(X_test)
        cpu, wall = process_time() - cpu, perf_counter() - wall
    others = [warning for warning in caught if not issubclass(warning.category, ConvergenceWarning)]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if is_regression(y_train):
        score, log_loss = np.sqrt(np.mean((prediction - y_test) ** 2)), np.nan
    else:
        score = np.mean(prediction == y_test)
        log_loss = _log_loss(model, X_test, y_test) if hasattr(model, "predict_proba") else np.nan
    return float(score), float(log_loss), cpu, wall, len(caught) - len(others)


def _log_loss(model: BaseEstimator, X: NDArray, y: NDArray) -> float:
    """Mean of -log p of the right class, 0 for a class without training rows; p is cut off at rounding."""
    hits = model.classes_ == y[:, None]
    probability = (model.predict_proba(X) * hits).sum(axis=1)
    return -np.mean(np.log(np.maximum(probability, np.finfo(np.float64).eps)))


if __name__ == "__main__":
    main()
