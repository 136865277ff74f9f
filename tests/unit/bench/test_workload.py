"""Requests of a measurement: what is sent is what was promised."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from rewardserve.bench.workload import PROMPT_WORDS, RESPONSE_WORDS, NoSamples, of_file, synthetic
from rewardserve.service.api import body
from rewardserve.service.api.requests import ScoreRequest
from rewardserve.service.api.validation import check
from rewardserve.service.offline.input_file import NotContinuable


def samples_of(workload, n):
    return [json.loads(text) for text in islice(workload.samples, n)]


def test_no_two_synthetic_samples_are_equal_and_lengths_are_as_stated():
    samples = samples_of(synthetic(None, 1), 3000) + samples_of(synthetic(None, 1), 3000)
    assert len({json.dumps(sample) for sample in samples}) == 6000, "not even in two measurements"
    prompts, responses = ([len(sample[name].split()) for sample in samples] for name in ("prompt", "response"))
    for lengths, (low, high), extra in ((prompts, PROMPT_WORDS, 1), (responses, RESPONSE_WORDS, 0)):
        assert low + extra <= min(lengths) < 2 * low
        assert high / 2 < max(lengths) <= high + extra


def test_two_measurements_have_the_same_lengths():
    first, second = (samples_of(synthetic(None, 1), 100) for _ in range(2))
    assert [len(sample["response"]) for sample in first] == [len(sample["response"]) for sample in second]


def test_the_responses_of_a_group_share_a_prompt_that_no_other_group_has():
    samples = samples_of(synthetic(None, 4), 4000)
    groups = [samples[i : i + 4] for i in range(0, 4000, 4)]
    assert all(len({sample["prompt"] for sample in group}) == 1 for group in groups)
    assert len({sample["prompt"] for sample in samples}) == 1000
    assert all(len({sample["response"] for sample in group}) == 4 for group in groups)


def test_a_body_is_a_request_that_the_server_reads():
    bodies = list(synthetic(10, 1).bodies(4, run="a run"))
    requests = [check(body.parse(content), ScoreRequest) for content in bodies]
    assert [len(request.samples) for request in requests] == [4, 4, 2]
    assert {request.run for request in requests} == {"a run"}
    assert check(body.parse(next(synthetic(1, 1).bodies(4))), ScoreRequest).run is None


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"id": "a", "prompt": "p", "response": "r"}\nnonsense\n{"text": "t"}\n{"text": 5}\n')
    return path


@pytest.mark.parametrize(
    ("n_samples", "is_timed", "sent"), [(None, False, 2), (1, False, 1), (5, False, 5), (None, True, 9), (2, True, 2)]
)
def test_a_file_is_sent_once_unless_a_limit_asks_for_more(file, n_samples, is_timed, sent):
    workload = of_file(file, n_samples, is_timed=is_timed)
    samples = samples_of(workload, 9)
    assert samples == ([{"id": "a", "prompt": "p", "response": "r"}, {"text": "t"}] * 5)[:sent]
    assert ("the score cache answers repeats" in workload.description) == (sent > 2)
    assert workload.left_out == {"invalid_json": 1, "invalid_request": 1}


def test_a_file_without_samples_is_refused_with_the_reasons(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(NoSamples, match=r"no sample as in POST /score \(invalid_request 1\)"):
        of_file(path, None, is_timed=False)
    path.write_text("")
    with pytest.raises(NoSamples, match="it is empty"):
        of_file(path, None, is_timed=False)
    path.write_bytes(b"\x1f\x8b....")
    with pytest.raises(NotContinuable, match="gzipped"):
        of_file(path, None, is_timed=False)
