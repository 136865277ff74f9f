"""Run the command, at the lowest priority."""

import os

from gym.streams.command import main

if __name__ == "__main__":
    os.nice(19)
    raise SystemExit(main())
