"""Tool calls and tools in the shape of OpenAI's API: read into hashable records, and written as chat templates expect them.

JSON texts are canonical: characters beyond ASCII stand for themselves, so that a control token in an argument is found. Standard
library only; knows no template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from rewardserve.model.conversation import InvalidMessages, Message, ToolCall


def read_calls(value: object) -> tuple[ToolCall, ...]:
    """Calls of `tool_calls` (a list), or of `function_call` (one, or the JSON text of some). Raise `InvalidMessages`."""
    if isinstance(value, str):
        value = _parsed(value, "a tool call")
    calls = [value] if isinstance(value, Mapping) else value
    if not isinstance(calls, list | tuple):
        raise InvalidMessages("tool_calls must be a list of calls")
    return tuple(map(_call, calls))


def read_tools(value: object) -> str:
    """JSON text of a list of tools (or of its JSON text); empty for none. A bare function gets a type. Raise `InvalidMessages`."""
    if value is None:
        return ""
    if isinstance(value, str):
        value = _parsed(value, "tools") if value.strip() else []
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise InvalidMessages("tools must be a list of objects, or its JSON text")
    tools = [
        tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool} for tool in value
    ]
    return _text(tools) if tools else ""


ContentOfCalls = Literal["missing", "empty", "null"]
CONTENTS_OF_CALLS: tuple[ContentOfCalls, ...] = ("missing", "empty", "null")
"""The content of a message that has calls and no text, in the order in which templates are tried."""


def plain_message(message: Message, beside_calls: ContentOfCalls) -> dict[str, Any]:
    """A message as a chat template gets it. `beside_calls`: the content of one that has calls and no text."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        if not message.content:
            plain |= {"content": None} if beside_calls == "null" else {}
            plain = {"role": message.role} if beside_calls == "missing" else plain
        plain["tool_calls"] = [_plain_call(call) for call in message.tool_calls]
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.name:
        plain["name"] = message.name
    return plain


def plain_tools(tools: str) -> list[dict[str, Any]] | None:
    """Tools as a chat template gets them; None where there are none."""
    return _parsed(tools, "tools") if tools else None


def _call(value: object) -> ToolCall:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(function, Mapping):
        raise InvalidMessages("a tool call must be an object with a function")
    name, arguments, number = function.get("name"), function.get("arguments"), value.get("id")
    if not isinstance(name, str) or not name:
        raise InvalidMessages("a tool call has no name")
    if isinstance(arguments, str):
        arguments = _parsed(arguments, "the arguments of a tool call") if arguments.strip() else {}
    if not isinstance(arguments, Mapping | None):
        raise InvalidMessages("the arguments of a tool call must be an object, or its JSON text")
    return ToolCall(name, _text(arguments or {}), number if isinstance(number, str) else "")


def _plain_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": _parsed(call.arguments, "the arguments of a tool call")}
    return ({"id": call.id} if call.id else {}) | {"type": "function", "function": function}


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidMessages(f"{what} must be JSON") from None


def _text(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise InvalidMessages("tools and tool calls must be JSON") from None
