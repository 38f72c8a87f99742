"""Cross-validation whose folds run on a Dask cluster: here on this machine, in the same way on others.

    python examples/distribute_folds_with_dask.py

Every task is the whole path of weight decays of one fold. Needs `pip install "skcvxbn[dask]"`.
"""

from __future__ import annotations

import joblib
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from skcvxbn import ConvexBNClassifierCV


def main() -> None:
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError:
        print('Skipped: it needs dask.distributed (pip install "skcvxbn[dask]").')
        return

    X, y = load_breast_cancer(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
    model = ConvexBNClassifierCV(n_components=[5, 10], tol=1e-2, random_state=0)
    # Client("scheduler-address:8786") connects to a cluster of several machines.
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        model.fit(X_train, y_train)
    print(f"beta_ratio {model.beta_ratio_:.3f}, n_components {model.n_components_}")
    print(f"test accuracy {model.score(X_test, y_test):.3f}, {model.n_neurons_} neurons")


if __name__ == "__main__":
    main()
