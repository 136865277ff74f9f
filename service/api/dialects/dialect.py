"""Wire formats: how the body of a request becomes samples, and how their results become a reply.

A route reads one or more forms of a request. Each has a list of its own of the fields that it reads and of those that may be there,
and refuses all others by name: no field that another form reads is dropped in silence.

Knows no wire format in particular and does no scoring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from starlette.responses import Response

from rewardserve.model.conversation import SCORE_EMPTY_OPTIONS, Sample, SampleError, SampleOptions, is_empty_value
from rewardserve.service.api.body import NOT_READ, convert
from rewardserve.service.api.error_responses import request_error_response
from rewardserve.service.api.replies import json_response
from rewardserve.service.errors import (
    Failure,
    InvalidRequest,
    ModelNotServed,
    RequestRefused,
    RunBlocked,
    RunRefused,
    SampleFailed,
    SampleRefused,
)
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.scoring import SampleOrError, SampleResult

ScoreKind = Literal["reward", "raw", "normalized"]
"""Which of a sample's three scores a reply has: after the whole pipeline, as the value head gave it, or in between."""

SCORE_KINDS: tuple[ScoreKind, ...] = ("reward", "raw", "normalized")

_TRANSIENT = frozenset({"out_of_memory", "scorer_failed", "scorer_bug", "score_not_finite", "encoding_failed"})


@dataclass(frozen=True, slots=True)
class ScoredRequest:
    """The results of one request, from which a reply is made. `elapsed_s` from the first byte of the request to now.

    `applies_sigmoid`: the reply has the sigmoid of the score.
    """

    served: ModelRuntime
    results: Sequence[SampleResult]
    score_kind: ScoreKind
    options: Mapping[str, str]
    elapsed_s: float
    applies_sigmoid: bool = False

    @property
    def scores(self) -> list[float]:
        """The number of every sample, in order. Raise `RequestRefused` for the first that has none."""
        numbers = [score_of(i, result, self.score_kind) for i, result in enumerate(self.results)]
        return [sigmoid(number) for number in numbers] if self.applies_sigmoid else numbers

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
    error_fields = {"message": error.message, "type": "NotFoundError", "param": "model", "code": error.status}
    return json_response({"error": {**error_fields, "reason": error.code, **error.details}}, error.status)


def not_found_as_openai(error: ModelNotServed) -> Response:
    """OpenAI's reply for a model that it does not serve."""
    error_fields = {
        "message": error.message,
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    return json_response({"error": {**error_fields, "reason": error.code, **error.details}}, error.status)


_MAX_FIELD_CHARS = 120

_CHAT_TEMPLATE = "the chat template is the contract's, and is rendered as in training: send no other"
_ONE_LIMIT = "a limit of one of two texts is not supported: use truncate_prompt_tokens, which cuts the prompt"
_NO_INSTRUCTION = "the template is the contract's and has no place for an instruction: leave it out"

REMEDIES: Mapping[str, str] = {
    "chat_template": _CHAT_TEMPLATE,
    "chat_template_kwargs": _CHAT_TEMPLATE,
    "add_generation_prompt": "there is nothing to score after a generation prompt: leave it out",
    "apply_softmax": "a softmax over one score is always 1: leave it out",
    "label_token_ids": "this model gives one score and no probabilities of tokens: leave it out",
    "max_tokens_per_query": _ONE_LIMIT,
    "max_tokens_per_doc": _ONE_LIMIT,
    "instruct": _NO_INSTRUCTION,
    "instruction": _NO_INSTRUCTION,
}
"""Why a field is refused, and what helps, where that is more than that it is not read."""


@dataclass(frozen=True, slots=True)
class BodyFormat:
    """One form of a request. A body has it where it has all fields in `texts`, which hold what is scored.

    `body` is the record that its JSON becomes; `to_samples` makes samples of that, `to_reply` the JSON of the reply.
    `ignored_fields` change neither the text that is scored nor the reply. `accepted_values`: fields with the values that say
    what is done anyway. Any field beside these is refused, unless its value is empty. `ignored_fields` None: the body may have
    any field, and `to_samples` checks them.

    `model` is the name that a body gives the model. `activation_of` is whether a body asks for the sigmoid of the raw score, None
    where it does not say; `activates_by_default` is what that means then. `may_be_empty`: a body without samples is answered
    without scores, because the server whose format this is does so, or its clients send such; in any other format it is refused.
    """

    text_fields: tuple[str, ...]
    body: Any
    to_samples: Callable[[Any, ModelRuntime], list[SampleOrError]]
    to_reply: Callable[[Any, ScoredRequest], Any]
    ignored_fields: frozenset[str] | None = frozenset()
    accepted_values: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    model: Callable[[Any], str | None] = lambda body: body.model
    activation_of: Callable[[Any], bool | None] = lambda _body: None
    activates_by_default: bool = False
    may_be_empty: bool = False
    read_fields: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        names = () if self.ignored_fields is None else (each.encode_name for each in msgspec.structs.fields(self.body))
        object.__setattr__(self, "read_fields", frozenset(names))

    def check_fields(self, given: Mapping[str, Any]) -> None:
        """Raise `InvalidRequest` for a field that this form has not."""
        if self.ignored_fields is None:
            return
        for name, value in given.items():
            if name not in self.read_fields and name not in self.ignored_fields and not is_empty_value(value):
                self._check_default(name, value)

    def _check_default(self, name: str, value: object) -> None:
        good = self.accepted_values.get(name, ())
        if any(type(value) is type(each) and value == each for each in good):
            return
        field = name[:_MAX_FIELD_CHARS]
        # What was written there is not repeated: a message never holds a part of a body.
        known = f" with another value than {' or '.join(map(repr, good))}" if good else ""
        why = REMEDIES.get(name) or f"{NOT_READ}. Read{known} beside it: {', '.join(sorted(self.read_fields))}"
        raise InvalidRequest(f"{field}: {why}", field=field)


def _is_present(value: object) -> bool:
    return value is not None


def _is_non_empty(value: object) -> bool:
    """A list of an empty text holds one: that text may be what is to be scored."""
    return value is not None and value not in ("", [], {})


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one route reads and writes: the forms of its requests, and what they have in common.

    `score_kind` is what its callers mean by a score, unless their URL says otherwise. `example_reply` is shown in the
    documentation. `queue_timeout_s`: so long a request waits for capacity, because its client gives up sooner than capacity
    is free. `options` are query parameters of this route only, with the values that they may have; none: any.

    `reserved_values`: values that one of the options may not have, because the reply has fields of these names.

    `fixed_names` are names of the model that clients of this format send whatever is served; `render_model_not_served` is the reply
    to any other name.
    """

    path: str
    clients: str
    body_formats: tuple[BodyFormat, ...]
    score_kind: ScoreKind
    example_reply: Any
    queue_timeout_s: float = 0.0
    options: Mapping[str, frozenset[str]] = field(default_factory=dict)
    reserved_values: Mapping[str, frozenset[str]] = field(default_factory=dict)
    headers: Callable[[Any, ScoredRequest], dict[str, str]] = lambda _body, _answered: {}
    render_error: Callable[[RequestRefused, int], Response] = request_error_response
    fixed_names: frozenset[str] = frozenset()
    render_model_not_served: Callable[[ModelNotServed], Response] = not_found_as_vllm

    def read(self, value: Any) -> tuple[BodyFormat, Any]:
        """The form of a body, and the body as its record. Raise `InvalidRequest` for none, for two, and as `check_fields`."""
        if not isinstance(value, dict):
            raise InvalidRequest("Expected `object`", field="$")
        form = self._form(value)
        form.check_fields(value)
        return form, convert(value, form.body)

    def _form(self, value: Mapping[str, Any]) -> BodyFormat:
        # An empty text or list can be what is to be scored; beside another form it is an empty field.
        for is_given in (_is_non_empty, _is_present):
            found = [form for form in self.body_formats if all(is_given(value.get(name)) for name in form.text_fields)]
            if len(found) == 1:
                return found[0]
            if found:
                name = next(name for name in found[1].text_fields if name not in found[0].text_fields)
                raise InvalidRequest(f"{name}: this body has two formats. {self._words(found)}, not both", field=name)
        begun = next(
            (form for form in self.body_formats if any(value.get(name) is not None for name in form.text_fields)),
            self.body_formats[0],
        )
        missing = next((name for name in begun.text_fields if value.get(name) is None), begun.text_fields[0])
        raise InvalidRequest(f"{missing}: {self._words(self.body_formats)}", field=missing)

    @staticmethod
    def _words(forms: Sequence[BodyFormat]) -> str:
        return f"send {', or '.join(' and '.join(form.text_fields) for form in forms)}"


_DEFAULT_NAME = "default"
"""What SGLang's clients send where none was set."""


def check_model(requested: str | None, served: ModelRuntime, accepted: Collection[str]) -> None:
    """Raise `ModelNotServed` where a request names another model than `served`, which is the one that will score it.

    Good are no name, an empty one, `default`, the served name, one of the digests of replies, and the names in `accepted`.
    """
    name = served.loaded.identity.name
    if not requested or requested in (name, _DEFAULT_NAME) or requested in accepted or served.has((requested,)):
        return
    # The name that was asked for is not repeated: a message never holds a part of a body.
    raise ModelNotServed(
        f"the model that this request names is not served here, {name} is: send that name, leave `model` out, or let "
        "the server accept the other name with REWARD_MODEL_ALIASES",
        served_model=name,
    )


def check_version(requested: str | None, served: ModelRuntime) -> None:
    """Raise `ModelNotServed` where a path names another version of the model than the one that will score it."""
    if requested is not None and requested != str(served.version):
        raise ModelNotServed(
            f"the version that this request names does not score it, version {served.version} does: send that one, or none",
            served_model=served.loaded.identity.name, model_version=served.version,
        )  # fmt: skip


def score_of(index: int, result: SampleResult, number: ScoreKind) -> float:
    """One sample's number. Raise `RequestRefused` where it has none: a failure is never a number."""
    if result.failure is not None:
        raise as_request_error(index, result.failure)
    reward = result.reward
    assert reward is not None
    value = {"reward": reward.value, "raw": reward.raw, "normalized": reward.normalized}[number]
    if value is None:
        raise SampleRefused(
            "value=normalized, but this model has no statistics to normalise with", reason="not_normalized"
        )
    return value


def as_request_error(index: int, failure: Failure) -> RequestRefused:
    """The whole request, because of one of its samples, with a status that a caller reads rightly: try again, or don't."""
    message = f"sample {index}: {failure.message}"
    is_transient = failure.code in _TRANSIENT
    kind = SampleFailed if is_transient else RunRefused if failure.code == RunBlocked.code else SampleRefused
    details = {**failure.details, "sample": index, "reason": failure.code}
    return kind(message, retry_after_s=1.0 if is_transient else None, **details)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def sample_or_error(make: Callable[[], Sample]) -> SampleOrError:
    """A sample, or the reason why it is none."""
    try:
        return make()
    except SampleError as error:
        return error


def sample_from_pair(
    prompt: str, response: str, served: ModelRuntime, options: SampleOptions = SCORE_EMPTY_OPTIONS
) -> Sample:
    """A prompt that may be rendered already, and a response to it.

    A prompt that ends in what the template writes before a response is; any other one is a turn of the user.
    """
    if served.loaded.encode.is_rendered(prompt):
        return Sample(text=prompt + response, n_prompt_chars=len(prompt), options=options)
    return Sample(prompt=prompt, response=response, options=options)
