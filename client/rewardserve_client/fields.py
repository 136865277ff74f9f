"""What of a conversation can be sent: roles and texts. What else it says is refused by its name, never left out in silence.

A chat template may write tool calls, reasoning, names and pictures; a score of what is left without them is another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rewardserve_client.errors import Misconfigured

_RENDERED = ("tools", "documents", "chat_template", "chat_template_kwargs")
"""Columns of a data set that a trainer renders into its prompts."""

_SHOWN = ("image", "images", "video", "videos", "audio", "audios", "multi_modal_data", "multi_modal_inputs")
"""Columns that a policy is shown beside its prompt."""

_TURN = frozenset({"role", "content"})
_PART = frozenset({"type", "text", "annotations", "logprobs", "cache_control"})


def says_nothing(value: Any) -> bool:
    """Whether a field is as good as left out: null, NaN, empty, or made of such only, as columns of mixed rows are filled up."""
    if value is None or (isinstance(value, float) and value != value):
        return True
    if isinstance(value, str | bytes):
        return not value
    if isinstance(value, Mapping):
        return all(says_nothing(each) for each in value.values())
    if hasattr(value, "__len__") and hasattr(value, "__iter__"):
        return all(says_nothing(each) for each in value)
    return False


def refuse_columns(columns: Mapping[str, Any], *, rendered: bool = False) -> None:
    """Raise `Misconfigured` for a column that changes what a policy read and that cannot be sent.

    `rendered`: the prompts are text in which everything stands that a template has written.
    """
    names = _SHOWN if rendered else _RENDERED + _SHOWN
    _refuse(((name, columns.get(name)) for name in names), "")


def plain_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Roles and texts. Raise `Misconfigured` for what else a message says."""
    plain = []
    for i, message in enumerate(messages):
        _refuse(((name, value) for name, value in message.items() if name not in _TURN), f"messages[{i}].")
        plain.append({"role": str(message["role"]), "content": _text(message.get("content"), f"messages[{i}].content")})
    return plain


def without_empty_fields(messages: Any) -> Any:
    """Messages as they are given, less the fields that say nothing; what is in the others is the server's to judge."""
    if isinstance(messages, str) or messages is None:
        return messages
    return [
        {k: v for k, v in message.items() if k in _TURN or not says_nothing(v)}
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
        if not says_nothing(value):
            raise Misconfigured(
                f"{where}{name} cannot be sent, and what it holds would be missing from the text that is scored. Render the "
                "conversation with the chat template of the reward model and send it as text, or take it out of your data."
            )
