"""Targets as a loss takes them: of a regression as they are, of a classification coded by class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import compute_class_weight

from skcvxbn.arrays import Rows
from skcvxbn.losses import (
    LossFunction,
    absolute_error,
    hinge,
    huber,
    log_loss,
    pinball,
    squared_error,
    squared_hinge,
)

Floats = NDArray[np.float64]

REGRESSION_LOSSES = ("absolute_error", "huber", "pinball", "squared_error")
CLASSIFICATION_LOSSES: dict[str, LossFunction] = {
    "hinge": hinge,
    "log_loss": log_loss,
    "squared_error": squared_error,
    "squared_hinge": squared_hinge,
}


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets and the loss they are for.

    Attributes
    ----------
    Y : ndarray of shape (n_samples, n_outputs)
        The targets, one column an output of the network.
    loss : callable
        From such targets and the weights of the rows to the loss.
    translates : bool
        Whether adding a constant to targets and outputs changes nothing.
    """

    Y: Floats
    loss: LossFunction
    translates: bool

    def mean_loss(self, output: NDArray, weight: Floats) -> float:
        """Weighted mean over the rows of the loss of an output of shape (n_samples, n_outputs)."""
        Y, output, weight = (M[weight > 0] for M in (self.Y, output, weight))
        return self.loss(Y, weight).value(np.sqrt(weight)[:, None] * output) / float(weight.sum())


def regression_targets(y: NDArray, loss: str, epsilon: float, quantile: float) -> Targets:
    """Targets of a regression.

    Parameters
    ----------
    y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        Numeric targets.
    loss : {"squared_error", "absolute_error", "huber", "pinball"}
        Name of the loss.
    epsilon, quantile : float
        Parameters of "huber" and of "pinball".

    Returns
    -------
    Targets
        The targets in float64.

    Raises
    ------
    ValueError
        If the sum of their squares is not a number of float64.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.targets import regression_targets
    >>> targets = regression_targets(np.array([0.0, 4.0]), "pinball", 1.35, 0.75)
    >>> targets.mean_loss(np.array([[1.0], [1.0]]), np.ones(2))
    1.25
    """
    functions: dict[str, LossFunction] = {
        "absolute_error": absolute_error,
        "huber": partial(huber, epsilon=epsilon),
        "pinball": partial(pinball, quantile=quantile),
        "squared_error": squared_error,
    }
    Y = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
    with np.errstate(over="ignore"):
        if not np.isfinite(np.sum(Y**2)):
            raise ValueError(
                "Input y contains values whose squares add up to more than float64 can hold: the largest "
                f"magnitude is {np.abs(Y).max():.1e}. Divide y by a constant."
            )
    return Targets(Y, functions[loss], translates=True)


def class_targets(codes: NDArray[np.intp], n_classes: int, loss: str) -> Targets:
    """Code classes: two by -1 and 1, more by indicators (for the hinges -1 and 1 again).

    Parameters
    ----------
    codes : ndarray of int, shape (n_samples,)
        Number of the class of each row.
    n_classes : int
        How many there are.
    loss : {"log_loss", "squared_error", "hinge", "squared_hinge"}
        Name of the loss.

    Returns
    -------
    Targets
        One output for two classes, otherwise one a class.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.targets import class_targets
    >>> class_targets(np.array([0, 2]), 3, "hinge").Y
    array([[ 1., -1., -1.],
           [-1., -1.,  1.]])
    """
    indicator = np.eye(n_classes)
    if n_classes == 2:
        coded = np.array([[-1.0], [1.0]])
    else:
        coded = 2 * indicator - 1 if loss in ("hinge", "squared_hinge") else indicator
    return Targets(coded[codes], CLASSIFICATION_LOSSES[loss], translates=loss == "squared_error")


def class_weights(
    class_weight: dict[Any, float] | str | None, classes: NDArray, y: NDArray, weight: Floats, rows: Rows
) -> Floats:
    """Return the factor of each class that a parameter `class_weight` stands for.

    Parameters
    ----------
    class_weight : dict, "balanced" or None
        The parameter.
    classes : ndarray of shape (n_classes,)
        The labels, sorted.
    y : ndarray of shape (n_samples,)
        Label of each row.
    weight : ndarray of shape (n_samples,)
        Positive weights of the rows.
    rows : Rows
        How to sum over them.

    Returns
    -------
    ndarray of shape (n_classes,)
        The factors.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.arrays import Rows
    >>> from skcvxbn.targets import class_weights
    >>> y = np.array(["a", "b", "b", "b"])
    >>> class_weights("balanced", np.array(["a", "b"]), y, np.ones(4), Rows())
    array([2.        , 0.66666667])
    """
    if isinstance(class_weight, str):
        # By weights, so that a weight of two is a row repeated.
        codes = np.searchsorted(classes, y)
        shares = rows.total(np.bincount(codes, weights=weight, minlength=len(classes)))
        return shares.sum() / (len(classes) * shares)
    factors = [] if class_weight is None else class_weight.values()
    if not all(isinstance(factor, Real) and 0 < factor < np.inf for factor in factors):
        raise ValueError(
            "class_weight must be a dict from labels to positive and finite numbers. Got "
            f"{class_weight!r} instead."
        )
    return compute_class_weight(class_weight, classes=classes, y=y)
