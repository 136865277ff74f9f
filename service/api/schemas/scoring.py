"""The replies of `POST /score`, `POST /compare` and `POST /approvals`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from msgspec import UNSET, UnsetType

from rewardserve.service.api.field_docs import DIGEST, doc
from rewardserve.service.api.schemas.errors import ERROR, SAMPLE_ERROR, ErrorOut
from rewardserve.service.api.schemas.model import ModelVersionOut
from rewardserve.service.api.schemas.record import ReplyRecord

_RESULT = {
    "id": "a", "reward": 0.41, "raw": 1.93, "normalized": 0.52, "notes": ["capped_high"], "flags": [], "tokens": 213,
    "truncated": False, "missing_end": False, "cached": False, "error": None,
}  # fmt: skip
_COMPARED = {
    "id": "q", "ranking": [1, 0], "winner": 1, "raw": [-0.4, 1.93], "probabilities": [[0.5, 0.09], [0.91, 0.5]],
    "margin": 2.33, "error": None,
}  # fmt: skip
_APPROVED = {"id": "g", "approvals": [0.41], "errors": [None], "repeats_taken": []}
_USAGE = {"samples": 2, "tokens": 213, "tokens_computed": 120}
_TIMING = {"encode": 1.2, "queue": 2.0, "forward": 9.7}


class ResultOut(ReplyRecord, frozen=True, gc=False, kw_only=True):
    """Result of one sample. A sample with an error has null scores."""

    id: Annotated[str, doc("as in the request, else the index", "a")]
    reward: Annotated[float | None, doc("output of the reward pipeline, to train on", 0.41)]
    raw: Annotated[float | None, doc("weighted sum of the value heads", 1.93)]
    normalized: Annotated[float | None, doc("(raw - mean) / std of the calibration; null without one", 0.52)]
    heads: Annotated[
        Mapping[str, float] | UnsetType | None,
        doc("raw score by head; only if the model has more than one head", {"convincing": 0.7, "harmless": 1.2}),
    ] = UNSET
    stages: Annotated[
        Mapping[str, float] | UnsetType | None,
        doc(
            "contribution of each stage, with the reward as their sum; only if there are more than one and a shape, or "
            "continuations, which add the stage lookahead",
            {"combined": 0.52, "shape": -0.11},
        ),
    ] = UNSET
    notes: Annotated[Sequence[str], doc("effects of the pipeline on the reward, such as capped_high", ["capped_high"])]
    flags: Annotated[
        Sequence[str], doc("trip wires that match this sample; they never change the reward", ["repetition"])
    ]
    tokens: Annotated[int | None, doc("length of the encoded sample in tokens", 213)]
    truncated: Annotated[bool, doc("whether the prompt was cut from the left", False)]
    missing_end: Annotated[bool, doc("whether there is no end token, because the response was cut off", False)]
    cached: Annotated[bool, doc("whether the score is that of an equal row scored before", False)]
    error: Annotated[ErrorOut | None, doc(SAMPLE_ERROR, ERROR)]


class UsageOut(ReplyRecord, frozen=True, gc=False):
    """Sizes of a request. `tokens_computed` is below `tokens` where prefixes were shared."""

    samples: Annotated[int, doc("samples of the request", 2)]
    tokens: Annotated[int, doc("tokens of all samples that have a score", 213)]
    tokens_computed: Annotated[int, doc("tokens that were computed, and not shared, repeated or cached", 120)]


class TimingOut(ReplyRecord, frozen=True, gc=False):
    """Longest time of each stage over the samples of the request, in milliseconds."""

    encode: Annotated[float, doc("chat template and tokenizer", 1.2)]
    queue: Annotated[float, doc("wait of the encoded sample for its batch", 2.0)]
    forward: Annotated[float, doc("forward pass of the batch", 9.7)]


class ModelOut(ModelVersionOut, frozen=True, gc=False):
    """The model that scored the request."""

    pipeline: Annotated[str, doc("digest of the reward pipeline", DIGEST)]


class ScoreReply(ModelOut, frozen=True, gc=False):
    """Rewards in the order of the request."""

    rewards: Annotated[
        list[float | None], doc("one reward a sample, in order; null for a sample without a score", [0.41])
    ]
    results: Annotated[list[ResultOut], doc("one result a sample, in order", [_RESULT])]
    usage: Annotated[UsageOut, doc("number of samples and tokens of the request", {**_USAGE, "samples": 1})]
    timing_ms: Annotated[TimingOut, doc("milliseconds from the template to the end of the forward pass", _TIMING)]


class ComparisonOut(ReplyRecord, frozen=True, gc=False):
    """Result of one comparison. If one response has no score, the comparison has an error."""

    id: Annotated[str, doc("as in the request, else the index", "a")]
    ranking: Annotated[Sequence[int] | None, doc("indices of the responses, the best first", [1, 0])] = None
    winner: Annotated[int | None, doc("index of the best response; null within the tie margin", 1)] = None
    raw: Annotated[Sequence[float] | None, doc("raw scores, in the order of the request", [-0.4, 1.93])] = None
    probabilities: Annotated[
        Sequence[Sequence[float]] | None, doc("[i][j]: that response i is better than j", [[0.5, 0.09], [0.91, 0.5]])
    ] = None
    margin: Annotated[float | None, doc("raw score of the best response minus that of the second", 2.33)] = None
    error: Annotated[ErrorOut | None, doc(SAMPLE_ERROR.replace("score", "ranking", 1), ERROR)] = None


class CompareReply(ModelOut, frozen=True, gc=False):
    """Results in the order of the request."""

    results: Annotated[list[ComparisonOut], doc("one result a comparison, in order", [_COMPARED])]
    usage: Annotated[UsageOut, doc("number of samples and tokens of the request", _USAGE)]
    timing_ms: Annotated[TimingOut, doc("milliseconds from the template to the end of the forward pass", _TIMING)]


class ApprovalOut(ReplyRecord, frozen=True, gc=False):
    """Approvals of the queries of one group. A query with an error has no approval."""

    id: Annotated[str, doc("as in the request, else the index", "g")]
    approvals: Annotated[
        Sequence[float | None], doc("one approval a query, in order: its reward by the snapshot of the run", [0.41])
    ]
    errors: Annotated[Sequence[ErrorOut | None], doc(f"one a query: {SAMPLE_ERROR}", [None])]
    repeats_taken: Annotated[
        Sequence[int],
        doc(
            "indices of queries that equal a response taken; many of them: the queries are not drawn independently", []
        ),
    ]


class ApprovalsReply(ModelOut, frozen=True, gc=False):
    """Approvals in the order of the request."""

    snapshot: Annotated[
        str, doc("digest of contract, calibration and pipeline, the same in every reply of the run", DIGEST)
    ]
    results: Annotated[list[ApprovalOut], doc("one result a group, in order", [_APPROVED])]
    usage: Annotated[UsageOut, doc("number of queries and tokens of the request", {**_USAGE, "samples": 1})]
    timing_ms: Annotated[TimingOut, doc("milliseconds from the template to the end of the forward pass", _TIMING)]
