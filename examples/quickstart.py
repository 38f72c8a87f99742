"""Quickstart: networks trained to a stated gap, next to scikit-learn's MLP.

    python examples/quickstart.py [picture.png]

A regression (diabetes) and a classification (breast cancer) search `beta_ratio` with GridSearchCV; digits,
with ten outputs, are cut to their leading singular directions in a Pipeline and fitted by the default
parameters. The picture (default: quickstart.png) needs matplotlib.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skcvxbn import ConvexBNClassifier, ConvexBNRegressor, SVDTruncation

COLUMNS = "{:<50} {:>6} {:>8} {:>8} {:>11} {:>8}"
GRID = [0.5, 0.3, 0.2, 0.1, 0.05]


def relative_gap(model: Any, X: Any = None, y: Any = None) -> float:
    """Gap of a fitted pipeline, in the form of a scorer: the objective is at most this share too high."""
    network = model[-1]
    return network.dual_gap_ / network.objective_


def search(pipeline: Pipeline, score: str) -> GridSearchCV:
    """Grid over the weight decay, in units of the one that leaves no neuron; a loose tol is enough here."""
    name = pipeline.steps[-1][0]
    return GridSearchCV(
        pipeline,
        {f"{name}__beta_ratio": GRID},
        cv=3,
        scoring={"score": score, "gap": relative_gap},
        refit="score",
    )


def compare(title: str, data: Any, models: dict[str, Any], *, stratify: bool) -> dict[str, Any]:
    """Fit the models on the same rows and print a line for each; return them with their scores."""
    X, y = data
    rows = train_test_split(X, y, test_size=0.3, random_state=0, stratify=y if stratify else None)
    X_train, X_test, y_train, y_test = rows
    print(f"\n{title}: {X_train.shape[0]} rows x {X_train.shape[1]} features, {len(X_test)} held out")
    notes = []
    for name, model in models.items():
        start = time.perf_counter()
        with warnings.catch_warnings():
            if isinstance(model, GridSearchCV):
                # One warning a fit would bury the table: their gaps are summed up below it instead.
                warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(X_train, y_train)
        seconds = time.perf_counter() - start
        score = model.score(X_test, y_test)
        print(COLUMNS.format(name, f"{score:.3f}", f"{seconds:.1f}", *size_and_gap(model)), flush=True)
        if isinstance(model, GridSearchCV):
            ((_, ratio),) = model.best_params_.items()
            gaps = [model.cv_results_[f"split{fold}_test_gap"].max() for fold in range(model.n_splits_)]
            notes.append(f"  beta_ratio={ratio} chosen; worst relative gap of the search {max(gaps):.0e}")
    print("\n".join(notes), end="\n" if notes else "")
    return models


def size_and_gap(model: Any) -> tuple[str, ...]:
    """Neurons, objective and relative gap of a fitted model, as far as it knows them."""
    model = getattr(model, "best_estimator_", getattr(model, "regressor_", model))
    last = model[-1]
    if hasattr(last, "objective_"):
        return str(last.n_neurons_), f"{last.objective_:.5g}", f"{relative_gap(model):.0e}"
    return str(last.hidden_layer_sizes[0]), "-", "unknown"


def scaled_mlp(mlp: Any) -> Any:
    """Give an MLP the scaling it needs, of the target too."""
    pipeline = make_pipeline(StandardScaler(), mlp)
    if isinstance(mlp, MLPRegressor):
        return TransformedTargetRegressor(pipeline, transformer=StandardScaler())
    return pipeline


def main(picture: str) -> None:
    print(COLUMNS.format("model", "score", "seconds", "neurons", "objective", "gap"))
    regression = make_pipeline(ConvexBNRegressor(tol=1e-2, random_state=0))
    diabetes = compare(
        "diabetes, regression (score: R2)",
        load_diabetes(return_X_y=True),
        {
            f"ConvexBNRegressor, {len(GRID)} x 3 fits and 1": search(regression, "r2"),
            "MLPRegressor, 1 fit": scaled_mlp(MLPRegressor(max_iter=300, random_state=0)),
        },
        stratify=False,
    )
    classification = make_pipeline(
        StandardScaler(),
        SVDTruncation(n_components=10, output="scores"),
        ConvexBNClassifier(tol=1e-2, random_state=0),
    )
    compare(
        "breast cancer, two classes (score: accuracy)",
        load_breast_cancer(return_X_y=True),
        {
            f"SVDTruncation, ConvexBNClassifier, {len(GRID)} x 3 and 1": search(classification, "accuracy"),
            "MLPClassifier, 1 fit": scaled_mlp(MLPClassifier(max_iter=300, random_state=0)),
        },
        stratify=True,
    )
    digits = make_pipeline(
        SVDTruncation(n_components=0.9, output="scores"),
        ConvexBNClassifier(random_state=0),
    )
    compare(
        "digits, ten classes (score: accuracy)",
        load_digits(return_X_y=True),
        {
            "SVDTruncation, ConvexBNClassifier, 1 fit": digits,
            "MLPClassifier, 1 fit": scaled_mlp(MLPClassifier(max_iter=300, random_state=0)),
        },
        stratify=True,
    )
    try:
        draw(picture, next(iter(diabetes.values())))
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        print("\nThe picture was skipped: it needs matplotlib (pip install matplotlib).")
    else:
        print(f"\nThe picture is in {picture}.")


def draw(path: str, grid: GridSearchCV) -> None:
    """Draw a global optimum with its kinks, a gap that closes, and the score along the weight decay."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 12}
    with rc_context({**style, "axes.titlelocation": "left"}):
        figure = Figure(figsize=(11, 5.4), layout="constrained")
        axes = figure.subplot_mosaic([["function", "gap"], ["function", "path"]], width_ratios=[1.7, 1])
        draw_function(axes["function"])
        draw_gap(axes["gap"])
        draw_path(axes["path"], grid)
        figure.savefig(path, dpi=110)


def draw_function(axes: Any) -> None:
    """One feature: the network is a broken line, and the arrangements are few enough for a proof."""
    rng = np.random.RandomState(3)
    x = np.sort(rng.uniform(-3, 3, 60))
    y = np.sin(2 * x) * np.exp(-(x**2) / 6) + 0.25 * np.abs(x) + 0.12 * rng.standard_normal(60)
    X, line = x[:, None], np.linspace(-3, 3, 601)

    model = ConvexBNRegressor(beta_ratio=0.003, tol=1e-8, random_state=0).fit(X, y)
    proof = ConvexBNRegressor(beta_ratio=0.003, arrangements="enumerated").fit(X, y)
    for seed in range(3):
        mlp = MLPRegressor(solver="lbfgs", max_iter=300, random_state=seed)
        with warnings.catch_warnings():
            # The MLP stops where it is told to; that it has not converged is what the picture shows.
            warnings.simplefilter("ignore", ConvergenceWarning)
            outputs = mlp.fit(X, y).predict(line[:, None])
        label = "MLPRegressor, 3 seeds" if seed == 0 else None
        axes.plot(line, outputs, color="#d98a3d", lw=1.2, alpha=0.75, label=label)

    network = model.network_
    hinge = network.running_mean - network.bn_bias / network.bn_weight * np.sqrt(network.running_var)
    kinks = np.unique(np.round(hinge / network.hidden_weights[0], 3))
    for kink in kinks:
        axes.axvline(kink, color="#1f4e9c", lw=0.8, alpha=0.2, zorder=0)
    axes.scatter(x, y, s=16, color="0.45", label="data", zorder=2)
    optimum = f"global optimum, {model.n_neurons_} neurons"
    axes.plot(line, model.predict(line[:, None]), color="#1f4e9c", lw=2.6, label=optimum)
    bends = model.predict(kinks[:, None])
    axes.plot(kinks, bends, "o", color="white", mec="#1f4e9c", mew=1.8, ms=7, label="its kinks")
    axes.set(xlim=(-3.05, 3.05), xlabel="x", ylabel="f(x)")
    axes.set_title("A global optimum, kink by kink", weight="bold")
    numbers = f"objective {model.objective_:.5f}\nlower bound {proof.lower_bound_:.5f} ({proof.certificate_})"
    axes.text(0.98, 0.02, numbers, transform=axes.transAxes, ha="right", va="bottom", color="#1f4e9c")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.1))


def draw_gap(axes: Any) -> None:
    """Stop the same fit after 1, 2, ... rounds: objective and lower bound close on the optimum."""
    X, y = load_diabetes(return_X_y=True)
    bounds = []
    with warnings.catch_warnings():
        # All fits but the last are stopped early on purpose.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for n_rounds in range(1, 9):
            model = ConvexBNRegressor(beta_ratio=0.1, max_iter=n_rounds, random_state=0).fit(X, y)
            bounds.append((model.objective_, model.lower_bound_))
            if model.dual_gap_ <= model.tol * model.objective_:
                break
    upper, lower = 100 * (np.array(bounds).T / bounds[-1][0] - 1)
    rounds = np.arange(1, len(bounds) + 1)
    axes.fill_between(rounds, lower, upper, color="#1f4e9c", alpha=0.12, lw=0)
    axes.plot(rounds, upper, "o-", color="#1f4e9c", label="objective")
    axes.plot(rounds, lower, "o-", color="#2a9d8f", label="lower bound (estimated)")
    axes.set(xticks=rounds, xlabel="rounds", ylabel="% of objective")
    axes.set_title("The gap closes (diabetes)", weight="bold")
    axes.legend(frameon=False, loc="lower right")


def draw_path(axes: Any, grid: GridSearchCV) -> None:
    """Score of the grid search along the weight decay."""
    results = grid.cv_results_
    mean, spread = results["mean_test_score"], results["std_test_score"]
    axes.fill_between(GRID, mean - spread, mean + spread, color="#1f4e9c", alpha=0.12, lw=0)
    axes.plot(GRID, mean, "o-", color="#1f4e9c")
    axes.set_xscale("log")
    axes.set_xticks(GRID, [f"{ratio:g}" for ratio in GRID])
    axes.minorticks_off()
    axes.set(xlabel="beta_ratio", ylabel="R2, 3 folds")
    axes.set_title("One parameter to choose (diabetes)", weight="bold")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "quickstart.png")
