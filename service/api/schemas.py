"""Our own wire format, as pydantic models: what is read strictly, and what the documentation shows.

Nothing here leaves `rewardserve.service.api`: `to_sample` and its like turn a checked request into plain records.
Replies are built as plain dicts by `replies`; the reply models describe them for `/docs` and for the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import UNSET
from pydantic import BaseModel, ConfigDict, FailFast, Field

from rewardserve.model.conversation import DEFAULT_OPTIONS, SCORE_EMPTY_OPTIONS, Message, Sample, SampleError
from rewardserve.service.api import structs
from rewardserve.service.errors import SAMPLE_CODES
from rewardserve.service.scoring import Comparison, SampleOrError

RawScore = Annotated[float, Field(ge=-structs.MAX_NUMBER, le=structs.MAX_NUMBER, allow_inf_nan=False)]
NonNegativeNumber = Annotated[float, Field(ge=0.0, le=structs.MAX_NUMBER, allow_inf_nan=False)]
Step = Annotated[int, Field(ge=0, le=structs.MAX_STEP)]
Name = Annotated[str, Field(max_length=256)]


class _StopAtFirstError(FailFast):
    """One offence is enough to refuse a list: a million of them would be described at a kilobyte each."""

    __hash__ = object.__hash__  # a part of a union must have one


_STOP_AT_FIRST_ERROR = _StopAtFirstError()


_RUN = "the training that this belongs to, for trip wires and dashboards; or ?run=, or the header x-run; empty: none; no two differ"
_STEP = "step of that training; or ?step=, or the header x-step; no two differ"
_SAMPLE_CODES = ", ".join(f"`{code}`" for code in SAMPLE_CODES)


class StrictModel(BaseModel):
    """What callers send: types are not converted, unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


class MessageIn(StrictModel):
    """One turn of a conversation."""

    role: str = Field(description="system, user, assistant or tool; another one is that sample's own error")
    content: str = Field(description="the text of the turn")


class SampleIn(StrictModel):
    """One conversation to score. Give exactly one of: prompt and response; messages; text; input_ids."""

    id: Name | None = Field(
        None, description="comes back in the reply, whose order is that of the request; default: the index"
    )
    prompt: str | Annotated[list[MessageIn], _STOP_AT_FIRST_ERROR] | None = Field(
        None, description="one user turn, or a list of messages"
    )
    response: str | None = Field(None, description="the response to `prompt`: it is scored")
    messages: Annotated[list[MessageIn], _STOP_AT_FIRST_ERROR] | None = Field(
        None, description="the last one is the assistant's: it is scored"
    )
    text: str | None = Field(None, description="already rendered by the caller")
    input_ids: Annotated[list[int], _STOP_AT_FIRST_ERROR] | None = Field(
        None, description="already tokenised by the caller"
    )
    finish_reason: Literal["stop", "length"] = Field("stop", description="length: cut off, no end token is added")
    reference_rewards: list[RawScore] = Field(
        [], max_length=64, description="raw scores of reference responses to this prompt, for the shapes par and lsc"
    )
    score_empty: bool = Field(
        False,
        description="score an empty response (white space counts for nothing) at its end token",
    )


class ScoreRequest(StrictModel):
    """Samples to score, and the run and step of the training that they belong to."""

    run: Name | None = Field(None, description=_RUN)
    step: Step | None = Field(None, description=_STEP)
    kl: NonNegativeNumber | None = Field(None, description="of the policy from its start, in nats; for the trip wires")
    samples: Annotated[list[SampleIn], _STOP_AT_FIRST_ERROR] = Field(
        min_length=1, description="what to score; a bad sample has an error of its own and spoils no other"
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "run": "ppo-7",
                    "step": 120,
                    "samples": [
                        {"id": "a", "prompt": "What is two plus two?", "response": "Four.", "finish_reason": "stop"},
                        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
                        {"text": "already rendered by the caller"},
                        {"input_ids": [1, 2, 3]},
                    ],
                }
            ]
        }
    )


class ComparisonIn(StrictModel):
    """One prompt and the responses to rank."""

    id: Name | None = Field(
        None, description="comes back in the reply, whose order is that of the request; default: the index"
    )
    prompt: str | Annotated[list[MessageIn], _STOP_AT_FIRST_ERROR] = Field(
        description="one user turn, or a list of messages"
    )
    responses: Annotated[list[str], _STOP_AT_FIRST_ERROR] = Field(
        min_length=2, max_length=16, description="responses to the prompt, in any order"
    )


class CompareRequest(StrictModel):
    """Comparisons to make. `tie_margin` is in units of the raw score."""

    run: Name | None = Field(None, description=_RUN)
    step: Step | None = Field(None, description=_STEP)
    tie_margin: NonNegativeNumber = Field(0.0, description="raw scores that differ by no more have no winner")
    comparisons: Annotated[list[ComparisonIn], _STOP_AT_FIRST_ERROR] = Field(
        min_length=1, description="prompts with their responses"
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"comparisons": [{"id": "q", "prompt": "Why?", "responses": ["No.", "Because."]}]}]
        }
    )


class ErrorOut(BaseModel):
    """Why something was refused. The numbers that matter stand beside the message."""

    model_config = ConfigDict(extra="allow")

    code: str = Field(description="stable; what a program should look at")
    message: str = Field(description="what happened and what helps, for people; holds nothing of a conversation")


class ErrorReply(BaseModel):
    """Every error has this shape."""

    error: ErrorOut = Field(description="why the request was refused")


class ResultOut(BaseModel):
    """What became of one sample. A sample with an error has null where a number would be."""

    id: str = Field(description="as in the request, else the index")
    reward: float | None = Field(description="after the whole pipeline: what to train on")
    raw: float | None = Field(description="the weighted sum of the value heads")
    normalized: float | None = Field(description="(raw - mean) / std of the calibration; null without one")
    heads: dict[str, float] | None = Field(None, description="only where the model has more than one head")
    stages: dict[str, float] | None = Field(
        None, description="what each stage added, the sum is the reward; only where there are more than one and a shape"
    )
    notes: list[str] = Field(description="what the pipeline did, such as capped_high")
    flags: list[str] = Field(description="what trip wires saw in this sample; never a change of the reward")
    tokens: int | None = Field(description="of the encoded sample")
    truncated: bool = Field(description="whether the left of the prompt was cut off")
    missing_end: bool = Field(description="whether there is no end token, because the policy was cut off")
    cached: bool = Field(description="whether the score came from the cache of exact repeats")
    error: ErrorOut | None = Field(
        description=f"why there is no score; null where there is one. Codes: {_SAMPLE_CODES}"
    )


class UsageOut(BaseModel):
    """Sums over the samples that have a score. `tokens_computed` is smaller where prefixes were shared."""

    samples: int = Field(description="samples of the request")
    tokens: int = Field(description="of all samples that have a score")
    tokens_computed: int = Field(description="of these, what was not shared, repeated or cached")


class TimingOut(BaseModel):
    """The longest of each stage over the samples of the request, in milliseconds."""

    encode: float = Field(description="template and tokenizer")
    queue: float = Field(description="from the encoded sample to its batch")
    forward: float = Field(description="of the batch")


class ModelOut(BaseModel):
    """Which model said it."""

    model: str = Field(description="name of the model that scored: the path or hub name that was loaded")
    model_version: int = Field(description="number of that model within this process")
    contract: str = Field(description="digest of the scoring contract")
    calibration: str | None = Field(description="digest of the calibration; null without one")
    pipeline: str = Field(description="digest of the reward pipeline")


class ScoreReply(ModelOut):
    """Rewards in the order of the request."""

    rewards: list[float | None] = Field(description="one a sample, in order; null where there is no score")
    results: list[ResultOut] = Field(description="what became of each sample, in order")
    usage: UsageOut = Field(description="sizes")
    timing_ms: TimingOut = Field(description="times")


class ComparisonOut(BaseModel):
    """What became of one comparison. One bad response makes it an error."""

    id: str = Field(description="as in the request, else the index")
    ranking: list[int] | None = Field(description="indices of the responses, the best first")
    winner: int | None = Field(description="null inside the tie margin")
    raw: list[float] | None = Field(description="raw scores, in the order of the request")
    probabilities: list[list[float]] | None = Field(description="[i][j]: that response i is better than j")
    margin: float | None = Field(description="raw score of the best above the second")
    error: ErrorOut | None = Field(
        description=f"why there is no ranking; null where there is one. Codes: {_SAMPLE_CODES}"
    )


class CompareReply(ModelOut):
    """Results in the order of the request."""

    results: list[ComparisonOut] = Field(description="what became of each comparison, in order")
    usage: UsageOut = Field(description="sizes")
    timing_ms: TimingOut = Field(description="times")


def to_sample(sample: SampleIn | structs.SampleStruct) -> SampleOrError:
    """A `Sample`, or the reason why this is none."""
    prompt, messages, ids = sample.prompt, sample.messages, sample.input_ids
    try:
        return Sample(
            prompt if prompt is None or isinstance(prompt, str) else _messages(prompt),
            sample.response,
            None if messages is None else _messages(messages),
            sample.text,
            None if ids is None else tuple(ids),
            "stop" if sample.finish_reason is UNSET else sample.finish_reason,
            tuple(sample.reference_rewards),
            options=SCORE_EMPTY_OPTIONS if sample.score_empty else DEFAULT_OPTIONS,
        )
    except SampleError as error:
        return error


def to_comparison(comparison: ComparisonIn | structs.ComparisonStruct) -> Comparison:
    """The plain record of a comparison."""
    prompt = comparison.prompt
    return Comparison(prompt if isinstance(prompt, str) else _messages(prompt), tuple(comparison.responses))


def _messages(messages: Sequence[MessageIn | structs.MessageStruct]) -> tuple[Message, ...]:
    return tuple(Message(m.role, m.content) for m in messages)
