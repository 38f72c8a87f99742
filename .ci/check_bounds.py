"""Check that the lower bounds of pyproject.toml are the versions pinned in .ci/oldest-requirements.txt."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def versions(requirements: list[str], operator: str) -> dict[str, str]:
    matches = (re.fullmatch(rf"([\w.-]+){operator}([\w.]+)", line.strip()) for line in requirements)
    return {match[1]: match[2] for match in matches if match}


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pinned = versions((ROOT / ".ci/oldest-requirements.txt").read_text(encoding="utf-8").splitlines(), "==")
    core = versions(project["dependencies"], ">=")
    if set(core) - set(pinned):
        raise SystemExit(f"Not pinned in .ci/oldest-requirements.txt: {sorted(set(core) - set(pinned))}.")
    for name, bound in {**versions(extras["plots"] + extras["tests"], ">="), **core}.items():
        if pinned.get(name, bound) != bound:
            raise SystemExit(f"{name}: the lower bound is {bound}, the oldest tested is {pinned[name]}.")


if __name__ == "__main__":
    main()
