"""What a tokenizer and its chat template imply under the rule of a layout: BOS, how a row ends, how a response begins.

`EncodingPolicy` has all that may differ between two encoders. Pure: it renders and tokenises a probe, and knows no sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.contract import Truncation
from model.conversation import Message
from model.layout_rules import LAYOUT_RULES, LayoutRule
from model.slots import Slots, pieces
from model.template import ChatTemplate, EncodingPolicyError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE_USER = "What is two plus two?"
_PROBE_RESPONSE = "Four, of course"


@dataclass(frozen=True, slots=True)
class EncodingPolicy:
    """How text becomes ids. Equal policies and equal tokenizers give equal ids.

    `bos_id` None: no BOS anywhere. `end_text` is what closes a scored turn, by the `rule` of the layout; `end_ids` are its
    tokens; both may be empty. `template_tail` is all that the template writes after the content of the last turn.
    `skip_id`: the id that is left out at the end of a row (`reads_at: last_non_pad`); None: none is. `response_start` is
    what the template writes before an assistant's content; it finds the response in rendered text. `template_date`: ISO date
    at which the template's clock stands still; None: the template asks for no date.
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

    @property
    def strips_newlines(self) -> bool:
        """Whether newlines at the end of a response go with the template's own."""
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
    """The policy that this tokenizer and its chat template imply under the rule of a layout.

    `pad_id`: `pad_token_id` of the model's configuration. `template`: in place of the tokenizer's; "" joins contents.
    `template_date`: what to tell a template that asks for the date; None: `STATED_DATE`. Raise `EncodingPolicyError` where
    no end token can be found, or where the template is no function of the conversation.
    """
    if template is None:
        template = _template_of(tokenizer)
    render = ChatTemplate(tokenizer, template, template_date)
    user, answer = Message("user", _PROBE_USER), Message("assistant", _PROBE_RESPONSE)
    full = render((user, answer), add_generation_prompt=False)
    render.check_addresses(full)
    tail = full.rpartition(_PROBE_RESPONSE)[2]
    fast = tokenizer._tokenizer
    bos_id = _bos(tokenizer, full) if template else _bos_of_text(tokenizer, rule)
    slots = None
    if rule.tokenizes == "slots":
        slots = Slots(tokenizer, render, template, None if bos_id is None else str(tokenizer.bos_token))
    is_bare = slots is not None and slots.template is not None and slots.template.is_empty
    adds_nothing = is_bare and rule.ending == "template_or_eos"
    end = "" if adds_nothing else _end_of(tokenizer, tail, rule, has_template=bool(template))
    prompt = render((user,), add_generation_prompt=True) if template else ""
    start = prompt.rpartition(_PROBE_USER)[2] if template else ""
    body = full.removesuffix(tail)
    cuts = () if slots is None else slots.of((user, answer), full)
    ending_cuts = (*cuts, *(len(body) + cut for cut in end_cuts(slots, tail, end)))
    end_ids = _ids_from(fast, body + end, len(body), ending_cuts)
    start_ids = _ids_from(fast, prompt, len(prompt) - len(start), cuts)
    always = {*ids_of(fast, full), *end_ids, *start_ids, *(() if bos_id is None else (bos_id,))}
    lost = [fast.id_to_token(i) for i in sorted(always) if i >= vocab_size]
    if lost:
        raise EncodingPolicyError(
            f"the tokenizer or its chat template puts {lost[0]!r} into every sample, and the model has no embedding for it: "
            f"its table has {vocab_size} rows. Put back the tokenizer that the model was trained with, or resize the "
            "embeddings of the model and train them."
        )
    return EncodingPolicy(
        bos_id=bos_id,
        end_text=end,
        end_ids=end_ids,
        template_tail=tail,
        response_start=start,
        response_start_ids=start_ids,
        template=template,
        max_tokens=max_tokens,
        vocab_size=vocab_size,
        truncation=truncation,
        template_date=render.date_that_is_asked_for,
        rule=rule,
        # No id of a row equals one outside the vocabulary (-1, say): then the class of transformers reads the last token.
        skip_id=pad_id if rule.reads_at == "last_non_pad" and pad_id in range(vocab_size) else None,
    )


def _end_of(tokenizer: PreTrainedTokenizerBase, tail: str, rule: LayoutRule, *, has_template: bool) -> str:
    """What closes a row after the response, where the template writes `tail` there. Raise `EncodingPolicyError`."""
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
    """The special tokens that the tokenizer adds after plain text by itself."""
    whole = tokenizer("x", add_special_tokens=True)["input_ids"]
    plain = tokenizer("x", add_special_tokens=False)["input_ids"]
    n_before = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), len(whole))
    return "".join(tokenizer.convert_ids_to_tokens(whole[n_before + len(plain) :]))


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise EncodingPolicyError(
                f"the tokenizer has several chat templates ({', '.join(sorted(template))}) and none that is called default, so "
                "transformers chooses none. Save the one that training used as chat_template.jinja in the folder of the checkpoint."
            )
        template = template["default"]
    return template or ""


def _bos(tokenizer: PreTrainedTokenizerBase, rendered: str) -> int | None:
    """BOS is there where the template writes it: what a tokenizer adds to plain text is not added to a rendering."""
    if tokenizer.bos_token_id is None or not rendered.startswith(str(tokenizer.bos_token)):
        return None
    # ChatML-like templates of some models begin with a token that is also called BOS (`<|im_start|>`):
    # there it opens every turn and is no beginning of sequence, so it stays the template's business.
    bos = str(tokenizer.bos_token)
    while rendered.startswith(bos):
        rendered = rendered.removeprefix(bos)
    return None if bos in rendered else int(tokenizer.bos_token_id)


def _bos_of_text(tokenizer: PreTrainedTokenizerBase, rule: LayoutRule) -> int | None:
    """BOS of text without a template: where the tokenizer adds it and the trainer of the layout lets it."""
    bos: int | None = tokenizer.bos_token_id
    if bos is None or rule.bos_without_template == "none":
        return None
    added = tokenizer("x", add_special_tokens=True)["input_ids"]
    return bos if added and added[0] == bos else None


def _ids_from(fast: Any, text: str, start: int, cuts: Iterable[int]) -> tuple[int, ...]:
    """The ids of the end of a text that is cut at `cuts`; where a token is of both sides of `start`, those of the end alone."""
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
    """In words: at which token of a finished response the score is read, and why."""
    end = policy.end_ids
    n_skipped = n_trailing(end, policy.skip_id)
    kept = end[: len(end) - n_skipped]
    name = (
        f"token {kept[-1]} `{tokenizer.decode([kept[-1]])}`".replace("\n", "\\n")
        if kept
        else "the response's last token"
    )
    if n_skipped:
        skipped = tokenizer.decode([end[-1]])
        where = f"the last before `{skipped}`, which ends a turn and is skipped because pad_token_id is {end[-1]} too"
    elif not kept:
        where = "after which the rendering has nothing"
    else:
        where = _place(policy)
    return f"reads the score at {name}, {where}, because {policy.rule.reason}"


def _place(policy: EncodingPolicy) -> str:
    """Where the last token of the ending stands in what the template writes."""
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
    """`sha256:...` of what decides how text becomes ids: vocabulary, merges, normaliser, special tokens."""
    state = json.loads(tokenizer._tokenizer.to_str())
    for key in ("padding", "truncation", "post_processor"):
        # None of the three is used: rows are never padded or truncated here, and no special token is added.
        state.pop(key, None)
    text = json.dumps(state, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def ids_of(fast: Any, text: str) -> tuple[int, ...]:
    return tuple(fast.encode(text, add_special_tokens=False).ids)


def control_ids(fast: Any) -> frozenset[int]:
    """Added tokens that are more than white space."""
    return frozenset(i for i, token in fast.get_added_tokens_decoder().items() if token.content.strip())


def end_cuts(slots: Slots | None, tail: str, end: str) -> tuple[int, ...]:
    """Where the ending is cut: as the template's, and before an EOS that is added to it."""
    if slots is None:
        return ()
    return (
        *(cut for cut in slots.tail_cuts if end.startswith(tail[:cut])),
        *((len(tail),) if end.startswith(tail) else ()),
    )


def n_trailing(ids: tuple[int, ...], token: int | None) -> int:
    """How often a row has this token at its end."""
    return next((i for i, each in enumerate(reversed(ids)) if each != token), len(ids))
