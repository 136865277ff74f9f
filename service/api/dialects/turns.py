"""Messages as OpenAI writes them -> turns: content as text, or as a list of parts of which only text is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model.conversation import InvalidMessages, Message

_SAME_ROLE = {"developer": "system", "function": "tool"}
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


def turns_of(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Raise `InvalidMessages` for what is no text. Roles are checked by whoever makes a sample of them."""
    return tuple(_turn(i, message) for i, message in enumerate(messages))


def _turn(index: int, message: Mapping[str, Any]) -> Message:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise InvalidMessages(f"message {index} has no role", index=index)
    return Message(_SAME_ROLE.get(role, role), text_of(index, content))


def text_of(index: int, content: object) -> str:
    """The text of a message's content. Raise `InvalidMessages` where a part of it is none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidMessages(f"message {index} has no text", index=index)
    texts = [
        part.get("text") if isinstance(part, dict) and part.get("type") in _TEXT_PARTS else None for part in content
    ]
    if any(not isinstance(text, str) for text in texts):
        raise InvalidMessages(f"message {index} has a part that is no text: only text is scored", index=index)
    return "".join(str(text) for text in texts)
