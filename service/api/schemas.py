"""The replies of this server as pydantic models, for the OpenAPI document.

`replies` builds replies as plain dicts, which the tests validate by these models.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from rewardserve.service.api.field_docs import CHECKPOINT
from rewardserve.service.errors import SAMPLE_CODES

_SAMPLE_CODES = ", ".join(f"`{code}`" for code in SAMPLE_CODES)
DIGEST = "sha256:6f1d0c5e2b7a49d38c11f0e4a7b2956d0e8c3a51f4d27b69e0a1c85d3f4b2e70"
ERROR = {
    "code": "input_too_long",
    "message": "the sample has 5012 tokens; the limit is 4096",
    "n": 5012,
    "limit": 4096,
}
_RESULT = {
    "id": "a", "reward": 0.41, "raw": 1.93, "normalized": 0.52, "notes": ["softcapped_high"], "flags": [], "tokens": 213,
    "truncated": False, "missing_end": False, "cached": False, "error": None,
}  # fmt: skip
_COMPARED = {
    "id": "q", "ranking": [1, 0], "winner": 1, "raw": [-0.4, 1.93], "probabilities": [[0.5, 0.09], [0.91, 0.5]],
    "margin": 2.33, "error": None,
}  # fmt: skip


class ErrorOut(BaseModel):
    """An error. Its numbers are further fields."""

    model_config = ConfigDict(extra="allow")

    code: str = Field(description="stable code for programs", examples=[ERROR["code"]])
    message: str = Field(
        description="cause and remedy for humans; never quotes a conversation", examples=[ERROR["message"]]
    )


class ErrorReply(BaseModel):
    """The reply of a refused request."""

    error: ErrorOut = Field(description="reason of the refusal", examples=[ERROR])


class ResultOut(BaseModel):
    """Result of one sample. A sample with an error has null scores."""

    id: str = Field(description="as in the request, else the index", examples=["a"])
    reward: float | None = Field(description="output of the reward pipeline, to train on", examples=[0.41])
    raw: float | None = Field(description="weighted sum of the value heads", examples=[1.93])
    normalized: float | None = Field(
        description="(raw - mean) / std of the calibration; null without one", examples=[0.52]
    )
    heads: dict[str, float] | None = Field(
        None,
        description="raw score by head; only if the model has more than one head",
        examples=[{"convincing": 0.7, "harmless": 1.2}],
    )
    stages: dict[str, float] | None = Field(
        None,
        description="contribution of each stage, with the reward as their sum; only if there are more than one and a shape",
        examples=[{"combined": 0.52, "shape": -0.11}],
    )
    notes: list[str] = Field(
        description="effects of the pipeline on the reward, such as capped_high", examples=[["softcapped_high"]]
    )
    flags: list[str] = Field(
        description="trip wires that match this sample; they never change the reward", examples=[["repetition"]]
    )
    tokens: int | None = Field(description="length of the encoded sample in tokens", examples=[213])
    truncated: bool = Field(description="whether the prompt was cut from the left", examples=[False])
    missing_end: bool = Field(
        description="whether there is no end token, because the response was cut off", examples=[False]
    )
    cached: bool = Field(description="whether the score is that of an equal row scored before", examples=[False])
    error: ErrorOut | None = Field(
        description=f"reason why there is no score, else null. Codes: {_SAMPLE_CODES}", examples=[ERROR]
    )


class UsageOut(BaseModel):
    """Sizes of a request. `tokens_computed` is below `tokens` where prefixes were shared."""

    samples: int = Field(description="samples of the request", examples=[2])
    tokens: int = Field(description="tokens of all samples that have a score", examples=[213])
    tokens_computed: int = Field(
        description="tokens that were computed, and not shared, repeated or cached", examples=[120]
    )


class TimingOut(BaseModel):
    """Longest time of each stage over the samples of the request, in milliseconds."""

    encode: float = Field(description="chat template and tokenizer", examples=[1.2])
    queue: float = Field(description="wait of the encoded sample for its batch", examples=[2.0])
    forward: float = Field(description="forward pass of the batch", examples=[9.7])


class ModelOut(BaseModel):
    """The model that scored the request."""

    model: str = Field(
        description="name of the model: the path or hub name from which it was loaded", examples=[CHECKPOINT]
    )
    model_version: int = Field(description="version of the model within this process", examples=[2])
    contract: str = Field(description="digest of the scoring contract", examples=[DIGEST])
    calibration: str | None = Field(description="digest of the calibration; null without one", examples=[DIGEST])
    pipeline: str = Field(description="digest of the reward pipeline", examples=[DIGEST])


class ScoreReply(ModelOut):
    """Rewards in the order of the request."""

    rewards: list[float | None] = Field(
        description="one reward a sample, in order; null for a sample without a score", examples=[[0.41, None]]
    )
    results: list[ResultOut] = Field(description="one result a sample, in order", examples=[[_RESULT]])
    usage: UsageOut = Field(description="sizes", examples=[{"samples": 2, "tokens": 213, "tokens_computed": 120}])
    timing_ms: TimingOut = Field(description="times", examples=[{"encode": 1.2, "queue": 2.0, "forward": 9.7}])


class ComparisonOut(BaseModel):
    """Result of one comparison. If one response has no score, the comparison has an error."""

    id: str = Field(description="as in the request, else the index", examples=["a"])
    ranking: list[int] | None = Field(description="indices of the responses, the best first", examples=[[1, 0]])
    winner: int | None = Field(description="index of the best response; null within the tie margin", examples=[1])
    raw: list[float] | None = Field(description="raw scores, in the order of the request", examples=[[-0.4, 1.93]])
    probabilities: list[list[float]] | None = Field(
        description="[i][j]: that response i is better than j", examples=[[[0.5, 0.09], [0.91, 0.5]]]
    )
    margin: float | None = Field(description="raw score of the best response minus that of the second", examples=[2.33])
    error: ErrorOut | None = Field(
        description=f"reason why there is no ranking, else null. Codes: {_SAMPLE_CODES}", examples=[ERROR]
    )


class CompareReply(ModelOut):
    """Results in the order of the request."""

    results: list[ComparisonOut] = Field(description="one result a comparison, in order", examples=[[_COMPARED]])
    usage: UsageOut = Field(description="sizes", examples=[{"samples": 2, "tokens": 213, "tokens_computed": 120}])
    timing_ms: TimingOut = Field(description="times", examples=[{"encode": 1.2, "queue": 2.0, "forward": 9.7}])
