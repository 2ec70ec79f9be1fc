"""The Python versions that are promised agree wherever they are promised, and the pins that have no packages for one of
them leave it out."""

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
KNOWN = [f"3.{minor}" for minor in range(8, 20)]
CLIENTS = [version for version in KNOWN if version in SpecifierSet(PROJECT["requires-python"])]
"""Versions that may install the package."""


def installed(extra, version):
    """Names of an extra's packages on that version of Python."""
    requirements = map(Requirement, EXTRAS[extra])
    return {r.name for r in requirements if r.marker is None or r.marker.evaluate({"python_version": version})}


SERVER = [version for version in CLIENTS if "nvidia-pytriton" in installed("serve", version)]
"""Versions on which the embedded server is installed."""


def test_the_classifiers_are_what_may_be_installed():
    found = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert found == CLIENTS


def test_the_makefile_takes_the_servers_versions():
    text = (ROOT / "Makefile").read_text()
    (low, high) = re.findall(r"not \(3, (\d+)\) <= sys.version_info\[:2\] <= \(3, (\d+)\)", text)[0]
    assert [f"3.{minor}" for minor in range(int(low), int(high) + 1)] == SERVER
    assert f"expected Python {SERVER[0]} to {SERVER[-1]}" in text


@pytest.mark.parametrize("page", ["README.md", "docs/cameras.md", "docs/checkpoint.md"])
def test_the_pages_promise_no_other_versions(page):
    ranges = re.findall(r"Python (3\.\d+) to (3\.\d+)", (ROOT / page).read_text())
    assert ranges
    assert set(ranges) <= {(CLIENTS[0], CLIENTS[-1]), (SERVER[0], SERVER[-1])}


@pytest.mark.parametrize("version", CLIENTS)
def test_numpy_1_only_where_it_has_packages(version):
    """NumPy 1.26, the last before 2, has none for Python 3.13 and later. The clients take any NumPy."""
    lines = [Requirement(line) for line in PROJECT["dependencies"] + EXTRAS["serve"]]
    ours = [
        r for r in lines if r.name == "numpy" and (r.marker is None or r.marker.evaluate({"python_version": version}))
    ]
    takes = SpecifierSet(",".join(str(r.specifier) for r in ours))
    assert ("1.26.4" if version in SERVER else "2.3.0") in takes
    assert ("2.3.0" in takes) is (version not in SERVER)


def test_the_linter_aims_at_the_oldest_version():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tools["ruff"]["target-version"] == "py" + CLIENTS[0].replace(".", "")
