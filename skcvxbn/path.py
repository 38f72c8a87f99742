"""The path of optimal networks along the weight decay, and where it begins: `beta_max`."""

from __future__ import annotations

import math
import time
import warnings
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_random_state, check_X_y
from sklearn.utils.multiclass import check_classification_targets

from skcvxbn._sklearn import Interval, StrOptions, check_sample_weight, validate_params
from skcvxbn.backend import Backend, resolve, within_memory
from skcvxbn.distributed import refuse_shards
from skcvxbn.network import BatchNormNetwork
from skcvxbn.solvers import Options, solve
from skcvxbn.targets import CLASSIFICATION_LOSSES, REGRESSION_LOSSES, class_targets, regression_targets
from skcvxbn.training import Training, positive_rows, prepare

_PROBLEM_CONSTRAINTS: dict[str, list[Any]] = {
    "X": ["array-like"],
    "y": ["array-like"],
    "loss": [StrOptions({*REGRESSION_LOSSES, *CLASSIFICATION_LOSSES})],
    "epsilon": [Interval(Real, 0.0, np.inf, closed="neither")],
    "quantile": [Interval(Real, 0.0, 1.0, closed="neither")],
    "shrinkage": [Interval(Real, 0.0, 1.0, closed="left")],
    "fit_intercept": ["boolean"],
    "sample_weight": ["array-like", None],
    "backend": [StrOptions({"numpy", "torch"})],
    "device": [str, None],
}


@validate_params(_PROBLEM_CONSTRAINTS, prefer_skip_nested_validation=True)
def beta_max(
    X: ArrayLike,
    y: ArrayLike,
    *,
    loss: str = "squared_error",
    epsilon: float = 1.35,
    quantile: float = 0.5,
    shrinkage: float = 0.0,
    fit_intercept: bool = True,
    sample_weight: ArrayLike | None = None,
    backend: str = "numpy",
    device: str | None = None,
) -> float:
    """Smallest weight decay whose optimal network is zero or, with an intercept, constant.

    At zero the dual variable is minus the gradient of the loss at the best constant (for the squared error
    the centred target), so this is the largest value of ``||R^T (A s)_+||`` over unit ``s`` there: the
    natural unit in which to choose `beta`. It is the `beta_max_` of a fit to the same data. Where the loss
    has a kink at the best constant (absolute error, pinball, hinge) the gradient is not unique; the value
    belongs to one gradient, and a somewhat smaller weight decay may already leave no neuron.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Training rows.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Numeric targets for a loss of `ConvexBNRegressor`; labels of any type for the losses that only
        `ConvexBNClassifier` has.
    loss : {"squared_error", "absolute_error", "huber", "pinball", "log_loss", "hinge", "squared_hinge"}, \
            default="squared_error"
        The loss, as in the estimators.
    epsilon : float, default=1.35
        Error from which on the loss "huber" is linear.
    quantile : float, default=0.5
        Quantile of the loss "pinball".
    shrinkage : float, default=0.0
        Share of the variance of the standardised features, from 0 to below 1, that batch normalization leaves
        out, as in the estimators.
    fit_intercept : bool, default=True
        Whether the network has an unpenalised output bias.
    sample_weight : array-like of shape (n_samples,), default=None
        Nonnegative weights; rows of weight zero are left out.
    backend : {"numpy", "torch"}, default="numpy"
        Array library that computes it, as in the estimators.
    device : str, default=None
        Where PyTorch does: "cpu", "cuda" or "cuda:k".

    Returns
    -------
    float
        The value, found by the same thorough search that certifies a fit, from fixed starting points:
        it is deterministic, and at least the largest local maximum found.

    Raises
    ------
    ValueError
        If the data are not finite arrays of matching length, or a parameter is not as described.

    See Also
    --------
    convex_bn_path : The optimal networks below it.

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
    refuse_shards("beta_max")
    place = resolve(backend, device)
    with within_memory(place):
        return _training(
            X, y, loss, epsilon, quantile, shrinkage, fit_intercept, sample_weight, place
        ).beta_max


class RegularizationPath(NamedTuple):
    """Networks along decreasing weight decay, from `convex_bn_path`.

    Attributes
    ----------
    betas : ndarray of shape (n_betas,)
        Weight decays, decreasing.
    networks : list of BatchNormNetwork
        The network trained with each.
    objectives : ndarray of shape (n_betas,)
        Its training objective.
    lower_bounds : ndarray of shape (n_betas,)
        Estimated lower bound of the objective of any network with that weight decay.
    """

    betas: NDArray[np.float64]
    networks: list[BatchNormNetwork]
    objectives: NDArray[np.float64]
    lower_bounds: NDArray[np.float64]

    @property
    def dual_gaps(self) -> NDArray[np.float64]:
        """The most that any other network could gain: `objectives` minus `lower_bounds`."""
        return self.objectives - self.lower_bounds

    @property
    def n_neurons(self) -> NDArray[np.int_]:
        """Number of neurons of each network."""
        return np.array([len(network.bn_weight) for network in self.networks], dtype=np.int_)


@validate_params(
    {
        **_PROBLEM_CONSTRAINTS,
        "betas": [Interval(Integral, 1, None, closed="left"), "array-like"],
        "eps": [Interval(Real, 0.0, 1.0, closed="neither")],
        "max_neurons": [Interval(Integral, 1, None, closed="left"), None],
        "tol": [Interval(Real, 0.0, np.inf, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "max_time": [Interval(Real, 0.0, None, closed="neither"), None],
        "search_starts": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    },
    prefer_skip_nested_validation=True,
)
def convex_bn_path(
    X: ArrayLike,
    y: ArrayLike,
    *,
    betas: int | ArrayLike = 100,
    eps: float = 1e-3,
    loss: str = "squared_error",
    epsilon: float = 1.35,
    quantile: float = 0.5,
    shrinkage: float = 0.0,
    fit_intercept: bool = True,
    sample_weight: ArrayLike | None = None,
    max_neurons: int | None = None,
    tol: float = 1e-2,
    max_iter: int = 20,
    max_time: float | None = None,
    search_starts: int = 512,
    backend: str = "numpy",
    device: str | None = None,
    random_state: int | np.random.RandomState | None = None,
    verbose: int = 0,
) -> RegularizationPath:
    """Train networks along decreasing weight decay, each from the one before.

    The rows are whitened once, and every network is the start of the next: a path costs much less than its
    fits one by one. Each network has a stated gap as after a fit of an estimator.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Training rows.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Numeric targets for a loss of `ConvexBNRegressor`; labels of any type for the losses that only
        `ConvexBNClassifier` has.
    betas : int or array-like of shape (n_betas,), default=100
        Weight decays, absolute and positive, in any order. An int is their number: they are then spaced
        evenly on a log scale from `beta_max`, where the network has no neuron, to ``eps * beta_max``.
    eps : float, default=1e-3
        Smallest weight decay as a share of the largest, if `betas` is an int.
    loss : {"squared_error", "absolute_error", "huber", "pinball", "log_loss", "hinge", "squared_hinge"}, \
            default="squared_error"
        The loss, as in the estimators.
    epsilon : float, default=1.35
        Error from which on the loss "huber" is linear.
    quantile : float, default=0.5
        Quantile of the loss "pinball".
    shrinkage : float, default=0.0
        Share of the variance of the standardised features, from 0 to below 1, that batch normalization leaves
        out, as in the estimators.
    fit_intercept : bool, default=True
        Whether the network has an unpenalised output bias.
    sample_weight : array-like of shape (n_samples,), default=None
        Nonnegative weights; rows of weight zero are left out.
    max_neurons : int, default=None
        Largest number of neurons of a network. None sets no limit.
    tol : float, default=1e-2
        Relative gap at which the training of a network stops.
    max_iter : int, default=20
        Largest number of rounds for each network.
    max_time : float, default=None
        Seconds for the whole path. What is left of it after that is trained for one round each. None sets
        no limit.
    search_starts : int, default=512
        Random starting points of the last search behind each lower bound.
    backend : {"numpy", "torch"}, default="numpy"
        Array library that trains the networks, as in the estimators.
    device : str, default=None
        Where PyTorch does: "cpu", "cuda" or "cuda:k".
    random_state : int, RandomState instance or None, default=None
        Source of the starting points.
    verbose : int, default=0
        1 prints the objective and the gap after every round.

    Returns
    -------
    RegularizationPath
        A named tuple ``(betas, networks, objectives, lower_bounds)``. It holds neurons, and no copy of
        the data.

    Raises
    ------
    ValueError
        If the data are not finite arrays of matching length, or a parameter is not as described.

    Warns
    -----
    ConvergenceWarning
        If gaps are above `tol`. The networks are usable and their gaps valid.

    See Also
    --------
    beta_max : Where the path begins.
    ConvexBNRegressorCV, ConvexBNClassifierCV : Choose a weight decay by cross-validation.

    Examples
    --------
    >>> import numpy as np
    >>> from skcvxbn import convex_bn_path
    >>> X = np.linspace(-1, 1, 21)[:, None]
    >>> betas, networks, objectives, lower_bounds = convex_bn_path(
    ...     X, np.abs(X[:, 0]), betas=5, tol=1e-3, random_state=0
    ... )
    >>> bool(np.all(objectives - lower_bounds <= 1e-3 * objectives))
    True
    >>> networks[0].forward(X[:2])  # the mean, without a neuron
    array([[0.52380952],
           [0.52380952]])
    """
    deadline = math.inf if max_time is None else time.monotonic() + max_time
    refuse_shards("convex_bn_path")
    place = resolve(backend, device)
    options = Options(
        tol=tol,
        max_iter=max_iter,
        max_neurons=max_neurons,
        search_starts=search_starts,
        rng=check_random_state(random_state),
        verbose=int(verbose),
        deadline=deadline,
    )
    with within_memory(place):
        training = _training(X, y, loss, epsilon, quantile, shrinkage, fit_intercept, sample_weight, place)
        path, n_open = _trained(training, _grid(betas, eps, training.beta_max), options)
    if n_open:
        warnings.warn(
            f"convex_bn_path stopped at a relative gap above tol={tol:g} for {n_open} of {len(path.betas)} "
            "weight decays; see dual_gaps. The networks and their gaps are valid. To close the gaps, raise "
            "max_iter or tol, or end the path at a larger weight decay.",
            ConvergenceWarning,
            stacklevel=3,
        )
    return path


def _trained(
    training: Training, grid: NDArray[np.float64], options: Options
) -> tuple[RegularizationPath, int]:
    """Train the networks of a path; the number of gaps that stayed open comes second."""
    networks, objectives, lower_bounds = [], np.empty(len(grid)), np.empty(len(grid))
    start, n_open = None, 0
    for i, beta in enumerate(grid):
        solution = solve(training.at(beta), options, start=start)
        start = (solution.S, solution.V) if len(solution.V) else None
        networks.append(training.network(solution))
        objectives[i] = training.objective(networks[i], beta)
        lower_bounds[i] = min(solution.lower_bound, objectives[i])
        n_open += not solution.converged
    return RegularizationPath(grid, networks, objectives, lower_bounds), n_open


def log_grid(n: int, eps: float) -> NDArray[np.float64]:
    """Shares from 1 down to `eps`, evenly spaced on a log scale."""
    return np.geomspace(1.0, eps, n)


def _grid(betas: int | ArrayLike, eps: float, largest: float) -> NDArray[np.float64]:
    if isinstance(betas, Integral):
        # A constant target needs no neuron at any weight decay, but the solver needs one that is positive.
        return log_grid(int(betas), eps) * (largest or np.finfo(np.float64).resolution)
    return decreasing(betas, "betas")


def decreasing(values: Any, name: str) -> NDArray[np.float64]:
    """Validate a grid of positive numbers and sort it, the largest first, each once.

    Parameters
    ----------
    values : array-like of shape (n_values,)
        The grid.
    name : str
        What an error calls it.
    """
    grid = check_array(values, ensure_2d=False, dtype=np.float64, input_name=name)
    if grid.ndim != 1 or not (grid > 0).all():
        raise ValueError(f"{name} must be positive numbers in a 1D array. Got {values!r} instead.")
    return np.unique(grid)[::-1]


def _training(
    X: ArrayLike,
    y: ArrayLike,
    loss: str,
    epsilon: float,
    quantile: float,
    shrinkage: float,
    fit_intercept: bool,
    sample_weight: ArrayLike | None,
    backend: Backend,
) -> Training:
    """Validate data and state the training problem, as `fit` of the estimators does."""
    numeric = loss in REGRESSION_LOSSES
    rows, labels = check_X_y(
        X, y, multi_output=numeric, y_numeric=numeric, dtype=[np.float64, np.float32], ensure_min_samples=2
    )
    weight = check_sample_weight(sample_weight, rows)
    rows, labels, weight = positive_rows(rows, np.asarray(labels), weight)
    if numeric:
        targets = regression_targets(labels, loss, epsilon, quantile)
    else:
        check_classification_targets(labels)
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"loss={loss!r} requires samples of at least 2 classes in the data (rows of weight zero do "
                f"not count), but the data contains only one class: {classes.tolist()[0]!r}."
            )
        targets = class_targets(codes, len(classes), loss)
    return prepare(rows, targets, weight, fit_intercept=fit_intercept, shrinkage=shrinkage, backend=backend)
