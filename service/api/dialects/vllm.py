"""`POST /classify` and `POST /pooling` of vLLM, and `/classify` of SGLang, distinguished by their fields.

vLLM reads `input` or `messages`, SGLang `text` or `input_ids`. The default of vLLM is a sigmoid of the score unless the
checkpoint declares a regression; here the default is the raw score, as for every reward model that declares one.
The contract fixes special tokens, template and truncation: the end token, at which the score is read, is never cut off.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

import msgspec

from rewardserve.model.conversation import SCORE_EMPTY_OPTIONS, FinishReason, Sample, SampleOptions
from rewardserve.service.api.dialects.dialect import BodyFormat, Dialect, ModelName, ScoredRequest, sample_or_error
from rewardserve.service.api.dialects.openai import (
    EXAMPLE_USAGE,
    IDS_OR_ROWS,
    IGNORED_FIELDS,
    VECTORS,
    Inputs,
    TokenUsage,
    VectorEncoding,
    samples_of,
    usage,
    vector,
)
from rewardserve.service.api.dialects.turns import turns_of
from rewardserve.service.api.field_docs import CHECKPOINT, MESSAGES, RENDERED, doc
from rewardserve.service.api.requests import MAX_TOKENS
from rewardserve.service.api.schemas.record import ReplyRecord
from rewardserve.service.errors import InvalidRequest
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.scoring import SampleOrError

LABEL = "LABEL_0"
"""The label that transformers gives to the output of a model with one output."""

TRUNCATION_FIELDS = frozenset({"padding", "truncation_side"})
"""Fields of vLLM that are ignored because the contract fixes their effect."""

_TOKEN_FIELDS = TRUNCATION_FIELDS | {"add_special_tokens"}
_CHAT_DEFAULTS: dict[str, tuple[object, ...]] = {"add_generation_prompt": (False,), "continue_final_message": (False,)}
"""Fields of a format with messages, with their defaults."""


_ACTIVATIONS = ("use_activation", "activation", "softmax")
"""The names of this field in versions of vLLM; for one score each means the sigmoid."""

Softmax = Annotated[bool | None, doc("oldest name of use_activation; for one score it means the sigmoid", False)]


class VllmRequest(msgspec.Struct, frozen=True, gc=False):
    """The common fields of vLLM's requests. -1 of `truncate_prompt_tokens` means the limit of the model."""

    model: ModelName = None
    request_id: Annotated[str, doc("returned as a part of the id of the reply", "step-120-a")] = ""
    use_activation: Annotated[
        bool | None, doc("true: return the sigmoid of the raw score; default: the raw score", False)
    ] = None
    activation: Annotated[bool | None, doc("older name of use_activation", False)] = None
    truncate_prompt_tokens: Annotated[
        Annotated[int, msgspec.Meta(ge=-1, le=MAX_TOKENS)] | None,
        doc("lower limit in tokens: the prompt is cut from the left, never the end; -1: the limit of the model", 2048),
    ] = None

    @property
    def options(self) -> SampleOptions:
        """The options of the samples. Raise `InvalidRequest` for a limit of 0 tokens."""
        limit = self.truncate_prompt_tokens
        if limit == 0:
            raise InvalidRequest(
                "truncate_prompt_tokens: 0 leaves nothing to score: send 1 or more, or -1 for the limit of the model",
                field="truncate_prompt_tokens",
            )
        return SampleOptions(max_tokens=limit if limit is not None and limit > 0 else None, scores_empty=True)


def wants_activation(body: Any) -> bool | None:
    """Whether a body requests the sigmoid. Raise `InvalidRequest` if two of the names have different values."""
    requested = {name: value for name in _ACTIVATIONS if (value := getattr(body, name, None)) is not None}
    if len(set(requested.values())) > 1:
        first, second, *_ = requested
        raise InvalidRequest(
            f"{' and '.join(requested)} mean the same and have different values: send {first} only", field=second
        )
    return next(iter(requested.values()), None)


class InputRequest(VllmRequest, frozen=True, gc=False, kw_only=True):
    """vLLM's fields for rendered texts or token ids."""

    input: Inputs
    softmax: Softmax = None


class MessagesRequest(VllmRequest, frozen=True, gc=False, kw_only=True):
    """vLLM's fields for one conversation.

    A chat template in the request is refused: with another template the score would not be the trained one.
    """

    messages: Annotated[
        list[dict[str, Any]], doc("a conversation; the last message is the assistant's and is scored (vLLM)", MESSAGES)
    ]
    continue_final_message: Annotated[bool, doc("true: the policy was cut off, so no end token is added", False)] = (
        False
    )
    softmax: Softmax = None


class PoolingInputRequest(InputRequest, frozen=True, gc=False, kw_only=True):
    """`InputRequest`, with the encoding of the numbers."""

    encoding_format: VectorEncoding = "float"


class PoolingMessagesRequest(MessagesRequest, frozen=True, gc=False, kw_only=True):
    """`MessagesRequest`, with the encoding of the numbers."""

    encoding_format: VectorEncoding = "float"


class SglangRequest(msgspec.Struct, frozen=True, gc=False):
    """The common fields of SGLang's requests. `rid` is the id of the request, or the ids of its texts."""

    model: ModelName = None
    rid: Annotated[
        str | list[str] | None,
        doc("returned as the id of the text; for a list of texts a list of ids (SGLang)", "step-120-a"),
    ] = None


class TextRequest(SglangRequest, frozen=True, gc=False, kw_only=True):
    """SGLang's fields for rendered texts."""

    text: Annotated[str | list[str], doc("a rendered text, or a list of them (SGLang)", RENDERED)]


class IdsRequest(SglangRequest, frozen=True, gc=False, kw_only=True):
    """SGLang's fields for token ids."""

    input_ids: Annotated[
        list[Any], doc("token ids, or lists of them (SGLang)", [1, 40, 33, 2], items={"anyOf": IDS_OR_ROWS})
    ]


class VllmReply(ReplyRecord, frozen=True, gc=False):
    """The common fields of vLLM's replies."""

    id: Annotated[str, doc("with the request_id of the request, or new", "classify-1")]
    object: Annotated[str, doc("kind of the reply", "list")]
    created: Annotated[int, doc("Unix time of the reply", 1_795_000_000)]
    model: Annotated[str, doc("name of the model", CHECKPOINT)]


class ClassifyItem(ReplyRecord, frozen=True, gc=False):
    """The score of one text, as the output of a classifier with one label."""

    index: Annotated[int, doc("index of the text, from 0", 0)]
    label: Annotated[str, doc("label of the only output", LABEL)]
    probs: Annotated[list[float], doc("the score, or its sigmoid if the request asks for it", [1.93])]
    num_classes: Annotated[int, doc("always 1", 1)]


class ClassifyReply(VllmReply, frozen=True, gc=False):
    """vLLM's reply of `/classify`."""

    data: Annotated[
        list[ClassifyItem],
        doc("one entry a text, in order", [{"index": 0, "label": LABEL, "probs": [1.93], "num_classes": 1}]),
    ]
    usage: Annotated[TokenUsage, doc("number of tokens of the request", EXAMPLE_USAGE)]


class PoolingItem(ReplyRecord, frozen=True, gc=False):
    """The score of one text, as a vector of one number."""

    index: Annotated[int, doc("index of the text, from 0", 0)]
    object: Annotated[str, doc("kind of the record", "pooling")]
    data: Annotated[list[float] | str, doc("the score; in base64 if the request asks for it", [1.93], "PQr3Pw==")]


class PoolingReply(VllmReply, frozen=True, gc=False):
    """vLLM's reply of `/pooling`."""

    data: Annotated[
        list[PoolingItem], doc("one entry a text, in order", [{"index": 0, "object": "pooling", "data": [1.93]}])
    ]
    usage: Annotated[TokenUsage, doc("number of tokens of the request", EXAMPLE_USAGE)]


_META = {"id": "step-120-a", "finish_reason": None, "prompt_tokens": 12, "e2e_latency": 0.0123}


class MetaInfo(ReplyRecord, frozen=True, gc=False):
    """SGLang's description of one text."""

    id: Annotated[str, doc("the rid of the text, or new", "step-120-a")]
    finish_reason: Annotated[None, doc("always null", None)]
    prompt_tokens: Annotated[int | None, doc("tokens of the text", 12)]
    e2e_latency: Annotated[float, doc("seconds since the start of the request", 0.0123)]


class EmbeddingItem(ReplyRecord, frozen=True, gc=False):
    """SGLang's reply to one text."""

    embedding: Annotated[list[float], doc("list with one number, which is the score of the text", [1.93])]
    meta_info: Annotated[MetaInfo, doc("id, tokens and time", _META)]


def _input_samples(body: InputRequest, _runtime: ModelRuntime) -> list[SampleOrError]:
    return samples_of(body.input, body.options)


def _message_samples(body: MessagesRequest, _runtime: ModelRuntime) -> list[SampleOrError]:
    finish: FinishReason = "length" if body.continue_final_message else "stop"
    options = body.options
    return [sample_or_error(lambda: Sample(messages=turns_of(body.messages), finish_reason=finish, options=options))]


def _text_samples(body: TextRequest, _runtime: ModelRuntime) -> list[SampleOrError]:
    return _check_names(body, samples_of(body.text, SCORE_EMPTY_OPTIONS, "text"))


def _id_samples(body: IdsRequest, _runtime: ModelRuntime) -> list[SampleOrError]:
    if any(isinstance(each, str) for each in body.input_ids):
        raise InvalidRequest("input_ids must be token ids or lists of token ids: send texts as text", field="input_ids")
    return _check_names(body, samples_of(body.input_ids, SCORE_EMPTY_OPTIONS, "input_ids"))


def _check_names(body: TextRequest | IdsRequest, samples: list[SampleOrError]) -> list[SampleOrError]:
    if body.rid is not None and isinstance(body.rid, str) != _is_single(body):
        raise InvalidRequest("rid must be one id for one text, and a list of ids for a list of texts", field="rid")
    if isinstance(body.rid, list) and len(body.rid) != len(samples):
        raise InvalidRequest("rid must have one id for every text", field="rid", n=len(body.rid), n_texts=len(samples))
    return samples


def _classify_reply(body: InputRequest | MessagesRequest, scored_request: ScoredRequest) -> Any:
    data = [ClassifyItem(i, LABEL, [number], 1) for i, number in enumerate(scored_request.scores)]
    return ClassifyReply(*vllm_fields(body, scored_request, "classify"), data, usage(scored_request))


def _sglang_reply(body: TextRequest | IdsRequest, scored_request: ScoredRequest) -> Any:
    names = [body.rid] if isinstance(body.rid, str) else body.rid or [uuid4().hex for _ in scored_request.results]
    ms = round(scored_request.elapsed_s, 6)
    items = [
        EmbeddingItem([number], MetaInfo(name, None, result.n_tokens, ms))
        for name, number, result in zip(names, scored_request.scores, scored_request.results, strict=True)
    ]
    return items[0] if _is_single(body) else items


def _is_single(body: TextRequest | IdsRequest) -> bool:
    """Whether the reply is one object: SGLang replies to one text with an object, and to a list of any length with a list."""
    if isinstance(body, TextRequest):
        return isinstance(body.text, str)
    return bool(body.input_ids) and not isinstance(body.input_ids[0], list)


def _pooling_reply(body: PoolingInputRequest | PoolingMessagesRequest, scored_request: ScoredRequest) -> Any:
    data = [
        PoolingItem(i, "pooling", vector(number, body.encoding_format))
        for i, number in enumerate(scored_request.scores)
    ]
    return PoolingReply(*vllm_fields(body, scored_request, "pool"), data, usage(scored_request))


def vllm_fields(body: VllmRequest, scored_request: ScoredRequest, kind: str) -> tuple[str, str, int, str]:
    """Build the fields of `VllmReply`."""
    return f"{kind}-{body.request_id or uuid4().hex}", "list", int(time.time()), scored_request.model


_INPUT = BodyFormat(
    text_fields=("input",),
    body=InputRequest,
    to_samples=_input_samples,
    to_reply=_classify_reply,
    replies=(ClassifyReply,),
    ignored_fields=IGNORED_FIELDS | _TOKEN_FIELDS,
    accepted_values={**VECTORS, **_CHAT_DEFAULTS, "task": ("classify",)},
    activation_of=wants_activation,
)
_MESSAGES = replace(_INPUT, text_fields=("messages",), body=MessagesRequest, to_samples=_message_samples)
_TEXT = BodyFormat(
    text_fields=("text",),
    body=TextRequest,
    to_samples=_text_samples,
    to_reply=_sglang_reply,
    replies=(EmbeddingItem, list[EmbeddingItem]),
    ignored_fields=IGNORED_FIELDS | {"sampling_params"},
    accepted_values={"is_cross_encoder_request": (False,), "background": (False,), "dimensions": (1,)},
)
_IDS = replace(_TEXT, text_fields=("input_ids",), body=IdsRequest, to_samples=_id_samples)

EXAMPLE_REPLY = {
    "id": "classify-1", "object": "list", "created": 1795000000, "model": "/models/rm",
    "data": [{"index": 0, "label": "LABEL_0", "probs": [1.93], "num_classes": 1}], "usage": EXAMPLE_USAGE,
}  # fmt: skip

CLASSIFY = Dialect(
    path="/classify",
    clients="verl with vLLM, other clients of vLLM and SGLang",
    body_formats=(_INPUT, _MESSAGES, _TEXT, _IDS),
    score_kind="raw",
    example_reply=EXAMPLE_REPLY,
)

CLASSIFY_V1 = replace(CLASSIFY, path="/v1/classify", clients="clients of SGLang")
"""As `/classify`. SGLang's reply to this path has a softmax, which is always 1 for one score."""

_POOLING = replace(
    _INPUT,
    to_reply=_pooling_reply,
    replies=(PoolingReply,),
    accepted_values={**VECTORS, **_CHAT_DEFAULTS, "task": ("classify", "reward", "score"), "dimensions": (1,)},
)

POOLING = Dialect(
    path="/pooling",
    clients="clients of vLLM",
    body_formats=(
        replace(_POOLING, body=PoolingInputRequest),
        replace(
            _POOLING,
            text_fields=("messages",),
            body=PoolingMessagesRequest,
            to_samples=_message_samples,
        ),
    ),
    score_kind="raw",
    example_reply={**EXAMPLE_REPLY, "id": "pool-1", "data": [{"index": 0, "object": "pooling", "data": [1.93]}]},
)
