"""Read the lists of the reference from the code: settings, metrics, error codes, routes, alerts, trip wires, log events, recipes.

Each function returns records; `docs.pages` writes them as Markdown. Nothing here says what a setting or an error means: that stands
beside the setting and the error. Needs no model and no network.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from docs.markdown import code
from rewardserve.cli import COMMANDS, Command
from rewardserve.model.conversation import SampleError
from rewardserve.service.api.error_responses import FRAMEWORK_CODES
from rewardserve.service.app import create_app
from rewardserve.service.auth.api_keys import ApiKeys
from rewardserve.service.errors import RequestRefused, RowFailed, ServiceError
from rewardserve.service.observability.metrics import PREFIX, TABLE
from rewardserve.service.settings import ENV_PREFIX, ModelSettings, ServeSettings
from rewardserve.service.tripwires.wires import WIRES
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.validation import RANGES

ROOT = Path(__file__).resolve().parents[1]
RULES = ("monitoring/prometheus/rules/service.yml", "monitoring/prometheus/rules/tripwires.yml")
_LOGGERS = ("debug", "info", "warning", "error", "exception", "critical", "level")

Schema = Mapping[str, Any]


# -- JSON schemas -------------------------------------------------------------------------------------------------------


def type_of(schema: Schema, link: str = "#") -> str:
    """The type of a field as Markdown; records are links to their section."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return f"[{name}]({link}{name.lower()})"
    if "const" in schema:
        return code(json.dumps(schema["const"]).strip('"'))
    if "enum" in schema:
        return ", ".join(code(each) for each in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_of(each, link) for each in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_part_type(schema['items'], link)}" if schema.get("items") else "list"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_part_type(schema['additionalProperties'], link)}"
    names = {"string": "text", "integer": "whole number", "boolean": "true or false", "path": "path"}
    kind = str(schema.get("format") if schema.get("format") == "path" else schema.get("type", "any value"))
    return names.get(kind, kind)


def _part_type(schema: Schema, link: str) -> str:
    """The type of the items of a list or an object, in parentheses where it is a choice."""
    kind = type_of(schema, link)
    return f"({kind})" if len(schema.get("anyOf", ())) > 1 else kind


def range_of(schema: Schema) -> str:
    """The type of a value and the values that it may have, as Markdown."""
    options = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    if len(options) != 1:
        return type_of(schema)
    one = options[0]
    words = {
        "minimum": "at least {}", "exclusiveMinimum": "above {}", "maximum": "at most {}", "exclusiveMaximum": "below {}",
        "minLength": "at least {} characters", "maxLength": "at most {} characters", "pattern": "matches `{}`",
    }  # fmt: skip
    bounds = [text.format(_number(one[name])) for name, text in words.items() if name in one]
    return ", ".join([type_of(one), *bounds])


def _number(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


# -- settings -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the server. `commands`: which read it."""

    name: str
    variable: str
    flag: str
    default: str
    range: str
    description: str
    commands: str


DEFAULTS = {"encoder_threads": "4, or the number of cores where that is less"}
"""Defaults that depend on the machine."""


def settings() -> list[Setting]:
    """All settings of the server, then those of its sections."""
    schema = ServeSettings.model_json_schema()
    shared = set(ModelSettings.model_fields)
    return list(_settings(schema, schema["$defs"], (), shared))


def _settings(schema: Schema, records: Schema, section: tuple[str, ...], shared: set[str]) -> Iterator[Setting]:
    for name, of_field in schema["properties"].items():
        path = (*section, name)
        if "$ref" in of_field:
            yield from _settings(records[of_field["$ref"].rpartition("/")[2]], records, path, shared)
            continue
        dotted = ".".join(path)
        yield Setting(
            name=dotted,
            variable=ENV_PREFIX + "__".join(path).upper(),
            flag="--" + dotted.replace("_", "-"),
            default=DEFAULTS.get(dotted, _default(of_field.get("default"))),
            range=range_of(of_field),
            description=of_field.get("description", ""),
            commands="serve, score" if path[0] in shared else "serve",
        )


def section_description(section: str) -> str:
    """The description of a section of the settings."""
    record = ServeSettings.model_fields[section].annotation
    return inspect.getdoc(record) or ""


def _default(value: object) -> str:
    if value is None:
        return "none"
    if value in ("", {}, []):
        return "empty"
    return code(value if isinstance(value, str) else json.dumps(value))


# -- metrics, errors, alerts, trip wires --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MetricEntry:
    """One metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    description: str


def metrics() -> list[MetricEntry]:
    """All metrics of the server. Those of the process (`process_*`) come from the client library."""
    return [MetricEntry(PREFIX + row.name, row.kind, row.labels, row.help) for row in TABLE]


@dataclass(frozen=True, slots=True)
class ErrorEntry:
    """One error code. `status` is None where one sample has the error and the request is answered."""

    code: str
    status: int | None
    meaning: str
    remedy: str


def errors() -> list[ErrorEntry]:
    """All codes: first those of a request, then those of one sample."""
    framework = {
        404: ("There is no such route.", "See the routes in the reference, or `/docs` of the server."),
        405: ("The route has no such method.", "Use a method that the Allow header names."),
    }
    requests = [ErrorEntry(FRAMEWORK_CODES[status], status, *words) for status, words in framework.items()]
    internal = ErrorEntry(ServiceError.code, ServiceError.status, "The server has a bug.", ServiceError.remedy)
    requests += [internal, *(_error(kind, kind.status) for kind in _leaves(RequestRefused))]
    samples = [_error(kind, None) for base in (SampleError, RowFailed) for kind in _leaves(base)]
    return [*sorted(requests, key=lambda e: (e.status or 0, e.code)), *sorted(samples, key=lambda e: e.code)]


def _leaves(base: type[ServiceError | SampleError]) -> Iterator[type[Any]]:
    """Exception classes with a code. Benchmarks have some that no server raises."""
    for kind in base.__subclasses__():
        if kind.__module__.startswith("rewardserve.") and "code" in vars(kind):
            yield kind
        yield from _leaves(kind)


def _error(kind: type[Any], status: int | None) -> ErrorEntry:
    return ErrorEntry(kind.code, status, " ".join((kind.__doc__ or "").split()), kind.remedy)


@dataclass(frozen=True, slots=True)
class AlertEntry:
    """One alert of Prometheus. `meaning` and `action` without the templates of Prometheus."""

    name: str
    severity: str
    wait: str
    meaning: str
    action: str
    anchor: str


def alerts() -> list[AlertEntry]:
    """All alerts of the rules that are shipped."""
    groups = [group for name in RULES for group in yaml.safe_load((ROOT / name).read_text())["groups"]]
    return [_alert(rule) for group in groups for rule in group["rules"] if "alert" in rule]


def _alert(rule: Mapping[str, Any]) -> AlertEntry:
    annotations = rule["annotations"]
    return AlertEntry(
        rule["alert"],
        rule["labels"]["severity"],
        rule.get("for", "at once"),
        untemplated(annotations["summary"]),
        untemplated(annotations["action"]),
        annotations["runbook_url"].rpartition("#")[2],
    )


def untemplated(words: str) -> str:
    """The text of an annotation: a label is its name in angle brackets, a value is *value*, conditional parts are left out."""
    words = re.sub(r"\{\{\s*(?:with|range|if).*?\{\{\s*end\s*\}\}", "", words, flags=re.DOTALL)
    words = re.sub(r"^\{\{\s*\$labels\.run\s*\}\}: ", "", words)
    words = re.sub(r"\{\{\s*\$labels\.(\w+)\s*\}\}", r"<\1>", words)
    words = re.sub(r"\{\{[^}]*\$value[^}]*\}\}", "<value>", words)
    return re.sub(r"\{\{.*?\}\}", "", words).strip().rstrip(":")


@dataclass(frozen=True, slots=True)
class WireEntry:
    """One trip wire."""

    name: str
    severity: str
    threshold: str
    votes: bool
    cause: str
    meaning: str
    sure: str
    action: str


def wires() -> list[WireEntry]:
    """The trip wires with the thresholds that are shipped."""
    return [
        WireEntry(
            wire.name, wire.severity, wire.statistic.unit.measured(wire.threshold), wire.votes, wire.text.cause,
            wire.text.summary, wire.text.confidence, wire.text.action,
        )
        for wire in WIRES
    ]  # fmt: skip


# -- log events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event of the log. `name` ends in `*` where the code puts the rest behind it."""

    name: str
    levels: tuple[str, ...]
    fields: tuple[str, ...]

    def is_of(self, name: str) -> bool:
        """Whether an event of this name is logged here."""
        return name == self.name or (self.name.endswith("*") and name.startswith(self.name[:-1]))


def log_events() -> list[LogEvent]:
    """The events that the server logs, found in its code."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in sorted((ROOT / "service").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (event := _event(node)) is not None:
                assert isinstance(node, ast.Call)
                levels, names = found.setdefault(event, (set(), set()))
                levels.add(_level(node.func))
                names.update(each.arg for each in node.keywords if each.arg and each.arg != "exc_info")
    return [
        LogEvent(name, tuple(sorted(levels)), tuple(sorted(names))) for name, (levels, names) in sorted(found.items())
    ]


def _event(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Call) or not node.args or _level(node.func) not in _LOGGERS:
        return None
    first = node.args[0]
    if isinstance(first, ast.JoinedStr) and first.values and isinstance(first.values[0], ast.Constant):
        prefix = str(first.values[0].value)
        return f"{prefix}*" if re.fullmatch(r"[a-z]+(_[a-z]+)*_", prefix) else None
    if (
        isinstance(first, ast.Constant)
        and isinstance(first.value, str)
        and re.fullmatch(r"[a-z]+(_[a-z]+)*", first.value)
    ):
        return first.value
    return None


def _level(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


# -- routes -------------------------------------------------------------------------------------------------------------


def openapi() -> dict[str, Any]:
    """The OpenAPI document, as `GET /openapi.json` answers it."""

    async def build() -> dict[str, Any]:
        app: Any = create_app(ServeSettings(_cli_parse_args=[]), ApiKeys()).app
        while not hasattr(app, "openapi"):
            app = next(value for name, value in vars(app).items() if name in ("app", "_app", "api", "_api"))
        document: dict[str, Any] = app.openapi()
        return document

    return asyncio.run(build())


def operations(document: Schema) -> Iterator[tuple[str, str, Schema]]:
    """Method, path and operation of every route, in order."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


# -- commands -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """One subcommand of `rewardserve`, with the text of its `--help`."""

    name: str
    arguments: str
    summary: str
    help: str


def commands() -> list[CommandEntry]:
    """All subcommands, in the order of `rewardserve --help`."""
    return [
        CommandEntry(each.name, each.arguments, each.summary, _help_of(each))
        for group in COMMANDS.values()
        for each in group
    ]


def help_of(name: str) -> str:
    """The text of a subcommand's `--help`."""
    return next(_help_of(each) for group in COMMANDS.values() for each in group if each.name == name)


def _help_of(command: Command) -> str:
    printed = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            command.run(["--help"])
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return printed.getvalue()


# -- recipes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecipeField:
    """One field of a training recipe."""

    name: str
    kind: str
    default: str
    range: str
    description: str


@dataclass(frozen=True, slots=True)
class RecipeSection:
    """One section of a training recipe. The fields that are sections themselves are not in `fields`."""

    name: str
    description: str
    fields: tuple[RecipeField, ...]


def recipe() -> list[RecipeSection]:
    """All sections of a recipe."""
    return list(_sections("", Config, {}))


def _sections(name: str, record: type[Any], known: dict[Any, str]) -> Iterator[RecipeSection]:
    """The section of a record and those inside it. A kind of section that is `known` from another place is named by it."""
    hints, descriptions = get_type_hints(record), _field_docstrings(record)
    rows: list[RecipeField] = []
    nested: dict[Any, str] = {}
    for each in fields(record):
        path = f"{name}.{each.name}".lstrip(".")
        inner = next((kind for kind in (hints[each.name], *get_args(hints[each.name])) if is_dataclass(kind)), None)
        if isinstance(inner, type) and inner not in known:
            nested[inner] = known[inner] = path
        else:
            kind = _kind_of(hints[each.name]) if inner is None else f"as {known[inner]}"
            default = "required" if each.default is MISSING else _shown(each.default)
            default = default if each.default_factory is MISSING else "empty"
            rows.append(RecipeField(path, kind, default, str(RANGES.get(path, "")), descriptions.get(each.name, "")))
    yield RecipeSection(name, inspect.getdoc(record) or "", tuple(rows))
    for inner, path in nested.items():
        yield from _sections(path, inner, known)


def _field_docstrings(record: type[Any]) -> dict[str, str]:
    """The docstring behind each field of a record."""
    (definition,) = ast.parse(inspect.getsource(record)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, behind in pairwise(definition.body):
        match field, behind:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                found[name] = " ".join(words.split())
    return found


def _kind_of(hint: Any) -> str:
    """The type of a field in the words of a recipe."""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{each}`" for each in get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {_kind_of(get_args(hint)[0])}"
    if get_args(hint):
        return " or ".join(_kind_of(each) for each in get_args(hint))
    return {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}[hint]


def _shown(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)
