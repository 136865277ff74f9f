"""Convert OpenAI's messages to turns. Content is a text, or a list of parts, of which only text parts are accepted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rewardserve.model.conversation import InvalidMessages, Message, UnsupportedField, is_empty_value
from rewardserve.service.api.validation import type_fault

_SAME_ROLE = {"developer": "system", "function": "tool"}
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


_TURN = frozenset({"role", "content"})
_PART = frozenset({"type", "text", "annotations", "logprobs", "cache_control"})
"""Fields of a text part; those besides type and text do not change the text: citations, probabilities, caching."""

_MAX_FIELD_CHARS = 60


def turns_of(
    messages: Sequence[Mapping[str, Any]], ignored_fields: frozenset[str] = frozenset()
) -> tuple[Message, ...]:
    """Convert messages. Raise `InvalidMessages` for content other than text, and `UnsupportedField` for a field that is neither
    read nor in `ignored_fields`. `Sample` checks the roles.
    """
    return tuple(_turn(i, message, ignored_fields) for i, message in enumerate(messages))


def check_known_fields(given: Mapping[str, Any], known: Collection[str], where: str, index: int) -> None:
    """Raise `UnsupportedField` for an unknown field, unless its value is empty."""
    for name, value in given.items():
        if name not in known and not is_empty_value(value):
            raise UnsupportedField(f"{where}.{name[:_MAX_FIELD_CHARS]}", index=index)


def type_of(given: Mapping[str, Any], where: str) -> str | None:
    """Return the `type` of a part or an item, None if it has none. Raise `InvalidRequest` for a type that is not a text."""
    kind = given.get("type")
    if kind is None or isinstance(kind, str):
        return kind
    raise type_fault(f"{where}.type", "str", kind)


def _turn(index: int, message: Mapping[str, Any], ignored_fields: frozenset[str]) -> Message:
    check_known_fields(message, _TURN | ignored_fields, f"messages[{index}]", index)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise InvalidMessages(f"message {index} has no role", index=index)
    return Message(_SAME_ROLE.get(role, role), text_of(index, content))


def text_of(index: int, content: object) -> str:
    """Return the text of a message's content.

    Raise `InvalidMessages` for a part that is not text, `UnsupportedField`, and `InvalidRequest` for a malformed part.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidMessages(f"message {index} has no text", index=index)
    where = f"messages[{index}].content"
    texts = [
        part.get("text") if isinstance(part, dict) and type_of(part, f"{where}[{n}]") in _TEXT_PARTS else None
        for n, part in enumerate(content)
    ]
    if any(not isinstance(text, str) for text in texts):
        raise InvalidMessages(f"message {index} has a part that is not text: only text is scored", index=index)
    for n, part in enumerate(content):
        check_known_fields(part, _PART, f"{where}[{n}]", index)
    return "".join(str(text) for text in texts)
