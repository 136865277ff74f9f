"""Validate decoded JSON: convert it to the record of a request, or name the first fault with its JSON path.

msgspec converts. For a small body pydantic reports the fault, by models that are derived from the records: of a union it knows the
branch that was probably meant. An error names a field and never quotes a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache, reduce
from itertools import islice
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from rewardserve.model.text.nearest_word import nearest_word
from rewardserve.service.errors import InvalidRequest

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")

_MAX_FIELD_CHARS = 120
_MAX_MESSAGE_CHARS = 200
_MAX_SUGGESTED_CHARS = 40
"""Longer than any field of a request. A suggestion names no longer field, and compares none."""
_MAX_COMPARED = 64
"""A large body may have a hundred thousand unknown fields."""

NOT_READ = (
    "this server does not read this field. If it is a part of the conversation, render the conversation with the chat template of "
    "the reward model and send the text; else leave the field out"
)
NO_SUCH_FIELD = "a sample has no such field; it has prompt and response, or else messages, text or input_ids"
"""The message for an unknown field in a file of samples."""
NO_MODEL = (
    "this route has no field for the model: leave it out. The model in service scores, and ?model_digest= in the URL refuses any "
    "other"
)
MISSING_FIELD = "this field is missing"

_UNKNOWN, _MISSING = "extra_forbidden", "missing"
_FAULTS_OF_FIELDS = (_UNKNOWN, _MISSING)
"""Errors of pydantic whose path ends in the name of a field."""
_NOUNS = {
    "str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false", "array": "an array",
    "object": "an object", "null": "null",
}  # fmt: skip
"""Types in the terms of JSON, by msgspec's names."""
_NAMES = {
    dict: "object",
    list: "array",
    tuple: "array",
    str: "str",
    bool: "bool",
    int: "int",
    float: "float",
    type(None): "null",
}
"""Msgspec's names of the types of decoded JSON."""
_TYPE_FAULTS = {
    "model_type": "object", "model_attributes_type": "object", "dict_type": "object", "string_type": "str", "list_type": "array",
    "tuple_type": "array", "int_type": "int", "int_from_float": "int", "float_type": "float", "bool_type": "bool",
}  # fmt: skip
"""Errors of pydantic about a type, with msgspec's name of the type."""
_LITERAL = "literal_error"
_LIMIT_FAULTS = {
    "too_short": "must have at least {min_length} item{s}, not {actual_length}",
    "too_long": "must have at most {max_length} item{s}",
    "string_too_short": "must have at least {min_length} character{s}",
    "string_too_long": "must have at most {max_length} character{s}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "string_unicode": "has a lone surrogate",
    _MISSING: MISSING_FIELD,
}
"""Other errors of pydantic, with the names of their numbers."""
_WRONG_TYPE = re.compile(r"Expected `([^`]*)`(?:, got `([^`]*)`)?")
_OUT_OF_RANGE = re.compile(r"Expected `([^`]*)`( of length)? (>=|<=) (\S+)")
_WRONG_LITERAL = re.compile(r"Invalid (?:enum|literal) value\b.*", re.DOTALL)
_CONSTRAINTS = ("ge", "le", "min_length", "max_length", "pattern")
_BRANCH = re.compile(r"str|float|.*[^a-z0-9_].*", re.DOTALL)
"""Pydantic's names of the branches of a union; a field of a record has lower case and no sign."""
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_FIELD_FAULT = re.compile(r"Object (contains unknown|missing required) field `(.*)`")


def check(value: Any, record: type[S], unknown: str = NOT_READ) -> S:
    """Validate `value`, with the report of pydantic. Raise `InvalidRequest` with the JSON path of the first fault.

    `unknown` is the message for a field that is not in the record.
    """
    try:
        _model_of(record).model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False)
        paths = [_path(each) for each in found]
        # Of the branches of a union, the client probably meant the one with the deepest error.
        path = max(paths, key=len)
        faults = [each for each, its in zip(found, paths, strict=True) if its == path]
        field, kind = _json_path(path), faults[0]["type"]
        reason = _unread(path, unknown) if kind == _UNKNOWN else _reason(faults)
        if kind in _FAULTS_OF_FIELDS:
            hint = _suggestion(value, record, path[:-1], str(path[-1]), is_missing=kind == _MISSING)
            reason = _with_hint(reason, hint, is_missing=kind == _MISSING)
        raise InvalidRequest(f"{field}: {reason}", field=field, n_errors=_n_faults(paths)) from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", field="$") from None
    return convert(value, record)


def convert(value: Any, kind: type[T]) -> T:
    """Convert `value` to a record. Raise `InvalidRequest` with the JSON path of the fault, in few words."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as invalid:
        raise invalid_request(invalid, value, kind) from None
    except UnicodeEncodeError:  # in a text outside the fields of a record
        raise InvalidRequest("a text holds a lone surrogate", field="$") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", field="$") from None


def invalid_request(error: msgspec.ValidationError, value: Any = None, kind: Any = None) -> InvalidRequest:
    """Convert an error of msgspec to the terms of JSON and the path of `check`. The message quotes no value of the body."""
    reason, at, path = str(error).rpartition(" - at ")
    reason, path = (reason, path.strip("`")) if at else (path, "$")
    if fault := _FIELD_FAULT.fullmatch(reason):
        is_missing, name, hint = fault[1] == "missing required", fault[2], ""
        if kind is not None:
            steps = [int(index) if index else name for name, index in _STEP.findall(path)]
            with suppress(LookupError, TypeError):  # an unknown field may have a name that looks like a path
                hint = _suggestion(value, kind, steps, name, is_missing=is_missing)
        is_in_request = path == "$"
        path = f"{path}.{name}"
        reason = MISSING_FIELD if is_missing else _unread((name,) if is_in_request else ("", name), NOT_READ)
        reason = _with_hint(reason, hint, is_missing=is_missing)
    elif _WRONG_LITERAL.fullmatch(reason):
        accepted = [] if kind is None else _literals(kind, [name for name, _ in _STEP.findall(path) if name])
        reason = f"must be {_either(accepted) if accepted else 'one of the accepted values'}"
    else:
        reason = _in_json_terms(reason)
    field = path[:_MAX_FIELD_CHARS].removeprefix("$.")
    return InvalidRequest(f"{field}: {reason}", field=field)


def type_fault(field: str, expected: str, given: Any) -> InvalidRequest:
    """The refusal of a value that is not of the type `expected`, which is one of msgspec's names, or several with ` | `."""
    return InvalidRequest(f"{field}: {_must_be(expected.split(' | '), _NAMES.get(type(given)))}", field=field)


def _in_json_terms(reason: str) -> str:
    """Translate an error of msgspec; one that is not known keeps its words, without the value that it quotes."""
    if fault := _WRONG_TYPE.fullmatch(reason):
        return _must_be(fault[1].split(" | "), fault[2])
    if fault := _OUT_OF_RANGE.fullmatch(reason):
        bound = "least" if fault[3] == ">=" else "most"
        if not fault[2]:
            return f"must be at {bound} {fault[4]}"
        unit = "character" if "str" in fault[1] else "item"
        return f"must have at {bound} {fault[4]} {unit}{_plural(int(fault[4]))}"
    return reason.partition(" '")[0][:_MAX_MESSAGE_CHARS]


def _literals(kind: Any, names: Sequence[str]) -> list[str]:
    """The accepted values of a field, whose path has these names; none if its type has no literals."""
    for name in names:
        record = _struct_in(kind)
        kind = (
            next((each.type for each in msgspec.structs.fields(record) if each.encode_name == name), None)
            if record
            else None
        )
    if get_origin(kind) is Literal:
        return [repr(each) for each in get_args(kind)]
    return [each for part in get_args(kind) for each in _literals(part, [])]


def _must_be(expected: Iterable[str], given: str | None) -> str:
    """Name the types that a field accepts, besides null, and the given one. Both have msgspec's names."""
    names = [name for name in dict.fromkeys(expected) if name != "null"]
    numbers = {"bool": "a boolean", "int": "a number", "float": "a fraction" if "int" in names else "a number"}
    noun = None if given is None else numbers.get(given, _NOUNS.get(given))
    return f"must be {_either([_NOUNS.get(each, each) for each in names])}" + (f", not {noun}" if noun else "")


def _either(choices: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


def _plural(n: int) -> str:
    return "" if n == 1 else "s"


def _unread(path: Sequence[int | str], unknown: str) -> str:
    return NO_MODEL if tuple(path) == ("model",) and unknown is NOT_READ else unknown


def _with_hint(reason: str, hint: str, *, is_missing: bool) -> str:
    """Add a suggestion. For an unknown field it takes the place of the remedies for a field that is no misprint."""
    return hint if hint and not is_missing else reason + hint


# -- suggestions ------------------------------------------------------------------------------------------------------------


def suggest_known(name: str, known: Iterable[str]) -> str:
    """Suggest the known field that an unknown one probably is; empty if none is near."""
    near = _nearest(name, known)
    return "" if near is None else f"this field is unknown; did you mean `{near}`?"


def suggest_given(missing: str, unknown: Iterable[str]) -> str:
    """Suggest that a missing field is one of the unknown ones; empty if none is near."""
    near = _nearest(missing, unknown)
    return "" if near is None else f"; the body has `{near}`: did you mean `{missing}`?"


def _nearest(name: str, others: Iterable[str]) -> str | None:
    if len(name) > _MAX_SUGGESTED_CHARS:
        return None
    compared = [each for each in islice(others, _MAX_COMPARED) if len(each) <= _MAX_SUGGESTED_CHARS]
    return nearest_word(name, compared)


def _suggestion(value: Any, kind: Any, path: Sequence[int | str], field: str, *, is_missing: bool) -> str:
    """Compare a wrong field with the others of its object. `path` is that of the object."""
    given, record = value, _struct_in(kind)
    for step in path:
        given = given[step]
        if isinstance(step, str):
            record = _struct_in({each.encode_name: each.type for each in msgspec.structs.fields(record)}[step])
    known = [each.encode_name for each in msgspec.structs.fields(record)]
    if is_missing:
        return suggest_given(field, (name for name in given if name not in known))
    return suggest_known(field, (name for name in known if name not in given))


def _struct_in(kind: Any) -> Any:
    """The record of a type, or of the branches or items of a type; None if it has none."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next(filter(None, map(_struct_in, get_args(kind))), None)


# -- the report of pydantic -------------------------------------------------------------------------------------------------


class _StopAtFirstError(FailFast):
    """Stop at the first invalid item of a list: pydantic describes each in about a kilobyte, and there may be a million."""

    __hash__ = object.__hash__  # required in a union


_STOP_AT_FIRST_ERROR = _StopAtFirstError()
_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@cache
def _model_of(record: type[msgspec.Struct]) -> type[BaseModel]:
    """Derive the model that reports the faults of a body. Its values are not used, so a default is None."""
    fields: dict[str, Any] = {
        each.encode_name: (_type_of(each.type), ... if each.required else None)
        for each in msgspec.structs.fields(record)
    }
    return create_model(record.__name__, __config__=_CONFIG, **fields)


def _type_of(kind: Any) -> Any:
    """Convert the type of a field from msgspec's terms to pydantic's."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return reduce(_constrained, arguments[1:], _type_of(arguments[0]))
    if origin in (Union, UnionType):
        return Union[tuple(_type_of(each) for each in arguments if each is not msgspec.UnsetType)]  # noqa: UP007
    if origin in (list, tuple):
        return Annotated[list[_type_of(arguments[0])], _STOP_AT_FIRST_ERROR]  # type: ignore[misc]
    return _model_of(kind) if _struct_in(kind) is kind else kind


def _constrained(kind: Any, meta: msgspec.Meta) -> Any:
    limits = {name: limit for name in _CONSTRAINTS if (limit := getattr(meta, name)) is not None}
    return Annotated[kind, Field(**limits)] if limits else kind


def _path(error: ErrorDetails) -> tuple[int | str, ...]:
    """Return the path of an error without the names that pydantic gives to the branches of a union."""
    loc = error["loc"]
    n_steps = len(loc) - (error["type"] in _FAULTS_OF_FIELDS)
    return (*(step for step in loc[:n_steps] if isinstance(step, int) or not _BRANCH.fullmatch(step)), *loc[n_steps:])


def _n_faults(paths: Iterable[tuple[int | str, ...]]) -> int:
    """Count the faults of a body: the branches of a union report the same fault at one path, or at a path within it."""
    distinct = set(paths)
    return len(distinct - {path[:n] for path in distinct for n in range(len(path))})


def _reason(faults: Sequence[ErrorDetails]) -> str:
    """Describe the errors at one path, which are several for a union: its types, unless the value is of one of them."""
    for each in faults:
        if (text := _LIMIT_FAULTS.get(each["type"])) is not None:
            numbers = each.get("ctx", {})
            return text.format(**numbers, s=_plural(numbers.get("min_length", numbers.get("max_length", 0))))
    names = [_TYPE_FAULTS[each["type"]] for each in faults if each["type"] in _TYPE_FAULTS]
    if literals := [each["ctx"]["expected"] for each in faults if each["type"] == _LITERAL]:
        return f"must be {_either([*literals, *map(_NOUNS.__getitem__, names)])}"
    return _must_be(names, _NAMES.get(type(faults[0]["input"]))) if names else faults[0]["msg"]


def _json_path(path: Sequence[int | str]) -> str:
    text = "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text[:_MAX_FIELD_CHARS].removeprefix("$.")
