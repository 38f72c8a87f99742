"""adelie (C++ coordinate descent) on given arrangements: run by solvers.py in adelie's own environment.

Reads and writes .npz files. adelie minimises ``1/(2 n) ||.||^2 + lambda sum ||.||``, so lambda = beta / n,
along a path of 20 values down to it. Several outputs are solved one by one.
"""

from __future__ import annotations

import resource
import sys
from time import process_time

import adelie as ad
import numpy as np

PATH_LENGTH = 20


def main() -> None:
    source, destination = sys.argv[1:]
    data = np.load(source)
    resource.setrlimit(resource.RLIMIT_CPU, (int(data["limit"]) + 10, -1))
    start = process_time()
    S, V = _solve(data["A"], data["Y"], float(data["beta"]), data["patterns"])
    np.savez(destination, S=S, V=V, seconds=process_time() - start)


def _solve(A: np.ndarray, Y: np.ndarray, beta: float, patterns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n_rows, rank = A.shape
    n_blocks = 2 * patterns.shape[1]
    matrix = ad.matrix.convex_relu(np.asfortranarray(A), np.asfortranarray(patterns), gated=False)
    cones = [np.ascontiguousarray((2.0 * on[:, None] - 1) * A) for on in patterns.T]
    lower, upper = np.zeros(n_rows), np.full(n_rows, np.inf)
    neurons, outputs = [], []
    for k in range(Y.shape[1]):
        y = Y[:, k].copy()
        first = np.linalg.norm((patterns * y[:, None]).T @ A, axis=1).max()
        state = ad.grpnet(
            matrix,
            ad.glm.gaussian(y),
            # A constraint keeps the state of its block: none may be shared.
            constraints=[ad.constraint.linear(cone, lower, upper, dtype=np.float64) for cone in 2 * cones],
            groups=np.arange(n_blocks) * rank,
            penalty=np.ones(n_blocks),
            lmda_path=np.geomspace(max(first, beta), beta, PATH_LENGTH) / n_rows,
            intercept=False,
            early_exit=False,
            tol=1e-7,
            progress_bar=False,
        )
        blocks = np.asarray(state.betas[-1].todense()).reshape(n_blocks, rank)
        sign = np.repeat([1.0, -1.0], n_blocks // 2)
        used = np.linalg.norm(blocks, axis=1) > 0
        neurons.append(blocks[used].T)
        outputs.append(sign[used, None] * np.eye(Y.shape[1])[k])
    return np.hstack(neurons), np.vstack(outputs)


if __name__ == "__main__":
    main()
