"""pyscnn (augmented Lagrangian) on given arrangements: run by solvers.py in pyscnn's own environment.

Reads and writes .npz files. pyscnn minimises ``1/(2 n C) ||.||^2 + lambda sum ||.||``, so lambda is
beta / (n C). The data are white already, so its own preprocessing (unit columns, a column of ones) is left
out, and its metrics are recorded once instead of at every iteration. Its tolerances are its defaults.
"""

from __future__ import annotations

import logging
import resource
import sys
from time import process_time

import lab
import numpy as np
from scnn.metrics import Metrics
from scnn.models import ConvexReLU
from scnn.private.interface import (
    build_internal_regularizer,
    build_metrics_tuple,
    build_optimizer,
    set_device,
)
from scnn.private.models import AL_MLP
from scnn.regularizers import NeuronGL1
from scnn.solvers import AL


def main() -> None:
    source, destination = sys.argv[1:]
    data = np.load(source)
    resource.setrlimit(resource.RLIMIT_CPU, (int(data["limit"]) + 10, -1))
    logging.disable(logging.WARNING)
    start = process_time()
    S, V = _solve(data["A"], data["Y"], float(data["beta"]), data["patterns"], data["gates"])
    np.savez(destination, S=S, V=V, seconds=process_time() - start)


def _solve(
    A: np.ndarray, Y: np.ndarray, beta: float, patterns: np.ndarray, gates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    n_rows, rank = A.shape
    n_outputs = Y.shape[1]
    set_device("cpu", "float64", 0)
    D, G = lab.all_to_tensor([patterns.astype(float), gates], dtype=lab.get_dtype())
    regularizer = NeuronGL1(beta / (n_rows * n_outputs))
    internal = build_internal_regularizer(regularizer)
    solver = AL(ConvexReLU(gates, c=n_outputs))
    model = AL_MLP(rank, D, G, "einsum", delta=solver.delta, regularizer=internal, c=n_outputs)
    metrics = Metrics()
    procedure = build_optimizer(solver, regularizer, metrics)
    procedure.metric_freq = 10**12
    data = tuple(lab.all_to_tensor([A, Y], dtype=lab.get_dtype()))
    with np.errstate(all="ignore"):
        _, model, _ = procedure(
            logging.getLogger("scnn"), model, lambda m: m, data, data, build_metrics_tuple(metrics)
        )
    # Axes: sign, output, arrangement, coordinate.
    weights = np.asarray(lab.to_np(model.weights), dtype=float)
    blocks = weights.reshape(-1, rank)
    signed = np.array([[1.0], [-1.0]])[:, :, None] * np.eye(n_outputs)
    outputs = np.repeat(signed.reshape(-1, n_outputs), patterns.shape[1], axis=0)
    used = np.linalg.norm(blocks, axis=1) > 0
    return blocks[used].T, outputs[used]


if __name__ == "__main__":
    main()
