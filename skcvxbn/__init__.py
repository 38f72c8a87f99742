"""Globally optimal batch-normalized ReLU networks as scikit-learn estimators."""

from __future__ import annotations

from skcvxbn.deep_network import DeepBatchNormNetwork
from skcvxbn.distributed import sharded_rows
from skcvxbn.estimators import (
    ClosedFormBNClassifier,
    ClosedFormBNNet,
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    SVDTruncation,
)
from skcvxbn.network import BatchNormAfterReLUNetwork, BatchNormNetwork
from skcvxbn.path import beta_max, convex_bn_path

__version__ = "0.1.0"

__all__ = [
    "BatchNormAfterReLUNetwork",
    "BatchNormNetwork",
    "ClosedFormBNClassifier",
    "ClosedFormBNNet",
    "ConvexBNClassifier",
    "ConvexBNClassifierCV",
    "ConvexBNRegressor",
    "ConvexBNRegressorCV",
    "DeepBatchNormNetwork",
    "SVDTruncation",
    "__version__",
    "beta_max",
    "convex_bn_path",
    "sharded_rows",
]
