"""Globally optimal batch-normalized ReLU networks as scikit-learn estimators."""

from __future__ import annotations

from skcvxbn.estimators import ConvexBNClassifier, ConvexBNRegressor, SVDTruncation
from skcvxbn.network import BatchNormNetwork
from skcvxbn.path import beta_max

__version__ = "0.1.0"

__all__ = [
    "BatchNormNetwork",
    "ConvexBNClassifier",
    "ConvexBNRegressor",
    "SVDTruncation",
    "__version__",
    "beta_max",
]
