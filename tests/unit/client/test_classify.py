"""What each answer of a server means."""

from __future__ import annotations

import json

import pytest

from rewardserve_client.classify import (
    RETRYABLE_STATUSES,
    HttpReply,
    Rejected,
    Retry,
    Success,
    TooLarge,
    TransportError,
    classify,
)
from rewardserve_client.replies import InvalidReply
from rewardserve_client.results import Failure

FAILURE = Failure("code", "because", {"limit": 3})


def says(status, code="code", retry_after=None):
    body = {"error": {"code": code, "message": "because", "limit": 3}}
    return classify(HttpReply(status, json.dumps(body).encode(), retry_after), bytes.upper)


def test_an_answer_is_good_if_it_can_be_read():
    def unreadable(_body):
        raise InvalidReply("one reward too few")

    assert classify(HttpReply(200, b"value"), bytes.upper) == Success(b"VALUE")
    assert classify(HttpReply(200, b"value", "7"), unreadable) == Retry("invalid reply: one reward too few")


@pytest.mark.parametrize("is_server_fault", [True, False])
def test_no_answer_is_tried_again_with_its_reason(is_server_fault):
    assert classify(TransportError("ConnectError", is_server_fault), bytes.upper) == Retry(
        "ConnectError", None, is_server_fault
    )


@pytest.mark.parametrize("status", sorted(RETRYABLE_STATUSES))
def test_what_may_pass_is_tried_again_when_the_server_says(status):
    assert says(status, "code", "7") == Retry(f"{status} code", 7.0)
    assert says(status, "too_many_samples") == Retry(f"{status} too_many_samples")


@pytest.mark.parametrize("code", ["too_many_samples", "request_too_large", "body_too_large"])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_too_large_is_named(code, status):
    assert says(status, code) == TooLarge(Failure(code, "because", {"limit": 3}))


def test_a_page_of_a_proxy_says_no_more_than_its_status():
    page = "the reply is not in the server's error format; a proxy may have sent it"
    assert classify(HttpReply(413, b"<html>"), bytes.upper) == TooLarge(Failure("http_413", page))
    assert classify(HttpReply(404, b"<html>"), bytes.upper) == Rejected(404, Failure("http_404", page))


@pytest.mark.parametrize("status", [201, 301, 400, 401, 403, 404, 413, 422])
def test_everything_else_is_refused_for_good(status):
    assert says(status) == Rejected(status, FAILURE)
