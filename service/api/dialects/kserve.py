"""`POST /v2/models/NAME/infer`: the KServe v2 protocol in JSON, with the tensors of NeMo-Aligner's reward server.

NAME is the served model, an alias, or `reward_model`, which NeMo-Aligner's clients send. In: `sentences` (BYTES), or `tokens`
(INT64, padded on the right) with `sequence_lengths`. Out: `rewards` (FP32). Triton's clients send binary tensors unless told
otherwise; those are refused by the content type. An error is a text, as the protocol has it, with its code and numbers beside.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from starlette.responses import Response

from rewardserve.model.conversation import SCORE_EMPTY_OPTIONS, Sample
from rewardserve.service.api.dialects.dialect import BodyFormat, Dialect, ScoredRequest
from rewardserve.service.api.error_responses import error_response
from rewardserve.service.api.replies import json_response
from rewardserve.service.api.structs import MAX_TOKENS
from rewardserve.service.errors import InvalidRequest, Overloaded, RequestRefused
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.scoring import SampleOrError

FIXED_NAMES = frozenset({"reward_model"})
"""What NeMo-Aligner's clients call every model."""

TENSORS = {
    "inputs": [{"name": "sentences", "datatype": "BYTES", "shape": [-1, 1]}],
    "outputs": [{"name": "rewards", "datatype": "FP32", "shape": [-1, 1]}],
}
"""What `GET /v2/models/NAME` says of the tensors that every client can send."""


_DATATYPES = {str: re.compile("BYTES"), int: re.compile("U?INT(8|16|32|64)")}

_INPUTS = ({"sentences"}, {"tokens", "sequence_lengths"})


class Tensor(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """`data` is flat, or nested as its shape says. `parameters` are of how its bytes are sent."""

    name: str
    shape: list[Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]]
    data: list[Any]
    datatype: str = ""
    parameters: dict[str, Any] | None = None


class OutputTensor(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A tensor that the reply is to have. `parameters` are of how its bytes are sent."""

    name: Literal["rewards"]
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct, frozen=True, gc=False):
    """One inference request."""

    inputs: list[Tensor]
    id: str | None = None
    outputs: list[OutputTensor] | None = None


def _to_samples(body: InferRequest, _served: ModelRuntime) -> list[SampleOrError]:
    tensors = {tensor.name: tensor for tensor in body.inputs}
    if len(tensors) != len(body.inputs) or set(tensors) not in _INPUTS:
        raise InvalidRequest("send sentences, or tokens and sequence_lengths, and no other tensor", field="inputs")
    if "sentences" in tensors:
        return [Sample(text=text, options=SCORE_EMPTY_OPTIONS) for text in _column(tensors["sentences"], str)]
    tokens = tensors["tokens"]
    ids, n_ids = _values(tokens, int), _column(tensors["sequence_lengths"], int)
    n_rows, width = tokens.shape if len(tokens.shape) == 2 else (-1, 0)
    if n_rows != len(n_ids) or any(not 0 <= n <= width for n in n_ids):
        raise InvalidRequest(
            "tokens has the shape [rows, width], and sequence_lengths a number up to width a row",
            field="inputs", shape=str(tokens.shape), n_rows=len(n_ids),
        )  # fmt: skip
    return [
        Sample(input_ids=tuple(ids[i * width : i * width + n]), options=SCORE_EMPTY_OPTIONS)
        for i, n in enumerate(n_ids)
    ]


def _column(tensor: Tensor, kind: type) -> list[Any]:
    """The values of a tensor of the shape `[n]` or `[n, 1]`."""
    if not (len(tensor.shape) == 1 or (len(tensor.shape) == 2 and tensor.shape[1] == 1)):
        raise InvalidRequest(f"{tensor.name} has the shape [n] or [n, 1]", field="inputs", shape=str(tensor.shape))
    return _values(tensor, kind)


def _values(tensor: Tensor, kind: type) -> list[Any]:
    """Flat, as many as the shape says, and of the kind that the datatype says."""
    values = _flat(tensor.data)
    if len(values) != math.prod(tensor.shape):
        raise InvalidRequest(
            f"{tensor.name} has another number of values than its shape says",
            field="inputs",
            shape=str(tensor.shape),
            n=len(values),
        )
    if tensor.datatype and not _DATATYPES[kind].fullmatch(tensor.datatype):
        raise InvalidRequest(f"{tensor.name} cannot be {tensor.datatype[:16]}", field="inputs")
    return [_checked(value, kind, tensor.name) for value in values]


def _flat(data: list[Any]) -> list[Any]:
    """What is in the innermost lists, in order; without recursion, which deep enough a body would exhaust."""
    while any(isinstance(each, list) for each in data):
        if not all(isinstance(each, list) for each in data):
            raise InvalidRequest("data is nested unevenly", field="inputs")
        data = [each for part in data for each in part]
    return data


def _checked(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InvalidRequest(f"{name} holds something else than {kind.__name__}", field="inputs")
    return value


def _to_reply(body: InferRequest, scored_request: ScoredRequest) -> dict[str, Any]:
    numbers = scored_request.scores
    rewards = {"name": "rewards", "datatype": "FP32", "shape": [len(numbers), 1], "data": numbers}
    named = {} if body.id is None else {"id": body.id}
    return {
        **named,
        "model_name": scored_request.model,
        "model_version": str(scored_request.served.version),
        "outputs": [rewards],
    }


def render_error(error: RequestRefused, overload_status: int) -> Response:
    """The protocol's reply for an error."""
    status = overload_status if isinstance(error, Overloaded) else error.status
    headers = {k: v for k, v in error_response(error).headers.items() if k in ("retry-after", "connection")}
    return json_response({"error": error.message, "code": error.code, **error.details}, status, headers)


_INFER = BodyFormat(
    text_fields=("inputs",),
    body=InferRequest,
    to_samples=_to_samples,
    to_reply=_to_reply,
    ignored_fields=frozenset({"parameters"}),
    model=lambda _body: None,  # the path has it
)

INFER = Dialect(
    path="/v2/models/{model:path}/infer",
    clients="KServe v2 clients, old NeMo-Aligner actors in JSON",
    body_formats=(_INFER,),
    score_kind="raw",
    example_reply={
        "model_name": "/models/rm",
        "model_version": "1",
        "outputs": [{"name": "rewards", "datatype": "FP32", "shape": [1, 1], "data": [1.93]}],
    },
    render_error=render_error,
    fixed_names=FIXED_NAMES,
    render_model_not_served=lambda error: render_error(error, error.status),
)

INFER_VERSION = replace(INFER, path="/v2/models/{model:path}/versions/{version}/infer")
"""As `INFER`, by one version of the model or not at all."""
