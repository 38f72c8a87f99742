"""Cost of one iteration against the number of rows, of directions and of neurons: linear in each.

An iteration is one quasi-Newton step of the descent, and ten gradient steps of the search from as many starts
as there are neurons. (The way of the best few of them to the top is not linear in the directions.) Prints CPU
seconds and the slopes of straight lines fitted to their logarithms, where 1 is linear, and writes a plot.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import process_time

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from skcvxbn.losses import LinearQuadratic
from skcvxbn.solvers import Problem
from skcvxbn.solvers.ascent import Rounded
from skcvxbn.solvers.descent import descend
from skcvxbn.solvers.search import search

BASE = {"rows": 8_000, "directions": 128, "neurons": 128}
SWEEPS = {
    "rows": (2_000, 4_000, 8_000, 16_000, 32_000),
    "directions": (64, 128, 256, 512, 1024),
    "neurons": (32, 64, 128, 256, 512),
}
DESCENT_STEPS, SEARCH_STEPS = 10, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outputs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3, help="measurements, of which the median counts")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads")
    parser.add_argument("--plot", type=Path, default=Path("scaling.png"))
    args = parser.parse_args()
    measured: dict[str, NDArray] = {}
    print("| sweep | size | descent, CPU s | search, CPU s |\n| --- | --- | --- | --- |")
    with threadpool_limits(args.threads):
        for swept, sizes in SWEEPS.items():
            times = []
            for size in sizes:
                times.append(_measure(**{**BASE, swept: size}, outputs=args.outputs, repeats=args.repeats))
                print(f"| {swept} | {size} | {times[-1][0]:.4f} | {times[-1][1]:.4f} |", flush=True)
            measured[swept] = np.array(times)
    print("\n| sweep | slope, descent | slope, search |\n| --- | --- | --- |")
    for swept, sizes in SWEEPS.items():
        slopes = np.polyfit(np.log(sizes), np.log(measured[swept]), 1)[0]
        print(f"| {swept} | {slopes[0]:.2f} | {slopes[1]:.2f} |")
    _plot(measured, args.plot)


def _measure(*, rows: int, directions: int, neurons: int, outputs: int, repeats: int) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    A = np.linalg.qr(rng.standard_normal((rows, directions)))[0]
    Y = rng.standard_normal((rows, outputs))
    problem = Problem(A, LinearQuadratic(Y / np.linalg.norm(Y), 1.0), 1e-3, False)
    S = rng.standard_normal((directions, neurons)) / np.sqrt(directions)
    V = rng.standard_normal((neurons, outputs)) / np.sqrt(neurons * outputs)
    R = problem.dual_point(S, V)
    descents, searches = [], []
    for _ in range(repeats):
        start = process_time()
        descend(problem, S, V, widths=(0.1,), n_steps=DESCENT_STEPS)
        middle = process_time()
        search(A, R, S, V, stages=(Rounded((0.1,), SEARCH_STEPS),))
        descents.append((middle - start) / DESCENT_STEPS)
        searches.append(process_time() - middle)
    return float(np.median(descents)), float(np.median(searches))


def _plot(measured: dict[str, NDArray], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(SWEEPS), figsize=(12, 4), sharey=True)
    for ax, (swept, sizes) in zip(axes, SWEEPS.items(), strict=True):
        for values, name in zip(measured[swept].T, ("descent", "search"), strict=True):
            ax.plot(sizes, values, "o-", label=name)
            ax.plot(sizes, values[0] * np.array(sizes) / sizes[0], "k:", linewidth=1)
        others = ", ".join(f"{value} {name}" for name, value in BASE.items() if name != swept)
        ax.set(xscale="log", yscale="log", xlabel=swept, title=others)
        ax.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        ax.set_xticks([], minor=True)
    axes[0].set_ylabel("CPU seconds a step (dotted: linear)")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
