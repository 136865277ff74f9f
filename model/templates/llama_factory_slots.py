"""Cuts of a conversation in LLaMA-Factory, which tokenises every slot of every turn separately.

Its trainer builds a list of elements for each turn, from the slots of its template, and tokenises each separately; BOS and EOS
are separate elements. The chat template that it writes consists of the same slots, so its syntax tree shows the cuts. Where a
checkpoint has kept the chat template of its base model, the cuts are unknown: a turn then counts as one element, as in nearly
all of its templates, and `Slots.note` reports whether other cuts would give other ids. Source: LLaMA-Factory `data/template.py`,
`Template._encode`, `_convert_elements_to_ids`, `_get_jinja_template`. Knows no policies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, cycle, pairwise
from typing import Any

from rewardserve.model.conversation import InvalidMessages, Message
from rewardserve.model.templates.chat_template import ChatTemplate

_LONGEST_TREE = 32_768

Item = str | None
"""A piece of a slot: text of the template, or None for the content of the message."""
Element = tuple[Item, ...]
"""Items that are tokenised together."""

_TALK = (
    Message("user", "Alpha"),
    Message("assistant", "Bravo"),
    Message("user", "Charlie"),
    Message("assistant", "Delta"),
)
_SYSTEM_TALK = (Message("system", "Echo"), *_TALK)


@dataclass(frozen=True, slots=True)
class SlotTemplate:
    """The elements of a chat template of LLaMA-Factory. `is_fused`: the system message is a part of the first turn."""

    prefix: tuple[Element, ...]
    default_system: str | None
    system: tuple[Element, ...]
    is_fused: bool
    user: tuple[Element, ...]
    assistant: tuple[Element, ...]

    def elements(self, messages: Sequence[Message]) -> list[str]:
        """The texts of a conversation, each of which is tokenised separately."""
        has_system = bool(messages) and messages[0].role == "system"
        system = messages[0].content if has_system else self.default_system
        texts = list(_filled(self.prefix, ""))
        if system is not None and not self.is_fused:
            texts += _filled(self.system, system)
        for i, message in enumerate(messages[has_system:]):
            before = "".join(_filled(self.system, system)) if self.is_fused and i == 0 and system is not None else ""
            turn = {"user": self.user, "assistant": self.assistant}.get(message.role, ())
            texts += _filled(turn, before + message.content)
        return texts

    @property
    def is_empty(self) -> bool:
        """Whether the template writes contents alone: LLaMA-Factory's `empty`, which trains no EOS."""
        return not self.prefix and all(turn == ((None,),) for turn in (self.system, self.user, self.assistant))


@dataclass(frozen=True, slots=True)
class _Separator:
    """Text between two contents, and its cuts."""

    text: str
    cuts: tuple[int, ...]


class Slots:
    """Cuts of conversations and of rendered text. `bos`: the text of BOS, where it begins sequences. Thread-safe.

    `template` None: another program has written the chat template. `tail_cuts`: cuts in its text after the last content.
    """

    def __init__(self, tokenizer: Any, render: ChatTemplate, template: str, bos: str | None) -> None:
        self._fast, self._render, self._bos = tokenizer._tokenizer, render, bos
        self._marks = {str(token) for token in (tokenizer.bos_token, tokenizer.eos_token) if token}
        self.template = read_slots(template, self._marks)
        self._joints = [joints for talk in (_TALK, _SYSTEM_TALK) if (joints := self._find_joints(talk))]
        answered = self._rendered(_TALK[:2], is_asked=False) or ""
        begin = answered.rfind(_TALK[1].content) + len(_TALK[1].content)
        self.tail_cuts = tuple(cut - begin for cut in self.of(_TALK[:2], answered) if cut >= begin)

    def of(self, messages: Sequence[Message], text: str) -> tuple[int, ...]:
        """Cuts of the rendering of these messages."""
        if self.template is not None:
            elements = self.template.elements(messages)
            if "".join(elements) == text:
                return tuple(accumulate(map(len, elements)))[:-1]
        cuts = self._beginnings(messages, text)
        cuts |= {at + len(self._bos) for at in (0, *cuts) if self._bos and text.startswith(self._bos, at)}
        return tuple(sorted(cuts))

    def of_text(self, text: str, end: int) -> tuple[int, ...]:
        """Cuts of a prompt that the client has rendered, and whose response begins at `end`."""
        openings = [joints for joints in self._joints if text.startswith(joints[0].text)]
        if not openings:
            return ()
        # The longest opening that fits; of two equal ones that whose next separator comes first.
        opening, *first, answer, following = max(
            openings, key=lambda joints: (len(joints[0].text), -_find(text, joints[1].text, len(joints[0].text)))
        )
        cuts = [*opening.cuts]
        at = len(opening.text)
        for joint in chain(first, cycle([answer, following])):
            found = _find(text, joint.text, at)
            if found >= end:
                break
            cuts += [found + cut for cut in joint.cuts]
            at = found + len(joint.text)
        return tuple(cut for cut in cuts if cut < end)

    def note(self) -> str | None:
        """Note where the cuts are unknown and the ids of this tokenizer depend on them."""
        if self.template is not None:
            return None
        for talk in (_TALK, _SYSTEM_TALK):
            text = self._rendered(talk, is_asked=False)
            if text is None:
                continue
            inferred = {*self.of(talk, text)}
            fewest = self._beginnings(talk, text, role="assistant")
            most = inferred | {at for mark in self._marks for i in _places(text, mark) for at in (i, i + len(mark))}
            if len({self._ids(pieces(text, cuts)) for cuts in (fewest, inferred, most)}) > 1:
                return _UNKNOWN
        return None

    def _ids(self, texts: Iterable[str]) -> tuple[int, ...]:
        return tuple(i for text in texts for i in self._fast.encode(text, add_special_tokens=False).ids)

    def _beginnings(self, messages: Sequence[Message], text: str, role: str | None = None) -> set[int]:
        """Beginnings of the turns of a rendering after the first: those of a role, or all."""
        begins = [
            self._rendered(messages[:n], is_asked=messages[n].role == "assistant")
            for n in range(1, len(messages))
            if role in (None, messages[n].role)
        ]
        return {len(begin) for begin in begins if begin is not None and text.startswith(begin)}

    def _rendered(self, messages: Sequence[Message], *, is_asked: bool) -> str | None:
        """The rendering of a conversation, or of its first turns; None where the template refuses them."""
        try:
            return self._render(messages, add_generation_prompt=is_asked)
        except InvalidMessages:
            return None

    def _find_joints(self, talk: Sequence[Message]) -> tuple[_Separator, ...]:
        """The text before each content; empty where the template changes or repeats contents."""
        text = self._rendered(talk, is_asked=False)
        if text is None or any(text.count(message.content) != 1 for message in talk):
            return ()
        cuts = self.of(talk, text)
        joints = []
        at = 0
        for message in talk[:-1]:
            begin = text.index(message.content)
            joints.append(_Separator(text[at:begin], tuple(cut - at for cut in cuts if at <= cut <= begin)))
            at = begin + len(message.content)
        return tuple(joints)


_UNKNOWN = (
    "LLaMA-Factory tokenises the parts of a turn separately, and with this tokenizer the ids depend on the cuts. The chat template "
    "is not the one that it writes, so the cuts are inferred (BOS, each turn, each response): scores may differ from those of "
    "training. Compare the ids that its trainer prints with those of a plain apply_chat_template, or replace the checkpoint's "
    "chat template by the one that LLaMA-Factory writes for the template of the training"
)


def pieces(text: str, cuts: Iterable[int]) -> tuple[str, ...]:
    """The text in parts at the cuts; no part is empty unless the text is."""
    places = sorted({0, *cuts, len(text)})
    return tuple(text[begin:end] for begin, end in pairwise(places)) or (text,)


def _find(text: str, part: str, start: int) -> int:
    """Index of a part in the text, or the length of the text."""
    found = text.find(part, start)
    return found if part and found >= 0 else len(text)


def _places(text: str, token: str) -> Iterator[int]:
    at = text.find(token)
    while at >= 0:
        yield at
        at = text.find(token, at + 1)


def _filled(elements: Iterable[Element], content: str) -> Iterator[str]:
    for element in elements:
        text = "".join(content if item is None else item for item in element)
        if text:
            yield text


# -- the syntax tree --------------------------------------------------------------------------------------------------


def read_slots(template: str, marks: set[str]) -> SlotTemplate | None:
    """The slots of a chat template of LLaMA-Factory; None for any other. `marks`: the texts of BOS and EOS."""
    from jinja2 import Environment, TemplateSyntaxError, nodes

    if "system_message" not in template or len(template) > _LONGEST_TREE:
        return None
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
        loop = tree.body[-1] if tree.body else None
        if not isinstance(loop, nodes.For):
            return None
        before = _Outputs(tree.body[:-1])
        inside = _Outputs(loop.body)
    except (TemplateSyntaxError, RecursionError, _NotLlamaFactory):
        return None
    fused = inside.content[:-1] if inside.content is not None else None
    system = before.system if before.system is not None else fused
    user, assistant = inside.roles.get("user"), inside.roles.get("assistant")
    if any(items is None or None not in items for items in (system, user, assistant)):
        return None
    prefix_elements, *turns = (_elements(items or [], marks) for items in (before.plain, system, user, assistant))
    return SlotTemplate(prefix_elements, before.default_system, turns[0], before.system is None, turns[1], turns[2])


class _NotLlamaFactory(Exception):
    """The template has a construct that LLaMA-Factory does not write."""


class _Outputs:
    """The items of the outputs of some statements, by purpose. Raise `_NotLlamaFactory`."""

    def __init__(self, statements: Sequence[Any]) -> None:
        self.plain: list[Item] | None = None
        self.system: list[Item] | None = None
        self.content: list[Item] | None = None
        self.default_system: str | None = None
        self.roles: dict[str, list[Item]] = {}
        self._walk(statements, role=None)

    def _walk(self, statements: Sequence[Any], role: str | None) -> None:
        from jinja2 import nodes

        for node in statements:
            if isinstance(node, nodes.Output):
                self._take(node, role)
            elif isinstance(node, nodes.If):
                self._walk(node.body, _role_in(node.test))
                for branch in node.elif_:
                    self._walk(branch.body, _role_in(branch.test))
                self._walk(node.else_, None)
            elif isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
                self._assign(node)
            else:
                raise _NotLlamaFactory

    def _take(self, node: Any, role: str | None) -> None:
        if len(node.nodes) != 1:
            raise _NotLlamaFactory
        items, is_system = _items(node.nodes[0])
        if role is not None:
            self.roles[role] = items
        elif is_system and self.system is None:
            self.system = items
        elif None not in items and self.plain is None:
            self.plain = items
        else:
            raise _NotLlamaFactory

    def _assign(self, node: Any) -> None:
        from jinja2 import nodes

        name = node.target.name
        if name == "system_message" and isinstance(node.node, nodes.Const):
            self.default_system = str(node.node.value)
        elif name == "content" and isinstance(node.node, nodes.Add):
            self.content, _ = _items(node.node)
        elif name not in ("system_message", "content", "loop_messages"):
            raise _NotLlamaFactory


def _items(expression: Any) -> tuple[list[Item], bool]:
    """The summands of an expression, and whether the system message is one. Raise `_NotLlamaFactory`."""
    from jinja2 import nodes

    if isinstance(expression, nodes.Add):
        left, is_left = _items(expression.left)
        right, is_right = _items(expression.right)
        return left + right, is_left or is_right
    if isinstance(expression, nodes.Const) and isinstance(expression.value, str):
        return [expression.value], False
    if isinstance(expression, nodes.Name) and expression.name in ("content", "system_message"):
        return [None], expression.name == "system_message"
    if isinstance(expression, nodes.Getitem):  # message['content'], behind the system message of a fused turn
        return [None], False
    raise _NotLlamaFactory


def _role_in(test: Any) -> str | None:
    """The role in the condition of an `if`."""
    from jinja2 import nodes

    roles = [node.value for node in test.find_all(nodes.Const) if node.value in ("user", "assistant")]
    return roles[0] if roles else None


def _elements(items: Sequence[Item], marks: set[str]) -> tuple[Element, ...]:
    """Group items into elements: at most one text on either side of a content; BOS and EOS are separate elements."""
    elements: list[list[Item]] = []
    for item in items:
        last = elements[-1][-1] if elements else None
        is_apart = item in marks or last in marks or (item is not None and last is not None) or not elements
        if is_apart:
            elements.append([item])
        else:
            elements[-1].append(item)
    return tuple(tuple(element) for element in elements)
