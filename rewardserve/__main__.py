"""`python -m rewardserve`: the command of `rewardserve.cli`."""

import sys

from rewardserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
