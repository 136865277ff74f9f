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
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

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
    "this server does not read this field, so its content would be missing from the text that is scored. Render the conversation "
    "with the chat template of the reward model and send the text, or leave the field out"
)

_UNKNOWN, _MISSING = "extra_forbidden", "missing"
_FAULTS_OF_FIELDS = (_UNKNOWN, _MISSING)
"""Errors of pydantic whose path ends in the name of a field."""
_CONSTRAINTS = ("ge", "le", "min_length", "max_length", "pattern")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_FIELD_FAULT = re.compile(r"Object (contains unknown|missing required) field `(.*)`")


def check(value: Any, record: type[S], unknown: str = NOT_READ) -> S:
    """Validate `value`, with the report of pydantic. Raise `InvalidRequest` with the JSON path of the first fault.

    `unknown` is the message for a field that is not in the record.
    """
    try:
        _model_of(record).model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        # Of the branches of a union, the client probably meant the one with the deepest error.
        path, kind, reason = max(((_path(each), each["type"], each["msg"]) for each in found), key=lambda e: len(e[0]))
        field, reason = _json_path(path), unknown if kind == _UNKNOWN else reason
        if kind in _FAULTS_OF_FIELDS:
            reason += _suggestion(value, record, path[:-1], str(path[-1]), is_missing=kind == _MISSING)
        raise InvalidRequest(f"{field}: {reason}", field=field, n_errors=len(found)) from None
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
    """Convert an error of msgspec, without its quotation: for an invalid literal msgspec quotes the value in the body."""
    reason, at, path = str(error).rpartition(" - at ")
    reason, path = (reason, path.strip("`")) if at else (path, "$")
    hint = ""
    if kind is not None and (fault := _FIELD_FAULT.fullmatch(reason)):
        steps = [int(index) if index else name for name, index in _STEP.findall(path)]
        with suppress(LookupError, TypeError):  # an unknown field may have a name that looks like a path
            hint = _suggestion(value, kind, steps, fault[2], is_missing=fault[1] == "missing required")
    return InvalidRequest(reason.partition(" '")[0][:_MAX_MESSAGE_CHARS] + hint, field=path[:_MAX_FIELD_CHARS])


# -- suggestions ------------------------------------------------------------------------------------------------------------


def suggest_known(name: str, known: Iterable[str]) -> str:
    """Suggest the known field that an unknown one probably is; empty if none is near."""
    near = _nearest(name, known)
    return "" if near is None else f"; did you mean `{near}`?"


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
    return (*(step for step in loc[:n_steps] if step not in ("str", "list[MessageIn]")), *loc[n_steps:])


def _json_path(path: Sequence[int | str]) -> str:
    text = "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text[:_MAX_FIELD_CHARS].removeprefix("$.")
