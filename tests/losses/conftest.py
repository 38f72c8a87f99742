"""A small instance of every loss, with what it is by definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn import metrics

from skcvxbn import losses

N = 9
QUANTILE, EPSILON = 0.3, 0.4


def by_output(metric, Y, f, w, **options):
    """Sum over rows and outputs of a metric that averages over rows."""
    return w.sum() * metric(Y, f, sample_weight=w, multioutput="raw_values", **options).sum()


def hinge_by_output(Y, f, w):
    return sum(w.sum() * metrics.hinge_loss(y, g, sample_weight=w) for y, g in zip(Y.T, f.T, strict=True))


def squared_hinge(Y, f, w):
    return 0.5 * np.sum(w[:, None] * np.maximum(1 - Y * f, 0) ** 2)


def huber(Y, f, w):
    error = np.abs(f - Y)
    return np.sum(w[:, None] * np.where(error < EPSILON, error**2 / 2, EPSILON * error - EPSILON**2 / 2))


def logistic(Y, f, w):
    return w.sum() * metrics.log_loss(Y[:, 0] > 0, expit(f[:, 0]), sample_weight=w)


def multinomial(Y, f, w):
    return w.sum() * metrics.log_loss(Y.argmax(axis=1), softmax(f, axis=1), sample_weight=w)


@dataclass(frozen=True)
class Kind:
    """A loss, the targets it is for, and its value by definition."""

    bind: Callable
    targets: str
    value: Callable


KINDS = {
    "squared error": Kind(
        losses.squared_error, "numbers", lambda *a: by_output(metrics.mean_squared_error, *a) / 2
    ),
    "huber": Kind(partial(losses.huber, epsilon=EPSILON), "numbers", huber),
    "absolute error": Kind(losses.absolute_error, "numbers", partial(by_output, metrics.mean_absolute_error)),
    "quantile": Kind(
        partial(losses.pinball, quantile=QUANTILE),
        "numbers",
        partial(by_output, metrics.mean_pinball_loss, alpha=QUANTILE),
    ),
    "hinge": Kind(losses.hinge, "signs", hinge_by_output),
    "squared hinge": Kind(losses.squared_hinge, "signs", squared_hinge),
    "logistic": Kind(losses.log_loss, "one sign", logistic),
    "softmax": Kind(losses.log_loss, "classes", multinomial),
}


def targets(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "numbers":
        return rng.standard_normal((n, 2)) + np.array([0.0, 3.0])
    if kind == "classes":
        return np.eye(3)[rng.permutation(np.arange(n) % 3)]
    Y = np.stack([rng.permutation(np.arange(n) % 3), np.arange(n) % 2], axis=1)
    return np.where(Y > 0, 1.0, -1.0)[:, : 1 if kind == "one sign" else 2]


@dataclass(frozen=True)
class Sample:
    """A loss bound to targets."""

    kind: Kind
    Y: np.ndarray
    weight: np.ndarray

    @property
    def loss(self):
        return self.kind.bind(self.Y, self.weight)

    @property
    def direction(self):
        """What a bias of one adds to the weighted outputs, normalised."""
        root = np.sqrt(self.weight)
        return root / np.linalg.norm(root)

    def outputs(self, seed: int, size: float = 1.0) -> np.ndarray:
        """Weighted outputs, away from kinks with probability one."""
        f = size * np.random.default_rng([seed, 1]).standard_normal(self.Y.shape)
        return np.sqrt(self.weight)[:, None] * f


@pytest.fixture(params=list(KINDS))
def kind(request) -> Kind:
    """Each loss in turn."""
    return KINDS[request.param]


@pytest.fixture
def sample(kind) -> Sample:
    """Each loss in turn, on a few rows of different weights."""
    rng = np.random.default_rng(0)
    return Sample(kind, targets(kind.targets, N, rng), rng.uniform(0.3, 3, N))


@pytest.fixture
def make_sample():
    """Make a sample from targets: a kind's name, targets, weights."""

    def make(name: str, Y: np.ndarray, weight: np.ndarray | None = None) -> Sample:
        return Sample(KINDS[name], Y, np.ones(len(Y)) if weight is None else weight)

    return make
