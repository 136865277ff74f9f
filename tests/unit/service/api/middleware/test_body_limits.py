"""Bodies on their way in: how large one may be, how much of all may be here, how long one may take, what refusals wait for."""

from __future__ import annotations

import asyncio
import json

import pytest

from rewardserve.service.api.middleware.body_limits import BodyLimitMiddleware, BodyLimits
from rewardserve.service.errors import BodyTimeout, BodyTooLarge, ClientDisconnected, Overloaded
from tests.support.virtual_time import run

LIMITS = BodyLimits(max_bytes=10, max_bytes_in_flight=15, timeout_s=30.0)
START, END = (
    {"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]},
    {"type": "http.response.body", "body": b"."},
)
CLOSE = (b"connection", b"close")


def part(content=b"", *, more=True, after=0.0):
    """A piece of a body, so many seconds after the one before."""
    return after, {"type": "http.request", "body": content, "more_body": more}


LEFT = (0.0, {"type": "http.disconnect"})


class Caller:
    """Sends what it is told to, and keeps what it is answered."""

    def __init__(self, *parts, **headers):
        self.parts, self.answer = list(parts), []
        self.scope = {
            "type": "http",
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
        }
        self.waits_for_more = asyncio.Event()

    async def receive(self):
        if not self.parts:
            self.waits_for_more.set()
            await asyncio.Event().wait()
        after, message = self.parts.pop(0)
        await asyncio.sleep(after)
        return message

    async def send(self, message):
        self.answer.append((asyncio.get_running_loop().time(), message))

    @property
    def headers(self):
        return self.answer[0][1]["headers"]


class App:
    """Reads the body to its end, or `n` pieces of it, and answers. `got`: what it was given."""

    def __init__(self, n=1000):
        self.n, self.got, self.scope = n, [], None

    async def __call__(self, scope, receive, send):
        self.scope = scope
        for _ in range(self.n):
            self.got.append(await receive())
            if not self.got[-1].get("more_body"):
                break
        await send(dict(START))
        await send(END)


CHUNKED = {"transfer_encoding": "chunked"}


def answered(caller, app=None, limits=LIMITS, intake=None):
    """The app, when the caller has its answer."""
    app = app or App()
    run((intake or BodyLimitMiddleware(app, limits=limits))(caller.scope, caller.receive, caller.send))
    return app


@pytest.mark.parametrize("headers", [{}, {"content_length": "0"}, {"content_length": ""}, {"expect": "100-continue"}])
def test_a_request_without_a_body_is_handed_on_as_it_is(headers):
    given = []

    async def app(*call):
        given.append(call)

    caller = Caller(**headers)
    answered(caller, app)
    assert given == [(caller.scope, caller.receive, caller.send)]


def test_what_is_no_request_is_handed_on_as_it_is():
    given = []

    async def app(*call):
        given.append(call)

    caller = Caller(**CHUNKED)
    caller.scope["type"] = "lifespan"
    answered(caller, app)
    assert given == [(caller.scope, caller.receive, caller.send)]


@pytest.mark.parametrize(
    "headers", [{"content_length": "10"}, CHUNKED, {"content_length": "10", "expect": "100-continue"}]
)
def test_a_body_of_the_largest_size_is_handed_on_piece_by_piece(headers):
    caller = Caller(part(b"12345"), part(b"67890", more=False), **headers)
    app = answered(caller)
    assert app.scope is caller.scope
    assert b"".join(message["body"] for message in app.got) == b"1234567890"
    assert [message for _, message in caller.answer] == [START, END]


def test_a_body_that_is_announced_as_too_large_is_refused_before_the_app_sees_it():
    caller = Caller(part(b"12345678901", more=False), content_length="11")
    app = App()
    answered(caller, app)
    assert app.got == []
    (_, start), (_, body) = caller.answer
    assert start["status"] == 413
    assert json.loads(body["body"])["error"] == {
        "code": "body_too_large", "message": "the body is larger than 10 bytes: split the request", "limit": 10,
    }  # fmt: skip
    assert CLOSE not in start["headers"], "the whole body was read, so the connection can be used again"


@pytest.mark.parametrize("headers", [CHUNKED, {"content_length": "5"}, {"content_length": "abc"}])
def test_a_body_that_grows_too_large_is_refused_where_it_does(headers):
    caller, app = Caller(part(b"1234567890"), part(b"1", more=False), **headers), App()
    with pytest.raises(BodyTooLarge) as refused:
        answered(caller, app)
    assert (refused.value.message, refused.value.details) == (
        "the body is larger than 10 bytes: split the request",
        {"limit": 10},
    )
    assert [message["body"] for message in app.got] == [b"1234567890"]


def test_bodies_count_together_until_they_are_answered():
    async def main():
        intake = BodyLimitMiddleware(Half(), limits=LIMITS)
        first, second, third = (Caller(part(b"12345678"), **CHUNKED) for _ in range(3))
        one = asyncio.create_task(intake(first.scope, first.receive, first.send))
        await first.waits_for_more.wait()
        with pytest.raises(Overloaded) as refused:
            await intake(second.scope, second.receive, second.send)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        three = asyncio.create_task(intake(third.scope, third.receive, third.send))
        await third.waits_for_more.wait()
        three.cancel()
        return refused.value

    class Half(App):
        async def __call__(self, scope, receive, send):
            await receive()
            await receive()

    refused = run(main())
    assert (refused.message, refused.retry_after_s) == (
        "the bodies of all requests together exceed the limit; try again later",
        1.0,
    )
    assert refused.details == {"body_bytes_in_flight": 16, "max_body_bytes_in_flight": 15}


def test_as_many_bytes_as_may_be_in_flight_are():
    intake = BodyLimitMiddleware(App(), limits=BodyLimits(10, 10, 1.0))
    for _ in range(3):
        caller = Caller(part(b"1234567890", more=False), **CHUNKED)
        answered(caller, intake=intake)
        assert caller.answer


def test_a_body_that_is_late_is_refused_at_its_deadline_whatever_it_sent_before():
    async def main():
        caller = Caller(part(b"1", after=20.0), part(b"2", after=9.0), part(b"3", after=2.0), **CHUNKED)
        with pytest.raises(BodyTimeout) as refused:
            await BodyLimitMiddleware(App(), limits=LIMITS)(caller.scope, caller.receive, caller.send)
        return refused.value, asyncio.get_running_loop().time()

    refused, now = run(main())
    assert (refused.message, refused.details) == ("the body did not arrive within 30 s", {"timeout_s": 30.0})
    assert now == 1030.0


def test_a_body_that_comes_just_in_time_is_read():
    caller = Caller(part(b"1", after=29.0), part(b"2", after=0.5, more=False), **CHUNKED)
    assert len(answered(caller).got) == 2


def test_a_caller_that_leaves_in_the_middle_is_told_from_one_that_is_late():
    caller = Caller(part(b"1"), LEFT, **CHUNKED)
    with pytest.raises(ClientDisconnected) as left:
        answered(caller)
    assert left.value.message == "the client disconnected before the end of the body"


def test_after_the_whole_body_the_app_may_wait_for_the_end_of_the_connection_as_long_as_it_likes():
    async def main():
        seen = []

        async def app(scope, receive, send):
            seen.append(await receive())
            seen.append(await receive())

        caller = Caller(part(b"1", more=False), (3600.0, LEFT[1]), **CHUNKED)
        await BodyLimitMiddleware(app, limits=LIMITS)(caller.scope, caller.receive, caller.send)
        return seen[1], asyncio.get_running_loop().time()

    assert run(main()) == (LEFT[1], 4600.0)


# -- an answer to half a body -----------------------------------------------------------------------------------------------


def test_an_answer_to_half_a_body_waits_two_seconds_for_the_rest_and_ends_the_connection():
    caller = Caller(part(b"1"), part(b"2", after=1.5), part(b"3", after=9.0), **CHUNKED)
    answered(caller, App(n=1))
    assert [at for at, _ in caller.answer] == [1002.0, 1002.0]
    assert caller.headers == [(b"x", b"y"), CLOSE]


def test_an_answer_to_half_a_body_leaves_the_connection_open_where_the_rest_comes_meanwhile():
    caller = Caller(part(b"1"), part(b"2", after=1.0), part(b"3", after=0.5, more=False), **CHUNKED)
    answered(caller, App(n=1))
    assert [at for at, _ in caller.answer] == [1001.5, 1001.5]
    assert caller.headers == [(b"x", b"y")]


def test_an_answer_waits_for_no_rest_beyond_the_deadline_of_the_body():
    caller = Caller(part(b"1", after=29.0), part(b"2", after=9.0), **CHUNKED)
    answered(caller, App(n=1))
    assert caller.answer[0][0] == 1030.0


def test_an_answer_waits_for_no_rest_that_was_not_sent_because_the_caller_waits_for_a_go_ahead():
    caller = Caller(part(b"1"), part(b"2", after=1.0), content_length="5", expect="100-continue")
    answered(caller, App(n=0))
    assert caller.answer[0][0] == 1000.0
    assert caller.headers == [(b"x", b"y"), CLOSE]


def test_an_answer_without_headers_ends_the_connection_too():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    caller = Caller(part(b"1", after=9.0), **CHUNKED)
    answered(caller, app)
    assert caller.headers == [CLOSE]


def test_only_the_start_of_an_answer_is_changed_and_waited_with():
    async def app(scope, receive, send):
        await send(dict(END))

    caller = Caller(part(b"1", after=9.0), **CHUNKED)
    answered(caller, app)
    assert caller.answer == [(1000.0, END)]


def test_a_refusal_for_lack_of_capacity_holds_no_body_while_it_waits():
    async def main():
        intake = BodyLimitMiddleware(refusing, limits=BodyLimits(100, 5, 30.0))
        caller = Caller(part(b"123456"), part(b"7", after=9.0), **CHUNKED)
        await intake(caller.scope, caller.receive, caller.send)
        return caller

    async def refusing(scope, receive, send):
        try:
            await receive()
        except Overloaded:
            await send(dict(START))

    caller = run(main())
    assert caller.answer[0][0] == 1000.0
    assert caller.headers == [(b"x", b"y"), CLOSE]


def test_a_refusal_of_a_body_that_is_too_large_waits_for_its_rest():
    async def refusing(scope, receive, send):
        try:
            await receive()
        except BodyTooLarge:
            await send(dict(START))

    caller = Caller(part(b"12345678901"), part(b"2", after=1.0, more=False), **CHUNKED)
    answered(caller, refusing)
    assert caller.answer[0][0] == 1001.0
    assert caller.headers == [(b"x", b"y")]


def test_messages_without_their_optional_fields_are_an_empty_last_piece():
    caller = Caller((0.0, {"type": "http.request"}), **CHUNKED)
    assert answered(caller).got == [{"type": "http.request"}]
    assert caller.headers == [(b"x", b"y")]
