"""The help of every command states the default of every option."""

from __future__ import annotations

import re

import pytest

from docs import reference
from rewardserve.cli import COMMANDS
from rewardserve.compare.command import CompareSettings
from rewardserve.service.cli.options import options_of
from rewardserve.service.settings import ScoreSettings, ServeSettings

NAMES = [command.name for group in COMMANDS.values() for command in group]
OF_SETTINGS = ("serve", "score", "compare")


@pytest.mark.parametrize("settings", [ServeSettings, ScoreSettings, CompareSettings])
def test_a_setting_without_a_default_value_says_what_holds_without_it(settings):
    silent = [
        option.name
        for option in options_of(settings)
        if not (
            option.is_required
            or option.default
            or re.search(r"\b(default|empty|if no|if the contract)\b", option.description)
        )
    ]
    assert silent == []


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OF_SETTINGS])
def test_an_option_with_a_value_has_its_default_or_is_required(name):
    printed = " ".join(reference.help_of(name).partition("\noptions:\n")[2].partition("\nExit codes")[0].split())
    for option in re.split(r" (?=--[a-z-]+ )", f" {printed}"):
        takes_value = re.match(r"--[a-z-]+ ([A-Z_-]+|\{)", option)
        assert not takes_value or option in REQUIRED or re.search(r"default: |\[[^]]+\]$", option), option


REQUIRED = (
    "--config RECIPE the recipe, a YAML file",
    "--checkpoint CHECKPOINT reward model to average; given once for each, two or more",
    "--space KEY=VALUES setting: optim.lr=1e-5..1e-3:log, optim.batch_pairs=8..64 or method.rank=8|16|32; may be repeated",
)
