"""One row -> one preference pair, in whichever of the known formats it is written.

TRL's preference formats (explicit and implicit prompt, strings or messages), OpenRLHF's columns by setting, and our
own files. Knows no file, no split and no tokenizer; a row that makes no pair is refused with the field that is at fault.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from model.conversation import Message, Sample, SampleError, check_text
from training.config import SourceConfig
from training.sources import Row


class FieldError(Exception):
    """One field of one row makes no sense."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt, of which people preferred `chosen`.

    `chosen_text` and `rejected_text` are the responses alone, for length baselines. `id` is `file:line`.
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


@dataclass(frozen=True, slots=True)
class _Sides:
    """Both conversations of a row, and the text of the prompt that they share."""

    chosen: Sample
    rejected: Sample
    chosen_text: str
    rejected_text: str
    prompt_key: str


def to_pair(row: Row, source: SourceConfig, head: str) -> Pair:
    """The pair of one row. Raise `FieldError`."""
    if row.values is None:
        raise FieldError("row", row.error)
    sides = _sides(row.values, source)
    if sides.chosen == sides.rejected:
        raise FieldError(source.rejected_key, "is equal to the chosen response: nothing was preferred")
    for key, sample in ((source.chosen_key, sides.chosen), (source.rejected_key, sides.rejected)):
        _check_sample(sample, key)
    group = row.values.get(source.group_key)
    return Pair(
        id=f"{row.file}:{row.line}",
        source=source.name or str(row.values.get(source.source_key) or source.path),
        group=str(group) if group is not None else hashlib.sha256(sides.prompt_key.encode("utf-8")).hexdigest()[:16],
        head=head,
        chosen=sides.chosen,
        rejected=sides.rejected,
        chosen_text=sides.chosen_text,
        rejected_text=sides.rejected_text,
        margin=_margin(row.values.get(source.margin_key), source.margin_key),
        weight=source.weight,
    )


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
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FieldError(field, f"is {value!r}; a margin is a finite number")
    return float(value)


def _sides(values: dict[str, Any], source: SourceConfig) -> _Sides:
    """Which of TRL's formats this row is written in, read accordingly."""
    prompt = values.get(source.prompt_key)
    chosen = _side(values, source.chosen_key)
    rejected = _side(values, source.rejected_key)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise FieldError(source.rejected_key, "one of chosen and rejected is a string and the other is messages")
    if prompt is not None:
        start = _prompt(prompt, source)
        return _explicit(_with_context(start, values, source), chosen, rejected, source)
    if isinstance(chosen, str) or isinstance(rejected, str):
        return _implicit_text(str(chosen), str(rejected))
    return _implicit_messages(chosen, rejected)


def _side(values: dict[str, Any], field: str) -> str | tuple[Message, ...]:
    value = values.get(field)
    if value is None:
        raise FieldError(field, f"is missing; the row has {', '.join(sorted(values))}")
    if isinstance(value, str):
        if not value:
            raise FieldError(field, "is empty")
        _check_utf8(value, field)
        return value
    return _messages(value, field)


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
        if (
            not isinstance(item, dict)
            or not isinstance(item.get("role"), str)
            or not isinstance(item.get("content"), str)
        ):
            raise FieldError(field, f"message {i} is no object with a role and a content, both text")
        _check_utf8(item["content"], field)
    return tuple(Message(item["role"], item["content"]) for item in value)


def _prompt(value: Any, source: SourceConfig) -> str | tuple[Message, ...]:
    if isinstance(value, str):
        _check_utf8(value, source.prompt_key)
        return value if source.strings == "raw" else (Message("user", value),)
    return _messages(value, source.prompt_key)


def _with_context(
    prompt: str | tuple[Message, ...], values: dict[str, Any], source: SourceConfig
) -> str | tuple[Message, ...]:
    context = values.get(source.context_key)
    if source.context == "ignore" or context is None:
        return prompt
    if not isinstance(context, str):
        raise FieldError(source.context_key, f"is a {type(context).__name__}; it must be text")
    if isinstance(prompt, str):
        return f"{context}\n\n{prompt}"
    at = next((i for i, m in enumerate(prompt) if m.role == "user"), 0)
    asked = Message(prompt[at].role, f"{context}\n\n{prompt[at].content}")
    return (*prompt[:at], asked, *prompt[at + 1 :])


def _explicit(
    prompt: str | tuple[Message, ...],
    chosen: str | tuple[Message, ...],
    rejected: str | tuple[Message, ...],
    source: SourceConfig,
) -> _Sides:
    if isinstance(prompt, str):
        if not isinstance(chosen, str) or not isinstance(rejected, str):
            raise FieldError(source.chosen_key, "strings: raw joins a prompt with a response; both must be text")
        return _Sides(Sample(text=prompt + chosen), Sample(text=prompt + rejected), chosen, rejected, prompt)
    side: Callable[[str | tuple[Message, ...]], Sample] = lambda answer: _answered(prompt, answer)  # noqa: E731
    return _Sides(side(chosen), side(rejected), _said(prompt, chosen), _said(prompt, rejected), _key(prompt))


def _answered(prompt: tuple[Message, ...], answer: str | tuple[Message, ...]) -> Sample:
    """The prompt with its answer. Some data sets repeat the prompt at the front of the answer."""
    if isinstance(answer, str):
        return Sample(prompt=prompt, response=answer)
    after = answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer
    return Sample(messages=(*prompt, *after))


def _said(prompt: tuple[Message, ...], answer: str | tuple[Message, ...]) -> str:
    if isinstance(answer, str):
        return answer
    after = answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer
    return "\n".join(m.content for m in after)


def _implicit_messages(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> _Sides:
    n = _n_common(chosen, rejected)
    prompt = chosen[:n]
    texts = ["\n".join(m.content for m in side[n:]) for side in (chosen, rejected)]
    key = _key(prompt) if prompt else _key((*chosen, *rejected))
    return _Sides(Sample(messages=chosen), Sample(messages=rejected), texts[0], texts[1], key)


def _implicit_text(chosen: str, rejected: str) -> _Sides:
    """Rendered conversations. The prompt is their common beginning, back to the last `Assistant:` or line end.

    Two responses often begin alike; cut at the character, the prompt of one question would differ from row to row.
    """
    common = chosen[: _n_common(chosen, rejected)]
    turn = common.rfind("Assistant:")
    n = turn + len("Assistant:") if turn >= 0 else common.rfind("\n") + 1
    key = common[:n] or "\n".join(sorted((chosen, rejected)))
    return _Sides(Sample(text=chosen), Sample(text=rejected), chosen[n:], rejected[n:], key)


def _n_common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _key(messages: tuple[Message, ...]) -> str:
    return json.dumps([[m.role, m.content] for m in messages])
