"""Read settings from the command line and the environment, print their help and errors, and end the process.

Knows no setting by name: flags, variables and defaults are those of the settings class.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as record_field
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliPositionalArg, CliSettingsSource, SettingsError

from rewardserve.arguments import Parser, is_option, one_of, respell, show
from rewardserve.exit_codes import USAGE_ERROR, exit_codes_of
from rewardserve.model.text.nearest_word import CUTOFF_OF_NAMES, did_you_mean
from rewardserve.model.text.printable import printable
from rewardserve.service.settings import ENV_PREFIX, ServeSettings

S = TypeVar("S", bound=BaseSettings)

_POSITIONAL = get_args(CliPositionalArg[str])[1]
_WIDTH = 100
_KINDS = {bool: "true|false", int: "N", float: "X", str: "TEXT", Path: "PATH", dict: "JSON"}
_BOOLEANS = {"on", "off", "true", "false", "yes", "no", "1", "0", "t", "f", "y", "n"}
_RULES = {
    "bool_parsing": "true or false",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
}
"""Type of a pydantic error -> the valid values. Other errors keep the words of pydantic."""
_HELP_SWITCHES = {
    "-h, --help": "show the usual settings and exit",
    "--help-all": "show all settings and exit",
}


@dataclass(frozen=True, slots=True)
class Option:
    """One setting as it is written on the command line and in the environment."""

    path: tuple[str, ...]
    is_positional: bool
    is_required: bool
    values: str
    default: str
    description: str

    @classmethod
    def of(cls, path: tuple[str, ...], field: FieldInfo) -> Option:
        """The option of a field."""
        required = field.is_required()
        return cls(
            path=path,
            is_positional=_POSITIONAL in field.metadata,
            is_required=required,
            values=_values(field.annotation),
            default="" if required else _written(field.default),
            description=field.description or "",
        )

    @property
    def name(self) -> str:
        """The flag, or the name of a positional argument."""
        if self.is_positional:
            return "_".join(self.path).upper()
        return _flag(self.path)

    @property
    def variable(self) -> str:
        """The variable of the environment; empty for an argument that must be on the command line."""
        return "" if self.is_required else _variable(self.path)


@dataclass(frozen=True, slots=True)
class Wording:
    """The names by which the user of a command knows its settings: the typed ones of `arguments`, else the variables.

    Messages name a setting by its variable (in `service`) or by its dotted name (in `model`, which knows no variables).
    """

    settings: type[BaseSettings]
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = record_field(default_factory=lambda: os.environ)

    def __call__(self, message: str) -> str:
        """Replace the names of settings in a message."""
        options = list(options_of(self.settings))
        by_variable = {option.variable: self.name(option) for option in options if option.variable}
        message = re.sub(rf"\b{ENV_PREFIX}[A-Z_]+\b", lambda found: by_variable.get(found[0], found[0]), message)
        return respell(message, {".".join(option.path): self.name(option) for option in options if option.variable})

    def name(self, option: Option) -> str:
        """The flag if it was typed, or if other arguments were typed and the variable is not set; else the variable."""
        typed = {_hyphens(argument).partition("=")[0] for argument in self.arguments if is_option(argument)}
        if option.is_required or option.name in typed:
            return option.name
        return option.name if self.arguments and option.variable not in self.environment else option.variable


def from_command_line(
    settings: type[S],
    program: str,
    arguments: Sequence[str],
    first: Sequence[str] = (),
    *,
    without: Sequence[str] = (),
    switches: Mapping[str, str] = MappingProxyType({}),
) -> S:
    """Read settings from flags, then the environment, then defaults. On errors print them and exit with 2.

    Variables that are no setting are reported.

    `first` are the settings that `--help` shows; `--help-all` shows all settings except those in `without`, which have no
    effect and whose flags are refused. `switches` are flags that the caller has removed from the arguments, with their
    descriptions.
    """
    parser = Parser(program, _summary(settings), add_help=False)
    options = [option for option in options_of(settings) if ".".join(option.path) not in without]
    positionals = [option for option in options if option.is_positional]
    shown = positionals + [option for name in first for option in options if ".".join(option.path) == name]
    switches = {**switches, **_HELP_SWITCHES}
    parser.add_argument("-h", "--help", action=_Print, text=_help(program, settings, shown, options, switches))
    parser.add_argument("--help-all", action=_Print, text=_help(program, settings, options, options, switches))
    source: Any = CliSettingsSource(settings, root_parser=parser, parse_args_method=Parser.parse_args)
    parser.hidden = frozenset("--" + name.replace("_", "-") for name in without)
    parser.name_positionals([option.name for option in positionals])
    wording = Wording(settings, arguments)
    parser.extra = frozenset(switches)
    parser.hidden |= section_flags(options_of(settings))  # pydantic-settings would read a section as JSON
    if misused := [_of_section(section, options, wording) for section in _given_sections(options, arguments)]:
        complain(program, misused)
        sys.exit(USAGE_ERROR)
    try:
        found = settings(
            _cli_settings_source=source(args=list(_with_values([_hyphens(a) for a in arguments], options)))
        )
        complain(program, _unknown_variables(program, settings))
        return found
    except ValidationError as error:
        named = {option.path: option for option in options}
        complain(program, [_in_words(e, named, wording) for e in error.errors(include_url=False)])
    except SettingsError as error:
        complain(program, [_not_json(str(error), options, wording)])
    sys.exit(USAGE_ERROR)


def _with_values(arguments: Sequence[str], options: Sequence[Option]) -> Iterator[str]:
    """Yield the arguments, with `=on` after a flag of a boolean setting that stands alone, as in the other commands."""
    booleans = {option.name for option in options if option.values == _KINDS[bool]}
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        yield f"{argument}=on" if argument in booleans and following.lower() not in _BOOLEANS else argument


def _unknown_variables(program: str, settings: type[BaseSettings]) -> list[str]:
    """Describe the variables of the environment that are no setting, each with the nearest setting."""
    known = [option.variable for kind in (settings, ServeSettings) for option in options_of(kind) if option.variable]
    return [
        f"{name} is not a setting and is ignored{did_you_mean(name, known, CUTOFF_OF_NAMES) or '.'} "
        f"See {program} --help-all."
        for name in unknown_variables(settings, os.environ)
    ]


def unknown_variables(settings: type[BaseSettings], environment: Mapping[str, str]) -> list[str]:
    """Return the `REWARD_*` variables that no setting of these or of the server reads, usually misspelt ones.

    One environment often serves several commands: `score` is silent about `REWARD_PORT`.
    """
    known = {option.variable for kind in (settings, ServeSettings) for option in options_of(kind)}
    # In these sections pydantic-settings refuses an unknown name.
    sections = tuple({f"{_variable(option.path[:1])}__" for option in options_of(settings) if len(option.path) > 1})
    names = (name for name in environment if name.upper().startswith(ENV_PREFIX))
    return sorted(name for name in names if name.upper() not in known and not name.upper().startswith(sections))


def complain(program: str, lines: Sequence[str]) -> None:
    """Print error messages to stderr."""
    for line in lines:
        print(f"{program}: {printable(line)}", file=sys.stderr)


def complain_of_model(program: str, error: Exception, wording: Wording, which: str = "this model") -> None:
    """Print why a model cannot be served, with the names of settings that the user knows."""
    complain(program, [f"{which} cannot be served.", *wording(str(error)).splitlines()])


def options_of(settings: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Option]:
    """Yield the options of a settings class, positional arguments first and nested sections last."""
    sections: dict[str, type[BaseModel]] = {}
    leaves: list[Option] = []
    for name, field in settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            sections[name] = kind
        else:
            leaves.append(Option.of((*path, name), field))
    yield from sorted(leaves, key=lambda option: not option.is_positional)
    for name, section in sections.items():
        yield from options_of(section, (*path, name))


def section_flags(options: Iterable[Option]) -> frozenset[str]:
    """Return the flags of the sections of these options, which are refused: only the settings in a section have values."""
    return frozenset(map(_flag, _sections(options)))


def _sections(options: Iterable[Option]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(option.path[:i] for option in options for i in range(1, len(option.path))))


def _given_sections(options: Iterable[Option], arguments: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the sections whose flag is in the arguments or whose variable is in the environment."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given = {_hyphens(argument).partition("=")[0] for argument in arguments[:end]}
    given |= {name.upper() for name in os.environ}
    return [section for section in _sections(options) if given & {_flag(section), _variable(section)}]


def _values(annotation: Any) -> str:
    """Return the values of a setting for its help: those of a literal, or a placeholder."""
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    kinds = [each for each in get_args(annotation) if each is not NoneType]
    if kinds and get_origin(annotation) is not dict:
        return _values(kinds[0])
    return _KINDS[get_origin(annotation) or annotation]


def _written(default: Any) -> str:
    """Format a default as in an argument; empty if there is none."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return "" if default is None or default == {} else str(default)


# -- help -----------------------------------------------------------------------------------------------------------


class _Print(argparse.Action):
    """Print a text and exit with 0."""

    def __init__(self, option_strings: Sequence[str], dest: str, text: str) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0)
        self._text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        show(self._text)
        parser.exit()


def _help(
    program: str,
    settings: type[BaseSettings],
    shown: Sequence[Option],
    every: Sequence[Option],
    switches: Mapping[str, str],
) -> str:
    """Build the help of a subcommand: usage, summary, and the shown settings with variables and defaults."""
    positionals = " ".join(
        option.name if option.is_required else f"[{option.name}]" for option in every if option.is_positional
    )
    lines = [f"usage: {program} {positionals} [SETTINGS]", "", _summary(settings), ""]
    for option in shown:
        lines += _entry(option)
    for name, description in switches.items():
        lines += [f"  {name}", f"      {description}"]
    more = "Flags override environment variables."
    if rest := len(every) - len(shown):
        more += f" {program} --help-all shows {rest} more settings."
    codes = textwrap.fill(exit_codes_of(program.rpartition(" ")[2]), _WIDTH)
    return "\n".join([*lines, "", more, "", codes])


def _entry(option: Option) -> list[str]:
    """Build the lines of a setting: flag and variable, then the description."""
    name = option.name if option.is_positional else f"{option.name} {option.values}"
    head = "  ".join(part for part in (name, option.variable) if part)
    text = f"{option.description} [{option.default}]" if option.default else option.description
    return [
        f"  {head}",
        *textwrap.wrap(text.strip(), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6),
    ]


def _summary(settings: type[BaseSettings]) -> str:
    return (settings.__doc__ or "").strip().splitlines()[0]


def _hyphens(argument: str) -> str:
    """Accept `--max_input_tokens=3` as `--max-input-tokens=3`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _in_words(error: Mapping[str, Any], options: Mapping[tuple[str, ...], Option], wording: Wording) -> str:
    """Format a pydantic error as one line: the setting as the user knows it, its valid values, the given value."""
    path = tuple(str(step) for step in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if not path:
        return wording(message)
    option = options.get(path)
    if option is None:
        return _of_no_setting(path, error, options.values(), wording)
    name = wording.name(option)
    if error["type"] == "missing":
        return f"{name} is missing"
    if error["type"] == "literal_error":
        return f"{name}: {one_of(error['input'], option.values.split('|'))}"
    if error["type"] == "value_error":  # our own message, with the value
        return f"{name}: {message}"
    limits = {key: f"{value:,}" if isinstance(value, int) else value for key, value in error.get("ctx", {}).items()}
    rule = _RULES.get(error["type"])
    if rule is not None:
        message = f"must be {rule.format_map(limits)}"
    return f"{name}: {message}, not {error['input']!r}"


def _of_no_setting(path: tuple[str, ...], error: Mapping[str, Any], options: Iterable[Option], wording: Wording) -> str:
    """Describe a name in a section that is no setting."""
    name = _typed(path, wording)
    known = [option.name if name == _flag(path) else option.variable for option in options]
    return f"{name} is not a setting{did_you_mean(name, known, CUTOFF_OF_NAMES)}"


def _of_section(path: tuple[str, ...], options: Iterable[Option], wording: Wording) -> str:
    """Describe a section that was given as a setting."""
    name = _typed(path, wording)
    inner = [
        option.name if name == _flag(path) else option.variable
        for option in options
        if option.path[: len(path)] == path
    ]
    return f"{name} is a section of settings, not one with a value: set {', '.join(inner)}"


def _typed(path: tuple[str, ...], wording: Wording) -> str:
    """The flag of a path if it is in the arguments, else its variable."""
    flag = _flag(path)
    return flag if any(_hyphens(each).partition("=")[0] == flag for each in wording.arguments) else _variable(path)


def _flag(path: Sequence[str]) -> str:
    return "--" + ".".join(path).replace("_", "-")


def _variable(path: Sequence[str]) -> str:
    return ENV_PREFIX + "__".join(path).upper()


def _not_json(message: str, options: Sequence[Option], wording: Wording) -> str:
    """Format the error of a value that is no JSON: pydantic-settings names the setting, or only its section."""
    found = re.search(r'(?:encountered for|value for field) "?([\w.]+)', message)
    path = tuple(found[1].split(".")) if found else ()
    named = [option for option in options if option.values == _KINDS[dict] and option.path[: len(path)] == path]
    if not path or not named:
        return wording(message)
    return f'{wording.name(named[0])}: must be an object in JSON, such as {{"a": 1.0, "b": 0.5}}'
