"""Choice of the weight decay by cross-validation: what the two estimators that do it share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn import get_config
from sklearn.base import is_classifier
from sklearn.metrics import check_scoring, get_scorer_names
from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.parallel import Parallel, delayed

from skcvxbn._sklearn import Interval, StrOptions, check_sample_weight, fit_context, on_host, rows_of
from skcvxbn.backend import Backend, within_memory
from skcvxbn.distributed import refuse_shards
from skcvxbn.estimators._base import ConvexBNEstimator
from skcvxbn.path import decreasing, log_grid
from skcvxbn.solvers import Solution, solve, solve_roughly
from skcvxbn.training import Training, positive_rows

Floats = NDArray[np.float64]
Split = tuple[NDArray[np.intp], NDArray[np.intp]]
Score = Callable[..., float]
# How rows are prepared: a number of components, and a shrinkage.
Setting = dict[str, Any]

# Parameters of the plain estimators that the search replaces.
_REPLACED = {"beta", "beta_ratio", "warm_start"}
# The grid where none is given: a step of it is a factor of 2.2.
N_RATIOS = 10
# What is kept of each network of a fold.
_QUANTITIES = ("test_score", "objective", "n_neurons", "fit_time", "score_time")


def constraints(plain: type[ConvexBNEstimator]) -> dict[str, list[Any]]:
    """Constraints of the parameters, given the estimator whose weight decay is chosen."""
    inherited = plain._parameter_constraints.items()
    return {
        **{name: allowed for name, allowed in inherited if name not in _REPLACED},
        "shrinkage": [Interval(Real, 0.0, 1.0, closed="left"), "array-like"],
        "beta_ratios": [Interval(Integral, 1, None, closed="left"), "array-like"],
        "eps": [Interval(Real, 0.0, 1.0, closed="neither")],
        "n_components": [
            Interval(Integral, 1, None, closed="left"),
            Interval(Real, 0.0, 1.0, closed="neither"),
            "array-like",
            None,
        ],
        "cv": ["cv_object"],
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
        "selection_rule": [StrOptions({"best", "one_standard_error"})],
        "refit": ["boolean"],
        "cv_tol": [Interval(Real, 0.0, np.inf, closed="neither")],
        "n_jobs": [Integral, None],
    }


class CrossValidated(ConvexBNEstimator):
    """Mixin left of a plain estimator, whose weight decay it chooses."""

    _plain: ClassVar[type[ConvexBNEstimator]]

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None, **params: Any) -> Self:
        """Choose the weight decay by cross-validation and train the network with it.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, dense and finite, read in the precision that `dtype` says.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets or labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows, in training and in the scores.
        **params : dict
            `groups` for the splitter; with metadata routing enabled, whatever splitter and scorer request.

        Returns
        -------
        self : object
            The fitted estimator. When `fit` raises, a previously fitted one is left as it was.

        Raises
        ------
        ValueError, TypeError
            If a parameter, the data or the weights are not as described.

        Warns
        -----
        ConvergenceWarning
            If the gap of the network is above `tol` after `max_iter` rounds. It is usable and its gap valid.
        """
        refuse_shards(type(self).__name__)
        sample_weight = on_host(sample_weight)
        backend = self._checked_backend()
        ratios, settings = self._ratios(), self._settings()
        split_params, score_params = self._routed(sample_weight, params)
        with self._unchanged_on_failure(), within_memory(backend):
            for name in [name for name in vars(self) if name.endswith("_")]:
                delattr(self, name)
            X, y = self._validate(X, y)
            weight = check_sample_weight(sample_weight, X)
            splits = list(check_cv(self.cv, y, classifier=is_classifier(self)).split(X, y, **split_params))
            self._fit_best(_Search(X, y, weight, splits, ratios, settings, backend), score_params)
        return self

    def _fit_best(self, search: _Search, score_params: dict[str, Any]) -> None:
        X, y, weight = positive_rows(search.X, search.y, search.weight)
        targets, weight = self._code(y, weight, search.backend.rows)
        # Before the folds are trained: what is refused here would be refused after them.
        for setting in search.settings:
            training = self._prepare(X, targets, weight, search.backend, **setting)
        self._check_splits(search)

        self.cv_results_ = self._cross_validate(search, score_params)
        self.best_index_ = self._chosen(search)
        chosen = search.settings[self.best_index_ // len(search.ratios)]
        self.best_score_ = float(self.cv_results_["mean_test_score"][self.best_index_])
        self.beta_ratios_, self.n_splits_ = search.ratios, len(search.splits)
        self.n_components_, self.shrinkage_ = chosen["n_components"], chosen["shrinkage"]
        self.beta_ratio_ = float(search.ratios[self.best_index_ % len(search.ratios)])
        if len(search.settings) > 1:
            # To keep all of them would take the memory of as many copies of the rows.
            training = self._prepare(X, targets, weight, search.backend, **chosen)
        self.beta_max_ = training.beta_max
        self.beta_ = self.beta_ratio_ * self.beta_max_
        self.betas_ = search.ratios * self.beta_max_
        if self.refit:
            deadline = math.inf if self.max_time is None else time.monotonic() + self.max_time
            self._train(training, self.beta_, deadline)

    def _cross_validate(self, search: _Search, score_params: dict[str, Any]) -> dict[str, Any]:
        tasks = [(setting, split) for setting in search.settings for split in search.splits]
        seeds = check_random_state(self.random_state).randint(np.iinfo(np.int32).max, size=len(tasks))
        score = _mean_loss_score if self.scoring is None else check_scoring(self, scoring=self.scoring)
        if self.scoring is None:
            score_params = {"sample_weight": search.weight}
        paths = Parallel(n_jobs=self.n_jobs, verbose=self.verbose)(
            delayed(_path_scores)(
                self._plain_estimator(), search, split, setting, self.cv_tol, int(seed), score, score_params
            )
            for (setting, split), seed in zip(tasks, seeds, strict=True)
        )
        # To axes (candidate, split, quantity).
        shape = len(search.settings), len(search.splits), len(search.ratios), -1
        table = np.asarray(paths).reshape(shape).swapaxes(1, 2)
        return _results(search, table.reshape(-1, *table.shape[2:]))

    def _chosen(self, search: _Search) -> int:
        mean, std = self.cv_results_["mean_test_score"], self.cv_results_["std_test_score"]
        comparable = np.where(np.isfinite(mean), mean, -np.inf)
        best = int(comparable.argmax())
        if not np.isfinite(mean[best]):
            raise ValueError("All the mean test scores are non-finite; choose another scoring or cv.")
        if self.selection_rule == "best":
            return best
        # Candidates of one setting are ordered by decreasing weight decay.
        error = std[best] / math.sqrt(max(len(search.splits) - 1, 1))
        first = best - best % len(search.ratios)
        return first + int(np.flatnonzero(comparable[first:] >= mean[best] - error)[0])

    def _start(self, training: Training) -> None:
        """Train the chosen network as the plain estimator would."""

    def _plain_estimator(self) -> ConvexBNEstimator:
        names = self._plain().get_params()
        common = {name: getattr(self, name) for name in names if name not in _REPLACED}
        return self._plain(**{**common, "verbose": 0})

    def _ratios(self) -> Floats:
        if isinstance(self.beta_ratios, Integral):
            return log_grid(int(self.beta_ratios), self.eps)
        return decreasing(self.beta_ratios, "beta_ratios")

    def _settings(self) -> list[Setting]:
        """Every way to prepare the rows."""
        components, shrinkages = self._components(), self._shrinkages()
        return [{"n_components": k, "shrinkage": share} for k in components for share in shrinkages]

    def _shrinkages(self) -> list[float]:
        grid = [self.shrinkage] if isinstance(self.shrinkage, Real) else list(self.shrinkage)
        for share in grid:
            if not isinstance(share, Real) or not 0 <= float(share) < 1:
                raise ValueError(
                    f"The 'shrinkage' parameter of {type(self).__name__} must hold floats in the range "
                    f"[0.0, 1.0). Got {share!r} instead."
                )
        if not grid:
            raise ValueError("shrinkage must hold at least one value. Got an empty array instead.")
        return [float(share) for share in grid]

    def _components(self) -> list[Any]:
        values = self.n_components
        grid = [values] if values is None or isinstance(values, Real) else list(values)
        for k in grid:
            whole = isinstance(k, Integral) and int(k) >= 1
            if k is not None and not whole and not (isinstance(k, Real) and 0 < float(k) < 1):
                raise ValueError(
                    f"The 'n_components' parameter of {type(self).__name__} must hold ints in the range "
                    f"[1, inf), floats in the range (0.0, 1.0) or None. Got {k!r} instead."
                )
        if not grid:
            raise ValueError("n_components must hold at least one value. Got an empty array instead.")
        return grid

    def _check_splits(self, search: _Search) -> None:
        for i, (train, test) in enumerate(search.splits):
            if not search.weight[train].any() or not search.weight[test].any():
                raise ValueError(f"Split {i} of cv has a part whose rows are none or all of weight zero.")
            if not is_classifier(self):
                continue
            missing = np.setdiff1d(self.classes_, search.y[train][search.weight[train] > 0])
            if len(missing):
                raise ValueError(
                    f"Split {i} of cv has no training rows of the class {missing[0]!r}. Choose cv so that "
                    "every training part has rows of all classes: fewer splits, or stratified ones."
                )

    def _routed(
        self, sample_weight: ArrayLike | None, params: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Metadata for the splitter and for the scorer."""
        if get_config().get("enable_metadata_routing"):
            routed = process_routing(self, "fit", sample_weight=sample_weight, **params)
            return routed.splitter.split, {} if self.scoring is None else routed.scorer.score
        unknown = params.keys() - {"groups"}
        if unknown:
            raise ValueError(
                f"Passing {sorted(unknown)} to fit is only supported with "
                "sklearn.set_config(enable_metadata_routing=True)."
            )
        return params, {} if sample_weight is None else {"sample_weight": sample_weight}

    def get_metadata_routing(self) -> MetadataRouter:
        """Get the metadata routing of this object: to the splitter and to the scorer.

        Returns
        -------
        routing : MetadataRouter
            A :class:`~sklearn.utils.metadata_routing.MetadataRouter`.
        """
        router = MetadataRouter(owner=self).add_self_request(self)
        router.add(
            splitter=check_cv(self.cv), method_mapping=MethodMapping().add(caller="fit", callee="split")
        )
        if self.scoring is not None:
            scorer = check_scoring(self, scoring=self.scoring)
            router.add(scorer=scorer, method_mapping=MethodMapping().add(caller="fit", callee="score"))
        return router


@dataclass(frozen=True, eq=False)
class _Search:
    """Data and candidates."""

    X: NDArray[Any]
    y: NDArray[Any]
    weight: Floats
    splits: list[Split]
    ratios: Floats
    settings: list[Setting]
    backend: Backend


def _path_scores(
    model: ConvexBNEstimator,
    search: _Search,
    split: Split,
    setting: Setting,
    tol: float,
    seed: int,
    score: Score,
    score_params: dict[str, Any],
) -> list[tuple[float, ...]]:
    """Train the networks of one fold along the path and score them: the quantities of `_QUANTITIES`."""
    train, test = split
    X, y, weight = positive_rows(search.X[train], search.y[train], search.weight[train])
    targets, weight = model._code(y, weight, search.backend.rows)
    clock = time.perf_counter()
    training = model._prepare(X, targets, weight, search.backend, **setting)
    held_out = search.X[test], search.y[test]
    params = rows_of(search.X, score_params, indices=test)
    model.n_features_in_ = X.shape[1]
    rows: list[tuple[float, ...]] = []
    for solution in _solutions(model, training, search.ratios, tol, seed):
        model.network_ = training.network(solution)
        trained = time.perf_counter()
        value = float(score(model, *held_out, **params))
        scored = time.perf_counter()
        n_neurons = len(model.network_.bn_weight)
        rows.append((value, solution.objective, n_neurons, trained - clock, scored - trained))
        clock = scored
    return rows


def _solutions(
    model: ConvexBNEstimator, training: Training, ratios: Floats, tol: float, seed: int
) -> Iterator[Solution]:
    rng = check_random_state(seed)
    patterns = model._patterns(training, rng)
    options = replace(model._options(rng, math.inf), tol=tol)
    # A constant target needs no neuron at any weight decay, but the solver needs one that is positive.
    betas = ratios * (training.rough_beta_max or np.finfo(np.float64).resolution)
    if patterns is None:
        yield from solve_roughly(training.placed, betas, options)
        return
    for beta in betas:
        yield solve(
            training.at(beta), options, solver=model.solver, patterns=patterns, complete=model._enumerates
        )


def _mean_loss_score(model: Any, X: NDArray[Any], y: NDArray[Any], sample_weight: Floats) -> float:
    """Minus the mean over the rows of the loss that the network is trained with."""
    targets, weight = model._coded(y, sample_weight)
    return -targets.mean_loss(model._forward(X), weight)


def _results(search: _Search, table: Floats) -> dict[str, Any]:
    """Arrange the quantities of all candidates and splits as `GridSearchCV` does."""
    params = [{"beta_ratio": float(r), **setting} for setting in search.settings for r in search.ratios]
    components = np.empty(len(params), dtype=object)
    components[:] = [candidate["n_components"] for candidate in params]
    results: dict[str, Any] = {
        "params": params,
        "param_beta_ratio": np.array([candidate["beta_ratio"] for candidate in params]),
        "param_n_components": components,
        "param_shrinkage": np.array([candidate["shrinkage"] for candidate in params]),
    }
    for i in range(table.shape[1]):
        results[f"split{i}_test_score"] = table[:, i, 0]
    for column, name in enumerate(_QUANTITIES):
        results[f"mean_{name}"] = table[:, :, column].mean(axis=1)
        results[f"std_{name}"] = table[:, :, column].std(axis=1)
    mean = results["mean_test_score"]
    ordered = np.where(np.isfinite(mean), -mean, np.inf)
    results["rank_test_score"] = rankdata(ordered, method="min").astype(np.int32)
    return results
