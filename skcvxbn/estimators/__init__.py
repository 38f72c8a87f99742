"""The estimators."""

from __future__ import annotations

from skcvxbn.estimators.classifier import ConvexBNClassifier
from skcvxbn.estimators.classifier_cv import ConvexBNClassifierCV
from skcvxbn.estimators.closed_form import ClosedFormBNClassifier, ClosedFormBNNet
from skcvxbn.estimators.regressor import ConvexBNRegressor
from skcvxbn.estimators.regressor_cv import ConvexBNRegressorCV
from skcvxbn.estimators.svd_truncation import SVDTruncation

__all__ = [
    "ClosedFormBNClassifier",
    "ClosedFormBNNet",
    "ConvexBNClassifier",
    "ConvexBNClassifierCV",
    "ConvexBNRegressor",
    "ConvexBNRegressorCV",
    "SVDTruncation",
]
