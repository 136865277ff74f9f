"""Read the conversations of one row: a prompt and one or several responses, in any of the known formats.

TRL's formats (explicit and implicit prompt, strings or messages), OpenRLHF's columns by setting, and RewardServe's files.
Independent of labels, files, splits and tokenizers; a row without conversations is refused with the faulty field.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewardserve.model.conversation import (
    FinishReason,
    InvalidMessages,
    Message,
    Sample,
    SampleError,
    check_text,
    is_empty_value,
)
from rewardserve.model.tools import read_calls, read_tools
from rewardserve.training.dataset import turns
from rewardserve.training.dataset.source_columns import SourceColumns, common_text
from rewardserve.training.settings.data_config import SourceConfig
from rewardserve.training.settings.validation import shown

Messages = tuple[Message, ...]
_OF_THE_PROMPT = (
    "system", "system_prompt", "history", "tools", "documents", "chat_template", "chat_template_kwargs",
    "image", "images", "video", "videos", "audio", "audios",
)  # fmt: skip
"""Columns of TRL's and LLaMA-Factory's formats that a template would render, or that the policy received."""


class FieldError(Exception):
    """One field of one row is invalid."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Conversations:
    """One sample a response, the responses alone as `texts`, and the text of their common prompt."""

    samples: tuple[Sample, ...]
    texts: tuple[str, ...]
    prompt_key: str


@dataclass(frozen=True, slots=True)
class _Responses:
    """Responses of a row. `field` is named in errors, `words` are their names in the plural."""

    answers: tuple[str | Messages, ...]
    field: str
    words: str

    @property
    def form(self) -> str:
        """`strings`, `messages`, or `mixed`."""
        kinds = {isinstance(answer, str) for answer in self.answers}
        return "mixed" if len(kinds) > 1 else "strings" if True in kinds else "messages"


def read_conversations(values: dict[str, Any], columns: SourceColumns) -> Conversations:
    """Read prompt and responses in the one of the formats that the row has. Raise `FieldError`."""
    prompt = value_of(values, columns.source.prompt_key, columns)
    given = _responses(values, columns)
    if given.form == "mixed":
        raise FieldError(columns.fields[-1], f"one of {given.words} is a string and the other is messages")
    if prompt is None:
        found = _implicit(given, values, columns)
    else:
        found = _explicit(_prompt(prompt, columns.source), given, values, columns)
    return _with_finish_reasons(_with_tools(found, values, columns), values, columns)


def check_samples(found: Conversations, fields: Sequence[str]) -> None:
    """Raise `FieldError` for a sample that no encoder can read. `fields` names the column of each."""
    for sample, field in zip(found.samples, fields, strict=True):
        _check_sample(sample, field)


def _responses(values: dict[str, Any], columns: SourceColumns) -> _Responses:
    if columns.is_list:
        (field,) = columns.fields
        listed = value_of(values, field, columns)
        if not isinstance(listed, list) or len(listed) < (2 if columns.kind == "rankings" else 1):
            raise FieldError(field, "must be a list of two or more responses")
        return _Responses(tuple(_response(answer, field) for answer in listed), field, "the responses")
    answers = tuple(_response(value_of(values, field, columns), field) for field in columns.fields)
    return _Responses(answers, columns.fields[0], columns.words)


def value_of(values: dict[str, Any], key: str | None, columns: SourceColumns) -> Any:
    """Value of a column; None if the source has no such column. Raise `FieldError` if only this row has none."""
    value = None if key is None else values.get(key)
    if key is not None and value is None:
        n = columns.n_with.get(key, 0)
        has = ", ".join(sorted(str(k) for k, v in values.items() if v is not None))
        raise FieldError(key, f"is missing; {n} of the {columns.n_rows} rows have it, this one has {has or 'nothing'}")
    return value


def name_of(values: dict[str, Any], key: str | None, columns: SourceColumns) -> str | None:
    """Text of a column that holds a name, or a whole number. Raise `FieldError` for another value."""
    value = value_of(values, key, columns)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # tables of numbers with gaps have them as floats
    if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
        return str(value)
    if value is None:
        return None
    raise FieldError(str(key), f"is {shown(value)}; it must be a text or a whole number")


def refuse_unread_columns(values: dict[str, Any], columns: SourceColumns) -> None:
    """Raise `FieldError` for a column that belongs to the prompt and is not read."""
    known = {*columns.read, *columns.source.ignored_columns}
    for column in _OF_THE_PROMPT:
        if column not in known and not is_empty_value(values.get(column)):
            raise FieldError(
                column,
                "is not read, though it belongs to the prompt of the responses: make it a part of the prompt (a system message, "
                "or rendered text), or name it in data.sources.ignored_columns",
            )


def _unread(item: dict[str, Any], known: Sequence[str]) -> str | None:
    """First field that is neither known nor empty."""
    return next((str(name) for name, value in item.items() if name not in known and not is_empty_value(value)), None)


def _check_sample(sample: Sample, field: str) -> None:
    try:
        if sample.text is None:
            for message in sample.conversation():
                check_text(message.text)
            check_text(sample.tools)
        else:
            check_text(sample.text)
    except SampleError as error:
        raise FieldError(field, error.message) from None


def _response(value: Any, field: str) -> str | Messages:
    if isinstance(value, str):
        if not value:
            raise FieldError(field, "is empty")
        _check_text(value, field)
        return value
    return _messages(value, field)


def _check_text(text: str, field: str) -> None:
    """Raise `FieldError` for text that no tokenizer can read, and for messages that were written as text."""
    if turns.is_messages_as_text(text):
        raise FieldError(
            field, "is a list of messages that was written as text; give the list itself, in JSONL or Parquet"
        )
    check_utf8(text, field)


def check_utf8(text: str, field: str) -> None:
    """Raise `FieldError` for text that no tokenizer can read."""
    try:
        check_text(text)
    except SampleError as error:
        raise FieldError(field, error.message) from None


def _messages(value: Any, field: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise FieldError(field, f"is a {type(value).__name__}; give text, or a list of messages")
    value = [turns.of_sharegpt(item) for item in value]
    for i, item in enumerate(value):
        unread = _unread(item, _fields_of(item)) if isinstance(item, dict) else None
        if unread is not None:
            raise FieldError(
                field,
                f"message {i} has {unread[:40]}, which is not read: its part of the chat template would be missing. Render "
                "the conversations and give text, or remove the field from the data",
            )
        if not isinstance(item, dict) or not isinstance(item.get("role"), str):
            raise FieldError(field, f"message {i} is not an object with a role and a content, both text")
    return tuple(_message(i, item, field) for i, item in enumerate(value))


def _fields_of(message: dict[str, Any]) -> tuple[str, ...]:
    """Fields of a message that are read."""
    role = message.get("role")
    of_role = {"assistant": ("tool_calls", "function_call"), "tool": ("tool_call_id", "name")}
    return ("role", "content", *of_role.get(role if isinstance(role, str) else "", ()))


def _message(i: int, item: dict[str, Any], field: str) -> Message:
    """A message of OpenAI's shape. Content may be a list of parts of text; beside calls it may be missing."""
    try:
        calls = next((item[name] for name in ("tool_calls", "function_call") if not is_empty_value(item.get(name))), ())
        read = read_calls(calls)
    except InvalidMessages as error:
        raise FieldError(field, f"message {i}: {error.message}") from None
    content = item.get("content")
    if isinstance(content, list) and content and all(map(_is_text_part, content)):
        content = "".join(part["text"] for part in content)
    if content is None and read:
        content = ""
    if not isinstance(content, str):
        raise FieldError(field, f"message {i} is not an object with a role and a content, both text")
    given = [item.get(name) if "tool_call_id" in _fields_of(item) else None for name in ("tool_call_id", "name")]
    number, name = ("" if is_empty_value(each) else each for each in given)
    if not isinstance(number, str) or not isinstance(name, str):
        raise FieldError(field, f"message {i} has a tool_call_id or a name that is no text")
    message = Message(item["role"], content, read, number, name)
    check_utf8(message.text, field)
    return message


def _is_text_part(part: Any) -> bool:
    known = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    return known and _unread(part, ("type", "text")) is None


def _with_tools(found: Conversations, values: dict[str, Any], columns: SourceColumns) -> Conversations:
    """The samples with the tools of the row, which are a part of their prompt."""
    key = columns.source.tools_key
    value = None if key is None else values.get(key)
    if is_empty_value(value):
        return found
    try:
        tools = read_tools(value)
    except InvalidMessages as error:
        raise FieldError(str(key), error.message) from None
    if not tools:
        return found
    if any(sample.text is not None for sample in found.samples):
        raise FieldError(
            str(key),
            "is there, and the conversation is text, so no template would place it: give messages, or name it in "
            "data.sources.ignored_columns",
        )
    return Conversations(
        tuple(replace(sample, tools=tools) for sample in found.samples), found.texts, f"{tools}\n{found.prompt_key}"
    )


def _with_finish_reasons(found: Conversations, values: dict[str, Any], columns: SourceColumns) -> Conversations:
    """The samples with their finish reasons, so that one that was cut off is encoded without an end token, as served."""
    reasons = _finish_reasons(values, columns, len(found.samples))
    samples = tuple(replace(s, finish_reason=r) for s, r in zip(found.samples, reasons, strict=True))
    return replace(found, samples=samples)


def _finish_reasons(values: dict[str, Any], columns: SourceColumns, n: int) -> list[FinishReason]:
    """One for each of `n` responses. All steps but the last are followed by another one, so they have no end."""
    ignored, names = columns.source.ignored_columns, columns.finish_reasons
    given = [None if name in ignored else values.get(name) for name in names]
    if columns.kind == "rankings" and not is_empty_value(given[0]):
        (listed,) = given
        if not isinstance(listed, list) or len(listed) != n:
            raise FieldError(names[0], f"must be a list of {n} finish reasons, one a response")
        return [read_finish_reason(each, names[0]) for each in listed]
    read = [read_finish_reason(each, name) for each, name in zip(given, names, strict=True)]
    if columns.kind == "steps":
        unfinished: list[FinishReason] = ["length"]
        return unfinished * (n - 1) + read
    return read * n if columns.kind == "rankings" else read


def read_finish_reason(value: Any, field: str) -> FinishReason:
    """Stop where there is none. Raise `FieldError` for another value than stop and length."""
    if is_empty_value(value) or value == "stop":
        return "stop"
    if value == "length":
        return "length"
    raise FieldError(field, f"is {shown(value)}; it must be 'stop' or 'length'")


def _prompt(value: Any, source: SourceConfig) -> str | Messages:
    field = str(source.prompt_key)
    if isinstance(value, str):
        _check_text(value, field)
        return value
    return _messages(value, field)


def _context(values: dict[str, Any], columns: SourceColumns) -> str | None:
    """Passages to put before the prompt, if the recipe uses them."""
    key = columns.source.context_key
    context = value_of(values, key, columns)
    if context is not None and not isinstance(context, str):
        raise FieldError(str(key), f"is a {type(context).__name__}; it must be text")
    return context


def _with_context(prompt: Messages, context: str | None) -> Messages:
    if context is None:
        return prompt
    at = next((i for i, m in enumerate(prompt) if m.role == "user"), 0)
    turn = replace(prompt[at], content=f"{context}\n\n{prompt[at].content}")
    return (*prompt[:at], turn, *prompt[at + 1 :])


def _explicit(
    prompt: str | Messages, given: _Responses, values: dict[str, Any], columns: SourceColumns
) -> Conversations:
    if given.form == "strings":
        return _explicit_text(prompt, given, values, columns)
    return _explicit_messages(prompt, given, values, columns)


def _implicit(given: _Responses, values: dict[str, Any], columns: SourceColumns) -> Conversations:
    if given.form == "strings":
        _refuse_system(values, columns, "the conversation is rendered")
        return _implicit_text(given, columns)
    return _implicit_messages(given, values, columns)


def _explicit_text(
    prompt: str | Messages, given: _Responses, values: dict[str, Any], columns: SourceColumns
) -> Conversations:
    """A prompt and responses as texts."""
    context, asked_text = _context(values, columns), prompt if isinstance(prompt, str) else turns.last_user_turn(prompt)
    answers = _without_prompt(asked_text, _texts(given), given, columns)
    if isinstance(prompt, str) and columns.source.strings == "raw":
        _refuse_system(values, columns, "strings: raw joins prompt and response without a template")
        before = prompt if context is None else f"{context}\n\n{prompt}"
        raw = tuple(Sample(text=before + answer, n_prompt_chars=len(before)) for answer in answers)
        return Conversations(raw, answers, before)
    asked = _with_context((Message("user", prompt),) if isinstance(prompt, str) else prompt, context)
    asked = _with_system(asked, values, columns)
    return Conversations(tuple(Sample(prompt=asked, response=answer) for answer in answers), answers, _key(asked))


def _texts(given: _Responses) -> tuple[str, ...]:
    return tuple(answer for answer in given.answers if isinstance(answer, str))


def _message_lists(given: _Responses) -> tuple[Messages, ...]:
    return tuple(answer for answer in given.answers if not isinstance(answer, str))


def _without_prompt(
    prompt: str, answers: tuple[str, ...], given: _Responses, columns: SourceColumns
) -> tuple[str, ...]:
    """The responses alone: if all of a source begin with their prompt, the text after it."""
    rests = [turns.cut(prompt, answer) for answer in answers]
    after = tuple(rest for rest in rests if rest is not None)
    if len(after) == len(answers):
        if columns.repeats:
            return after
        if turns.is_long(prompt):
            raise FieldError(
                given.field,
                f"{given.words} begin with the prompt, but not in all rows: remove the prompt from them",
            )
    if turns.holds(prompt, common_text(*answers)):
        raise FieldError(
            given.field,
            f"{given.words} are rendered conversations with the prompt in them: remove the prompt, or read them "
            "whole (prompt_key: null)",
        )
    return answers


def _explicit_messages(
    prompt: str | Messages, given: _Responses, values: dict[str, Any], columns: SourceColumns
) -> Conversations:
    """A prompt and lists of messages, which may repeat it."""
    if isinstance(prompt, str) and columns.source.strings == "raw":
        raise FieldError(given.field, "strings: raw joins a prompt with a response; both must be text")
    try:
        own, *answers = turns.split(prompt, *_message_lists(given))
    except turns.TurnsMismatch as error:
        raise FieldError(given.field, str(error)) from None
    if all(len(answer) == 1 and not answer[0].tool_calls for answer in answers):
        last = tuple(answer[0].content for answer in answers)
        _without_prompt(turns.last_user_turn(own), last, given, columns)
    asked = _with_system(_with_context(own, _context(values, columns)), values, columns)
    samples = tuple(Sample(messages=(*asked, *answer)) for answer in answers)
    return Conversations(samples, tuple(map(_joined, answers)), _key(asked))


def _implicit_messages(given: _Responses, values: dict[str, Any], columns: SourceColumns) -> Conversations:
    """Whole conversations. The prompt is their common beginning; of a single one, all but its last turn."""
    whole = _message_lists(given)
    if columns.implicit == "found" and not turns.is_conversation(*whole):
        raise FieldError(given.field, columns.no_user)
    whole = tuple(_with_system(one, values, columns) for one in whole)
    n = _n_common(whole) if len(whole) > 1 else len(whole[0]) - 1
    key = _key(whole[0][:n]) if n else _key(tuple(m for one in whole for m in one))
    return Conversations(tuple(Sample(messages=one) for one in whole), tuple(_joined(one[n:]) for one in whole), key)


def _implicit_text(given: _Responses, columns: SourceColumns) -> Conversations:
    """Rendered conversations. The prompt is their common beginning, back to the last `Assistant:` or line end.

    Two responses often begin alike; cut at the character, the prompt of one question would differ from row to row.
    """
    whole = _texts(given)
    if len(whole) < 2:
        raise FieldError(
            given.field, "is a text without a prompt: name the prompt's column (prompt_key), or give messages"
        )
    common = common_text(*whole)
    if columns.implicit == "found" and not turns.is_rendered(common):
        raise FieldError(given.field, columns.no_user)
    turn = common.rfind("Assistant:")
    n = turn + len("Assistant:") if turn >= 0 else common.rfind("\n") + 1
    key = common[:n] or "\n".join(sorted(whole))
    return Conversations(tuple(Sample(text=text) for text in whole), tuple(text[n:] for text in whole), key)


def optional_text(values: dict[str, Any], key: str | None, what: str) -> str:
    """Text of a column that not every row has; empty if this one does not. Raise `FieldError` for another value."""
    value = None if key is None else values.get(key)
    if is_empty_value(value):
        return ""
    if not isinstance(value, str):
        raise FieldError(str(key), f"is a {type(value).__name__}; {what} is a text")
    _check_text(value, str(key))
    return value


def _with_system(messages: Messages, values: dict[str, Any], columns: SourceColumns) -> Messages:
    """The turns after the system message of the row. Raise `FieldError` if they have one already."""
    system = optional_text(values, columns.source.system_key, "a system message")
    if system and any(m.role == "system" for m in messages):
        raise FieldError(str(columns.source.system_key), "is there, and the conversation has a system message too")
    return (Message("system", system), *messages) if system else messages


def _refuse_system(values: dict[str, Any], columns: SourceColumns, why: str) -> None:
    if optional_text(values, columns.source.system_key, "a system message"):
        raise FieldError(
            str(columns.source.system_key),
            f"is there, and {why}, so no template would place it: make it a part of the text, or set system_key: null and name "
            "it in data.sources.ignored_columns",
        )


def _joined(messages: Messages) -> str:
    return "\n".join(m.text for m in messages)


def _n_common(whole: Sequence[Messages]) -> int:
    """Number of messages in the common beginning."""
    shortest = min(map(len, whole))
    return next((i for i in range(shortest) if any(one[i] != whole[0][i] for one in whole)), shortest)


def _key(messages: Messages) -> str:
    return json.dumps([[m.role, m.text] for m in messages])
