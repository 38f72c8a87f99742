"""With SKCVXBN_REQUIRE_ALL set, a test that was skipped for want of a package fails.

Continuous integration sets it where every optional package is installed: a skip there would hide that
something was never tested.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator

import pytest

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
