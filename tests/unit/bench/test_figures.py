"""Figures of a measurement: every request and every sample is counted once, by its code."""

from __future__ import annotations

import json

import pytest

from rewardserve.bench.closed_loop import HttpOutcome
from rewardserve.bench.figures import Counts, figures, quantile
from rewardserve.bench.report import text_of


def answered(*errors, latency_s=0.5, cached=False, tokens=10):
    results = [
        {
            "reward": None if error else 1.0,
            "cached": cached,
            "tokens": tokens,
            "error": error and {"code": error, "message": "why"},
        }
        for error in errors
    ]
    n = sum(not error for error in errors)
    usage = {"samples": len(errors), "tokens": tokens * n, "tokens_computed": 0 if cached else tokens * n}
    return HttpOutcome(200, json.dumps({"results": results, "usage": usage}).encode(), "", None, latency_s)


def refused(status, code, retry_after_s=None):
    content = json.dumps({"error": {"code": code, "message": "no"}}).encode()
    return HttpOutcome(status, content, "", retry_after_s, 0.1)


def counts_of(*outcomes):
    counts = Counts()
    for outcome in outcomes:
        counts.add(outcome)
    return counts


def test_every_request_is_answered_refused_or_failed_and_every_sample_scored_or_failed():
    counts = counts_of(
        answered(None, None, "input_too_long"), answered(None, cached=True), refused(503, "overloaded", 2.0),
        refused(503, "overloaded", 5.0), refused(401, "unauthorized"), HttpOutcome(502, b"<html>", "", None, 0.1),
        HttpOutcome(0, b"", "ReadTimeout", None, 600.0), HttpOutcome(200, b"[1]", "", None, 0.1),
    )  # fmt: skip
    found = figures(counts, wall_s=2.0)
    assert found["requests"] == {
        "sent": 8, "answered": 2, "refused": {"503 overloaded": 2}, "retry_after_s": [2.0, 5.0],
        "failed": {"401 unauthorized": 1, "502 without a code": 1, "ReadTimeout": 1, "200 without a code": 1},
    }  # fmt: skip
    assert found["samples"] == {"scored": 3, "from_cache": 1, "failed": {"input_too_long": 1}}
    assert (found["samples_per_s"], found["tokens_per_s"], found["tokens_computed_per_s"]) == (1.5, 15.0, 10.0)
    assert found["first_message"] == "why"
    assert not counts.is_complete
    assert counts_of(answered(None)).is_complete


@pytest.mark.parametrize(
    "bad", [refused(503, "overloaded", 1.0), refused(422, "invalid_request"), answered("empty_response")]
)
def test_a_sample_without_a_score_makes_a_measurement_incomplete(bad):
    assert not counts_of(answered(None), bad).is_complete


def test_latencies_are_those_of_answered_requests_alone():
    counts = counts_of(
        *(answered(None, latency_s=i / 100) for i in range(1, 101)), HttpOutcome(0, b"", "ReadTimeout", None, 600.0)
    )
    found = figures(counts, 1.0)["latency_s"]
    assert found == {"mean": pytest.approx(0.505), "p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    assert figures(counts_of(refused(503, "overloaded", 1.0)), 1.0)["latency_s"] is None


def test_a_quantile_is_a_value_that_occurred():
    assert [quantile([1.0, 2.0, 3.0, 4.0], share) for share in (0.0, 0.25, 0.26, 0.5, 0.99, 1.0)] == [1, 1, 2, 2, 4, 4]
    assert quantile([7.0], 0.99) == 7.0


def record(counts, **changes):
    backend = {"name": "torch", "engine": "packed", "dtype": "float32", "device": "cpu"}
    return {
        "server": {"url": "http://h:1", "started_here": True, "model": {"model": "m", "backend": backend}},
        "workload": {"samples": "synthetic", "left_out": {}, "clients": 4, "samples_per_request": 16, "run": ""},
        **figures(counts, 2.0),
        "interrupted": False,
        "warnings": [],
        "cpu": {"clients_s": 0.1, "server_s": 1.0},
        "machine": {"cpu": "CPU", "instructions": "AVX2", "cores": 2, "load": 0.51, "gpus": ["H200", "H200"]},
        "versions": {"python": "3.11", "vllm": "none"},
        **changes,
    }


def lines_of(text):
    return {line[:13].strip(): line[14:] for line in text.splitlines()}


def test_the_report_names_failures_by_code_and_an_overloaded_server():
    counts = counts_of(
        answered(None, "input_too_long"), refused(503, "overloaded", 2.0), refused(500, "internal_error")
    )
    lines = lines_of(text_of(record(counts)))
    assert lines["samples/s"] == "0.500  (1 scored in 2.0 s)"
    assert lines["latency"] == "p50 500 ms, p95 500 ms, p99 500 ms, max 500 ms  (1 requests)"
    assert lines["refused"] == "1 of 3 requests: 503 overloaded 1; Retry-After 2 s"
    assert lines["failed"] == "1 of 3 requests: 500 internal_error 1"
    assert lines["no score"] == "1 of 2 samples: input_too_long 1"
    assert lines["first message"] == "why"
    assert lines["machine"] == "CPU (AVX2), 2 cores, 2 x H200; load average 0.5 before"
    assert lines["versions"] == "python 3.11"
    assert lines["CPU"] == "server 0.50 cores, 1.00 samples a CPU second; clients 0.05 cores"
    assert "NOT TRUSTED" not in text_of(record(counts))
    busy = text_of(record(counts, warnings=["steal", "others"])).splitlines()[-1]
    assert busy == "NOT TRUSTED   steal; others. Measure again on a quiet machine"


def test_the_report_says_what_a_reader_would_take_for_speed():
    counts = counts_of(answered(None, cached=True))
    changed = record(counts, cpu={"clients_s": 1.9, "server_s": None}, interrupted=True)
    changed["server"] |= {"started_here": False}
    changed["workload"] |= {"left_out": {"invalid_json": 2}}
    lines = lines_of(text_of(changed))
    assert lines["cached"] == "1 of the scored samples came from the score cache of the server"
    assert lines["left out"] == "lines of the file that are no samples: invalid_json 2"
    assert "the machine below is that of the clients" in lines["server"]
    assert "the server may be faster" in lines["CPU"]
    assert lines["samples/s"].endswith("s, interrupted)")


def test_a_measurement_that_ended_before_its_first_reply_has_a_report():
    empty = record(Counts(), **figures(Counts(), 1e-6), cpu={"clients_s": 0.0, "server_s": 0.0}, interrupted=True)
    lines = lines_of(text_of(empty))
    assert lines["samples/s"] == "0  (0 scored in 0.0 s, interrupted)"
    assert lines["latency"] == "no request was answered"


def test_a_message_of_a_server_cannot_write_to_the_terminal():
    outcome = HttpOutcome(500, b'{"error": {"code": "x\\u001b[2J", "message": "a\\u001b[2J"}}', "", None, 0.1)
    assert "\x1b" not in text_of(record(counts_of(outcome)))
