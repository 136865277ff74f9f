"""`reward-keys NAME FILE [--scopes=score,admin,metrics] [--requests-per-s=N] [--tokens-per-s=N] [--burst-s=N] [--runs=A,B*]
[--owner=NAME]`: make an API key.

The key is printed, once; its digest is added to the file, which `REWARD_KEYS_FILE` names. A server that runs takes it up
within a second or two. To take a key back, delete its line: it is refused within a second or two.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardserve.model.text.printable import printable
from rewardserve.model.text.text_files import NotText, decoded, wide_encoding
from rewardserve.service.auth.api_keys import SCOPES, KeysError, line_of, parse
from rewardserve.service.auth.rate_limits import BURST_S, RateLimits

_USAGE = 2
_MARK = "rwd_"
"""So that a key is known for one where it should not be: in a log, in a repository."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry."""
    parser = argparse.ArgumentParser(prog="reward-keys", description=__doc__)
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
    given = parser.parse_args(argv)
    key = _MARK + secrets.token_urlsafe(32)
    limits = RateLimits(given.requests_per_s, given.tokens_per_s, given.burst_s)
    try:
        runs = given.runs.split(",") if given.runs else ()
        line = line_of(given.name, key, frozenset(given.scopes.split(",")), limits, runs, given.owner)
        add(given.file, line, given.scopes)
    except (OSError, NotText, KeysError) as error:
        print(printable(f"reward-keys: {given.file}: {error}"), file=sys.stderr)
        return _USAGE
    print(key)
    print(f"reward-keys: {given.name} was added to {given.file}; the key is shown only now", file=sys.stderr)
    return 0


def add(path: Path, line: str, scopes: str) -> None:
    """Append a line to a file of keys. Raise `KeysError` where it would not be one any more; then no file is made."""
    if not set(scopes.split(",")) <= set(SCOPES):
        raise KeysError(f"scopes are {', '.join(SCOPES)}, with commas and without spaces")
    parse(line)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "rb+") as file:
        data = file.read()
        if (name := wide_encoding(data[:4])) is not None:
            raise KeysError(f"it is {name}; save it as UTF-8 first, so that a line can be added")
        before = decoded(data)
        addition = ("\n" if before and not before.endswith("\n") else "") + line + "\n"
        parse(before + addition)
        file.write(addition.encode())


if __name__ == "__main__":
    sys.exit(main())
