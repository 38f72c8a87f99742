"""Solvers side by side: the library, solvers of program (P), and training by gradient steps.

For every problem and weight decay a Markdown table is printed, and a plot of objective and gap against CPU
seconds is written. One function computes every objective; one search, from the same starts, computes every
gap: it is an estimate, and `above best bound` compares with the best of these bounds over all methods.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from _first_order import Run, adam, lbfgs
from _judge import best_of, judge, score, seconds_to
from _methods import clarabel, gates_and_patterns, library, library_sampled, peer
from _problems import RATIOS, Case, available, cases
from _report import Row, plot, print_table, write_json
from _torch_network import train
from threadpoolctl import threadpool_limits

METHODS = ("library", "sampled", "clarabel", "adelie", "pyscnn", "adam", "lbfgs", "torch")
LIBRARY = "skcvxbn"
# Adam's grid: neurons, steps and step sizes.
SMALL = {"widths": (100, 300), "steps": (250, 1000, 4000), "step_sizes": (0.01, 0.03, 0.1)}
# The optimum has hundreds of neurons below this share of beta_max, and training needs more of them.
WEAK_RATIO = 0.02
WEAK = {**SMALL, "widths": (300, 1000)}
LARGE = {"widths": (128, 384), "steps": (250, 1000, 4000), "step_sizes": (0.001, 0.003, 0.01)}
QUICK = {"widths": (100,), "steps": (250, 1000), "step_sizes": (0.03,)}


def main() -> None:
    args = _arguments()
    names = args.problems or available(args.data)
    if args.data is None:
        print("Left out without --data: california_housing, mnist, cifar10.\n")
    print(
        f"CPU seconds, {args.threads} BLAS thread, {platform.machine()}, median of {args.repeats} seed(s).",
        flush=True,
    )
    with threadpool_limits(args.threads):
        # What a first call pays once (lazy imports, thread pools) belongs to no method.
        library(next(cases("teacher", None, [50.0], [])), tol=1e-2, seed=0, limit=args.limit)
        for name in names:
            for case in cases(name, args.data, args.betas, args.ratios):
                _compare(case, args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", help="diabetes, teacher, digits; with --data also others")
    parser.add_argument("--data", type=Path, help="folder with a load.py, as for beta_ratio.py")
    parser.add_argument("--betas", type=float, nargs="+", help="weight decays, instead of the usual ones")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="betas by share of beta_max")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--tols", type=float, nargs="+", default=[1e-4], help="tolerances of the library")
    parser.add_argument("--repeats", type=int, default=1, help="number of seeds, from 0")
    parser.add_argument("--limit", type=float, default=120, help="CPU seconds of one method")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads")
    parser.add_argument("--quick", action="store_true", help="one step size, one width, 50 arrangements")
    parser.add_argument("--plots", type=Path, default=Path("solver_plots"), help="folder for the plots")
    parser.add_argument("--json", type=Path, help="file for the trajectories, one JSON object a line")
    for name in ("adelie", "pyscnn"):
        python = os.environ.get(f"{name.upper()}_PYTHON")
        text = f"interpreter that has {name} (default: ${name.upper()}_PYTHON)"
        parser.add_argument(f"--{name}-python", default=python, help=text)
    return parser.parse_args()


def _compare(case: Case, args: argparse.Namespace) -> None:
    rows: dict[str, Row] = {}
    for seed in range(args.repeats):
        # Tuned over a grid: what is shown is the best of each number of steps, by its final objective.
        grid = list(_tuned(case, args, seed))
        shown = list(_untuned(case, args, seed)) if seed == 0 else list(_library(case, args, seed))
        shown += [best_of(list(group)) for _, group in itertools.groupby(grid, key=lambda run: run.method)]
        adams = [run for run in grid if run.method.startswith("Adam on (N)")]
        verdicts = {id(verdict.run): verdict for verdict in judge(case, shown)}
        for run in shown:
            row = rows.setdefault(run.method, Row(run.method))
            row.add(run, verdicts.get(id(run)), *_times(run, shown, adams))
    print_table(case, list(rows.values()))
    if find_spec("matplotlib") is None:
        print("No plot: matplotlib is not installed.")
    else:
        plot(case, list(rows.values()), args.plots)
    if args.json:
        write_json(case, list(rows.values()), args.json)


def _times(run: Run, shown: list[Run], adams: list[Run]) -> tuple[float, float]:
    """This method's time to Adam's final objective over Adam's, and the library's to this one's over its."""
    if not run.objectives:
        return np.nan, np.nan
    ours = [other for other in shown if other.method.startswith(LIBRARY)]
    to_adam = np.nan
    if adams:
        final = best_of(adams).objectives[-1]
        to_adam = seconds_to([run], final) / seconds_to(adams, final)
    own = seconds_to(adams if run in adams else [run], run.objectives[-1])
    return to_adam, seconds_to(ours, run.objectives[-1]) / own


def _library(case: Case, args: argparse.Namespace, seed: int) -> Iterator[Run]:
    if "library" in args.methods:
        for tol in args.tols:
            yield score(case, library(case, tol=tol, seed=seed, limit=args.limit))


def _untuned(case: Case, args: argparse.Namespace, seed: int) -> Iterator[Run]:
    """The library and the solvers of (P), which have no step size."""
    yield from _library(case, args, seed)
    for n_arrangements in (50,) if args.quick else (50, 500):
        gates, patterns = gates_and_patterns(case, n_arrangements)
        if "sampled" in args.methods:
            yield score(case, library_sampled(case, patterns, seed=seed, limit=args.limit))
        if "clarabel" in args.methods:
            yield score(case, clarabel(case, patterns, limit=args.limit))
        for name in ("adelie", "pyscnn"):
            if name in args.methods:
                python = getattr(args, f"{name}_python")
                yield score(case, peer(name, python, case, gates, patterns, limit=args.limit))


def _tuned(case: Case, args: argparse.Namespace, seed: int) -> Iterator[Run]:
    """Every setting of the methods that have some, those of one name one after the other."""
    grid = QUICK if args.quick else _grid(case)
    usual = {"seed": seed, "limit": args.limit}
    batches = _batches(len(case.X))
    if "adam" in args.methods:
        for batch, n_steps in itertools.product(batches, grid["steps"]):
            for width, step_size in itertools.product(grid["widths"], grid["step_sizes"]):
                setting = {"width": width, "n_steps": n_steps, "step_size": step_size, "batch": batch}
                yield score(case, adam(case.problem, **setting, **usual))
    if "lbfgs" in args.methods:
        for width in grid["widths"]:
            yield score(case, lbfgs(case.problem, width=width, n_steps=grid["steps"][-1], **usual))
    if "torch" in args.methods:
        yield from _torch_runs(case, grid, usual)


def _grid(case: Case) -> dict[str, tuple]:
    if case.is_large:
        return LARGE
    return WEAK if case.beta_ratio < WEAK_RATIO else SMALL


def _batches(n_rows: int) -> tuple[int | None, ...]:
    """Rows a step; None is all. Few rows a step are the faster way from about a thousand on."""
    if n_rows < 1000:
        return (None,)
    return (None, 256) if n_rows < 10_000 else (1000,)


def _torch_runs(case: Case, grid: dict, usual: dict) -> Iterator[Run]:
    if find_spec("torch") is None:
        yield Run("SGD and Adam on the raw network", note="not installed")
        return
    # PyTorch sets itself up in the first call.
    train(case, "Adam", width=2, n_steps=2, step_size=0.01)
    n_steps, width = grid["steps"][-1], grid["widths"][0]
    batch = _batches(len(case.X))[-1]
    for optimizer in ("SGD", "Adam"):
        # SGD's step may be ten times as long: Adam's has the size of the parameters, SGD's of the gradient.
        factor = 10 if optimizer == "SGD" else 1
        for step_size in grid["step_sizes"]:
            setting = {"width": width, "n_steps": n_steps, "step_size": factor * step_size, "batch": batch}
            yield score(case, train(case, optimizer, **setting, **usual))


if __name__ == "__main__":
    main()
