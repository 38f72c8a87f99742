"""Opponents that train the network itself in whitened coordinates, problem (N): Adam and L-BFGS.

Both minimise ``1/2 ||(A S)_+ V - Y||^2 + beta/2 (||S||^2 + ||V||^2)``, whose minimum over rescalings of the
neurons is the objective of (N). Targets are scaled to unit norm first, so that one step size means the same
on every problem.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import process_time

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from skcvxbn.losses import LinearQuadratic
from skcvxbn.solvers import Problem

Network = tuple[NDArray, NDArray]


@dataclass(eq=False)
class Run:
    """What one method did over time.

    `seconds` are CPU seconds; `networks` and `objectives` belong to them, or `networks` holds the answer
    alone. `stated` are the relative gaps that the method itself states, and `dual_point` is what the last of
    them comes from, where it is another one than the network's own. `setting` is what was tuned, `note` what
    went differently, or why there is no network.
    """

    method: str
    seconds: list[float] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)
    objectives: list[float] = field(default_factory=list)
    stated: list[float] = field(default_factory=list)
    dual_point: NDArray | None = None
    setting: str = ""
    note: str = ""


class Clock:
    """CPU seconds of the method alone: what is done to record it is left out."""

    def __init__(self) -> None:
        self._start = process_time()

    def __call__(self) -> float:
        return process_time() - self._start

    def restart_at(self, seconds: float) -> None:
        """Forget what happened since the clock showed `seconds`."""
        self._start = process_time() - seconds


def random_network(problem: Problem, width: int, seed: int) -> Network:
    """Balanced random neurons whose output has 0.3 times the size of the target."""
    rng = np.random.default_rng(seed)
    S = rng.standard_normal((problem.A.shape[1], width))
    V = rng.standard_normal((width, problem.n_outputs))
    S /= np.linalg.norm(S, axis=0)
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    rows = problem.A[:: max(1, len(problem.A) // 5000)]
    size = np.linalg.norm(np.maximum(rows @ S, 0) @ V) * np.sqrt(len(problem.A) / len(rows))
    root = np.sqrt(0.3 * np.linalg.norm(problem.loss.target) / size)
    return S * root, V * root


def recorded_steps(n_steps: int) -> set[int]:
    """Steps after which the network is kept: each about a tenth further than the one before, and the last."""
    return {int(1.1**k) for k in range(1000) if 1.1**k < n_steps} | {n_steps}


def adam(
    problem: Problem,
    *,
    width: int,
    n_steps: int,
    step_size: float,
    batch: int | None = None,
    seed: int = 0,
    limit: float = np.inf,
) -> Run:
    """Adam in single precision, the step size decreasing like a cosine; `batch` rows a step, or all."""
    Y = np.asarray(problem.loss.target, dtype=np.float64)
    size = float(np.linalg.norm(Y))
    unit = Problem(problem.A, LinearQuadratic(Y / size, 1.0), problem.beta / size, False)
    rows = f" of {batch} rows" if batch else ""
    run = Run(f"Adam on (N), {n_steps} steps{rows}", setting=f"{width} neurons, step size {step_size:g}")
    start = random_network(unit, width, seed)
    clock = Clock()
    steps = _BatchGradient(unit, batch, seed) if batch else _FullGradient(unit, width)
    split = problem.A.shape[1]
    x = np.vstack([start[0], start[1].T]).astype(np.float32)
    first, second, buffer, gradient = (np.zeros_like(x) for _ in range(4))
    record = recorded_steps(n_steps)
    for t in range(1, n_steps + 1):
        steps(x[:split], x[split:], gradient)
        first += 0.1 * (gradient - first)
        np.multiply(gradient, gradient, out=buffer)
        buffer -= second
        buffer *= 0.001
        second += buffer
        np.sqrt(second, out=buffer)
        rate = float(step_size * 0.5 * (1 + np.cos(np.pi * (t - 1) / n_steps)))
        correction = float((1 - 0.999**t) ** 0.5)
        buffer += 1e-8 * correction
        np.divide(first, buffer, out=buffer)
        buffer *= rate * correction / (1 - 0.9**t)
        x -= buffer
        if t % 20 == 0:
            # The moments of a neuron that has died decay into subnormal numbers, which are slow.
            first[np.abs(first) < 1e-20] = 0
            second[second < 1e-30] = 0
            x[np.abs(x) < 1e-20] = 0
        if t in record:
            run.seconds.append(clock())
            run.networks.append((x[:split].copy(), x[split:].T * np.float32(size)))
            if run.seconds[-1] > limit:
                run.note = "stopped at the limit"
                break
            clock.restart_at(run.seconds[-1])
    return run


class _FullGradient:
    """Gradient over all rows, in memory that is allocated once."""

    def __init__(self, problem: Problem, width: int) -> None:
        self.A = np.ascontiguousarray(problem.A, dtype=np.float32)
        self.Y = np.ascontiguousarray(problem.loss.target, dtype=np.float32)
        self.beta = float(problem.beta)
        self.H = np.empty((len(self.A), width), dtype=np.float32)
        self.G = np.empty_like(self.H)

    def __call__(self, S: NDArray, VT: NDArray, out: NDArray) -> None:
        _gradient(self.A, self.Y, S, VT, out, self.H, self.G)
        out[: len(S)] += self.beta * S
        out[len(S) :] += self.beta * VT


class _BatchGradient:
    """Gradient over a few rows, without replacement within an epoch."""

    def __init__(self, problem: Problem, batch: int, seed: int) -> None:
        self.A = np.ascontiguousarray(problem.A, dtype=np.float32)
        self.Y = np.ascontiguousarray(problem.loss.target, dtype=np.float32)
        self.beta, self.batch = float(problem.beta), batch
        self.rng, self.order = np.random.default_rng(seed), np.zeros(0, dtype=int)

    def __call__(self, S: NDArray, VT: NDArray, out: NDArray) -> None:
        if len(self.order) < self.batch:
            self.order = self.rng.permutation(len(self.A))
        rows, self.order = self.order[: self.batch], self.order[self.batch :]
        H = np.empty((self.batch, S.shape[1]), dtype=np.float32)
        _gradient(self.A[rows], self.Y[rows], S, VT, out, H, np.empty_like(H))
        out *= len(self.A) / self.batch
        out[: len(S)] += self.beta * S
        out[len(S) :] += self.beta * VT


def _gradient(A: NDArray, Y: NDArray, S: NDArray, VT: NDArray, out: NDArray, H: NDArray, G: NDArray) -> None:
    """Gradient of the loss alone."""
    np.matmul(A, S, out=H)
    np.maximum(H, 0, out=H)
    R = H @ VT.T
    R -= Y
    np.matmul(R.T, H, out=out[len(S) :])
    if len(VT) == 1:
        # One output: its weight of each neuron goes into the small product instead of the large one.
        np.multiply(H > 0, R, out=G)
        np.matmul(A.T, G, out=out[: len(S)])
        out[: len(S)] *= VT
    else:
        np.matmul(R, VT, out=G)
        G *= H > 0
        np.matmul(A.T, G, out=out[: len(S)])


def lbfgs(problem: Problem, *, width: int, n_steps: int, seed: int = 0, limit: float = np.inf) -> Run:
    """SciPy's L-BFGS in double precision."""
    A, Y = np.asarray(problem.A, dtype=np.float64), np.asarray(problem.loss.target, dtype=np.float64)
    size = float(np.linalg.norm(Y))
    unit, beta = Problem(A, LinearQuadratic(Y / size, 1.0), problem.beta / size, False), problem.beta / size
    run = Run("L-BFGS on (N)", setting=f"{width} neurons")
    S, V = random_network(unit, width, seed)
    q, shape = len(S), (len(S) + Y.shape[1], width)
    H, G, out = np.empty((len(A), width)), np.empty((len(A), width)), np.empty(shape)
    record = recorded_steps(n_steps)
    clock = Clock()
    count = 0

    def value_and_gradient(x: NDArray) -> tuple[float, NDArray]:
        M = x.reshape(shape)
        _gradient(A, unit.Y, M[:q], M[q:], out, H, G)
        R = H @ M[q:].T - unit.Y
        return 0.5 * float(np.vdot(R, R)) + 0.5 * beta * float(x @ x), (out + beta * M).ravel()

    def callback(x: NDArray) -> None:
        nonlocal count
        count += 1
        over = clock() > limit
        if count in record or over:
            add(x)
        if over:
            run.note = "stopped at the limit"
            raise StopIteration

    def add(x: NDArray) -> None:
        M = x.reshape(shape)
        run.seconds.append(clock())
        run.networks.append((M[:q].copy(), M[q:].T * size))
        clock.restart_at(run.seconds[-1])

    x = np.vstack([S, V.T]).ravel()
    options = {"maxiter": n_steps, "maxfun": 10 * n_steps, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-9}
    result = minimize(value_and_gradient, x, jac=True, method="L-BFGS-B", callback=callback, options=options)
    if not run.note:
        add(result.x)
    return run
