"""Command-line arguments of how a checkpoint is read, for the commands that read one."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from rewardserve.arguments import respell
from rewardserve.model.contract import require_date
from rewardserve.model.layout_rules import Ending, ReadsAt

_NAMES = ("allow_pickle", "ignore_checkpoint_code", "template_date", "ending", "reads_at")


def add_read_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--allow-pickle", action="store_true", help="read weights that are no safetensors")
    parser.add_argument(
        "--ignore-checkpoint-code",
        action="store_true",
        help="read a checkpoint with custom code (auto_map) without that code",
    )
    parser.add_argument(
        "--template-date",
        type=_date,
        metavar="YYYY-MM-DD",
        help="date for a chat template that uses the current date, where no contract has one; default: 2024-07-26",
    )
    parser.add_argument(
        "--ending",
        choices=get_args(Ending),
        help="how a row ends, where there is no contract; default: as in the layout's trainer",
    )
    parser.add_argument(
        "--reads-at",
        choices=get_args(ReadsAt),
        help="token at which the score is read, where there is no contract; default: as in the layout's trainer",
    )


def _date(text: str) -> str:
    try:
        return require_date(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def spell_as_flags(message: str) -> str:
    """Write the settings that a message names as the flags of these commands."""
    return respell(message, {name: f"--{name.replace('_', '-')}" for name in (*_NAMES, "device", "dtype")})


def read_arguments(given: argparse.Namespace) -> dict[str, Any]:
    """The parsed arguments as fields of `ReadOptions` and of `ModelSpec`."""
    return {name: getattr(given, name) for name in _NAMES}
