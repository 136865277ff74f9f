"""Messages as OpenAI writes them -> turns: content as text, or as a list of parts of which only text is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rewardserve.model.conversation import InvalidMessages, Message, UnsupportedField, is_empty_value
from rewardserve.service.errors import InvalidRequest

_SAME_ROLE = {"developer": "system", "function": "tool"}
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


_TURN = frozenset({"role", "content"})
_PART = frozenset({"type", "text", "annotations", "logprobs", "cache_control"})
"""What says nothing of a text part's text is there too: where it was cited from, how likely and how long it is kept."""

_MAX_FIELD_CHARS = 60


def turns_of(messages: Sequence[Mapping[str, Any]], unread: frozenset[str] = frozenset()) -> tuple[Message, ...]:
    """Raise `InvalidMessages` for what is no text, and `UnsupportedField` for a field that is neither read nor in `ignored_fields`.

    Roles are checked by whoever makes a sample of them.
    """
    return tuple(_turn(i, message, unread) for i, message in enumerate(messages))


def check_known_fields(given: Mapping[str, Any], known: Collection[str], where: str, index: int) -> None:
    """Raise `UnsupportedField` for a field that is not known, unless its value is empty."""
    for name, value in given.items():
        if name not in known and not is_empty_value(value):
            raise UnsupportedField(f"{where}.{name[:_MAX_FIELD_CHARS]}", index=index)


def type_of(given: Mapping[str, Any], where: str) -> str | None:
    """The `type` of a part or an item, None where it has none. Raise `InvalidRequest` for one that is no text."""
    kind = given.get("type")
    if kind is None or isinstance(kind, str):
        return kind
    raise InvalidRequest(f"{where}.type: Expected `str`", field=f"{where}.type")


def _turn(index: int, message: Mapping[str, Any], unread: frozenset[str]) -> Message:
    check_known_fields(message, _TURN | unread, f"messages[{index}]", index)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise InvalidMessages(f"message {index} has no role", index=index)
    return Message(_SAME_ROLE.get(role, role), text_of(index, content))


def text_of(index: int, content: object) -> str:
    """The text of a message's content.

    Raise `InvalidMessages` where a part of it is none, `UnsupportedField`, and `InvalidRequest` for a part of no format.
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
        raise InvalidMessages(f"message {index} has a part that is no text: only text is scored", index=index)
    for n, part in enumerate(content):
        check_known_fields(part, _PART, f"{where}[{n}]", index)
    return "".join(str(text) for text in texts)
