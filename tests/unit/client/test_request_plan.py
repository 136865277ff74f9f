"""The course of a chunk, driven without network, clock or chance."""

from __future__ import annotations

import json
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve_client import replies
from rewardserve_client.backoff import Backoff
from rewardserve_client.chunks import Chunk
from rewardserve_client.circuit_breaker import CircuitBreaker
from rewardserve_client.classify import RETRYABLE_STATUSES, HttpReply, TransportError
from rewardserve_client.errors import RequestRefused
from rewardserve_client.request_plan import Attempt, ClientContext, RequestSpec, plan_chunk
from rewardserve_client.results import UNAVAILABLE, Result
from rewardserve_client.samples import head, sample_items
from tests.support.faulty_server import Request, failed_result, honest_result, reply_to, true_reward

ORDER = ("http://a:1", "http://b:2", "http://c:3")


class SimulatedServers:
    """Does what a course says, in no time but the one that waits and attempts are said to take."""

    def __init__(self, *answers, deadline=60.0, jitter=1.0, sample_retries=2, attempt_timeout_s=0.1):
        self.now = 0.0
        self.answers = list(answers)
        self.attempt_timeout_s = attempt_timeout_s
        self.asked: list[Attempt] = []
        self.waits: list[float] = []
        self.tried: list[tuple[str, str | None]] = []
        self.deadline = deadline
        keys = count()
        self.context = ClientContext(
            CircuitBreaker(), Backoff(), sample_retries, lambda: self.now, lambda low, high: low + jitter * (high - low),
            lambda: f"key-{next(keys)}", lambda *each: self.tried.append(each),
        )  # fmt: skip

    def drive(self, samples, order=ORDER):
        self.items = sample_items(samples, "call")
        spec = RequestSpec(
            "/score",
            head("samples", run="r"),
            self.deadline,
            replies.parse_scores,
            lambda i, why: Result(i.id, error=why),
        )
        plan, event = plan_chunk(Chunk(order, tuple(self.items)), spec, self.context), None
        while True:
            try:
                step = plan.send(event)
            except StopIteration as end:
                return end.value
            event = None
            if isinstance(step, Attempt):
                assert self.now < self.deadline
                self.asked.append(step)
                self.now += self.attempt_timeout_s
                answer = self.answers.pop(0) if self.answers else honest
                event = answer(Request("POST", step.path, {}, step.body)) if callable(answer) else answer
            else:
                self.waits.append(step.seconds)
                self.now += step.seconds

    @property
    def urls(self):
        return [attempt.url for attempt in self.asked]


def honest(request):
    return HttpReply(200, json.dumps(reply_to(request)).encode())


def says(status, code, retry_after=None, **details):
    body = {"error": {"code": code, "message": "because", **details}}
    return HttpReply(status, json.dumps(body).encode(), retry_after)


def fails_for(code, *responses):
    """Honest, but the samples with these responses have an error of their own."""

    def answer(request):
        results = [
            failed_result(s, code) if s["response"] in responses else honest_result(s) for s in request.json["samples"]
        ]
        return HttpReply(200, json.dumps(reply_to(request, results)).encode())

    return answer


def samples_of(n):
    return [{"prompt": f"p{i // 3}", "response": f"r{i}"} for i in range(n)]


def rewards_of(results):
    return [r.reward for r in results]


def truth(samples):
    return [true_reward(s) for s in samples]


GONE = TransportError("ConnectError")


def test_an_honest_answer_is_taken_as_it_is():
    servers = SimulatedServers()
    assert rewards_of(servers.drive(samples_of(5))) == truth(samples_of(5))
    assert servers.urls == [ORDER[0]]


@pytest.mark.parametrize("status", sorted(RETRYABLE_STATUSES))
def test_what_may_pass_is_asked_of_the_next_server_at_once(status):
    servers = SimulatedServers(says(status, "some_code"))
    assert rewards_of(servers.drive(samples_of(2))) == truth(samples_of(2))
    assert servers.urls == [ORDER[0], ORDER[1]]
    assert servers.waits == []


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 415, 422])
@pytest.mark.parametrize(
    ("field", "sample"),
    [("samples[1].prompt", 1), ("samples[2]", 2), ("samples[3]", None), ("samples", None), (None, None)],
)
def test_what_will_be_refused_again_is_asked_once(status, field, sample):
    details = {"limit": 3} | ({"field": field} if field else {})
    servers = SimulatedServers(says(status, "some_code", **details))
    with pytest.raises(RequestRefused) as caught:
        servers.drive(samples_of(3))
    refused = caught.value
    assert (refused.status, refused.code, refused.sample) == (status, "some_code", sample)
    assert "because" in str(refused)
    assert refused.details == details
    assert len(servers.asked) == 1


def test_each_attempt_is_told_with_its_address_and_why_it_gave_no_answer():
    servers = SimulatedServers(GONE, says(503, "overloaded"))
    servers.drive(samples_of(1))
    assert servers.tried == [(ORDER[0], "ConnectError"), (ORDER[1], "503 overloaded"), (ORDER[2], None)]
    assert [(attempt.url, attempt.path, attempt.deadline) for attempt in servers.asked] == [
        (url, "/score", 60.0) for url in ORDER
    ]


def test_rounds_are_further_and_further_apart():
    servers = SimulatedServers(*[GONE] * 4)
    servers.drive(samples_of(1), order=ORDER[:1])
    assert servers.waits == [0.25, 0.5, 1.0, 2.0]


def test_a_server_that_answers_again_is_trusted_again():
    servers = SimulatedServers(GONE)
    servers.drive(samples_of(1), order=ORDER[:1])
    assert servers.context.circuit.is_available(ORDER[0], servers.now)


def test_a_round_of_all_servers_is_followed_by_a_pause_and_the_next_round():
    servers = SimulatedServers(GONE, GONE, GONE, GONE)
    assert rewards_of(servers.drive(samples_of(1))) == truth(samples_of(1))
    assert servers.urls[:3] == list(ORDER)
    assert servers.waits[0] == 0.25


def test_every_retry_of_a_chunk_carries_the_same_key_and_the_same_bytes():
    servers = SimulatedServers(GONE, says(503, "overloaded"), HttpReply(200, b"<html>"))
    servers.drive(samples_of(4))
    assert len(servers.asked) == 4
    assert len({(attempt.key, attempt.body) for attempt in servers.asked}) == 1


def test_retry_after_is_waited_for():
    servers = SimulatedServers(says(503, "overloaded", "7"), jitter=0.0)
    servers.drive(samples_of(1), order=ORDER[:1])
    assert servers.waits == [7.0]


def test_one_server_of_several_that_names_no_time_is_not_waited_for():
    servers = SimulatedServers(says(503, "overloaded", "20"), GONE, GONE, jitter=0.0)
    servers.drive(samples_of(1))
    assert servers.waits == [0.0]


def test_of_several_servers_that_name_a_time_the_soonest_is_waited_for():
    servers = SimulatedServers(
        says(503, "overloaded", "20"), says(503, "overloaded", "0"), says(503, "overloaded", "5"), jitter=0.0
    )
    servers.drive(samples_of(1))
    assert servers.waits == [0.0]
    assert servers.urls[3] == ORDER[1]


def test_a_retry_after_beyond_the_deadline_ends_it_at_once():
    servers = SimulatedServers(says(503, "scorer_failing", "90"))
    [result] = servers.drive(samples_of(1), order=ORDER[:1])
    assert result.error.code == UNAVAILABLE
    assert "503 scorer_failing" in result.error.message
    assert servers.now < 1.0


def test_a_server_that_failed_is_left_alone_by_the_next_chunk():
    servers = SimulatedServers(GONE)
    servers.drive(samples_of(1))
    servers.drive(samples_of(1))
    assert servers.urls == [ORDER[0], ORDER[1], ORDER[1]]


@pytest.mark.parametrize("code", ["too_many_samples", "request_too_large", "body_too_large"])
def test_what_is_too_large_is_halved_until_it_is_not(code):
    def at_most_two(request):
        return honest(request) if len(request.json["samples"]) <= 2 else says(413, code, limit=2)

    servers = SimulatedServers(*[at_most_two] * 50)
    assert rewards_of(servers.drive(samples_of(7))) == truth(samples_of(7))
    assert len({attempt.key for attempt in servers.asked}) == len(servers.asked)


def test_a_page_of_a_proxy_with_413_halves_too():
    def at_most_one(request):
        return honest(request) if len(request.json["samples"]) == 1 else HttpReply(413, b"<html>too large</html>")

    assert rewards_of(SimulatedServers(*[at_most_one] * 9).drive(samples_of(3))) == truth(samples_of(3))


def test_one_sample_that_is_too_large_alone_does_not_spoil_its_neighbours():
    def never_the_second(request):
        ids = [s["response"] for s in request.json["samples"]]
        return says(413, "request_too_large") if "r1" in ids else honest(request)

    results = SimulatedServers(*[never_the_second] * 9).drive(samples_of(4))
    assert [r.error and r.error.code for r in results] == [None, "request_too_large", None, None]
    assert [r.reward for r in results if r.error is None] == truth([s for s in samples_of(4) if s["response"] != "r1"])


@pytest.mark.parametrize("code", ["out_of_memory", "scorer_failed"])
def test_samples_whose_failure_may_pass_are_tried_again_alone(code):
    servers = SimulatedServers(fails_for(code, "r1", "r2"), fails_for(code, "r2"))
    assert rewards_of(servers.drive(samples_of(4))) == truth(samples_of(4))
    sent = [[s["response"] for s in json.loads(attempt.body)["samples"]] for attempt in servers.asked]
    assert sent == [["r0", "r1", "r2", "r3"], ["r1", "r2"], ["r2"]]
    assert len({attempt.key for attempt in servers.asked}) == 3


def test_they_are_tried_again_a_bounded_number_of_times():
    servers = SimulatedServers(*[fails_for("out_of_memory", "r1")] * 9)
    results = servers.drive(samples_of(3))
    assert [r.error and r.error.code for r in results] == [None, "out_of_memory", None]
    assert len(servers.asked) == 3


def test_a_retry_without_a_reply_does_not_hide_the_first_error():
    servers = SimulatedServers(fails_for("out_of_memory", "r1"), *[GONE] * 1000)
    results = servers.drive(samples_of(2))
    assert [r.error and r.error.code for r in results] == [None, "out_of_memory"]


@pytest.mark.parametrize("code", ["empty_response", "input_too_long", "run_blocked", "score_not_finite"])
def test_samples_whose_failure_is_final_are_not_tried_again(code):
    servers = SimulatedServers(fails_for(code, "r1"))
    results = servers.drive(samples_of(2))
    assert results[1].error.code == code
    assert results[1].error.details == {"limit": 3}
    assert len(servers.asked) == 1


def test_when_the_time_is_over_every_sample_says_why():
    servers = SimulatedServers(*[says(503, "loading")] * 10_000, deadline=5.0)
    results = servers.drive(samples_of(2))
    assert [r.error.code for r in results] == [UNAVAILABLE] * 2
    assert all("503 loading" in r.error.message for r in results)
    assert rewards_of(results) == [None, None]


def test_the_last_reasons_that_differ_are_told_the_newest_first():
    reasons = [
        "ReadError",
        "ConnectError",
        "no complete reply in time",
        "no complete reply in time",
        "no connection free",
    ]
    servers = SimulatedServers(*map(TransportError, reasons), deadline=0.45, jitter=0.0)
    [result] = servers.drive(samples_of(1), order=ORDER[:1])
    assert result.error.message == (
        f"no connection free ({ORDER[0]}); before that no complete reply in time ({ORDER[0]}); "
        f"before that ConnectError ({ORDER[0]})"
    )


@pytest.mark.parametrize("n_faults", [0, 1])
def test_a_client_out_of_time_is_no_reason_where_a_server_has_failed(n_faults):
    faults = [TransportError("ConnectError: refused")] * n_faults
    busy = [TransportError("the client was busy", is_server_fault=False)] * 9
    servers = SimulatedServers(*faults, *busy, deadline=0.3, jitter=0.0)
    [result] = servers.drive(samples_of(1), order=ORDER[:1])
    assert result.error.message == (f"ConnectError: refused ({ORDER[0]})" if n_faults else "the client was busy")
    assert servers.tried == [(ORDER[0], "ConnectError: refused")] * n_faults, "a busy client is no outage of a server"


def test_without_time_nothing_is_sent_and_every_sample_says_so():
    servers = SimulatedServers(deadline=0.0)
    [result] = servers.drive(samples_of(1))
    assert (result.error.code, result.error.message) == (UNAVAILABLE, "the deadline passed before a request was sent")
    assert servers.asked == []


def test_the_pause_before_samples_are_tried_again_keeps_to_the_deadline():
    servers = SimulatedServers(fails_for("out_of_memory", "r0"), deadline=0.25, attempt_timeout_s=0.125)
    servers.drive(samples_of(1))
    assert servers.waits == [0.125]


def swapped(request):
    reply = reply_to(request)
    reply["results"].reverse()
    return HttpReply(200, json.dumps(reply).encode())


def invents(request):
    reply = reply_to(request)
    reply["rewards"] = [0.0] * len(reply["rewards"])
    return HttpReply(200, json.dumps(reply).encode())


answers = st.sampled_from(
    [
        honest, swapped, invents, GONE,
        HttpReply(200, b"<html></html>"), HttpReply(200, b'{"rewards": [0.0'), HttpReply(200, b"[]"),
        says(503, "overloaded", "1"), says(500, "internal"), says(504, "deadline_exceeded"), says(408, "body_timeout"),
        says(422, "too_many_samples"), says(413, "body_too_large"), fails_for("out_of_memory", "r0", "r2"),
        fails_for("empty_response", "r1"), says(502, "x", "nonsense"), says(429, "overloaded", "200"),
    ]
)  # fmt: skip


@given(
    script=st.lists(answers, max_size=25), n=st.integers(1, 9), deadline=st.floats(0.05, 30.0), jitter=st.floats(0, 1),
    order=st.permutations(ORDER).flatmap(lambda urls: st.integers(1, 3).map(lambda k: tuple(urls[:k]))),
)  # fmt: skip
def test_whatever_happens_every_sample_has_one_answer_in_order_and_no_number_is_made_up(
    script, n, deadline, jitter, order
):
    servers = SimulatedServers(*script, deadline=deadline, jitter=jitter)
    results = servers.drive(samples_of(n), order)
    assert [r.id for r in results] == [item.id for item in servers.items]
    for result, expected in zip(results, truth(samples_of(n)), strict=True):
        assert (result.reward is None) != (result.error is None)
        assert result.reward in (None, expected)
    assert servers.now <= deadline + servers.attempt_timeout_s + 1e-6
    bodies = {}
    for attempt in servers.asked:
        assert bodies.setdefault(attempt.key, attempt.body) == attempt.body
        assert attempt.url in order
