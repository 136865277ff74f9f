"""`rewardserve keys NAME FILE`: make an API key, print it once, and add its digest to the file that `REWARD_KEYS_FILE` names."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path

from rewardserve.arguments import Parser
from rewardserve.exit_codes import USAGE_ERROR
from rewardserve.model.text.printable import printable
from rewardserve.model.text.text_files import TextDecodeError, decode_text, error_reason, wide_encoding
from rewardserve.service.auth.api_keys import SCOPES, ApiKeysError, check_scopes, format_line, parse, parse_lines
from rewardserve.service.auth.rate_limits import BURST_S, RateLimits

PROGRAM = "rewardserve keys"
_DESCRIPTION = """Make an API key. It is printed once; its digest is added to FILE, which REWARD_KEYS_FILE names. A running
server accepts it within two seconds. To revoke a key, delete its line."""
_MARK = "rwd_"
"""Prefix by which scanners find a leaked key in a log or a repository."""


def main(arguments: Sequence[str]) -> int:
    """Make a key and add it to the file. Return the exit code."""
    parser = Parser(PROGRAM, _DESCRIPTION)
    parser.add_argument("name", metavar="NAME", help="name of the key in the request log")
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="file of keys; created if it does not exist, readable by its owner only",
    )
    parser.add_argument("--scopes", default="score", help=f"scopes, separated by commas: {', '.join(SCOPES)}")
    parser.add_argument(
        "--requests-per-s",
        type=_above_zero,
        metavar="N",
        help="rate limit in requests; beyond it, requests get 429; default: none",
    )
    parser.add_argument(
        "--tokens-per-s",
        type=_above_zero,
        metavar="N",
        help="rate limit in tokens; beyond it, requests get 429; default: none",
    )
    parser.add_argument(
        "--burst-s",
        type=_above_zero,
        default=BURST_S,
        metavar="N",
        help="burst: the limits of this many seconds may be used at once",
    )
    parser.add_argument(
        "--runs",
        help="bind the key to runs, separated by commas; keys that are not bound to them cannot send them; A*: all that begin so; "
        "default: bound to none",
    )
    parser.add_argument(
        "--owner", help="owner of the runs that the key sends; keys of one owner share runs; default: NAME"
    )
    given = parser.parse_args(arguments)
    key = _MARK + secrets.token_urlsafe(32)
    limits = RateLimits(given.requests_per_s, given.tokens_per_s, given.burst_s)
    for option, value, without in (
        ("--runs", given.runs, "is bound to no runs"),
        ("--owner", given.owner, "owns runs as NAME"),
    ):
        if value == "":
            parser.error(f"{option} is empty: leave it out for a key that {without}")
    try:
        runs = given.runs.split(",") if given.runs else ()
        line = format_line(given.name, key, frozenset(given.scopes.split(",")), limits, runs, given.owner or "")
        check_line(line, given.scopes)
    except ApiKeysError as error:
        return _refuse(str(error))
    try:
        add(given.file, line)
    except (OSError, TextDecodeError, ApiKeysError) as error:
        return _refuse(f"{given.file}: {error_reason(error) if isinstance(error, OSError) else error}")
    print(key)
    print(f"{PROGRAM}: {given.name} was added to {given.file}; the key is shown only now", file=sys.stderr)
    return 0


def _above_zero(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0.0 < (number := float(text)) < inf:
            return number
    raise argparse.ArgumentTypeError(f"must be a number above zero, not {text!r}")


def _refuse(reason: str) -> int:
    print(printable(f"{PROGRAM}: {reason}"), file=sys.stderr)
    return USAGE_ERROR


def check_line(line: str, scopes: str) -> None:
    """Raise `ApiKeysError` if an argument makes an invalid line."""
    check_scopes(scopes, f"--scopes={scopes}: ")
    try:
        parse(line)
    except ApiKeysError as error:
        raise ApiKeysError(str(error).removeprefix("line 1: ")) from None


def add(path: Path, line: str) -> None:
    """Append a line to a file of keys. Raise `ApiKeysError` if the file would be invalid; then it does not change."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "rb+") as file:
        data = file.read()
        if (name := wide_encoding(data[:4])) is not None:
            raise ApiKeysError(f"the file is {name}: save it as UTF-8 first, so that a line can be added")
        before = decode_text(data)
        name = line.split()[0]
        if any(key.name == name for key in parse_lines(before)[0].keys):
            raise ApiKeysError(
                f"the file has a key with the name {name}: choose another name, or delete its line first"
            )
        addition = ("\n" if before and not before.endswith("\n") else "") + line + "\n"
        parse(before + addition)
        file.write(addition.encode())
