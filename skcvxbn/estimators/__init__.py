"""The estimators."""

from __future__ import annotations

from skcvxbn.estimators.classifier import ConvexBNClassifier
from skcvxbn.estimators.closed_form import ClosedFormBNClassifier, ClosedFormBNNet
from skcvxbn.estimators.regressor import ConvexBNRegressor
from skcvxbn.estimators.svd_truncation import SVDTruncation

__all__ = [
    "ClosedFormBNClassifier",
    "ClosedFormBNNet",
    "ConvexBNClassifier",
    "ConvexBNRegressor",
    "SVDTruncation",
]
