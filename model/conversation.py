"""Sample: the conversation to be scored, and the errors of an invalid one.

A `Sample` has exactly one of four forms: prompt + response, messages, text that the client has
rendered, or token ids. Standard library only; knows nothing of tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import ClassVar, Literal

from rewardserve.model.text.nearest_word import did_you_mean

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool")

FinishReason = Literal["stop", "length"]


def is_empty_value(value: object) -> bool:
    """Whether a field that is not read may have this value: null, NaN, an empty text, lists and objects of these alone.

    Tables fill the missing fields of a row with such values. `rewardserve_client.fields` has the same rule.
    """
    waiting = [value]
    while waiting:  # at any depth
        each = waiting.pop()
        if isinstance(each, Mapping):
            waiting += each.values()
        elif isinstance(each, list | tuple):
            waiting += each
        elif not (each is None or each == "" or (isinstance(each, float) and isnan(each))):
            return False
    return True


class SampleError(Exception):
    """The sample cannot be scored; the others of its batch can.

    `code` is stable and part of the wire format; `details` has the numbers. `is_final`: a retry fails too.
    """

    code = "invalid_sample"
    remedy: ClassVar[str] = "Correct the sample."
    is_final: ClassVar[bool] = True

    def __init__(self, message: str, **details: int | float | str) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class IncompleteSample(SampleError):
    """The sample has none of: prompt and response; messages; text; input_ids. Or it has a prompt alone, or a response alone."""

    code = "incomplete_sample"
    remedy = "Send the field that the message names, or one of the four forms."


class AmbiguousSample(SampleError):
    """The sample has several of: prompt and response; messages; text; input_ids."""

    code = "ambiguous_sample"
    remedy = "Send exactly one of the four forms."


class EmptyPrompt(SampleError):
    """The sample has no prompt."""

    code = "empty_prompt"
    remedy = "Send a prompt that is not empty."


class EmptyResponse(SampleError):
    """The response is empty or only white space, which many chat templates and tokenizers strip."""

    code = "empty_response"
    remedy = "Send a response, or `score_empty: true` to score the end token."

    def __init__(self, reason: str = "the response is empty, or white space alone: there is nothing to score") -> None:
        super().__init__(reason)


class InvalidMessages(SampleError):
    """A role is unknown, the last message is not the assistant's, or the chat template refuses the order."""

    code = "invalid_messages"
    remedy = "Correct the order and the roles of the messages."


class UnsupportedField(SampleError):
    """The sample has a field that is not part of the scored text although a chat template may render it."""

    code = "unsupported_field"
    remedy = "Render the conversation with the model's chat template and send it as text, or remove the field."

    def __init__(self, field: str, *, by: str = "", **details: int) -> None:
        super().__init__(
            f"{field} is not supported{by}: its content would be missing from the scored text. Render the conversation with the "
            "chat template of the reward model and send it as text, or leave the field out.",
            field=field, **details,
        )  # fmt: skip


class InvalidLookahead(SampleError):
    """The sample has continuations that cannot follow it. `index` is that of the continuation."""

    code = "invalid_lookahead"
    remedy = "Send the sample as prompt and response or as messages, and continuations that are not empty."


class InvalidText(SampleError):
    """The text has lone surrogates, which tokenizers cannot encode."""

    code = "invalid_text"
    remedy = "Send valid Unicode."


class TokenOutOfVocabulary(SampleError):
    """A token id has no embedding in the model."""

    code = "token_out_of_vocabulary"
    remedy = "Encode with the tokenizer of the served model."


class InputTooLong(SampleError):
    """The sample is longer than the limit, even after its prompt was cut as far as the contract allows."""

    code = "input_too_long"
    remedy = "Send a shorter sample, or raise the limit of the server up to that of the model."

    def __init__(self, *, n: int, limit: int, what: str = "sample") -> None:
        super().__init__(f"the {what} has {n} tokens; the limit is {limit}", n=n, limit=limit)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function by the assistant. `arguments`: JSON text of an object. `id`: empty where the call has none."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `tool_call_id` and `name` are those of the call that a turn of the role `tool` answers."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        """The content, and the calls as text: for comparisons and lengths, not for a model."""
        calls = [f"{call.name}({call.arguments})" for call in self.tool_calls]
        return "\n".join([self.content, *calls] if self.content else calls)


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """Options of the client's wire format for reading a sample.

    `max_tokens`: a limit below that of the model. `truncates` False: a sample that is too long is an error, even where the
    contract truncates. `scores_empty`: a response that is empty, or white space alone, is scored at its end token, for wire
    formats that cannot express a missing score.
    """

    max_tokens: int | None = None
    truncates: bool = True
    scores_empty: bool = False


DEFAULT_OPTIONS = SampleOptions()
SCORE_EMPTY_OPTIONS = SampleOptions(scores_empty=True)
"""Policies do produce empty responses. Clients of wire formats without a missing score get a score for them."""


_ONE_FORM = "give exactly one of: prompt and response; messages; text; input_ids"


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation whose last assistant turn is to be scored.

    Exactly one form is given: `prompt` with `response`, `messages`, `text` or `input_ids`. A `prompt`
    that is a string is one user turn. `finish_reason="length"`: the policy was cut off, so no
    end token is added. `reference_rewards` are raw scores of reference responses to the same prompt, for shapes that
    compare with them. `n_prompt_chars`: where the response begins in `text`, if the client has sent it. `tools`: JSON text
    of the list that the chat template gets (`tools.read_tools`). `lookahead`: continuations, the turns that may follow; the
    reward is the least or the mean of all, or a quantile (`reward.lookahead`).
    """

    prompt: str | tuple[Message, ...] | None = None
    response: str | None = None
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    input_ids: tuple[int, ...] | None = None
    finish_reason: FinishReason = "stop"
    reference_rewards: tuple[float, ...] = ()
    n_prompt_chars: int | None = None
    options: SampleOptions = DEFAULT_OPTIONS
    tools: str = ""
    lookahead: tuple[tuple[Message, ...], ...] = ()
    lookahead_reward: Literal["min", "mean"] | float = "min"

    def __post_init__(self) -> None:
        """Raise `IncompleteSample` or `AmbiguousSample` unless exactly one form is given."""
        pair = self.prompt is not None or self.response is not None
        n_forms = pair + (self.messages is not None) + (self.text is not None) + (self.input_ids is not None)
        if n_forms > 1:
            raise AmbiguousSample(f"the sample has {n_forms} forms: {_ONE_FORM}", n_forms=n_forms)
        if n_forms == 0:
            raise IncompleteSample(f"the sample has no text: {_ONE_FORM}")
        if pair and self.response is None:
            raise IncompleteSample("response is missing: send the response to `prompt`, which is scored")
        if pair and self.prompt is None:
            raise IncompleteSample("prompt is missing: send the prompt that `response` answers")
        if self.lookahead:
            self._check_lookahead()

    def _check_lookahead(self) -> None:
        if self.text is not None or self.input_ids is not None:
            raise InvalidLookahead("continuations need the turns of the sample: send prompt and response, or messages")
        for i, continuation in enumerate(self.lookahead):
            if not continuation:
                raise InvalidLookahead(f"continuation {i} is empty: send the turns that follow the response", index=i)

    def conversation(self) -> tuple[Message, ...]:
        """The messages of the first two forms, the response last. Raise `SampleError` if they are invalid."""
        if self.messages is not None:
            messages = self.messages
        elif self.prompt is not None and self.response is not None:
            prompt = (Message("user", self.prompt),) if isinstance(self.prompt, str) else self.prompt
            messages = (*prompt, Message("assistant", self.response))
        else:
            raise AmbiguousSample("rendered text and token ids have no messages")
        _check(messages, self.options)
        return messages

    def texts(self) -> tuple[str, str]:
        """The prompt as one text, and the response; both are empty where they are unknown."""
        if self.text is not None and self.n_prompt_chars is not None:
            return self.text[: self.n_prompt_chars], self.text[self.n_prompt_chars :]
        if self.messages is not None:
            turns = self.messages
            return "\n".join([m.text for m in turns[:-1]]), turns[-1].text if turns else ""
        prompt = self.prompt or ""
        return prompt if isinstance(prompt, str) else "\n".join([m.text for m in prompt]), self.response or ""


def _check(messages: tuple[Message, ...], options: SampleOptions) -> None:
    for i, message in enumerate(messages):
        if message.role not in ROLES:
            # The message has the index and not the role: its text may be part of a conversation.
            raise InvalidMessages(
                f"message {i} has an unknown role{did_you_mean(message.role, ROLES) or ';'} known are {', '.join(ROLES)}",
                index=i,
            )
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise InvalidMessages("the last of at least two messages must be the assistant's: the turn to score")
    if not messages[-1].content.strip() and not messages[-1].tool_calls and not options.scores_empty:
        raise EmptyResponse()
    if all(not m.content and not m.tool_calls for m in messages[:-1]):
        raise EmptyPrompt("the prompt is empty")


def check_text(text: str) -> None:
    """Raise `InvalidText` when `text` is no valid Unicode (a lone surrogate)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidText(f"lone surrogate at character {error.start}", at=error.start) from None
