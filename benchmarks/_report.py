"""The table and the plot of the solver benchmark."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from _first_order import Run
from _judge import Verdict
from _problems import Case

HEADER = (
    "method", "setting", "CPU s", "objective", "gap", "above best bound", "stated gap", "neurons",
    "time to Adam's best / Adam's", "skcvxbn's time to this / its own",
)  # fmt: skip


@dataclass
class Row:
    """One method: its runs with several seeds."""

    method: str
    runs: list[Run] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    to_adam: list[float] = field(default_factory=list)
    library_to_this: list[float] = field(default_factory=list)

    def add(self, run: Run, verdict: Verdict | None, to_adam: float, library_to_this: float) -> None:
        self.runs.append(run)
        if verdict is not None:
            self.verdicts.append(verdict)
            self.to_adam.append(to_adam)
            self.library_to_this.append(library_to_this)

    def cells(self, best_bound: float) -> list[str]:
        run = self.runs[0]
        setting = "; ".join(text for text in (run.setting, run.note) if text)
        if not self.verdicts:
            return [self.method, setting, *[""] * (len(HEADER) - 2)]
        objective = median(verdict.objective for verdict in self.verdicts)
        stated = [run.stated[-1] for run in self.runs if run.stated]
        return [
            self.method,
            setting,
            f"{median(run.seconds[-1] for run in self.runs):.3g}",
            f"{objective:.8g}",
            f"{median(verdict.gap for verdict in self.verdicts):.1e}",
            f"{(objective - best_bound) / objective:.1e}",
            f"{median(stated):.1e}" if stated else "none",
            f"{median(verdict.n_neurons for verdict in self.verdicts):.0f}",
            _ratio(median(self.to_adam)),
            _ratio(median(self.library_to_this)),
        ]


def _ratio(value: float) -> str:
    if np.isnan(value):
        return ""
    return f"{value:.3g}" if np.isfinite(value) else "never"


def best_bound(rows: list[Row]) -> float:
    return max((verdict.lower_bound for row in rows for verdict in row.verdicts), default=0.0)


def print_table(case: Case, rows: list[Row]) -> None:
    n_rows, rank = case.problem.A.shape
    bound = best_bound(rows)
    values = [verdict.objective for row in rows for verdict in row.verdicts]
    print(f"\n### {case.label} ({case.beta_ratio:.2g} of beta_max)\n")
    print(f"{n_rows} rows, {rank - 1} directions, {case.problem.n_outputs} outputs; ", end="")
    print(f"best objective {min(values, default=np.nan):.8g}, best lower bound {bound:.8g}.\n")
    print("| " + " | ".join(HEADER) + " |")
    print("| --- " * len(HEADER) + "|")
    for row in rows:
        print("| " + " | ".join(row.cells(bound)) + " |")
    print(flush=True)


def plot(case: Case, rows: list[Row], folder: Path) -> None:
    """Left the distance of the objective to the best bound, right the gaps that methods state themselves."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    bound = best_bound(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), sharey=True)
    styles = [(color, line) for line in ("-", "--") for color in plt.cm.tab10.colors]
    for row, (color, line) in zip(rows, styles, strict=False):
        run = row.runs[0]
        if not run.objectives:
            continue
        values = np.minimum.accumulate(run.objectives)
        style = {"color": color, "linestyle": line, "marker": "o", "markersize": 4}
        style["markevery"] = [-1] if len(values) > 1 else None
        left.plot(run.seconds, np.maximum(values / bound - 1, 1e-9), label=row.method, **style)
        # What a solver of (P) states is about its own program, not about the network's problem.
        if run.stated and not run.method.startswith("(P)"):
            seconds = run.seconds[-len(run.stated) :]
            right.plot(seconds, np.maximum(run.stated, 1e-9), label=f"{row.method}, stated", **style)
        for verdict in row.verdicts[:1]:
            right.plot(run.seconds[-1], max(verdict.gap, 1e-9), "x", color=color)
    left.set(xscale="log", yscale="log", xlabel="CPU seconds", ylabel="objective / best lower bound - 1")
    right.set(xscale="log", xlabel="CPU seconds", ylabel="relative gap (cross: by the common search)")
    left.legend(fontsize=6)
    figure.suptitle(case.label)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{case.name}_{case.problem.beta:.4g}.png", dpi=120)
    plt.close(figure)


def write_json(case: Case, rows: list[Row], file: Path) -> None:
    """Append one line a run, so that an interrupted benchmark loses nothing."""
    with file.open("a") as stream:
        for row in rows:
            for run in row.runs:
                entry = {
                    "problem": case.name,
                    "beta": case.problem.beta,
                    "method": run.method,
                    "setting": run.setting,
                    "note": run.note,
                    "seconds": run.seconds,
                    "objectives": run.objectives,
                    "stated_gaps": run.stated,
                    "best_bound": best_bound(rows),
                }
                stream.write(json.dumps(entry) + "\n")
