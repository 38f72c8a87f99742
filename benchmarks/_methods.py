"""The library and the peers that solve program (P), each as a `Run`."""

from __future__ import annotations

import io
import os
import re
import resource
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from _first_order import Clock, Network, Run
from _problems import Case
from numpy.typing import NDArray

from skcvxbn.solvers import Options, Problem, solve
from skcvxbn.solvers.cvxpy_reference import solve_cvxpy

_OBJECTIVE, _GAP = re.compile(r"objective\s+(\S+)"), re.compile(r"gap\s+(\S+)")
# An interior point method on more entries of arrangements than this needs several GiB and many minutes.
CVXPY_ENTRIES = 300_000
# adelie holds the constraints of every arrangement, twice.
ADELIE_BYTES = 4 * 2**30


def library(case: Case, *, tol: float, seed: int, limit: float) -> Run:
    """The default solver; its progress is what it prints, at the time it prints it."""
    return _library(f"skcvxbn, tol {tol:g}", case.training, None, tol, seed, limit)


def library_sampled(case: Case, patterns: NDArray, *, seed: int, limit: float) -> Run:
    """The library over given arrangements, in a process of its own: compiled code defers an interrupt."""
    name = f"(P) {patterns.shape[1]} arrangements, skcvxbn"
    answer = _in_process(lambda: _library(name, case.training, patterns, 1e-6, seed, np.inf), limit)
    return Run(name, note="over the limit") if answer is None else answer[0]


def _library(
    name: str, problem: Problem, patterns: NDArray | None, tol: float, seed: int, limit: float
) -> Run:
    run = Run(name)
    options = Options(
        tol=tol,
        max_iter=100,
        max_neurons=None,
        search_starts=512,
        rng=np.random.RandomState(seed),
        verbose=1,
    )
    scale = float(np.vdot(problem.zero.R, problem.zero.R))
    clock = Clock()
    progress = _Progress(run, clock, scale)
    try:
        with redirect_stdout(progress), _cpu_limit(limit) as interrupted:
            solution = solve(problem, options, patterns=patterns)
    except KeyboardInterrupt:
        # A solver that keeps its best network when interrupted does not come here.
        run.note = "over the limit"
        return run
    run.seconds.append(clock())
    run.networks.append((solution.S, solution.V))
    run.objectives.append(solution.objective)
    run.stated.append((solution.objective - solution.lower_bound) / solution.objective)
    run.dual_point = solution.R.astype(np.float64)
    if interrupted:
        run.note = "stopped at the limit"
    return run


class _Progress(io.TextIOBase):
    """Standard output that notes when each round was reported."""

    def __init__(self, run: Run, clock: Clock, scale: float) -> None:
        self.run, self.clock, self.scale = run, clock, scale

    def _note(self, objective: float, stated: float) -> None:
        self.run.seconds.append(self.clock())
        self.run.objectives.append(objective)
        self.run.stated.append(stated)

    def write(self, text: str) -> int:
        run, objective, gap = self.run, _OBJECTIVE.search(text), _GAP.search(text)
        if objective:
            # What is reached is printed before the search for the gap: until then the last one holds.
            self._note(float(objective[1]) * self.scale, run.stated[-1] if run.stated else 1.0)
        if gap:
            self._note(run.objectives[-1], float(gap[1]))
        return len(text)


@contextmanager
def _cpu_limit(seconds: float) -> Iterator[list[bool]]:
    """Interrupt the block, as Ctrl-C does, once it has used so many CPU seconds; the list tells whether."""
    interrupted: list[bool] = []

    def interrupt(*_: object) -> None:
        interrupted.append(True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, min(seconds, 1e6))
    try:
        yield interrupted
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def gates_and_patterns(case: Case, n_arrangements: int) -> tuple[NDArray, NDArray]:
    """Gaussian gates in whitened coordinates, one for each distinct arrangement of theirs."""
    A = case.problem.A
    gates = np.random.default_rng(42).standard_normal((A.shape[1], n_arrangements))
    patterns = A @ gates > 0
    _, first = np.unique(np.packbits(patterns, axis=0), axis=1, return_index=True)
    first = first[patterns[:, first].any(axis=0)]
    return gates[:, first], patterns[:, first]


def clarabel(case: Case, patterns: NDArray, *, limit: float) -> Run:
    """CLARABEL through cvxpy, in a process that the operating system ends at the limit."""
    run = Run(f"(P) {patterns.shape[1]} arrangements, cvxpy and CLARABEL")
    if patterns.size * case.problem.n_outputs > CVXPY_ENTRIES:
        run.note = "over the limit (too large to try)"
        return run

    def work() -> tuple[Network, float]:
        problem = case.problem
        result = solve_cvxpy(problem.A, problem.loss, problem.beta, patterns, fit_intercept=False)
        stated = (result.objective - result.lower_bound) / result.objective
        return (result.S, result.V), stated

    answer = _in_process(work, limit)
    if answer is None:
        run.note = "over the limit"
        return run
    (network, stated), seconds = answer
    run.seconds, run.networks, run.stated = [seconds], [network], [stated]
    return run


def _in_process(work: Callable[[], Any], limit: float) -> tuple[Any, float] | None:
    """Result and CPU seconds of `work`, or None where it used more than `limit` of them."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_limited, args=(work, sender, limit))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()


def _limited(work: Callable[[], Any], sender: Connection, limit: float) -> None:
    start = process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(start + limit) + 1, -1))
    result = work()
    sender.send((result, process_time() - start))


def peer(
    name: str, python: str | None, case: Case, gates: NDArray, patterns: NDArray, *, limit: float
) -> Run:
    """adelie or pyscnn, by the script of that name, in the environment of the given interpreter."""
    run = Run(f"(P) {patterns.shape[1]} arrangements, {name}")
    problem = case.problem
    if python is None:
        run.note = "not installed"
        return run
    if 16 * patterns.size * problem.A.shape[1] > ADELIE_BYTES:
        run.note = "over the limit (too large to try)"
        return run
    script = Path(__file__).with_name(f"peer_{name}.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as folder:
        source, destination = Path(folder) / "problem.npz", Path(folder) / "solution.npz"
        np.savez(
            source,
            A=problem.A,
            Y=problem.loss.target,
            beta=problem.beta,
            gates=gates,
            patterns=patterns,
            limit=limit,
        )
        command = [python, str(script), str(source), str(destination)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if not destination.exists():
            # The operating system ends a process at its limit of CPU seconds by this signal.
            over = result.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
            run.note = "over the limit" if over else f"failed: {result.stderr.strip().splitlines()[-1]}"
            return run
        answer = np.load(destination)
        run.seconds, run.networks = [float(answer["seconds"])], [(answer["S"], answer["V"])]
    return run
