"""Extract roles and texts of conversations, and refuse fields that cannot be sent, by name.

A chat template may render tool calls, reasoning, names and images; a score without them is the score of another text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isnan
from typing import Any

from rewardserve_client.errors import Misconfigured

_RENDERED = ("tools", "documents", "chat_template", "chat_template_kwargs")
"""Data set columns that a trainer renders into its prompts."""

_SHOWN = ("image", "images", "video", "videos", "audio", "audios", "multi_modal_data", "multi_modal_inputs")
"""Data set columns that the policy receives beside its prompt."""

_TURN = frozenset({"role", "content"})
_PART = frozenset({"type", "text", "annotations", "logprobs", "cache_control"})
_END = object()


def is_empty_value(value: Any) -> bool:
    """Whether a field that cannot be sent holds no content: null, NaN, an empty text, or lists and objects of nothing else.

    Data sets of mixed rows fill absent fields with such values. The server applies the same rule
    (`model/conversation.py`); here arrays count as lists.
    """
    waiting = [iter((value,))]
    while waiting:  # iterative, so that any depth works
        each = next(waiting[-1], _END)
        if each is _END:
            waiting.pop()
        elif isinstance(each, Mapping):
            waiting.append(iter(each.values()))
        elif isinstance(each, str | bytes):
            if each:
                return False
        elif hasattr(each, "__len__") and hasattr(each, "__iter__"):
            waiting.append(iter(each))
        elif not (each is None or (isinstance(each, float) and isnan(each))):
            return False
    return True


def refuse_columns(columns: Mapping[str, Any], *, rendered: bool = False) -> None:
    """Raise `Misconfigured` for a column that changes the policy's input and that cannot be sent.

    `rendered`: the prompts are text that already contains everything that the template renders.
    """
    names = _SHOWN if rendered else _RENDERED + _SHOWN
    _refuse(((name, columns.get(name)) for name in names), "")


def plain_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Extract roles and texts. Raise `Misconfigured` for any other field with content."""
    plain = []
    for i, message in enumerate(messages):
        _refuse(((name, value) for name, value in message.items() if name not in _TURN), f"messages[{i}].")
        plain.append({"role": str(message["role"]), "content": _text(message.get("content"), f"messages[{i}].content")})
    return plain


def without_empty_fields(messages: Any) -> Any:
    """Drop empty fields of messages; the server checks the others."""
    if isinstance(messages, str) or messages is None:
        return messages
    return [
        {k: v for k, v in message.items() if k in _TURN or not is_empty_value(v)}
        if isinstance(message, Mapping)
        else message
        for message in messages
    ]


def _text(content: Any, where: str) -> str:
    """Text of a message, which may consist of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for n, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise Misconfigured(f"{where}[{n}] is not text, and the server scores text only")
        _refuse(((name, value) for name, value in part.items() if name not in _PART), f"{where}[{n}].")
        texts.append(str(part["text"]))
    return "".join(texts)


def _refuse(fields: Iterable[tuple[str, Any]], where: str) -> None:
    for name, value in fields:
        if not is_empty_value(value):
            raise Misconfigured(
                f"{where}{name} cannot be sent, and its content would be missing from the scored text. Render the "
                "conversation with the chat template of the reward model and send it as text, or remove the field from your data."
            )
