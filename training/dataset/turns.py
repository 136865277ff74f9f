"""Join a prompt and responses into conversations if the data set repeats the prompt inside the responses.

Pure functions of messages. Two turns are equal when their roles and their words are; blanks do not count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rewardserve.model.conversation import Message

Messages = tuple[Message, ...]
_ROLE_MARKERS = re.compile(
    r"<[^<>]*>|\[/?inst\]|\b(human|user|prompter|assistant|gpt|bot|ai|system|question|answer|h|u|q|a|s)\b\s*:"
)
_RENDERED = (
    re.compile(r"(?:^|\n)\s*(?:Human|User|Prompter)\s*:.*\n\s*(?:Assistant|Bot|AI|GPT)\s*:", re.DOTALL),
    re.compile(r"\[INST\].*\[/INST\]", re.DOTALL),
    re.compile(r"<[^<>\n]*>\s*(?:user|human|prompter)\b.*<[^<>\n]*>\s*(?:assistant|model|gpt)\b", re.DOTALL | re.IGNORECASE),
    re.compile(r"<\|(?:user|prompter)\|>.*<\|(?:assistant|system)\|>", re.DOTALL),
)  # fmt: skip
_MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")
LONG_PROMPT_WORDS = 4
"""A shorter prompt may coincide with the beginning of a response ("Hi")."""


_SHAREGPT_ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "observation": "tool", "tool_response": "tool",
    "developer": "system", "function": "tool",
}  # fmt: skip
"""Names of roles in ShareGPT's format; others are the same."""


class TurnsMismatch(Exception):
    """The responses contain a conversation other than the prompt's; the message describes the difference."""


def of_sharegpt(message: Any) -> Any:
    """A message with `from` and `value` as one with `role` and `content`; others unchanged."""
    if not isinstance(message, Mapping) or "from" not in message or "value" not in message or message.get("role"):
        return message
    others = {name: value for name, value in message.items() if name not in ("from", "value", "role", "content")}
    role = message["from"]
    if role == "function_call":
        return {"role": "assistant", "content": "", "function_call": message["value"], **others}
    return {
        "role": _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role,
        "content": message["value"],
        **others,
    }


def split(prompt: str | Messages, *answers: Messages) -> tuple[Messages, ...]:
    """Turns of the prompt, once, and the turns of each response after it. Raise `TurnsMismatch`."""
    placed = [_place(prompt, answer) for answer in answers]
    own = placed[0][0]
    if not all(_same(own, other) for other, _ in placed):
        raise TurnsMismatch("chosen and rejected repeat the prompt with different turns before or in it")
    return (own, *(rest for _, rest in placed))


def is_conversation(*whole: Messages) -> bool:
    """Whether all begin with the same turns, a user's among them, so that they certainly contain the prompt."""
    first, shortest = whole[0], min(map(len, whole))
    if len(whole) == 1:
        shortest -= first[-1].role == "assistant"  # the turn that is scored is no part of its prompt
    n = next((i for i in range(shortest) if any(one[i] != first[i] for one in whole)), shortest)
    return first[0].role in ("system", "user") and any(m.role == "user" for m in first[:n])


def is_rendered(common: str) -> bool:
    """Whether the common beginning of two texts has a user's turn and the start of a response."""
    return any(pattern.search(common) for pattern in _RENDERED)


def is_messages_as_text(text: str) -> bool:
    """Whether a text is the JSON or the Python form of a list of messages."""
    return bool(_MESSAGES_AS_TEXT.match(text))


def last_user_turn(prompt: Messages) -> str:
    """Last turn of the user; empty if there is none."""
    return next((m.content for m in reversed(prompt) if m.role == "user"), "")


def holds(prompt: str, common: str) -> bool:
    """Whether the common beginning of two texts is a rendered conversation with this prompt in it."""
    return bool(_words(prompt)) and _words(prompt) in _words(common) and is_rendered(common)


def cut(prompt: str, answer: str) -> str | None:
    """Response after the prompt that it begins with, ignoring blanks around the prompt; None if it begins otherwise."""
    if answer.startswith(prompt) and prompt:
        return answer[len(prompt) :]
    bare, begun = prompt.strip(), answer.lstrip()
    return begun[len(bare) :] if bare and begun.startswith(bare) else None


def is_long(prompt: str) -> bool:
    """Whether the prompt is so long that a response with the same beginning repeats it."""
    return len(prompt.split()) >= LONG_PROMPT_WORDS


def _place(prompt: str | Messages, answer: Messages) -> tuple[Messages, Messages]:
    """The prompt's turns and the rest of one response."""
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    found = _overlap(turns, answer) or _inside(turns, answer)
    if found is None and isinstance(prompt, str):
        found = _rendered_inside(prompt, answer)
    if found is None and _follows(turns, answer):
        found = turns, answer
    if found is None:
        roles = ", ".join(m.role for m in answer)
        raise TurnsMismatch(
            f"is a separate conversation ({roles}) without the prompt among its turns: remove the prompt's turns from "
            "it, or make them equal"
        )
    return found


def _overlap(prompt: Messages, answer: Messages) -> tuple[Messages, Messages] | None:
    """Match a response that begins with the last turns of the prompt, with as many as possible."""
    for n in range(min(len(prompt), len(answer) - 1), 0, -1):
        if _same(prompt[-n:], answer[:n]):
            return prompt, answer[n:]
    return None


def _inside(prompt: Messages, answer: Messages) -> tuple[Messages, Messages] | None:
    """Match a prompt in the middle of the response, after a system turn or earlier turns."""
    for end in range(len(prompt) + 1, len(answer)):
        if _same(prompt, answer[end - len(prompt) : end]):
            return answer[:end], answer[end:]
    return None


def _rendered_inside(prompt: str, answer: Messages) -> tuple[Messages, Messages] | None:
    """Match a prompt that is the text of several turns of the response, with only role names between them."""
    for n in range(len(answer) - 1, 0, -1):
        if answer[n - 1].role == "user" and _is_text_of(_words(prompt), answer[:n]):
            return answer[:n], answer[n:]
    return None


def _is_text_of(text: str, turns: Messages) -> bool:
    left, at = "", 0
    for turn in turns:
        content = _words(turn.content)
        found = text.find(content, at)
        if found < 0:
            return False
        left += text[at:found] + " "
        at = found + len(content)
    return not re.search(r"\w", _ROLE_MARKERS.sub("", left + text[at:]))


def _follows(prompt: Messages, answer: Messages) -> bool:
    """Whether the response continues after the prompt, without repeating a user turn of the prompt."""
    if any(m.role == "system" for m in answer):
        return False
    asked = {_words(m.content) for m in prompt if m.role == "user"}
    if any(m.role == "user" and _words(m.content) in asked for m in answer):
        return False
    last, first = prompt[-1], answer[0]
    if last.role == "assistant" and first.role == "assistant":
        return not _words(first.content).startswith(_words(last.content))
    return first.role not in ("user", "system") or last.role not in ("user", "tool")


def _same(left: Messages, right: Messages) -> bool:
    return len(left) == len(right) and all(
        a.role == b.role and _words(a.text) == _words(b.text) for a, b in zip(left, right, strict=True)
    )


def _words(text: str) -> str:
    return " ".join(text.casefold().split())
