"""Peak resident memory and time of a fit on many random rows, in a process of its own.

The data are 50 000 x 217 in float32, the targets 10 outputs of a random network plus noise. The fitted
network may have 256 neurons and takes one round. Needs the `resource` module (Unix).
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from multiprocessing.connection import Connection
from statistics import median

# A process is charged for what its parent held when it was started: numpy is imported by the child only.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1, help="number of seeds, from 0")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=217)
    parser.add_argument("--outputs", type=int, default=10)
    parser.add_argument("--neurons", type=int, default=256)
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a fit is ended")
    args = parser.parse_args()

    results = [_run(args, seed) for seed in range(args.repeats)]
    results = [result for result in results if result]
    if not results:
        sys.exit("No fit ended in time.")
    row = {key: median(result[key] for result in results) for key in results[0]}
    print(f"{args.rows} x {args.features} float32, {args.outputs} outputs, medians of {len(results)} runs")
    print(f"{'neurons':>8} {'rel. gap':>9} {'seconds':>8} {'peak before fit, MiB':>21} {'peak, MiB':>10}")
    print(
        f"{row['neurons']:8.0f} {row['gap']:9.1e} {row['seconds']:8.1f} {row['before']:21.0f} "
        f"{row['peak']:10.0f}"
    )


def _run(args: argparse.Namespace, seed: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_fit, args=(sender, args, seed))
    process.start()
    # Only the child may hold the sending end: the receiver then sees it close should the child die.
    sender.close()
    try:
        if receiver.poll(args.timeout):
            return receiver.recv()
        print(f"Seed {seed}: ended after {args.timeout:g} seconds.")
    except EOFError:
        print(f"Seed {seed}: the process ended without a result.")
    finally:
        process.terminate()
        process.join()
    return {}


def _fit(sender: Connection, args: argparse.Namespace, seed: int) -> None:
    import warnings
    from time import perf_counter

    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    from skcvxbn import ConvexBNRegressor

    rng = np.random.default_rng(seed)
    X = rng.standard_normal((args.rows, args.features), dtype=np.float32)
    teacher = rng.standard_normal((args.features, 32), dtype=np.float32) / np.float32(args.features**0.5)
    Y = np.maximum(X @ teacher, 0) @ rng.standard_normal((32, args.outputs), dtype=np.float32)
    Y += rng.standard_normal(Y.shape, dtype=np.float32)
    warnings.simplefilter("ignore", ConvergenceWarning)
    model = ConvexBNRegressor(max_neurons=args.neurons, max_iter=1, random_state=seed, verbose=1)
    before = _peak_mebibytes()
    with threadpool_limits(args.threads):
        start = perf_counter()
        model.fit(X, Y)
        seconds = perf_counter() - start
    sender.send(
        {
            "neurons": model.n_neurons_,
            "gap": model.dual_gap_ / model.objective_,
            "seconds": seconds,
            "before": before,
            "peak": _peak_mebibytes(),
        }
    )


def _peak_mebibytes() -> float:
    import resource

    # Linux counts in KiB, macOS in bytes.
    per_mebibyte = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mebibyte


if __name__ == "__main__":
    main()
