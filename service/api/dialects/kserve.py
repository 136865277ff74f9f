"""`POST /v2/models/NAME/infer`: the KServe v2 protocol in JSON, with the tensors of NeMo-Aligner's reward server.

NAME is the name of the model in service, an alias, or `reward_model`, which NeMo-Aligner's clients send. Inputs: `sentences`
(BYTES), or `tokens` (INT64, padded on the right) with `sequence_lengths`. Output: `rewards` (FP32). Triton's clients send binary
tensors by default; these are refused by their content type. An error is a text, as in the protocol, with code and numbers as
further fields.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from rewardserve.model.conversation import SCORE_EMPTY_OPTIONS, Sample
from rewardserve.service.api.dialects.dialect import BodyFormat, Dialect, ScoredRequest
from rewardserve.service.api.error_responses import error_response
from rewardserve.service.api.field_docs import CHECKPOINT, RENDERED, doc
from rewardserve.service.api.replies import json_response
from rewardserve.service.api.requests import MAX_TOKENS
from rewardserve.service.api.schemas.errors import NUMBERS
from rewardserve.service.api.schemas.record import ReplyRecord, with_fields
from rewardserve.service.errors import InvalidRequest, Overloaded, RequestRefused
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.scoring import SampleOrError

FIXED_NAMES = frozenset({"reward_model"})
"""The model name that NeMo-Aligner's clients always send."""

_DATATYPES = {str: re.compile("BYTES"), int: re.compile("U?INT(8|16|32|64)")}

_VALUES_OR_ROWS = ({"type": "string"}, {"type": "integer"}, {"type": "array", "items": {}})
"""Schemas of an item of flat and of nested data."""

_INPUTS = ({"sentences"}, {"tokens", "sequence_lengths"})


class Tensor(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """An input tensor. `data` is flat, or nested by its shape. `parameters` describe how its bytes are sent."""

    name: Annotated[str, doc("sentences, tokens or sequence_lengths", "sentences")]
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]], doc("shape of data", [1, 1])]
    data: Annotated[list[Any], doc("values, flat or nested by shape", [RENDERED], items={"anyOf": _VALUES_OR_ROWS})]
    datatype: Annotated[str, doc("BYTES for sentences, INT64 for the others; optional", "BYTES")] = ""
    parameters: Annotated[
        dict[str, Any] | None,
        doc(
            "how the bytes of the tensor are sent; requests with binary_data_size are refused by their content type",
            {"content_type": "str"},
        ),
    ] = None


class OutputTensor(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A requested output tensor. `parameters` describe how its bytes are sent."""

    name: Annotated[Literal["rewards"], doc("the only output that a request can ask for", "rewards")]
    parameters: Annotated[
        dict[str, Any] | None, doc("how the bytes of the tensor are sent", {"content_type": "str"})
    ] = None


class InferRequest(msgspec.Struct, frozen=True, gc=False):
    """One inference request."""

    inputs: Annotated[
        list[Tensor],
        doc(
            "the tensor sentences, or tokens and sequence_lengths",
            [{"name": "sentences", "datatype": "BYTES", "shape": [1, 1], "data": [RENDERED]}],
        ),
    ]
    id: Annotated[str | None, doc("returned in the reply", "a")] = None
    outputs: Annotated[
        list[OutputTensor] | None, doc("names of the tensors to return: rewards", [{"name": "rewards"}])
    ] = None


_REWARDS = {"name": "rewards", "datatype": "FP32", "shape": [1, 1], "data": [1.93]}


class RewardsTensor(ReplyRecord, frozen=True, gc=False):
    """The output tensor."""

    name: Annotated[str, doc("name of the tensor", "rewards")]
    datatype: Annotated[str, doc("type of its values", "FP32")]
    shape: Annotated[list[int], doc("rows and columns", [1, 1])]
    data: Annotated[list[float], doc("the scores, in order", [1.93])]


class InferReply(ReplyRecord, frozen=True, gc=False, kw_only=True):
    """The reply to one inference request."""

    id: Annotated[str | UnsetType, doc("that of the request, if it has one", "a")] = UNSET
    model_name: Annotated[str, doc("name of the model that scored", CHECKPOINT)]
    model_version: Annotated[str, doc("version of the model within this process", "1")]
    outputs: Annotated[
        list[RewardsTensor], doc("one tensor of the name rewards, with a score for each sample", [_REWARDS])
    ]


class KserveErrorReply(ReplyRecord, frozen=True, gc=False):
    """An error in the format of the protocol."""

    FURTHER_FIELDS: ClassVar[Mapping[str, Any] | None] = NUMBERS

    error: Annotated[str, doc("cause and remedy", "the number of values of sentences does not match its shape")]
    code: Annotated[str, doc("code of this server", "invalid_request")]


def _to_samples(body: InferRequest, _runtime: ModelRuntime) -> list[SampleOrError]:
    tensors = {tensor.name: tensor for tensor in body.inputs}
    if len(tensors) != len(body.inputs) or set(tensors) not in _INPUTS:
        raise InvalidRequest(
            "inputs: send sentences, or tokens and sequence_lengths, and no other tensor", field="inputs"
        )
    if "sentences" in tensors:
        return [Sample(text=text, options=SCORE_EMPTY_OPTIONS) for text in _column(tensors["sentences"], str)]
    tokens = tensors["tokens"]
    ids, n_ids = _values(tokens, int), _column(tensors["sequence_lengths"], int)
    n_rows, width = tokens.shape if len(tokens.shape) == 2 else (-1, 0)
    if n_rows != len(n_ids) or any(not 0 <= n <= width for n in n_ids):
        raise InvalidRequest(
            "tokens must have the shape [rows, width], and sequence_lengths one length up to width for each row",
            field="inputs", shape=str(tokens.shape), n_rows=len(n_ids),
        )  # fmt: skip
    return [
        Sample(input_ids=tuple(ids[i * width : i * width + n]), options=SCORE_EMPTY_OPTIONS)
        for i, n in enumerate(n_ids)
    ]


def _column(tensor: Tensor, kind: type) -> list[Any]:
    """Return the values of a tensor of the shape `[n]` or `[n, 1]`."""
    if not (len(tensor.shape) == 1 or (len(tensor.shape) == 2 and tensor.shape[1] == 1)):
        raise InvalidRequest(
            f"{tensor.name} must have the shape [n] or [n, 1]", field="inputs", shape=str(tensor.shape)
        )
    return _values(tensor, kind)


def _values(tensor: Tensor, kind: type) -> list[Any]:
    """Return the flat values of a tensor, checked against its shape and datatype."""
    values = _flat(tensor.data)
    if len(values) != math.prod(tensor.shape):
        raise InvalidRequest(
            f"the number of values of {tensor.name} does not match its shape",
            field="inputs",
            shape=str(tensor.shape),
            n=len(values),
        )
    if tensor.datatype and not _DATATYPES[kind].fullmatch(tensor.datatype):
        raise InvalidRequest(f"{tensor.name} cannot have the datatype {tensor.datatype[:16]}", field="inputs")
    return [_checked(value, kind, tensor.name) for value in values]


def _flat(data: list[Any]) -> list[Any]:
    """Flatten nested lists, without recursion, whose limit a deeply nested body would exceed."""
    while any(isinstance(each, list) for each in data):
        if not all(isinstance(each, list) for each in data):
            raise InvalidRequest("data is nested unevenly", field="inputs")
        data = [each for part in data for each in part]
    return data


def _checked(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InvalidRequest(f"{name} has a value that is not of the type {kind.__name__}", field="inputs")
    return value


def _to_reply(body: InferRequest, scored_request: ScoredRequest) -> InferReply:
    numbers = scored_request.scores
    return InferReply(
        id=UNSET if body.id is None else body.id,
        model_name=scored_request.model,
        model_version=str(scored_request.runtime.version),
        outputs=[RewardsTensor("rewards", "FP32", [len(numbers), 1], numbers)],
    )


def render_error(error: RequestRefused, overload_status: int) -> Response:
    """Render an error as in the protocol."""
    status = overload_status if isinstance(error, Overloaded) else error.status
    headers = {k: v for k, v in error_response(error).headers.items() if k in ("retry-after", "connection")}
    return json_response(with_fields(KserveErrorReply(error.message, error.code), error.details), status, headers)


_INFER = BodyFormat(
    text_fields=("inputs",),
    body=InferRequest,
    to_samples=_to_samples,
    to_reply=_to_reply,
    replies=(InferReply,),
    ignored_fields=frozenset({"parameters"}),
    model=lambda _body: None,  # the path has the name
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
    error_reply=KserveErrorReply,
    fixed_names=FIXED_NAMES,
    render_model_not_served=lambda error: render_error(error, error.status),
    not_served_reply=KserveErrorReply,
)

INFER_VERSION = replace(
    INFER, path="/v2/models/{model:path}/versions/{version}/infer", clients="KServe v2 clients that name a version"
)
"""As `INFER`, for one version of the model only."""
