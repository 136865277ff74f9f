"""Chat template -> text, as `apply_chat_template` renders it, but as a function of the conversation alone.

transformers gives templates a clock (`strftime_now`), and Jinja gives them random numbers. Here the clock stands still at
`template_date`, and a template with anything else that changes by itself is refused. Knows no token ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from model.conversation import InvalidMessages, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STATED_DATE = "2024-07-26"
"""The date where a checkpoint says none: the one that Llama 3's templates write where they are given no clock."""

_CLOCK = "strftime_now"
_RANDOM_FILTERS = frozenset({"random"})
_RANDOM_GLOBALS = frozenset({"lipsum"})
_ADDRESS = re.compile(r" at 0x[0-9a-f]+>", re.IGNORECASE)
"""How Python writes an object that has no text of its own: another one in every process."""


class EncodingPolicyError(Exception):
    """A tokenizer or a chat template that cannot be used; the message says why and names the remedy."""


class ChatTemplate:
    """The chat template of a tokenizer, with its failures as `InvalidMessages`; an empty one joins contents.

    `template_date`: ISO date at which the clock of a template stands still; None: `STATED_DATE`. Thread-safe. Raise
    `EncodingPolicyError`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, template_date: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._compiled: Any = _compiled(template) if template else None
        self._special_tokens = dict(tokenizer.special_tokens_map)
        day = parse_date(STATED_DATE if template_date is None else template_date)
        self._clock = datetime.combine(day, datetime.min.time())
        names, filters = _names(self._compiled, template) if template else (frozenset(), frozenset())
        self.date_that_is_asked_for = day.isoformat() if _CLOCK in names else None
        changing = sorted((names & _RANDOM_GLOBALS) | (filters & _RANDOM_FILTERS))
        if changing:
            raise EncodingPolicyError(
                f"the chat template writes something random (`{changing[0]}`): one conversation would have another score each "
                "time. Restore the template that the model was trained with."
            )

    def __call__(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The text of a conversation. Raise `InvalidMessages`."""
        if self._compiled is None:
            return "".join(m.content for m in messages)  # as TRL and RLHFlow train text-only reward models
        try:
            # `apply_chat_template` does the same, but lets nobody replace its clock.
            rendered: str = self._compiled.render(
                **{**self._special_tokens, _CLOCK: self._clock.strftime},
                messages=[{"role": m.role, "content": m.content} for m in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # jinja2 errors: the template's own raise_exception among them
            raise InvalidMessages(f"the chat template refuses these messages: {error}") from None
        return rendered

    def clock(self, form: str) -> str:
        """What a template that asks for the date in this format is given."""
        return self._clock.strftime(form)

    def check_addresses(self, rendered: str) -> None:
        """Raise `EncodingPolicyError` for a memory address in the text of a conversation that holds none."""
        found = _ADDRESS.search(rendered)
        if found is not None:
            raise EncodingPolicyError(
                "the chat template writes the memory address of an object, which is another one in every process: a filter or "
                "a function is printed where its result is meant (`| list`, or a call, is missing). Mend the template."
            )


def clock_formats(template: str) -> tuple[str, ...] | None:
    """The formats in which a template asks for the date; None: one of them is not written in the template."""
    from jinja2 import nodes

    calls = [
        node
        for node in _compiled(template).environment.parse(template).find_all(nodes.Call)
        if isinstance(node.node, nodes.Name) and node.node.name == _CLOCK
    ]
    written = [call.args[0].value for call in calls if len(call.args) == 1 and isinstance(call.args[0], nodes.Const)]
    return tuple(dict.fromkeys(written)) if len(written) == len(calls) else None


def parse_date(text: str) -> date:
    """An ISO date. Raise `EncodingPolicyError`."""
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise EncodingPolicyError(f"the date of the chat template is {text!r}; it is written YYYY-MM-DD, as {STATED_DATE}")


def _compiled(template: str) -> Any:
    """The template in the environment that transformers makes for it."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return _compile_jinja_template(template)
    except Exception as error:  # jinja2's syntax errors; whatever a foreign template makes it say
        raise EncodingPolicyError(f"the chat template is broken: {error} Restore it, or the tokenizer's.") from None


def _names(compiled: Any, template: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names that a template uses and does not define as a macro, and its filters: also those that `map` is given."""
    from jinja2 import nodes

    tree = compiled.environment.parse(template)
    used = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}
    filters = list(tree.find_all(nodes.Filter))
    mapped = [
        node.args[0].value
        for node in filters
        if node.name == "map" and node.args and isinstance(node.args[0], nodes.Const)
    ]
    macros = {node.name for node in tree.find_all(nodes.Macro)}
    return frozenset(used - macros), frozenset([*(node.name for node in filters), *map(str, mapped)])
