"""`POST /verify`: a resources server of NeMo-Gym, one episode a request, in the shapes of OpenAI's Responses.

The reply is the request with `reward` and `mask_sample` beside it (`nemo_gym/base_resources_server`). Gym demands a number
even where there is none. An episode that cannot be scored is masked: at the top level, where Gym has the mask since it has
`failure_kind` and `failure_reason`, and in `instance_config`, where NeMo-RL reads it (`_extract_mask_sample_flags`). The number
beside the mask is the lowest that this server gives, so that an agent which looks at no mask cannot gain by failing. Where
there is no lowest, or `?on_failure=refuse` or the setting behind it says so, the request is refused.

NeMo-RL ends a run whose `reward` is not the sum of its `reward_components`, so these are sent where they add up to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from rewardserve.service.errors import Failure, InvalidRequest, SampleRefused
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.scoring import SampleOrError, SampleResult

EpisodeBody = dict[str, Any]
"""Echoed as it came, so it is read as it came."""

_REQUEST_FIELDS = frozenset({
    "input", "instructions", "background", "include", "max_output_tokens", "max_tool_calls", "metadata", "model",
    "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "reasoning", "safety_identifier", "service_tier",
    "store", "stream", "stream_options", "temperature", "text", "tool_choice", "top_logprobs", "top_p", "truncation", "user",
})  # fmt: skip
"""What may be asked of a policy and is no part of its prompt; not: tools, prompt, conversation, previous_response_id."""

_ITEM_FIELDS = frozenset({
    "id", "phase", "status", "type", "generation_log_probs", "generation_token_ids", "prompt_token_ids", "routed_experts",
})  # fmt: skip
"""What an item has beside its role and its content; the last four are for training."""

_REPEATED_FIELDS = frozenset({"input", "instructions"})
_RESPONSE_FIELDS = frozenset({
    "id", "object", "created_at", "completed_at", "output", "output_text", "status", "error", "incomplete_details", "usage",
    "billing", "moderation", "content_filters",
})  # fmt: skip
"""What a response has beside the settings that it repeats."""

_FAILURE_CLASS = "_ng_failure_class"
_SKIPPED_ITEMS = frozenset({"reasoning"})
"""Output that is not for the user, and was not there when the reward model was trained."""


def _to_samples(body: EpisodeBody, _served: ModelRuntime) -> list[SampleOrError]:
    requested, response = body["responses_create_params"], body["response"]
    if not isinstance(requested, dict) or not isinstance(response, dict):
        raise InvalidRequest("send responses_create_params and response, objects both", field="response")
    _check_mask(body)
    finish: FinishReason = "length" if response.get("incomplete_details") else "stop"
    return [sample_or_error(lambda: _sample(requested, response, finish))]


def _check_mask(body: EpisodeBody) -> None:
    """Raise `InvalidRequest` for a mask that is neither true, false nor null, and for an `instance_config` that can hold none."""
    config = body.get("instance_config")
    if config is not None and not isinstance(config, dict):
        raise InvalidRequest(
            "instance_config: Expected `object | null`: the mask is written there", field="instance_config"
        )
    for field, holder in (("mask_sample", body), ("instance_config.mask_sample", _instance_config(body))):
        if not isinstance(holder.get("mask_sample"), bool | None):
            raise InvalidRequest(f"{field}: Expected `bool | null`", field=field)


_FINISHED_STATUSES = (None, "completed", "incomplete")
"""Statuses of a response that is an answer, cut off or not."""


def _sample(requested: dict[str, Any], response: dict[str, Any], finish: FinishReason) -> Sample:
    if response.get("status") not in _FINISHED_STATUSES or response.get("error") is not None:
        raise InvalidMessages("the policy's response failed or did not end: there is no answer to score")
    before = _prompt_messages(requested)
    _check_response(response, requested)
    messages = (*before, *_response_messages(response.get("output"), len(before)))
    return Sample(messages=messages, finish_reason=finish)  # an empty answer is masked, not scored


def _check_response(response: dict[str, Any], requested: dict[str, Any]) -> None:
    """A response repeats the request that it answers; what it says of the prompt must be what the request says."""
    own = {
        name: value for name, value in response.items() if name not in _REPEATED_FIELDS or value != requested.get(name)
    }
    check_known_fields(own, _RESPONSE_FIELDS | (_REQUEST_FIELDS - _REPEATED_FIELDS), "response", 0)


def _prompt_messages(requested: dict[str, Any]) -> tuple[Message, ...]:
    """What the policy was given."""
    check_known_fields(requested, _REQUEST_FIELDS, "responses_create_params", 0)
    given, instructions = requested.get("input"), requested.get("instructions")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise InvalidMessages("input is neither a text nor a list of messages")
    if not isinstance(instructions, str | None):
        raise InvalidMessages("instructions is no text")
    system = (Message("system", instructions),) if instructions else ()
    return (*system, *turns_of([_message(i, item) for i, item in enumerate(given)], _ITEM_FIELDS))


def _response_messages(output: object, n_before: int) -> tuple[Message, ...]:
    """What the policy answered: messages one after the other are one turn."""
    if not isinstance(output, list):
        raise InvalidMessages("output is no list")
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
        raise InvalidMessages(f"item {index} is no message: only text is scored, no calls of tools", index=index)
    if role is not None and item.get("role", role) != role:
        raise InvalidMessages(f"item {index} of the answer is not the {role}'s", index=index)
    return item


def _to_reply(body: EpisodeBody, scored_request: ScoredRequest) -> EpisodeBody:
    (result,) = scored_request.results
    if result.failure is not None:
        return {**body, **_masked_reply(body, result.failure, scored_request)}
    # Whoever masked the episode before it came here knew why.
    is_masked = body.get("mask_sample") is True or _instance_config(body).get("mask_sample") is True
    failure_fields = {"failure_kind": body.get("failure_kind"), "failure_reason": body.get("failure_reason")}
    components = _components(result, scored_request)
    return {
        **body,
        "reward": score_of(0, result, scored_request.score_kind),
        **({"reward_components": components} if components else {}),
        **_mask(body, is_masked),
        **failure_fields,
    }


def _mask(body: EpisodeBody, is_masked: bool) -> EpisodeBody:
    config = {**_instance_config(body), "mask_sample": is_masked}
    return {"mask_sample": is_masked, "instance_config": config}


def _instance_config(body: EpisodeBody) -> Mapping[str, Any]:
    """What the episode was made of, where the body has that as an object."""
    config = body.get("instance_config")
    return config if isinstance(config, dict) else {}


def _masked_reply(body: EpisodeBody, failure: Failure, scored_request: ScoredRequest) -> EpisodeBody:
    if scored_request.options.get("on_failure") == "refuse":
        raise as_request_error(0, failure)
    lowest = scored_request.served.pipeline.cap_low if scored_request.score_kind == "reward" else None
    refused = as_request_error(0, failure)
    if lowest is None or not isinstance(refused, SampleRefused):
        raise refused
    return {
        "reward": lowest,
        **_mask(body, True),
        "failure_kind": f"rewardserve:{failure.code}",
        "failure_reason": failure.message,
        _FAILURE_CLASS: f"reward_{failure.code}",
        "error": {"code": failure.code, "message": failure.message, **failure.details},
    }


def _components(result: SampleResult, scored_request: ScoredRequest) -> dict[str, float]:
    """What each head adds to the number, by name, where the number is their weighted sum and there are several; else nothing.

    The same for every episode of a server: GDPO wants the same objectives for each.
    """
    served = scored_request.served
    pipeline, heads = served.pipeline, served.loaded.identity.heads
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
    ignored_fields=None,  # an episode carries the columns of its data set
    model=lambda _body: None,
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
