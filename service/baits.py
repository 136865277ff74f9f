"""`reward-baits KEY_FILE < plain.jsonl > baits.jsonl`: hash planted prompts for `REWARD_TRIPWIRES__HONEYPOTS_FILE`.

A line of the input: {"prompt": "...", "answers": ["..."]} or {"prompt": "...", "above": 1.5}, the normalised score that no
honest answer reaches. The key file has 16 to 64 bytes, say from `openssl rand -hex 24`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rewardserve.model.text.printable import printable
from rewardserve.model.text.text_files import NotText, decoded
from rewardserve.service.tripwires.honeypots import HoneypotsError, hashed

_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return _USAGE
    try:
        key = Path(arguments[0]).read_bytes().strip()
        print("\n".join(hashed(decoded(sys.stdin.buffer.read()).split("\n"), key)))
    except (OSError, NotText, HoneypotsError) as error:
        print(printable(f"reward-baits: {error}"), file=sys.stderr)
        return _USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main())
