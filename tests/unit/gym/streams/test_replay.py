"""A replay raises the alerts of the server, at the steps at which they come; the judge counts after the reply."""

import gzip
import json

import pytest

from gym.streams.exploits import exploited
from gym.streams.replay import ReplayEvent, Traffic, replay, votes_of
from gym.streams.streams import StreamSource, StreamSpec, read_recorded
from gym.streams.worlds import Planted, Quality

ANSWER = "The answer depends on so many things that it cannot be given here in a few words."
QUALITY = Quality({}, {})


@pytest.fixture(scope="module")
def constant(texts):
    return exploited(texts.steps(1, 24, 64), lambda prompt, response: ANSWER, 1, 0.8)


def replayed(steps, tokenize, traffic, planted):
    return replay(steps, planted.scores(steps, QUALITY, 1), tokenize, traffic)


def test_an_honest_stream_raises_no_page(texts, tokenize):
    assert not [
        e for e in replayed(texts.steps(1, 12, 64), tokenize, Traffic(), Planted()).events if e.severity == "page"
    ]


def test_an_exploit_is_reported_with_its_step_and_in_words(constant, tokenize):
    events = replayed(constant, tokenize, Traffic(judge_share=0.0), Planted()).events
    alert = next(event for event in events if event.wire == "duplicate_across_prompts")
    assert alert.severity == "warn"
    assert 4 < alert.step < 20
    assert alert.text.startswith("equal texts for different prompts: ")
    assert [event.step for event in events] == sorted(event.step for event in events)


def test_the_judge_is_heard_although_it_scores_after_the_reply(constant, tokenize):
    planted = Planted(bonus=4.0, penalty=2.0)
    without = replayed(constant, tokenize, Traffic(judge_share=0.0), planted)
    heard = replayed(constant, tokenize, Traffic(judge_share=1.0), planted)
    assert "audit_gap" not in {event.wire for event in without.events}
    assert "audit_gap" in {event.wire for event in heard.events}
    assert heard.votes[-1]["audit_gap"] == 2


def test_single_samples_raise_the_alert_about_equal_texts_when_whole_steps_do(constant, tokenize):
    whole, small = (replayed(constant[:16], tokenize, Traffic(size, 0.0), Planted()) for size in (0, 1))
    first = [next(e.step for e in each.events if e.wire == "duplicate_across_prompts") for each in (whole, small)]
    assert abs(first[0] - first[1]) <= 1


def test_votes_are_counted_once_or_twice():
    wires = {name: {"threshold": 1.0, "votes": name != "d"} for name in "abcd"}
    assert votes_of(wires, {"a": 0.9, "b": 1.1, "c": 2.1, "d": 9.0}) == {"b": 1, "c": 2}


def test_a_recorded_run_has_the_rewards_of_its_file(tmp_path, texts):
    file = tmp_path / "run.jsonl.gz"
    with gzip.open(file, "wt") as out:
        for step in range(3):
            out.write(
                json.dumps({"step": step, "prompts": ["a", "a"], "responses": ["b", "c"], "rewards": [0.5, step]})
                + "\n"
            )
    steps, rewards = read_recorded(file)
    assert rewards == [[0.5, 0.0], [0.5, 1.0], [0.5, 2.0]]
    assert StreamSource(texts, QUALITY.is_better).steps(StreamSpec("recorded", "run", file)) == steps
    assert steps[0][1].response == "c"


def test_an_event_is_a_step_a_wire_a_severity_and_a_text():
    assert ReplayEvent._fields == ("step", "wire", "severity", "text")
