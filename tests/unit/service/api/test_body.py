"""The bytes of a body: what is read, by which reader and where, what is refused, in which words and with which place."""

from __future__ import annotations

import json
import threading

import msgspec
import pytest

from rewardserve.service.api import body
from rewardserve.service.api.body import ForeignBody, JsonLimits
from rewardserve.service.api.requests import CompareRequest, SampleIn, ScoreRequest
from rewardserve.service.api.validation import NOT_READ, convert
from rewardserve.service.errors import BodyTooLarge, InvalidJson, InvalidRequest, UnsupportedMediaType

DECODER = msgspec.json.Decoder(ScoreRequest)
ONE = b'{"samples":[{"text":"x"}]}'
CARE, LOOP = 65_536, 1_048_576
"""Bytes from which on a wrong body is read in few words, and any body beside the event loop."""
MANY = JsonLimits(10**9, 10**9, 10**9)
SCORED = ScoreRequest([SampleIn(text="x")])


def padded(content, n_bytes):
    """The same JSON in so many bytes."""
    return content + b" " * (n_bytes - len(content))


def said(call, *arguments, **named):
    """The refusal: its kind, its words, its details."""
    with pytest.raises((InvalidJson, InvalidRequest, BodyTooLarge, UnsupportedMediaType)) as refused:
        call(*arguments, **named)
    return type(refused.value), refused.value.message, refused.value.details


def decode(content, decoder=DECODER, **named):
    return body.decode(content, decoder, **named)


class Request:
    """With a body, of a kind."""

    def __init__(self, content, **headers):
        self.content = content
        self.scope = {"headers": [(name.replace("_", "-").encode(), value) for name, value in headers.items()]}

    async def body(self):
        return self.content


# -- strict JSON ------------------------------------------------------------------------------------------------------------

NO_JSON = [
    (b"", "the body is empty: send a JSON object", {}),
    (b" \n", "the body is empty: send a JSON object", {}),
    (b'{"a":\n  nonsense}', "the body is not JSON: Expecting value", {"line": 2, "column": 3}),
    (b'{"a":1} x', "the body is not JSON: Extra data", {"line": 1, "column": 9}),
    (b"[" * 100_000, "the body is nested too deeply", {}),
    (b'{"a":"\xff"}', "the body is not UTF-8", {"at": 6}),
    (b'{"a":[' + b"1" * 4301 + b"," + b"9" * 5000 + b"]}", "the body has a number of 5000 digits; the limit is 4300",
     {"limit": 4300, "n_digits": 5000}),
    (b'{"a":"\xc3' + b"9" * 4300 + b'"}', "the body is not UTF-8", {"at": 6}),
    (b'{"a":NaN}', "the body has NaN, which is not JSON", {}),
    (b'{"a":Infinity}', "the body has Infinity, which is not JSON", {}),
    (b'{"a":-Infinity}', "the body has -Infinity, which is not JSON", {}),
    (b'{"a":1,"b":2,"a":3}', "an object of the body has the key a more than once: send it once", {"field": "a"}),
    (b'{"a":1,"b":2,"b":3}', "an object of the body has the key b more than once: send it once", {"field": "b"}),
    (b'{"x":[{"b":1,"c":2,"c":3,"b":4}]}', "an object of the body has the key b more than once: send it once", {"field": "b"}),
    (b'{"' + b"k" * 150 + b'":1,"' + b"k" * 150 + b'":1}',
     f"an object of the body has the key {'k' * 120} more than once: send it once",
     {"field": "k" * 120}),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message", "details"), NO_JSON)
def test_what_is_no_json_is_refused_with_its_place(content, message, details):
    assert said(body.parse, content) == (InvalidJson, message, details)


@pytest.mark.parametrize("n_bytes", [0, CARE, CARE + 1])
def test_what_is_json_is_read_as_python_reads_it(n_bytes):
    value = {"a": [1, -2, 1.5, 1e300, True, False, None, "é\ud800", {"b": {}}], "c": 10**30}
    assert body.parse(padded(json.dumps(value).encode(), n_bytes)) == value


def test_a_large_body_gives_other_threads_a_turn_at_every_number(monkeypatch):
    counted = []
    monkeypatch.setattr(body, "_parse_int", lambda text: counted.append(text) or int(text))
    for n_bytes in (CARE, CARE + 1):
        assert body.parse(padded(b"[1,2,3]", n_bytes)) == [1, 2, 3]
    assert counted == ["1", "2", "3"]


def test_numbers_are_read_by_the_reader_that_is_given():
    assert body.parse(b"[1.5, 2e3, 7]", number=lambda text: f"<{text}>") == ["<1.5>", "<2e3>", 7]
    assert body._parse_float("1e308") == 1e308
    assert said(body._parse_float, "1e309") == (InvalidJson, "the body has a number that is too large for 64 bits", {})


def test_an_object_has_few_fields_where_each_would_cost_words():
    fields = [(str(i), i) for i in range(64)]
    assert body._limited_fields(fields) == dict(fields)
    assert said(body._limited_fields, [*fields, ("x", 0)]) == (
        InvalidRequest, "an object of the body has 65 fields", {"field": "$", "n": 65},
    )  # fmt: skip
    assert said(body._limited_fields, [("a", 1), ("a", 1)])[2] == {"field": "a"}


# -- how many parts ---------------------------------------------------------------------------------------------------------

MANY_PARTS = "the body has more JSON values than the limits of a request: split the request"


def test_room_for_parts_grows_with_what_may_be_asked():
    assert JsonLimits.of(1, 1) == JsonLimits(250_000, 1_000_000, 1_000_008)
    assert JsonLimits.of(2500, 10) == JsonLimits(250_000, 1_000_000, 1_000_080)
    assert JsonLimits.of(2501, 10) == JsonLimits(250_100, 1_000_400, 1_000_480)


PARTS = [
    (b"7", 0, 0, 0),
    (b'{"a":1}', 1, 1, 1),
    (b"[1,2,3]", 1, 0, 3),
    (b"[[],{},[]]", 4, 0, 6),
    (b'{"a":"{[,]}","b":[1,2]}', 2, 3, 4),
    (b'["a,b","c\\"d,[","e\\\\",{}]', 2, 3, 5),
    (b'["x"],[1]', 2, 1, 3),
    (b'["x', 1, 0, 1),
    (b'"a"[{,"b"', 2, 2, 3),
    (b'["\n,"]', 1, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize(("content", "containers", "strings", "values"), PARTS)
def test_parts_are_counted_outside_of_texts(content, containers, strings, values):
    body.check_json_limits(content, JsonLimits(containers, strings, values))
    for least in (
        (containers - 1, strings, values),
        (containers, strings - 1, values),
        (containers, strings, values - 1),
    ):
        if min(least) >= 0:
            details = {"field": "$", **dict(zip(("max_containers", "max_strings", "max_values"), least, strict=True))}
            assert said(body.check_json_limits, content, JsonLimits(*least)) == (InvalidRequest, MANY_PARTS, details)


def test_counting_ends_where_there_are_too_many():
    found = []

    class Counted(bytes):
        def count(self, *what):
            found.append(what)
            return super().count(*what)

    for most in (JsonLimits(1, 99, 99), JsonLimits(99, 2, 99), JsonLimits(99, 99, 3)):
        with pytest.raises(InvalidRequest):
            body.check_json_limits(Counted(b'[1,"a",[2,"b",[3,"c",[4,"d"],"e","f","g"]]]'), most)
        assert max(at for _, at, *_ in found) < 16
        found.clear()


@pytest.mark.parametrize(
    ("content", "most"), [(b'["a",1,2]', (9, 9, 1)), (b'["a",[[', (1, 9, 9)), (b'["a","b"', (9, 1, 9))]
)
def test_as_many_parts_as_may_be_end_no_count(content, most):
    assert said(body.check_json_limits, content, JsonLimits(*most))[1] == MANY_PARTS


AT_A_GLANCE = [
    # containers, quotes, commas within and without texts count alike; a body of few bytes is never counted
    (b"[[[[", (4, 4, 4), True), (b"[[[[[", (4, 9, 9), False), (b"[[[[[", (5, 9, 9), True), (b"{{{{{", (4, 9, 9), False),
    (b"[,,,,", (4, 9, 4), False), (b"[,,,,", (4, 9, 5), True), (b"{,,,,", (4, 9, 4), False), (b"[1,2,", (1, 4, 3), True),
    (b'""""""', (9, 3, 9), True), (b'""""""', (9, 2, 9), False), (b'"\\"\\"\\"\\""', (9, 1, 9), True),
    (b'"\\"\\"\\"\\"""', (9, 1, 9), False), (b"12345", (4, 4, 4), True), (b"[]{}", (1, 9, 9), False),
    (b'"\\"\\"\\"\\"","x"', (9, 2, 9), True), (b'"\\"","x","y"', (9, 2, 9), False),
]  # fmt: skip


@pytest.mark.parametrize(("content", "most", "few"), AT_A_GLANCE)
def test_what_looks_like_few_parts_is_not_counted_one_by_one(content, most, few):
    assert body._is_surely_within(content, JsonLimits(*most)) is few


def test_a_body_of_no_more_bytes_than_parts_is_not_even_glanced_at():
    class Unread(bytes):
        def count(self, *_):
            pytest.fail("counted")

    assert body._is_surely_within(Unread(b"[[[["), JsonLimits(4, 4, 4))
    for least in ((3, 4, 4), (4, 3, 4), (4, 4, 3)):
        with pytest.raises(pytest.fail.Exception):
            body._is_surely_within(Unread(b"[[[["), JsonLimits(*least))


def test_quotes_that_are_escaped_end_no_text():
    counts = {b'"a"': 2, b'"\\"\\""': 2, b'"\\""': 2, b'"\\\\"': 2, b'"\\\\\\""': 2, b'"\\\\","\\\\\\\\"': 4}
    assert {each: body._n_quotes(each) for each in counts} == counts
    assert {each: body.n_strings(each) for each in counts} == {each: n // 2 for each, n in counts.items()}


def test_parts_are_counted_only_where_a_glance_is_not_enough():
    body._count_if_near(b"[[]]", JsonLimits(2, 9, 9))
    assert said(body._count_if_near, b"[[]]", JsonLimits(1, 3, 3))[1] == MANY_PARTS
    body._count_if_near(b'["[","["]', JsonLimits(1, 2, 9))


# -- the fast reader --------------------------------------------------------------------------------------------------------

TWICE = b'{"samples":[{"text":"x","text":"y"}]}'
RIGHT = [
    ONE,
    b'{"samples":[{"text":"x","id":null}]}',
    b'{"samples":[{"text":"x"}],"run":null,"step":null}',
    b'{"samples":[{"te\\u0078t":"\\u0078"}]}',
    ONE.decode().encode("utf-16"),
    ONE.decode().encode("utf-32"),
]


@pytest.mark.parametrize("n_bytes", [0, CARE, CARE + 4])
@pytest.mark.parametrize("content", RIGHT)
def test_a_right_body_is_read_however_it_is_written(content, n_bytes):
    blank = content[-4:] if content[:2] in (b"\xff\xfe", b"\xfe\xff") else b""
    if blank:  # blanks of the same width
        wide = " ".encode("utf-16-le" if content[2:4] != b"\0\0" else "utf-32-le")
        content += wide * (max(0, n_bytes - len(content)) // len(wide))
    else:
        content = padded(content, n_bytes)
    read = decode(content)
    assert read.samples[0].text == "x"
    assert (len(read.samples), read.run, read.step) == (1, None, None)


@pytest.mark.parametrize("n_bytes", [0, CARE, CARE + 1])
def test_a_key_that_is_there_twice_is_refused_at_any_size(n_bytes):
    kind, message, details = said(decode, padded(TWICE, n_bytes))
    assert (kind, message) == (InvalidJson, "an object of the body has the key text more than once: send it once")
    assert details == {"field": "text"}
    assert said(body.decode_any, padded(b'{"a":{"b":1,"b":2}}', n_bytes)) == (
        InvalidJson, "an object of the body has the key b more than once: send it once", {"field": "b"},
    )  # fmt: skip


@pytest.mark.parametrize("n_bytes", [0, CARE, CARE + 1])
@pytest.mark.parametrize(
    "value", [{"a": 1}, {"a": {"b": "c"}}, [1, {"a": "x:y"}], "text", 7, {"a": "b:c"}, {"q": ["\\", '"']}, None, {}]
)
def test_any_json_is_read_as_plain_values(value, n_bytes):
    assert body.decode_any(padded(json.dumps(value).encode(), n_bytes)) == value


def test_a_flat_object_is_not_written_again_to_find_keys_that_are_there_twice(monkeypatch):
    class Unused:
        def encode(self, _):
            pytest.fail("written again")

    monkeypatch.setattr(body, "_encoder", Unused())
    assert body.decode_any(b'{"a":1,"b":[2]}') == {"a": 1, "b": [2]}
    with pytest.raises(pytest.fail.Exception):
        body.decode_any(b'{"a":":"}')
    with pytest.raises(pytest.fail.Exception):
        body.decode_any(b"[1]")


@pytest.mark.parametrize("n_bytes", [0, CARE + 1])
def test_numbers_of_any_length_are_read_and_those_beyond_64_bits_refused(n_bytes):
    assert body.decode_any(padded(b'{"a":{"b":123456789012345678901234567890}}', n_bytes)) == {
        "a": {"b": 123456789012345678901234567890}
    }
    assert body.decode_any(padded(b"[1e308]", n_bytes)) == [1e308]
    assert said(body.decode_any, padded(b"[1e400]", n_bytes)) == (
        (InvalidRequest, "$[0]: Number out of range", {"field": "$[0]"})
        if n_bytes
        else (InvalidJson, "the body has a number that is too large for 64 bits", {})
    )


def test_a_small_wrong_body_is_refused_in_the_words_of_the_schema():
    assert said(decode, b'{"samples":[{"text":5}]}') == (
        InvalidRequest, "samples[0].text: must be a string, not a number", {"field": "samples[0].text", "n_errors": 1},
    )  # fmt: skip
    assert (
        said(decode, padded(b'{"samples":[{"text":5}]}', CARE))[1] == "samples[0].text: must be a string, not a number"
    )
    assert said(body.decode_any, padded(b"[x", CARE))[1] == "the body is not JSON: Expecting value"
    many = json.dumps({"samples": [{"text": "x"}], **{f"k{i}": 0 for i in range(70)}}).encode()
    for content in (many, padded(many, CARE)):
        assert said(decode, content) == (InvalidRequest, "an object of the body has 71 fields", {"field": "$", "n": 71})


LARGE_WRONG = [
    (b'{"samples":[{"text":5}]}', InvalidRequest, "samples[0].text: must be a string, not a number", {"field": "samples[0].text"}),
    (b'{"samples":[{"text":"x"}],"other":1}', InvalidRequest, f"other: {NOT_READ}", {"field": "other"}),
    (b'{"samples":[]}', InvalidRequest, "samples: must have at least 1 item", {"field": "samples"}),
    (b'{"samples":[{"text":"x","finish_reason":"secret"}]}', InvalidRequest,
     "samples[0].finish_reason: must be 'stop' or 'length'", {"field": "samples[0].finish_reason"}),
    (b"[" * (CARE + 1), InvalidJson, "the body is nested too deeply", {}),
    (b'{"samples":[{"text":"x","id":"\\udfff"}]}', InvalidRequest, "a text holds a lone surrogate", {"field": "$"}),
]  # fmt: skip


@pytest.mark.parametrize(("content", "kind", "message", "details"), LARGE_WRONG)
def test_a_large_wrong_body_is_refused_in_few_words_that_quote_nothing(content, kind, message, details):
    found = said(decode, padded(content, max(len(content), CARE + 1)))
    assert found == (kind, message, details)
    assert "secret" not in found[1]


BROKEN = [
    (b"", "Input data was truncated", 1, CARE + 2),
    (b"x", "invalid character", 1, CARE + 2),
    (b'{"samples":[\n {"text":"secret" !', "expected ',' or '}'", 2, 19),
    (b'{"samples":[\n\n\xc3\xa9 \xc3\xa9', "invalid character", 3, 1),
    (b'{"samples":[{"text":"secret', "Input data was truncated", 1, CARE + 29),
    (b'{"samples":[{"text":"a\\q"}]}', "invalid escape character in string", 1, CARE + 26),
    (b'{"samples":[{"text":"a"}]} x', "trailing characters", 1, CARE + 30),
    (b'{"a":01}', "invalid number", 1, CARE + 8),
]


@pytest.mark.parametrize(("content", "message", "line", "column"), BROKEN)
def test_a_large_body_that_is_no_json_is_refused_with_line_and_column(content, message, line, column):
    content = b" " * (CARE + 1) + content
    expected = InvalidJson, f"the body is not JSON: {message}", {"line": line, "column": column}
    assert said(decode, content) == expected
    assert said(body.decode_any, content) == expected


def test_the_place_is_counted_from_the_line_before_it_and_from_no_line_after_it():
    content = b"\n" + b" " * CARE + b"x\n\n"
    assert said(body.decode_any, content) == (
        InvalidJson, "the body is not JSON: invalid character", {"line": 2, "column": CARE + 1},
    )  # fmt: skip


def test_a_large_body_is_called_no_json_before_it_is_called_a_wrong_request():
    content = b" " * (CARE + 1) + b'{"samples":5, x'
    assert said(decode, content) == (
        InvalidJson, "the body is not JSON: object keys must be strings", {"line": 1, "column": CARE + 16},
    )  # fmt: skip
    content = b" " * (CARE + 1) + b"[1e400, x"
    assert said(body.decode_any, content) == (
        InvalidJson, "the body is not JSON: invalid character", {"line": 1, "column": CARE + 10},
    )  # fmt: skip
    assert said(body.decode_any, padded(b"\\u0041", CARE + 1))[1] == "the body is not JSON: Expecting value"


@pytest.mark.parametrize("n_bytes", [0, CARE + 1, LOOP + 1])
def test_a_right_body_is_not_read_a_second_time(n_bytes, monkeypatch):
    for reader in ("parse", "_decode_slow", "_decode_any_slow"):
        monkeypatch.setattr(body, reader, lambda *_, **__: pytest.fail("read again"))
    assert decode(padded(ONE, n_bytes)) == SCORED
    assert body.decode_any(padded(b'{"x":[{"a":"b"},{"c":["d"]}]}', n_bytes)) == {"x": [{"a": "b"}, {"c": ["d"]}]}


def test_a_large_body_with_a_lone_surrogate_in_a_text_is_read():
    """The sample has an error of its own then."""
    assert decode(padded(b'{"samples":[{"text":"a\\ud800b"}]}', CARE + 1)).samples[0].text == "a\ud800b"
    assert body.decode_any(padded(b'["a\\ud800b"]', CARE + 1)) == ["a\ud800b"]


def test_near_an_escape_the_careful_reader_is_asked_what_is_wrong():
    """The fast one calls a lone surrogate and an error beside an escape by the same words."""
    for gap in (0, 5):
        content = b" " * (CARE + 1) + b'["\\u0041' + b"a" * gap + b"\\q]"
        assert said(body.decode_any, content) == (
            InvalidJson, "the body is not JSON: Invalid \\escape", {"line": 1, "column": CARE + 10 + gap},
        )  # fmt: skip
    content = b" " * (CARE + 1) + b'["\\u0041' + b"a" * 40 + b"\\q]" + b" " * 40 + b"\\u0041"
    assert said(body.decode_any, content)[1] == "the body is not JSON: invalid escape character in string"


def test_a_large_body_in_another_encoding_is_read_with_care():
    assert body.decode_any(('["é"]' + " " * CARE).encode("utf-16")) == ["é"]
    kind, message, details = said(body.decode_any, ("[x]" + " " * CARE).encode("utf-16"))
    assert (kind, message, details) == (InvalidJson, "the body is not JSON: Expecting value", {"line": 1, "column": 2})


def test_of_a_comparison_ids_are_checked_too():
    decoder = msgspec.json.Decoder(CompareRequest)
    for surrogate, refused in ((b"\\udfff", True), (b"a", False)):
        content = b'{"comparisons":[{"id":"' + surrogate + b'","prompt":"\\ud800","responses":["a","b"]}]}'
        content = padded(content, CARE + 1)
        if refused:
            assert said(decode, content, decoder) == (
                InvalidRequest, "a text holds a lone surrogate", {"field": "$"},
            )  # fmt: skip
        else:
            assert decode(content, decoder).comparisons[0].id == "a"


# -- another server's format ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bytes", [0, CARE, CARE + 1])
def test_what_is_known_for_anothers_is_handed_on_as_values(n_bytes):
    content = padded(b'{"inputs":["a"]}', n_bytes)
    with pytest.raises(ForeignBody) as theirs:
        decode(content, foreign_fields={"inputs", "texts"})
    assert theirs.value.value == {"inputs": ["a"]}
    assert theirs.value.args == ()
    assert said(decode, content, foreign_fields={"other"})[0] is InvalidRequest
    assert said(decode, content)[0] is InvalidRequest, "without foreign fields, everything is ours"


@pytest.mark.parametrize("content", [b'{"inputs":["a"],"samples":5}', b'["inputs"]', b'"inputs"'])
def test_a_body_with_a_required_field_of_ours_or_without_fields_is_ours(content):
    assert said(decode, content, foreign_fields={"inputs"})[0] is InvalidRequest


def test_what_is_ours_is_not_asked_about():
    assert decode(ONE, foreign_fields={"samples"}) == SCORED


# -- media types ------------------------------------------------------------------------------------------------------------

JSON_ONLY, PLAIN_ONLY = "send the body as content-type: application/json", "send the body uncompressed"
TYPES = [
    ({}, None), ({"content_type": b"application/json"}, None), ({"content_type": b"Application/JSON ; charset=utf-8"}, None),
    ({"content_type": b"text/plain"}, JSON_ONLY), ({"content_type": b""}, JSON_ONLY),
    ({"content_type": b"x;application/json"}, JSON_ONLY),
    ({"content_encoding": b"identity"}, None), ({"content_encoding": b"Identity"}, None),
    ({"content_encoding": b"gzip"}, PLAIN_ONLY),
    ({"content_encoding": b""}, PLAIN_ONLY), ({"content_type": b"application/json", "content_encoding": b"br"}, PLAIN_ONLY),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "message"), TYPES)
async def test_bodies_are_json_and_not_compressed(headers, message):
    readers = [
        lambda sent: body.read_body(sent, DECODER, MANY),
        lambda sent: body.read_json_body(sent, MANY),
        lambda sent: body.read_admin_body(sent, ScoreRequest),
    ]
    for read in readers:
        if message is None:
            await read(Request(ONE, **headers))
        else:
            with pytest.raises(UnsupportedMediaType) as refused:
                await read(Request(ONE, **headers))
            assert refused.value.message == message


# -- where it is read -------------------------------------------------------------------------------------------------------


class Watched:
    """A decoder that notes the threads on which it decodes."""

    type = ScoreRequest

    def __init__(self, decoder):
        self.decoder, self.threads = decoder, []

    def decode(self, content):
        self.threads.append(threading.get_ident())
        return self.decoder.decode(content)


@pytest.mark.parametrize(("n_bytes", "here"), [(0, True), (LOOP, True), (LOOP + 1, False)])
async def test_a_body_of_a_mebibyte_is_read_by_the_event_loop_and_a_larger_one_beside_it(n_bytes, here, monkeypatch):
    ours, theirs = Watched(DECODER), Watched(msgspec.json.Decoder())
    monkeypatch.setattr(body, "_value_decoder", theirs)
    sent = Request(padded(ONE, n_bytes))
    assert await body.read_body(sent, ours, MANY) == SCORED
    assert await body.read_json_body(sent, MANY) == {"samples": [{"text": "x"}]}
    assert [thread == threading.get_ident() for thread in (*ours.threads, *theirs.threads)] == [here, here]


@pytest.mark.parametrize(("n_bytes", "here"), [(0, True), (CARE, True), (CARE + 1, False), (LOOP + 1, False)])
async def test_a_wrong_body_is_read_again_by_the_event_loop_only_where_it_is_small(n_bytes, here, monkeypatch):
    threads, parse = [], body.parse
    monkeypatch.setattr(body, "parse", lambda *a, **k: threads.append(threading.get_ident()) or parse(*a, **k))
    sent = Request(padded(b'{"samples":[{"text":"\\ud800"}]}', n_bytes))
    assert (await body.read_body(sent, DECODER, MANY)).samples[0].text == "\ud800"
    assert await body.read_json_body(sent, MANY) == {"samples": [{"text": "\ud800"}]}
    assert [thread == threading.get_ident() for thread in threads] == [here, here]


async def _converted(sent):
    return convert(await body.read_json_body(sent, MANY), ScoreRequest)


@pytest.mark.parametrize("n_bytes", [CARE, CARE + 1, LOOP + 1])
@pytest.mark.parametrize("content", [b'{"samples":[{"text":5}]}', b'{"samples":[x'])
async def test_what_is_wrong_is_told_in_the_same_words_wherever_it_is_read(content, n_bytes):
    sent = Request(padded(content, n_bytes))
    for read, expected in (
        (body.read_body(sent, DECODER, MANY), lambda: decode(sent.content)),
        (_converted(sent), lambda: convert(body.decode_any(sent.content), ScoreRequest)),
    ):  # fmt: skip
        with pytest.raises((InvalidRequest, InvalidJson)) as refused:
            await read
        assert (type(refused.value), refused.value.message, refused.value.details) == said(expected)


@pytest.mark.parametrize("n_bytes", [0, CARE + 1, LOOP + 1])
async def test_what_is_anothers_is_told_at_any_size(n_bytes):
    sent = Request(padded(b'{"inputs":["a"]}', n_bytes))
    with pytest.raises(ForeignBody) as theirs:
        await body.read_body(sent, DECODER, MANY, {"inputs"})
    assert theirs.value.value == {"inputs": ["a"]}
    with pytest.raises(InvalidRequest):
        await body.read_body(sent, DECODER, MANY)


@pytest.mark.parametrize("n_bytes", [0, LOOP + 1])
async def test_parts_are_counted_before_anything_is_read(n_bytes):
    few = JsonLimits(1, 10**9, 10**9)
    sent = Request(padded(b'{"samples":[{"text":"x"}]}', n_bytes))
    for read in (
        body.read_body(sent, DECODER, few),
        body.read_json_body(sent, few),
    ):
        with pytest.raises(InvalidRequest, match=MANY_PARTS):
            await read


async def test_parts_of_a_body_that_needs_a_second_look_are_counted_beside_the_event_loop(monkeypatch):
    threads, count, glance = [], body.check_json_limits, body._is_surely_within
    monkeypatch.setattr(body, "check_json_limits", lambda *a: threads.append(threading.get_ident()) or count(*a))
    glances: list[int] = []
    monkeypatch.setattr(body, "_is_surely_within", lambda *a: glances.append(threading.get_ident()) or glance(*a))
    content = b'["' + b"[" * 40 + b'"]'
    for n_bytes, here in ((0, True), (LOOP, True), (LOOP + 1, False)):
        threads.clear()
        glances.clear()
        await body._check_limits(padded(content, n_bytes), JsonLimits(2, 9, 9))
        assert [thread == threading.get_ident() for thread in glances] == [here]
        assert [thread == threading.get_ident() for thread in threads] == [False]


async def test_a_call_for_a_small_body_is_made_at_once_and_for_a_large_one_on_a_thread():
    for n_bytes, here in ((0, True), (CARE, True), (CARE + 1, False)):
        thread, given = await body.run_off_loop(b" " * n_bytes, lambda *a: (threading.get_ident(), a), 1, 2)
        assert (thread == threading.get_ident(), given) == (here, (1, 2))


async def test_what_is_asked_seldom_is_small():
    assert (await body.read_admin_body(Request(padded(ONE, LOOP)), ScoreRequest)).samples[0].text == "x"
    with pytest.raises(BodyTooLarge) as refused:
        await body.read_admin_body(Request(padded(ONE, LOOP + 1)), ScoreRequest)
    assert (refused.value.message, refused.value.details) == (
        "the body of an admin request is larger than 1048576 bytes",
        {"limit": LOOP},
    )
    with pytest.raises(InvalidJson):
        await body.read_admin_body(Request(b"{"), ScoreRequest)
    for content, message in (
        (b"{}", "samples: this field is missing"),
        (b'{"samples":[{"text":"x"}],"kind":1}', "kind: this field is unknown: leave it out"),
    ):
        with pytest.raises(InvalidRequest) as wrong:
            await body.read_admin_body(Request(content), ScoreRequest)
        assert wrong.value.message == message


# -- large bodies in steps --------------------------------------------------------------------------------------------------

IN_STEPS = [
    {"a": 1}, {}, {"a": {"b": {"c": "d" * 40}}}, {"samples": [{"text": "x" * 30}, {"text": "y", "ids": [1, 2, 3]}]},
    [1, 2, 3], list(range(100)), [-1.5, 2e10, 0], [[1, 2], [3], [], [4, 5, 6, 7, 8, 9]], [[i] * 7 for i in range(30)],
    [[], [], []], [], ["a", "b"], [1, "a", {"b": 2}], [[{"a": 1}], [[2]]], [{"a": [{"b": list(range(50))}]}],
    [True, None, False], [[[1], [2]], [[3]]],
]  # fmt: skip


@pytest.mark.parametrize("value", IN_STEPS)
@pytest.mark.parametrize("step", [1, 2, 5, 16, 64, 10**6])
def test_what_is_decoded_in_steps_of_any_length_is_what_is_decoded_at_once(value, step, monkeypatch):
    monkeypatch.setattr(body, "_CHUNK_BYTES", step)
    for text in (json.dumps(value), json.dumps(value, separators=(",", ":")), json.dumps(value, indent=1)):
        assert body._decode_in_chunks(text.encode()) == value


@pytest.mark.parametrize("value", IN_STEPS)
def test_a_large_body_of_any_shape_is_read_as_a_small_one(value):
    small, large = json.dumps({"x": value}).encode(), padded(json.dumps({"x": value}).encode(), LOOP + 1)
    assert body.decode_any(large) == body.decode_any(small) == {"x": value}
    assert body.decode_any(padded(json.dumps(value).encode(), LOOP + 1)) == value


@pytest.mark.parametrize(
    "broken",
    [b'{"a":[1,2,', b'{"a":[1,,2]}', b'{"a":[1 2 3 4 5 6]}', b'{"a":[[1,2],[3}', b'{"a":[1,2]]}', b'{"a":{"b":x}}'],
)
@pytest.mark.parametrize("step", [2, 7, 10**6])
def test_what_is_no_json_is_none_in_steps_either(broken, step, monkeypatch):
    monkeypatch.setattr(body, "_CHUNK_BYTES", step)
    with pytest.raises((ValueError, InvalidJson)):
        body._decode_in_chunks(broken)


def test_no_step_is_longer_than_a_list_needs(monkeypatch):
    steps = []

    class Noted:
        def decode(self, content):
            steps.append(len(content))
            return json.loads(content)

    monkeypatch.setattr(body, "_value_decoder", Noted())
    monkeypatch.setattr(body, "_CHUNK_BYTES", 16)
    assert body._numbers(json.dumps(list(range(200))).encode(), b",") == list(range(200))
    assert max(steps) <= 16 + 2
    assert len(steps) > 40
    steps.clear()
    assert body._numbers(json.dumps([[i, i] for i in range(50)]).encode(), b"]") == [[i, i] for i in range(50)]
    assert max(steps) <= 16 + 2


def test_ids_of_a_large_request_are_checked_for_surrogates():
    content = padded(b'{"samples":[{"text":"x","id":"\\udfff"}]}', LOOP + 1)
    assert said(decode, content) == (InvalidRequest, "a text holds a lone surrogate", {"field": "$"})
    assert decode(padded(ONE, LOOP + 1)) == SCORED


class Lengths:
    """A decoder that notes how much it is given at a time."""

    def __init__(self, decoder, noted):
        self.decoder, self.noted = decoder, noted

    def decode(self, content):
        self.noted.append(len(content))
        return self.decoder.decode(content)


LONG = {
    "numbers": ({"input_ids": list(range(1000))}, 66, (60, 100)),
    "numbers alone": (list(range(1000)), 66, (60, 100)),
    "rows of numbers": ({"ids": [[1, 2, 3, 4]] * 200}, 66, (30, 60)),
    "two rows": ([[1] * 3, [2] * 200], 10**4, (2, 2)),
    "one row": ([[1] * 200], 10**4, (1, 1)),
    "long rows": ([[1] * 100] * 3, 210, (3, 3)),
    "texts of objects": ({"samples": [{"prompt": "p" * 20, "response": "r" * 20}] * 50}, 64, (100, 100)),
    "objects in objects": ({"a": {"b": {"c": [{"d": "e" * 20}] * 20}}}, 64, (20, 20)),
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("blank", [b"", b"\n  "])
def test_one_call_decodes_no_more_than_a_step_of_a_large_body(name, blank, monkeypatch):
    """The reader in C lets no other thread run while it makes values."""
    value, most, (least_calls, most_calls) = LONG[name]
    noted: list[int] = []
    monkeypatch.setattr(body, "_CHUNK_BYTES", 64)
    monkeypatch.setattr(body, "_value_decoder", Lengths(msgspec.json.Decoder(), noted))
    monkeypatch.setattr(body, "parse", lambda *_, **__: pytest.fail("read by the slow reader"))
    assert body._decode_in_chunks(blank + json.dumps(value, separators=(",", ":")).encode()) == value
    assert max(noted) <= most
    assert least_calls <= len(noted) <= most_calls


def test_a_part_of_a_step_is_decoded_at_once(monkeypatch):
    noted: list[int] = []
    content = b'{"a":[1,2,3]}'
    monkeypatch.setattr(body, "_value_decoder", Lengths(msgspec.json.Decoder(), noted))
    for step, calls in ((len(content), [13]), (len(content) - 1, [7])):
        noted.clear()
        monkeypatch.setattr(body, "_CHUNK_BYTES", step)
        assert body._decode_in_chunks(content) == {"a": [1, 2, 3]}
        assert noted == calls


def test_a_number_beyond_64_bits_is_refused_wherever_it_stands(monkeypatch):
    for content in (b'["a",1e400]', b"[1e400]"):
        assert said(body.decode_any, padded(content, LOOP + 1)) == (
            InvalidJson, "the body has a number that is too large for 64 bits", {},
        )  # fmt: skip
    assert said(body.decode_any, padded(b'{"x":["a",1e400]}', LOOP + 1))[1] == "$[1]: Number out of range"
    monkeypatch.setattr(body, "_CHUNK_BYTES", 4)
    assert said(body._decode_in_chunks, b'["a",1e400]')[1] == "the body has a number that is too large for 64 bits"


@pytest.mark.parametrize(("n_bytes", "in_steps"), [(LOOP, False), (LOOP + 1, True)])
def test_bodies_beyond_a_mebibyte_are_decoded_in_steps(n_bytes, in_steps, monkeypatch):
    asked, steps = [], body._decode_in_chunks
    monkeypatch.setattr(body, "_decode_in_chunks", lambda content: asked.append(len(content)) or steps(content))
    for read, content in ((decode, ONE), (body.decode_any, ONE), (body.decode_any, b"  " + ONE)):
        asked.clear()
        read(padded(content, n_bytes))
        assert asked.count(n_bytes) == in_steps, "once"


async def test_a_body_of_no_more_bytes_than_parts_is_not_looked_at_for_parts(monkeypatch):
    monkeypatch.setattr(body, "_check_limits", lambda *_: pytest.fail("looked at"))
    exact, one_less = JsonLimits(*[len(ONE)] * 3), JsonLimits(*[len(ONE) - 1] * 3)
    await body.read_body(Request(ONE), DECODER, exact)
    await body.read_json_body(Request(ONE), exact)
    for read in (
        body.read_body(Request(ONE), DECODER, one_less),
        body.read_json_body(Request(ONE), one_less),
    ):
        with pytest.raises(pytest.fail.Exception):
            await read


def too_long(n):
    return InvalidJson, f"the body has a number of {n} digits; the limit is 4300", {"limit": 4300, "n_digits": n}


@pytest.mark.parametrize("n", [4301, 5000])
def test_a_number_of_too_many_digits_is_told_with_its_length(n):
    for n_bytes in (0, CARE + 1):
        assert said(body.decode_any, padded(b'{"a":' + b"9" * n + b"}", n_bytes)) == too_long(n)
    assert said(decode, padded(b'{"samples":[{"input_ids":[' + b"9" * n + b"]}]}", CARE + 1))[0] in (
        InvalidJson,
        InvalidRequest,
    )
    found = body._number_too_long(b"[" + b"1" * 4299 + b"," + b"1" * 4300 + b"]")
    assert (type(found), found.message, found.details) == (
        InvalidJson, "the body has a number of too many digits; the limit is 4300", {"limit": 4300},
    )  # fmt: skip
