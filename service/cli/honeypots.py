"""`rewardserve honeypots KEY_FILE < plain.jsonl > honeypots.jsonl`: hash planted prompts for `REWARD_TRIPWIRES__HONEYPOTS_FILE`.

A line of the input: {"prompt": "...", "answers": ["..."]} or {"prompt": "...", "above": 1.5}, the normalised score that no
honest answer reaches. The key file has 16 to 64 bytes, such as from `openssl rand -hex 24`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rewardserve.arguments import Parser, show
from rewardserve.exit_codes import USAGE_ERROR
from rewardserve.model.text.printable import printable
from rewardserve.model.text.text_files import TextDecodeError, decode_text, error_reason
from rewardserve.service.tripwires.honeypots import HoneypotsError, hashed

PROGRAM = "rewardserve honeypots"
_DESCRIPTION = """Hash planted prompts for REWARD_TRIPWIRES__HONEYPOTS_FILE: read them as JSON lines from standard input and print
them hashed. A line: {"prompt": "...", "answers": ["..."]}, or {"prompt": "...", "above": 1.5}, the normalised score that no
honest answer reaches."""


def main(arguments: Sequence[str]) -> int:
    """Hash the prompts. Return the exit code."""
    parser = Parser(PROGRAM, _DESCRIPTION)
    parser.add_argument(
        "key_file", type=Path, metavar="KEY_FILE", help="file of 16 to 64 bytes, such as from `openssl rand -hex 24`"
    )
    given = parser.parse_args(arguments)
    try:
        key = given.key_file.read_bytes().strip()
        hashes = hashed(decode_text(_standard_input()).split("\n"), key)
        if not hashes:
            raise HoneypotsError(
                "standard input has no prompts: send one JSON object a line, such as with < prompts.jsonl"
            )
        show("\n".join(hashes))
    except OSError as error:
        print(printable(f"{PROGRAM}: {error.filename or 'standard input'}: {error_reason(error)}"), file=sys.stderr)
        return USAGE_ERROR
    except (TextDecodeError, HoneypotsError) as error:
        print(printable(f"{PROGRAM}: {error}"), file=sys.stderr)
        return USAGE_ERROR
    return 0


def _standard_input() -> bytes:
    """Read it to its end. A terminal, where input is typed, gets a line with the expected form."""
    if sys.stdin.isatty():
        print(
            f"{PROGRAM}: reading prompts from the terminal, one JSON object a line; Ctrl-D ends them", file=sys.stderr
        )
    return sys.stdin.buffer.read()
