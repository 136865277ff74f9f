"""The wire format of this server as pydantic models, for strict validation and for the OpenAPI document.

These models stay within `rewardserve.service.api`: `to_sample` and `to_comparison` convert a valid request to plain records.
`replies` builds replies as plain dicts; the reply models document them for `/docs` and the tests.
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
    """Stop at the first invalid item of a list: pydantic describes each in about a kilobyte, and there may be a million."""

    __hash__ = object.__hash__  # required in a union


_STOP_AT_FIRST_ERROR = _StopAtFirstError()


_RUN = "name of the training run, for trip wires and dashboards; empty: none. Same as ?run= or x-run; different values are refused"
_STEP = "training step of the run. Same as ?step= or the header x-step; different values are refused"
_SAMPLE_CODES = ", ".join(f"`{code}`" for code in SAMPLE_CODES)


class StrictModel(BaseModel):
    """Base of requests: types are not converted, unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


class MessageIn(StrictModel):
    """One turn of a conversation."""

    role: str = Field(description="system, user, assistant or tool; another role is an error of that sample")
    content: str = Field(description="text of the turn")


class SampleIn(StrictModel):
    """One conversation to score. Give exactly one of: prompt and response; messages; text; input_ids."""

    id: Name | None = Field(
        None, description="returned in the reply, which has the order of the request; default: the index"
    )
    prompt: str | Annotated[list[MessageIn], _STOP_AT_FIRST_ERROR] | None = Field(
        None, description="one user turn, or a list of messages"
    )
    response: str | None = Field(None, description="response to `prompt`, which is scored")
    messages: Annotated[list[MessageIn], _STOP_AT_FIRST_ERROR] | None = Field(
        None, description="conversation whose last message is the assistant's, which is scored"
    )
    text: str | None = Field(None, description="conversation that the client has rendered")
    input_ids: Annotated[list[int], _STOP_AT_FIRST_ERROR] | None = Field(
        None, description="conversation that the client has tokenised"
    )
    finish_reason: Literal["stop", "length"] = Field(
        "stop", description="length: the response was cut off, so no end token is added"
    )
    reference_rewards: list[RawScore] = Field(
        [], max_length=64, description="raw scores of reference responses to this prompt, for the shapes par and lsc"
    )
    score_empty: bool = Field(
        False,
        description="score an empty or blank response at its end token, instead of refusing it",
    )


class ScoreRequest(StrictModel):
    """Samples to score, and the run and step of the training that they belong to."""

    run: Name | None = Field(None, description=_RUN)
    step: Step | None = Field(None, description=_STEP)
    kl: NonNegativeNumber | None = Field(
        None, description="KL divergence of the policy from its initial state, in nats; for the trip wires"
    )
    samples: Annotated[list[SampleIn], _STOP_AT_FIRST_ERROR] = Field(
        min_length=1,
        description="conversations to score; an invalid sample gets an error in its result, the others are scored",
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
                        {"text": "a conversation that the client has rendered"},
                        {"input_ids": [1, 2, 3]},
                    ],
                }
            ]
        }
    )


class ComparisonIn(StrictModel):
    """One prompt and the responses to rank."""

    id: Name | None = Field(
        None, description="returned in the reply, which has the order of the request; default: the index"
    )
    prompt: str | Annotated[list[MessageIn], _STOP_AT_FIRST_ERROR] = Field(
        description="one user turn, or a list of messages"
    )
    responses: Annotated[list[str], _STOP_AT_FIRST_ERROR] = Field(
        min_length=2, max_length=16, description="responses to the prompt, in any order"
    )


class CompareRequest(StrictModel):
    """Prompts with responses to rank. `tie_margin` is in units of the raw score."""

    run: Name | None = Field(None, description=_RUN)
    step: Step | None = Field(None, description=_STEP)
    tie_margin: NonNegativeNumber = Field(
        0.0, description="there is no winner if the best two raw scores differ by no more than this"
    )
    comparisons: Annotated[list[ComparisonIn], _STOP_AT_FIRST_ERROR] = Field(
        min_length=1, description="prompts with their responses"
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"comparisons": [{"id": "q", "prompt": "Why?", "responses": ["No.", "Because."]}]}]
        }
    )


class ErrorOut(BaseModel):
    """An error. Its numbers are further fields."""

    model_config = ConfigDict(extra="allow")

    code: str = Field(description="stable code for programs")
    message: str = Field(description="cause and remedy for humans; never quotes a conversation")


class ErrorReply(BaseModel):
    """The reply of a refused request."""

    error: ErrorOut = Field(description="reason of the refusal")


class ResultOut(BaseModel):
    """Result of one sample. A sample with an error has null scores."""

    id: str = Field(description="as in the request, else the index")
    reward: float | None = Field(description="output of the reward pipeline, to train on")
    raw: float | None = Field(description="weighted sum of the value heads")
    normalized: float | None = Field(description="(raw - mean) / std of the calibration; null without one")
    heads: dict[str, float] | None = Field(
        None, description="raw score by head; only if the model has more than one head"
    )
    stages: dict[str, float] | None = Field(
        None,
        description="contribution of each stage, with the reward as their sum; only if there are more than one and a shape",
    )
    notes: list[str] = Field(description="effects of the pipeline on the reward, such as capped_high")
    flags: list[str] = Field(description="trip wires that match this sample; they never change the reward")
    tokens: int | None = Field(description="length of the encoded sample in tokens")
    truncated: bool = Field(description="whether the prompt was cut from the left")
    missing_end: bool = Field(description="whether there is no end token, because the response was cut off")
    cached: bool = Field(description="whether the score is that of an equal row scored before")
    error: ErrorOut | None = Field(description=f"reason why there is no score, else null. Codes: {_SAMPLE_CODES}")


class UsageOut(BaseModel):
    """Sizes of a request. `tokens_computed` is below `tokens` where prefixes were shared."""

    samples: int = Field(description="samples of the request")
    tokens: int = Field(description="tokens of all samples that have a score")
    tokens_computed: int = Field(description="tokens that were computed, and not shared, repeated or cached")


class TimingOut(BaseModel):
    """Longest time of each stage over the samples of the request, in milliseconds."""

    encode: float = Field(description="chat template and tokenizer")
    queue: float = Field(description="wait of the encoded sample for its batch")
    forward: float = Field(description="forward pass of the batch")


class ModelOut(BaseModel):
    """The model that scored the request."""

    model: str = Field(description="name of the model: the path or hub name from which it was loaded")
    model_version: int = Field(description="version of the model within this process")
    contract: str = Field(description="digest of the scoring contract")
    calibration: str | None = Field(description="digest of the calibration; null without one")
    pipeline: str = Field(description="digest of the reward pipeline")


class ScoreReply(ModelOut):
    """Rewards in the order of the request."""

    rewards: list[float | None] = Field(description="one reward a sample, in order; null for a sample without a score")
    results: list[ResultOut] = Field(description="one result a sample, in order")
    usage: UsageOut = Field(description="sizes")
    timing_ms: TimingOut = Field(description="times")


class ComparisonOut(BaseModel):
    """Result of one comparison. If one response has no score, the comparison has an error."""

    id: str = Field(description="as in the request, else the index")
    ranking: list[int] | None = Field(description="indices of the responses, the best first")
    winner: int | None = Field(description="index of the best response; null within the tie margin")
    raw: list[float] | None = Field(description="raw scores, in the order of the request")
    probabilities: list[list[float]] | None = Field(description="[i][j]: that response i is better than j")
    margin: float | None = Field(description="raw score of the best response minus that of the second")
    error: ErrorOut | None = Field(description=f"reason why there is no ranking, else null. Codes: {_SAMPLE_CODES}")


class CompareReply(ModelOut):
    """Results in the order of the request."""

    results: list[ComparisonOut] = Field(description="one result a comparison, in order")
    usage: UsageOut = Field(description="sizes")
    timing_ms: TimingOut = Field(description="times")


def to_sample(sample: SampleIn | structs.SampleStruct) -> SampleOrError:
    """Convert a sample of a request. Return the error of an invalid one."""
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
    """Convert a comparison of a request to a plain record."""
    prompt = comparison.prompt
    return Comparison(prompt if isinstance(prompt, str) else _messages(prompt), tuple(comparison.responses))


def _messages(messages: Sequence[MessageIn | structs.MessageStruct]) -> tuple[Message, ...]:
    return tuple(Message(m.role, m.content) for m in messages)
