"""The client against real server processes, which are killed and stopped under it. Every number is recomputed."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rewardserve.model.backends.echo import echo_score
from rewardserve_client import (
    AsyncRewardClient,
    Backoff,
    ClientLimits,
    Misconfigured,
    RequestRefused,
    RewardClient,
    Sample,
    Unavailable,
)
from rewardserve_client.trl import blocking_reward_function
from tests.support.service_server import Server, drill

PLAIN = ("--backend=echo", "--normalize=false", "--shape=none")
QUICK = Backoff(first_s=0.01, longest_s=0.2)


def score_of(text):
    return echo_score((*text.encode(), 0))


def samples_of(n, start=0):
    return [{"prompt": f"prompt {i // 4}", "response": f"response {i}"} for i in range(start, start + n)]


def truth_of(samples):
    return [score_of(f"{s['prompt']}\n{s['response']}") for s in samples]


@pytest.fixture(scope="module")
def server():
    with Server("echo", *PLAIN, "--max-samples-per-request=50") as running:
        yield running


def test_rewards_are_the_echo_of_what_was_sent_in_every_form(server):
    given = [
        {"prompt": "hi", "response": "yes", "id": "mine"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}]},
        {"text": "rendered"},
        {"input_ids": [1, 2, 3]},
        {"text": "cut", "finish_reason": "length"},
    ]
    with RewardClient(server.url) as client:
        scores = client.score(given, run="client", step=1, kl=0.5)
    expected = [
        score_of("hi\nyes"),
        score_of("hi\nno"),
        score_of("rendered"),
        echo_score((1, 2, 3, 0)),
        echo_score(b"cut"),
    ]
    assert scores.rewards == [r.raw for r in scores.results] == expected
    assert scores.results[0].id == "mine"
    assert scores.results[4].missing_end
    assert (scores.model.model, scores.model.version) == ("echo", 1)


def test_many_samples_are_split_answered_in_order_and_not_mixed(server):
    samples = samples_of(700)
    with RewardClient(server.url) as client:
        scores = client.score(samples)
    assert scores.rewards == truth_of(samples)
    assert not scores.is_mixed


def test_a_server_that_takes_less_than_a_chunk_is_given_less(server):
    with RewardClient(server.url, limits=ClientLimits(chunk_samples=300, concurrent_chunks=2)) as client:
        assert client.score(samples_of(300)).rewards == truth_of(samples_of(300))


def test_a_bad_sample_is_none_and_its_neighbours_are_scored(server):
    with RewardClient(server.url) as client:
        scores = client.score(
            [{"prompt": "p", "response": ""}, *samples_of(2), {"text": "\ud800"}, {"input_ids": [1, 999]}]
        )
    assert scores.rewards == [None, *truth_of(samples_of(2)), None, None]
    codes = [r.error.code for r in scores.failed]
    assert codes == ["empty_response", "invalid_text", "token_out_of_vocabulary"]


def test_a_request_that_makes_no_sense_names_the_sample(server):
    samples = [*samples_of(60), {"prompt": "p", "response": "r", "finish_reason": "eos"}]
    with RewardClient(server.url) as client, pytest.raises(RequestRefused) as caught:
        client.score(samples)
    assert (caught.value.status, caught.value.code, caught.value.sample) == (422, "invalid_request", 60)


def test_comparisons_are_ranked(server):
    with RewardClient(server.url) as client:
        done = client.compare([{"prompt": f"q{i}", "responses": ["one", "two", "three"]} for i in range(30)])
    for i, result in enumerate(done.results):
        raw = tuple(score_of(f"q{i}\n{text}") for text in ("one", "two", "three"))
        assert result.raw == raw
        assert result.winner == max(range(3), key=raw.__getitem__)


def test_the_model_is_described_and_the_server_is_ready(server):
    with RewardClient(server.url) as client:
        assert client.ready()
        assert client.model()["identity"]["name"] == "echo"


def test_a_key_is_asked_for_and_sent(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("sk-right\n")
    with Server("echo", *PLAIN, f"--keys-file={keys}") as locked:
        with (
            RewardClient(locked.url, api_key="sk-wrong") as client,
            pytest.raises(RequestRefused, match="401 unauthorized"),
        ):
            client.score(samples_of(1))
        with RewardClient(locked.url, api_key="sk-right") as client:
            assert client.score(samples_of(1)).rewards == truth_of(samples_of(1))
        assert "sk-" not in locked.log


def test_who_takes_one_model_alone_is_scored_by_it_or_told_that_it_is_not_there(server, monkeypatch):
    with RewardClient(server.url) as client:
        (known,) = client.score(samples_of(3)).identities
    monkeypatch.setenv("REWARDSERVE_MODEL_DIGEST", f"{known.contract},{known.pipeline}")
    with RewardClient(server.url) as client:
        assert client.score(samples_of(3)).rewards == pytest.approx(truth_of(samples_of(3)))
    with (
        RewardClient(server.url, model_digest="sha256:" + "0" * 64) as client,
        pytest.raises(RequestRefused) as refused,
    ):
        client.score(samples_of(3))
    assert refused.value.code == "digest_not_served"
    with pytest.raises(Misconfigured):
        RewardClient(server.url, model_digest="the newest")


def test_a_client_waits_for_a_server_without_capacity():
    seats = ("--admission.max-samples=8", "--max-samples-per-request=8")
    with Server("echo:delay_ms=5", *PLAIN, *seats) as small:
        limits = ClientLimits(chunk_samples=8, concurrent_chunks=4)
        with RewardClient(small.url, limits=limits, backoff=QUICK, deadline_s=60) as client:
            assert client.score(samples_of(64)).rewards == truth_of(samples_of(64))
        assert small.metric("rewardserve_requests_total", route="/score", code="503") > 0


def test_a_deadline_is_told_to_the_server_and_kept():
    with Server("echo:delay_ms=3000", *PLAIN) as slow, RewardClient(slow.url) as client:
        with pytest.raises(Unavailable):
            client.score(samples_of(4), deadline_s=0.4)
        slow.wait_for("504|499|deadline")


@pytest.fixture
def gate(tmp_path):
    path = str(tmp_path / "gate")
    os.mkfifo(path)
    return path


def test_kill_9_in_the_middle_and_the_other_server_answers(gate):
    """The first server holds a batch when it is killed: what was in its hands is asked for again elsewhere."""
    told = []
    with (
        drill(f"forward-waits:{gate}", "--normalize=false", "--shape=none") as dying,
        Server("echo", *PLAIN) as other,
        RewardClient([dying.url, other.url], backoff=QUICK, limits=ClientLimits(chunk_samples=8)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(client.score, samples_of(96), on_progress=lambda n, of: told.append(n))
        with open(gate, "wb"):  # opens once the server is inside its forward
            dying.process.kill()
            dying.ended()
            scores = call.result(60)
    assert scores.rewards == truth_of(samples_of(96))
    assert told[-1] == 96


def test_a_server_that_is_told_to_stop_finishes_what_it_took_and_the_rest_goes_elsewhere():
    first = threading.Event()
    limits = ClientLimits(chunk_samples=4, concurrent_chunks=4)
    with (
        Server("echo:delay_ms=10", *PLAIN) as leaving,
        Server("echo", *PLAIN) as other,
        RewardClient([leaving.url, other.url], backoff=QUICK, limits=limits) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(client.score, samples_of(400), on_progress=lambda n, of: first.set())
        assert first.wait(30)
        leaving.signal(signal.SIGTERM)
        scores = call.result(60)
        assert leaving.ended() == 0
    assert scores.rewards == truth_of(samples_of(400))


def test_a_reward_function_of_trl_against_a_real_server(server):
    with RewardClient(server.url) as client:
        reward = blocking_reward_function(client, run="trl", eos_token_id=0)
        rewards = reward(prompts=["p", "p"], completions=["a", "b"], completion_ids=[[5, 0], [5, 6]])
    assert rewards == [score_of("p\na"), echo_score(b"p\nb")]


def test_the_asynchronous_client_scores_as_the_blocking_one(server):
    async def once():
        async with AsyncRewardClient(server.url) as client:
            parts = await asyncio.gather(*[client.score(samples_of(40, start)) for start in range(0, 400, 40)])
        return [reward for part in parts for reward in part.rewards]

    assert asyncio.run(once()) == truth_of(samples_of(400))


class Eavesdropper:
    """A way to a server on which the first answers get lost: they are read to their end, and the caller is cut off."""

    def __init__(self, server, n_lost):
        self._server, self._n_lost, self.keys = server, n_lost, []

    async def __aenter__(self):
        self._listening = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listening.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc):
        self._listening.close()
        await self._listening.wait_closed()

    async def _pass_on(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.splitlines()[1:] if line)
        body = await reader.readexactly(int(fields[b"content-length"]))
        self.keys.append(fields[b"idempotency-key"])
        host, port = self._server.url.removeprefix("http://").split(":")
        there, back = await asyncio.open_connection(host, int(port))
        back.write(head.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + body)
        answer = await there.read()
        back.close()
        if len(self.keys) > self._n_lost:
            writer.write(answer)
            await writer.drain()
        writer.close()


async def test_an_answer_that_was_lost_is_given_again_and_counted_once(server):
    def n_scored():
        return server.metric("rewardserve_samples_total", outcome="ok")

    asked, before = samples_of(30, start=5_000), n_scored()
    async with Eavesdropper(server, n_lost=2) as way, AsyncRewardClient(way.url, backoff=QUICK) as client:
        scores = await client.score(asked, run="lossy")
    assert scores.rewards == truth_of(asked)
    assert len(way.keys) == 3
    assert len(set(way.keys)) == 1
    assert n_scored() == before + 30


def test_an_empty_response_is_scored_only_if_the_sample_says_so(server):
    with RewardClient(server.url) as client:
        refused, scored = client.score(
            [Sample(prompt="hi", response=""), Sample(prompt="hi", response="", score_empty=True)]
        ).results
    assert refused.reward is None
    assert scored.raw == score_of("hi\n")


def test_approvals_are_the_echo_of_the_queries_and_keep_their_snapshot(server):
    groups = [
        {"prompt": f"p{i}", "taken": ["no"], "queries": ["yes", "no", {"response": "perhaps"}]} for i in range(30)
    ]
    with RewardClient(server.url) as client:
        first = client.approve([*groups, {"prompt": "p", "queries": [" ", "b"]}], run="decoupled", step=1)
        assert [r.approvals for r in first.results[:30]] == [
            pytest.approx([score_of(f"p{i}\n{text}") for text in ("yes", "no", "perhaps")]) for i in range(30)
        ]
        (snapshot,) = first.snapshots
        assert first.repeated_share == pytest.approx(30 / 92)
        last = first.results[-1]
        assert (last.approvals[0], last.error.code, last.errors[1]) == (None, "empty_response", None)
        assert client.approve(groups[:1], run="decoupled", step=2).snapshots == (snapshot,)
        with pytest.raises(RequestRefused) as refused:
            client.approve(groups, run="decoupled", snapshot="sha256:" + "0" * 64)
    assert (refused.value.code, refused.value.details["snapshot"]) == ("snapshot_differs", snapshot)


def test_a_sample_takes_its_continuations_along(server):
    ahead = [[{"role": "user", "content": "and?"}, {"role": "assistant", "content": "no"}]]
    with RewardClient(server.url) as client:
        scores = client.score([
            Sample(prompt="hi", response="yes"),
            Sample(prompt="hi", response="yes", lookahead=ahead, lookahead_reward="mean"),
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}, *ahead[0]]},
        ])  # fmt: skip
    own, combined, later = scores.rewards
    assert combined == pytest.approx((own + later) / 2)
