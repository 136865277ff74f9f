"""A subcommand of `rewardserve` in this process: what a process of it does, without the seconds of its imports.

Not for signals, pipes, limits of a process, or a killed process.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import MappingProxyType
from typing import NoReturn
from unittest.mock import patch

import structlog

from rewardserve.cli import main


def run_command(*arguments: object, env: Mapping[str, str] = MappingProxyType({})) -> tuple[int, str, str]:
    """Run `rewardserve ARGUMENTS` with no settings in the environment but `env`. Return its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("REWARD_")}
    with (
        redirect_stdout(out), redirect_stderr(err), _logging_restored(), patch.object(sys, "excepthook"),
        patch.dict(os.environ, clean | dict(env), clear=True), patch.object(os, "_exit", _end),
    ):  # fmt: skip
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def _end(code: int) -> NoReturn:
    raise SystemExit(code)


@contextmanager
def _logging_restored() -> Iterator[None]:
    known, handlers, level = structlog.get_config(), logging.root.handlers, logging.root.level
    try:
        yield
    finally:
        structlog.configure(**known)
        logging.root.handlers, logging.root.level = handlers, level
