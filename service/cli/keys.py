"""`rewardserve keys NAME FILE`: make an API key, print it once, and add its digest to the file that `REWARD_KEYS_FILE` names."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardserve.arguments import USAGE_ERROR, Parser
from rewardserve.model.text.printable import printable
from rewardserve.model.text.text_files import TextDecodeError, decode_text, wide_encoding
from rewardserve.service.auth.api_keys import SCOPES, ApiKeysError, format_line, parse
from rewardserve.service.auth.rate_limits import BURST_S, RateLimits

PROGRAM = "rewardserve keys"
_DESCRIPTION = """Make an API key. It is printed once; its digest is added to FILE, which REWARD_KEYS_FILE names. A running
server accepts it within two seconds. To revoke a key, delete its line."""
_MARK = "rwd_"
"""So that a key is known for one where it should not be: in a log, in a repository."""


def main(arguments: Sequence[str]) -> int:
    """Command-line entry."""
    parser = Parser(PROGRAM, _DESCRIPTION)
    parser.add_argument("name", help="whose key it is; it stands in the access log")
    parser.add_argument("file", type=Path, help="made if it is not there, readable by its owner alone")
    parser.add_argument("--scopes", default="score", help=f"with commas: {', '.join(SCOPES)}")
    parser.add_argument("--requests-per-s", type=float, help="more are answered with 429")
    parser.add_argument("--tokens-per-s", type=float, help="more are answered with 429")
    parser.add_argument("--burst-s", type=float, default=BURST_S, help="so many seconds' worth may come at once")
    parser.add_argument(
        "--runs",
        default="",
        help="with commas: runs that this key may send, and no other key that is not bound to them; A*: all that begin so",
    )
    parser.add_argument(
        "--owner", default="", help="of the runs that it sends: keys of one owner share runs; default: the key's name"
    )
    given = parser.parse_args(arguments)
    key = _MARK + secrets.token_urlsafe(32)
    limits = RateLimits(given.requests_per_s, given.tokens_per_s, given.burst_s)
    try:
        runs = given.runs.split(",") if given.runs else ()
        line = format_line(given.name, key, frozenset(given.scopes.split(",")), limits, runs, given.owner)
        add(given.file, line, given.scopes)
    except (OSError, TextDecodeError, ApiKeysError) as error:
        print(printable(f"{PROGRAM}: {given.file}: {error}"), file=sys.stderr)
        return USAGE_ERROR
    print(key)
    print(f"{PROGRAM}: {given.name} was added to {given.file}; the key is shown only now", file=sys.stderr)
    return 0


def add(path: Path, line: str, scopes: str) -> None:
    """Append a line to a file of keys. Raise `ApiKeysError` where it would not be one any more; then no file is made."""
    if not set(scopes.split(",")) <= set(SCOPES):
        raise ApiKeysError(f"scopes are {', '.join(SCOPES)}, with commas and without spaces")
    parse(line)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "rb+") as file:
        data = file.read()
        if (name := wide_encoding(data[:4])) is not None:
            raise ApiKeysError(f"it is {name}; save it as UTF-8 first, so that a line can be added")
        before = decode_text(data)
        addition = ("\n" if before and not before.endswith("\n") else "") + line + "\n"
        parse(before + addition)
        file.write(addition.encode())
