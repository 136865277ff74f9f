"""Which answers are taken: only those that answer what was asked, with finite numbers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve_client.replies import InvalidReply, parse_approvals, parse_comparisons, parse_error, parse_scores
from rewardserve_client.results import ApprovalResult, Failure, ModelIdentity
from rewardserve_client.samples import approval_items, comparison_items, sample_items
from tests.support.faulty_server import IDENTITY, Request, failed_result, reply_to

SAMPLES = [{"prompt": "p", "response": "a"}, {"prompt": "p", "response": "b"}]
ITEMS = sample_items(SAMPLES, "c")


def reply():
    body = json.dumps({"samples": [json.loads(item.json) for item in ITEMS]}).encode()
    return reply_to(Request("POST", "/score", {}, body))


def read(content):
    return parse_scores(json.dumps(content).encode(), ITEMS)


def changed(path, value):
    content = reply()
    position = content
    for step in path[:-1]:
        position = position[step]
    position[path[-1]] = value
    return content


def test_everything_that_the_server_says_of_a_sample_is_in_its_record():
    said = {
        "id": "c-0", "reward": 0.5, "raw": 1.5, "normalized": 1.0, "heads": {"a": 1, "b": 0.5}, "stages": {"cap": -0.5},
        "notes": ["capped_high"], "flags": ["emoji"], "tokens": 7, "truncated": True, "missing_end": True, "cached": True,
        "error": None,
    }  # fmt: skip
    [result] = parse_scores(json.dumps(IDENTITY | {"rewards": [0.5], "results": [said], "more": 1}).encode(), ITEMS[:1])
    for name, value in said.items():
        assert getattr(result, name) == (tuple(value) if isinstance(value, list) else value)
    assert result.identity == ModelIdentity("fake", 1, "sha256:c", None, "sha256:p")
    assert result.capped


def test_an_error_of_a_sample_keeps_its_numbers():
    one = json.loads(ITEMS[0].json)
    content = IDENTITY | {"rewards": [None], "results": [failed_result(one, "input_too_long")]}
    [result] = parse_scores(json.dumps(content).encode(), ITEMS[:1])
    assert result.error == Failure("input_too_long", "it is so", {"limit": 3})
    assert result.reward is None


BAD = {
    "too few rewards": changed(["rewards"], [0.1]),
    "too many rewards": changed(["rewards"], [0.1, 0.2, 0.3]),
    "too few results": changed(["results"], reply()["results"][:1]),
    "another id": changed(["results", 0, "id"], "x"),
    "ids swapped": changed(["results"], reply()["results"][::-1]),
    "another reward": changed(["rewards", 0], 9.0),
    "a text for a reward": changed(["results", 0, "raw"], "0.1"),
    "true for a number": changed(["results", 0, "raw"], True),
    "neither reward nor error": changed(["rewards", 0], None) | {"results": changed(["results", 0, "reward"], None)["results"]},
    "an error beside the reward": changed(["results", 0, "error"], {"code": "a", "message": "b"}),
    "a number beyond floats": changed(["results", 0, "raw"], 10**400),
    "no model": changed(["model"], None),
    "a version in words": changed(["model_version"], "one"),
    "heads without a number": changed(["results", 0, "heads"], {"a": None}),
    "notes that are none": changed(["results", 0, "notes"], "capped"),
    "a result that is none": changed(["results", 0], 0.4),
    "a list": [1, 2],
    "nothing": None,
}  # fmt: skip


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_anything_else_is_no_answer(content):
    with pytest.raises(InvalidReply):
        read(content)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_no_answer(number):
    text = json.dumps(changed(["rewards", 0], "@") | {"results": changed(["results", 0, "reward"], "@")["results"]})
    with pytest.raises(InvalidReply):
        parse_scores(text.replace('"@"', number).encode(), ITEMS)


@given(cut=st.integers(0, 10_000))
def test_half_an_answer_is_no_answer(cut):
    whole = json.dumps(reply()).encode()
    with pytest.raises(InvalidReply):
        parse_scores(whole[: cut % len(whole)], ITEMS)


@given(st.binary(max_size=200))
def test_noise_is_no_answer_and_quotes_nothing(noise):
    with pytest.raises(InvalidReply) as caught:
        parse_scores(noise, ITEMS)
    assert str(caught.value) in (
        "the reply is not JSON",
        "a value is not an object",
        "a value is not a string",
    )


def test_a_refusal_that_is_not_the_servers_own_says_its_status():
    assert parse_error(b"<html>Bad Gateway</html>", 502).code == "http_502"
    assert parse_error(b'{"error": "model is loading"}', 503).code == "http_503"
    assert parse_error(b'{"error": {"code": "loading", "message": "m", "n": 1}}', 503) == Failure(
        "loading", "m", {"n": 1}
    )


COMPARISON = comparison_items([{"id": "q", "prompt": "p", "responses": ["a", "b"]}], "c")
RANKED = {
    "id": "q", "ranking": [1, 0], "winner": 1, "raw": [0.0, 2.0], "probabilities": [[0.5, 0.1], [0.9, 0.5]], "margin": 2.0,
    "error": None,
}  # fmt: skip


def read_comparison(**changes):
    content = IDENTITY | {"results": [RANKED | changes]}
    return parse_comparisons(json.dumps(content).encode(), COMPARISON)[0]


def test_a_comparison_is_read():
    result = read_comparison()
    assert (result.ranking, result.winner, result.raw, result.margin) == ((1, 0), 1, (0.0, 2.0), 2.0)
    assert result.probabilities == ((0.5, 0.1), (0.9, 0.5))


def test_a_comparison_with_an_error_has_no_ranking():
    nothing = dict.fromkeys(("ranking", "winner", "raw", "probabilities", "margin"))
    result = read_comparison(**nothing, error={"code": "empty_response", "message": "m", "response": 1})
    assert result.error == Failure("empty_response", "m", {"response": 1})
    assert result.ranking is None


@pytest.mark.parametrize(
    "changes",
    [
        {"ranking": [0, 0]}, {"ranking": [0]}, {"winner": 2}, {"raw": [0.0]}, {"margin": None}, {"probabilities": [[0.5]]},
        {"id": "x"},
    ],
)  # fmt: skip
def test_a_comparison_that_does_not_fit_is_no_answer(changes):
    with pytest.raises(InvalidReply):
        read_comparison(**changes)


GROUP = approval_items([{"prompt": "p", "queries": ["a", "b"]}], "c")


def approved(**fields):
    refused = {"code": "empty_response", "message": "no"}
    result = {"id": "c-0", "approvals": [0.5, None], "errors": [None, refused], "repeats_taken": [1]}
    return json.dumps(IDENTITY | {"snapshot": "sha256:s", "results": [result | fields]}).encode()


def test_approvals_are_read_with_their_errors_and_their_snapshot():
    (group,) = parse_approvals(approved(), GROUP)
    assert (group.approvals, group.repeats_taken, group.snapshot) == ((0.5, None), (1,), "sha256:s")
    assert group.error == group.errors[1] == Failure("empty_response", "no", {})


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "other"},
        {"approvals": [0.5]},
        {"approvals": [0.5, 0.5]},
        {"approvals": [None, None]},
        {"approvals": [True, None]},
        {"errors": [None]},
        {"errors": [None, None]},
        {"repeats_taken": None},
        {"repeats_taken": ["a"]},
    ],
)
def test_an_approval_that_is_no_number_or_no_error_is_no_reply(fields):
    with pytest.raises(InvalidReply):
        parse_approvals(approved(**fields), GROUP)


def test_an_advantage_is_an_approval_above_the_others_of_its_group():
    assert ApprovalResult("g", (1.0, 2.0, None, 6.0)).advantages == (-3.0, -1.5, None, 4.5)
    assert ApprovalResult("g", (1.0, None)).advantages == (None, None)
    assert ApprovalResult("g").advantages == ()
