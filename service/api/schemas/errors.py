"""The error of a request or of a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from msgspec import UNSET, UnsetType

from rewardserve.service.api.field_docs import DIGEST, doc
from rewardserve.service.api.schemas.record import ReplyRecord
from rewardserve.service.errors import SAMPLE_CODES

Number = int | UnsetType
Text = str | UnsetType

ERROR = {
    "code": "input_too_long",
    "message": "the sample has 5012 tokens; the limit is 4096",
    "n": 5012,
    "limit": 4096,
}
NUMBERS: Mapping[str, Any] = {
    "type": ["integer", "number", "string"],
    "description": "the numbers of the error, as in ErrorOut",
}
"""Schema of the further fields of an error in the wire format of another server."""


class ErrorOut(ReplyRecord, frozen=True, gc=False):
    """An error. After `code` and `message` it has the numbers of the message: those fields that the error is about."""

    code: Annotated[str, doc("stable code for programs", ERROR["code"])]
    message: Annotated[str, doc("cause and remedy for humans; never quotes a conversation", ERROR["message"])]
    n: Annotated[Number, doc("number that exceeds `limit`, or that is wrong", 5012)] = UNSET
    limit: Annotated[Number | str, doc("the limit; for the rate of a key its unit, `requests` or `tokens`", 4096)] = (
        UNSET
    )
    field: Annotated[
        Text, doc("JSON path of the first invalid field, or name of the parameter", "samples[3].prompt")
    ] = UNSET
    n_errors: Annotated[Number, doc("invalid fields, `field` included", 2)] = UNSET
    line: Annotated[Number, doc("line of the body at which the JSON is invalid, from 1", 1)] = UNSET
    column: Annotated[Number, doc("column of the body at which the JSON is invalid, from 1", 18)] = UNSET
    at: Annotated[Number, doc("offset of the invalid byte or character, from 0", 12)] = UNSET
    index: Annotated[Number, doc("index of the message of a conversation, from 0", 1)] = UNSET
    n_forms: Annotated[Number, doc("ways in which the sample is given; exactly one is right", 2)] = UNSET
    id: Annotated[Number, doc("token id beyond the vocabulary", 151_700)] = UNSET
    vocab_size: Annotated[Number, doc("token ids of the model", 151_646)] = UNSET
    what: Annotated[Text, doc("part of the sample that is too long", "response")] = UNSET
    n_digits: Annotated[Number, doc("digits of a number of the body", 5000)] = UNSET
    n_unknown: Annotated[Number, doc("unknown query parameters", 1)] = UNSET
    n_first: Annotated[Number, doc("texts in the first list", 3)] = UNSET
    n_second: Annotated[Number, doc("texts in the second list", 2)] = UNSET
    n_query: Annotated[Number, doc("texts in `query`", 3)] = UNSET
    n_prompts: Annotated[Number, doc("texts in `prompts`", 2)] = UNSET
    n_responses: Annotated[Number, doc("texts in `responses`", 3)] = UNSET
    n_texts: Annotated[Number, doc("texts of the request", 2)] = UNSET
    shape: Annotated[Text, doc("shape of a tensor", "[1, 1]")] = UNSET
    n_rows: Annotated[Number, doc("rows of a tensor or of a batch", 2)] = UNSET
    n_scores: Annotated[Number, doc("scores that the backend returned", 1)] = UNSET
    max_values: Annotated[Number, doc("limit of values in a body", 1_000_000)] = UNSET
    max_strings: Annotated[Number, doc("limit of strings in a body", 100_000)] = UNSET
    max_containers: Annotated[Number, doc("limit of objects and lists in a body", 100_000)] = UNSET
    max_headers: Annotated[Number, doc("limit of headers", 256)] = UNSET
    timeout_s: Annotated[float | UnsetType, doc("seconds within which the request had to arrive", 10.0)] = UNSET
    n_samples: Annotated[Number, doc("samples of the request", 64)] = UNSET
    n_tokens: Annotated[Number, doc("tokens of the request or of the sample, estimated before it is encoded", 9000)] = (
        UNSET
    )
    max_samples: Annotated[Number, doc("samples that the server admits at once", 4096)] = UNSET
    max_tokens: Annotated[Number, doc("tokens that the server admits at once", 1_000_000)] = UNSET
    samples_in_flight: Annotated[Number, doc("samples that are admitted now", 4090)] = UNSET
    tokens_in_flight: Annotated[Number, doc("tokens that are admitted now", 990_000)] = UNSET
    body_bytes_in_flight: Annotated[Number, doc("bytes of the bodies that are held now", 250_000_000)] = UNSET
    max_body_bytes_in_flight: Annotated[Number, doc("bytes of bodies that the server holds at once", 268_435_456)] = (
        UNSET
    )
    per_s: Annotated[float | UnsetType, doc("rate limit of the key, a second", 50.0)] = UNSET
    burst: Annotated[float | UnsetType, doc("burst that the rate limit allows", 100.0)] = UNSET
    scope: Annotated[Text, doc("scope that the key lacks", "admin")] = UNSET
    sample: Annotated[Number, doc("index of the sample, from 0", 0)] = UNSET
    response: Annotated[Number, doc("index of the response of a comparison, from 0", 1)] = UNSET
    reason: Annotated[Text, doc("code of the error of that sample", "input_too_long")] = UNSET
    wire: Annotated[Text, doc("trip wire that blocks the run", "judge_injection")] = UNSET
    served_model: Annotated[Text, doc("name of the model in service", "/models/step-1200")] = UNSET
    model_version: Annotated[Number, doc("version of the model in service", 2)] = UNSET
    version: Annotated[Number, doc("version of the model that the request names", 1)] = UNSET
    pinned_version: Annotated[Number, doc("version of the model that the run is pinned to", 1)] = UNSET
    snapshot: Annotated[Text, doc("digest of the snapshot that the approvals of the run are pinned to", DIGEST)] = UNSET
    n_runs: Annotated[Number, doc("runs that are pinned to the model", 2)] = UNSET
    failed_batches: Annotated[Number, doc("batches in a row that have failed", 3)] = UNSET
    early_samples: Annotated[Number, doc("first responses of the run with known texts", 128)] = UNSET
    early_prompts: Annotated[Number, doc("different prompts of `early_samples`", 16)] = UNSET
    recent_samples: Annotated[Number, doc("recent responses of the run with known texts", 0)] = UNSET
    recent_prompts: Annotated[Number, doc("different prompts of `recent_samples`", 0)] = UNSET
    min_prompts: Annotated[Number, doc("fewest prompts on each side of a comparison", 8)] = UNSET


class ErrorReply(ReplyRecord, frozen=True, gc=False):
    """The reply of a refused request."""

    error: Annotated[ErrorOut, doc("reason of the refusal", ERROR)]


class NotServedError(ReplyRecord, frozen=True, gc=False):
    """The error for an unknown model, in the wire format of vLLM or OpenAI."""

    FURTHER_FIELDS: ClassVar[Mapping[str, Any] | None] = NUMBERS

    message: Annotated[str, doc("cause and remedy", "the model that this request names is not in service")]
    type: Annotated[str, doc("kind of the error in that format", "NotFoundError")]
    param: Annotated[str, doc("field that names the model", "model")]
    code: Annotated[int | str, doc("HTTP status in vLLM's format, model_not_found in OpenAI's", 404, "model_not_found")]
    reason: Annotated[str, doc("code of this server", "model_not_served")]


class NotServedReply(ReplyRecord, frozen=True, gc=False):
    """The reply to a request for an unknown model, in the wire format of vLLM or OpenAI."""

    error: Annotated[
        NotServedError,
        doc(
            "reason of the refusal",
            {
                "message": "the model that this request names is not in service",
                "type": "NotFoundError",
                "param": "model",
                "code": 404,
                "reason": "model_not_served",
                "served_model": "/models/step-1200",
            },
        ),
    ]


SAMPLE_ERROR = f"reason why there is no score, else null. Codes: {', '.join(f'`{code}`' for code in SAMPLE_CODES)}"
"""Description of the error of a sample."""


def error_out(code: str, message: str, details: Mapping[str, Any]) -> Any:
    """Build an `ErrorOut`, or the same with a number that has no field in it, which is a bug."""
    try:
        return ErrorOut(code, message, **details)
    except TypeError:
        return {"code": code, "message": message, **details}
