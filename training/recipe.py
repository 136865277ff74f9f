"""A YAML file and `--set key=value` -> `Config`. Unknown keys are errors that name the nearest known one.

Knows the types of the records in `config`, not their meaning.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from training.config import Config, ConfigError


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply the overrides, in order. Raise `ConfigError`."""
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    return parse(raw, overrides)


def parse(raw: Any, overrides: Sequence[str] = ()) -> Config:
    """A recipe that was read already. Raise `ConfigError`."""
    if not isinstance(raw, dict):
        raise ConfigError(f"a recipe is a mapping of sections, got {type(raw).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override!r}: write key=value, for instance optim.lr=1e-4")
        raw = _put(raw, key.strip().split("."), _value(value), where="")
    config: Config = _record(Config, raw, where="")
    return config


def plain(config: Config) -> dict[str, Any]:
    """The recipe as plain values, for reports and for comparing two runs."""
    return dataclasses.asdict(config)


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set: {text!r} is no YAML value: {error}") from error


def _put(node: Any, path: list[str], value: Any, where: str) -> Any:
    """A copy of `node` with `value` at `path`; numbers index lists."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    here = f"{where}.{key}" if where else key
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            raise ConfigError(f"--set {here}: {where} is a list of {len(node)}; name one by its number, 0 is the first")
        return [_put(item, rest, value, here) if i == int(key) else item for i, item in enumerate(node)]
    if node is None:
        node = {}
    if not isinstance(node, dict):
        raise ConfigError(f"--set {here}: {where} is {node!r} and has no parts")
    return {**node, key: _put(node.get(key), rest, value, here)}


def _record(kind: Any, raw: Any, where: str) -> Any:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where or 'recipe'} is {raw!r}; it must be a mapping")
    types_of = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}
    for key in raw:
        if key not in known:
            raise ConfigError(_unknown(_join(where, str(key)), str(key), list(known), where))
    for name, f in known.items():
        if name not in raw and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_join(where, name)} is missing")
    return kind(**{key: _coerce(types_of[key], value, _join(where, key)) for key, value in raw.items()})


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _unknown(full: str, key: str, known: list[str], where: str) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"unknown setting {full!r}; did you mean {_join(where, near[0])!r}? Known here: {', '.join(known)}"


def _coerce(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type. Raise `ConfigError` naming field, value and type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    if origin is Literal:
        # YAML 1.1 reads a bare `no` as false.
        value = "no" if value is False and "no" in args else value
        if value not in args:
            raise ConfigError(f"{where} is {value!r}; it must be one of {', '.join(map(str, args))}")
        return value
    if origin is types.UnionType:
        if value is None:
            return None
        return _coerce(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_coerce(args[0], item, f"{where}.{i}") for i, item in enumerate(items))
    return _scalar(kind, value, where)


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and not isinstance(value, bool):
        # YAML reads `1e-4` as a string: it wants a dot before the exponent.
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} is {value!r}; it must be of type {kind.__name__}")
