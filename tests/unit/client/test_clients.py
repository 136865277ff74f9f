"""Both clients over real sockets, against a server that misbehaves in every way that we know."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import logging
import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from rewardserve_client import (
    AsyncRewardClient,
    Backoff,
    ClientLimits,
    Misconfigured,
    MixedModels,
    NotScored,
    RequestRefused,
    RewardClient,
    RunBlocked,
    Sample,
    Unavailable,
)
from rewardserve_client.classify import TransportError
from rewardserve_client.request_plan import Attempt
from rewardserve_client.routing import order_of
from rewardserve_client.samples import sample_items
from tests.support.faulty_server import (
    FaultyServer,
    byte_by_byte,
    error,
    failed_result,
    halfway,
    honest,
    honest_result,
    reply_to,
    resets,
    says,
    send,
    silent,
    trickles,
    true_reward,
    twisted,
)

QUICK = Backoff(first_s=0.001, longest_s=0.01)
KEY = "sk-very-secret"
SAMPLES = [{"prompt": f"secret prompt {i // 4}", "response": f"secret response {i}"} for i in range(12)]
TRUTH = [true_reward(sample) for sample in SAMPLES]


def client_of(*servers, **kwargs):
    kwargs = {"backoff": QUICK, "deadline_s": 20.0, "api_key": KEY} | kwargs
    return RewardClient([server.url for server in servers], **kwargs)


def nan_reward(reply):
    reply["rewards"][0] = reply["results"][0]["reward"] = float("nan")


def one_reward_less(reply):
    reply["rewards"].pop()


def one_sample_less(reply):
    reply["rewards"].pop()
    reply["results"].pop()


def answer_for_others(reply):
    for result in reply["results"]:
        result["id"] = "other-" + result["id"]


TRICKS = {
    "one byte at a time": byte_by_byte,
    "hangs up after the request": resets,
    "breaks off in the middle": halfway,
    "503, then well": error(503, "overloaded", retry_after="0"),
    "429, then well": error(429, "overloaded"),
    "500, then well": error(500, "internal"),
    "408, then well": error(408, "body_timeout"),
    "502 from a proxy": says(b"<html>Bad Gateway</html>", 502),
    "HTML with 200": says(b"<html>please log in</html>"),
    "no bytes with 200": says(b""),
    "an empty object": says({}),
    "truncated JSON": says(b'{"rewards": [0.0, 0.0'),
    "NaN": twisted(nan_reward),
    "a reward too few": twisted(one_reward_less),
    "a sample too few": twisted(one_sample_less),
    "an answer for other ids": twisted(answer_for_others),
    "bytes that are no HTTP": lambda connection, request, server: connection.sendall(b"\x00\x01 hello\r\n\r\n"),
}


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS.keys())
def test_every_sample_is_answered_once_in_order_with_the_servers_own_number(trick):
    with FaultyServer(trick, trick) as server, client_of(server) as client:
        assert client.score(SAMPLES).rewards == TRUTH
        keys = {request.headers["idempotency-key"]: request.body for request in server.requests}
        assert len(keys) == 1


@pytest.mark.parametrize("trick", [silent, trickles])
def test_an_answer_that_does_not_come_is_given_up_and_asked_for_again(trick):
    with FaultyServer(trick) as server, client_of(server, limits=ClientLimits(attempt_timeout_s=1.0)) as client:
        assert client.score(SAMPLES).rewards == TRUTH
        assert len(server.requests) == 2


@pytest.mark.parametrize("trick", [silent, trickles, error(503, "loading"), resets])
def test_the_deadline_bounds_everything(trick):
    with FaultyServer(otherwise=trick) as server, client_of(server) as client:
        with pytest.raises(Unavailable) as caught:
            client.score(SAMPLES, deadline_s=0.3)
        assert caught.value.n_failed == 12
        told = [int(request.headers["x-deadline-ms"]) for request in server.requests]
        assert all(0 < ms <= 300 for ms in told)
        assert told == sorted(told, reverse=True)


def test_what_is_given_up_can_be_none_with_a_reason_instead():
    with FaultyServer(otherwise=error(503, "loading")) as server, client_of(server) as client:
        scores = client.score(SAMPLES, deadline_s=0.5, on_failure="none")
    assert scores.rewards == [None] * 12
    assert {r.error.code for r in scores.results} == {"unavailable"}
    assert all("503 loading" in r.error.message for r in scores.results)
    assert scores.model is None


def test_one_chunk_without_an_answer_leaves_the_others_theirs():
    def never_prompt_1(connection, request, server):
        if b"prompt 1" in request.body:
            send(connection, 503, {"error": {"code": "overloaded", "message": "m"}})
        else:
            honest(connection, request, server)

    with (
        FaultyServer(otherwise=never_prompt_1) as server,
        client_of(server, limits=ClientLimits(chunk_samples=4)) as client,
    ):
        scores = client.score(SAMPLES, deadline_s=1.0, on_failure="none")
    assert scores.rewards == [*TRUTH[:4], *[None] * 4, *TRUTH[8:]]
    assert len(scores.failed) == 4


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "invalid_json"), (401, "unauthorized"), (415, "unsupported_media_type"), (404, "not_found")],
)
def test_what_is_refused_is_raised_at_once(status, code):
    with FaultyServer(otherwise=error(status, code)) as server, client_of(server) as client:
        with pytest.raises(RequestRefused) as caught:
            client.score(SAMPLES, on_failure="none")
        assert (caught.value.status, caught.value.code) == (status, code)
        assert len(server.requests) == 1


def test_a_redirect_is_not_followed_with_the_key():
    with FaultyServer() as elsewhere:
        away = says(b"", 307, location=elsewhere.url + "/score")
        with FaultyServer(otherwise=away) as server, client_of(server) as client, pytest.raises(RequestRefused):
            client.score(SAMPLES)
        assert elsewhere.requests == []


def test_a_key_of_its_own_for_every_chunk_and_bounded_chunks():
    with FaultyServer() as server, client_of(server, limits=ClientLimits(chunk_samples=5)) as client:
        assert client.score(SAMPLES, run="r", step=3, kl=-0.01).rewards == TRUTH
        sent = [request.json for request in server.requests]
        assert [len(body["samples"]) for body in sent] == [4, 4, 4]
        assert {(body["run"], body["step"], body["kl"]) for body in sent} == {("r", 3, 0.0)}
        assert len({request.headers["idempotency-key"] for request in server.requests}) == 3
        assert len({s["id"] for body in sent for s in body["samples"]}) == 12


def test_no_more_chunks_are_under_way_than_allowed():
    under_way, lock, one_too_many = 0, threading.Lock(), threading.Event()

    def counted(connection, request, server):
        nonlocal under_way
        with lock:
            under_way += 1
            if under_way > 2:
                one_too_many.set()
        one_too_many.wait(0.1)  # time for one too many to come
        with lock:
            under_way -= 1
        honest(connection, request, server)

    limits = ClientLimits(chunk_samples=2, concurrent_chunks=2)
    with FaultyServer(otherwise=counted) as server, client_of(server, limits=limits) as client:
        assert client.score(SAMPLES).rewards == TRUTH
    assert not one_too_many.is_set()


def test_connections_are_used_again():
    with FaultyServer() as server, client_of(server) as client:
        for _ in range(5):
            client.score(SAMPLES)
        assert len(server._connections) == 1


def test_all_responses_to_a_prompt_meet_on_its_home():
    with FaultyServer() as one, FaultyServer() as other, client_of(one, other) as client:
        samples = [{"prompt": f"p{i % 10}", "response": str(i)} for i in range(40)]
        assert client.score(samples).rewards == [true_reward(s) for s in samples]
        for server in (one, other):
            for request in server.requests:
                for sample in request.json["samples"]:
                    group = sample_items([sample], "")[0].group
                    assert order_of(group, client.urls)[0] == server.url


def test_a_server_that_is_gone_is_stood_in_for():
    gone = FaultyServer()
    gone.close()
    with FaultyServer() as there, client_of(gone, there) as client:
        assert client.score(SAMPLES).rewards == TRUTH
        assert client.ready()


def test_a_change_of_model_between_chunks_is_noticed(caplog):
    def renewed(connection, request, server):
        send(connection, 200, reply_to(request, contract="sha256:new"))

    limits = ClientLimits(chunk_samples=8, concurrent_chunks=1)
    with FaultyServer(honest, renewed) as server, client_of(server, limits=limits) as client:
        scores = client.score(SAMPLES)
    assert scores.rewards == TRUTH
    assert scores.is_mixed
    assert [i.contract for i in scores.identities] == ["sha256:c", "sha256:new"]
    assert [r.identity.contract for r in scores.results] == ["sha256:c"] * 8 + ["sha256:new"] * 4
    assert len([r for r in caplog.records if "has changed" in r.message]) == 1


def test_a_change_of_model_between_chunks_is_raised_where_that_is_wanted():
    def renewed(connection, request, server):
        send(connection, 200, reply_to(request, pipeline="sha256:new"))

    limits = ClientLimits(chunk_samples=8, concurrent_chunks=1)
    server = FaultyServer(honest, renewed)
    with server, client_of(server, limits=limits, on_mixed="raise") as client, pytest.raises(MixedModels):
        client.score(SAMPLES)


def test_a_replica_with_another_version_of_the_same_model_is_no_change():
    def restarted(connection, request, server):
        send(connection, 200, reply_to(request, model_version=7))

    limits = ClientLimits(chunk_samples=8, concurrent_chunks=1)
    with FaultyServer(honest, restarted) as server, client_of(server, limits=limits, on_mixed="raise") as client:
        scores = client.score(SAMPLES)
    assert [i.version for i in scores.identities] == [1, 7]
    assert not scores.is_mixed


def test_progress_is_told_until_all_is_done():
    told = []
    with FaultyServer() as server, client_of(server, limits=ClientLimits(chunk_samples=4)) as client:
        client.score(SAMPLES, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 12), (8, 12), (12, 12)]


def test_a_client_that_is_called_from_its_own_progress_says_so():
    with FaultyServer() as server, client_of(server) as client, pytest.raises(RuntimeError, match="on_progress"):
        client.score(SAMPLES, on_progress=lambda done, total: client.score(SAMPLES))


def test_without_samples_no_server_gets_a_request():
    with FaultyServer() as server, client_of(server) as client:
        assert client.score([]).rewards == []
        assert server.requests == []


def test_a_sample_that_cannot_be_sent_is_refused_before_anything_is():
    with FaultyServer() as server, client_of(server) as client:
        for bad in (
            {"prompt": "p", "response": float("nan")},
            {"text": object()},
            {"text": "t", "id": 3},
        ):
            with pytest.raises(Misconfigured, match="sample 1"):
                client.score([SAMPLES[0], bad])
        assert server.requests == []


def test_samples_may_be_records():
    with FaultyServer() as server, client_of(server) as client:
        given = [
            Sample(prompt="p", response="r", id="mine"),
            Sample(messages=[{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]),
            Sample(text="t", finish_reason="length", group="p", reference_rewards=[1.0]),
            Sample(input_ids=(1, 2)),
        ]
        scores = client.score(given)
        sent = server.requests[0].json["samples"]
    assert [len(scores.results), sent[0]["id"]] == [4, "mine"]
    assert sent[2] | {"id": 0} == {"text": "t", "finish_reason": "length", "reference_rewards": [1.0], "id": 0}
    assert sent[3]["input_ids"] == [1, 2]


def test_the_same_prompt_is_one_group_in_whichever_form_it_comes():
    turn = {"role": "user", "content": "p"}
    answer = {"role": "assistant", "content": "r"}
    forms = [{"prompt": "p", "response": "r"}, {"prompt": [turn], "response": "r"}, {"messages": [turn, answer]}]
    assert len({item.group for item in sample_items(forms, "")}) == 1


def test_comparisons_are_asked_for_in_chunks_that_count_responses():
    def ranks(connection, request, server):
        results = [
            {"id": c["id"], "ranking": list(range(len(c["responses"]))), "winner": 0, "raw": [0.0] * len(c["responses"]),
             "probabilities": [[0.5] * len(c["responses"])] * len(c["responses"]), "margin": 0.0, "error": None}
            for c in request.json["comparisons"]
        ]  # fmt: skip
        send(connection, 200, reply_to(request, []) | {"results": results})

    with FaultyServer(otherwise=ranks) as server, client_of(server, limits=ClientLimits(chunk_samples=4)) as client:
        done = client.compare([{"prompt": f"p{i}", "responses": ["a", "b"]} for i in range(5)], tie_margin=0.5)
        assert sorted(len(request.json["comparisons"]) for request in server.requests) == [1, 2, 2]
        assert {request.json["tie_margin"] for request in server.requests} == {0.5}
    assert [r.ranking for r in done.results] == [(0, 1)] * 5


def test_the_model_is_described_by_the_first_server_that_answers():
    with FaultyServer(error(503, "loading")) as server, client_of(server) as client:
        assert client.model()["identity"]["name"] == "fake"
        assert server.requests[0].method == "GET"
    refuses = FaultyServer(otherwise=error(401, "unauthorized"))
    with refuses, client_of(refuses) as client, pytest.raises(RequestRefused):
        client.model()


def test_a_server_that_loads_is_not_ready():
    with FaultyServer(otherwise=error(503, "loading")) as server, client_of(server) as client:
        assert not client.ready()


def test_neither_key_nor_conversation_is_in_what_is_shown_logged_or_raised(caplog):
    shown = []
    tricks = (resets, says(b"<html>"), halfway, error(503, "overloaded"), honest, error(401, "unauthorized"))
    with caplog.at_level(logging.DEBUG), FaultyServer(*tricks, otherwise=silent) as server:
        with client_of(server) as client:
            client.score(SAMPLES)
            for _ in range(2):
                with pytest.raises((RequestRefused, Unavailable)) as caught:
                    client.score(SAMPLES, deadline_s=0.2)
                shown += [str(caught.getrepr(style="long", showlocals=False)), repr(caught.value), str(caught.value)]
                assert caught.value.__cause__ is None
            shown += [repr(client), repr(client._client), repr(vars(server.requests[0]).keys())]
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    shown += [record.getMessage() for record in caplog.records]
    assert not [text for text in shown if KEY in text or "secret prompt" in text or "secret response" in text]


def test_every_exception_survives_pickling():
    raised = [
        RequestRefused(422, "invalid_request", "m", {"field": "x"}, 3), Unavailable("503", 1, 2), NotScored("a", "b"),
        RunBlocked("run_blocked", "m"), MixedModels("m"), Misconfigured("m"),
    ]  # fmt: skip
    for one in raised:
        other = pickle.loads(pickle.dumps(one))
        assert (type(other), str(other), vars(other)) == (type(one), str(one), vars(one))


def test_a_cancelled_call_leaves_nothing_behind():
    async def cancelled():
        async with AsyncRewardClient(server.url, backoff=QUICK) as client:
            call = asyncio.create_task(client.score(SAMPLES))
            await asyncio.to_thread(server.came.wait, 20)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert asyncio.all_tasks() == {asyncio.current_task()}

    with FaultyServer(otherwise=silent) as server:
        asyncio.run(cancelled())


def test_one_asynchronous_client_serves_several_event_loops():
    async def once():
        scores = await client.score(SAMPLES)
        await client.aclose()
        return scores.rewards

    with FaultyServer() as server:
        client = AsyncRewardClient(server.url, backoff=QUICK)
        assert [asyncio.run(once()) for _ in range(3)] == [TRUTH] * 3


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_connections_of_closed_event_loops_are_let_go_of():
    with FaultyServer() as server:
        client = AsyncRewardClient(server.url, backoff=QUICK)
        for _ in range(4):
            assert asyncio.run(client.score(SAMPLES)).rewards == TRUTH
        assert len(client._pools) == 1
        client._pools.clear()
        gc.collect()


def test_a_client_may_be_patient_without_end():
    limits = ClientLimits(attempt_timeout_s=float("inf"))
    with FaultyServer() as server, client_of(server, deadline_s=float("inf"), limits=limits) as client:
        assert client.score(SAMPLES).rewards == TRUTH
        assert len(server.requests[0].headers["x-deadline-ms"]) <= 11


def test_many_threads_share_one_client():
    with (
        FaultyServer(resets, error(503, "overloaded")) as server,
        client_of(server) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        answers = list(pool.map(lambda i: client.score(SAMPLES[i % 12 :]).rewards, range(48)))
    assert answers == [TRUTH[i % 12 :] for i in range(48)]


def _score_in_child(client, results):
    results.put(client.score(SAMPLES).rewards)
    client.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_uses_connections_of_its_own():
    context = multiprocessing.get_context("fork")
    with FaultyServer() as server, client_of(server) as client:
        assert client.score(SAMPLES).rewards == TRUTH
        results = context.Queue()
        child = context.Process(target=_score_in_child, args=(client, results))
        child.start()
        assert results.get(timeout=30) == TRUTH
        child.join(30)
        assert client.score(SAMPLES).rewards == TRUTH
        assert len(server._connections) == 2


def test_a_client_that_is_forgotten_ends_its_thread():
    with FaultyServer() as server:
        client = client_of(server)
        client.score(SAMPLES)
        thread = client._loop_thread._thread
        client._loop_thread.run(client._client.aclose())
        del client
        thread.join(10)
        assert not thread.is_alive()


def test_a_result_of_a_sample_that_failed_is_none_with_the_servers_reason():
    def second_fails(connection, request, server):
        results = [honest_result(s) for s in request.json["samples"]]
        results[1] = failed_result(request.json["samples"][1], "empty_response")
        send(connection, 200, reply_to(request, results))

    with FaultyServer(otherwise=second_fails) as server, client_of(server) as client:
        scores = client.score(SAMPLES[:3])
        assert len(server.requests) == 1
    assert scores.rewards == [TRUTH[0], None, TRUTH[2]]
    assert scores.failed[0].error.code == "empty_response"
    assert json.dumps(scores.rewards) == json.dumps([TRUTH[0], None, TRUTH[2]])


@pytest.mark.parametrize("method", ["score", "compare", "model", "ready"])
def test_the_blocking_client_documents_each_method_as_the_asynchronous_one(method):
    blocking, awaited = getattr(RewardClient, method), getattr(AsyncRewardClient, method)
    assert inspect.getdoc(blocking) == inspect.getdoc(awaited)
    assert inspect.signature(blocking) == inspect.signature(awaited)
    own = [name for name in inspect.signature(blocking).parameters if name != "self"]
    documented = inspect.getdoc(RewardClient.score) + inspect.getdoc(blocking)
    assert not [name for name in own if f"`{name}`" not in documented]


async def test_a_request_that_has_no_time_left_says_so_and_waits_for_no_connection():
    client = AsyncRewardClient("http://127.0.0.1:9", transport=httpx.MockTransport(lambda request: httpx.Response(200)))
    sent = await client._pool()._send_connected(Attempt("http://127.0.0.1:9", "/score", b"{}", "k", deadline=0.0))
    assert sent == TransportError("the deadline passed before the request was sent", is_server_fault=False)
