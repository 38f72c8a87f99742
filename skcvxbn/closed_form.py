r"""Closed forms of the optimal last two layers (Theorems 2.1, 2.4, 4.1, 4.2 and G.2 of the paper).

When the features span :math:`R^n`, a batch-normalized neuron can put any non-negative vector h on the n
training rows (any vector at all when batch normalization comes after the ReLU), at the price of its
norm. The features then drop out, and training is

.. math:: \min \tfrac12 \|\sum_k h_k v_k^T - Y\|_F^2 + \beta \sum_k \|h_k\| \|v_k\| , \qquad h_k \ge 0 ,

whose dual is to maximise :math:`\langle R, Y\rangle - \tfrac12\|R\|_F^2` where :math:`\|R^T u\| \le \beta`
for all unit :math:`u \ge 0`. Features only re-enter when the neurons are written as weights.

*Batch normalization before the ReLU.* Group the rows of Y by their direction: :math:`Y = \sum_k h_k g_k^T`,
unit vectors :math:`g_k`, non-negative :math:`h_k` of disjoint supports. The soft-thresholded
:math:`F = \sum_k (1 - \beta/\|h_k\|)_+ h_k g_k^T` leaves
:math:`R = \sum_k \min(1, \beta/\|h_k\|) h_k g_k^T`. For unit :math:`u \ge 0` put
:math:`t_k = h_k^T u / \|h_k\| \ge 0`, so that :math:`\|t\| \le 1` and
:math:`\|R^T u\| \le \beta \|\sum_k t_k g_k\|` in the worst case; its square is
:math:`\sum_k t_k^2 + 2 \sum_{k<l} t_k t_l g_k^T g_l`, at most one if no two directions make an acute
angle. R is then feasible and proves that F is optimal; if two kept directions do, R is infeasible and F is
not. One output has the directions +1 and -1 (Theorem 2.1), one-hot rows the unit vectors (Theorem 2.4).

*After the ReLU.* The sum of prices is beta times the nuclear norm, so F is Y with its singular values
soft-thresholded, for any Y (Theorem G.2 is the case of one output).

*Weights of rows.* Multiplying rows by the roots of their weights turns the weighted problem into the
unweighted one: the ReLU commutes with positive factors, and the statistics of batch normalization are
the weighted ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from skcvxbn.interpolation import minimum_norm_solution, product, scaled_rows
from skcvxbn.network import BatchNormAfterReLUNetwork, BatchNormNetwork

Floats = NDArray[np.float64]

# Two directions are the same, or at a right angle, when they are up to the rounding of an average.
_SAME = 1e-12


@dataclass(frozen=True, eq=False)
class OptimalLayers:
    r"""The optimal last two layers as functions on the training rows.

    Attributes
    ----------
    hidden : ndarray of shape (n_samples, n_neurons)
        What each neuron puts on the rows: unit columns, each row multiplied by the root of its weight.
    output : ndarray of shape (n_neurons, n_outputs)
        Its direction at the output: unit rows.
    size : ndarray of shape (n_neurons,)
        Its share of the output, positive: the rows (times the roots) get ``hidden * size @ output``.
    bias : ndarray of shape (n_outputs,)
        Output bias.
    dual : ndarray of shape (n_samples, n_outputs)
        The optimal dual point (Lemma C.1), which is the residual.
    lower_bound : float
        Its dual value. No network of any width has a smaller objective, whatever the features.
    bn_position : {"before", "after"}
        Where batch normalization is.
    """

    hidden: Floats
    output: Floats
    size: Floats
    bias: Floats
    dual: Floats
    lower_bound: float
    bn_position: str


def optimal_layers(
    Y: ArrayLike,
    beta: float,
    sample_weight: ArrayLike | None = None,
    *,
    fit_intercept: bool = False,
    bn_position: str = "before",
) -> OptimalLayers:
    r"""Write down the optimal last two layers over features that span :math:`R^n`.

    Parameters
    ----------
    Y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets.
    beta : float
        Weight decay, non-negative.
    sample_weight : array-like of shape (n_samples,), optional
        Positive weights of the rows; one each by default.
    fit_intercept : bool, default=False
        Whether there is an output bias that is not penalised. The paper has none.
    bn_position : {"before", "after"}, default="before"
        "before" is Theorems 2.1 and 2.4 (4.1 and 4.2 for deep networks), "after" is Theorem G.2.

    Returns
    -------
    OptimalLayers
        Neurons, bias and dual point. Neurons that beta prices out are absent.

    Raises
    ------
    ValueError
        If there is no closed form: with several outputs and batch normalization before the ReLU, when two
        rows of `Y` make an acute angle, or when a bias is asked for.

    Notes
    -----
    Without a bias, and with neurons of sizes :math:`\|h_k\|` above beta, the objective is
    :math:`\sum_k (\beta \|h_k\| - \beta^2/2)`; a part of `Y` of norm t below beta adds :math:`t^2/2`. With
    one output these are the norms of the positive and the negative part, with one-hot rows those of the
    columns.

    The bias is free, so the dual point must sum to zero over the rows. After the ReLU the residual of the
    centred targets does. Before the ReLU it does not: with :math:`p_\pm` the parts of y - b the bias is
    where :math:`\min(1, \beta/\|p_+\|) 1^T p_+ = \min(1, \beta/\|p_-\|) 1^T p_-`, the zero of a
    monotone function and in general not the mean.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.closed_form import optimal_layers
    >>> optimum = optimal_layers([3.0, 4.0, 0.0, -2.0], beta=1.0)
    >>> optimum.size, optimum.output[:, 0]
    (array([4., 1.]), array([ 1., -1.]))
    >>> optimum.lower_bound == 1.0 * (5 + 2) - 1.0**2
    True
    """
    Y, root = _as_targets(Y, sample_weight, fit_intercept, bn_position)
    bias = np.zeros(Y.shape[1])
    if fit_intercept:
        bias = _mean(Y, root) if bn_position == "after" else _optimal_bias(Y, root, beta)
    target = root[:, None] * (Y - bias)
    hidden, norms, output = _parts(target, bn_position)
    dual = (hidden * np.minimum(norms, beta)) @ output
    if fit_intercept:
        # Rounding in the bias must not cost the proof: the columns are made to sum to zero again.
        unit = root / np.linalg.norm(root)
        dual -= np.outer(unit, unit @ dual)
    largest = _parts(dual, bn_position)[1].max(initial=0.0)
    step = beta / largest if largest > beta else 1.0
    bound = step * float(np.vdot(dual, target)) - 0.5 * step**2 * float(np.vdot(dual, dual))
    kept = norms > beta
    return OptimalLayers(hidden[:, kept], output[kept], norms[kept] - beta, bias, dual, bound, bn_position)


def closed_form_beta_max(
    Y: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    fit_intercept: bool = False,
    bn_position: str = "before",
) -> float:
    r"""Smallest weight decay whose optimal network has no neuron, when the features span :math:`R^n`.

    Parameters
    ----------
    Y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets.
    sample_weight : array-like of shape (n_samples,), optional
        Positive weights of the rows; one each by default.
    fit_intercept : bool, default=False
        Whether there is an output bias; without neurons it is the mean.
    bn_position : {"before", "after"}, default="before"
        Where batch normalization is.

    Returns
    -------
    float
        The largest of the norms :math:`\|h_k\|` of :func:`optimal_layers`.

    Raises
    ------
    ValueError
        If there is no closed form, as :func:`optimal_layers`.

    Examples
    --------
    >>> from skcvxbn.closed_form import closed_form_beta_max
    >>> closed_form_beta_max([3.0, 4.0, 0.0, -2.0])
    5.0
    """
    Y, root = _as_targets(Y, sample_weight, fit_intercept, bn_position)
    mean = _mean(Y, root) if fit_intercept else 0.0
    return float(_parts(root[:, None] * (Y - mean), bn_position)[1].max(initial=0.0))


@dataclass(frozen=True, eq=False)
class Head:
    """The optimal last two layers as a network.

    Attributes
    ----------
    network : BatchNormNetwork
        The network that takes the features.
    rank : int
        Rank of the features: of the centred ones with batch normalization before the ReLU.
    residual : float
        Distance between the outputs of the network and of the optimum on the rows, relative to the latter:
        rounding.
    """

    network: BatchNormNetwork
    rank: int
    residual: float


def interpolating_head(
    optimum: OptimalLayers, X: NDArray[Any], sample_weight: ArrayLike | None = None
) -> Head:
    r"""Write the optimal last two layers as weights on features that span :math:`R^n`.

    Parameters
    ----------
    optimum : OptimalLayers
        What the neurons put on the rows.
    X : ndarray of shape (n_samples, n_features)
        The features of the same rows, float32 or float64: the data, or A^(L-2) of a deep network.
    sample_weight : array-like of shape (n_samples,), optional
        The weights that `optimum` was computed with.

    Returns
    -------
    Head
        The network, in the dtype of `X`, with the weights of minimum norm.

    Raises
    ------
    RankError
        If the features do not span :math:`R^n`.

    Notes
    -----
    Batch normalization before the ReLU removes the mean of ``X w``, so `w` only has to reach the centred
    target: rank n - 1 of the centred features is enough, and the shortest such `w` is at most as long as
    :math:`X^\dagger h` of the paper, with the same outputs on the training rows. After the ReLU it has to
    reach ``h - min(h)`` itself, and rank n is required.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn.closed_form import interpolating_head, optimal_layers
    >>> X, y = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 2.0]]), np.array([3.0, 4.0, -2.0])
    >>> head = interpolating_head(optimal_layers(y, beta=1.0), X)
    >>> head.rank
    2
    >>> head.network.forward(X)[:, 0].round(6)
    array([ 2.4,  3.2, -1. ])
    >>> round(head.network.objective(X, y, beta=1.0), 6)
    6.0
    """
    weight = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    before = optimum.bn_position == "before"
    root, root_n = np.sqrt(weight), float(np.sqrt(weight.sum()))
    unit = root / root_n
    alpha = unit @ optimum.hidden
    centred = optimum.hidden - np.outer(unit, alpha)
    gamma = np.linalg.norm(centred, axis=0)
    # A neuron that is constant on the rows is a shift without weights.
    gamma[gamma < 4 * np.finfo(np.float64).eps * np.sqrt(len(X))] = 0.0

    shape = centred
    if not before:
        values = optimum.hidden / root[:, None]
        shape = root[:, None] * (values - values.min(axis=0))
    M, mean, scale, noise = scaled_rows(X, root, centre=before)
    W = minimum_norm_solution(M, shape * (gamma > 0), noise=noise, dependency=unit if before else None)
    # Rescaled so that what is normalized has variance one, with the statistics of the weights as stored.
    W = (W * (root_n / scale / np.where(gamma > 0, gamma, 1.0))).astype(X.dtype)
    H = product(M, W.astype(np.float64)) * (scale / root)[:, None]
    if not before:
        np.maximum(H, 0, out=H)
    shift = (weight @ H) / root_n**2
    H -= shift
    variance = (weight @ np.square(H)) / root_n**2
    variance[variance == 0] = 1.0
    balance = np.sqrt(optimum.size)
    network = (BatchNormNetwork if before else BatchNormAfterReLUNetwork)(
        hidden_weights=W,
        running_mean=(shift + mean @ W).astype(X.dtype),
        running_var=variance.astype(X.dtype),
        bn_weight=(gamma * balance / root_n).astype(X.dtype),
        bn_bias=(alpha * balance / root_n).astype(X.dtype),
        output_weights=(balance[:, None] * optimum.output).astype(X.dtype),
        intercept=optimum.bias.astype(X.dtype),
    )
    optimal = (optimum.hidden * optimum.size) @ optimum.output
    miss = root[:, None] * (network.forward(X) - optimum.bias) - optimal
    residual = float(np.linalg.norm(miss)) / (float(np.linalg.norm(optimal)) or 1.0)
    return Head(network, len(X) - before, residual)


def _as_targets(
    Y: ArrayLike, sample_weight: ArrayLike | None, fit_intercept: bool, bn_position: str
) -> tuple[Floats, Floats]:
    Y = np.asarray(Y, dtype=np.float64)
    Y = Y.reshape(len(Y), -1)
    if fit_intercept and bn_position == "before" and Y.shape[1] > 1:
        raise ValueError(
            f"fit_intercept=True with {Y.shape[1]} outputs and bn_position='before' has no closed form. Use "
            "fit_intercept=False (a neuron has a shift of its own), or ConvexBNRegressor or "
            "ConvexBNClassifier, whose fits are certified for any targets."
        )
    weight = np.ones(len(Y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    return Y, np.sqrt(weight)


def _mean(Y: Floats, root: Floats) -> Floats:
    # Clipped, because rounding can put the mean of a constant beside it: its targets are then exactly zero.
    return np.clip(np.average(Y, axis=0, weights=root**2), Y.min(axis=0), Y.max(axis=0))


def _optimal_bias(Y: Floats, root: Floats, beta: float) -> Floats:
    """Bias whose residual sums to zero; the mean where a range of biases is optimal."""
    mean = _mean(Y, root)
    y, weight = (Y - mean)[:, 0], root**2

    def pulls(b: float) -> tuple[float, float]:
        """How strongly the rows below and those above b pull it to their side."""
        sides = (np.maximum(b - y, 0), np.maximum(y - b, 0))
        norms = [np.sqrt(weight @ side**2) for side in sides]
        down, up = (
            (weight @ side) * min(1.0, beta / norm if norm > 0 else 1.0)
            for side, norm in zip(sides, norms, strict=True)
        )
        return float(down), float(up)

    down, up = pulls(0.0)
    if abs(down - up) <= 1e-13 * (down + up):
        return mean
    tiny, eps = np.finfo(np.float64).tiny, np.finfo(np.float64).eps
    zero = optimize.brentq(lambda b: float(np.subtract(*pulls(b))), y.min(), y.max(), xtol=tiny, rtol=4 * eps)
    return np.asarray(mean + zero)


def _parts(target: Floats, bn_position: str) -> tuple[Floats, Floats, Floats]:
    """Unit columns, norms and unit rows whose products sum to the target and do not interfere."""
    return _ray_parts(target) if bn_position == "before" else _singular_parts(target)


def _singular_parts(target: Floats) -> tuple[Floats, Floats, Floats]:
    U, values, Vt = np.linalg.svd(target, full_matrices=False)
    # The sign with the positive largest output weight: +1 for one output, as in the paper.
    sign = np.sign(Vt[np.arange(len(Vt)), np.abs(Vt).argmax(axis=1)])
    return U * sign, values, Vt * sign[:, None]


def _ray_parts(target: Floats) -> tuple[Floats, Floats, Floats]:
    """Group the rows by direction; no two directions may make an acute angle."""
    norms = np.linalg.norm(target, axis=1)
    rays = target / np.where(norms > 0, norms, 1.0)[:, None]
    left = norms > 0
    columns, directions = [], []
    while left.any():
        first = int(np.argmax(norms * left))
        cosines = rays @ rays[first]
        same = left & (np.linalg.norm(rays - rays[first], axis=1) <= _SAME)
        acute = left & ~same & (cosines > _SAME)
        if acute.any():
            _refuse_acute(target.shape[1])
        columns.append(norms * same)
        directions.append(rays[first])
        left &= ~same
    hidden = np.reshape(columns, (len(columns), len(target))).T
    output = np.reshape(directions, (len(directions), target.shape[1]))
    # The direction of +1 before that of -1, e_1 before e_2.
    order = np.lexsort(-output.T[::-1])
    sizes = np.linalg.norm(hidden, axis=0)
    return (hidden / sizes)[:, order], sizes[order], output[order]


def _refuse_acute(n_outputs: int) -> None:
    raise ValueError(
        f"These targets of {n_outputs} outputs have no closed form: one exists when any two rows of y point "
        "in the same direction or make an angle of at least 90 degrees, as one-hot rows do and, more "
        "generally, columns of disjoint supports (of one sign or two), and two rows make an acute angle. "
        "ConvexBNRegressor is certified for any targets; bn_position='after' has a closed form for any; "
        "sklearn.multioutput.MultiOutputRegressor fits one network for each output. Rows of equal "
        "features count as one row of the average target."
    )
