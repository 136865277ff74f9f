"""Take roles and texts of conversations, which can be sent, and refuse every other field by its name.

A chat template may write tool calls, reasoning, names and pictures; the score of a conversation without them is another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isnan
from typing import Any

from rewardserve_client.errors import Misconfigured

_RENDERED = ("tools", "documents", "chat_template", "chat_template_kwargs")
"""Columns of a data set that a trainer renders into its prompts."""

_SHOWN = ("image", "images", "video", "videos", "audio", "audios", "multi_modal_data", "multi_modal_inputs")
"""Columns that a policy is shown beside its prompt."""

_TURN = frozenset({"role", "content"})
_PART = frozenset({"type", "text", "annotations", "logprobs", "cache_control"})
_END = object()


def is_empty_value(value: Any) -> bool:
    """Whether a field that cannot be sent may have this value: null, NaN, an empty text, lists and objects of nothing else.

    Columns of mixed rows are filled up so. The server has the same rule (`model/conversation.py`); arrays count as lists here.
    """
    waiting = [iter((value,))]
    while waiting:  # of any depth
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
    """Raise `Misconfigured` for a column that changes what a policy read and that cannot be sent.

    `rendered`: the prompts are text in which everything stands that a template has written.
    """
    names = _SHOWN if rendered else _RENDERED + _SHOWN
    _refuse(((name, columns.get(name)) for name in names), "")


def plain_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Roles and texts. Raise `Misconfigured` for another field that is not empty."""
    plain = []
    for i, message in enumerate(messages):
        _refuse(((name, value) for name, value in message.items() if name not in _TURN), f"messages[{i}].")
        plain.append({"role": str(message["role"]), "content": _text(message.get("content"), f"messages[{i}].content")})
    return plain


def without_empty_fields(messages: Any) -> Any:
    """Messages as they are given, without empty fields; the server checks the others."""
    if isinstance(messages, str) or messages is None:
        return messages
    return [
        {k: v for k, v in message.items() if k in _TURN or not is_empty_value(v)}
        if isinstance(message, Mapping)
        else message
        for message in messages
    ]


def _text(content: Any, where: str) -> str:
    """The text of a message; it may come in parts."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for n, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise Misconfigured(f"{where}[{n}] is something other than text, and the server scores text only")
        _refuse(((name, value) for name, value in part.items() if name not in _PART), f"{where}[{n}].")
        texts.append(str(part["text"]))
    return "".join(texts)


def _refuse(fields: Iterable[tuple[str, Any]], where: str) -> None:
    for name, value in fields:
        if not is_empty_value(value):
            raise Misconfigured(
                f"{where}{name} cannot be sent, and its content would be missing from the text that is scored. Render the "
                "conversation with the chat template of the reward model and send it as text, or take it out of your data."
            )
