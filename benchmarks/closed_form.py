"""Closed form against gradient descent on the same torch network, in the setting of the paper's Figure 4.

Three classes, 1500 x 3072, one-hot labels, weight decay 1, 1000 neurons for gradient descent. One function,
``BatchNormNetwork.objective``, scores all networks. Needs torch.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits

from skcvxbn import BatchNormNetwork, ClosedFormBNClassifier, ConvexBNClassifier, SVDTruncation
from skcvxbn.closed_form import optimal_layers

ROW = "{:<44} {:>11} {:>9} {:>9} {:>9} {:>8} {:>9}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with load.py; a seeded random set without it")
    parser.add_argument("--set", default="cifar100_3class", help="name of the set in that folder")
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"], help="of the rows")
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--width", type=int, default=1000, help="neurons for gradient descent")
    parser.add_argument(
        "--steps", type=int, default=1000, help="full-batch steps of gradient descent; 0: none"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed fits of the closed form")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    data = _data(args)
    torch.set_num_threads(args.threads)
    n_points = len(np.unique(data.X, axis=0))
    print(f"{data.X.shape} {data.X.dtype}, {n_points} distinct rows, beta={args.beta:g}")
    with threadpool_limits(args.threads):
        reference = _median_seconds(lambda: _gram_and_cholesky(data.X), args.repeats)
        print(f"one Gram matrix and one Cholesky factorisation of this size: {reference:.3f} s (CPU)")
        print(f"optimum by the formula: {optimal_layers(data.Y, args.beta).lower_bound:.10f}")
        print(ROW.format("method", "objective", "gap", "accuracy", "test acc.", "neurons", "CPU s"))
        _closed_forms(data, args)
        for method, optimizer, step in (
            ("SGD", torch.optim.SGD, 1e-2),
            ("Adam", torch.optim.Adam, 1e-3),
            ("Adam", torch.optim.Adam, 1e-2),
        ):
            network, seconds = _gradient_descent(data, args, optimizer, step)
            _print(f"{method}, step {step:g}, {args.steps} steps", network, data, args.beta, seconds)


class Data(NamedTuple):
    """Rows scaled to [0, 1] and labels coded 0, 1, 2."""

    X: NDArray[Any]
    codes: NDArray[Any]
    X_test: NDArray[Any]
    codes_test: NDArray[Any]

    @property
    def Y(self) -> NDArray[Any]:
        return np.eye(self.codes.max() + 1)[self.codes]


def _data(args: argparse.Namespace) -> Data:
    if args.data is None:
        rng = np.random.default_rng(0)
        codes = np.arange(1800) % 3
        # Classes whose means differ a little, so that there is something to learn.
        X = rng.standard_normal((1800, 3072)) + 0.05 * rng.standard_normal((3, 3072))[codes]
        X = X.astype(args.dtype)
        return Data(X[:1500], codes[:1500], X[1500:], codes[1500:])
    spec = importlib.util.spec_from_file_location("load", args.data / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    X, y, X_test, y_test = module.load(args.set)
    scale = float(X.max())
    labels, codes = np.unique(y, return_inverse=True)
    rows = [(part / scale).astype(args.dtype) for part in (X, X_test)]
    return Data(rows[0], codes, rows[1], np.searchsorted(labels, y_test))


def _median_seconds(run: Callable[[], Any], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start = process_time()
        run()
        seconds.append(process_time() - start)
    return float(np.median(seconds))


def _gram_and_cholesky(X: NDArray[Any]) -> None:
    gram = X @ X.T
    # Any positive definite matrix of the size costs the same.
    gram[np.diag_indices(len(gram))] += np.trace(gram)
    linalg.cholesky(gram.T, lower=True, overwrite_a=True, check_finite=False)


def _closed_forms(data: Data, args: argparse.Namespace) -> None:
    closed = ClosedFormBNClassifier(args.beta, random_state=0)
    width = 8 * len(data.X)
    deep = ClosedFormBNClassifier(args.beta, random_state=0, hidden_layer_sizes=(width,))
    convex = ConvexBNClassifier(beta=args.beta, fit_intercept=False, tol=1e-2, random_state=0)
    models = {
        "closed form": closed,
        f"closed form, random layer of {width}": deep,
        "SVDTruncation(0.95), the same": make_pipeline(SVDTruncation(0.95, output="scores"), deep),
        "SVDTruncation(0.80), the same": make_pipeline(SVDTruncation(0.80, output="scores"), deep),
        "SVDTruncation(0.95), ConvexBNClassifier": make_pipeline(
            SVDTruncation(0.95, output="scores"), convex
        ),
    }
    for name, model in models.items():
        with warnings.catch_warnings():
            # A gap above tol is in the table.
            warnings.simplefilter("ignore", ConvergenceWarning)
            seconds = _median_seconds(lambda model=model: model.fit(data.X, data.codes), args.repeats)
        head = model[-1] if hasattr(model, "steps") else model
        _row(name, head.objective_, head.dual_gap_, model.predict, data, head.n_neurons_, seconds)


def _gradient_descent(
    data: Data, args: argparse.Namespace, optimizer: Any, step: float
) -> tuple[BatchNormNetwork, float]:
    """Full-batch steps on the paper's objective, in its units, halved when the objective stands still."""
    start = process_time()
    n, d, m = len(data.X), data.X.shape[1], args.width
    torch.manual_seed(0)
    # float32, as such networks are trained.
    rows, targets = torch.from_numpy(data.X).float(), torch.from_numpy(data.Y).float()
    W, V = torch.randn(d, m) / d**0.5, torch.randn(m, targets.shape[1]) / m**0.5
    gamma, alpha = torch.full((m,), m**-0.5), torch.zeros(m)
    parameters = [p.requires_grad_() for p in (W, gamma, alpha, V)]
    descent = optimizer(parameters, lr=step)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(descent, factor=0.5, patience=10)
    for _ in range(args.steps):
        descent.zero_grad()
        H = rows @ W
        H = H - H.mean(dim=0)
        out = torch.relu(H / H.norm(dim=0) * gamma + alpha / n**0.5) @ V
        penalty = sum(p.square().sum() for p in (gamma, alpha, V))
        loss = 0.5 * (out - targets).square().sum() + 0.5 * args.beta * penalty
        loss.backward()
        descent.step()
        plateau.step(loss.item())
    seconds = process_time() - start
    W, gamma, alpha, V = (p.detach().numpy().astype(np.float64) for p in parameters)
    H = data.X @ W
    scale, bias = (value / n**0.5 for value in (gamma, alpha))
    return BatchNormNetwork(W, H.mean(axis=0), H.var(axis=0), scale, bias, V, np.zeros(V.shape[1])), seconds


def _print(name: str, network: BatchNormNetwork, data: Data, beta: float, seconds: float) -> None:
    objective = network.objective(data.X, data.Y, beta)
    gap = objective - optimal_layers(data.Y, beta).lower_bound
    n_neurons = len(network.bn_weight)
    _row(name, objective, gap, lambda X: network.forward(X).argmax(axis=1), data, n_neurons, seconds)


def _row(
    name: str,
    objective: float,
    gap: float,
    predict: Callable[[NDArray[Any]], NDArray[Any]],
    data: Data,
    n_neurons: int,
    seconds: float,
) -> None:
    accuracy, test = np.mean(predict(data.X) == data.codes), np.mean(predict(data.X_test) == data.codes_test)
    numbers = f"{objective:.6f}", f"{gap:.1e}", f"{accuracy:.3f}", f"{test:.3f}", n_neurons, f"{seconds:.3f}"
    print(ROW.format(name, *numbers), flush=True)


if __name__ == "__main__":
    main()
