"""`torchrun -m tests.support.threads_at_end train ...`: the command, which fails if threads of gloo are left at its end.

Such a thread may free a Python tensor while the interpreter shuts down, which aborts the process once in many runs.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from rewardserve.cli import main as command


def main() -> int:
    """Run the command. The exit code is its own, or 3 if threads are left."""
    gc.disable()  # a collection by chance would end them
    code = command(sys.argv[1:])
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    left = [name for name in names if "gloo" in name]
    if left:
        print(f"threads are left: {left}", file=sys.stderr)
    return code or (3 if left else 0)


if __name__ == "__main__":
    sys.exit(main())
