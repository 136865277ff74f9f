"""`POST /predict`: text-embeddings-inference (TEI). A list of two texts is one pair; a batch is a list of lists.

A text is a rendered conversation, a pair is a prompt and its response. As in TEI, the default is a sigmoid of the raw score;
`raw_scores` or a URL with `?value=` selects the score without it. Errors have TEI's schema, and replies its timing headers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from starlette.responses import Response

from rewardserve.model.conversation import Sample, SampleOptions
from rewardserve.service.api.dialects.dialect import BodyFormat, Dialect, ModelName, ScoredRequest, sample_from_pair
from rewardserve.service.api.dialects.vllm import LABEL
from rewardserve.service.api.error_responses import error_response
from rewardserve.service.api.field_docs import PROMPT, RESPONSE, doc
from rewardserve.service.api.replies import json_response
from rewardserve.service.api.schemas.errors import NUMBERS
from rewardserve.service.api.schemas.record import ReplyRecord, with_fields
from rewardserve.service.errors import (
    InvalidRequest,
    Loading,
    Overloaded,
    RateLimited,
    RequestRefused,
    SampleFailed,
    SampleRefused,
    ShuttingDown,
)
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.scoring import SampleOrError

_BACKEND_STATUS = 424


IGNORED_FIELDS = frozenset({"truncation_direction"})
"""Ignored, since the end, at which the score is read, is never cut off."""


def wants_activation(body: Any) -> bool | None:
    """Whether the body requests a sigmoid: the negation of `raw_scores`."""
    return None if body.raw_scores is None else not body.raw_scores


Truncate = Annotated[
    bool | None, doc("false: refuse a text that is too long; default: cut the prompt from the left", True)
]
RawScores = Annotated[
    bool | None, doc("true: return raw scores; default: their sigmoid, unless the URL has ?value=", True)
]


class PredictRequest(msgspec.Struct, frozen=True, gc=False):
    """TEI's fields."""

    inputs: Annotated[
        str | list[str | list[str]],
        doc("a text, a pair of texts (prompt and response), or a list of such lists", [[PROMPT, RESPONSE]]),
    ]
    truncate: Truncate = None
    raw_scores: RawScores = None
    model: ModelName = None


class Prediction(ReplyRecord, frozen=True, gc=False):
    """The score of one text or pair."""

    score: Annotated[float, doc("sigmoid of the raw score, or the raw score", 0.87)]
    label: Annotated[str, doc("label of the only output", LABEL)]


class TeiErrorReply(ReplyRecord, frozen=True, gc=False):
    """An error in text-embeddings-inference's format."""

    FURTHER_FIELDS: ClassVar[Mapping[str, Any] | None] = NUMBERS

    error: Annotated[str, doc("cause and remedy", "inputs is empty: there is nothing to score")]
    error_type: Annotated[str, doc("kind of the error in that format", "validation")]
    code: Annotated[str, doc("code of this server", "invalid_request")]


def _is_batch(body: PredictRequest) -> bool:
    return isinstance(body.inputs, list) and any(isinstance(each, list) for each in body.inputs)


def _sequences(body: PredictRequest) -> list[list[str]]:
    if isinstance(body.inputs, str):
        return [[body.inputs]]
    if _is_batch(body):
        return [[each] if isinstance(each, str) else each for each in body.inputs]
    return [[each for each in body.inputs if isinstance(each, str)]]


def _to_samples(body: PredictRequest, runtime: ModelRuntime) -> list[SampleOrError]:
    options = SampleOptions(truncates=body.truncate is not False, scores_empty=True)
    return [_sample(sequence, options, runtime) for sequence in _sequences(body)]


def _sample(sequence: list[str], options: SampleOptions, runtime: ModelRuntime) -> SampleOrError:
    match sequence:
        case [text]:
            return Sample(text=text, options=options)
        case [prompt, response]:
            return sample_from_pair(prompt, response, runtime, options)
        case _:
            raise InvalidRequest(
                "inputs must be a text or a pair of texts, or a list of lists of one or two texts", field="inputs"
            )


def _to_reply(body: PredictRequest, scored_request: ScoredRequest) -> Any:
    predictions = [[Prediction(number, LABEL)] for number in scored_request.scores]
    return predictions if _is_batch(body) else predictions[0]


def _headers(body: PredictRequest, scored_request: ScoredRequest) -> dict[str, str]:
    total = _ms(scored_request.elapsed_s)
    return {
        "x-compute-type": scored_request.runtime.loaded.identity.device,
        "x-compute-time": total,
        "x-compute-characters": str(sum(len(text) for sequence in _sequences(body) for text in sequence)),
        "x-compute-tokens": str(scored_request.n_tokens),
        "x-total-time": total,
        "x-tokenization-time": _ms(max((r.encode_s for r in scored_request.results), default=0.0)),
        "x-queue-time": _ms(max((r.queue_s for r in scored_request.results), default=0.0)),
        "x-inference-time": _ms(max((r.forward_s for r in scored_request.results), default=0.0)),
    }


def _ms(seconds: float) -> str:
    return str(round(1000 * seconds))


def _render_error(error: RequestRefused, overload_status: int) -> Response:
    """Render `{"error", "error_type"}` with TEI's statuses, and the code and numbers of the error as further fields."""
    kind, status = _ERROR_TYPES.get(type(error), ("validation", error.status))
    if isinstance(error, Overloaded):
        status = overload_status
    headers = {k: v for k, v in error_response(error).headers.items() if k in ("retry-after", "connection")}
    record = TeiErrorReply(error.message, kind, error.code)
    return json_response(with_fields(record, error.details), status, headers)


_ERROR_TYPES: dict[type[RequestRefused], tuple[str, int]] = {
    Overloaded: ("overloaded", Overloaded.status),
    RateLimited: ("overloaded", RateLimited.status),
    Loading: ("unhealthy", Loading.status),
    ShuttingDown: ("unhealthy", ShuttingDown.status),
    SampleFailed: ("backend", _BACKEND_STATUS),
    SampleRefused: ("validation", SampleRefused.status),
}


_PREDICT = BodyFormat(
    text_fields=("inputs",),
    body=PredictRequest,
    to_samples=_to_samples,
    to_reply=_to_reply,
    replies=(list[Prediction], list[list[Prediction]]),
    ignored_fields=IGNORED_FIELDS,
    activation_of=wants_activation,
    activates_by_default=True,
)

PREDICT = Dialect(
    path="/predict",
    clients="clients of text-embeddings-inference",
    body_formats=(_PREDICT,),
    score_kind="raw",
    example_reply=[{"score": 0.87, "label": "LABEL_0"}],
    headers=_headers,
    render_error=_render_error,
    error_reply=TeiErrorReply,
    error_statuses={
        _BACKEND_STATUS: f"`{SampleFailed.code}`: a sample was not scored because of a failure that may pass"
    },
    render_model_not_served=lambda error: _render_error(error, error.status),
    not_served_reply=TeiErrorReply,
)
