"""The requests of `schemas` as msgspec structs: bytes to validated records in one fast pass.

The pydantic models document the wire and report the faults of a body; these structs only decode valid bodies. The models
accept every body that these structs accept, with equal values (tests/properties/test_request_bodies.py); `body` reads every
body that they refuse again with the models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Name = Annotated[str, msgspec.Meta(max_length=256)]
MAX_STEP = 2**53 - 1
"""The largest integer that every JSON parser reads exactly."""

MAX_NUMBER = 1e9
"""Limit of every other number of a body, with either sign: its square, and sums over a run, cannot overflow."""

MAX_TOKENS = 2**31 - 1

Step = Annotated[int, msgspec.Meta(ge=0, le=MAX_STEP)]
Nats = Annotated[float, msgspec.Meta(ge=0.0, le=MAX_NUMBER)]
Margin = Annotated[float, msgspec.Meta(ge=0.0, le=MAX_NUMBER)]
RawScore = Annotated[float, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]


class MessageStruct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One turn of a conversation."""

    role: str
    content: str


class SampleStruct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One conversation to score. `finish_reason` is UNSET if it is omitted, which means stop."""

    id: Name | None = None
    prompt: str | list[MessageStruct] | None = None
    response: str | None = None
    messages: list[MessageStruct] | None = None
    text: str | None = None
    input_ids: tuple[int, ...] | None = None
    finish_reason: Literal["stop", "length"] | msgspec.UnsetType = msgspec.UNSET
    reference_rewards: Annotated[tuple[RawScore, ...], msgspec.Meta(max_length=64)] = ()
    score_empty: bool = False


class ScoreRequestStruct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The body of `POST /score`."""

    samples: Annotated[list[SampleStruct], msgspec.Meta(min_length=1)]
    run: Name | None = None
    step: Step | None = None
    kl: Nats | None = None


class ComparisonStruct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One prompt and the responses to rank."""

    prompt: str | list[MessageStruct]
    responses: Annotated[list[str], msgspec.Meta(min_length=2, max_length=16)]
    id: Name | None = None


class CompareRequestStruct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The body of `POST /compare`."""

    comparisons: Annotated[list[ComparisonStruct], msgspec.Meta(min_length=1)]
    run: Name | None = None
    step: Step | None = None
    tie_margin: Margin = 0.0


def n_strings(request: ScoreRequestStruct | CompareRequestStruct) -> int:
    """Count the strings, keys included, of the JSON of this request without fields at their defaults."""
    n = 2 * (request.run is not None) + (request.step is not None) + 1
    if isinstance(request, ScoreRequestStruct):
        return n + (request.kl is not None) + _n_strings_of_samples(request.samples)
    return n + (request.tie_margin != 0.0) + sum([_n_strings_of_comparison(each) for each in request.comparisons])


def _n_strings_of_samples(samples: list[SampleStruct]) -> int:
    """Count the strings of samples. A loop without calls, since it runs in every request."""
    n, unset = 0, msgspec.UNSET
    for sample in samples:
        if (prompt := sample.prompt) is not None:
            n += 2 if type(prompt) is str else 1 + 4 * len(prompt)
        if sample.response is not None:
            n += 2
        if sample.input_ids is not None:
            n += 1
        if sample.id is not None:
            n += 2
        if sample.finish_reason is not unset:
            n += 2
        if (messages := sample.messages) is not None:
            n += 1 + 4 * len(messages)
        if sample.text is not None:
            n += 2
        if sample.reference_rewards:
            n += 1
        if sample.score_empty:
            n += 1
    return n


def _n_strings_of_comparison(comparison: ComparisonStruct) -> int:
    prompt = comparison.prompt
    n = 2 if isinstance(prompt, str) else 1 + 4 * len(prompt)
    return n + 1 + len(comparison.responses) + 2 * (comparison.id is not None)


_encoder = msgspec.json.Encoder()


def dumps(content: Any) -> bytes:
    """Encode plain records as JSON. Raise UnicodeEncodeError for lone surrogates; NaN and infinity become null."""
    return _encoder.encode(content)
