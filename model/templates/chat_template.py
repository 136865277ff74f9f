"""Render conversations with a chat template as `apply_chat_template` does, but as a function of the conversation alone.

transformers gives templates a clock (`strftime_now`), and Jinja gives them random numbers. Here the clock is fixed at
`template_date`, and a template with random or other changing output is an error. Knows no token ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING

from rewardserve.model.conversation import InvalidMessages, Message
from rewardserve.model.templates.jinja_budget import build_renderer
from rewardserve.model.templates.jinja_process import CLOCK, Renderer, TemplateBroken, TemplateRefuses, TemplateTooSlow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STATED_DATE = "2024-07-26"
"""Date for a checkpoint without one: the date that Llama 3's templates write without a clock."""

_RANDOM_FILTERS = frozenset({"random"})
_RANDOM_GLOBALS = frozenset({"lipsum"})
_ADDRESS = re.compile(r" at 0x[0-9a-f]+>", re.IGNORECASE)
"""Python's default text of an object: its address differs in every process."""


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

    def __call__(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The text of a conversation. Raise `InvalidMessages`."""
        if self._renderer is None:
            return "".join(m.content for m in messages)  # as TRL and RLHFlow train text-only reward models
        variables = {
            **self._special_tokens,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._renderer.render(variables, self._clock)
        except TemplateTooSlow as error:
            raise ConversationTooSlow(f"the chat template cannot render these messages: {error}") from None
        except TemplateRefuses as error:
            raise InvalidMessages(f"the chat template refuses these messages: {error}") from None

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
