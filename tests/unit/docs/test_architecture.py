"""ARCHITECTURE.md names only what is there, and lists every rule of dependency."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from docs import reference
from tests.links import undefined

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
PACKAGES = ("model", "service", "training", "rewardserve", "client", "docs")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]

TEXT = re.sub(r"\[`[^`]*`\]\([^)]*\)", "", PAGE)
"""The page without its links to modules, which `tests.links` checks."""


def words_of_code():
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    words = {word for path in files for word in re.findall(r"\w+", path.read_text("utf-8"))}
    return words | {part for path in files for part in path.relative_to(ROOT).with_suffix("").parts}


def picture():
    return PAGE.partition("```text\n")[2].partition("```")[0]


def test_names_in_links_to_modules_are_defined_there():
    assert list(undefined("ARCHITECTURE.md", PAGE)) == []


@pytest.mark.parametrize(
    ("words", "is_defined"),
    [
        ("links.undefined", True),
        ("links.ROOT", True),
        ("links", True),
        ("links.missing", False),
        ("other.undefined", False),
    ],
)
def test_a_link_to_a_name_that_is_not_defined_is_found(words, is_defined):
    assert bool(list(undefined("README.md", f"see [`{words}`](tests/links.py)"))) != is_defined


def test_methods_and_fields_are_names_of_their_class():
    page = "[`planner.Plan.batch`](p.py) [`planner.BatchLimits.target`](p.py) [`planner.Plan.target`](p.py)"
    found = list(undefined("ARCHITECTURE.md", page.replace("p.py", "service/inference/planner.py")))
    assert [fault.split("`")[1] for fault in found] == ["planner.Plan.target"]


def test_other_names_in_code_are_words_of_the_code():
    spans = re.findall(r"`([^`\n]+)`", TEXT.replace(picture(), ""))
    names = [name for span in spans for name in re.findall(r"\b(?:[a-z]+(?:_[a-z]+)+|(?:[A-Z][a-z]+){2,})\b", span)]
    assert len(names) > 40
    assert set(names) - words_of_code() == set()


def test_classes_in_the_picture_are_classes_of_the_code():
    names = set(re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", picture()))
    assert len(names) > 10
    assert names - words_of_code() == set()


def test_settings_that_the_page_names_exist():
    named = set(re.findall(r"\bREWARD_\w+", PAGE))
    assert named
    assert named - {setting.variable for setting in reference.settings()} == set()


def test_folders_that_the_page_names_exist():
    rows = re.findall(r"^\| (\[\w+/\].*?) \| (.*) \|$", PAGE, re.MULTILINE)
    tops = {row[0]: re.findall(r"\((\w+)/\)", row[0]) for row in rows}
    named = [(ROOT / tops[links][0] / folder) for links, text in rows for folder in re.findall(r"`(\w+/)`", text)]
    assert len(named) > 15
    assert [str(folder) for folder in named if not folder.is_dir()] == []


def test_every_rule_of_dependency_is_in_the_table():
    rows = re.findall(
        r"^\| ([^|]+) \| [^|]+ \|$", PAGE.partition("## Rules of dependency")[2].partition("\n## ")[0], re.M
    )
    assert rows[0] == "contract"
    assert sorted(rows[1:]) == sorted(contract["name"] for contract in CONTRACTS)


def test_the_layers_are_those_of_the_contract():
    layers = next(contract["layers"] for contract in CONTRACTS if contract["type"] == "layers")
    assert f"`{' > '.join(layer.replace(' | ', ', ') for layer in layers)}`" in PAGE
