"""The requests of `schemas` once more, as msgspec reads them: bytes -> checked records in one pass, the fast way in.

The pydantic models document the wire and say what is wrong with a body; these twins only read what is right. What
they accept, the models accept with equal values (tests/properties/test_request_bodies.py); what they refuse, for
whatever reason, is read again with care by `body`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Name = Annotated[str, msgspec.Meta(max_length=256)]
MOST_STEPS = 2**53 - 1
"""The largest whole number that every reader of JSON has."""

LARGEST = 1e9
"""Of every other number of a body, with either sign: its square, and sums over a run, are far from any bound."""

MOST_TOKENS = 2**31 - 1

Step = Annotated[int, msgspec.Meta(ge=0, le=MOST_STEPS)]
Nats = Annotated[float, msgspec.Meta(ge=0.0, le=LARGEST)]
Margin = Annotated[float, msgspec.Meta(ge=0.0, le=LARGEST)]
RawScore = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=MOST_TOKENS)]


class MessageIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One turn."""

    role: str
    content: str


class SampleIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One conversation to score. `finish_reason` is UNSET where it is left out, which means stop."""

    id: Name | None = None
    prompt: str | list[MessageIn] | None = None
    response: str | None = None
    messages: list[MessageIn] | None = None
    text: str | None = None
    input_ids: tuple[int, ...] | None = None
    finish_reason: Literal["stop", "length"] | msgspec.UnsetType = msgspec.UNSET
    reference_rewards: Annotated[tuple[RawScore, ...], msgspec.Meta(max_length=64)] = ()
    score_empty: bool = False


class ScoreRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The body of `POST /score`."""

    samples: Annotated[list[SampleIn], msgspec.Meta(min_length=1)]
    run: Name | None = None
    step: Step | None = None
    kl: Nats | None = None


class ComparisonIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One prompt and the responses to rank."""

    prompt: str | list[MessageIn]
    responses: Annotated[list[str], msgspec.Meta(min_length=2, max_length=16)]
    id: Name | None = None


class CompareRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The body of `POST /compare`."""

    comparisons: Annotated[list[ComparisonIn], msgspec.Meta(min_length=1)]
    run: Name | None = None
    step: Step | None = None
    tie_margin: Margin = 0.0


def n_strings(request: ScoreRequest | CompareRequest) -> int:
    """How many strings, keys included, the JSON of this request has where no field is there that says nothing."""
    n = 2 * (request.run is not None) + (request.step is not None) + 1
    if isinstance(request, ScoreRequest):
        return n + (request.kl is not None) + _of_samples(request.samples)
    return n + (request.tie_margin != 0.0) + sum([_of_comparison(each) for each in request.comparisons])


def _of_samples(samples: list[SampleIn]) -> int:
    """A loop without calls: it is a part of every request."""
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


def _of_comparison(comparison: ComparisonIn) -> int:
    prompt = comparison.prompt
    n = 2 if isinstance(prompt, str) else 1 + 4 * len(prompt)
    return n + 1 + len(comparison.responses) + 2 * (comparison.id is not None)


_encoder = msgspec.json.Encoder()


def dumps(content: Any) -> bytes:
    """JSON of plain records. Raise UnicodeEncodeError for lone surrogates; NaN and infinity become null."""
    return _encoder.encode(content)
