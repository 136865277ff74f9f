"""What each answer of a server means."""

from __future__ import annotations

import json

import pytest

from rewardserve_client.classify import MAY_PASS, Answer, Broken, Good, Refused, TooLarge, TryAgain, judge
from rewardserve_client.replies import BadAnswer
from rewardserve_client.results import Failure

FAILURE = Failure("code", "because", {"limit": 3})


def says(status, code="code", retry_after=None):
    body = {"error": {"code": code, "message": "because", "limit": 3}}
    return judge(Answer(status, json.dumps(body).encode(), retry_after), bytes.upper)


def test_an_answer_is_good_if_it_can_be_read():
    def unreadable(_body):
        raise BadAnswer("one reward too few")

    assert judge(Answer(200, b"value"), bytes.upper) == Good(b"VALUE")
    assert judge(Answer(200, b"value", "7"), unreadable) == TryAgain("not an answer: one reward too few")


@pytest.mark.parametrize("is_servers", [True, False])
def test_no_answer_is_tried_again_with_its_reason(is_servers):
    assert judge(Broken("ConnectError", is_servers), bytes.upper) == TryAgain("ConnectError", None, is_servers)


@pytest.mark.parametrize("status", sorted(MAY_PASS))
def test_what_may_pass_is_tried_again_when_the_server_says(status):
    assert says(status, "code", "7") == TryAgain(f"{status} code", 7.0)
    assert says(status, "too_many_samples") == TryAgain(f"{status} too_many_samples")


@pytest.mark.parametrize("code", ["too_many_samples", "request_too_large", "body_too_large"])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_too_large_is_named(code, status):
    assert says(status, code) == TooLarge(Failure(code, "because", {"limit": 3}))


def test_a_page_of_a_proxy_says_no_more_than_its_status():
    page = "the answer is not the server's own; something in between sent it"
    assert judge(Answer(413, b"<html>"), bytes.upper) == TooLarge(Failure("http_413", page))
    assert judge(Answer(404, b"<html>"), bytes.upper) == Refused(404, Failure("http_404", page))


@pytest.mark.parametrize("status", [201, 301, 400, 401, 403, 404, 413, 422])
def test_everything_else_is_refused_for_good(status):
    assert says(status) == Refused(status, FAILURE)
