"""Wire formats: how the body of a request becomes samples, and how their results become a reply.

A route reads one or more body formats. Each lists the fields that it reads and the fields that it ignores, and refuses all others
by name, so that no field which another format reads is dropped silently.

Knows no specific wire format and does no scoring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from starlette.responses import Response

from rewardserve.model.conversation import SCORE_EMPTY_OPTIONS, Sample, SampleError, SampleOptions, is_empty_value
from rewardserve.service.api.error_responses import request_error_response
from rewardserve.service.api.field_docs import MODEL, doc
from rewardserve.service.api.replies import json_response
from rewardserve.service.api.schemas.errors import ErrorReply, NotServedError, NotServedReply
from rewardserve.service.api.schemas.record import with_fields
from rewardserve.service.api.validation import (
    MISSING_FIELD,
    NOT_READ,
    convert,
    suggest_given,
    suggest_known,
    type_fault,
)
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

ModelName = Annotated[
    str | None,
    doc(
        "the name of the model in service, an alias or a digest; other names are refused with 404; empty: any model",
        MODEL,
    ),
]

ScoreKind = Literal["reward", "raw", "normalized"]
"""The score in a reply: the reward after the pipeline, the raw score of the value head, or the normalised score."""

SCORE_KINDS: tuple[ScoreKind, ...] = ("reward", "raw", "normalized")

_NUMBERS = {"reward": "the reward", "raw": "the raw score", "normalized": "the normalised score"}

_TRANSIENT = frozenset({"out_of_memory", "scorer_failed", "scorer_bug", "score_not_finite", "encoding_failed"})


@dataclass(frozen=True, slots=True)
class ScoredRequest:
    """The results of one request, to build its reply from. `elapsed_s` is the time since the start of the request.

    `applies_sigmoid`: the reply has the sigmoid of the score.
    """

    runtime: ModelRuntime
    results: Sequence[SampleResult]
    score_kind: ScoreKind
    options: Mapping[str, str]
    elapsed_s: float
    applies_sigmoid: bool = False

    @property
    def scores(self) -> list[float]:
        """The score of every sample, in order. Raise `RequestRefused` for the first sample without one."""
        numbers = [score_of(i, result, self.score_kind) for i, result in enumerate(self.results)]
        return [sigmoid(number) for number in numbers] if self.applies_sigmoid else numbers

    @property
    def model(self) -> str:
        """The name of the model that scored, also if the request used an alias."""
        return self.runtime.loaded.identity.name

    @property
    def n_tokens(self) -> int:
        """The tokens of all samples."""
        return sum(result.n_tokens or 0 for result in self.results)


def not_found_as_vllm(error: ModelNotServed) -> Response:
    """Render vLLM's reply for an unknown model, in which `code` is the HTTP status."""
    return _not_served(error, NotServedError(error.message, "NotFoundError", "model", error.status, error.code))


def not_found_as_openai(error: ModelNotServed) -> Response:
    """Render OpenAI's reply for an unknown model."""
    record = NotServedError(error.message, "invalid_request_error", "model", "model_not_found", error.code)
    return _not_served(error, record)


def _not_served(error: ModelNotServed, record: NotServedError) -> Response:
    return json_response({"error": with_fields(record, error.details)}, error.status)


_MAX_FIELD_CHARS = 120

_CHAT_TEMPLATE = "the contract fixes the chat template and its arguments: leave it out"
_ONE_LIMIT = "a limit for one of the two texts is not supported: use truncate_prompt_tokens, which cuts the prompt"
_NO_INSTRUCTION = "the chat template of the contract has no field for an instruction: leave it out"

REMEDIES: Mapping[str, str] = {
    "chat_template": _CHAT_TEMPLATE,
    "chat_template_kwargs": _CHAT_TEMPLATE,
    "add_generation_prompt": "there is nothing to score after a generation prompt: leave it out",
    "apply_softmax": "a softmax over one score is always 1: leave it out",
    "label_token_ids": "a reward model has one score and no token probabilities: leave it out",
    "max_tokens_per_query": _ONE_LIMIT,
    "max_tokens_per_doc": _ONE_LIMIT,
    "instruct": _NO_INSTRUCTION,
    "instruction": _NO_INSTRUCTION,
}
"""Reasons and remedies for fields that are refused with another message than `NOT_READ`."""


@dataclass(frozen=True, slots=True)
class BodyFormat:
    """One format of the body. A body has this format if it has all of `text_fields`, whose content is scored.

    `body` is the record to which the JSON is converted; `to_samples` makes samples of it, `to_reply` the reply, which has one of
    the types in `replies`.
    `ignored_fields` affect neither the scored text nor the reply. `accepted_values` are fields with the values that match the
    behaviour of this server. Other fields are refused, unless their values are empty. `ignored_fields` None: the body may have
    any field, and `to_samples` checks them.

    `model` returns the model name of a body. `activation_of` returns whether a body requests the sigmoid of the raw score, None
    if it has no such field; then `activates_by_default` applies. `may_be_empty`: a body without samples gets a reply without
    scores, as from the server of this format or for clients that send such bodies; in any other format it is refused.
    `tasks` returns the task or data set of each sample, where the format has a field that names it; empty otherwise.
    """

    text_fields: tuple[str, ...]
    body: Any
    to_samples: Callable[[Any, ModelRuntime], list[SampleOrError]]
    to_reply: Callable[[Any, ScoredRequest], Any]
    replies: tuple[Any, ...]
    ignored_fields: frozenset[str] | None = frozenset()
    accepted_values: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    model: Callable[[Any], str | None] = lambda body: body.model
    activation_of: Callable[[Any], bool | None] = lambda _body: None
    activates_by_default: bool = False
    may_be_empty: bool = False
    tasks: Callable[[Any], Sequence[str | None]] = lambda _body: ()
    read_fields: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        names = () if self.ignored_fields is None else (each.encode_name for each in msgspec.structs.fields(self.body))
        object.__setattr__(self, "read_fields", frozenset(names))

    def check_fields(self, given: Mapping[str, Any]) -> None:
        """Raise `InvalidRequest` for a field that this format does not accept."""
        if self.ignored_fields is None:
            return
        for name, value in given.items():
            if name not in self.read_fields and name not in self.ignored_fields and not is_empty_value(value):
                self._check_default(name, value)

    def _check_default(self, name: str, value: object) -> None:
        accepted = self.accepted_values.get(name, ())
        if any(type(value) is type(each) and value == each for each in accepted):
            return
        field = name[:_MAX_FIELD_CHARS]
        # The message omits the value: it never holds a part of a body.
        only = f" It accepts the field with the value {' or '.join(map(repr, accepted))}." if accepted else ""
        known = sorted(self.read_fields)
        reason = (
            REMEDIES.get(name)
            or f"{NOT_READ}.{only} Fields that it reads: {', '.join(known)}{suggest_known(name, known)}"
        )
        raise InvalidRequest(f"{field}: {reason}", field=field)


def _is_present(value: object) -> bool:
    return value is not None


def _is_non_empty(value: object) -> bool:
    """Whether a field has a value. A list with one empty text has one, since an empty text can be scored."""
    return value is not None and value not in ("", [], {})


@dataclass(frozen=True, slots=True)
class Dialect:
    """The wire format of one route: its body formats and their common properties.

    `score_kind` is the default score of a reply, which `?value=` overrides. `example_reply` is for the documentation.
    `queue_timeout_s` is how long a request waits for capacity, for clients that stop retrying too early. `options` are query
    parameters of this route with their permitted values; none: any value.

    `reserved_values`: values that an option must not have, because the reply has fields of these names.

    `render_error` renders errors, which have the type `error_reply`; `error_statuses` describes statuses that only this format has.
    `fixed_names` are model names that clients of this format always send; `render_model_not_served` renders the reply to any
    other unknown name, of the type `not_served_reply`.
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
    error_reply: Any = ErrorReply
    error_statuses: Mapping[int, str] = field(default_factory=dict)
    fixed_names: frozenset[str] = frozenset()
    render_model_not_served: Callable[[ModelNotServed], Response] = not_found_as_vllm
    not_served_reply: Any = NotServedReply

    @property
    def text_fields(self) -> frozenset[str]:
        """The fields of all body formats whose content is scored."""
        return frozenset(name for form in self.body_formats for name in form.text_fields)

    @property
    def description(self) -> str:
        """What the route does, in the OpenAPI document."""
        number = _NUMBERS[self.score_kind]
        if any(form.activates_by_default for form in self.body_formats):
            forms = [f"`{form.text_fields[-1]}`" for form in self.body_formats if form.activates_by_default]
            number += f" (for {' and '.join(forms)} its sigmoid, by default)"
        masks = (
            "is masked, or refused with `?on_failure=refuse`" if "on_failure" in self.options else "refuses the request"
        )
        timeout = f"{self.queue_timeout_s:g} s"
        waits = f" On a busy server the request waits for capacity up to {timeout}." if self.queue_timeout_s else ""
        return (
            f"Score the texts of a body in the format of {self.clients}: {self._words(self.body_formats)}. The reply has {number}; "
            f"`?value=` selects another number. A sample without a score {masks}: no reply has a number in its place.{waits}"
        )

    def read(self, value: Any) -> tuple[BodyFormat, Any]:
        """Return the format of a body, and the body as its record. Raise `InvalidRequest` for a body in no format or in two, and
        the errors of `check_fields`.
        """
        if not isinstance(value, dict):
            raise type_fault("$", "object", value)
        form = self._form(value)
        form.check_fields(value)
        return form, convert(value, form.body)

    def _form(self, value: Mapping[str, Any]) -> BodyFormat:
        # An empty text or list is scored, unless the body has another format too: then it is an empty field.
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
        known = {name for form in self.body_formats for name in (*form.text_fields, *form.read_fields)}
        unknown = (name for name in value if name not in known)
        choice = f": {self._words(self.body_formats)}" if self.text_fields != {missing} else ""
        raise InvalidRequest(
            f"{missing}: {MISSING_FIELD}{choice}{suggest_given(missing, unknown)}",
            field=missing,
        )

    @staticmethod
    def _words(forms: Sequence[BodyFormat]) -> str:
        return f"send {', or '.join(' and '.join(form.text_fields) for form in forms)}"


_DEFAULT_NAME = "default"
"""The name that SGLang's clients send if no model is configured."""


def check_model(
    requested: str | None, runtime: ModelRuntime, accepted: Collection[str], *, is_in_path: bool = False
) -> None:
    """Raise `ModelNotServed` if a request names another model than `runtime`, which would score it. `is_in_path`: it must name one.

    Accepted are no name, an empty name, `default`, the name and the digests of the model, and the names in `accepted`.
    """
    name = runtime.loaded.identity.name
    if not requested or requested in (name, _DEFAULT_NAME) or requested in accepted or runtime.has((requested,)):
        return
    # The message omits the requested name: it never holds a part of a body.
    raise ModelNotServed(
        f"the model that this request names is not in service, but {name} is: send that name, "
        + "leave `model` out, " * (not is_in_path)
        + "or add the other name to REWARD_MODEL_ALIASES",
        served_model=name,
    )


def check_version(requested: str | None, runtime: ModelRuntime) -> None:
    """Raise `ModelNotServed` if the path names another version of the model than the one that would score the request."""
    if requested is not None and requested != str(runtime.version):
        raise ModelNotServed(
            f"the version that this request names is not in service, but version {runtime.version} is: send that one, or none",
            served_model=runtime.loaded.identity.name, model_version=runtime.version,
        )  # fmt: skip


def score_of(index: int, result: SampleResult, number: ScoreKind) -> float:
    """Return the score of one sample. Raise `RequestRefused` if it has none: a failure is never a number."""
    if result.failure is not None:
        raise as_request_error(index, result.failure)
    reward = result.reward
    assert reward is not None
    value = {"reward": reward.value, "raw": reward.raw, "normalized": reward.normalized}[number]
    if value is None:
        raise SampleRefused(
            "value=normalized, but the calibration of this model has no statistics: send value=raw or value=reward",
            reason="not_normalized",
        )
    return value


def as_request_error(index: int, failure: Failure) -> RequestRefused:
    """Convert the failure of one sample to the refusal of its request, with a status that tells clients whether to retry."""
    message = f"sample {index}: {failure.message}"
    is_transient = failure.code in _TRANSIENT
    kind = SampleFailed if is_transient else RunRefused if failure.code == RunBlocked.code else SampleRefused
    details = {**failure.details, "sample": index, "reason": failure.code}
    return kind(message, retry_after_s=1.0 if is_transient else None, **details)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def task_of_label(label: object) -> str | None:
    """The task that a label names: a label is any value of the data set, and may be an object with `task` or `data_source`."""
    given = (label.get("task") or label.get("data_source")) if isinstance(label, dict) else None
    return given if isinstance(given, str) else None


def sample_or_error(make: Callable[[], Sample]) -> SampleOrError:
    """Build a sample. Return the error of an invalid one."""
    try:
        return make()
    except SampleError as error:
        return error


def sample_from_pair(
    prompt: str, response: str, runtime: ModelRuntime, options: SampleOptions = SCORE_EMPTY_OPTIONS
) -> Sample:
    """Build the sample of a prompt, which may be rendered, and a response.

    A prompt counts as rendered if it ends with the template's text before a response; otherwise it is a turn of the user.
    """
    if runtime.loaded.encode.is_rendered(prompt):
        return Sample(text=prompt + response, n_prompt_chars=len(prompt), options=options)
    return Sample(prompt=prompt, response=response, options=options)
