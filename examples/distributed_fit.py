"""Training on rows that are spread over processes, compared with one process that has all of them.

    torchrun --nproc-per-node 2 examples/distributed_fit.py

On machines with GPUs: "nccl" instead of "gloo", and ``device=f"cuda:{os.environ['LOCAL_RANK']}"`` after
``torch.cuda.set_device``. Needs torch. Run without torchrun, it is one process that has all rows.
"""

from __future__ import annotations

import os
from datetime import timedelta

from sklearn.datasets import load_diabetes
from sklearn.preprocessing import scale

from skcvxbn import ConvexBNRegressor, sharded_rows


def main() -> None:
    try:
        import torch.distributed as dist
    except ImportError:
        print("Skipped: it needs PyTorch (pip install torch).")
        return

    # A process that does not answer for a minute is lost, and training ends with an error in the others.
    limit = timedelta(minutes=1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo", timeout=limit)
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    rank, n_processes = dist.get_rank(), dist.get_world_size()

    X, y = load_diabetes(return_X_y=True)
    y = scale(y)
    # In earnest every process reads rows of its own, and none has all of them.
    X_shard, y_shard = X[rank::n_processes], y[rank::n_processes]

    model = ConvexBNRegressor(beta_ratio=0.1, backend="torch", device="cpu", random_state=0)
    with sharded_rows():
        model.fit(X_shard, y_shard)
    print(
        f"process {rank} of {n_processes}, {len(X_shard)} rows: objective {model.objective_:.6f}, "
        f"gap {model.dual_gap_:.1e}, {model.n_neurons_} neurons"
    )

    if rank == 0:
        single = ConvexBNRegressor(beta_ratio=0.1, random_state=0).fit(X, y)
        print(f"without processes: objective {single.objective_:.6f}, gap {single.dual_gap_:.1e}")
        print(f"relative difference of the objectives: {model.objective_ / single.objective_ - 1:.0e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
