"""`POST /predict`: text-embeddings-inference. A list of two texts is one pair there; a batch is a list of lists.

A text is taken as rendered, a pair as a prompt and its response. As there, the default is a sigmoid of the raw score, and
`raw_scores` gives the score itself; so does a URL with `?value=`. Errors have its schema, and timings are in its headers.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from rewardserve.model.conversation import Sample, SampleOptions
from rewardserve.service.api.dialects.dialect import Answered, Dialect, Form, spoken
from rewardserve.service.api.dialects.vllm import LABEL
from rewardserve.service.api.error_responses import problem
from rewardserve.service.api.replies import json_response
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
from rewardserve.service.models.active_models import Served
from rewardserve.service.scoring import Asked

_BACKEND_STATUS = 424


UNREAD = frozenset({"truncation_direction"})
"""The end, at which the score is read, is never cut off."""


def wants_activation(body: Any) -> bool | None:
    """`raw_scores`, the other way round."""
    return None if body.raw_scores is None else not body.raw_scores


class PredictRequest(msgspec.Struct, frozen=True, gc=False):
    """TEI's fields."""

    inputs: str | list[str | list[str]]
    truncate: bool | None = None
    raw_scores: bool | None = None
    model: str | None = None


def _is_batch(body: PredictRequest) -> bool:
    return isinstance(body.inputs, list) and any(isinstance(each, list) for each in body.inputs)


def _sequences(body: PredictRequest) -> list[list[str]]:
    if isinstance(body.inputs, str):
        return [[body.inputs]]
    if _is_batch(body):
        return [[each] if isinstance(each, str) else each for each in body.inputs]
    return [[each for each in body.inputs if isinstance(each, str)]]


def _ask(body: PredictRequest, served: Served) -> list[Asked]:
    options = SampleOptions(truncates=body.truncate is not False, scores_empty=True)
    return [_sample(sequence, options, served) for sequence in _sequences(body)]


def _sample(sequence: list[str], options: SampleOptions, served: Served) -> Asked:
    match sequence:
        case [text]:
            return Sample(text=text, options=options)
        case [prompt, response]:
            return spoken(prompt, response, served, options)
        case _:
            raise InvalidRequest(
                "inputs must be a text or a pair of texts, or a list of lists of one or two texts", field="inputs"
            )


def _answer(body: PredictRequest, answered: Answered) -> Any:
    predictions = [[{"score": number, "label": LABEL}] for number in answered.numbers]
    return predictions if _is_batch(body) else predictions[0]


def _headers(body: PredictRequest, answered: Answered) -> dict[str, str]:
    total = _ms(answered.seconds)
    return {
        "x-compute-type": answered.served.loaded.identity.device,
        "x-compute-time": total,
        "x-compute-characters": str(sum(len(text) for sequence in _sequences(body) for text in sequence)),
        "x-compute-tokens": str(answered.n_tokens),
        "x-total-time": total,
        "x-tokenization-time": _ms(max((r.encode_s for r in answered.results), default=0.0)),
        "x-queue-time": _ms(max((r.queue_s for r in answered.results), default=0.0)),
        "x-inference-time": _ms(max((r.forward_s for r in answered.results), default=0.0)),
    }


def _ms(seconds: float) -> str:
    return str(round(1000 * seconds))


def _refuse(error: RequestRefused, overload_status: int) -> Response:
    """`{"error", "error_type"}` with TEI's statuses, our code and the numbers beside them."""
    kind, status = _KINDS.get(type(error), ("validation", error.status))
    if isinstance(error, Overloaded):
        status = overload_status
    headers = {k: v for k, v in problem(error).headers.items() if k in ("retry-after", "connection")}
    said = {"error": error.message, "error_type": kind, "code": error.code}
    return json_response({**error.details, **said}, status, headers)


_KINDS: dict[type[RequestRefused], tuple[str, int]] = {
    Overloaded: ("overloaded", Overloaded.status),
    RateLimited: ("overloaded", RateLimited.status),
    Loading: ("unhealthy", Loading.status),
    ShuttingDown: ("unhealthy", ShuttingDown.status),
    SampleFailed: ("backend", _BACKEND_STATUS),
    SampleRefused: ("validation", SampleRefused.status),
}


_PREDICT = Form(
    texts=("inputs",),
    body=PredictRequest,
    ask=_ask,
    answer=_answer,
    unread=UNREAD,
    activation=wants_activation,
    activates=True,
)

PREDICT = Dialect(
    path="/predict",
    callers="clients of text-embeddings-inference",
    forms=(_PREDICT,),
    number="raw",
    headers=_headers,
    refuse=_refuse,
    not_served=lambda error: _refuse(error, error.status),
)
