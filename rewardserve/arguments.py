"""Parse command-line arguments, and report usage errors in two lines. Standard library only."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from rewardserve.exit_codes import USAGE_ERROR, exit_codes_of
from rewardserve.model.text.nearest_word import CUTOFF_OF_NAMES, did_you_mean, nearest_word


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` without abbreviations, whose errors suggest the nearest word and name the help.

    The help ends with the exit codes of the command, and each option has its default there. `prog` is `rewardserve COMMAND`.
    """

    hidden: frozenset[str] = frozenset()
    """Options that have no effect in this command, and are refused."""

    extra: frozenset[str] = frozenset()
    """Options that the command itself takes out of the arguments; they are suggested for misspelt ones."""

    def __init__(self, prog: str, description: str, *, more: str = "", **options: Any) -> None:
        epilog = " ".join(part for part in (exit_codes_of(prog.rpartition(" ")[2]), more) if part)
        options.setdefault("formatter_class", _Help)
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse the arguments, and end the process on errors. An unknown option is reported before a missing one."""
        for argument in args or ():
            if argument == "--":
                break
            if is_option(argument) and argument.partition("=")[0] not in self._known():
                self.error(f"unrecognized arguments: {argument}")
        return super().parse_args(args, namespace)

    def name_positionals(self, names: Sequence[str]) -> None:
        """Name the positional arguments, in their order, in usage and errors."""
        for action, name in zip(self._get_positional_actions(), names, strict=True):
            action.metavar = name

    def error(self, message: str) -> NoReturn:
        """Print the error and the command that shows the help, and exit with 2."""
        message = message.removeprefix("argument ")
        for kind, words in (("int", "a whole number"), ("float", "a number")):
            message = message.replace(f": invalid {kind} value: ", f": must be {words}, not ")
        end_with_usage(self.prog, f"{message}{self._hint(message)}")

    def _hint(self, message: str) -> str:
        """Suggest the option or positional argument that an unknown option probably means."""
        _, found, unknown = message.partition("unrecognized arguments: ")
        option = unknown.split(" ")[0].partition("=")[0]
        if not found or not option.startswith("--"):
            return ""
        names = [str(action.metavar or action.dest) for action in self._get_positional_actions()]
        positionals = {"--" + name.lower().replace("_", "-"): name for name in names}
        near = nearest_word(option, [*self._known(), *self.extra, *positionals], CUTOFF_OF_NAMES)
        if near in positionals:
            return f"; give {positionals[near]} without an option name"
        return f"; did you mean {near}?" if near else ""

    def _known(self) -> set[str]:
        return self._option_string_actions.keys() - self.hidden

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is not one of the choices, with the same words in every version of Python."""
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, one_of(value, action.choices))


class _Help(argparse.HelpFormatter):
    """Help with the default of each option in brackets, as that of the settings."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if not action.option_strings or action.default in (None, False, "", argparse.SUPPRESS) or action.default == []:
            return text
        default = action.default
        shown = (
            " ".join(default)
            if isinstance(default, tuple)
            else f"{default:g}"
            if isinstance(default, float)
            else default
        )
        return f"{text} [{shown}]"


def is_option(argument: str) -> bool:
    """Whether an argument is a long option, as argparse decides: text with a space is a value."""
    return argument.startswith("--") and len(argument) > 2 and " " not in argument.partition("=")[0]


def one_of(value: object, choices: Iterable[Any]) -> str:
    """Return why a value is invalid: the choices, and the nearest of them."""
    names = [str(choice) for choice in choices]
    return f"must be one of {', '.join(names)}, not {value!r}{did_you_mean(value, names)}"


def respell(message: str, names: Mapping[str, str]) -> str:
    """Replace the names of settings in a message by other names. A name that is a common word counts in `name=` and `set name`."""
    for name, other in names.items():
        alone = rf"(?<![\w.-]){re.escape(name)}\b(?! in \w)" if re.search(r"[._]", name) else rf"(?<=\bset ){name}\b"
        message = re.sub(rf"{alone}|(?<![\w.-]){re.escape(name)}(?==)", other, message)
    return message


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
