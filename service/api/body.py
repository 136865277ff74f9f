"""The bytes of a body -> a checked request. Says what is wrong and where, never what was written there.

What is right is read in one pass by `wire`. What that refuses is read again slowly, as JSON and then as a schema, by
readers that know line, column and path of an offence. What Python's parser lets through beyond JSON is refused here:
NaN, Infinity, nesting or numbers without end, and a key that an object has twice.

Of a key that is there twice readers of JSON take the first value or the last, so a proxy and this server could read two requests
in one body. The fast reader takes the last and keeps quiet; a body that has more strings, keys included, than what was read of it
has lost one on the way, and is read again slowly.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from rewardserve.service.api import structs
from rewardserve.service.api.headers import header
from rewardserve.service.errors import BodyTooLarge, InvalidJson, InvalidRequest, UnsupportedMediaType

M = TypeVar("M", bound=BaseModel)
W = TypeVar("W", structs.ScoreRequestStruct, structs.CompareRequestStruct)
T = TypeVar("T")

_MAX_ADMIN_BYTES = 1_048_576
_MAX_FIELD_CHARS = 120
_MAX_MESSAGE_CHARS = 200
MAX_LOOP_BYTES = 1_048_576
"""Bytes of a body that the event loop reads itself, in a few milliseconds where it is right."""
_MAX_SLOW_BYTES = 65_536
"""Bytes of a body that the event loop reads again, slowly, where it is wrong."""
_ESCAPE_BYTES = 16
"""Bytes of two escapes, and some more."""
_ERROR_POSITION = re.compile(r" \(byte (\d+)\)$")
_MAX_FIELDS = 64
"""No object of ours has so many; each one too many costs a kilobyte of words that say so."""

NOT_READ = (
    "this field is not read here, and what it holds would be missing from the text that is scored. Render the conversation with "
    "the chat template of the reward model and send the text, or leave the field out"
)

_raw_decoder = msgspec.json.Decoder(msgspec.Raw)
_value_decoder = msgspec.json.Decoder()
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_objects_decoder = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])

_CHUNK_BYTES = 65_536
"""Bytes of a large body that are decoded at one go: the reader in C lets no other thread run meanwhile."""

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)  # possessive: it remembers no way back


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """How many parts a body may be made of. A byte of JSON can become a hundred bytes of memory, or a thousand where it is
    wrong, so they are counted first.
    """

    containers: int
    strings: int
    values: int

    @property
    def always_allowed_bytes(self) -> int:
        """A body of so many bytes cannot have more parts."""
        return min(self.containers, self.strings, self.values)

    @classmethod
    def of(cls, max_samples: int, max_tokens: int) -> JsonLimits:
        """Room for many turns a sample, and for several times the ids that could be admitted, padding included."""
        containers = max(250_000, 100 * max_samples)
        return cls(containers, 4 * containers, 4 * containers + 8 * max_tokens)


class ForeignBody(Exception):
    """The body of a request has another server's wire format. `value` is its JSON."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


async def read_body(
    request: Request,
    decoder: msgspec.json.Decoder[W],
    schema: type[M],
    parts: JsonLimits,
    is_foreign: Callable[[Any], bool] = lambda _: False,
) -> W | M:
    """The body as `decoder` reads it, or else as its twin `schema`.

    Raise as `decode` does, `UnsupportedMediaType`, and `ForeignBody` for what `decoder` refuses and `is_foreign` knows.
    """
    _check_media_type(request)
    content = await request.body()
    if len(content) > parts.always_allowed_bytes:
        await _check_limits(content, parts)
    if len(content) > MAX_LOOP_BYTES:
        return await asyncio.to_thread(decode, content, decoder, schema, is_foreign)
    try:
        return _decode_fast(content, decoder)
    except (ValueError, RecursionError) as error:
        return await run_off_loop(content, _decode_slow, content, decoder, schema, error, is_foreign)


async def read_dialect_body(request: Request, parts: JsonLimits, read_as: Callable[[Any], T]) -> T:
    """The body as another's wire format: what `read_as` makes of its JSON. Raise as `read_body` and `read_as` do."""
    _check_media_type(request)
    content = await request.body()
    if len(content) > parts.always_allowed_bytes:
        await _check_limits(content, parts)
    if len(content) > MAX_LOOP_BYTES:
        return await asyncio.to_thread(lambda: read_as(decode_any(content)))
    try:
        value = _decode_any_fast(content)
    except (ValueError, RecursionError) as error:
        value = await run_off_loop(content, _decode_any_slow, content, error)
    return read_as(value)


async def run_off_loop(content: bytes, call: Callable[..., T], *arguments: Any, most: int = _MAX_SLOW_BYTES) -> T:
    """`call(*arguments)`, on a thread where it reads more of a body than the event loop should."""
    return call(*arguments) if len(content) <= most else await asyncio.to_thread(call, *arguments)


async def _check_limits(content: bytes, most: JsonLimits) -> None:
    """As `check_json_limits`, at a glance where that is enough; what takes a second of counting leaves the event loop to others."""
    if len(content) > MAX_LOOP_BYTES:
        await asyncio.to_thread(_count_if_near, content, most)
    elif not _is_surely_within(content, most):
        await asyncio.to_thread(check_json_limits, content, most)


def _count_if_near(content: bytes, most: JsonLimits) -> None:
    if not _is_surely_within(content, most):
        check_json_limits(content, most)


def _is_surely_within(content: bytes, most: JsonLimits) -> bool:
    """At a glance, which takes next to nothing: whatever looks like a part is counted as one."""
    if len(content) <= most.always_allowed_bytes:
        return True
    n_containers = content.count(b"{") + content.count(b"[")
    return (
        n_containers <= most.containers
        and content.count(b",") + n_containers <= most.values
        and (content.count(b'"') <= 2 * most.strings or _n_quotes(content) <= 2 * most.strings)
    )


def _n_quotes(content: bytes) -> int:
    """Those that are not escaped. The regular expression below takes a text of escapes at one go, and no thread runs meanwhile."""
    pairs_gone = content.replace(b"\\\\", b"")
    return pairs_gone.count(b'"') - pairs_gone.count(b'\\"')


def check_json_limits(content: bytes, most: JsonLimits) -> None:
    """Raise `InvalidRequest` for more parts than a request can be made of, counted one by one."""
    # Texts are full of such signs too: what is within strings does not count.
    containers = strings = values = at = 0
    for string in _STRING.finditer(content):
        strings += 1
        if string.start() > at:
            n = content.count(b"{", at, string.start()) + content.count(b"[", at, string.start())
            containers += n
            values += n + content.count(b",", at, string.start())
            if containers > most.containers or strings > most.strings or values > most.values:
                break
        at = string.end()
    else:
        n = content.count(b"{", at) + content.count(b"[", at)
        containers, values = containers + n, values + n + content.count(b",", at)
    if containers > most.containers or strings > most.strings or values > most.values:
        raise InvalidRequest(
            "the body is made of more parts than a request can be: split it", field="$",
            max_containers=most.containers, max_strings=most.strings, max_values=most.values,
        )  # fmt: skip


async def read_admin_body(request: Request, schema: type[M]) -> M:
    """The body of what is asked so seldom that it has no twin, and is small. Raise as `read_body` does, and `BodyTooLarge`."""
    _check_media_type(request)
    content = await request.body()
    if len(content) > _MAX_ADMIN_BYTES:
        raise BodyTooLarge(f"this body is larger than {_MAX_ADMIN_BYTES} bytes", limit=_MAX_ADMIN_BYTES)
    return check(parse(content), schema, "this field is unknown: leave it out")


def decode(
    content: bytes,
    decoder: msgspec.json.Decoder[W],
    schema: type[M],
    is_foreign: Callable[[Any], bool] = lambda _: False,
) -> W | M:
    """The request, read fast if possible. Raise `InvalidJson`, `InvalidRequest` or `ForeignBody`."""
    try:
        return _decode_fast(content, decoder)
    except (ValueError, RecursionError) as error:
        return _decode_slow(content, decoder, schema, error, is_foreign)


def decode_any(content: bytes) -> Any:
    """Any JSON as Python's own types, read fast if possible. Raise `InvalidJson`, or `InvalidRequest` for numbers beyond bounds."""
    try:
        return _decode_any_fast(content)
    except (ValueError, RecursionError) as error:
        return _decode_any_slow(content, error)


class _LostStrings(ValueError):
    """A body has more strings than what was read of it."""


def _decode_fast(content: bytes, decoder: msgspec.json.Decoder[W]) -> W:
    if len(content) <= MAX_LOOP_BYTES:
        decoded: W = decoder.decode(content)
    else:
        decoded = msgspec.convert(_decode_values(content), decoder.type)
        _check_names(decoded)
    if n_strings(content) != structs.n_strings(decoded):
        _decode_any_fast(content)  # a field that says nothing, or a key twice
    return decoded


def _decode_any_fast(content: bytes) -> Any:
    value = _decode_values(content)
    # Without a colon beyond those behind its own keys it has no other object.
    if not (isinstance(value, dict) and content.count(b":") == len(value)):
        try:
            written = structs.dumps(value)
        except OverflowError as error:  # a number of more than 64 bits
            raise _LostStrings from error
        if n_strings(content) != n_strings(written):
            raise _LostStrings
    return value


def _decode_values(content: bytes) -> Any:
    if len(content) <= MAX_LOOP_BYTES:
        return _value_decoder.decode(content)
    if content[:_CHUNK_BYTES].lstrip()[:1] != b"{":  # no request is that
        return parse(content, number=_parse_float)
    return _decode_in_chunks(content)


def _decode_in_chunks(content: bytes) -> Any:
    """An object, or a part of one, as `_value_decoder.decode` reads it, in calls that let other threads run in between.

    The longest call passes over all of it once. Raise `ValueError` for an object that is no JSON.
    """
    begin = content[:_CHUNK_BYTES].lstrip()[:1]
    if len(content) <= _CHUNK_BYTES or begin not in (b"{", b"["):
        return _value_decoder.decode(content)
    if begin == b"{":
        return {name: _decode_in_chunks(bytes(part)) for name, part in _fields_decoder.decode(content).items()}
    try:
        if b'"' not in content and b"{" not in content:
            return _numbers(content, b"]" if content.count(b"[") > 1 else b",")
        objects = _objects_decoder.decode(content)
    except msgspec.DecodeError:  # texts and numbers in turn, or lists within lists of lists
        return parse(content, number=_parse_float)
    return [{name: _decode_in_chunks(bytes(part)) for name, part in fields.items()} for fields in objects]


def _numbers(content: bytes, sign: bytes) -> list[Any]:
    """A list of numbers, decoded from comma to comma, or a list of such lists, from the end of one to that of a later one."""
    decoded: list[Any] = []
    at, last = content.index(b"[") + 1, content.rindex(b"]")
    while at < last:
        found = content.rfind(sign, at, at + _CHUNK_BYTES) if at + _CHUNK_BYTES < last else -1
        if found < 0:
            found = content.find(sign, at + _CHUNK_BYTES, last)
        end = last if found < 0 else found + (sign == b"]")
        decoded += _value_decoder.decode(b"[" + content[at:end] + b"]")
        at = content.find(b",", end, last) + 1 or last
    return decoded


def n_strings(content: bytes) -> int:
    """How many strings valid JSON has, keys included: each has two quotes that are not escaped."""
    n_quotes = content.count(b'"')
    if b"\\" in content and (n_escaped := content.count(b'\\"')):
        n_quotes = n_quotes - n_escaped if b"\\\\" not in content else _n_quotes(content)
    return n_quotes // 2


def _decode_slow(
    content: bytes,
    decoder: msgspec.json.Decoder[W],
    schema: type[M],
    error: Exception,
    is_foreign: Callable[[Any], bool],
) -> W | M:
    """What the fast reader has refused, for that reason: with better words, or after all.

    Better words are for small bodies. A large one is read again only for what the fast reader refuses and we do not, a
    lone surrogate, UTF-16 or a null, and by readers that let other threads run.
    """
    if len(content) <= _MAX_SLOW_BYTES:
        value = parse(content, hook=_limited_fields)
    elif isinstance(error, msgspec.ValidationError):
        value = decode_any(content)
    else:
        value = _decode_any_slow(content, error)
    if is_foreign(value):
        raise ForeignBody(value)
    if len(content) <= _MAX_SLOW_BYTES:
        return check(value, schema)
    decoded = convert(value, decoder.type)
    try:
        _check_names(decoded)
    except UnicodeEncodeError:
        raise InvalidRequest("a text holds a lone surrogate", field="$") from None
    return decoded


def _decode_any_slow(content: bytes, error: Exception) -> Any:
    if len(content) > _MAX_SLOW_BYTES:
        _raise_for(content, error)
    return parse(content, number=_parse_float)


def convert(value: Any, kind: type[T]) -> T:
    """`value` as a record. Raise `InvalidRequest` with the JSON path of an offence."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as invalid:
        raise _invalid_request(invalid) from None
    except UnicodeEncodeError:  # where a text is no field of a record
        raise InvalidRequest("a text holds a lone surrogate", field="$") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", field="$") from None


def _check_names(decoded: Any) -> None:
    """Raise `UnicodeEncodeError` for a lone surrogate in an id, as the schema refuses it."""
    asked = decoded.samples if hasattr(decoded, "samples") else decoded.comparisons
    "".join(each.id or "" for each in asked).encode()


def _raise_for(content: bytes, error: Exception) -> None:
    """Raise what `error` says of a large body, unless the careful reader may accept it."""
    if isinstance(error, _LostStrings):
        return
    if isinstance(error, msgspec.ValidationError):
        if str(error).startswith("Integer value out of range"):
            raise _number_too_long(content)
        try:
            _raw_decoder.decode(content)  # what is no JSON at all is called so first, as in a small body
        except (ValueError, RecursionError) as broken:
            error = broken
        else:
            raise _invalid_request(error)
    if isinstance(error, RecursionError):
        raise InvalidJson("the body is nested too deeply")
    found = _ERROR_POSITION.search(str(error))
    at = len(content) if found is None else int(found[1])
    may_be_surrogate = b"\\u" in content[max(0, at - _ESCAPE_BYTES) : at + _ESCAPE_BYTES]
    if may_be_surrogate or json.detect_encoding(content) != "utf-8" or not isinstance(error, msgspec.DecodeError):
        return
    begin = content.rfind(b"\n", 0, at) + 1
    what = "Input data was truncated" if found is None else str(error)[: found.start()].rpartition(": ")[2]
    column = len(content[begin:at].decode("utf-8", "replace")) + 1
    raise InvalidJson(f"the body is not JSON: {what}", line=content.count(b"\n", 0, at) + 1, column=column)


def _invalid_request(error: msgspec.ValidationError) -> InvalidRequest:
    """What is wrong and where. The library quotes what was written where one of a few words belongs."""
    what, at, where = str(error).rpartition(" - at ")
    what, where = (what, where.strip("`")[:_MAX_FIELD_CHARS]) if at else (where, "$")
    return InvalidRequest(what.partition(" '")[0][:_MAX_MESSAGE_CHARS], field=where)


def parse(
    body: bytes,
    hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    number: Callable[[str], float] | None = None,
) -> Any:
    """Strict JSON. Raise `InvalidJson` with the place, without the text around it."""
    try:
        # A call of Python for every number lets other threads run; the reader in C alone would not.
        whole = _parse_int if len(body) > _MAX_SLOW_BYTES else None
        return json.loads(
            body,
            parse_constant=_refuse_constant,
            parse_float=number,
            parse_int=whole,
            object_pairs_hook=hook or _fields,
        )
    except json.JSONDecodeError as error:
        raise InvalidJson(f"the body is not JSON: {error.msg}", line=error.lineno, column=error.colno) from None
    except RecursionError:
        raise InvalidJson("the body is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise InvalidJson("the body is not UTF-8", at=error.start) from None
    except ValueError:
        raise _number_too_long(body) from None


def _number_too_long(content: bytes) -> InvalidJson:
    limit = sys.get_int_max_str_digits()
    n = max(map(len, re.findall(rb"[0-9]{%d,}" % (limit + 1), content)), default=0)
    found, numbers = (f"of {n} digits", {"n_digits": n}) if n else ("of too many digits", {})
    return InvalidJson(f"the body has a number {found}; the limit is {limit}", limit=limit, **numbers)


def check(value: Any, schema: type[M], unknown: str = NOT_READ) -> M:
    """`value` as `schema`. Raise `InvalidRequest` naming the JSON path of the first offence.

    `unknown` is the message for a field that the schema has not.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        # Of the branches of a union, the one that got furthest is the one that the caller meant.
        chosen = max(found, key=lambda e: len(_path(e["loc"])))
        field = _json_path(_path(chosen["loc"]))
        what = unknown if chosen["type"] == "extra_forbidden" else chosen["msg"]
        raise InvalidRequest(f"{field}: {what}", field=field, n_errors=len(found)) from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", field="$") from None


def _check_media_type(request: Request) -> None:
    kind, coding = header(request.scope, b"content-type"), header(request.scope, b"content-encoding")
    if kind is not None and kind.partition(b";")[0].strip().lower() != b"application/json":
        raise UnsupportedMediaType("send the body as content-type: application/json")
    if coding is not None and coding.lower() != b"identity":
        raise UnsupportedMediaType("send the body uncompressed")


def _limited_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _MAX_FIELDS:
        raise InvalidRequest(f"an object of the body has {len(pairs)} fields", field="$", n=len(pairs))
    return _fields(pairs)


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raise `InvalidJson` for a key that is there twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        n_times = Counter(name for name, _ in pairs)
        twice = next(name for name in n_times if n_times[name] > 1)[:_MAX_FIELD_CHARS]
        raise InvalidJson(f"an object of the body has the key {twice} more than once: send it once", field=twice)
    return fields


def _parse_int(text: str) -> int:
    return int(text)


def _parse_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise InvalidJson("the body has a number that is too large for 64 bits")
    return number


def _refuse_constant(name: str) -> None:
    raise InvalidJson(f"the body has {name}, which is not JSON")


def _path(loc: Sequence[int | str]) -> tuple[int | str, ...]:
    """Without the names that pydantic gives to the branches of a union."""
    return tuple(step for step in loc if step not in ("str", "list[MessageIn]"))


def _json_path(path: Sequence[int | str]) -> str:
    text = "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text[:_MAX_FIELD_CHARS].removeprefix("$.")
