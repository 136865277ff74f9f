"""The command `rewardserve`: choose a subcommand, import its module alone, and run it.

Imports the standard library only, so that `rewardserve --help` and `rewardserve version` take no time.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from rewardserve.arguments import Parser, end_with_usage, show
from rewardserve.exit_codes import INTERRUPTED
from rewardserve.model.resource_errors import explain_resource_errors
from rewardserve.model.text.nearest_word import did_you_mean, nearest_word

PROGRAM = "rewardserve"
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "peft", "fastapi", "uvicorn", "pydantic", "vllm")
"""Libraries whose versions belong in a bug report."""


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand. `target` is `module:function`; the function takes the arguments and returns the exit code.

    `has_threads`: a load or a forward pass may still run then, which cannot be interrupted: the process does not wait for it.
    """

    name: str
    arguments: str
    summary: str
    target: str
    least_descriptors: int = 0
    has_threads: bool = False

    def run(self, arguments: list[str]) -> int:
        """Import the function and call it."""
        explain_resource_errors(f"{PROGRAM} {self.name}", least_descriptors=self.least_descriptors)
        module, _, function = self.target.partition(":")
        try:
            main: Callable[[list[str]], int] = getattr(import_module(module), function)
            code = main(arguments)
        except KeyboardInterrupt:
            print(f"{PROGRAM} {self.name}: interrupted.", file=sys.stderr)
            code = INTERRUPTED
        if self.has_threads:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return code


COMMANDS = {
    "Serve": (
        Command("serve", "[MODEL]", "serve a reward model over HTTP", "rewardserve.service.cli.serve:main", 64, has_threads=True),
        Command("demo", "", "show an alarm: a server with a healthy and a hacked run", "rewardserve.demo.command:main"),
        Command("check", "[CHECKPOINT]", "verify a checkpoint, as a server would", "rewardserve.model.check:main"),
        Command(
            "compare", "MODEL_A MODEL_B FILE", "compare two models on a file", "rewardserve.compare.command:main", has_threads=True
        ),
        Command("bench", "[MODEL]", "measure a model, or a running server", "rewardserve.bench.command:main", 64),
        Command("score", "INPUT OUTPUT", "score a file", "rewardserve.service.cli.score:main", has_threads=True),
    ),
    "Train": (
        Command("train", "--config RECIPE", "train a reward model", "rewardserve.training.cli:train"),
        Command("finish", "--config RECIPE", "make a stopped training a checkpoint", "rewardserve.training.cli:finish"),
        Command("evaluate", "--config RECIPE", "judge a checkpoint on pairs or a benchmark", "rewardserve.training.cli:evaluate"),
        Command("calibrate", "--config RECIPE", "fit the calibration of a checkpoint", "rewardserve.training.cli:calibrate"),
        Command("average", "--config RECIPE", "average reward models of one origin", "rewardserve.training.cli:average"),
        Command("crossvalidate", "--config RECIPE", "judge a recipe on every pair", "rewardserve.training.cli:crossvalidate"),
        Command("sweep", "--config RECIPE", "search the settings of a recipe", "rewardserve.training.cli:sweep"),
        Command(
            "mine", "CHECKPOINT INPUT --out QUEUE", "find exploits of a model, and queue them for labelling",
            "rewardserve.mine.command:main", has_threads=True,
        ),
        Command("export-labels", "DATABASE", "export labels of the console to train on", "rewardserve.mine.export_labels:main"),
        Command("export", "CHECKPOINT [FOLDER]", "write a checkpoint in the standard layout", "rewardserve.model.export:main"),
    ),
    "Operate": (
        Command("keys", "NAME FILE", "make an API key", "rewardserve.service.cli.keys:main"),
        Command("rules", "", "print the alert rules for Prometheus", "rewardserve.service.cli.rules:main"),
        Command("review", "ACTION DATABASE", "export, import or delete captured samples", "rewardserve.service.cli.review:main"),
        Command("honeypots", "KEY_FILE", "hash planted prompts", "rewardserve.service.cli.honeypots:main"),
        Command("version", "", "print the versions of RewardServe and its libraries", "rewardserve.cli:print_versions"),
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that the first argument names. Return the exit code."""
    explain_resource_errors(PROGRAM)
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    commands = {command.name: command for group in COMMANDS.values() for command in group}
    if name == "help" and len(arguments) > 1:
        end_with_usage(PROGRAM, f"help takes one subcommand, not {len(arguments)}")
    if name == "help" and arguments:
        name, *arguments = arguments[0], "--help"
    if name in ("--help", "-h", "help"):
        show(_help())
        return 0
    if name == "--version":
        if arguments:
            end_with_usage(PROGRAM, f"--version has no arguments, such as {arguments[0]}")
        show(_version_of(PROGRAM))
        return 0
    if name not in commands:
        end_with_usage(PROGRAM, _unknown(name, arguments, list(commands)))
    return commands[name].run(arguments)


def _unknown(name: str, arguments: Sequence[str], commands: Sequence[str]) -> str:
    """Describe a first argument that is no subcommand, with the one that is probably meant."""
    if not name.startswith("-"):
        return f"there is no subcommand {name!r}{did_you_mean(name, commands)}"
    meant = next((each for each in arguments if each in commands), None) or nearest_word(name.lstrip("-"), commands)
    return f"the subcommand comes first, not {name}" + (f"; write {PROGRAM} {meant}" if meant else "")


def _help() -> str:
    lines = [f"usage: {PROGRAM} COMMAND [ARGUMENTS]", "", "Train and serve reward models for RLHF."]
    width = max(len(f"{each.name} {each.arguments}") for group in COMMANDS.values() for each in group)
    for title, commands in COMMANDS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {f'{command.name} {command.arguments}':{width}}  {command.summary}" for command in commands]
    return "\n".join([*lines, "", f"{PROGRAM} COMMAND --help shows the arguments of a command; {PROGRAM} --version."])


def print_versions(arguments: list[str]) -> int:
    """Print the versions of RewardServe, Python and the libraries, for a bug report."""
    Parser(f"{PROGRAM} version", "Print the versions of RewardServe, Python and the libraries.").parse_args(arguments)
    machine = f"python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} CPUs"
    show("\n".join([_version_of(PROGRAM), machine, *map(_version_of, _LIBRARIES)]))
    return 0


def _version_of(distribution: str) -> str:
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return f"{distribution} is not installed"
