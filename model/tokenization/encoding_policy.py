"""Infer the encoding policy of a tokenizer and its chat template under the rule of a layout: BOS, ending, response start.

`EncodingPolicy` has everything in which two encoders may differ. Pure: it renders and tokenises a probe, and knows no sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rewardserve.model.contract import Truncation
from rewardserve.model.conversation import InvalidMessages, Message
from rewardserve.model.layout_rules import CLOSES_ANY_TAIL, LAYOUT_RULES, LayoutRule
from rewardserve.model.templates.chat_template import ChatTemplate, ConversationTooSlow, EncodingPolicyError
from rewardserve.model.templates.llama_factory_slots import Slots, pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE_USER = "What is two plus two?"
_PROBE_RESPONSE = "Four, of course"
_PROBE_RESPONSES = (
    _PROBE_RESPONSE,
    "Four, of course.",
    "Qx",
    "Is it four?",
    "Two plus two is four, as always.\n" * 40 + "End",
)
_PROBE_ROLES = (("user", "assistant", "user"), ("system", "user"))


@dataclass(frozen=True, slots=True)
class EncodingPolicy:
    """Rules of encoding. Equal policies and equal tokenizers give equal ids.

    `bos_id` None: no BOS anywhere. `end_text` closes a scored turn, by the `rule` of the layout; `end_ids` are its
    tokens; both may be empty. `template_tail` is the template's text after the content of the last turn.
    `skip_id`: the id that is dropped at the end of a row (`reads_at: last_non_pad`); None: no id is. `response_start` is
    the template's text before an assistant's content; it locates the response in rendered text. `template_date`: ISO date
    of the template's fixed clock; None: the template uses no date. `start_ids` begin text and ids: the BOS tokens
    that a rendering begins with; without a template all special tokens that the tokenizer adds before text. `ending_varies`:
    the template's text after the last content depends on the conversation, and `template_tail` is one case of it.
    `drops_read_ids`: a row may lose ids at its end that the layout's trainer gave to the model, namely tokens with the id of the
    pad token: only a causal model gives the same score without them.
    """

    bos_id: int | None
    end_text: str
    end_ids: tuple[int, ...]
    template_tail: str
    response_start: str
    response_start_ids: tuple[int, ...]
    template: str
    max_tokens: int
    vocab_size: int
    truncation: Truncation = "prompt_left"
    template_date: str | None = None
    rule: LayoutRule = LAYOUT_RULES["language_model"]
    skip_id: int | None = None
    start_ids: tuple[int, ...] = ()
    ending_varies: bool = False
    drops_read_ids: bool = False

    @property
    def strips_newlines(self) -> bool:
        """Whether newlines at the end of a response are removed together with the template's."""
        return self.rule.ending == "eos" and not self.template_tail.strip("\n")


def infer_policy(
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    vocab_size: int,
    rule: LayoutRule,
    pad_id: int | None = None,
    template: str | None = None,
    truncation: Truncation = "prompt_left",
    template_date: str | None = None,
) -> EncodingPolicy:
    """Infer the policy of this tokenizer and its chat template under the rule of a layout.

    `pad_id`: `pad_token_id` of the model's configuration. `template`: in place of the tokenizer's; "" joins contents.
    `template_date`: date for a template that uses the current date; None: `STATED_DATE`. Raise `EncodingPolicyError` where
    no end token can be found, or where the template is no function of the conversation.
    """
    if template is None:
        template = _template_of(tokenizer)
    render = ChatTemplate(tokenizer, template, template_date)
    user, answer = Message("user", _PROBE_USER), Message("assistant", _PROBE_RESPONSE)
    full = render((user, answer), add_generation_prompt=False)
    render.check_addresses(full)
    if render((user, replace(answer, content=_PROBE_RESPONSES[2])), add_generation_prompt=False) == full:
        raise EncodingPolicyError(
            "the chat template writes no response: all responses to a prompt would have the same score. It may expect "
            "contents as lists of parts, as templates of vision models do, but samples have text. Let it write "
            "`message['content']`."
        )
    tail = full.rpartition(_PROBE_RESPONSE)[2]
    fast = plain(tokenizer)
    start_ids = _bos_of_rendering(tokenizer, full) if template else _start_of_text(tokenizer, rule)
    bos_id = start_ids[0] if start_ids and start_ids[0] == tokenizer.bos_token_id else None
    # Without BOS, which begins the rendering: only the cuts at its end are needed here.
    slots = Slots(tokenizer, render, template, None) if rule.tokenizes == "slots" else None
    tails = _tails(render)
    varies = any(each != tail for each in tails)
    if varies and (slots is not None or rule.ending not in CLOSES_ANY_TAIL):
        raise EncodingPolicyError(
            f"the chat template ends conversations in different ways ({', '.join(map(repr, dict.fromkeys([tail, *tails])))}), so "
            "the token at which the score is read is not known. Let it end all of them in the same way, or, for a transformers "
            "classifier or its adapter, set the ending to `template`."
        )
    is_bare = slots is not None and slots.template is not None and slots.template.is_empty
    adds_nothing = is_bare and rule.ending == "template_or_eos"
    end = "" if adds_nothing else _end_of(tokenizer, tail, rule, has_template=bool(template))
    prompt = render((user,), add_generation_prompt=True)
    start = prompt.rpartition(_PROBE_USER)[2]
    body = full.removesuffix(tail)
    cuts = () if slots is None else slots.of((user, answer), full)
    ending_cuts = (*cuts, *(len(body) + cut for cut in end_cuts(slots, tail, end)))
    end_ids = _ids_from(fast, body + end, len(body), ending_cuts)
    response_ids = _ids_from(fast, prompt, len(prompt) - len(start), cuts)
    always = {*ids_of(fast, full), *end_ids, *response_ids, *start_ids}
    lost = [fast.id_to_token(i) for i in sorted(always) if i >= vocab_size]
    if lost:
        raise EncodingPolicyError(
            f"the tokenizer or its chat template puts {lost[0]!r} into every sample, and the model has no embedding for it: "
            f"its table has {vocab_size} rows. Restore the tokenizer that the model was trained with, or resize the "
            "embeddings of the model and train them."
        )
    # With a pad id outside the vocabulary (-1, for example) the class of transformers reads the last token.
    skip_id = pad_id if rule.reads_at == "last_non_pad" and pad_id in range(vocab_size) else None
    return EncodingPolicy(
        bos_id=bos_id,
        end_text=end,
        end_ids=end_ids,
        template_tail=tail,
        response_start=start,
        response_start_ids=response_ids,
        template=template,
        max_tokens=max_tokens,
        vocab_size=vocab_size,
        truncation=truncation,
        template_date=render.date_that_is_asked_for,
        rule=rule,
        skip_id=skip_id,
        start_ids=start_ids,
        ending_varies=varies,
        drops_read_ids=skip_id is not None and (skip_id in end_ids or is_text(fast, skip_id)),
    )


def _tails(render: ChatTemplate) -> list[str]:
    """The template's text after the last content of different conversations, where it writes that content unchanged."""
    user = (Message("user", _PROBE_USER),)
    talks: list[tuple[Message, ...]] = [(*user, Message("assistant", response)) for response in _PROBE_RESPONSES]
    for roles in _PROBE_ROLES:
        before = tuple(Message(role, f"The {role} says {i}") for i, role in enumerate(roles))
        talks.append((*before, Message("assistant", _PROBE_RESPONSE)))
    tails = []
    for talk in talks:
        try:
            _, found, tail = render(talk, add_generation_prompt=False).rpartition(talk[-1].content)
        except ConversationTooSlow:
            raise
        except InvalidMessages:  # some templates accept no system message, for example
            continue
        if found:
            tails.append(tail)
    return tails


def _end_of(tokenizer: PreTrainedTokenizerBase, tail: str, rule: LayoutRule, *, has_template: bool) -> str:
    """The text that closes a row after the response, where the template writes `tail` there. Raise `EncodingPolicyError`."""
    encoding = tokenizer._tokenizer.encode(tail, add_special_tokens=False)
    controls = control_ids(tokenizer._tokenizer)
    ends = [end for token, (_, end) in zip(encoding.ids, encoding.offsets, strict=True) if token in controls]
    if rule.ending == "eos":
        tail = tail.rstrip("\n")
        eos = _eos(tokenizer)
        return tail if tail.endswith(eos) else f"{tail} {eos}"
    if rule.ending == "end_token":
        return tail[: ends[-1]] if ends else tail.rstrip() + _eos(tokenizer)
    if not has_template:
        return _eos(tokenizer) + _added_after_text(tokenizer)
    adds_eos = rule.ending == "template_and_eos" or (rule.ending == "template_or_eos" and not ends)
    return tail + _eos(tokenizer) if adds_eos else tail


def _eos(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.eos_token:
        raise EncodingPolicyError("the tokenizer has neither an EOS token nor a template that closes a turn")
    return str(tokenizer.eos_token)


def _added_after_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The special tokens that the tokenizer adds after plain text."""
    return "".join(tokenizer.convert_ids_to_tokens(list(_added_to_text(tokenizer)[1])))


def _added_to_text(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer adds before plain text, and those after it."""
    whole = tuple(tokenizer("x", add_special_tokens=True)["input_ids"])
    plain = tuple(tokenizer("x", add_special_tokens=False)["input_ids"])
    for n in range(len(whole) - len(plain) + 1):
        if whole[n : n + len(plain)] == plain:
            return whole[:n], whole[n + len(plain) :]
    return (), ()


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise EncodingPolicyError(
                f"the tokenizer has several chat templates ({', '.join(sorted(template))}) and none is called default, so "
                "transformers chooses none. Save the one that training used as chat_template.jinja in the folder of the checkpoint."
            )
        template = template["default"]
    return template or ""


def _bos_of_rendering(tokenizer: PreTrainedTokenizerBase, rendered: str) -> tuple[int, ...]:
    """The BOS tokens that the template writes: those that the tokenizer adds to plain text are not added to a rendering."""
    if tokenizer.bos_token_id is None:
        return ()
    # ChatML-like templates of some models begin with a token that is also called BOS (`<|im_start|>`):
    # there it opens every turn and is no beginning of sequence, so it remains a part of the rendering.
    bos, n = str(tokenizer.bos_token), 0
    while rendered.startswith(bos):
        rendered, n = rendered.removeprefix(bos), n + 1
    return () if bos in rendered else (int(tokenizer.bos_token_id),) * n


def _start_of_text(tokenizer: PreTrainedTokenizerBase, rule: LayoutRule) -> tuple[int, ...]:
    """The special tokens before text without a template: those of the tokenizer, where the layout's trainer adds them."""
    if rule.bos_without_template == "none":
        return ()
    start = _added_to_text(tokenizer)[0]
    if rule.tokenizes == "slots":  # LLaMA-Factory adds BOS as a separate slot, and no other token
        return start[:1] if start[:1] == (tokenizer.bos_token_id,) else ()
    return start


def _ids_from(fast: Any, text: str, start: int, cuts: Iterable[int]) -> tuple[int, ...]:
    """The ids from `start` of a text that is cut at `cuts`; where a token crosses `start`, those of the end encoded alone."""
    parts = pieces(text, [cut for cut in cuts if cut <= len(text)])
    begin, found = 0, []
    for part in parts:
        encoding = fast.encode(part, add_special_tokens=False)
        for token, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            if begin + first < start < begin + last:
                return ids_of(fast, text[start:])
            if begin + first >= start:
                found.append(token)
        begin += len(part)
    return tuple(found)


def describe_position(tokenizer: PreTrainedTokenizerBase, policy: EncodingPolicy) -> str:
    """The token of a finished response at which the score is read, and the reason, in words."""
    if policy.ending_varies:
        return (
            "reads the score at the last token of the rendering, whose ending depends on the conversation, because "
            f"{policy.rule.reason}"
        )
    end = policy.end_ids
    n_skipped = n_trailing(end, policy.skip_id)
    kept = end[: len(end) - n_skipped]
    name = f"token {kept[-1]} `{_shown(tokenizer, kept[-1])}`" if kept else "the response's last token"
    if n_skipped:
        skipped = _shown(tokenizer, end[-1])
        where = f"the last before `{skipped}`, which ends a turn and is skipped because pad_token_id is {end[-1]} too"
    elif not kept:
        where = "which ends the rendering"
    else:
        where = _place(policy)
    return f"reads the score at {name}, {where}, because {policy.rule.reason}"


def _shown(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text of a token, on one line."""
    return str(tokenizer.decode([token])).replace("\n", "\\n")


def _place(policy: EncodingPolicy) -> str:
    """Position of the ending's last token in the rendering, in words."""
    tail, end = policy.template_tail, policy.end_text
    if end == tail:
        return "the last of the rendering"
    if tail.startswith(end):
        left_out = tail.removeprefix(end)
        is_newline = not left_out.strip("\n")
        return f"the last of the rendering without {'its newline' if is_newline else f'the {left_out!r} after it'}"
    return "which is added to the rendering" if policy.template else "which is added to the text"


def template_digest(template: str) -> str:
    """`sha256:...` of a chat template's text."""
    return "sha256:" + hashlib.sha256(template.encode()).hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """`sha256:...` of the parts of a tokenizer that decide the ids: vocabulary, merges, normaliser, special tokens."""
    state = json.loads(tokenizer._tokenizer.to_str())
    for key in ("padding", "truncation", "post_processor"):
        # None of the three changes ids: rows are never padded or truncated here, and the special tokens that
        # begin and end text are clauses and probes of the contract.
        del state[key]
    text = json.dumps(state, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def plain(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The backend tokenizer without the padding and truncation of its file: fixed padding would end every probe and every row.

    It is thread-safe and keeps no state between calls; the Python wrapper changes both options, which is not thread-safe.
    """
    fast = tokenizer._tokenizer
    fast.no_padding()
    fast.no_truncation()
    fast.encode_special_tokens = False
    return fast


def ids_of(fast: Any, text: str) -> tuple[int, ...]:
    return tuple(fast.encode(text, add_special_tokens=False).ids)


def control_ids(fast: Any) -> frozenset[int]:
    """Added tokens that are more than white space."""
    return frozenset(i for i, token in fast.get_added_tokens_decoder().items() if token.content.strip())


def is_text(fast: Any, token: int) -> bool:
    """Whether ordinary text can give this token."""
    return fast.id_to_token(token) is not None and token not in control_ids(fast)


def text_of(fast: Any, token: int | None) -> str:
    """The text of a token; empty for None and for an unknown id. Vocabularies spell a newline `Ċ` or `<0x0A>`."""
    if token is None or fast.id_to_token(token) is None:
        return ""
    return str(fast.decode([token]) if is_text(fast, token) else fast.id_to_token(token))


def end_cuts(slots: Slots | None, tail: str, end: str) -> tuple[int, ...]:
    """Cuts of the ending: those of the template's tail, and one before an EOS that is added to it."""
    if slots is None:
        return ()
    return (
        *(cut for cut in slots.tail_cuts if end.startswith(tail[:cut])),
        *((len(tail),) if end.startswith(tail) else ()),
    )


def n_trailing(ids: tuple[int, ...], token: int | None) -> int:
    """Number of times that a row has this token at its end."""
    return next((i for i, each in enumerate(reversed(ids)) if each != token), len(ids))
