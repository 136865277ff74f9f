"""Check the fields of a JSON object against a dataclass, for files beside the weights. Standard library only."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NOUNS: dict[type, str] = {
    dict: "an object", list: "a list", tuple: "a list", str: "a text", bool: "true or false", int: "a whole number",
    float: "a number", NoneType: "null",
}  # fmt: skip


def check_fields(raw: object, record: type, path: str = "") -> None:
    """Raise `ValueError` with the first field that is missing, unknown, or of another type than in the dataclass `record`."""
    if not isinstance(raw, dict):
        raise ValueError(f"{path or 'it'} must be an object, not {_noun(raw)}")
    types, prefix = _types_of(record), f"{path}." if path else ""
    if unknown := sorted(set(raw) - set(types)):
        raise ValueError(f"{prefix}{unknown[0]} is not known")
    for field in fields(record):
        if field.name in raw:
            _check(raw[field.name], types[field.name], f"{prefix}{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{prefix}{field.name} is missing")


_types_of = cache(get_type_hints)


def _check(value: object, kind: Any, path: str) -> None:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # a type or null, or a type or a list
        kinds = [each for each in inner if each is not NoneType]
        if value is not None or len(kinds) == len(inner):
            alike = (each for each in kinds if (get_origin(each) is tuple) == isinstance(value, list))
            _check(value, next(alike, kinds[0]), path)
    elif origin is Literal:
        if value not in inner:
            raise ValueError(f"{path} must be one of {', '.join(map(str, inner))}, not {value!r}")
    elif origin is tuple:
        _check_list(value, inner, path)
    elif is_dataclass(kind):
        check_fields(value, kind, path)  # type: ignore[arg-type]
    elif kind is not Any:
        _check_type(value, origin or kind, path)


def _check_list(value: object, inner: tuple[Any, ...], path: str) -> None:
    _check_type(value, list, path)
    assert isinstance(value, list)
    kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
    if len(kinds) != len(value):
        raise ValueError(f"{path} must have {len(kinds)} items, not {len(value)}")
    for i, (each, kind) in enumerate(zip(value, kinds, strict=True)):
        _check(each, kind, f"{path}[{i}]")


def _check_type(value: object, kind: type, path: str) -> None:
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{path} must be {_NOUNS[kind]}, not {_noun(value)}")


def _noun(value: object) -> str:
    return _NOUNS.get(type(value), type(value).__name__)
