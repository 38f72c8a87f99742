"""The one file that touches scikit-learn's private or experimental names."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import _fit_context as fit_context
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions, validate_params
from sklearn.utils.validation import _check_method_params as rows_of
from sklearn.utils.validation import _check_sample_weight

__all__ = [
    "HasMethods",
    "Interval",
    "StrOptions",
    "check_sample_weight",
    "fit_context",
    "rows_of",
    "validate_params",
]


def check_sample_weight(sample_weight: ArrayLike | None, X: Any) -> NDArray[np.float64]:
    """Validate sample weights: finite, non-negative, not all zero, one per row of `X`.

    Parameters
    ----------
    sample_weight : array-like of shape (n_samples,), float or None
        None stands for a weight of one for every row.

    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        The rows weighted.

    Returns
    -------
    sample_weight : ndarray of shape (n_samples,)
        The weights in float64.

    Raises
    ------
    ValueError
        In scikit-learn's wording, if the weights are not as described.
    """
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    # Older scikit-learn accepts weights that are all zero.
    if not weights.any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    return weights
