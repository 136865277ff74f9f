"""The environment of the tests of the image, the only one without the packages of the project, has all that they import."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from tests.docker.install import requirements
from tests.support.environments import project


def canonical(requirement):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement).group()).lower()


def with_dependencies(requirements):
    """Names of the distributions that an installation of these brings, without extras."""
    known, new = set(), {canonical(each) for each in requirements}
    while new:
        known |= new
        new = {canonical(each) for name in new for each in required_by(name) if "extra ==" not in each} - known
    return known


def required_by(name):
    try:
        return requires(name) or ()
    except PackageNotFoundError:  # a tool that only the other environment has
        return ()


def test_tests_of_the_image_import_only_what_their_environment_has():
    missing = {canonical(each) for each in project("", extra="train")} - with_dependencies(requirements())
    modules = sorted(
        module for module, names in packages_distributions().items() if {canonical(name) for name in names} <= missing
    )
    assert {"torch", "msgspec"} <= set(modules)
    collected = [path.stem for path in Path("tests/docker").glob("*.py") if path.stem.startswith(("conftest", "test_"))]
    imported = ["tests.conftest", *(f"tests.docker.{name}" for name in collected)]
    program = f"import sys, pytest; sys.modules.update(dict.fromkeys({modules})); import {', '.join(imported)}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
