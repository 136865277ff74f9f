"""The trainer's side: whole groups in every request, rewards in order, null is an error; with a server made of a function."""

import json

import httpx
import numpy as np
import pytest

from gym.local_server import AlertReceiver, ReceivedAlert
from gym.over_http import N_WORKERS, HttpTrainer, MissingReward, over_threshold, rewards_of, samples_of
from gym.training import GROUP

PAGE = {
    "wires": [
        {"wire": "length_high", "votes": True, "severity": "warn", "threshold": 0.5},
        {"wire": "empty_opener", "votes": False, "severity": "warn", "threshold": 0.0},
        {"wire": "judge_injection", "votes": False, "severity": "page", "threshold": 0.0},
    ],
    "statistics": {"length_high": 0.6, "empty_opener": 1.0},
    "tripped": [{"wire": "vote", "severity": "page"}],
}


@pytest.fixture
def responses(base):
    return base.sample(np.random.default_rng(4), np.repeat(np.arange(16), GROUP))


@pytest.fixture
def receiver():
    # Entered, so that its socket is closed again.
    with AlertReceiver() as receiver:
        yield receiver


def length(sample):
    return float(len(sample["response"]))


class Fake:
    """Answers with `reward` of every sample, and remembers what was asked."""

    def __init__(self, reward=length):
        self.bodies = []
        self._reward = reward

    def __call__(self, request):
        if request.url.path == "/tripwires/ppo/details":
            return httpx.Response(200, json=PAGE)
        self.bodies.append(body := json.loads(request.content))
        rewards = [self._reward(sample) for sample in body["samples"]]
        error = {"code": "score_not_finite", "message": "NaN"}
        results = [{"error": None if reward is not None else error} for reward in rewards]
        return httpx.Response(200, json={"rewards": rewards, "results": results})


def trainer_of(fake, receiver):
    return HttpTrainer(httpx.Client(transport=httpx.MockTransport(fake), base_url="http://gym"), "ppo", receiver)


def test_rewards_come_back_in_the_order_of_the_responses(responses, receiver):
    fake = Fake()
    trainer = trainer_of(fake, receiver)
    expected = [float(len(text)) for text in responses.texts()]
    assert trainer.rewards_B(responses, expected).tolist() == expected
    assert trainer.off_by == 0.0
    assert trainer.levels == [pytest.approx(np.mean(expected))]
    trainer.rewards_B(responses, [value + 0.5 for value in expected])
    assert trainer.off_by == 0.5
    assert (trainer.n_samples, trainer.n_requests) == (256, 2 * N_WORKERS)
    assert sorted(body["step"] for body in fake.bodies) == [0] * N_WORKERS + [1] * N_WORKERS
    assert {body["run"] for body in fake.bodies} == {"ppo"}


def test_no_group_is_divided_between_requests(responses, receiver):
    fake = Fake()
    trainer_of(fake, receiver).rewards_B(responses, np.zeros(128))
    prompts = [prompt for body in fake.bodies for prompt in {sample["prompt"] for sample in body["samples"]}]
    assert len(prompts) == len(set(prompts)) == 16


def test_null_is_an_error_and_never_a_number(responses, receiver):
    fake = Fake(lambda sample: None if sample["response"] == responses.texts()[5] else 0.0)
    with pytest.raises(MissingReward, match="score_not_finite"):
        trainer_of(fake, receiver).rewards_B(responses, np.zeros(128))


def test_the_error_counts_what_has_no_reward():
    reply = {"rewards": [0.0, None, None], "results": [{"error": None}, {"error": "a"}, {"error": "b"}]}
    with pytest.raises(MissingReward, match="2 of 3 samples have no reward; the first: a"):
        rewards_of(reply)


def test_a_refusal_of_the_server_stops_the_run(responses, receiver):
    trainer = trainer_of(lambda request: httpx.Response(503), receiver)
    with pytest.raises(httpx.HTTPStatusError):
        trainer.rewards_B(responses, np.zeros(128))


def test_text_says_whether_it_was_cut_off(sampled):
    reasons = [sample["finish_reason"] for sample in samples_of(sampled)]
    assert reasons == ["stop" if ended else "length" for ended in sampled.ended_B]
    assert set(reasons) == {"stop", "length"}


def test_what_is_over_its_threshold_is_asked_for_when_the_page_comes(responses, receiver):
    trainer = trainer_of(Fake(), receiver)
    receiver.received.append(ReceivedAlert(0, {"wire": "empty_opener", "severity": "warn"}))
    trainer.rewards_B(responses, np.zeros(128))
    assert trainer.over == ()
    receiver.received.append(ReceivedAlert(0, {"wire": "vote", "severity": "page"}))
    trainer.rewards_B(responses, np.zeros(128))
    assert trainer.over == over_threshold(PAGE) == ("length_high",)


def test_warnings_come_from_the_page_and_the_page_from_the_webhook(responses, receiver, monkeypatch):
    """The server sends one notification a run and cause, so the webhook names neither every wire nor their steps."""
    shown = [{"wire": "length_high", "severity": "warn"}]
    monkeypatch.setitem(PAGE, "tripped", shown)
    trainer = trainer_of(Fake(), receiver)
    trainer.rewards_B(responses, np.zeros(128))
    shown.append({"wire": "vote", "severity": "page"})
    trainer.rewards_B(responses, np.zeros(128))
    monkeypatch.setattr("gym.over_http.TIMEOUT_S", 0.1)
    with pytest.raises(TimeoutError, match="vote"):
        trainer.wait_for_page()
    receiver.received.append(ReceivedAlert(1, {"wire": "vote", "severity": "page"}))
    trainer.wait_for_page()
    assert trainer.alerts() == [("length_high", "warn", 0), ("vote", "page", 1)]


def test_a_page_that_another_notification_covers_is_recorded_with_the_votes_of_its_step(
    responses, receiver, monkeypatch
):
    shown = [{"wire": "artefact_share", "severity": "page"}, {"wire": "vote", "severity": "page"}]
    monkeypatch.setitem(PAGE, "tripped", shown)
    trainer = trainer_of(Fake(), receiver)
    trainer.rewards_B(responses, np.zeros(128))
    receiver.received.append(ReceivedAlert(1, {"wire": "vote", "severity": "page"}))
    assert trainer.alerts() == [("artefact_share", "page", 1), ("vote", "page", 1)]
    assert trainer.votes == [{"length_high": 1}]


def test_an_alert_belongs_to_the_step_at_which_it_arrived(receiver):
    for step in (3, 8):
        receiver.step = step
        httpx.post(receiver.url, json={"wire": "vote", "severity": "page"}, trust_env=False).raise_for_status()
    assert [received.step for received in receiver.received] == [3, 8]
    assert receiver.paged
