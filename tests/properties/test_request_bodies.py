"""Whatever the bytes are: a request comes out, or a refusal in our own words. Nothing else, ever.

Bodies have two readers, a fast one and a careful one, made from one record. What the fast one reads, the careful one reads to the
same end.
"""

from __future__ import annotations

import json
from contextlib import contextmanager

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from rewardserve.model.conversation import Sample, SampleError
from rewardserve.service.api import body
from rewardserve.service.api.dialects.openrlhf import GET_REWARD
from rewardserve.service.api.requests import (
    ApprovalsRequest,
    CompareRequest,
    ScoreRequest,
    repeats_of_taken,
    to_comparison,
    to_query_samples,
    to_sample,
)
from rewardserve.service.api.validation import check
from rewardserve.service.errors import InvalidJson, InvalidRequest, RequestRefused

TEXT = st.text(st.characters(codec=None), max_size=8)  # lone surrogates included
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
FIELDS = st.sampled_from(
    ["run", "step", "samples", "id", "prompt", "response", "messages", "text", "input_ids", "finish_reason", "role",
     "reference_rewards",
     "score_empty",
     "content", "comparisons", "responses", "tie_margin"]
) | TEXT  # fmt: skip
JSONS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=5), max_leaves=20
)
MESSAGES = st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), max_size=3)
SAMPLES = st.fixed_dictionaries(
    {},
    optional={
        "id": TEXT,
        "prompt": TEXT | MESSAGES | JSONS,
        "response": TEXT,
        "messages": MESSAGES,
        "text": TEXT,
        "input_ids": st.lists(st.integers(), max_size=5),
        "finish_reason": st.sampled_from(["stop", "length", "other"]),
        "score_empty": st.booleans() | JSONS,
        "reference_rewards": st.lists(st.floats() | st.integers(), max_size=3) | JSONS,
        "lookahead": st.lists(MESSAGES, max_size=2) | JSONS,
        "lookahead_reward": st.sampled_from(["min", "mean", "max", 0, 1, True, 0.5]) | st.floats(),
    },
)


REQUESTS = st.fixed_dictionaries(
    {"samples": st.lists(SAMPLES, max_size=3)},
    optional={"run": TEXT | st.none(), "step": st.integers() | st.floats() | st.none()},
)
COMPARISONS = st.fixed_dictionaries(
    {"prompt": TEXT | MESSAGES, "responses": st.lists(TEXT, max_size=4)}, optional={"id": TEXT | st.none()}
)
COMPARE_REQUESTS = st.fixed_dictionaries(
    {"comparisons": st.lists(COMPARISONS, max_size=2)},
    optional={"run": TEXT, "step": st.integers(), "tie_margin": st.floats() | st.integers() | JSONS},
)
QUERIES = TEXT | st.fixed_dictionaries(
    {"response": TEXT | JSONS}, optional={"finish_reason": st.sampled_from(["stop", "length", "other", 1])}
)
GROUPS = st.fixed_dictionaries(
    {"prompt": TEXT | MESSAGES, "queries": st.lists(QUERIES, max_size=3)},
    optional={"id": TEXT | st.none(), "task": TEXT, "taken": st.lists(TEXT, max_size=3) | JSONS},
)
VALID_GROUPS = st.fixed_dictionaries(
    {
        "prompt": TEXT | MESSAGES,
        "queries": st.lists(
            TEXT
            | st.fixed_dictionaries(
                {"response": TEXT}, optional={"finish_reason": st.sampled_from(["stop", "length"])}
            ),
            min_size=1,
            max_size=3,
        ),
    },
    optional={"id": TEXT | st.none(), "task": TEXT, "taken": st.lists(TEXT, max_size=3)},
)
APPROVALS_REQUESTS = st.fixed_dictionaries(
    {"groups": st.lists(GROUPS, max_size=2)},
    optional={
        "run": TEXT,
        "step": st.integers(),
        "kl": st.floats() | JSONS,
        "snapshot": st.just("sha256:" + "0" * 64) | TEXT | st.none(),
    },
)
DECODERS = {
    "/approvals": msgspec.json.Decoder(ApprovalsRequest),
    "/score": msgspec.json.Decoder(ScoreRequest),
    "/compare": msgspec.json.Decoder(CompareRequest),
}


@st.composite
def bodies(draw, requests):
    """JSON in the many ways to write it, and then perhaps spoilt: what it means may change, or that it means anything."""
    value = draw(requests)
    written = json.dumps(
        value, ensure_ascii=draw(st.booleans()), separators=draw(st.sampled_from([(",", ":"), (" ,\n", "\t:")]))
    )
    raw = written.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(raw)))
        piece = draw(st.binary(max_size=2) | st.sampled_from(PIECES))
        raw = raw[:at] + piece + raw[at + draw(st.integers(0, 2)) :]
    return raw


PIECES = [b'"', b"\\", b",", b":", b"{", b"}", b"[", b"]", b"0", b"1", b"-", b".", b"e", b"E9", b"true", b"null", b"NaN",
          b"\\u0041", b"\\ud800", b"\\/", b"\x00", b"\x1f", b"\x7f", b"\xc3", b"\xef\xbb\xbf", b"\xed\xa0\x80", b" ", b"\r",
          b"9" * 30, b'"id":"x",', b'"text":null,', b'"text":5,', b'"step":1,', b"1e400", b"1.0"]  # fmt: skip


def plain(request):
    """What a request says, whichever reader it came from."""
    if isinstance(request, ScoreRequest):
        samples = [(s.id, told(outcome_of_sample, s)) for s in request.samples]
        return request.run, request.step, samples
    if isinstance(request, ApprovalsRequest):
        groups = [(g.id, g.task, to_query_samples(g), repeats_of_taken(g)) for g in request.groups]
        return request.run, request.step, repr(request.kl), request.snapshot, groups
    comparisons = [(c.id, to_comparison(c)) for c in request.comparisons]
    return request.run, request.step, repr(request.tie_margin), comparisons


def outcome_of_sample(sample):
    made = to_sample(sample)
    return (made.code, made.details) if isinstance(made, SampleError) else made


def told(ask, *arguments):
    """Equal for equal types only: 1, 1.0 and True are three things."""
    return repr(ask(*arguments))


def outcome(ask, *arguments):
    """What comes out, or the refusal. Any other exception is the failure that these tests look for."""
    try:
        return ask(*arguments)
    except RequestRefused as refusal:
        return refusal


def assert_fast_is_careful(route, raw):
    decoder = DECODERS[route]
    try:
        fast = decoder.decode(raw)
    except (ValueError, RecursionError):
        return False
    careful = outcome(lambda: check(body.parse(raw), decoder.type))
    if isinstance(careful, InvalidJson):  # a key twice: tests/properties/test_duplicate_keys.py
        return isinstance(outcome(body.decode, raw, decoder), InvalidJson)
    assert not isinstance(careful, RequestRefused), careful
    assert plain(fast) == plain(careful)
    return True


@given(bodies(REQUESTS))
@example(b'{"samples":[{"input_ids":[-0]}]}')
@example(b'{"samples":[{"input_ids":[1.0]}]}')
@example(b'{"samples":[{"input_ids":[' + b"9" * 4000 + b"]}]}")
@example(b'{"samples":[{"input_ids":[' + b"9" * 5000 + b"]}]}")
@example(b'{"samples":[{"text":1,"text":"a"}]}')
@example(b'{"samples":[{"te\\u0078t":"a"}],"samples":[{"text":"b"}]}')
@example('{"samples":[{"text":"a"}]}'.encode("utf-16"))
@example(b'{"samples":[{"prompt":' + b"[" * 5000)
def test_what_the_fast_reader_accepts_as_samples_the_careful_one_accepts_with_equal_values(raw):
    assert_fast_is_careful("/score", raw)


@given(bodies(COMPARE_REQUESTS))
@example(b'{"comparisons":[{"prompt":"a","responses":["b","c"]}],"tie_margin":1e999}')
@example(b'{"comparisons":[{"prompt":"a","responses":["b","c"]}],"tie_margin":-0.0}')
@example(b'{"comparisons":[{"prompt":"a","responses":["b","c"]}],"tie_margin":' + b"9" * 400 + b"}")
@example(b'{"comparisons":[{"prompt":"a","responses":["b","c"]}],"tie_margin":9007199254740993}')
def test_what_the_fast_reader_accepts_as_comparisons_the_careful_one_accepts_with_equal_values(raw):
    assert_fast_is_careful("/compare", raw)


@given(bodies(APPROVALS_REQUESTS))
def test_what_the_fast_reader_accepts_as_groups_the_careful_one_accepts_with_equal_values(raw):
    assert_fast_is_careful("/approvals", raw)


@given(st.fixed_dictionaries({"groups": st.lists(VALID_GROUPS, min_size=1, max_size=2)}))
def test_groups_that_the_careful_reader_accepts_the_fast_one_reads(value):
    careful = outcome(check, value, ApprovalsRequest)
    raw = json.dumps(value).encode()
    assume(not isinstance(careful, RequestRefused))
    assume("\\ud" not in raw.decode())
    assert assert_fast_is_careful("/approvals", raw)


@given(JSONS | APPROVALS_REQUESTS)
def test_any_json_is_a_group_or_refused_with_a_path(value):
    asked = outcome(check, value, ApprovalsRequest)
    if isinstance(asked, RequestRefused):
        assert isinstance(asked, InvalidRequest)
        assert asked.details["field"]
    else:
        assert all(isinstance(each, Sample) for g in asked.groups for each in to_query_samples(g))


@given(st.fixed_dictionaries({"samples": st.lists(SAMPLES, min_size=1, max_size=3)}))
def test_what_the_careful_reader_accepts_the_fast_one_reads_unless_text_is_no_unicode(value):
    careful = outcome(check, value, ScoreRequest)
    raw = json.dumps(value).encode()
    assume(not isinstance(careful, RequestRefused))
    assume("\\ud" not in raw.decode())
    assert assert_fast_is_careful("/score", raw)


@given(st.binary(max_size=60) | JSONS.map(lambda j: json.dumps(j).encode()))
def test_any_bytes_are_json_or_refused(raw):
    parsed = outcome(body.parse, raw)
    assert not isinstance(parsed, RequestRefused) or isinstance(parsed, InvalidJson)


@given(JSONS | st.fixed_dictionaries({"samples": st.lists(SAMPLES, max_size=3)}))
def test_any_json_is_a_request_or_refused_with_the_path_of_the_offence(value):
    asked = outcome(check, value, ScoreRequest)
    if isinstance(asked, RequestRefused):
        assert isinstance(asked, InvalidRequest)
        assert asked.details["field"]
    else:
        assert all(isinstance(to_sample(s), Sample | SampleError) for s in asked.samples)
        assert plain(asked) == plain(body.decode(json.dumps(value).encode(), DECODERS["/score"]))


@given(JSONS | st.fixed_dictionaries({"comparisons": st.lists(JSONS, max_size=3)}))
def test_any_json_is_a_comparison_or_refused(value):
    asked = outcome(check, value, CompareRequest)
    if isinstance(asked, RequestRefused):
        assert isinstance(asked, InvalidRequest)
        assert asked.details["field"]
    else:
        assert all(len(to_comparison(c).responses) >= 2 for c in asked.comparisons)


@pytest.mark.parametrize("secret", ["hunter2-in-a-field"])
def test_a_refusal_names_the_place_and_never_what_was_there(secret):
    for value in ({"samples": secret}, {"samples": [{"prompt": {"x": secret}, "response": secret}]}, secret, [secret]):
        with pytest.raises(InvalidRequest) as refused:
            check(value, ScoreRequest)
        assert secret not in refused.value.message
    with pytest.raises(InvalidJson) as unread:
        body.parse(f'{{"samples": [{secret}'.encode())
    assert secret not in unread.value.message


LARGE = 70_000
"""More bytes than are read again with care."""


def same(small, large):
    """Both accepted, with equal values, or both refused."""
    if isinstance(small, RequestRefused) or isinstance(large, RequestRefused):
        assert isinstance(small, RequestRefused), large
        assert isinstance(large, RequestRefused), small
        assert {small.status, large.status} <= {400, 422}
    else:
        assert plain(small) == plain(large)


@given(bodies(REQUESTS))
@example('{"samples":[{"text":"a"}]}'.encode("utf-16"))
@example(b"[" * 200_000)
@example(b'{"samples":[1,"')
@example(b'{"samples":[{"text":"\\ud800"}]}')
@example(b'{"samples":[{"id":"\\udfff","text":"a"}]}')
@example(b'{"samples":[{"text":"\xed\xa0\x80"}]}')
@example(b'\xef\xbb\xbf{"samples":[{"text":"a"}]}')
@example(b'{"samples":[{"text":"a","\\ud800":1}]}')
def test_a_large_body_is_read_as_a_small_one(raw):
    padding = (" " * LARGE).encode("utf-16-le" if raw[:2] == b"\xff\xfe" else "utf-8")
    same(*(outcome(body.decode, each, DECODERS["/score"]) for each in (raw, raw + padding)))


@given(bodies(COMPARE_REQUESTS))
def test_a_large_comparison_is_read_as_a_small_one(raw):
    same(*(outcome(body.decode, each, DECODERS["/compare"]) for each in (raw, raw + b" " * LARGE)))


@given(bodies(st.fixed_dictionaries({"query": st.lists(TEXT), "prompts": st.lists(TEXT)}, optional={"x": JSONS})))
def test_a_large_body_of_another_format_is_read_as_a_small_one(raw):
    small, large = (
        outcome(lambda content: GET_REWARD.read(body.decode_any(content))[1], each)
        for each in (raw, raw + b" " * LARGE)
    )
    assert isinstance(small, RequestRefused) == isinstance(large, RequestRefused)
    assert isinstance(small, RequestRefused) or small == large


STEPPED = (
    JSONS
    | st.lists(st.integers(-9, 999) | st.none() | st.floats(-1, 1) | st.integers())
    | st.lists(
        st.lists(st.integers(0, 999), max_size=5) | st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=3)
    )
)


@contextmanager
def in_small_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "_CHUNK_BYTES", 8)
        patch.setattr(body, "MAX_LOOP_BYTES", 0)
        yield


@given(bodies(st.dictionaries(TEXT, STEPPED, max_size=3) | STEPPED))
@example(b'{"a":[1,2],"b":[1,,2]}')
@example(b'{"a":[[1,2,3,4],[5,6],[[7,8,9,10,11]],[1]]}')
@example(b'{"a":[ 1 , 2 , 33333333333 , 4 ] , "b" : [ [ 1 , 2 ] , [ ] , [ 3 ] ] } ')
@example(b'{"a":[1,2,3,4,5,"x",6,7,{"b":1}]}')
@example(b'{"a":[{"b":[1,2,3,4,5,6]},{"b":"\\ud800"}]}')
@example(b'{"a":[1,2,3,4,5,6,7,8]} x')
@example(b"[1,2,3,4,5,6,7,8] x")
@example(b'{"a":[1,2,3,4,5,6,7,' + b"9" * 5000 + b"]}")
def test_what_is_decoded_in_steps_is_what_is_decoded_at_once(raw):
    with in_small_steps():
        stepped = outcome(body.decode_any, raw)
    at_once = outcome(body.parse, raw, None, body._parse_float)
    assert isinstance(stepped, RequestRefused) == isinstance(at_once, RequestRefused), (stepped, at_once)
    assert isinstance(stepped, RequestRefused) or repr(stepped) == repr(at_once)


@given(bodies(REQUESTS))
@example(b'{"samples":[{"id":"\\udfff","text":"a"}]}')
@example(b'{"samples":[{"text":"a","text":"b"}]}')
def test_a_request_is_read_in_steps_as_at_once(raw):
    with in_small_steps():
        stepped = outcome(body.decode, raw, DECODERS["/score"])
    same(stepped, outcome(body.decode, raw, DECODERS["/score"]))


def test_no_step_reads_more_than_some_numbers(monkeypatch):
    seen, values = [], body._value_decoder

    class Watched:
        def decode(self, content):
            seen.append(len(content))
            return values.decode(content)

    monkeypatch.setattr(body, "_value_decoder", Watched())
    ids = list(range(100, 999)) * 600
    for large in (
        {"samples": [{"input_ids": ids}]},
        {"samples": [{"input_ids": ids[:1000]}] * 600},
        {"input": ids},
        {"input": [ids[:1000]] * 600},
        {"inputs": [{"name": "tokens", "data": ids}, {"name": "other", "data": [ids[:9]] * 60_000}]},
    ):
        assert body.decode_any(json.dumps(large).encode()) == large
    assert max(seen) <= body._CHUNK_BYTES + 8_000


def test_what_is_wrong_with_a_large_body_is_named_by_line_and_column_and_not_quoted():
    for spoilt, line, column in (
        (b'{"samples":[\n {"text":"secret" !', 2, 19),
        (b'{"samples":[{"text":"secret', 1, 28),
    ):
        refused = outcome(body.decode, b" " * LARGE + spoilt, DECODERS["/score"])
        assert isinstance(refused, InvalidJson)
        assert "secret" not in refused.message
        assert refused.details == {"line": line, "column": column + LARGE * (line == 1)}
