"""Results of the tabular benchmark: their file and their tables."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

CELLS = "{:>9} {:>9} {:>10} {:>10} {:>8} {:>7}"
SUMMARY = "{:>9} {:>9} {:>10} {:>10}"


@dataclass(frozen=True)
class Result:
    """One fit: `score` is an accuracy or an RMSE in units of the target's standard deviation."""

    data: str
    task: str
    method: str
    seed: int
    n_rows: int
    score: float
    log_loss: float
    cpu_seconds: float
    wall_seconds: float
    n_warnings: int
    threads: int
    machine: str = field(default_factory=platform.node)

    @property
    def key(self) -> tuple[str, str, int, int, int]:
        """What a stored result has to agree in to stand for a new one."""
        return self.data, self.method, self.seed, self.n_rows, self.threads


def read(file: Path) -> dict[tuple, Result]:
    """Stored results by their key; seconds of another machine would not compare."""
    with file.open() as stream:
        results = [Result(**json.loads(line)) for line in stream]
    machines = {result.machine for result in results} - {platform.node()}
    if machines:
        raise ValueError(f"{file} has results of other machines: {', '.join(sorted(machines))}.")
    return {result.key: result for result in results}


def append(file: Path, result: Result) -> None:
    with file.open("a") as stream:
        stream.write(json.dumps(asdict(result)) + "\n")


def print_header(task: str, width: int) -> None:
    score = "accuracy" if task == "classification" else "RMSE/std"
    cells = CELLS.format(score, "log loss", "CPU s", "wall s", "warnings", "repeats")
    print(f"\n{task}: means over the repeats, warnings are ConvergenceWarnings of all of them")
    print(f"{'data set':<20} {'method':<{width}} {cells}")


def print_row(results: list[Result], width: int, note: str) -> None:
    first = results[0]
    columns = [(r.score, r.log_loss, r.cpu_seconds, r.wall_seconds) for r in results]
    score, log_loss, cpu, wall = np.mean(columns, axis=0)
    cells = CELLS.format(
        f"{score:.4f}",
        f"{log_loss:.4f}",
        f"{cpu:.2f}",
        f"{wall:.2f}",
        sum(r.n_warnings for r in results),
        len(results),
    )
    print(f"{first.data:<20} {first.method:<{width}} {cells} {note}".rstrip(), flush=True)


def print_summary(results: list[Result], peers: Iterable[str]) -> None:
    """Compare the methods on every set over the seeds they have in common, by score and by log loss."""
    regression = results[0].task == "regression"
    methods = list(dict.fromkeys(result.method for result in results))
    means = _common_means(results, methods)
    score = "RMSE/std" if regression else "accuracy"
    _print_ranking(score, means, 0, -1 if regression else 1, methods, peers)
    probabilistic = ~np.isnan(means[:, :, 1]).any(axis=0)
    if probabilistic.any():
        named = [method for method, has in zip(methods, probabilistic, strict=True) if has]
        _print_ranking("log loss", means[:, probabilistic], 1, -1, named, peers)


def _common_means(results: list[Result], methods: list[str]) -> NDArray:
    """Mean score, log loss, CPU and wall seconds by set and method, over the seeds all methods have."""
    runs = {(r.data, r.method, r.seed): r for r in results}
    sets = list(dict.fromkeys(result.data for result in results))
    means = np.empty((len(sets), len(methods), 4))
    for i, data in enumerate(sets):
        seeds = set.intersection(*({s for d, m, s in runs if (d, m) == (data, method)} for method in methods))
        for j, method in enumerate(methods):
            own = [runs[data, method, seed] for seed in sorted(seeds)]
            rows = [(r.score, r.log_loss, r.cpu_seconds, r.wall_seconds) for r in own]
            means[i, j] = np.mean(rows, axis=0)
    return means


def _print_ranking(
    title: str, means: NDArray, column: int, sign: int, methods: list[str], peers: Iterable[str]
) -> None:
    values = sign * means[:, :, column]
    ranks = rankdata(-values, axis=1).mean(axis=0)
    shown = [peer for peer in peers if peer in methods]
    width = max(map(len, methods))
    print(f"\nby {title}, {len(means)} sets, seeds that all methods have; wins:losses against the peers")
    head = SUMMARY.format("mean", "mean rank", "CPU s", "wall s")
    print(f"{'method':<{width}} {head}" + _columns(shown))
    for j, method in enumerate(methods):
        totals = means[:, j, 2:].sum(axis=0)
        cells = [f"{means[:, j, column].mean():.4f}", f"{ranks[j]:.2f}", *(f"{t:.1f}" for t in totals)]
        for peer in shown:
            difference = values[:, j] - values[:, methods.index(peer)]
            cells.append("" if peer == method else f"{(difference > 0).sum()}:{(difference < 0).sum()}")
        print(f"{method:<{width}} {SUMMARY.format(*cells[:4])}" + _columns(cells[4:]))


def _columns(cells: list[str]) -> str:
    return "".join(f" {cell:>10}" for cell in cells).rstrip()
