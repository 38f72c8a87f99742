"""Training objective on the diabetes data: the certified fit next to Adam on the same non-convex problem.

Both networks are scored by the same function, ``BatchNormNetwork.objective``.
"""

from __future__ import annotations

import argparse
import warnings
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from skcvxbn import BatchNormNetwork, ConvexBNRegressor

HEADER = f"{'beta':>8} {'method':<16} {'objective':>10} {'worst':>10} {'bound':>9} {'rel. gap':>9} " + (
    f"{'certificate':>12} {'neurons':>8} {'rounds':>7} {'seconds':>8}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads")
    parser.add_argument("--betas", type=float, nargs="+", default=[1.41495, 1.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[2000, 4000], help="steps of Adam")
    parser.add_argument("--width", type=int, default=100, help="neurons of Adam's network")
    args = parser.parse_args()

    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    print(f"diabetes {X.shape}, medians of {args.repeats} seeds; 'worst' is the highest objective")
    print(HEADER)
    with threadpool_limits(args.threads):
        # What a first call pays once (lazy imports, thread pools) belongs to neither method.
        _convex_fit(X[:50], y[:50], args.betas[0], seed=0)
        seeds = range(args.repeats)
        for beta in args.betas:
            _print_row(beta, "skcvxbn", [_convex_fit(X, y, beta, seed) for seed in seeds])
            for steps in args.steps:
                rows = [_adam_fit(X, y, beta, seed, args.width, steps) for seed in seeds]
                _print_row(beta, f"Adam {steps} steps", rows)


def _print_row(beta: float, method: str, rows: list[dict]) -> None:
    def median(key: str) -> float:
        return float(np.median([row[key] for row in rows]))

    certificates = "/".join(sorted({row["certificate"] for row in rows}))
    worst = max(row["objective"] for row in rows)
    print(
        f"{beta:8.5g} {method:<16} {median('objective'):10.4f} {worst:10.4f} {median('bound'):9.4f} "
        f"{median('gap'):9.1e} {certificates:>12} {median('neurons'):8.0f} {median('rounds'):7.0f} "
        f"{median('seconds'):8.2f}",
        flush=True,
    )


def _convex_fit(X: NDArray, y: NDArray, beta: float, seed: int) -> dict:
    model = ConvexBNRegressor(beta=beta, fit_intercept=False, random_state=seed)
    with warnings.catch_warnings():
        # A gap above tol is in the table.
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = perf_counter()
        model.fit(X, y)
        seconds = perf_counter() - start
    objective = model.network_.objective(X, y, beta)
    return {
        "objective": objective,
        "bound": model.lower_bound_,
        "gap": (objective - model.lower_bound_) / objective,
        "certificate": model.certificate_,
        "neurons": model.n_neurons_,
        "rounds": model.n_iter_,
        "seconds": seconds,
    }


def _adam_fit(X: NDArray, y: NDArray, beta: float, seed: int, width: int, steps: int) -> dict:
    start = perf_counter()
    mean = X.mean(axis=0)
    U, sigma, Vt = np.linalg.svd(X - mean, full_matrices=False)
    A = np.hstack([U, np.full((len(X), 1), len(X) ** -0.5)])
    S, v = _adam(A, y, beta, width, steps, np.random.default_rng(seed))
    network = _network(S, v, mean, Vt.T / sigma, len(X))
    seconds = perf_counter() - start
    unknown = {"bound": np.nan, "gap": np.nan, "certificate": "none"}
    objective = network.objective(X, y, beta)
    return {"objective": objective, "neurons": width, "rounds": steps, "seconds": seconds, **unknown}


def _adam(
    A: NDArray, y: NDArray, beta: float, width: int, steps: int, rng: np.random.Generator
) -> tuple[NDArray, NDArray]:
    """Minimise 1/2 ||(A S)_+ v - y||^2 + beta/2 (||S||^2 + ||v||^2), the cosine step starting at 0.05."""
    n_directions = A.shape[1]
    # One vector holds S and v, so that one set of moments serves both.
    parameters = rng.standard_normal((n_directions + 1, width))
    parameters[:-1] /= np.sqrt(n_directions)
    parameters[-1] /= np.sqrt(width)
    gradient = np.empty_like(parameters)
    first, second = np.zeros_like(parameters), np.zeros_like(parameters)
    for t in range(1, steps + 1):
        S, v = parameters[:-1], parameters[-1]
        H = A @ S
        np.maximum(H, 0, out=H)
        residual = H @ v - y
        gradient[:-1] = A.T @ ((H > 0) * residual[:, None]) * v + beta * S
        gradient[-1] = residual @ H + beta * v
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        step = 0.05 * 0.5 * (1 + np.cos(np.pi * (t - 1) / steps))
        parameters -= step * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return parameters[:-1], parameters[-1]


def _network(S: NDArray, v: NDArray, mean: NDArray, to_white: NDArray, n_rows: int) -> BatchNormNetwork:
    """Turn neurons (A s)_+ v into the network whose weights share the norm ||s|| |v| evenly."""
    keep = np.linalg.norm(S[:-1], axis=0) > 0
    S, v = S[:, keep], v[keep]
    norm = np.linalg.norm(S[:-1], axis=0)
    balance = np.sqrt(np.abs(v) / np.linalg.norm(S, axis=0))
    hidden = to_white @ (S[:-1] / norm)
    return BatchNormNetwork(
        hidden_weights=hidden,
        running_mean=mean @ hidden,
        running_var=np.full(len(v), 1 / n_rows),
        bn_weight=balance * norm / np.sqrt(n_rows),
        bn_bias=balance * S[-1] / np.sqrt(n_rows),
        output_weights=np.divide(v, balance, out=np.zeros_like(v), where=balance > 0)[:, None],
        intercept=np.zeros(1),
    )


if __name__ == "__main__":
    main()
