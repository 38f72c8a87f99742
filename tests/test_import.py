from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

import skcvxbn

HEAVY = {"torch", "cvxpy", "matplotlib", "pandas"}


def heavy_packages_loaded_by(code: str) -> set[str]:
    """Those of HEAVY that a fresh interpreter has loaded after running code."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return HEAVY.intersection(json.loads(run.stdout))


@pytest.mark.parametrize(
    "code", ["import skcvxbn", "from skcvxbn import *"], ids=["the package", "every public name"]
)
def test_import_loads_no_heavy_package(code):
    # Some versions of scikit-learn load pandas where it is installed: that much is not ours.
    allowed = heavy_packages_loaded_by("import sklearn.base") & {"pandas"}
    assert heavy_packages_loaded_by(code) <= allowed


def test_a_heavy_package_would_be_noticed():
    assert "cvxpy" in heavy_packages_loaded_by("import skcvxbn, cvxpy")


def test_public_names_exist_once():
    assert len(skcvxbn.__all__) == len(set(skcvxbn.__all__)) > 0
    assert [name for name in skcvxbn.__all__ if not hasattr(skcvxbn, name)] == []


def test_version_is_that_of_the_distribution():
    assert importlib.metadata.version("skcvxbn") == skcvxbn.__version__
