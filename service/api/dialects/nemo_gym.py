"""`POST /verify`: a resources server of NeMo-Gym, one episode a request, in the format of OpenAI's Responses API.

The reply is the request with `reward` and `mask_sample` added (`nemo_gym/base_resources_server`). Gym requires a number
even for an episode without a score. Such an episode is masked: at the top level, where recent versions of Gym read the mask with
`failure_kind` and `failure_reason`, and in `instance_config`, where NeMo-RL reads it (`_extract_mask_sample_flags`). Its reward is
the lowest that this server gives, so that an agent which ignores the mask cannot gain by failing. If there is no lowest reward,
or with `?on_failure=refuse` or the setting of that name, the request is refused.

NeMo-RL ends a run whose `reward` is not the sum of its `reward_components`, so these are sent only if they add up to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, UnsetType

from rewardserve.model.conversation import FinishReason, InvalidMessages, Message, Sample
from rewardserve.service.api.dialects.dialect import (
    BodyFormat,
    Dialect,
    ScoredRequest,
    as_request_error,
    sample_or_error,
    score_of,
)
from rewardserve.service.api.dialects.turns import check_known_fields, text_of, turns_of, type_of
from rewardserve.service.api.field_docs import PROMPT, RESPONSE, doc
from rewardserve.service.api.schemas.errors import ERROR, ErrorOut, error_out
from rewardserve.service.api.schemas.record import ReplyRecord, with_fields
from rewardserve.service.api.validation import type_fault
from rewardserve.service.errors import Failure, SampleRefused
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.scoring import SampleOrError, SampleResult

EpisodeBody = Annotated[
    dict[str, Any],
    msgspec.Meta(
        extra_json_schema={
            "required": ["responses_create_params", "response"],
            "properties": {
                "responses_create_params": {
                    "type": "object",
                    "description": "the request to the policy, as in OpenAI's Responses API: `input`, `instructions`",
                    "examples": [{"input": [{"role": "user", "content": PROMPT}]}],
                },
                "response": {
                    "type": "object",
                    "description": "the response of the policy, as in OpenAI's Responses API: `output`",
                    "examples": [
                        {
                            "output": [
                                {
                                    "type": "message",
                                    "role": "assistant",
                                    "content": [{"type": "output_text", "text": RESPONSE}],
                                }
                            ]
                        }
                    ],
                },
                "agent_ref": {
                    "type": "object",
                    "description": "the agent of the episode, whose `name` is the task of the sample",
                    "examples": [{"type": "responses_api_agents", "name": "math_simple_agent"}],
                },
                "mask_sample": {
                    "type": "boolean",
                    "description": "true: the episode is masked already, and stays masked",
                    "examples": [False],
                },
                "instance_config": {
                    "type": "object",
                    "description": "returned with `mask_sample` added, where NeMo-RL reads it",
                    "examples": [{"mask_sample": False}],
                },
            },
        }
    ),
]
"""Plain JSON, since the reply repeats it unchanged."""


class EpisodeReply(ReplyRecord, frozen=True, gc=False):
    """The request, with these fields added."""

    FURTHER_FIELDS: ClassVar[Mapping[str, Any] | None] = {"description": "the fields of the request, unchanged"}

    reward: Annotated[float, doc("the reward; of a masked episode the lowest that this server gives", 0.41)]
    mask_sample: Annotated[bool, doc("whether the episode is masked, as it has no score or was masked before", False)]
    instance_config: Annotated[
        Mapping[str, Any], doc("that of the request with `mask_sample`, where NeMo-RL reads it", {"mask_sample": False})
    ]
    failure_kind: Annotated[Any, doc("kind of the failure; null without one", "rewardserve:empty_response")]
    failure_reason: Annotated[Any, doc("message of the failure; null without one", "the response is empty")]
    reward_components: Annotated[
        Mapping[str, float] | UnsetType,
        doc("contribution of each head; only where they add up to the reward", {"helpful": 0.3, "harmless": 0.11}),
    ] = UNSET
    failure_class: Annotated[
        str | UnsetType, doc("class of the failure, for NeMo-Gym; only with one", "reward_empty_response")
    ] = msgspec.field(default=UNSET, name="_ng_failure_class")
    error: Annotated[ErrorOut | UnsetType, doc("error of the sample; only with one", ERROR)] = UNSET


_REQUEST_FIELDS = frozenset({
    "input", "instructions", "background", "include", "max_output_tokens", "max_tool_calls", "metadata", "model",
    "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "reasoning", "safety_identifier", "service_tier",
    "store", "stream", "stream_options", "temperature", "text", "tool_choice", "top_logprobs", "top_p", "truncation", "user",
})  # fmt: skip
"""Fields of a request to the policy that are not a part of its prompt. tools, prompt, conversation and previous_response_id are."""

_ITEM_FIELDS = frozenset({
    "id", "phase", "status", "type", "generation_log_probs", "generation_token_ids", "prompt_token_ids", "routed_experts",
})  # fmt: skip
"""Fields of an item besides role and content; the last four are for training."""

_REPEATED_FIELDS = frozenset({"input", "instructions"})
_RESPONSE_FIELDS = frozenset({
    "id", "object", "created_at", "completed_at", "output", "output_text", "status", "error", "incomplete_details", "usage",
    "billing", "moderation", "content_filters",
})  # fmt: skip
"""Fields of a response besides the repeated fields of its request."""

_SKIPPED_ITEMS = frozenset({"reasoning"})
"""Types of output that the user does not see, and that are not in the training data of reward models."""


def _to_samples(body: EpisodeBody, _runtime: ModelRuntime) -> list[SampleOrError]:
    requested, response = body["responses_create_params"], body["response"]
    for field, value in (("responses_create_params", requested), ("response", response)):
        if not isinstance(value, dict):
            raise type_fault(field, "object", value)
    _check_mask(body)
    finish: FinishReason = "length" if response.get("incomplete_details") else "stop"
    return [sample_or_error(lambda: _sample(requested, response, finish))]


def _tasks(body: EpisodeBody) -> tuple[str | None]:
    """The name of the agent, one for each environment of a training (`agent_ref` of a row of the data set)."""
    agent = body.get("agent_ref")
    name = agent.get("name") if isinstance(agent, dict) else None
    return (name if isinstance(name, str) else None,)


def _check_mask(body: EpisodeBody) -> None:
    """Raise `InvalidRequest` for a mask that is not true, false or null, and for an `instance_config` that is not an object."""
    config = body.get("instance_config")
    if config is not None and not isinstance(config, dict):
        raise type_fault("instance_config", "object", config)  # the reply has the mask in it
    for field, holder in (("mask_sample", body), ("instance_config.mask_sample", _instance_config(body))):
        if not isinstance(mask := holder.get("mask_sample"), bool | None):
            raise type_fault(field, "bool", mask)


_FINISHED_STATUSES = (None, "completed", "incomplete")
"""Statuses of a response that can be scored, cut off or not."""


def _sample(requested: dict[str, Any], response: dict[str, Any], finish: FinishReason) -> Sample:
    if response.get("status") not in _FINISHED_STATUSES or response.get("error") is not None:
        raise InvalidMessages("the policy's response failed or did not end: there is nothing to score")
    before = _prompt_messages(requested)
    _check_response(response, requested)
    messages = (*before, *_response_messages(response.get("output"), len(before)))
    return Sample(messages=messages, finish_reason=finish)  # an empty answer is masked, not scored


def _check_response(response: dict[str, Any], requested: dict[str, Any]) -> None:
    """Check the fields of a response. It repeats its request; its prompt must be equal to that of the request."""
    not_repeated = {
        name: value for name, value in response.items() if name not in _REPEATED_FIELDS or value != requested.get(name)
    }
    check_known_fields(not_repeated, _RESPONSE_FIELDS | (_REQUEST_FIELDS - _REPEATED_FIELDS), "response", 0)


def _prompt_messages(requested: dict[str, Any]) -> tuple[Message, ...]:
    """Build the messages of the prompt."""
    check_known_fields(requested, _REQUEST_FIELDS, "responses_create_params", 0)
    given, instructions = requested.get("input"), requested.get("instructions")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise InvalidMessages("input must be a text or a list of messages")
    if not isinstance(instructions, str | None):
        raise InvalidMessages("instructions must be a text")
    system = (Message("system", instructions),) if instructions else ()
    return (*system, *turns_of([_message(i, item) for i, item in enumerate(given)], _ITEM_FIELDS))


def _response_messages(output: object, n_before: int) -> tuple[Message, ...]:
    """Build the response of the policy: its messages are joined to one turn."""
    if not isinstance(output, list):
        raise InvalidMessages("output must be a list")
    items = [item for i, item in enumerate(output) if _kind(item, f"response.output[{i}]") not in _SKIPPED_ITEMS]
    messages = [_message(n_before + i, item, "assistant") for i, item in enumerate(items)]
    for i, item in enumerate(messages, n_before):
        check_known_fields(item, _ITEM_FIELDS | {"role", "content"}, f"messages[{i}]", i)
    texts = [text_of(i, item.get("content")) for i, item in enumerate(messages, n_before)]
    return (Message("assistant", "\n\n".join(texts)),)


def _kind(item: object, where: str) -> str | None:
    return type_of(item, where) if isinstance(item, dict) else None


def _message(index: int, item: object, role: str | None = None) -> dict[str, Any]:
    if not isinstance(item, dict) or (_kind(item, f"responses_create_params.input[{index}]") or "message") != "message":
        raise InvalidMessages(f"item {index} is not a message: only text is scored, no tool calls", index=index)
    if role is not None and item.get("role", role) != role:
        raise InvalidMessages(f"item {index} of the response does not have the role {role}", index=index)
    return item


def _to_reply(body: EpisodeBody, scored_request: ScoredRequest) -> EpisodeBody:
    (result,) = scored_request.results
    if result.failure is not None:
        return with_fields(_masked_reply(body, result.failure, scored_request), body)
    # An episode that is masked in the request stays masked.
    is_masked = body.get("mask_sample") is True or _instance_config(body).get("mask_sample") is True
    reply = EpisodeReply(
        score_of(0, result, scored_request.score_kind),
        is_masked,
        _masked_config(body, is_masked),
        body.get("failure_kind"),
        body.get("failure_reason"),
        _components(result, scored_request) or UNSET,
    )
    return with_fields(reply, body)


def _masked_config(body: EpisodeBody, is_masked: bool) -> Mapping[str, Any]:
    return {**_instance_config(body), "mask_sample": is_masked}


def _instance_config(body: EpisodeBody) -> Mapping[str, Any]:
    """Return the configuration of the episode, empty if the body has none."""
    config = body.get("instance_config")
    return config if isinstance(config, dict) else {}


def _masked_reply(body: EpisodeBody, failure: Failure, scored_request: ScoredRequest) -> EpisodeReply:
    if scored_request.options.get("on_failure") == "refuse":
        raise as_request_error(0, failure)
    lowest = scored_request.runtime.pipeline.cap_low if scored_request.score_kind == "reward" else None
    refused = as_request_error(0, failure)
    if lowest is None or not isinstance(refused, SampleRefused):
        raise refused
    return EpisodeReply(
        lowest,
        True,
        _masked_config(body, True),
        f"rewardserve:{failure.code}",
        failure.message,
        failure_class=f"reward_{failure.code}",
        error=error_out(failure.code, failure.message, failure.details),
    )


def _components(result: SampleResult, scored_request: ScoredRequest) -> dict[str, float]:
    """Return the contribution of each head by name if the score is the weighted sum of several heads, else nothing.

    All episodes of a server have the same components, as GDPO needs the same objectives for each.
    """
    runtime = scored_request.runtime
    pipeline, heads = runtime.pipeline, runtime.loaded.identity.heads
    is_raw = scored_request.score_kind == "raw" or (
        scored_request.score_kind == "reward" and not pipeline.normalizes and not pipeline.stages
    )
    if len(heads) < 2 or not is_raw or pipeline.combination.method != "sum" or result.heads is None:
        return {}
    return {name: weight * result.heads[name] for name, weight in heads}


_EPISODE = BodyFormat(
    text_fields=("responses_create_params", "response"),
    body=EpisodeBody,
    to_samples=_to_samples,
    to_reply=_to_reply,
    replies=(EpisodeReply,),
    ignored_fields=None,  # an episode has the columns of its data set
    model=lambda _body: None,
    tasks=_tasks,
)

VERIFY = Dialect(
    path="/verify",
    clients="NeMo-Gym",
    body_formats=(_EPISODE,),
    score_kind="reward",
    example_reply={
        "reward": 0.41,
        "mask_sample": False,
        "instance_config": {"mask_sample": False},
        "failure_kind": None,
    },
    options={"on_failure": frozenset({"mask", "refuse"})},
)
