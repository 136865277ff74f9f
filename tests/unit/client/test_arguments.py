"""Whatever is passed in a wrong type is named before anything is sent; what is shown of results fits on a line."""

from __future__ import annotations

import asyncio
import logging
import math
import socket

import httpx
import numpy
import pytest

from rewardserve_client import AsyncRewardClient, Backoff, ClientLimits, RewardClient, Sample, Unavailable
from rewardserve_client.outage_warnings import OutageWarnings
from rewardserve_client.results import ComparisonResult, Comparisons, Failure, ModelIdentity, Result, Scores

SECRET = "secret words"
OK = {"prompt": "p", "response": SECRET}
URL = "http://127.0.0.1:9"


def refuses(_request):
    raise AssertionError("nothing may be sent")


@pytest.fixture
def client():
    with RewardClient(URL, transport=httpx.MockTransport(refuses)) as client:
        yield client


SCORE = [
    ("samples", SECRET), ("samples", OK), ("samples", Sample("p", SECRET)), ("samples", None), ("samples", 3), ("samples", b"x"),
    ("samples[0]", [SECRET]), ("samples[1]", [OK, None]), ("samples[0]", [[OK]]),
    ("samples[0].prompt", [Sample(3, "r")]), ("samples[0].prompt", [Sample({"role": "user"}, "r")]),
    ("samples[0].response", [Sample("p", ["r"])]), ("samples[0].messages", [Sample(messages=SECRET)]),
    ("samples[0].text", [Sample(text=b"x")]), ("samples[0].input_ids", [Sample(input_ids="12")]),
    ("samples[0].input_ids", [Sample(input_ids=["1"])]), ("samples[0].input_ids", [Sample(input_ids=3)]),
    ("samples[0].input_ids", [Sample(input_ids=[1.5])]),
    ("samples[0].reference_rewards", [Sample("p", "r", reference_rewards=[None])]),
    ("samples[0].finish_reason", [Sample("p", "r", finish_reason=1)]), ("samples[0].id", [Sample("p", "r", id=1)]),
    ("samples[0].group", [Sample("p", "r", group=1)]), ("samples[0].score_empty", [Sample("p", "r", score_empty="yes")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "samples"), SCORE)
def test_samples_of_a_wrong_type_are_named(client, name, samples):
    with pytest.raises(TypeError) as error:
        client.score(samples)
    assert isinstance(error.value, ValueError)  # so that one `except` finds all
    assert name in str(error.value)
    assert SECRET not in str(error.value)


MORE = [
    ("run", 7, TypeError), ("run", b"x", TypeError), ("step", "3", TypeError), ("step", 1.5, TypeError), ("step", True, TypeError),
    ("step", -1, ValueError), ("kl", "0.1", TypeError), ("kl", [0.1], TypeError), ("kl", True, TypeError),
    ("deadline_s", "5", TypeError), ("deadline_s", -1, ValueError), ("deadline_s", math.nan, ValueError),
    ("on_failure", "ignore", ValueError), ("on_failure", 0, ValueError), ("on_progress", "print", TypeError),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "kind"), MORE)
def test_other_arguments_of_a_call_are_named(client, name, value, kind):
    with pytest.raises(kind, match=name):
        client.score([OK], **{name: value})
    if name != "kl":
        with pytest.raises(kind, match=name):
            client.compare([{"prompt": "p", "responses": ["a", "b"]}], **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("comparisons", SECRET), ("comparisons", OK), ("comparisons", 1), ("comparisons[0]", [SECRET]),
     ("comparisons[0]", [Sample("p", "r")])],
)  # fmt: skip
def test_comparisons_of_a_wrong_type_are_named(client, name, value):
    with pytest.raises(TypeError) as error:
        client.compare(value)
    assert name in str(error.value)


def test_a_margin_and_times_are_named(client):
    pair = [{"prompt": "p", "responses": ["a", "b"]}]
    for value, kind in (("1", TypeError), (-1.0, ValueError), (math.inf, ValueError)):
        with pytest.raises(kind, match="tie_margin"):
            client.compare(pair, tie_margin=value)
    with pytest.raises(TypeError, match="timeout_s"):
        client.ready(timeout_s="5")
    with pytest.raises(TypeError, match="deadline_s"):
        client.model(deadline_s="5")


@pytest.mark.parametrize("kind", [RewardClient, AsyncRewardClient])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("url", 8000), ("url", {"a": 1}), ("url", [8000]), ("url", b"http://x"), ("api_key", 1), ("api_key", b"k"),
        ("model_digest", 1),
        ("model_digest", [1]), ("deadline_s", "300"), ("on_failure", "zero"), ("on_mixed", None), ("limits", {"connections": 1}),
        ("backoff", 1.0), ("verify", "ca.pem"),
    ],
)  # fmt: skip
def test_arguments_of_a_client_are_named(kind, name, value):
    with pytest.raises((TypeError, ValueError), match=name):
        kind(**({"url": URL} | {name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("chunk_samples", "64"), ("attempt_timeout_s", None), ("warn_after_s", "5"), ("connections", 1.5)],
)
def test_limits_of_a_wrong_type_are_named(name, value):
    with pytest.raises(TypeError, match=name):
        ClientLimits(**{name: value})


def test_numbers_of_numpy_are_numbers():
    sent = []

    def answer(request):
        sent.append(request.content)
        return httpx.Response(422, json={"error": {"code": "x", "message": "m"}})

    with RewardClient(URL, transport=httpx.MockTransport(answer)) as client, pytest.raises(Exception, match="422"):
        client.score([Sample(input_ids=numpy.array([1, 2]))], step=numpy.int64(3), kl=numpy.float32(0.5))
    assert b'"step":3,"kl":0.5' in sent[0]
    assert b'"input_ids":[1,2]' in sent[0]


@pytest.mark.parametrize(
    "sample", [{"messages": 5}, {"prompt": 5, "response": "r"}, {"messages": [5]}, {"prompt": [5], "response": 1}]
)
def test_what_is_wrong_within_a_dict_is_the_servers_to_say(sample):
    refused = httpx.Response(
        422, json={"error": {"code": "invalid_request", "message": "m", "field": "samples[0].messages"}}
    )
    with (
        RewardClient(URL, transport=httpx.MockTransport(lambda _: refused)) as client,
        pytest.raises(Exception, match="sample 0"),
    ):
        client.score([sample])


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_results_of_any_number_are_shown_on_one_line():
    identity = ModelIdentity("rm", 1, "sha256:" + "a" * 64, None, "sha256:" + "b" * 64)
    good = [Result(str(i), reward=i / 7, raw=1.0, notes=("capped_high",), identity=identity) for i in range(2000)]
    bad = [Result("x", error=Failure(code, "m" * 500)) for code in ("input_too_long", "input_too_long", "unavailable")]
    shown = repr(Scores(tuple(good + bad)))
    assert len(shown) < 200
    assert "2003 results" in shown
    assert "0.1429" in shown
    assert "input_too_long 2, unavailable 1" in shown
    assert "'rm'" in shown
    assert repr(Scores(())) == "<Scores: 0 results, rewards [], failed: none, model=None>"
    assert len(repr(Comparisons(tuple(ComparisonResult(str(i)) for i in range(500))))) < 100


# -- warnings ----------------------------------------------------------------------------------------------------------


def test_silence_is_broken_after_some_seconds_and_then_at_growing_intervals():
    warnings, said = OutageWarnings(["http://a", "http://b"], 5.0), []
    for now in range(300):
        warnings.record_attempt("http://a", "ConnectError: refused", float(now))
        if text := warnings.warning(0.0, 300.0, float(now)):
            said.append(now)
            assert "http://a: ConnectError: refused" in text
    assert said == [5, 10, 20, 40, 80, 160]


def test_a_slow_answer_is_not_silence_until_much_later():
    warnings = OutageWarnings(["http://a"], 5.0)
    assert [now for now in range(100) if warnings.warning(0.0, 300.0, float(now))] == [30, 35, 45, 65]


def test_an_answer_ends_the_silence():
    warnings = OutageWarnings(["http://a", "http://b"], 5.0)
    warnings.record_attempt("http://a", "ConnectError", 1.0)
    warnings.record_attempt("http://b", "503 loading", 2.0)
    assert "http://b: 503 loading" in warnings.warning(0.0, 300.0, 6.0)
    warnings.record_attempt("http://b", None, 7.0)
    assert warnings.warning(0.0, 300.0, 11.0) is None
    text = warnings.warning(0.0, 300.0, 12.0)
    assert "http://a" in text
    assert "http://b" not in text


def test_many_calls_of_one_client_say_it_once():
    warnings = OutageWarnings(["http://a"], 5.0)
    warnings.record_attempt("http://a", "ConnectError", 0.0)
    assert sum(warnings.warning(0.0, 300.0, 5.0) is not None for _ in range(100)) == 1


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.mark.parametrize("attempt", ["score", "compare", "model"])
def test_a_wrong_port_is_named_in_the_log_long_before_the_deadline(caplog, attempt):
    url = f"http://127.0.0.1:{free_port()}"
    said = asyncio.Event()

    class Hears(logging.Handler):
        def emit(self, record):
            if "cannot connect" in record.getMessage():
                said.set()

    async def call():
        client = AsyncRewardClient(url, limits=ClientLimits(warn_after_s=0.01), backoff=Backoff(0.001, 0.001))
        pair = [{"prompt": "p", "responses": ["a", "b"]}]
        calls = {"score": lambda: client.score([OK]), "compare": lambda: client.compare(pair), "model": client.model}
        task = asyncio.create_task(calls[attempt]())
        await asyncio.wait_for(said.wait(), 30)
        task.cancel()

    handler = Hears()
    logger = logging.getLogger("rewardserve_client")
    logger.addHandler(handler)
    try:
        with caplog.at_level("WARNING", logger="rewardserve_client"):
            asyncio.run(call())
    finally:
        logger.removeHandler(handler)
    assert url in caplog.text
    assert "cannot connect" in caplog.text
    assert SECRET not in caplog.text


def test_a_call_that_is_answered_says_nothing(caplog):
    reply = httpx.Response(503, json={"error": {"code": "loading", "message": "m"}})
    with (
        caplog.at_level("WARNING"),
        RewardClient(URL, transport=httpx.MockTransport(lambda _: reply)) as client,
        pytest.raises(Unavailable),
    ):
        client.score([OK], deadline_s=0.2)
    assert "no answer" not in caplog.text
