"""The bytes of a body -> a checked request. Says what is wrong and where, never what was written there.

What is right is read in one pass by `wire`. What that refuses is read again slowly, as JSON and then as a schema, by
readers that know line, column and path of an offence. What Python's parser lets through beyond JSON is refused here:
NaN, Infinity, and nesting or numbers without end.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from service.api.headers import header
from service.errors import BodyTooLarge, InvalidJson, InvalidRequest, UnsupportedMediaType

M = TypeVar("M", bound=BaseModel)
W = TypeVar("W", bound=msgspec.Struct)
F = TypeVar("F")
T = TypeVar("T")

_MOST_SELDOM_BYTES = 1_048_576
_LONGEST_FIELD = 120
_LONGEST_WORDS = 200
_MOST_ON_LOOP = 1_048_576
"""Bytes of a body that the event loop reads itself, in a few milliseconds where it is right."""
_MOST_WITH_CARE = 65_536
"""Bytes of a body that the event loop reads again, slowly, where it is wrong."""
_ESCAPES = 16
"""Bytes of two escapes, and some more."""
_AT = re.compile(r" \(byte (\d+)\)$")
_MOST_FIELDS = 64
"""No object of ours has so many; each one too many costs a kilobyte of words that say so."""

NOT_READ = (
    "this field is not read here, and what it holds would be missing from the text that is scored. Render the conversation with "
    "the chat template of the reward model and send the text, or leave the field out"
)

_LONGEST_NOTHING = 16
"""Bytes of an empty list with some white space in it."""

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_anything = msgspec.json.Decoder(msgspec.Raw)

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)  # possessive: it remembers no way back


@dataclass(frozen=True, slots=True)
class Parts:
    """How many parts a body may be made of. A byte of JSON can become a hundred bytes of memory, or a thousand where it is
    wrong, so they are counted first.
    """

    containers: int
    strings: int
    values: int

    @classmethod
    def of(cls, max_samples: int, max_tokens: int) -> Parts:
        """Room for many turns a sample, and for several times the ids that could be admitted, padding included."""
        containers = max(250_000, 100 * max_samples)
        return cls(containers, 4 * containers, 4 * containers + 8 * max_tokens)


async def read(request: Request, decoder: msgspec.json.Decoder[W], schema: type[M], parts: Parts) -> W | M:
    """The body as what `decoder` makes of it, or else as its twin. Raise as `decode` does, and `UnsupportedMediaType`."""
    _check_media_type(request)
    content = await request.body()
    await _check_parts(content, parts)
    if len(content) > _MOST_ON_LOOP:
        return await asyncio.to_thread(decode, content, decoder, schema)
    try:
        return decoder.decode(content)
    except (ValueError, RecursionError) as error:
        return await off_loop(content, _decode_again, content, decoder, schema, error)


async def read_foreign(
    request: Request, decoder: msgspec.json.Decoder[F], parts: Parts, known: frozenset[str] | None
) -> F:
    """The body as another's wire format. Raise as `read` does, and as `check_fields`; `known` None: any field may be there."""
    _check_media_type(request)
    content = await request.body()
    await _check_parts(content, parts)
    if len(content) > _MOST_ON_LOOP:
        decoded = await asyncio.to_thread(decode_foreign, content, decoder)
    else:
        try:
            decoded = decoder.decode(content)
        except (ValueError, RecursionError) as error:
            decoded = await off_loop(content, _decode_again, content, decoder, None, error)
    if known is not None:
        await off_loop(content, check_fields, content, known)
    return decoded


async def off_loop(content: bytes, call: Callable[..., T], *arguments: Any) -> T:
    """`call(*arguments)`, on a thread where it reads more of a body than the event loop should."""
    return call(*arguments) if len(content) <= _MOST_WITH_CARE else await asyncio.to_thread(call, *arguments)


def check_fields(content: bytes, known: frozenset[str]) -> None:
    """Raise `InvalidRequest` for a field of a JSON object that is not known, unless its value says nothing.

    A field that is dropped in silence may be one that changes the text that is scored: tools, a template, a picture.
    """
    try:
        given = {name: _short(raw) for name, raw in _fields.decode(content).items() if name not in known}
    except (ValueError, RecursionError):  # what msgspec refuses and we do not: a lone surrogate, UTF-16
        given = {name: value for name, value in parse(content).items() if name not in known}
    for name, value in given.items():
        if not says_nothing(value):
            field = name[:_LONGEST_FIELD]
            raise InvalidRequest(f"{field}: {NOT_READ}", field=field)


def says_nothing(value: object) -> bool:
    """Whether a field with this value is as good as left out: null, an empty text, list or object."""
    return value is None or value in ("", [], {})


def _short(raw: msgspec.Raw) -> Any:
    """A value, as far as it could say nothing."""
    return msgspec.json.decode(raw) if len(memoryview(raw)) <= _LONGEST_NOTHING else ...


async def _check_parts(content: bytes, most: Parts) -> None:
    """As `check_parts`, at a glance where that is enough; what takes a second of counting leaves the event loop to others."""
    if len(content) > _MOST_ON_LOOP:
        await asyncio.to_thread(_count_parts, content, most)
    elif not _are_few(content, most):
        await asyncio.to_thread(check_parts, content, most)


def _count_parts(content: bytes, most: Parts) -> None:
    if not _are_few(content, most):
        check_parts(content, most)


def _are_few(content: bytes, most: Parts) -> bool:
    """At a glance, which takes next to nothing: whatever looks like a part is counted as one."""
    if len(content) <= min(most.containers, most.strings, most.values):
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


def check_parts(content: bytes, most: Parts) -> None:
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


async def read_seldom(request: Request, schema: type[M]) -> M:
    """The body of what is asked so seldom that it has no twin, and is small. Raise as `read` does, and `BodyTooLarge`."""
    _check_media_type(request)
    content = await request.body()
    if len(content) > _MOST_SELDOM_BYTES:
        raise BodyTooLarge(f"this body is larger than {_MOST_SELDOM_BYTES} bytes", limit=_MOST_SELDOM_BYTES)
    return check(parse(content), schema)


def decode_foreign(content: bytes, decoder: msgspec.json.Decoder[F]) -> F:
    """Fast if possible, else slowly and with the reason. Raise `InvalidJson` or `InvalidRequest`."""
    try:
        return decoder.decode(content)
    except (ValueError, RecursionError) as error:
        return cast(F, _decode_again(content, decoder, None, error))


def decode(body: bytes, decoder: msgspec.json.Decoder[W], schema: type[M]) -> W | M:
    """The request, read fast if possible. Raise `InvalidJson` or `InvalidRequest`."""
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:
        return cast("W | M", _decode_again(body, decoder, schema, error))


def _decode_again(content: bytes, decoder: msgspec.json.Decoder[Any], schema: type[M] | None, error: Exception) -> Any:
    """What the fast reader has refused, for that reason: with better words, or after all.

    Better words are for small bodies of ours. A large one is read again only for what the fast reader refuses and we do not, a
    lone surrogate or UTF-16, and by readers that let other threads run.
    """
    is_large = len(content) > _MOST_WITH_CARE
    if is_large:
        _refuse(content, error)
    elif schema is not None:
        return check(parse(content, hook=_few_fields), schema)
    try:
        hook = _few_fields if is_large else None
        decoded = msgspec.convert(parse(content, hook=hook, number=_finite), decoder.type)
        if schema is not None:
            _check_names(decoded)
        return decoded
    except msgspec.ValidationError as invalid:
        raise _without_words(invalid) from None
    except UnicodeEncodeError:  # where a text is no field of a record
        raise InvalidRequest("a text holds a lone surrogate", field="$") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", field="$") from None


def _check_names(decoded: Any) -> None:
    """Raise `UnicodeEncodeError` for a lone surrogate in an id, as the schema refuses it."""
    asked = decoded.samples if hasattr(decoded, "samples") else decoded.comparisons
    "".join(each.id or "" for each in asked).encode()


def _refuse(content: bytes, error: Exception) -> None:
    """Raise what `error` says of a large body, unless the careful reader may accept it."""
    if isinstance(error, msgspec.ValidationError):
        try:
            _anything.decode(content)  # what is no JSON at all is called so first, as in a small body
        except (ValueError, RecursionError) as broken:
            error = broken
        else:
            raise _without_words(error)
    if isinstance(error, RecursionError):
        raise InvalidJson("the body is nested too deeply")
    found = _AT.search(str(error))
    at = len(content) if found is None else int(found[1])
    may_be_surrogate = b"\\u" in content[max(0, at - _ESCAPES) : at + _ESCAPES]
    if may_be_surrogate or json.detect_encoding(content) != "utf-8" or not isinstance(error, msgspec.DecodeError):
        return
    begin = content.rfind(b"\n", 0, at) + 1
    what = "Input data was truncated" if found is None else str(error)[: found.start()].rpartition(": ")[2]
    column = len(content[begin:at].decode("utf-8", "replace")) + 1
    raise InvalidJson(f"the body is not JSON: {what}", line=content.count(b"\n", 0, at) + 1, column=column)


def _without_words(error: msgspec.ValidationError) -> InvalidRequest:
    """What is wrong and where. The library quotes what was written where one of a few words belongs."""
    what, at, where = str(error).rpartition(" - at ")
    what, where = (what, where.strip("`")[:_LONGEST_FIELD]) if at else (where, "$")
    return InvalidRequest(what.partition(" '")[0][:_LONGEST_WORDS], field=where)


def parse(
    body: bytes,
    hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    number: Callable[[str], float] | None = None,
) -> Any:
    """Strict JSON. Raise `InvalidJson` with the place, without the text around it."""
    try:
        # A call of Python for every number lets other threads run; the reader in C alone would not.
        whole = _whole if len(body) > _MOST_WITH_CARE else None
        return json.loads(
            body, parse_constant=_refuse_constant, parse_float=number, parse_int=whole, object_pairs_hook=hook
        )
    except json.JSONDecodeError as error:
        raise InvalidJson(f"the body is not JSON: {error.msg}", line=error.lineno, column=error.colno) from None
    except RecursionError:
        raise InvalidJson("the body is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise InvalidJson("the body is not UTF-8", at=error.start) from None
    except ValueError:
        raise InvalidJson("the body has a number of absurd length") from None


def check(value: Any, schema: type[M]) -> M:
    """`value` as `schema`. Raise `InvalidRequest` naming the JSON path of the first offence."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        # Of the branches of a union, the one that got furthest is the one that the caller meant.
        chosen = max(found, key=lambda e: len(_path(e["loc"])))
        field = _json_path(_path(chosen["loc"]))
        what = NOT_READ if chosen["type"] == "extra_forbidden" else chosen["msg"]
        raise InvalidRequest(f"{field}: {what}", field=field, n_errors=len(found)) from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", field="$") from None


def _check_media_type(request: Request) -> None:
    kind, coding = header(request.scope, b"content-type"), header(request.scope, b"content-encoding")
    if kind is not None and kind.partition(b";")[0].strip().lower() != b"application/json":
        raise UnsupportedMediaType("send the body as content-type: application/json")
    if coding is not None and coding.lower() != b"identity":
        raise UnsupportedMediaType("send the body uncompressed")


def _few_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _MOST_FIELDS:
        raise InvalidRequest(f"an object of the body has {len(pairs)} fields", field="$", n=len(pairs))
    return dict(pairs)


def _whole(text: str) -> int:
    return int(text)


def _finite(text: str) -> float:
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
    return text[:_LONGEST_FIELD].removeprefix("$.")
