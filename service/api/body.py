"""Decode and validate the body of a request. Errors name the fault and its position, and never quote the body.

A valid body is decoded in one pass by msgspec to a record of `requests`. A body that msgspec refuses is read again slowly, as JSON
and then by `validation`, which report line, column and JSON path of the fault. Input that Python's parser accepts beyond JSON is
refused here: NaN, Infinity, unlimited nesting or digits, and a duplicate key of an object.

For a duplicate key some JSON parsers take the first value and some the last, so a proxy and this server could read different
requests in one body. msgspec silently takes the last; a body with more strings, keys included, than its decoded record has lost
one in decoding, and is read again slowly.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from rewardserve.service.api import requests
from rewardserve.service.api.headers import header
from rewardserve.service.api.validation import check, convert, invalid_request
from rewardserve.service.errors import BodyTooLarge, InvalidJson, InvalidRequest, UnsupportedMediaType

S = TypeVar("S", bound=msgspec.Struct)
R = TypeVar("R", requests.ScoreRequest, requests.CompareRequest, requests.ApprovalsRequest)
T = TypeVar("T")

_MAX_ADMIN_BYTES = 1_048_576
_MAX_FIELD_CHARS = 120
MAX_LOOP_BYTES = 1_048_576
"""Largest body that the event loop decodes itself, in a few milliseconds if it is valid; a thread decodes larger ones."""
_MAX_SLOW_BYTES = 65_536
"""Largest invalid body that the event loop reads again slowly."""
_ESCAPE_BYTES = 16
"""Bytes around an error position in which to look for an escape: two escapes and a margin."""
_ERROR_POSITION = re.compile(r" \(byte (\d+)\)$")
_MAX_FIELDS = 64
"""More than any record has. pydantic describes each unknown field in about a kilobyte, so their number is limited."""

_raw_decoder = msgspec.json.Decoder(msgspec.Raw)
_value_decoder = msgspec.json.Decoder()
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()
_objects_decoder = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])

_CHUNK_BYTES = 65_536
"""Bytes of a large body that are decoded in one call: the decoder in C holds the GIL meanwhile."""

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)  # possessive: no backtracking


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """Limits of the parts of a body. A byte of JSON can become a hundred bytes of memory, or a thousand in an invalid body,
    so the parts are counted before they are decoded.
    """

    containers: int
    strings: int
    values: int

    @property
    def always_allowed_bytes(self) -> int:
        """The size in bytes below which a body cannot exceed the limits."""
        return min(self.containers, self.strings, self.values)

    @classmethod
    def of(cls, max_samples: int, max_tokens: int) -> JsonLimits:
        """Derive limits that allow many turns a sample, and several times the token ids that admission allows, with padding."""
        containers = max(250_000, 100 * max_samples)
        return cls(containers, 4 * containers, 4 * containers + 8 * max_tokens)


class ForeignBody(Exception):
    """The body of a request is in the wire format of another server. `value` is its JSON."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


async def read_body(
    request: Request,
    decoder: msgspec.json.Decoder[R],
    parts: JsonLimits,
    foreign_fields: Collection[str] = (),
) -> R:
    """Read the body with `decoder`. Raise the errors of `decode`, and `UnsupportedMediaType`."""
    _check_media_type(request)
    content = await request.body()
    if len(content) > parts.always_allowed_bytes:
        await _check_limits(content, parts)
    if len(content) > MAX_LOOP_BYTES:
        return await asyncio.to_thread(decode, content, decoder, foreign_fields)
    try:
        return _decode_fast(content, decoder)
    except (ValueError, RecursionError) as error:
        return await run_off_loop(content, _decode_slow, content, decoder, error, foreign_fields)


async def read_json_body(request: Request, parts: JsonLimits) -> Any:
    """Read the JSON of a body in the wire format of another server. Raise the errors of `read_body`."""
    _check_media_type(request)
    content = await request.body()
    if len(content) > parts.always_allowed_bytes:
        await _check_limits(content, parts)
    if len(content) > MAX_LOOP_BYTES:
        return await asyncio.to_thread(decode_any, content)
    try:
        return _decode_any_fast(content)
    except (ValueError, RecursionError) as error:
        return await run_off_loop(content, _decode_any_slow, content, error)


async def run_off_loop(content: bytes, call: Callable[..., T], *arguments: Any, most: int = _MAX_SLOW_BYTES) -> T:
    """Call `call(*arguments)`, on a thread if the body has more than `most` bytes."""
    return call(*arguments) if len(content) <= most else await asyncio.to_thread(call, *arguments)


async def _check_limits(content: bytes, most: JsonLimits) -> None:
    """Run `check_json_limits`, on a thread for a large body, and not at all if a cheap upper bound is within the limits."""
    if len(content) > MAX_LOOP_BYTES:
        await asyncio.to_thread(_count_if_near, content, most)
    elif not _is_surely_within(content, most):
        await asyncio.to_thread(check_json_limits, content, most)


def _count_if_near(content: bytes, most: JsonLimits) -> None:
    if not _is_surely_within(content, most):
        check_json_limits(content, most)


def _is_surely_within(content: bytes, most: JsonLimits) -> bool:
    """Whether an upper bound of the parts is within the limits. Cheap: counts characters, also those within strings."""
    if len(content) <= most.always_allowed_bytes:
        return True
    n_containers = content.count(b"{") + content.count(b"[")
    return (
        n_containers <= most.containers
        and content.count(b",") + n_containers <= most.values
        and (content.count(b'"') <= 2 * most.strings or _n_quotes(content) <= 2 * most.strings)
    )


def _n_quotes(content: bytes) -> int:
    """Count unescaped quotes, in short calls: `_STRING` would match a long text of escapes in one call that holds the GIL."""
    pairs_gone = content.replace(b"\\\\", b"")
    return pairs_gone.count(b'"') - pairs_gone.count(b'\\"')


def check_json_limits(content: bytes, most: JsonLimits) -> None:
    """Count the parts of a body. Raise `InvalidRequest` if they exceed the limits."""
    # Characters within strings do not count.
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
            "the body has more JSON values than the limits of a request: split the request", field="$",
            max_containers=most.containers, max_strings=most.strings, max_values=most.values,
        )  # fmt: skip


async def read_admin_body(request: Request, record: type[S]) -> S:
    """Read the small body of an admin request. Raise the errors of `read_body`, and `BodyTooLarge`."""
    _check_media_type(request)
    content = await request.body()
    if len(content) > _MAX_ADMIN_BYTES:
        raise BodyTooLarge(
            f"the body of an admin request is larger than {_MAX_ADMIN_BYTES} bytes", limit=_MAX_ADMIN_BYTES
        )
    return check(parse(content), record, "this field is unknown: leave it out")


def decode(
    content: bytes,
    decoder: msgspec.json.Decoder[R],
    foreign_fields: Collection[str] = (),
) -> R:
    """Decode a request, with the fast decoder if possible. Raise `InvalidJson`, `InvalidRequest`, and `ForeignBody` for an object
    with one of `foreign_fields` and without a required field of the request.
    """
    try:
        return _decode_fast(content, decoder)
    except (ValueError, RecursionError) as error:
        return _decode_slow(content, decoder, error, foreign_fields)


def decode_any(content: bytes) -> Any:
    """Decode any JSON to plain Python types, with the fast decoder if possible. Raise `InvalidJson` or `InvalidRequest`."""
    try:
        return _decode_any_fast(content)
    except (ValueError, RecursionError) as error:
        return _decode_any_slow(content, error)


class _LostStrings(ValueError):
    """The body has more strings than its decoded value: an object has a duplicate key."""


def _decode_fast(content: bytes, decoder: msgspec.json.Decoder[R]) -> R:
    if len(content) <= MAX_LOOP_BYTES:
        decoded: R = decoder.decode(content)
    else:
        decoded = msgspec.convert(_decode_values(content), decoder.type)
        _check_names(decoded)
    if n_strings(content) != requests.n_strings(decoded):
        _decode_any_fast(content)  # a field at its default value, or a duplicate key
    return decoded


def _decode_any_fast(content: bytes) -> Any:
    value = _decode_values(content)
    # An object with as many colons as keys holds no other object.
    if not (isinstance(value, dict) and content.count(b":") == len(value)):
        try:
            written = _encoder.encode(value)
        except OverflowError as error:  # a number of more than 64 bits
            raise _LostStrings from error
        if n_strings(content) != n_strings(written):
            raise _LostStrings
    return value


def _decode_values(content: bytes) -> Any:
    if len(content) <= MAX_LOOP_BYTES:
        return _value_decoder.decode(content)
    if content[:_CHUNK_BYTES].lstrip()[:1] != b"{":  # every valid request is an object
        return parse(content, number=_parse_float)
    return _decode_in_chunks(content)


def _decode_in_chunks(content: bytes) -> Any:
    """Decode an object, or a part of one, as `_value_decoder.decode` does, in several calls between which other threads run.

    The longest call scans the object once. Raise `ValueError` for invalid JSON.
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
    except msgspec.DecodeError:  # texts and numbers in one list, or lists nested more deeply
        return parse(content, number=_parse_float)
    return [{name: _decode_in_chunks(bytes(part)) for name, part in fields.items()} for fields in objects]


def _numbers(content: bytes, sign: bytes) -> list[Any]:
    """Decode a list of numbers in pieces that end at commas, or a list of such lists in pieces that end at the end of a list."""
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
    """Count the strings of valid JSON, keys included: each has two unescaped quotes."""
    n_quotes = content.count(b'"')
    if b"\\" in content and (n_escaped := content.count(b'\\"')):
        n_quotes = n_quotes - n_escaped if b"\\\\" not in content else _n_quotes(content)
    return n_quotes // 2


def _decode_slow(
    content: bytes,
    decoder: msgspec.json.Decoder[R],
    error: Exception,
    foreign_fields: Collection[str],
) -> R:
    """Read a body that the fast decoder has refused with `error`: raise a detailed error, or accept it after all.

    Small bodies get detailed errors. A large body is read again only for input that the fast decoder refuses and this server
    accepts (a lone surrogate, UTF-16 or a null), by parsers that let other threads run.
    """
    if len(content) <= _MAX_SLOW_BYTES:
        value = parse(content, hook=_limited_fields)
    elif isinstance(error, msgspec.ValidationError):
        value = decode_any(content)
    else:
        value = _decode_any_slow(content, error)
    if foreign_fields and _is_foreign(value, decoder.type, foreign_fields):
        raise ForeignBody(value)
    if len(content) <= _MAX_SLOW_BYTES:
        return check(value, decoder.type)
    decoded = convert(value, decoder.type)
    try:
        _check_names(decoded)
    except UnicodeEncodeError:
        raise InvalidRequest("a text holds a lone surrogate", field="$") from None
    return decoded


def _is_foreign(value: Any, record: type[msgspec.Struct], foreign_fields: Collection[str]) -> bool:
    if not isinstance(value, dict) or value.keys().isdisjoint(foreign_fields):
        return False
    return not any(each.name in value for each in msgspec.structs.fields(record) if each.required)


def _decode_any_slow(content: bytes, error: Exception) -> Any:
    if len(content) > _MAX_SLOW_BYTES:
        _raise_for(content, error)
    return parse(content, number=_parse_float)


def _check_names(decoded: Any) -> None:
    """Raise `UnicodeEncodeError` for a lone surrogate in an id or a task, which `check` refuses too."""
    items = next(getattr(decoded, name) for name in ("samples", "comparisons", "groups") if hasattr(decoded, name))
    "".join((each.id or "") + (getattr(each, "task", None) or "") for each in items).encode()


def _raise_for(content: bytes, error: Exception) -> None:
    """Convert `error` on a large body to an error of this server and raise it, unless the slow parser may accept the body."""
    if isinstance(error, _LostStrings):
        return
    if isinstance(error, msgspec.ValidationError):
        if str(error).startswith("Integer value out of range"):
            raise _number_too_long(content)
        try:
            _raw_decoder.decode(content)  # invalid JSON is reported before invalid fields, as in a small body
        except (ValueError, RecursionError) as broken:
            error = broken
        else:
            raise invalid_request(error)
    if isinstance(error, RecursionError):
        raise InvalidJson("the body is nested too deeply")
    found = _ERROR_POSITION.search(str(error))
    at = len(content) if found is None else int(found[1])
    may_be_surrogate = b"\\u" in content[max(0, at - _ESCAPE_BYTES) : at + _ESCAPE_BYTES]
    if may_be_surrogate or json.detect_encoding(content) != "utf-8" or not isinstance(error, msgspec.DecodeError):
        return
    begin = content.rfind(b"\n", 0, at) + 1
    reason = "Input data was truncated" if found is None else str(error)[: found.start()].rpartition(": ")[2]
    column = len(content[begin:at].decode("utf-8", "replace")) + 1
    raise InvalidJson(f"the body is not JSON: {reason}", line=content.count(b"\n", 0, at) + 1, column=column)


def parse(
    body: bytes,
    hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    number: Callable[[str], float] | None = None,
) -> Any:
    """Parse strict JSON. Raise `InvalidJson` with the position of the fault, without quoting the text."""
    if not body.strip():
        raise InvalidJson("the body is empty: send a JSON object")
    try:
        # A Python call for every number lets other threads run; the parser in C holds the GIL.
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
    length, details = (f"of {n} digits", {"n_digits": n}) if n else ("of too many digits", {})
    return InvalidJson(f"the body has a number {length}; the limit is {limit}", limit=limit, **details)


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
    """Build an object. Raise `InvalidJson` for a duplicate key."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        n_times = Counter(name for name, _ in pairs)
        duplicate = next(name for name in n_times if n_times[name] > 1)[:_MAX_FIELD_CHARS]
        raise InvalidJson(
            f"an object of the body has the key {duplicate} more than once: send it once", field=duplicate
        )
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
