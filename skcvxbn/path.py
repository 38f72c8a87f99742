"""The scale of the weight decay: `beta_max`, above which the optimal network is zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_X_y

from skcvxbn._sklearn import check_sample_weight
from skcvxbn.losses import squared_error
from skcvxbn.solvers.base import Problem
from skcvxbn.solvers.search import QUICK, THOROUGH, affordable_starts, random_starts, search
from skcvxbn.whitening import whiten

_STARTS = 128


def beta_max(
    X: ArrayLike,
    y: ArrayLike,
    *,
    fit_intercept: bool = True,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Smallest weight decay whose optimal network is zero or, with an intercept, constant.

    At zero the dual variable is the (centred) target itself, so this is the largest value of
    ``||Y^T (A s)_+||`` over unit ``s``: the natural unit in which to choose `beta`.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Training rows.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Numeric targets.
    fit_intercept : bool, default=True
        Whether the network has an unpenalised output bias.
    sample_weight : array-like of shape (n_samples,), optional
        Nonnegative weights; rows of weight zero are left out.

    Returns
    -------
    float
        The value, found by the same thorough search that certifies a fit, from fixed starting points:
        it is deterministic, and at least the largest local maximum found.

    Raises
    ------
    ValueError
        If the data are not finite numeric arrays of matching length.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn import ConvexBNRegressor, beta_max
    >>> rng = np.random.RandomState(0)
    >>> X = rng.standard_normal((30, 2))
    >>> y = np.maximum(X[:, 0], 0)
    >>> limit = beta_max(X, y)
    >>> ConvexBNRegressor(beta=1.01 * limit).fit(X, y).n_neurons_
    0
    """
    rows, targets = check_X_y(
        X, y, multi_output=True, y_numeric=True, dtype=[np.float64, np.float32], ensure_min_samples=2
    )
    weight = check_sample_weight(sample_weight, rows)
    kept = weight > 0
    whitening = whiten(rows[kept], weight[kept])
    Y = np.asarray(targets, dtype=np.float64)[kept].reshape(int(kept.sum()), -1)
    problem = Problem(whitening.A, squared_error(Y, weight[kept]), 1.0, fit_intercept)
    return largest_beta(problem.A, problem.feasible(problem.zero.R))


def largest_beta(A: NDArray, target: NDArray) -> float:
    """`beta_max` in whitened coordinates: ``max ||target^T (A s)_+||`` over unit ``s``."""
    size = float(np.linalg.norm(target))
    if size == 0:
        return 0.0
    # The maxima at a target are few and wide: on large data a short search from few points finds them.
    stages = THOROUGH if affordable_starts(A, THOROUGH) >= _STARTS else QUICK
    n_starts = min(_STARTS, affordable_starts(A, stages))
    S, U = random_starts(A.shape[1], target.shape[1], n_starts, np.random.RandomState(0))
    return size * search(A, target / size, S.astype(A.dtype), U.astype(A.dtype), stages=stages).largest
