from __future__ import annotations

import numpy as np
import pytest

from skcvxbn.targets import class_targets, regression_targets

ROW = np.array([1.0, 2.0, 0.0])
EXPECTED = {
    "squared_error": [0.5, 0.5],
    "absolute_error": [1.0, 1.0],
    "huber": [0.7 * (1 - 0.35), 0.7 * (1 - 0.35)],
    "pinball": [0.8, 0.2],
}


@pytest.mark.parametrize("loss", EXPECTED)
def test_mean_losses_of_a_regression(loss):
    y, output = np.array([1.0, -1.0, 9.0]), np.zeros((3, 1))
    up, down = EXPECTED[loss]
    targets = regression_targets(y, loss, 0.7, 0.8)
    assert targets.mean_loss(output, ROW) == pytest.approx((up + 2 * down) / 3)
    assert targets.Y.shape == (3, 1)
    assert targets.translates


def test_codes_of_classes():
    codes = np.array([0, 1, 1])
    assert class_targets(codes, 2, "log_loss").Y.tolist() == [[-1], [1], [1]]
    assert class_targets(codes, 3, "log_loss").Y.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert class_targets(codes, 3, "squared_hinge").Y.tolist() == [[1, -1, -1], [-1, 1, -1], [-1, 1, -1]]
    assert [class_targets(codes, 2, loss).translates for loss in ("squared_error", "hinge")] == [True, False]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_mean_log_loss_is_that_of_scikit_learn(n_classes):
    from scipy.special import softmax
    from sklearn.metrics import log_loss

    rng = np.random.default_rng(0)
    codes = np.arange(12) % n_classes
    output = rng.standard_normal((12, 1 if n_classes == 2 else 3))
    weight = rng.integers(0, 3, 12).astype(float)
    logits = np.hstack([np.zeros((12, 1)), output]) if n_classes == 2 else output
    expected = log_loss(codes, softmax(logits, axis=1), sample_weight=weight)
    assert class_targets(codes, n_classes, "log_loss").mean_loss(output, weight) == pytest.approx(expected)
