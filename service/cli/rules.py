"""`rewardserve rules [--config-file FILE] > tripwires.yml`: print the trip wires as alert rules of Prometheus."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rewardserve.arguments import Parser, show
from rewardserve.exit_codes import USAGE_ERROR
from rewardserve.model.text.printable import printable
from rewardserve.service.tripwires.config import WireConfig, WireConfigError
from rewardserve.service.tripwires.io.config_file import read_wire_config
from rewardserve.service.tripwires.prometheus import rules_text
from rewardserve.service.tripwires.promql import ENOUGH_SAMPLES, WINDOWS, Windows, seconds_of

PROGRAM = "rewardserve rules"


def main(arguments: Sequence[str]) -> int:
    """Print the rules. Return the exit code."""
    parser = Parser(PROGRAM, "Print the trip wires as alert rules of Prometheus, with the thresholds of the server.")
    parser.add_argument(
        "--config-file",
        type=Path,
        metavar="FILE",
        help="configuration of the trip wires, as in REWARD_TRIPWIRES__CONFIG_FILE; default: built-in values",
    )
    parser.add_argument(
        "--windows",
        nargs="+",
        type=_span,
        default=WINDOWS,
        metavar="LENGTH",
        help="window lengths, the shortest first, such as 2m 15m 2h",
    )
    parser.add_argument(
        "--samples", type=_count, default=ENOUGH_SAMPLES, metavar="N", help="fewest samples of a window that counts"
    )
    given = parser.parse_args(arguments)
    lengths = [seconds_of(span) for span in given.windows]
    if any(shorter >= longer for shorter, longer in pairwise(lengths)):
        parser.error(f"--windows are {' '.join(given.windows)}: each must be longer than the one before")
    try:
        config = WireConfig() if given.config_file is None else read_wire_config(given.config_file)
    except WireConfigError as error:
        print(printable(f"{PROGRAM}: {given.config_file}: {error}"), file=sys.stderr)
        return USAGE_ERROR
    show(rules_text(config, Windows(tuple(given.windows), given.samples)).removesuffix("\n"))
    return 0


def _span(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,5}[smh]", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a window length: write a whole number and s, m or h, such as 15m"
        )
    return text


def _count(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,11}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)
