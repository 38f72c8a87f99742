"""The one file that touches scikit-learn's private or experimental names."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj, is_numpy_array
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.base import _fit_context as fit_context
from sklearn.utils._array_api import _convert_to_numpy, get_namespace_and_device
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions, validate_params
from sklearn.utils.validation import _check_method_params as rows_of
from sklearn.utils.validation import _check_sample_weight

__all__ = [
    "HasMethods",
    "Interval",
    "StrOptions",
    "beside",
    "check_sample_weight",
    "fit_context",
    "on_host",
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


def on_host(x: Any) -> Any:
    """Return an array of another library in NumPy, where scikit-learn dispatches on such arrays.

    Parameters
    ----------
    x : object
        What a user passed.

    Returns
    -------
    object
        Anything else, or anything with the configuration ``array_api_dispatch=False``, as it was.
    """
    return _convert_to_numpy(x, get_namespace_and_device(x)[0]) if _is_dispatched_on(x) else x


def beside(values: NDArray[Any], X: Any) -> Any:
    """Return values in the library and on the device of rows, where scikit-learn dispatches on these.

    Parameters
    ----------
    values : ndarray
        What was computed from the rows. Anything but numbers stays in NumPy: other libraries have no strings.
    X : object
        The rows, as the user passed them.

    Returns
    -------
    array
        A copy, or the values themselves where they stay.
    """
    if values.dtype.kind not in "biuf" or not _is_dispatched_on(X):
        return values
    xp, _, device = get_namespace_and_device(X)
    return xp.asarray(values.copy(), device=device)


def _is_dispatched_on(x: Any) -> bool:
    return get_config()["array_api_dispatch"] and is_array_api_obj(x) and not is_numpy_array(x)
