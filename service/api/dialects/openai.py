"""`POST /v1/embeddings` as verl sends it to SGLang: the embedding of a text is one number, its raw score.

Also the common parts of OpenAI's formats: inputs as text or token ids, and usage.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from rewardserve.model.conversation import SCORE_EMPTY_OPTIONS, Sample, SampleOptions
from rewardserve.service.api.dialects.dialect import BodyFormat, Dialect, ModelName, ScoredRequest
from rewardserve.service.api.field_docs import CHECKPOINT, RENDERED, doc
from rewardserve.service.api.schemas.record import ReplyRecord
from rewardserve.service.errors import InvalidRequest
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.scoring import SampleOrError

TokenId = Annotated[int, msgspec.Meta(ge=0)]
IDS_OR_ROWS = ({"type": "integer"}, {"type": "array", "items": {"type": "integer"}})
"""Schemas of an item of a list of token ids, and of a list of such lists."""
Inputs = Annotated[
    str
    | Annotated[list[Any], msgspec.Meta(extra_json_schema={"items": {"anyOf": [{"type": "string"}, *IDS_OR_ROWS]}})],
    doc("a rendered text, a list of them, token ids, or a list of lists of token ids", [RENDERED]),
]
Encoding = Literal["float", "base64"]
VectorEncoding = Annotated[Encoding, doc("float: numbers; base64: little-endian float32", "float")]

IGNORED_FIELDS = frozenset({
    "user", "priority", "cache_salt", "extra_key", "rid", "log_metrics", "no_logs", "routing_key", "data_parallel_rank",
    "routed_dp_rank",
})  # fmt: skip
"""Fields of vLLM and SGLang for names, priorities, logs, caches and routing of a request."""

VECTORS: Mapping[str, tuple[object, ...]] = {
    "encoding_format": ("float",),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
}
"""Encoding of vectors, with the accepted values."""


EXAMPLE_USAGE = {"prompt_tokens": 12, "total_tokens": 12, "completion_tokens": 0, "prompt_tokens_details": None}


class EmbeddingsRequest(msgspec.Struct, frozen=True, gc=False):
    """The fields of OpenAI's embeddings API."""

    input: Inputs
    model: ModelName = None
    encoding_format: VectorEncoding = "float"


class TokenUsage(ReplyRecord, frozen=True, gc=False):
    """OpenAI's token usage."""

    prompt_tokens: Annotated[int, doc("tokens of all texts", 12)]
    total_tokens: Annotated[int, doc("same as `prompt_tokens`, since nothing is generated", 12)]
    completion_tokens: Annotated[int, doc("always 0: nothing is generated", 0)] = 0
    prompt_tokens_details: Annotated[None, doc("always null", None)] = None


class Embedding(ReplyRecord, frozen=True, gc=False):
    """The score of one input, as a vector of one number."""

    object: Annotated[str, doc("kind of the record", "embedding")]
    index: Annotated[int, doc("index of the input, from 0", 0)]
    embedding: Annotated[list[float] | str, doc("the score; in base64 if the request asks for it", [1.93], "PQr3Pw==")]


class EmbeddingsReply(ReplyRecord, frozen=True, gc=False):
    """OpenAI's reply."""

    object: Annotated[str, doc("kind of the reply", "list")]
    model: Annotated[str, doc("name of the model", CHECKPOINT)]
    data: Annotated[
        list[Embedding], doc("one entry an input, in order", [{"object": "embedding", "index": 0, "embedding": [1.93]}])
    ]
    usage: Annotated[TokenUsage, doc("number of tokens of the request", EXAMPLE_USAGE)]


def samples_of(inputs: Inputs, options: SampleOptions, field: str = "input") -> list[SampleOrError]:
    """Build a sample for every input, in order. Raise `InvalidRequest` for a list of other types."""
    if isinstance(inputs, str):
        return [Sample(text=inputs, options=options)]
    if not inputs or all(isinstance(each, str) for each in inputs):
        return [Sample(text=text, options=options) for text in inputs]
    if _are_ids(inputs):
        return [Sample(input_ids=tuple(inputs), options=options)]
    if all(isinstance(each, list) and _are_ids(each) for each in inputs):
        return [Sample(input_ids=tuple(ids), options=options) for ids in inputs]
    raise InvalidRequest(f"{field} must be a text, texts, token ids or lists of token ids", field=field)


def _are_ids(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def vector(number: float, encoding: Encoding) -> list[float] | str:
    """Encode a vector of one number: a list, or little-endian float32 in base64."""
    return [number] if encoding == "float" else base64.b64encode(struct.pack("<f", number)).decode()


def usage(scored_request: ScoredRequest) -> TokenUsage:
    """Build OpenAI's token usage."""
    n = scored_request.n_tokens
    return TokenUsage(n, n)


def _to_samples(body: EmbeddingsRequest, _runtime: ModelRuntime) -> list[SampleOrError]:
    return samples_of(body.input, SCORE_EMPTY_OPTIONS)


def _to_reply(body: EmbeddingsRequest, scored_request: ScoredRequest) -> EmbeddingsReply:
    data = [
        Embedding("embedding", i, vector(number, body.encoding_format))
        for i, number in enumerate(scored_request.scores)
    ]
    return EmbeddingsReply("list", scored_request.model, data, usage(scored_request))


_EMBEDDINGS = BodyFormat(
    text_fields=("input",),
    body=EmbeddingsRequest,
    to_samples=_to_samples,
    to_reply=_to_reply,
    replies=(EmbeddingsReply,),
    ignored_fields=IGNORED_FIELDS,
    accepted_values={name: VECTORS[name] for name in ("embed_dtype", "endianness")} | {"dimensions": (1,)},
)

EMBEDDINGS = Dialect(
    path="/v1/embeddings",
    clients="verl with SGLang",
    body_formats=(_EMBEDDINGS,),
    score_kind="raw",
    example_reply={
        "object": "list",
        "model": "/models/rm",
        "usage": EXAMPLE_USAGE,
        "data": [{"object": "embedding", "index": 0, "embedding": [1.93]}],
    },
)
