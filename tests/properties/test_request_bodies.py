"""Whatever the bytes are: a request comes out, or a refusal in our own words. Nothing else, ever."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.conversation import Sample, SampleError
from service.api import body
from service.api.schemas import CompareRequest, ScoreRequest, to_comparison, to_sample
from service.errors import InvalidJson, InvalidRequest, RequestRefused

TEXT = st.text(st.characters(codec=None), max_size=8)  # lone surrogates included
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
FIELDS = st.sampled_from(
    ["run", "step", "samples", "id", "prompt", "response", "messages", "text", "input_ids", "finish_reason", "role",
     "content", "comparisons", "responses", "tie_margin"]
) | TEXT  # fmt: skip
JSONS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=5), max_leaves=20
)
MESSAGES = st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), max_size=3)
SAMPLES = st.fixed_dictionaries(
    {},
    optional={
        "id": TEXT,
        "prompt": TEXT | MESSAGES | JSONS,
        "response": TEXT,
        "messages": MESSAGES,
        "text": TEXT,
        "input_ids": st.lists(st.integers(), max_size=5),
        "finish_reason": st.sampled_from(["stop", "length", "other"]),
    },
)


def outcome(ask, *arguments):
    """What comes out, or the refusal. Any other exception is the failure that these tests look for."""
    try:
        return ask(*arguments)
    except RequestRefused as refusal:
        return refusal


@given(st.binary(max_size=60) | JSONS.map(lambda j: json.dumps(j).encode()))
def test_any_bytes_are_json_or_refused(raw):
    parsed = outcome(body.parse, raw)
    assert not isinstance(parsed, RequestRefused) or isinstance(parsed, InvalidJson)


@given(JSONS | st.fixed_dictionaries({"samples": st.lists(SAMPLES, max_size=3)}))
def test_any_json_is_a_request_or_refused_with_the_path_of_the_offence(value):
    asked = outcome(body.check, value, ScoreRequest)
    if isinstance(asked, RequestRefused):
        assert isinstance(asked, InvalidRequest)
        assert asked.details["field"]
    else:
        assert all(isinstance(to_sample(s), Sample | SampleError) for s in asked.samples)


@given(JSONS | st.fixed_dictionaries({"comparisons": st.lists(JSONS, max_size=3)}))
def test_any_json_is_a_comparison_or_refused(value):
    asked = outcome(body.check, value, CompareRequest)
    if isinstance(asked, RequestRefused):
        assert isinstance(asked, InvalidRequest)
        assert asked.details["field"]
    else:
        assert all(len(to_comparison(c).responses) >= 2 for c in asked.comparisons)


@pytest.mark.parametrize("secret", ["hunter2-in-a-field"])
def test_a_refusal_names_the_place_and_never_what_was_there(secret):
    for value in ({"samples": secret}, {"samples": [{"prompt": {"x": secret}, "response": secret}]}, secret, [secret]):
        with pytest.raises(InvalidRequest) as refused:
            body.check(value, ScoreRequest)
        assert secret not in refused.value.message
    with pytest.raises(InvalidJson) as unread:
        body.parse(f'{{"samples": [{secret}'.encode())
    assert secret not in unread.value.message
