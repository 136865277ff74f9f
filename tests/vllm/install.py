"""`python -m tests.vllm.install`: the environment of `make test-vllm`, made once; prints its Python.

It is the one in which the peer benchmark runs vLLM, with what this project needs beside it. vLLM's own torch and transformers
stay as they are: where our lower bounds forbid them, the installer says so.
"""

from __future__ import annotations

import sys

from benchmarks.peers.install import add
from benchmarks.peers.vllm import PEER
from rewardserve.model.default.base_model import PACKAGE
from tests.support.environments import project, run_and_print


def main() -> int:
    """The exit code."""
    return run_and_print("vLLM", lambda: add(PEER, project("pytest", "hypothesis"), alone=[PACKAGE]))


if __name__ == "__main__":
    sys.exit(main())
