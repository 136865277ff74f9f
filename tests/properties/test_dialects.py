"""Whatever a caller sends in any wire format: samples, or a refusal in words that hold nothing of it. Never a bug."""

from __future__ import annotations

import json
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.backends import ModelSpec, echo
from rewardserve.model.conversation import Sample, SampleError
from rewardserve.service.api import body
from rewardserve.service.api.dialects import DIALECTS
from rewardserve.service.errors import RequestRefused

SERVED = SimpleNamespace(loaded=echo.load(ModelSpec()))
MARK = "MARKED"
TEXT = st.sampled_from(["", "a", f"{MARK} text", "\ud800", "prompt\n", "user", "assistant", "message", "output_text"])
LEAVES = st.none() | st.booleans() | st.integers(-2, 300) | st.integers() | st.floats() | TEXT
NAMES = st.sampled_from(
    ["query", "prompts", "responses", "prompt", "response", "messages", "max_length", "input", "text", "input_ids", "role",
     "use_activation", "activation", "truncate_prompt_tokens", "task", "encoding_format", "inputs", "truncate", "raw_scores",
     "responses_create_params", "output", "content", "type", "instructions", "incomplete_details", "name", "shape", "data",
     "tokens", "sentences", "sequence_lengths", "continue_final_message", "chat_template"]
)  # fmt: skip
JSONS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=25
)


def likely(schema, of):
    """Bodies with the fields of a dialect, more often than not of the right kind."""
    names = [field.encode_name for field in msgspec.structs.fields(schema)]
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, of))


GYM = st.fixed_dictionaries(
    {
        "responses_create_params": st.fixed_dictionaries({}, optional={"input": JSONS, "instructions": LEAVES}) | JSONS,
        "response": st.fixed_dictionaries({}, optional={"output": st.lists(JSONS, max_size=3) | JSONS}) | JSONS,
    }
)


def bodies_of(dialect):
    """Bodies with the fields of one of its forms, more often than not of the right kind, or any JSON."""
    of_forms = [GYM if form.ignored_fields is None else likely(form.body, JSONS) for form in dialect.body_formats]
    return st.one_of(*of_forms, JSONS)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.path)
@given(data=st.data())
def test_a_body_is_samples_or_a_refusal_without_its_words(dialect, data):
    sent = data.draw(bodies_of(dialect))
    try:
        form, record = dialect.read(body.decode_any(json.dumps(sent).encode()))
        samples = form.to_samples(record, SERVED)
    except RequestRefused as error:
        samples = [error]
    assert all(isinstance(each, Sample | SampleError) or each.status in (400, 422) for each in samples)
    refused = [each for each in samples if isinstance(each, SampleError | RequestRefused)]
    assert all(MARK not in error.message + str(error.details) for error in refused)
