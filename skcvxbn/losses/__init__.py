"""Convex losses of the output, with gradients and Fenchel conjugates (Appendix B.1 of the paper)."""

from __future__ import annotations

from skcvxbn.losses.base import Box, Loss, LossFunction
from skcvxbn.losses.curvature import Curvature, Diagonal
from skcvxbn.losses.linear_quadratic import (
    LinearQuadratic,
    absolute_error,
    hinge,
    huber,
    pinball,
    squared_error,
    squared_hinge,
)
from skcvxbn.losses.logistic import Logistic
from skcvxbn.losses.softmax import Softmax, log_loss

__all__ = [
    "Box",
    "Curvature",
    "Diagonal",
    "LinearQuadratic",
    "Logistic",
    "Loss",
    "LossFunction",
    "Softmax",
    "absolute_error",
    "hinge",
    "huber",
    "log_loss",
    "pinball",
    "squared_error",
    "squared_hinge",
]
