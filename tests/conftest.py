"""The zoo of small problems that all solvers share, and the guard against silent skips.

With SKCVXBN_REQUIRE_ALL set, a test that was skipped for want of a package fails. Continuous integration
sets it where every optional package is installed: a skip there would hide that something was never tested.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from skcvxbn.arrangements import enumerate_arrangements
from skcvxbn.losses import squared_error
from skcvxbn.solvers.base import Options, Problem
from skcvxbn.solvers.cvxpy_reference import CvxpyResult, solve_cvxpy
from skcvxbn.whitening import whiten

# The matrices are small: more threads than one cost more than they give, the more so under pytest-xdist.
threadpool_limits(1)

REQUIRE_ALL = bool(os.environ.get("SKCVXBN_REQUIRE_ALL"))
# How pytest and scikit-learn word such a skip.
MISSING = re.compile(
    r"could not import '(?P<imported>[\w.]+)'|No module named '(?P<named>[\w.]+)'"
    r"|(?P<absent>[\w-]+) is not installed|SCIPY_ARRAY_API"
)
# Array libraries of scikit-learn's checks that need a GPU.
NOT_REQUIRED = {"cupy", "dpnp"}


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (REQUIRE_ALL and report.skipped and isinstance(report.longrepr, tuple)):
        return
    reason = report.longrepr[2]
    missing = MISSING.search(reason)
    if missing and NOT_REQUIRED.isdisjoint(missing.groups()):
        report.outcome = "failed"
        report.longrepr = f"{reason} (not allowed while SKCVXBN_REQUIRE_ALL is set)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report


@dataclass(frozen=True, eq=False)
class Case:
    """A problem small enough for all of its arrangements, and the recipe that made it."""

    name: str
    X: np.ndarray
    weight: np.ndarray
    problem: Problem

    @functools.cached_property
    def patterns(self) -> np.ndarray:
        return enumerate_arrangements(self.problem.A)

    @functools.cached_property
    def reference(self) -> CvxpyResult:
        p = self.problem
        return solve_cvxpy(p.A, p.loss, p.beta, self.patterns, fit_intercept=p.fit_intercept)


def design_problem(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two features and a smooth target of mean zero: the problems whose optima are known."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 2))
    y = np.sin(2 * X[:, 0]) + X[:, 1] ** 2 + 0.1 * rng.standard_normal(n)
    return X, (y - y.mean())[:, None]


def make_case(
    name: str,
    n: int,
    d: int,
    beta: float,
    fit_intercept: bool,
    n_outputs: int = 1,
    repeats: int = 1,
    weighted: bool = False,
) -> Case:
    """Random rows and a target with curvature, deterministic for the name and the sizes."""
    rng = np.random.default_rng([n, d, n_outputs])
    X = np.repeat(rng.standard_normal((n, d)), repeats, axis=0)
    curved = [np.sin(2 * X[:, 0]) + X[:, -1] ** 2, np.abs(X[:, 0]), X[:, 0] * X[:, -1]]
    Y = np.stack(curved[:n_outputs], axis=1) + 0.2 * rng.standard_normal((n * repeats, n_outputs))
    weight = rng.integers(1, 4, n * repeats) * 0.5 if weighted else np.ones(n * repeats)
    A = whiten(X, weight).A
    return Case(name, X, weight, Problem(A, squared_error(Y, weight), beta, fit_intercept))


CASES = {
    case.name: case
    for case in (
        make_case("scalar", 14, 2, 0.3, False),
        make_case("scalar with intercept", 12, 2, 0.2, True),
        make_case("rank one", 16, 1, 0.1, False),
        make_case("rank three with intercept", 9, 3, 0.2, True),
        make_case("weights and intercept", 11, 2, 0.2, True, weighted=True),
        make_case("repeated rows", 7, 2, 0.3, False, repeats=2),
        make_case("more features than rows", 5, 9, 0.3, False),
        make_case("two outputs", 9, 2, 0.3, False, n_outputs=2),
        make_case("two outputs, rank one, intercept", 10, 1, 0.2, True, n_outputs=2),
        make_case("three outputs with intercept", 7, 2, 0.3, True, n_outputs=3),
    )
}


@pytest.fixture(scope="session", params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """Each problem of the zoo in turn."""
    return CASES[request.param]


@pytest.fixture(scope="session")
def cases() -> dict[str, Case]:
    """The zoo by name."""
    return CASES


@pytest.fixture(scope="session")
def known_problem():
    """Make a problem whose optimum is known: rows, target."""
    return design_problem


@pytest.fixture
def options():
    """Make solver options with defaults for tests."""

    def make(tol: float = 1e-6, seed: int = 0, **given) -> Options:
        defaults = {"max_iter": 100, "max_neurons": None, "search_starts": 500}
        return Options(tol=tol, rng=np.random.RandomState(seed), **(defaults | given))

    return make


@pytest.fixture(scope="session")
def descend_from_random():
    """Train a network with an output bias directly, by L-BFGS from a random start: an independent way.

    The kinks of the loss are rounded less and less; those of the ReLU are taken as they are.
    """

    def descend(A, loss, beta, rng, n_neurons):
        q, C, m = A.shape[1], loss.shape[1], n_neurons

        def unpack(x):
            return x[: q * m].reshape(q, m), x[q * m : (q + C) * m].reshape(m, C), x[(q + C) * m :]

        def objective(x, loss):
            S, V, shift = unpack(x)
            hidden = np.maximum(A @ S, 0)
            value, R = loss.evaluate(hidden @ V + A[:, -1:] * shift)
            gradient = np.r_[
                (beta * S - A.T @ ((hidden > 0) * (R @ V.T))).ravel(),
                (beta * V - hidden.T @ R).ravel(),
                -A[:, -1] @ R,
            ]
            return value + beta / 2 * np.sum(S**2) + beta / 2 * np.sum(V**2), gradient

        x = np.r_[1.5 * rng.standard_normal((q + C) * m), np.zeros(C)]
        for width in (0.3, 3e-2, 3e-3, 1e-3):
            x = minimize(objective, x, (loss.smoothed(width),), "L-BFGS-B", True, options={"maxiter": 1000}).x
            if loss.smoothed(width) is loss:
                break
        return unpack(x)

    return descend
