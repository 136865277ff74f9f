"""Parse command-line arguments, and report usage errors in two lines. Standard library only."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from typing import NoReturn

USAGE_ERROR = 2


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` without abbreviations, whose errors name the help instead of printing the usage."""

    def __init__(self, prog: str, description: str, **options: bool | str | type[argparse.HelpFormatter]) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Print the error and the command that shows the help, and exit with 2."""
        end_with_usage(self.prog, f"{message}{self._hint(message)}")

    def _hint(self, message: str) -> str:
        """Suggest the option or positional argument that an unknown option probably means."""
        _, found, unknown = message.partition("unrecognized arguments: ")
        option = unknown.split(" ")[0].partition("=")[0]
        if not found or not option.startswith("--"):
            return ""
        positionals = [action.metavar or action.dest for action in self._get_positional_actions()]
        if option[2:].upper() in positionals:
            return f"; give {option[2:].upper()} without an option name"
        return did_you_mean(option, list(self._option_string_actions), cutoff=0.75)


def did_you_mean(word: str, known: list[str], cutoff: float = 0.6) -> str:
    """Suggest the nearest known word, whatever the case; empty if none is near."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def show(text: str) -> None:
    """Print a text to stdout, also into a pipe that closes early, such as `| head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_with_usage(program: str, message: str) -> NoReturn:
    """Print a usage error and the command that shows the help, and exit with 2."""
    print(f"{program}: {message}\nSee {program} --help.", file=sys.stderr)
    sys.exit(USAGE_ERROR)
