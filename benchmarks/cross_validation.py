"""What the search of a weight decay costs, in fits at the weight decay chosen.

Twenty ratios and five folds at one shrinkage, by the estimators with cross-validation, next to one fit of the
plain estimator at the same `tol`, and to one at `--tol`. CPU seconds; without `--data`, on embedded sets.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from time import process_time

from _tabular_sets import DATA_HELP, is_regression, loader_of, sets_of, split
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from skcvxbn import ConvexBNClassifier, ConvexBNClassifierCV, ConvexBNRegressor, ConvexBNRegressorCV


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help=DATA_HELP)
    parser.add_argument("--sets", nargs="+", help="names of data sets (default: all but images)")
    parser.add_argument("--tol", type=float, default=1e-3, help="tolerance of the second fit")
    args = parser.parse_args()
    load = loader_of(args.data)
    names = args.sets or [name for name in sets_of(args.data) if name not in ("mnist", "cifar10")]
    print("| data | search | fit | ratio | gap | fit to --tol | ratio | gap |\n" + "| --- " * 8 + "|")
    for name in names:
        rows = split(load, name, None, 0)
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            print(_row(name, *rows[:2], args.tol), flush=True)


def _row(name: str, X, y, tol: float) -> str:
    if is_regression(y):
        searching, plain, shrinkage = ConvexBNRegressorCV, ConvexBNRegressor, 0.0
    else:
        searching, plain, shrinkage = ConvexBNClassifierCV, ConvexBNClassifier, 0.3
    search = searching(beta_ratios=20, shrinkage=shrinkage, refit=False, random_state=0)
    seconds = _seconds(search, X, y)
    cells = [f"{name} {X.shape}", f"{seconds:.1f}"]
    for accuracy in (search.tol, tol):
        fit = plain(beta_ratio=search.beta_ratio_, shrinkage=shrinkage, tol=accuracy, random_state=0)
        own = _seconds(fit, X, y)
        cells += [f"{own:.1f}", f"{seconds / own:.1f}", f"{fit.dual_gap_ / fit.objective_:.0e}"]
    return f"| {' | '.join(cells)} |"


def _seconds(model: BaseEstimator, X, y) -> float:
    start = process_time()
    model.fit(X, y)
    return process_time() - start


if __name__ == "__main__":
    main()
