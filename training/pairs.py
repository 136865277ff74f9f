"""Convert one row to one preference pair, in any of the known formats.

TRL's preference formats (explicit and implicit prompt, strings or messages), OpenRLHF's columns by setting, and
RewardServe's files. Independent of files, splits and tokenizers; a row that makes no pair is refused with the faulty
field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rewardserve.model.conversation import Message, Sample, SampleError, check_text, is_empty_value
from rewardserve.training import turns
from rewardserve.training.config import SourceConfig, shown
from rewardserve.training.source_columns import SourceColumns, common_text
from rewardserve.training.sources import SourceRow

MAX_MARGIN = 1e6
_NO_USER = "there is no prompt, and chosen and rejected begin with no turn of a user that they share"


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
class Pair:
    """Two responses to one prompt, of which annotators preferred `chosen`.

    `chosen_text` and `rejected_text` are the responses alone, for length baselines. `id` is `file:line`. `made`: the kind of
    augmentation that made the pair from the one with this id; empty: annotators compared it. `donor_group`: the group of a
    pair from which a response was taken.
    `paraphrase` says the same as the chosen response; empty: none.
    """

    id: str
    source: str
    group: str
    head: str
    chosen: Sample
    rejected: Sample
    chosen_text: str
    rejected_text: str
    margin: float = 0.0
    weight: float = 1.0
    made: str = ""
    donor_group: str | None = None
    paraphrase: str = ""


@dataclass(frozen=True, slots=True)
class _Sides:
    """Both conversations of a row, and the text of their common prompt."""

    chosen: Sample
    rejected: Sample
    chosen_text: str
    rejected_text: str
    prompt_key: str


def to_pair(row: SourceRow, columns: SourceColumns, head: str) -> Pair:
    """Convert one row. Raise `FieldError`."""
    if row.values is None:
        raise FieldError("row", row.error)
    values, source = row.values, columns.source
    _refuse_unread_columns(values, source)
    sides = _sides(values, columns)
    if sides.chosen == sides.rejected:
        raise FieldError(source.rejected_key, "is equal to the chosen response: there is no preference")
    for key, sample in ((source.chosen_key, sides.chosen), (source.rejected_key, sides.rejected)):
        _check_sample(sample, key)
    group = _name(values, source.group_key, columns)
    return Pair(
        id=f"{row.file}:{row.line}",
        source=source.name or _name(values, source.source_key, columns) or source.path,
        group=group if group is not None else hashlib.sha256(sides.prompt_key.encode("utf-8")).hexdigest()[:16],
        head=head,
        chosen=sides.chosen,
        rejected=sides.rejected,
        chosen_text=sides.chosen_text,
        rejected_text=sides.rejected_text,
        margin=_margin(_value(values, source.margin_key, columns), str(source.margin_key)),
        weight=source.weight,
        paraphrase=_paraphrase(values, source.paraphrase_key),
    )


def _paraphrase(values: dict[str, Any], key: str | None) -> str:
    """Text of the paraphrase; empty if the row has none. Raise `FieldError` for another value."""
    value = None if key is None else values.get(key)
    if is_empty_value(value):
        return ""
    if not isinstance(value, str):
        raise FieldError(str(key), f"is {shown(value)}; a paraphrase is a text")
    _check_utf8(value, str(key))
    return value


def _value(values: dict[str, Any], key: str | None, columns: SourceColumns) -> Any:
    """Value of a column; None if the source has no such column. Raise `FieldError` if only this row has none."""
    value = None if key is None else values.get(key)
    if key is not None and value is None:
        n = columns.n_with.get(key, 0)
        has = ", ".join(sorted(str(k) for k, v in values.items() if v is not None))
        raise FieldError(key, f"is missing; {n} of the {columns.n_rows} rows have it, this one has {has or 'nothing'}")
    return value


def _name(values: dict[str, Any], key: str | None, columns: SourceColumns) -> str | None:
    """Text of a column that holds a name, or a whole number. Raise `FieldError` for another value."""
    value = _value(values, key, columns)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # tables of numbers with gaps have them as floats
    if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
        return str(value)
    if value is None:
        return None
    raise FieldError(str(key), f"is {shown(value)}; it must be a text or a whole number")


def _refuse_unread_columns(values: dict[str, Any], source: SourceConfig) -> None:
    """Raise `FieldError` for a column that belongs to the prompt and is not read."""
    keys = (
        source.prompt_key,
        source.chosen_key,
        source.rejected_key,
        source.margin_key,
        source.group_key,
        source.source_key,
    )
    known = {*keys, source.context_key, *source.ignored_columns}
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
                check_text(message.content)
        else:
            check_text(sample.text)
    except SampleError as error:
        raise FieldError(field, error.message) from None


def _margin(value: Any, field: str) -> float:
    if value is None:
        return 0.0
    if isinstance(value, Decimal):  # column of a database
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_MARGIN:
        raise FieldError(field, f"is {str(value)[:40]!r}; a margin is a number from {-MAX_MARGIN:g} to {MAX_MARGIN:g}")
    return float(value)


def _sides(values: dict[str, Any], columns: SourceColumns) -> _Sides:
    """Read the row in the one of TRL's formats that it has."""
    source = columns.source
    prompt = _value(values, source.prompt_key, columns)
    chosen = _side(values, source.chosen_key, columns)
    rejected = _side(values, source.rejected_key, columns)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return _implicit_text(chosen, rejected, columns)
        return _explicit_text(_prompt(prompt, source), chosen, rejected, values, columns)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise FieldError(source.rejected_key, "one of chosen and rejected is a string and the other is messages")
    if prompt is None:
        return _implicit_messages(chosen, rejected, columns)
    return _explicit_messages(_prompt(prompt, source), chosen, rejected, values, columns)


def _side(values: dict[str, Any], field: str, columns: SourceColumns) -> str | tuple[Message, ...]:
    value = _value(values, field, columns)
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
    _check_utf8(text, field)


def _check_utf8(text: str, field: str) -> None:
    """Raise `FieldError` for text that no tokenizer can read."""
    try:
        check_text(text)
    except SampleError as error:
        raise FieldError(field, error.message) from None


def _messages(value: Any, field: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise FieldError(field, f"is a {type(value).__name__}; give text, or a list of messages")
    for i, item in enumerate(value):
        unread = _unread(item, ("role", "content")) if isinstance(item, dict) else None
        if unread is not None:
            raise FieldError(
                field,
                f"message {i} has {unread[:40]}, which is not read: its part of the chat template would be missing. Render "
                "the conversations and give text, or remove the field from the data",
            )
        if (
            not isinstance(item, dict)
            or not isinstance(item.get("role"), str)
            or not isinstance(item.get("content"), str)
        ):
            raise FieldError(field, f"message {i} is not an object with a role and a content, both text")
        _check_utf8(item["content"], field)
    return tuple(Message(item["role"], item["content"]) for item in value)


def _prompt(value: Any, source: SourceConfig) -> str | tuple[Message, ...]:
    field = str(source.prompt_key)
    if isinstance(value, str):
        _check_text(value, field)
        return value
    return _messages(value, field)


def _context(values: dict[str, Any], columns: SourceColumns) -> str | None:
    """Passages to put before the prompt, if the recipe uses them."""
    key = columns.source.context_key
    context = _value(values, key, columns)
    if context is not None and not isinstance(context, str):
        raise FieldError(str(key), f"is a {type(context).__name__}; it must be text")
    return context


def _with_context(prompt: tuple[Message, ...], context: str | None) -> tuple[Message, ...]:
    if context is None:
        return prompt
    at = next((i for i, m in enumerate(prompt) if m.role == "user"), 0)
    turn = Message(prompt[at].role, f"{context}\n\n{prompt[at].content}")
    return (*prompt[:at], turn, *prompt[at + 1 :])


def _explicit_text(
    prompt: str | tuple[Message, ...], chosen: str, rejected: str, values: dict[str, Any], columns: SourceColumns
) -> _Sides:
    """A prompt and two responses as texts."""
    context, asked_text = _context(values, columns), prompt if isinstance(prompt, str) else turns.last_user_turn(prompt)
    answers = _without_prompt(asked_text, chosen, rejected, columns)
    if isinstance(prompt, str) and columns.source.strings == "raw":
        before = prompt if context is None else f"{context}\n\n{prompt}"
        texts = [Sample(text=before + answer, n_prompt_chars=len(before)) for answer in answers]
        return _Sides(texts[0], texts[1], *answers, before)
    asked = _with_context((Message("user", prompt),) if isinstance(prompt, str) else prompt, context)
    samples = [Sample(prompt=asked, response=answer) for answer in answers]
    return _Sides(samples[0], samples[1], *answers, _key(asked))


def _without_prompt(prompt: str, chosen: str, rejected: str, columns: SourceColumns) -> tuple[str, str]:
    """The responses alone: if all of a source begin with their prompt, the text after it."""
    field = columns.source.chosen_key
    chosen_rest, rejected_rest = turns.cut(prompt, chosen), turns.cut(prompt, rejected)
    if chosen_rest is not None and rejected_rest is not None:
        if columns.repeats:
            return chosen_rest, rejected_rest
        if turns.is_long(prompt):
            raise FieldError(
                field, "chosen and rejected begin with the prompt, but not in all rows: remove the prompt from them"
            )
    if turns.holds(prompt, common_text(chosen, rejected)):
        raise FieldError(
            field,
            "chosen and rejected are rendered conversations with the prompt in them: remove the prompt, or read them "
            "whole (prompt_key: null)",
        )
    return chosen, rejected


def _explicit_messages(
    prompt: str | tuple[Message, ...],
    chosen: tuple[Message, ...],
    rejected: tuple[Message, ...],
    values: dict[str, Any],
    columns: SourceColumns,
) -> _Sides:
    """A prompt and two lists of messages, which may repeat it."""
    if isinstance(prompt, str) and columns.source.strings == "raw":
        raise FieldError(columns.source.chosen_key, "strings: raw joins a prompt with a response; both must be text")
    try:
        own, *answers = turns.split(prompt, chosen, rejected)
    except turns.TurnsMismatch as error:
        raise FieldError(columns.source.chosen_key, str(error)) from None
    if all(len(answer) == 1 for answer in answers):
        _without_prompt(turns.last_user_turn(own), answers[0][0].content, answers[1][0].content, columns)
    asked = _with_context(own, _context(values, columns))
    samples = [Sample(messages=(*asked, *answer)) for answer in answers]
    texts = ["\n".join(m.content for m in answer) for answer in answers]
    return _Sides(samples[0], samples[1], texts[0], texts[1], _key(asked))


def _implicit_messages(chosen: tuple[Message, ...], rejected: tuple[Message, ...], columns: SourceColumns) -> _Sides:
    if columns.implicit == "found" and not turns.is_conversation(chosen, rejected):
        raise FieldError(columns.source.chosen_key, _NO_USER)
    n = _n_common(chosen, rejected)
    prompt = chosen[:n]
    texts = ["\n".join(m.content for m in side[n:]) for side in (chosen, rejected)]
    key = _key(prompt) if prompt else _key((*chosen, *rejected))
    return _Sides(Sample(messages=chosen), Sample(messages=rejected), texts[0], texts[1], key)


def _implicit_text(chosen: str, rejected: str, columns: SourceColumns) -> _Sides:
    """Rendered conversations. The prompt is their common beginning, back to the last `Assistant:` or line end.

    Two responses often begin alike; cut at the character, the prompt of one question would differ from row to row.
    """
    common = common_text(chosen, rejected)
    if columns.implicit == "found" and not turns.is_rendered(common):
        raise FieldError(columns.source.chosen_key, _NO_USER)
    turn = common.rfind("Assistant:")
    n = turn + len("Assistant:") if turn >= 0 else common.rfind("\n") + 1
    key = common[:n] or "\n".join(sorted((chosen, rejected)))
    return _Sides(Sample(text=chosen), Sample(text=rejected), chosen[n:], rejected[n:], key)


def _n_common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Number of items in the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _key(messages: tuple[Message, ...]) -> str:
    return json.dumps([[m.role, m.content] for m in messages])
