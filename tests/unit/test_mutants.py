"""The reasons why mutants may survive are of code that exists, and each mutated file has an area."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from tests.mutants.__main__ import ROOT, files_of, lines_of, reasons
from tests.mutants.areas import AREAS


@cache
def tree_of(module):
    path = Path(*module.split(".")).with_suffix(".py")
    return ast.parse((ROOT / ("client" if path.parts[0] == "rewardserve_client" else ".") / path).read_text())


def text_of(name, modules):
    """A function, in the form in which survivors are written."""
    (module,) = [module for module in modules if name.startswith(f"{module}.")]
    node = tree_of(module)
    for part in name.removeprefix(f"{module}.").split("."):
        node = next(
            (each for each in node.body if getattr(each, "name", None) == part), ast.parse("def f(): 0").body[0]
        )
    return " ".join(line.strip() for line in lines_of(node))


def test_every_reason_is_of_code_that_is_there():
    modules = {file.removesuffix(".py").replace("/", ".") for area in AREAS.values() for file in files_of(area)}
    stale = [survivor for survivor in reasons() if survivor.was not in text_of(survivor.function, modules)]
    assert stale == [], "delete their reasons, or write them for the new code"


def test_a_pattern_of_an_area_matches_files_of_its_folder_alone():
    assert all(files_of(area) for area in AREAS.values())
    n_areas = [file for area in AREAS.values() for file in files_of(area)]
    assert sorted(n_areas) == sorted(set(n_areas)), "a file in two areas is mutated twice"
    assert "rewardserve/service/tripwires/windows.py" in files_of(AREAS["tripwires"])
    assert "rewardserve/service/tripwires/io/webhook.py" not in files_of(AREAS["tripwires"])
