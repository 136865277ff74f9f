"""Every field that any form of any wire format knows, sent in every form: refused by its name, or seen to have its effect.

`FORMS` is written from the other projects' own code (vLLM's `entrypoints/pooling/*/protocol.py`, SGLang's `io_struct.py` and
`openai/protocol.py`, text-embeddings-inference's `http/types.rs`, OpenRLHF's `utils/agent.py`), not from the tables of the server.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from rewardserve.model.backends.echo import echo_score
from rewardserve.service.api.dialects import DIALECTS
from tests.support.service_server import Server

PROMPT, ANSWER, OTHER = "Why?\n", "Because.", "No."
TEXT = PROMPT + ANSWER
TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": ANSWER}]
LONG = "x" * 300
"""More than the server's limit."""


def scores(reply: Any) -> list[float]:
    """All numbers of a reply that are scores: those with a fraction, but for times."""
    if isinstance(reply, float):
        return [reply]
    if isinstance(reply, dict):
        reply = [value for name, value in reply.items() if name not in ("timing_ms", "e2e_latency")]
    return [score for each in reply for score in scores(each)] if isinstance(reply, list) else []


def other_score(plain: Any, reply: Any) -> bool:
    return scores(plain) != scores(reply)


def limited(plain: Any, reply: Any) -> bool:
    """The prompt was cut, or, where it cannot be told from the response, the text refused as too long."""
    error = reply.get("error")
    return other_score(plain, reply) if error is None else (error["reason"], error["limit"]) == ("input_too_long", 10)


def sigmoid(plain: Any, reply: Any) -> bool:
    return scores(reply) == pytest.approx([1 / (1 + math.exp(-x)) for x in scores(plain)])


def of_sigmoid(plain: Any, reply: Any) -> bool:
    return sigmoid(reply, plain)


def is_there(value: object) -> Callable[[Any, Any], bool]:
    return lambda _plain, reply: json.dumps(value) in json.dumps(reply) or f"-{value}" in json.dumps(reply)


def base64_of(plain: Any, reply: Any) -> bool:
    vector = reply["data"][0].get("data") or reply["data"][0]["embedding"]
    return struct.unpack("<f", base64.b64decode(vector))[0] == pytest.approx(scores(plain)[0])


def gone(word: str) -> Callable[[Any, Any], bool]:
    return lambda plain, reply: word in json.dumps(plain) and word not in json.dumps(reply)


@dataclass(frozen=True)
class Written:
    """A form of a request. `effect`: fields that it may have beside those of `body`, with a value and what that must do.

    `no_effect`: fields that belong to the request, its caching or its routing, and leave every score as it is. `accepted_values`:
    what clients of the format may send with every request.
    """

    path: str
    body: dict[str, Any]
    effect: dict[str, tuple[Any, Callable[[Any, Any], bool]]] = field(default_factory=dict)
    no_effect: tuple[str, ...] = ()
    accepted_values: dict[str, Any] = field(default_factory=dict)


ROUTING = ("user", "priority", "cache_salt", "extra_key", "rid", "log_metrics", "no_logs", "routing_key", "data_parallel_rank",
           "routed_dp_rank")  # fmt: skip
TRUNCATION = ("padding", "truncation_side")
VLLM = {
    "request_id": ("r-7", is_there("r-7")),
    "use_activation": (True, sigmoid),
    "activation": (True, sigmoid),
    "truncate_prompt_tokens": (10, limited),
}
VLLM_DEFAULTS = {
    "truncate_prompt_tokens": None, "truncation_side": None, "padding": None, "priority": 0, "cache_salt": None,
    "mm_processor_kwargs": None, "use_activation": None, "user": None,
}  # fmt: skip
CHAT_DEFAULTS = {
    "add_generation_prompt": False, "continue_final_message": False, "add_special_tokens": False, "chat_template": None,
    "chat_template_kwargs": None, "media_io_kwargs": None,
}  # fmt: skip
VECTOR_DEFAULTS = {"encoding_format": "float", "embed_dtype": "float32", "endianness": "native"}
PAIR_DEFAULTS = VLLM_DEFAULTS | {"max_tokens_per_query": 0, "max_tokens_per_doc": 0}
SGLANG_DEFAULTS = {
    "image_data": None, "video_data": None, "audio_data": None, "rid": None, "sampling_params": None, "input_embeds": None,
    "log_metrics": True, "modalities": None, "is_cross_encoder_request": False, "priority": None, "routing_key": None,
    "background": False, "external_trace_header": None, "received_time": None, "dimensions": None, "lora_path": None,
}  # fmt: skip
CLASSIFY = VLLM | {"softmax": (True, sigmoid)}
POOLING = CLASSIFY | {"encoding_format": ("base64", base64_of)}
CUT_OFF = {"continue_final_message": (True, other_score)}
NAMED = {"rid": ("r-7", is_there("r-7"))}
TENSOR = {"name": "sentences", "shape": [1], "datatype": "BYTES", "data": [TEXT]}

FORMS = {
    "OpenRLHF": Written(
        "/get_reward", {"query": [TEXT]}, no_effect=("labels",), accepted_values={"prompts": [PROMPT], "labels": ["x"]}
    ),
    "align-anything": Written(
        "/get_reward", {"prompts": [PROMPT], "responses": [ANSWER]}, no_effect=("golden_response", "golden_responses")
    ),
    "slime": Written("/slime", {"prompt": PROMPT, "response": ANSWER}, no_effect=("label",), accepted_values={"label": None}),
    "LLaMA-Factory": Written(
        "/v1/score/evaluation",
        {"messages": [TEXT]},
        {"max_length": (10, limited)},
        accepted_values={"model": "model", "max_length": None},
    ),
    "vLLM classify, input": Written(
        "/classify",
        {"input": TEXT},
        CLASSIFY,
        (*ROUTING, *TRUNCATION, "add_special_tokens"),
        VLLM_DEFAULTS | VECTOR_DEFAULTS | {"add_special_tokens": True},
    ),
    "vLLM classify, ids": Written(
        "/classify", {"input": [[65, 66, 67, 68, 69, 70] * 3]}, CLASSIFY, (*ROUTING, *TRUNCATION, "add_special_tokens")
    ),
    "vLLM classify, messages": Written(
        "/classify",
        {"messages": TURNS},
        CLASSIFY | CUT_OFF,
        (*ROUTING, *TRUNCATION, "add_special_tokens"),
        VLLM_DEFAULTS | CHAT_DEFAULTS,
    ),
    "SGLang classify, text": Written(
        "/classify", {"text": TEXT}, NAMED, (*ROUTING, "sampling_params"), SGLANG_DEFAULTS | {"input_ids": None}
    ),
    "SGLang classify, ids": Written(
        "/classify", {"input_ids": [65, 66]}, NAMED, (*ROUTING, "sampling_params"), SGLANG_DEFAULTS | {"text": None}
    ),
    **{
        f"{form} at /v1/classify": Written("/v1/classify", body, effect, no_effect)
        for form, body, effect, no_effect in (
            ("messages", {"messages": TURNS}, CLASSIFY | CUT_OFF, (*ROUTING, *TRUNCATION, "add_special_tokens")),
            ("text", {"text": TEXT}, NAMED, (*ROUTING, "sampling_params")),
            ("ids", {"input_ids": [65, 66]}, NAMED, (*ROUTING, "sampling_params")),
        )
    },
    "SGLang v1/classify": Written(
        "/v1/classify",
        {"input": TEXT},
        CLASSIFY,
        (*ROUTING, *TRUNCATION, "add_special_tokens"),
        {"user": None, "rid": None, "priority": None, "model": "default"},
    ),
    "vLLM pooling, input": Written(
        "/pooling",
        {"input": TEXT},
        POOLING,
        (*ROUTING, *TRUNCATION, "add_special_tokens"),
        VLLM_DEFAULTS | VECTOR_DEFAULTS | {"add_special_tokens": True, "task": None, "dimensions": None},
    ),
    "vLLM pooling, messages": Written(
        "/pooling",
        {"messages": TURNS},
        POOLING | CUT_OFF,
        (*ROUTING, *TRUNCATION, "add_special_tokens"),
        VLLM_DEFAULTS | VECTOR_DEFAULTS | CHAT_DEFAULTS | {"task": "classify", "dimensions": None},
    ),
    "OpenAI embeddings": Written(
        "/v1/embeddings",
        {"input": TEXT},
        {"encoding_format": ("base64", base64_of)},
        ROUTING,
        {"encoding_format": "float", "dimensions": None, "user": None, "embed_dtype": "float32", "endianness": "native"},
    ),
    **{
        f"vLLM {path}, {second}": Written(
            path, {first: PROMPT, second: [ANSWER]}, VLLM, (*ROUTING, *TRUNCATION), PAIR_DEFAULTS
        )
        for path in ("/score", "/v1/score")
        for first, second in (
            ("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"),
        )
    },
    "SGLang score": Written(
        "/v1/score",
        {"query": PROMPT, "items": [ANSWER]},
        {"item_first": (True, other_score)},
        ROUTING,
        {"label_token_ids": None, "apply_softmax": False, "item_first": False, "return_pooled_hidden_states": False},
    ),
    **{
        f"vLLM {path}": Written(
            path,
            {"query": PROMPT, "documents": [ANSWER, OTHER]},
            VLLM | {"top_n": (1, other_score), "return_documents": (False, gone(OTHER))},
            (*ROUTING, *TRUNCATION),
            PAIR_DEFAULTS | {"top_n": 0, "return_documents": True, "instruct": None},
        )
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    },
    "TEI rerank": Written(
        "/rerank",
        {"query": PROMPT, "texts": [ANSWER, OTHER]},
        {
            "raw_scores": (True, of_sigmoid),
            "return_text": (True, lambda _plain, reply: OTHER in json.dumps(reply)),
        },
        ("truncation_direction",),
        {"truncate": True, "truncation_direction": "right", "raw_scores": False, "return_text": False},
    ),
    "TEI predict": Written(
        "/predict",
        {"inputs": [PROMPT, ANSWER]},
        {"raw_scores": (True, of_sigmoid)},
        ("truncation_direction",),
        {"truncate": True, "truncation_direction": "right", "raw_scores": False},
    ),
    "KServe": Written(
        "/v2/models/echo/infer",
        {"inputs": [TENSOR]},
        {"id": ("i-7", is_there("i-7"))},
        ("parameters",),
        {"outputs": [{"name": "rewards", "parameters": {"binary_data": False}}]},
    ),
    "KServe, a version": Written(
        "/v2/models/echo/versions/1/infer", {"inputs": [TENSOR]}, {"id": ("i-7", is_there("i-7"))}, ("parameters",)
    ),
    "ours": Written(
        "/score",
        {"samples": [{"prompt": PROMPT.strip(), "response": ANSWER}]},
        {name: (value, lambda *_: True) for name, value in (("run", "r"), ("step", 7), ("kl", 0.5))},
    ),
    "ours, compared": Written(
        "/compare",
        {"comparisons": [{"prompt": PROMPT.strip(), "responses": [ANSWER, OTHER]}]},
        {
            "run": ("r", lambda *_: True),
            "step": (7, lambda *_: True),
            "tie_margin": (1e6, lambda plain, reply: [r["results"][0]["winner"] for r in (plain, reply)] == [1, None]),
        },
    ),
}  # fmt: skip
"""`run`, `step` and `kl` are for the trip wires: tests/integration/test_server_runs.py sees them arrive."""

TRUNCATES = {"TEI rerank": {"query": LONG, "texts": [ANSWER]}, "TEI predict": {"inputs": [LONG, ANSWER]}}
"""Forms with `truncate`, and a text that is too long."""

VALUES: dict[str, Any] = {
    # ours
    "samples": [{"text": OTHER}], "comparisons": [{"prompt": "a", "responses": ["b", "c"]}], "run": "r", "step": 7, "kl": 0.5,
    "tie_margin": 1.5, "id": "i-7", "prompt": OTHER, "response": OTHER, "messages": TURNS, "text": OTHER, "input_ids": [65],
    "finish_reason": "length", "reference_rewards": [1.0], "score_empty": True,
    # OpenRLHF, align-anything, slime, LLaMA-Factory
    "query": [OTHER], "prompts": ["a", "b", "c"], "responses": [OTHER], "labels": ["x"], "golden_response": ["x"],
    "golden_responses": ["x"], "label": "x", "max_length": 10,
    # vLLM
    "input": OTHER, "request_id": "r-7", "use_activation": True, "activation": True, "softmax": True,
    "truncate_prompt_tokens": 10, "padding": "max_length", "truncation_side": "right", "priority": 3, "cache_salt": "s",
    "mm_processor_kwargs": {"a": 1}, "media_io_kwargs": {"a": {"b": 1}}, "add_special_tokens": True, "add_generation_prompt": True,
    "continue_final_message": True, "chat_template": "x", "chat_template_kwargs": {"a": 1}, "encoding_format": "base64",
    "embed_dtype": "float16", "endianness": "big", "dimensions": 8, "task": "embed", "normalize": True, "user": "u",
    "text_1": OTHER, "text_2": OTHER, "data_1": OTHER, "data_2": OTHER, "queries": OTHER, "documents": [OTHER],
    "top_n": 1, "return_documents": False, "max_tokens_per_query": 3, "max_tokens_per_doc": 3, "data": OTHER,
    "instruction": "be kind", "logit_bias": 1.5, "step_tag_id": 5, "returned_token_ids": [5],
    # SGLang
    "rid": "r-7", "sampling_params": {"temperature": 2.0}, "image_data": "AA", "video_data": "AA", "audio_data": "AA",
    "input_embeds": [[0.5]], "modalities": ["image"], "log_metrics": False, "no_logs": True, "is_cross_encoder_request": True,
    "routing_key": "k", "background": True, "external_trace_header": {"a": "b"}, "lora_path": "other", "lora_id": "other",
    "items": [OTHER], "label_token_ids": [5], "apply_softmax": True, "item_first": True, "return_pooled_hidden_states": True,
    "instruct": "be kind", "extra_key": "k", "data_parallel_rank": 1, "routed_dp_rank": 1, "custom_labels": {"a": "b"},
    "embed_overrides": [[0.5]], "token_type_ids": [1],
    # text-embeddings-inference
    "inputs": OTHER, "truncate": False, "truncation_direction": "left", "raw_scores": True, "return_text": True,
    "texts": [OTHER], "prompt_name": "query",
    # KServe, NeMo-Gym
    "outputs": [{"name": "scores"}], "parameters": {"x": 1}, "responses_create_params": {"input": "a"}, "mask_sample": True,
    # Cohere, Jina
    "rank_fields": ["title"], "max_chunks_per_doc": 2, "overlap_tokens": 5,
}  # fmt: skip
"""A value of each that would matter to a server that reads it. `model` is held to a rule of its own: test_model_names.py."""

by_form = pytest.mark.parametrize("name", FORMS)


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo", "echo", "--max-input-tokens=200") as running:
        yield running


def ask(server, name, **more):
    return server.client.post(FORMS[name].path, json=FORMS[name].body | more)


def plain_of(server, name):
    reply = ask(server, name)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_every_form_of_the_server_is_here():
    """By its path and the fields that hold what is scored."""
    written = {(form.path, name) for form in FORMS.values() for name in form.body}
    for dialect in DIALECTS:
        path = dialect.path.replace("{model:path}", "echo").replace("{version}", "1")
        if path != "/verify":  # below
            assert {(path, name) for form in dialect.body_formats for name in form.text_fields} <= written, path


def test_every_field_that_a_form_reads_has_a_value_here():
    for dialect in DIALECTS:
        for form in dialect.body_formats:
            assert {*form.read_fields, *(form.ignored_fields or ()), *form.accepted_values} <= {*VALUES, "model"}


@by_form
def test_every_other_field_is_refused_by_name_or_has_its_effect(server, name):
    plain = plain_of(server, name)
    for read in VALUES:
        if read not in FORMS[name].body:
            check_field(server, name, read, plain)


def check_field(server, name, field, plain):
    form = FORMS[name]
    value, has_effect = form.effect.get(field, (VALUES[field], None))
    reply = ask(server, name, **{field: value})
    said = (field, reply.text)
    if has_effect is not None:
        assert reply.status_code == 200 or has_effect is limited, said
        assert has_effect(plain, reply.json()), said
    elif field in form.no_effect:
        assert reply.status_code == 200, said
        assert scores(reply.json()) == scores(plain), said
    elif field == "truncate" and name in TRUNCATES:
        answers = [server.client.post(form.path, json=TRUNCATES[name] | {"truncate": each}) for each in (True, False)]
        assert [answer.status_code for answer in answers] == [200, 422]
    else:
        assert reply.status_code == 422, said
        # On /score a body with samples is ours, so there the other field is the one that is not read.
        assert field in reply.text or (field == "samples" and form.path == "/score"), said
        assert "retry-after" not in reply.headers, said


@by_form
def test_what_clients_of_a_format_send_with_every_request_is_accepted(server, name):
    plain, form = plain_of(server, name), FORMS[name]
    for more in ({key: value} for key, value in form.accepted_values.items()):
        reply = ask(server, name, **more)
        assert reply.status_code == 200, reply.text
        assert scores(reply.json()) == scores(plain), more
    reply = ask(server, name, **form.accepted_values)
    assert reply.status_code == 200, reply.text


@by_form
def test_every_field_that_holds_what_is_scored_is_read(server, name):
    plain, form = plain_of(server, name), FORMS[name]
    for read, value in form.body.items():
        other = json.loads(json.dumps(value).replace("Why", "How").replace("Because", "Perhaps").replace("65", "66"))
        reply = ask(server, name, **{read: other})
        assert reply.status_code == 200, reply.text
        if form.path == "/compare":
            assert reply.json()["results"] != plain["results"]
        else:
            assert scores(reply.json()) != scores(plain)


@by_form
def test_a_body_of_two_forms_is_refused(server, name):
    first = FORMS[name]
    for second in FORMS.values():
        if first.path == second.path and first.body.keys() != second.body.keys():
            reply = server.client.post(first.path, json=second.body | first.body)
            assert reply.status_code == 422, reply.text
            assert any(field in reply.text for field in second.body.keys() ^ first.body.keys()), reply.text


# -- what a table of names cannot say -----------------------------------------------------------------------------------


def test_a_pair_is_never_scored_the_wrong_way_round(server):
    body = {"queries": [PROMPT], "items": [ANSWER]}
    plain = server.client.post("/v1/score", json=body).json()["data"][0]["score"]
    assert plain == echo_score((*TEXT.encode(), 0))
    reply = server.client.post("/v1/score", json=body | {"item_first": True})
    assert reply.status_code == 422
    assert "item_first" in reply.text


@pytest.mark.parametrize("path", ["/classify", "/v1/classify", "/pooling", "/v1/score", "/rerank"])
def test_names_of_one_thing_must_agree(server, path):
    body = next(form.body for form in FORMS.values() if form.path == path and "use_activation" in form.effect)
    older = (
        "softmax"
        if "softmax" in FORMS["vLLM classify, input"].effect and "score" not in path and "rank" not in path
        else "activation"
    )
    for first, second in ((True, False), (False, True)):
        reply = server.client.post(path, json=body | {"use_activation": first, older: second})
        assert reply.status_code == 422, reply.text
        assert older in reply.text
    assert server.client.post(path, json=body | {"use_activation": True, older: True}).status_code == 200


@pytest.mark.parametrize("path", ["/classify", "/pooling", "/v1/score", "/rerank"])
def test_a_limit_at_which_nothing_is_left_is_refused(server, path):
    body = next(form.body for form in FORMS.values() if form.path == path and "truncate_prompt_tokens" in form.effect)
    reply = server.client.post(path, json=body | {"truncate_prompt_tokens": 0})
    assert reply.status_code == 422
    assert "truncate_prompt_tokens" in reply.text
    assert server.client.post(path, json=body | {"truncate_prompt_tokens": -1}).status_code == 200


def test_prompts_that_are_not_as_many_as_the_texts_are_refused(server):
    for prompts in ([PROMPT, PROMPT], [PROMPT] * 3):
        reply = server.client.post("/get_reward", json={"query": [TEXT], "prompts": prompts})
        assert reply.status_code == 422
        assert reply.json()["error"]["field"] == "prompts"
    for none in ({}, {"prompts": None}, {"prompts": []}):
        assert server.client.post("/get_reward", json={"query": [TEXT], **none}).status_code == 200
    assert server.client.post("/get_reward", json={"query": [], "prompts": [], "labels": []}).json()["rewards"] == []


def test_names_of_texts_come_back_one_each(server):
    reply = server.client.post("/classify", json={"text": [TEXT, ANSWER], "rid": ["a", "b"]}).json()
    assert [each["meta_info"]["id"] for each in reply] == ["a", "b"]
    for rid in ("a", ["a"], ["a", "b", "c"]):
        assert server.client.post("/classify", json={"text": [TEXT, ANSWER], "rid": rid}).status_code == 422


# -- a sample of ours ---------------------------------------------------------------------------------------------------

SAMPLES = {
    "prompt": {"prompt": "Why?", "response": ANSWER},
    "messages": {"messages": TURNS},
    "text": {"text": TEXT},
    "input_ids": {"input_ids": [65, 66, 67]},
}
FURTHER = {"prompt": "Why?", "response": OTHER, "messages": TURNS, "text": OTHER, "input_ids": [66]}


@pytest.mark.parametrize("form", SAMPLES)
@pytest.mark.parametrize("field", FURTHER)
def test_a_sample_of_two_forms_has_no_score(server, form, field):
    if field not in SAMPLES[form]:
        (result,) = server.score(SAMPLES[form] | {field: FURTHER[field]}).json()["results"]
        assert result["reward"] is None
        assert result["error"]["code"] == "ambiguous_sample", result


@pytest.mark.parametrize("form", SAMPLES)
def test_a_sample_that_was_cut_off_has_no_end_token(server, form):
    plain, cut = server.score(SAMPLES[form], SAMPLES[form] | {"finish_reason": "length"}).json()["results"]
    assert (plain["missing_end"], cut["missing_end"]) == (False, True)
    assert plain["raw"] != cut["raw"]


# -- an episode ---------------------------------------------------------------------------------------------------------


def verify(server, asked=None, response=None):
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ANSWER}]}
    body = {
        "responses_create_params": {"input": "Why?", **(asked or {})},
        "response": {"id": "r", "object": "response", "output": [said], **(response or {})},
    }
    return server.client.post("/verify?on_failure=refuse", json=body)


def test_what_a_response_repeats_must_be_what_the_request_said(server):
    plain = verify(server, {"instructions": "Be brief."}).json()["reward"]
    same = verify(server, {"instructions": "Be brief."}, {"instructions": "Be brief."})
    assert same.json()["reward"] == plain
    for asked in ({}, {"instructions": "Be long."}):
        reply = verify(server, asked, {"instructions": "Be brief."})
        assert reply.status_code == 422
        assert "response.instructions" in reply.text
    assert verify(server, {}, {"instructions": None}).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]), ("prompt", {"id": "p"}), ("conversation", {"id": "c"}),
        ("previous_response_id", "r-1"), ("input", [{"role": "user", "content": "How?"}]), ("anything_new", 1),
    ],
)  # fmt: skip
def test_a_field_of_a_response_that_is_not_read_is_refused(server, field, value):
    reply = verify(server, {}, {field: value})
    assert reply.status_code == 422, reply.text
    assert f"response.{field}" in reply.text


def test_what_a_response_says_of_itself_is_let_through(server):
    plain = verify(server).json()["reward"]
    usual = {
        "created_at": 1.0, "model": "policy", "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "status": "completed",
        "error": None, "incomplete_details": None, "metadata": {}, "temperature": 1.0, "top_p": 1.0, "max_output_tokens": 9,
        "previous_response_id": None, "reasoning": {"effort": "low"}, "text": {"format": {"type": "text"}},
        "truncation": "disabled",
        "usage": {"input_tokens": 1}, "user": None, "service_tier": "auto", "background": False, "top_logprobs": 0,
    }  # fmt: skip
    for repeated, value in usual.items():
        assert verify(server, {}, {repeated: value}).json().get("reward") == plain, repeated
