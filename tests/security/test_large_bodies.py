"""What a body costs in memory is bounded, whatever it holds; without the bounds, 16 MiB cost five gigabytes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.service.api import body
from rewardserve.service.api.dialects import DIALECTS
from rewardserve.service.api.requests import ScoreRequest
from rewardserve.service.errors import InvalidRequest, RequestRefused
from tests.security.large_bodies import LARGE
from tests.support.service_server import ROOT

MIB = 2**20
SIZE = 16 * MIB
SMALL = body.JsonLimits(containers=20, strings=40, values=60)

MEASURE = """
import resource, sys
from tests.security import test_large_bodies as here
sent = here.LARGE[sys.argv[1]](here.SIZE)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
here.read_by_all(sent)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def read_by_all(sent: bytes) -> None:
    """As the routes read it; a dialect of each kind of type."""
    readers = [lambda: body.decode(sent, msgspec.json.Decoder(ScoreRequest))]
    readers += [lambda each=each: each.read(body.decode_any(sent)) for each in DIALECTS]
    with suppress(RequestRefused):
        body.check_json_limits(sent, body.JsonLimits.of(1024, 2**20))  # before any of them, with the same bounds
        for read in readers:
            with suppress(RequestRefused):
                read()


@pytest.mark.sweep(9)
@pytest.mark.parametrize("name", LARGE)
def test_a_large_body_of_little_meaning_costs_little_memory(name):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, name], cwd=ROOT, capture_output=True, text=True, check=True, timeout=110
    )
    assert int(done.stdout) / 1024 < 200


def many_small(n_samples: int) -> bytes:
    return json.dumps({"samples": [{"prompt": "{[,]}" * 50, "response": '"' * 20} for _ in range(n_samples)]}).encode()


def test_what_stands_in_texts_is_not_counted():
    body.check_json_limits(many_small(5), SMALL)
    with pytest.raises(InvalidRequest, match="more JSON values") as refused:
        body.check_json_limits(many_small(30), SMALL)
    assert refused.value.details["max_containers"] == 20


JSONS = st.recursive(
    st.text() | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=6),
    max_leaves=40,
)


def counted(value) -> tuple[int, int]:
    """Containers and strings, by walking what was parsed."""
    if isinstance(value, str):
        return 0, 1
    if not isinstance(value, list | dict):
        return 0, 0
    inside = [*value, *value.values()] if isinstance(value, dict) else value
    found = [counted(each) for each in inside]
    return 1 + sum(c for c, _ in found), sum(s for _, s in found)


@given(value=JSONS, most=st.integers(0, 30), ascii_only=st.booleans())
def test_parts_are_counted_as_a_parser_finds_them(value, most, ascii_only):
    sent = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    containers, strings = counted(value)
    for limits, is_too_much in (
        (body.JsonLimits(most, 10**6, 10**6), containers > most),
        (body.JsonLimits(10**6, most, 10**6), strings > most and sent.count(b'"') > 2 * most),
    ):
        try:
            body.check_json_limits(sent, limits)
        except InvalidRequest:
            assert is_too_much
        else:
            assert not is_too_much


async def test_whoever_has_to_be_counted_long_is_counted_beside_the_event_loop(monkeypatch):
    counted_by, count = [], body.check_json_limits
    monkeypatch.setattr(
        body, "check_json_limits", lambda *given: (counted_by.append(threading.current_thread()), count(*given))
    )
    await body._check_limits(b'{"samples":[]}', SMALL)
    assert counted_by == []
    await body._check_limits(many_small(5), SMALL)
    with pytest.raises(InvalidRequest, match="more JSON values"):
        await body._check_limits(many_small(30), SMALL)
    assert len(counted_by) == 2
    assert threading.current_thread() not in counted_by


def test_a_request_of_the_largest_usual_shape_is_read():
    turns = [{"role": "user", "content": "[" * 100}, {"role": "assistant", "content": '{",'}] * 20
    body.check_json_limits(
        json.dumps({"samples": [{"messages": turns}] * 1024}).encode(), body.JsonLimits.of(1024, 2**20)
    )
    ids = json.dumps({"samples": [{"input_ids": list(range(1024))}] * 1024}).encode()
    body.check_json_limits(ids, body.JsonLimits.of(1024, 2**20))


def test_an_object_of_many_fields_is_refused_in_few_words():
    sent = json.dumps({f"field-{i}": i for i in range(10_000)}).encode()
    with pytest.raises(InvalidRequest) as refused:
        body.decode(sent, msgspec.json.Decoder(ScoreRequest))
    assert refused.value.details == {"field": "field-0"}
    assert len(refused.value.message) < 200
    with pytest.raises(InvalidRequest) as refused:
        body.decode(sent[:40_000].rpartition(b",")[0] + b"}", msgspec.json.Decoder(ScoreRequest))
    assert refused.value.details["field"] == "$"
    assert refused.value.details["n"] > 1000


class Sent:
    """A request with this body."""

    def __init__(self, content):
        self._content, self.scope = content, {"type": "http", "headers": [(b"content-type", b"application/json")]}

    async def body(self):
        return self._content


class Watched:
    """A decoder that notes on which threads it is called."""

    def __init__(self, kind):
        self._decoder, self.type, self.threads = msgspec.json.Decoder(kind), kind, set()

    def decode(self, content):
        self.threads.add(threading.get_ident())
        return self._decoder.decode(content)


@pytest.mark.parametrize("tail", [b'"}]}', b'"', b'"},1]}', b'"},{"text":"\\ud800"}]}', b'"}],"step":-1}'])
async def test_a_large_body_is_read_beside_the_event_loop_and_a_wrong_one_is_read_again_there(tail, monkeypatch):
    again, readers = set(), (body._decode_slow, body._decode_any_slow)

    def noted(read):
        def noting(*arguments):
            again.add(threading.get_ident())
            return read(*arguments)

        return noting

    monkeypatch.setattr(body, "_decode_slow", noted(readers[0]))
    monkeypatch.setattr(body, "_decode_any_slow", noted(readers[1]))
    here, parts = threading.get_ident(), body.JsonLimits.of(1024, 2**20)
    for n_bytes, decoded_here in ((2**21, False), (2**17, True)):
        content = b'{"samples":[{"text":"' + b"x" * n_bytes + tail
        ours, theirs = Watched(ScoreRequest), Watched(Any)
        monkeypatch.setattr(body, "_value_decoder", theirs)
        with suppress(RequestRefused):
            await body.read_body(Sent(content), ours, parts)
        with suppress(RequestRefused):
            await body.read_json_body(Sent(content), parts)
        assert {here in ours.threads, here in theirs.threads} == {decoded_here}
    assert here not in again


def test_a_text_of_escapes_is_counted_without_a_regular_expression(monkeypatch):
    monkeypatch.setattr(body, "check_json_limits", lambda *_: pytest.fail("counted one by one"))
    limits = body.JsonLimits.of(1024, 2**20)
    for escape in (b'\\"', b"\\\\", b'\\\\\\"'):
        body._count_if_near(b'{"samples":[{"text":"' + escape * 4_000_000 + b'"}]}', limits)


@given(st.lists(st.sampled_from(['"', "\\", "a", "\n"]), max_size=12).map("".join))
def test_quotes_that_end_texts_are_told_from_those_that_are_escaped(inside):
    assert body._n_quotes(json.dumps([inside, inside]).encode()) == 4
