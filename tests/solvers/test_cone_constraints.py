"""The cone constraints that are looked at, against the matrices they are part of."""

from __future__ import annotations

import numpy as np
import pytest

from skcvxbn.solvers.cone_constraints import ConeConstraints


@pytest.mark.parametrize("n_constraints", [1, 4, 20])
def test_the_products_are_those_with_the_nearest_rows(n_constraints):
    rng = np.random.default_rng(0)
    A, S = rng.standard_normal((20, 3)), rng.standard_normal((3, 5))
    sign, distance = np.sign(rng.standard_normal((20, 5))), rng.standard_normal((20, 5))
    cones = ConeConstraints(A, sign, distance, n_constraints)
    multiplier = rng.standard_normal((5, n_constraints))
    margins, sums, grams = cones.margins(S), cones.adjoint(multiplier), cones.grams(multiplier**2)
    for j in range(5):
        nearest = np.argsort(distance[:, j])[:n_constraints]
        G = sign[nearest, j, None] * A[nearest]
        np.testing.assert_allclose(np.sort(margins[j]), np.sort(G @ S[:, j]))
        # In whatever order they were taken.
        order = [int(np.argmin(np.abs(G @ S[:, j] - margin))) for margin in margins[j]]
        np.testing.assert_allclose(sums[:, j], G[order].T @ multiplier[j])
        np.testing.assert_allclose(grams[j], G[order].T @ (multiplier[j] ** 2 * G[order].T).T.reshape(-1, 3))
