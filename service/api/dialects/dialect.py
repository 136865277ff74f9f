"""What a dialect is: how the body of a caller becomes samples, and how what became of them becomes his answer.

Knows no caller in particular and does no scoring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from starlette.responses import Response

from model.conversation import SCORES_EMPTY, Sample, SampleError, Terms
from service.api.problems import refusal
from service.api.replies import json_response
from service.api.stage import Served
from service.errors import (
    Failure,
    ModelNotServed,
    RequestRefused,
    RunBlocked,
    RunRefused,
    SampleFailed,
    SampleRefused,
)
from service.scoring import Asked, Scored

Number = Literal["reward", "raw", "normalized"]
"""Which of a sample's three numbers a caller gets: after the whole pipeline, as the value head said it, or in between."""

NUMBERS: tuple[Number, ...] = ("reward", "raw", "normalized")

_TRANSIENT = frozenset({"out_of_memory", "scorer_failed", "scorer_bug", "score_not_finite", "encoding_failed"})


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of the samples of one request. `seconds` from the first byte of the request to now.

    `is_activated`: the caller gets the sigmoid of the number.
    """

    served: Served
    results: Sequence[Scored]
    number: Number
    options: Mapping[str, str]
    seconds: float
    is_activated: bool = False

    @property
    def numbers(self) -> list[float]:
        """The number of every sample, in order. Raise `RequestRefused` for the first that has none."""
        numbers = [number_of(i, result, self.number) for i, result in enumerate(self.results)]
        return [sigmoid(number) for number in numbers] if self.is_activated else numbers

    @property
    def model(self) -> str:
        """The name of the model that scored, whatever name the request gave it."""
        return self.served.loaded.identity.name

    @property
    def n_tokens(self) -> int:
        """What the samples came to."""
        return sum(result.n_tokens or 0 for result in self.results)


def not_found_as_vllm(error: ModelNotServed) -> Response:
    """vLLM's reply for a model that it does not serve: `code` is the status there."""
    said = {"message": error.message, "type": "NotFoundError", "param": "model", "code": error.status}
    return json_response({"error": {**said, "reason": error.code, **error.details}}, error.status)


def not_found_as_openai(error: ModelNotServed) -> Response:
    """OpenAI's reply for a model that it does not serve."""
    said = {"message": error.message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    return json_response({"error": {**said, "reason": error.code, **error.details}}, error.status)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One wire format.

    `body` is what its JSON is read as, by msgspec; `ask` makes samples of that, `answer` the JSON of the reply.
    `number` is what its callers mean by a score, unless their URL says otherwise. `patience_s`: so long a request waits
    for seats, because its caller gives up sooner than seats are free. `options` are query
    parameters of its own, with the values that they may have; none: any.

    `unread`: fields of the format that change neither the text that is scored nor the reply; any other field that `body` has not
    is refused, unless its value says nothing. None: `body` is read as it came, and `ask` looks at its fields.

    `model` is the name that a body gives the model; `fixed_names` are those that callers of this format send whatever is
    served; `not_served` is the reply to any other name. `activation` is whether a body asks for the sigmoid of the raw
    score, None where it does not say; `activates` is what that means then.
    """

    path: str
    callers: str
    body: Any
    ask: Callable[[Any, Served], list[Asked]]
    answer: Callable[[Any, Answered], Any]
    number: Number
    patience_s: float = 0.0
    unread: frozenset[str] | None = frozenset()
    options: Mapping[str, frozenset[str]] = field(default_factory=dict)
    headers: Callable[[Any, Answered], dict[str, str]] = lambda _body, _answered: {}
    refuse: Callable[[RequestRefused, int], Response] = refusal
    model: Callable[[Any], str | None] = lambda _body: None
    fixed_names: frozenset[str] = frozenset()
    not_served: Callable[[ModelNotServed], Response] = not_found_as_vllm
    activation: Callable[[Any], bool | None] = lambda _body: None
    activates: Callable[[Any], bool] = lambda _body: False

    @property
    def known_fields(self) -> frozenset[str] | None:
        """The fields that a body may have, or None: any."""
        if self.unread is None:
            return None
        return self.unread.union(field.encode_name for field in msgspec.structs.fields(self.body))


def check_model(asked: str | None, served: Served, accepted: Collection[str]) -> None:
    """Raise `ModelNotServed` where a request names another model than `served`, which is the one that will score it.

    Good are no name, an empty one, the served name, one of the digests of replies, and the names in `accepted`.
    """
    name = served.loaded.identity.name
    if not asked or asked == name or asked in accepted or served.has((asked,)):
        return
    # The name that was asked for is not repeated: a message never holds a part of a body.
    raise ModelNotServed(
        f"the model that this request names is not served here, {name} is: send that name, leave `model` out, or let "
        "the server accept the other name with REWARD_MODEL_ALIASES",
        served_model=name,
    )


def check_version(asked: str | None, served: Served) -> None:
    """Raise `ModelNotServed` where a path names another version of the model than the one that will score it."""
    if asked is not None and asked != str(served.epoch):
        raise ModelNotServed(
            f"the version that this request names does not score it, version {served.epoch} does: send that one, or none",
            served_model=served.loaded.identity.name, model_epoch=served.epoch,
        )  # fmt: skip


def number_of(index: int, result: Scored, number: Number) -> float:
    """One sample's number. Raise `RequestRefused` where it has none: a failure is never a number."""
    if result.failure is not None:
        raise refused_for(index, result.failure)
    reward = result.reward
    assert reward is not None
    value = {"reward": reward.value, "raw": reward.raw, "normalized": reward.normalized}[number]
    if value is None:
        raise SampleRefused(
            "value=normalized, but this model has no statistics to normalise with", reason="not_normalized"
        )
    return value


def refused_for(index: int, failure: Failure) -> RequestRefused:
    """The whole request, because of one of its samples, with a status that a caller reads rightly: try again, or don't."""
    message = f"sample {index}: {failure.message}"
    is_transient = failure.code in _TRANSIENT
    kind = SampleFailed if is_transient else RunRefused if failure.code == RunBlocked.code else SampleRefused
    details = {**failure.details, "sample": index, "reason": failure.code}
    return kind(message, retry_after_s=1.0 if is_transient else None, **details)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def sample_of(make: Callable[[], Sample]) -> Asked:
    """A sample, or the reason why it is none."""
    try:
        return make()
    except SampleError as error:
        return error


def spoken(prompt: str, response: str, served: Served, terms: Terms = SCORES_EMPTY) -> Sample:
    """A prompt that may be rendered already, and a response to it.

    A prompt that ends in what the template writes before a response is; any other one is a turn of the user.
    """
    if served.loaded.encode.is_rendered(prompt):
        return Sample(text=prompt + response, n_prompt_chars=len(prompt), terms=terms)
    return Sample(prompt=prompt, response=response, terms=terms)
