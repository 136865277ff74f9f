"""Render conversations with a chat template as `apply_chat_template` does, but as a function of the conversation alone.

transformers gives templates a clock (`strftime_now`), and Jinja gives them random numbers. Here the clock is fixed at
`template_date`, and a template with random or other changing output is an error. Knows no token ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from rewardserve.model.conversation import InvalidMessages, Message, ToolCall, UnsupportedField
from rewardserve.model.templates.jinja_budget import build_renderer
from rewardserve.model.templates.jinja_process import CLOCK, Renderer, TemplateBroken, TemplateRefuses, TemplateTooSlow
from rewardserve.model.tools import CONTENTS_OF_CALLS, ContentOfCalls, plain_message, plain_tools, read_tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STATED_DATE = "2024-07-26"
"""Date for a checkpoint without one: the date that Llama 3's templates write without a clock."""

_RANDOM_FILTERS = frozenset({"random"})
_RANDOM_GLOBALS = frozenset({"lipsum"})
_ADDRESS = re.compile(r" at 0x[0-9a-f]+>", re.IGNORECASE)
"""Python's default text of an object: its address differs in every process."""


_ARGUMENT, _TOOL_NAME = "Bravo bravo", "delta_delta"
_CALL = ToolCall("alpha_alpha", f'{{"text": "{_ARGUMENT}"}}', "abcdefgh1")
"""Mistral's templates demand ids of nine characters."""
_TEXT = {"type": "string", "description": "Text."}
_PARAMETERS = {"type": "object", "properties": {"text": _TEXT}, "required": ["text"]}
_TOOLS = read_tools([{"name": _TOOL_NAME, "description": "Echo.", "parameters": _PARAMETERS}])
_CALLING = (
    Message("user", "Golf"),
    Message("assistant", "", (_CALL,)),
    Message("tool", "Hotel", tool_call_id=_CALL.id, name=_CALL.name),
    Message("assistant", "India"),
)
"""A conversation that shows whether a template writes tools and calls."""
_BY = " by the chat template"
_CONVERSATIONS = (_CALLING[:2], _CALLING)


class EncodingPolicyError(Exception):
    """The tokenizer or its chat template cannot be used; the message has the reason and the remedy."""


class ConversationTooSlow(InvalidMessages):
    """The chat template takes too much CPU time or memory for a conversation. A retry may succeed."""

    is_final = False


class ChatTemplate:
    """The chat template of a tokenizer, with its failures as `InvalidMessages`; an empty one joins contents.

    `template_date`: ISO date of the template's fixed clock; None: `STATED_DATE`. Thread-safe. The time of a rendering is
    bounded for every template (`rewardserve.model.templates.jinja_budget`). Raise `EncodingPolicyError`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, template_date: str | None = None) -> None:
        self._renderer = _read(template) if template else None
        self._special_tokens = dict(tokenizer.special_tokens_map)
        day = parse_date(STATED_DATE if template_date is None else template_date)
        self._clock = datetime.combine(day, datetime.min.time())
        known = self._renderer.description if self._renderer is not None else None
        self.date_that_is_asked_for = day.isoformat() if known is not None and CLOCK in known.names else None
        changing = (
            sorted((known.names & _RANDOM_GLOBALS) | (known.filters & _RANDOM_FILTERS)) if known is not None else ()
        )
        if changing:
            raise EncodingPolicyError(
                f"the chat template has random output (`{changing[0]}`): the score of a conversation would change each time. "
                "Restore the template that the model was trained with."
            )

    def __call__(self, messages: Sequence[Message], *, add_generation_prompt: bool, tools: str = "") -> str:
        """The text of a conversation. Raise `InvalidMessages`, and `UnsupportedField` for tools or calls that it would lack."""
        self._check_tools(messages, tools)
        if self._renderer is None:
            return "".join(m.content for m in messages)  # as TRL and RLHFlow train text-only reward models
        return self._rendered(self._renderer, messages, add_generation_prompt, tools, self._content)

    def _rendered(
        self,
        renderer: Renderer,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: str,
        content: ContentOfCalls,
    ) -> str:
        variables = {
            **self._special_tokens,
            "messages": [plain_message(m, content) for m in messages],
            "tools": plain_tools(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return renderer.render(variables, self._clock)
        except TemplateTooSlow as error:
            raise ConversationTooSlow(f"the chat template cannot render these messages: {error}") from None
        except TemplateRefuses as error:
            raise InvalidMessages(f"the chat template refuses these messages: {error}") from None

    def _check_tools(self, messages: Sequence[Message], tools: str) -> None:
        """Raise `UnsupportedField` where the template writes no tools, or no calls."""
        if tools and not self._writes_tools:
            raise UnsupportedField("tools", by=_BY)
        for i, message in enumerate(messages):
            if message.tool_calls and self._content_of_calls is None:
                raise UnsupportedField("tool_calls", by=_BY, index=i)

    @cached_property
    def _writes_tools(self) -> bool:
        """Whether the template writes the names of tools."""
        if self._renderer is None:
            return False
        try:
            return _TOOL_NAME in self._rendered(self._renderer, _CALLING[:1], True, _TOOLS, "missing")
        except InvalidMessages:
            return False

    @property
    def _content(self) -> ContentOfCalls:
        """How messages with calls and no text are given; asked for where there are some."""
        return self.__dict__.get("_content_of_calls") or "missing"

    @cached_property
    def _content_of_calls(self) -> ContentOfCalls | None:
        """The content with which the template writes calls that have no text beside them; None where it does not write calls.

        Missing is as in transformers; some templates fail on that, and those of DeepSeek write calls beside a null alone.
        """
        if self._renderer is None:
            return None
        wanted = (_CALL.name, _ARGUMENT)
        for content in CONTENTS_OF_CALLS:
            try:
                texts = [self._rendered(self._renderer, talk, False, _TOOLS, content) for talk in _CONVERSATIONS]
            except InvalidMessages:
                continue
            if all(word in text for text in texts for word in wanted):
                return content
        return None

    def clock(self, form: str) -> str:
        """The fixed date in this format."""
        return self._clock.strftime(form)

    def check_addresses(self, rendered: str) -> None:
        """Raise `EncodingPolicyError` for a memory address in the text of a conversation that holds none."""
        found = _ADDRESS.search(rendered)
        if found is not None:
            raise EncodingPolicyError(
                "the chat template writes the memory address of an object, which differs in every process: a filter or a function "
                "is printed instead of its result (`| list`, or a call, is missing). Correct the template."
            )


def clock_formats(template: str) -> tuple[str, ...] | None:
    """The date formats that a template uses; None: one of them is computed."""
    return _read(template).description.clocks


def parse_date(text: str) -> date:
    """An ISO date. Raise `EncodingPolicyError`."""
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise EncodingPolicyError(
        f"the date of the chat template is {text!r}; write it as YYYY-MM-DD, such as {STATED_DATE}"
    )


def _read(template: str) -> Renderer:
    try:
        return build_renderer(template)
    except TemplateBroken as error:
        raise EncodingPolicyError(
            f"the chat template is broken: {error} Restore it, or the one of the tokenizer."
        ) from None
