"""What the closed-form estimators share: their parameters, and training from features to attributes."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from skcvxbn._sklearn import HasMethods, Interval, StrOptions
from skcvxbn.closed_form import Head, OptimalLayers, closed_form_beta_max, interpolating_head, optimal_layers
from skcvxbn.deep_network import BatchNormLayer, DeepBatchNormNetwork, extract_features, random_layer
from skcvxbn.estimators._base import DEFAULT_BETA_RATIO, NetworkEstimator
from skcvxbn.interpolation import RankError

Floats = NDArray[np.float64]

PRECISIONS = [np.float64, np.float32]

# Width of the layer that hidden_layer_sizes="auto" adds, per distinct row. Two suffice for the rank; test
# errors fall up to about eight (they peak where the width is just enough to interpolate).
_WIDTH_PER_ROW, _MIN_WIDTH_PER_ROW = 8, 2
# Entries of the feature matrix (1 GiB) above which the smaller width has to do.
_MAX_ENTRIES = 2**27


class ClosedFormEstimator(NetworkEstimator):
    """Base of the batch-norm networks whose last two layers are a formula."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "beta": [Interval(Real, 0.0, np.inf, closed="neither"), None],
        "beta_ratio": [Interval(Real, 0.0, np.inf, closed="neither")],
        "fit_intercept": ["boolean"],
        "hidden_layer_sizes": [StrOptions({"auto"}), "array-like"],
        "feature_extractor": [HasMethods("transform"), HasMethods(["forward", "parameters"]), None],
        "bn_position": [StrOptions({"before", "after"})],
        "random_state": ["random_state"],
    }
    # The estimator to offer where there is no closed form.
    _certified: ClassVar[str]

    def __init__(
        self,
        beta: float | None = None,
        *,
        beta_ratio: float = DEFAULT_BETA_RATIO,
        fit_intercept: bool = False,
        hidden_layer_sizes: Any = "auto",
        feature_extractor: Any = None,
        bn_position: str = "before",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.beta = beta
        self.beta_ratio = beta_ratio
        self.fit_intercept = fit_intercept
        self.hidden_layer_sizes = hidden_layer_sizes
        self.feature_extractor = feature_extractor
        self.bn_position = bn_position
        self.random_state = random_state

    def __sklearn_clone__(self) -> Any:
        """Clone the parameters, but keep the feature extractor, which is fitted, as it is."""
        copy = super().__sklearn_clone__()
        copy.feature_extractor = self.feature_extractor
        return copy

    def _features(self, X: Any) -> NDArray[Any]:
        """Outputs of the feature extractor, which is handed what the user gave."""
        validate_data(self, X, skip_check_array=True)
        features = extract_features(self.feature_extractor, X)
        return np.asarray(check_array(features, dtype=[np.float64, np.float32], ensure_min_samples=2))

    def _train(self, features: NDArray[Any], Y: Floats, weight: Floats, *, single_output: bool) -> None:
        """Write down the last two layers on features of rows of positive weight."""
        X, Y, weight, within = _one_row_per_point(features, Y, weight)
        variant: dict[str, Any] = {"fit_intercept": self.fit_intercept, "bn_position": self.bn_position}
        beta_max = closed_form_beta_max(Y, weight, **variant)
        beta = float(self.beta_ratio * beta_max if self.beta is None else self.beta)
        optimum = optimal_layers(Y, beta, weight, **variant)
        hidden, X, head = self._layers(optimum, X, weight)

        network: Any = head.network
        if hidden or self.feature_extractor is not None:
            network = DeepBatchNormNetwork(head.network, hidden, self.feature_extractor)
        self.beta_, self.beta_max_ = beta, beta_max
        self.network_ = network
        self.objective_ = head.network.objective(X, Y, beta, weight) + within
        self.lower_bound_ = min(optimum.lower_bound + within, self.objective_)
        self.dual_gap_ = self.objective_ - self.lower_bound_
        self.certificate_ = "exact"
        self.n_neurons_ = len(head.network.bn_weight)
        self.rank_ = head.rank
        self.hidden_layer_sizes_ = tuple(len(layer.bn_weight) for layer in hidden)
        intercept = head.network.intercept
        self.intercept_ = float(intercept[0]) if single_output else intercept
        self.residual_ = head.residual
        if head.residual > np.sqrt(np.finfo(X.dtype).eps):
            self._warn_inexact(X.dtype)

    def _layers(
        self, optimum: OptimalLayers, X: NDArray[Any], weight: Floats
    ) -> tuple[tuple[BatchNormLayer, ...], NDArray[Any], Head]:
        """Hidden layers, their output and the head on it."""
        automatic = isinstance(self.hidden_layer_sizes, str)
        candidates = [() if automatic else tuple(int(size) for size in self.hidden_layer_sizes)]
        if automatic and self.feature_extractor is None:
            candidates.append((_automatic_width(len(X)),))
            # The rank of a tall X is not worth computing.
            candidates = candidates[X.shape[1] < len(X) - 1 :]
        for candidate in candidates:
            rng = check_random_state(self.random_state)
            # Random features of rows close to one another differ in digits that float32 does not have.
            hidden, out = [], X.astype(np.float64) if candidate else X
            for width in candidate:
                hidden.append(random_layer(out, width, rng, weight))
                out = hidden[-1].forward(out)
            try:
                return tuple(hidden), out, interpolating_head(optimum, out, weight)
            except RankError as error:
                found = error
        raise ValueError(self._rank_message(found, out.shape[1], len(X), hidden)) from found

    def _check_sizes(self) -> None:
        """Refuse widths that are not positive integers."""
        if isinstance(self.hidden_layer_sizes, str):
            return
        if not all(isinstance(size, Integral) and int(size) > 0 for size in self.hidden_layer_sizes):
            raise ValueError(
                "hidden_layer_sizes must hold integers greater than zero. "
                f"Got {self.hidden_layer_sizes!r} instead."
            )

    def _rank_message(self, error: RankError, n_features: int, n_rows: int, hidden: list[Any]) -> str:
        centred = " after centring" if self.bn_position == "before" else ""
        if hidden:
            source, remedy = "the last hidden layer", "Widen the last entry of hidden_layer_sizes"
        elif self.feature_extractor is not None:
            source, remedy = "feature_extractor", "Add a hidden layer with hidden_layer_sizes"
        else:
            source, remedy = "X", "Add a hidden layer with hidden_layer_sizes"
        return (
            f"The {n_features} features of {source} have rank {error.rank}{centred}, while rank "
            f"{error.required} is required for the closed form on {n_rows} distinct rows. {remedy}: "
            f"a width of at least {error.required} is necessary, and {_automatic_width(n_rows)} is what "
            f"hidden_layer_sizes='auto' uses. {self._certified} needs no such condition."
        )

    def _warn_inexact(self, dtype: np.dtype) -> None:
        warnings.warn(
            f"The features are so ill-conditioned, or so far from zero, that with {dtype} the outputs on the "
            f"training rows miss those of the formula by {self.residual_:.1e}, relatively. The objective "
            f"is that of the network as it is, {self.dual_gap_:.1e} above the optimum. To come closer, "
            "standardise the features, use float64, or choose another width in hidden_layer_sizes.",
            ConvergenceWarning,
            stacklevel=5,
        )

    def _forward(self, X: Any) -> NDArray[Any]:
        if self.feature_extractor is None:
            return super()._forward(X)
        check_is_fitted(self)
        validate_data(self, X, skip_check_array=True, reset=False)
        return np.asarray(self.network_.forward(X))


def _automatic_width(n_rows: int) -> int:
    return min(_WIDTH_PER_ROW * n_rows, max(_MIN_WIDTH_PER_ROW * n_rows, _MAX_ENTRIES // n_rows))


def _one_row_per_point(
    X: NDArray[Any], Y: Floats, weight: Floats
) -> tuple[NDArray[Any], Floats, Floats, float]:
    """Merge rows of equal features into one of their average target; put rows in an order of their own.

    No network tells such rows apart, so the loss is that on the average plus a constant, returned last.
    Without this, one repeated row would make the rank too low.
    """
    direction = np.asarray(np.random.RandomState(0).standard_normal(X.shape[1]), dtype=X.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        # Equal rows have equal projections up to the rounding of sums in another order.
        projection = X @ direction
        order = np.argsort(projection, kind="stable")
        rounding = 4 * np.finfo(X.dtype).eps * np.abs(direction).sum() * max(X.max(), -X.min())
        new = np.diff(projection[order]) > rounding
    starts = np.flatnonzero(np.concatenate([[True], new]))
    groups, n_points = np.empty(len(X), dtype=np.intp), 0
    for rows in np.split(order, starts[1:]):
        if len(rows) > 1:
            # Adding zero turns -0.0, which equals 0.0 but has other bits, into 0.0.
            bits = [(X[row] + 0.0).tobytes() for row in rows]
            numbers = {row: number for number, row in enumerate(sorted(set(bits)))}
            groups[rows] = [n_points + numbers[row] for row in bits]
            n_points += len(numbers)
        else:
            groups[rows] = n_points
            n_points += 1
    _, first, counts = np.unique(groups, return_index=True, return_counts=True)
    if n_points == len(X):
        return X[first], Y[first].astype(np.float64), weight[first].astype(np.float64), 0.0
    total = np.bincount(groups, weights=weight).astype(np.float64)
    sums = np.stack([np.bincount(groups, weights=weight * column) for column in Y.T], axis=1)
    average: Floats = np.where(counts[:, None] > 1, sums / total[:, None], Y[first]).astype(np.float64)
    within = 0.5 * float(weight @ np.square(Y - average[groups]).sum(axis=1))
    return X[first], average, total, within
