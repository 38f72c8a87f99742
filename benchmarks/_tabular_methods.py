"""The estimators of the tabular benchmark: a regressor and a classifier by the name of the method."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler
from sklearn.svm import SVC, SVR

from skcvxbn import ConvexBNClassifier, ConvexBNClassifierCV, ConvexBNRegressor, ConvexBNRegressorCV


def _scaled(model: BaseEstimator) -> Pipeline:
    return Pipeline([("scale", StandardScaler()), ("model", model)])


def _by_quantiles(model: BaseEstimator, distribution: str) -> Pipeline:
    ranks = QuantileTransformer(n_quantiles=200, output_distribution=distribution)
    return Pipeline([("ranks", ranks), ("model", model)])


def _tuned(mlp: BaseEstimator) -> GridSearchCV:
    return GridSearchCV(_scaled(mlp), {"model__alpha": np.logspace(-5, 1, 7)}, cv=3)


PEERS: dict[str, tuple[BaseEstimator, BaseEstimator]] = {
    "linear": (_scaled(Ridge()), _scaled(LogisticRegression(max_iter=1000))),
    "mlp": (_scaled(MLPRegressor()), _scaled(MLPClassifier())),
    "mlp-tuned": (_tuned(MLPRegressor()), _tuned(MLPClassifier())),
    "boosting": (HistGradientBoostingRegressor(), HistGradientBoostingClassifier()),
    "forest": (RandomForestRegressor(), RandomForestClassifier()),
    "svm": (_scaled(SVR()), _scaled(SVC())),
}
OURS: dict[str, tuple[BaseEstimator, BaseEstimator]] = {
    "skcvxbn": (ConvexBNRegressor(), ConvexBNClassifier()),
    "skcvxbn-cv": (ConvexBNRegressorCV(), ConvexBNClassifierCV()),
    "skcvxbn-uniform": tuple(
        _by_quantiles(m, "uniform") for m in (ConvexBNRegressor(), ConvexBNClassifier())
    ),
    "skcvxbn-normal": tuple(_by_quantiles(m, "normal") for m in (ConvexBNRegressor(), ConvexBNClassifier())),
}


def candidates(
    names: list[str], *, regression: bool, ratios: list[float], parameters: dict[str, Any]
) -> dict[str, BaseEstimator]:
    """The estimators of a task by the label of their row; `ratios` and `parameters` are for ours only."""
    models = {}
    for name in names:
        model = (PEERS | OURS)[name][0 if regression else 1]
        if name in PEERS:
            models[name] = model
            continue
        chosen = [] if name.endswith("-cv") else ratios
        for setting in [{"beta_ratio": ratio} | parameters for ratio in chosen] or [parameters]:
            text = ", ".join(f"{key}={value!r}" for key, value in setting.items())
            prefix = "model__" if isinstance(model, Pipeline) else ""
            named = {f"{prefix}{key}": value for key, value in setting.items()}
            models[f"{name}({text})" if text else name] = clone(model).set_params(**named)
    return models


def seeded(model: BaseEstimator, seed: int) -> BaseEstimator:
    """A copy of the estimator with every `random_state` in it set to the seed."""
    copy = clone(model)
    names = [name for name in copy.get_params() if name.split("__")[-1] == "random_state"]
    return copy.set_params(**dict.fromkeys(names, seed))
