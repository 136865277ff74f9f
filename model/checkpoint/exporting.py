"""Tokenizer of an exported checkpoint, whose chat template ends at the token whose score is read.

Other programs render a conversation with that template and read the score at its last token. So the template of the base
model is wrapped: its text after that token is removed, the ending of training is added, and its date is fixed. Knows
no weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rewardserve.model.checkpoint.record import Checkpoint, CheckpointError
from rewardserve.model.conversation import InvalidMessages, Message, Sample
from rewardserve.model.encoding import Encoded
from rewardserve.model.layout_rules import CLOSES_ANY_TAIL
from rewardserve.model.templates.chat_template import ChatTemplate, clock_formats
from rewardserve.model.tokenization.encoding_policy import EncodingPolicy, infer_policy, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def without_bias(checkpoint: Checkpoint) -> tuple[Checkpoint, str]:
    """Set the biases of the heads to zero, in place, and shift the calibration. Return the checkpoint and a note, or "".

    `score` of transformers' classifiers has no bias, so every program that loads the export would drop it.
    """
    network, calibration = checkpoint.network, checkpoint.calibration
    bias = network.combined_head()[1]
    by_head = dict(zip(network.head_names, (-network.bias_H).tolist(), strict=True))
    network.bias_H.zero_()
    if not bias:
        return checkpoint, ""
    shift = "The mean of the calibration is shifted with them, so" if calibration is not None else "It is a constant:"
    note = (
        f"the value head has a bias of {bias:.6g}, for which transformers' layout has no place: raw scores are {bias:.6g} lower "
        f"than before. {shift} differences and ranks are the same{', and normalised scores' if calibration is not None else ''}."
    )
    moved = calibration.shifted(-bias, by_head) if calibration is not None else None
    return replace(checkpoint, calibration=moved), note


def with_whole_tokenization(checkpoint: Checkpoint) -> tuple[Checkpoint, str]:
    """Change the checkpoint to tokenise renderings as a whole. Return it and a note, which is empty where no id changes.

    Programs that load an export tokenise renderings as a whole, even where the trainer of the layout did not.
    """
    policy = checkpoint.policy
    if policy.rule.tokenizes == "whole":
        return checkpoint, ""
    whole = infer_policy(
        checkpoint.tokenizer,
        max_tokens=policy.max_tokens,
        vocab_size=policy.vocab_size,
        rule=replace(policy.rule, tokenizes="whole"),
        pad_id=policy.skip_id,
        template=policy.template,
        truncation=policy.truncation,
        template_date=policy.template_date,
    )
    changed = replace(checkpoint, policy=whole)
    samples = [Sample(prompt="Alpha", response=response) for response in _RESPONSES]
    samples += [Sample(messages=tuple(Message(*turn) for turn in talk)) for talk in _CONVERSATIONS]
    rows = zip(*(c.encoder.many(samples) for c in (checkpoint, changed)), strict=True)
    n_changed = sum(isinstance(a, Encoded) and isinstance(b, Encoded) and a.ids != b.ids for a, b in rows)
    note = (
        "LLaMA-Factory tokenised the parts of a turn separately, and programs that load a checkpoint tokenise a rendering as a "
        f"whole: of {len(samples)} test conversations, {n_changed} get other ids, and so other scores than from the source "
        "checkpoint."
    )
    return changed, note if n_changed else ""


def with_openrlhf_note(checkpoint: Checkpoint) -> tuple[Checkpoint, str]:
    """Return the checkpoint, and a note where OpenRLHF, which makes EOS the last token of a row, reads another token than we."""
    policy = checkpoint.policy
    kept = _kept_ids(policy)
    is_constant = not policy.ending_varies or policy.rule.ending == "eos"
    if is_constant and kept and kept[-1] in checkpoint.tokenizer._tokenizer.get_added_tokens_decoder():
        return checkpoint, ""
    return checkpoint, (
        f"the model {checkpoint.score_position}. OpenRLHF ends every row with EOS and reads the score there: it gives other scores "
        "for the exported checkpoint. transformers and TRL give those of the server."
    )


_JOINED = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

_CONVERSATIONS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Alpha"), ("assistant", "Bravo")),
    (("system", "Charlie"), ("user", "Alpha"), ("assistant", "Bravo\n")),
    (("user", "Alpha\n\n"), ("assistant", "Bravo"), ("user", " Delta "), ("assistant", " Echo\n\n ")),
    (("user", "Alpha"), ("assistant", "Bravo. " * 40 + "Charlie.")),
)
"""Conversations on which the wrapped template is compared with the original one."""

_RESPONSES = (
    "Bravo",
    "bravo",
    " Bravo",
    "a b c",
    "\nBravo",
    "\n\nBravo",
    "1 + 1",
    "(Bravo)",
    "你好",
    "Bravo\n",
    "Bravo\n\n",
)
"""Responses whose first or last characters a tokenizer may merge with the text beside them."""


_MOST_SKIPPED = 64
"""Largest number of pad tokens at the end of a rendering that an exported template removes."""


def exported_tokenizer(tokenizer: PreTrainedTokenizerBase, policy: EncodingPolicy) -> PreTrainedTokenizerBase:
    """A copy whose chat template writes the rows of this policy, and whose EOS is their last token, if that is an added token.

    Raise `CheckpointError` where the template cannot be wrapped.
    """
    exported = copy.deepcopy(tokenizer)
    exported.init_kwargs.pop("auto_map", None)
    kept = _kept_ids(policy)
    if kept and kept[-1] in tokenizer._tokenizer.get_added_tokens_decoder():
        # OpenRLHF appends EOS unless a rendering ends with it.
        exported.eos_token = tokenizer.convert_ids_to_tokens(kept[-1])
    exported.chat_template = exported_template(tokenizer, policy, exported)
    return exported


def choose_pad(tokenizer: PreTrainedTokenizerBase, policy: EncodingPolicy) -> bool:
    """Give the tokenizer a pad token that never ends a row, unless it has one. False: no special token is free."""
    taken = {*policy.end_ids, tokenizer.eos_token_id, tokenizer.bos_token_id, None}
    # The policy has one ending of several: any token that the template names may end a row.
    taken |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.content in policy.template}
    taken |= {tokenizer.pad_token_id} if "pad_token" in policy.template else set()
    n_rows = policy.vocab_size  # of the embeddings
    if tokenizer.pad_token_id not in taken and tokenizer.pad_token_id < n_rows:
        return True
    for text in (policy.template_tail, policy.response_start):
        taken |= set(tokenizer._tokenizer.encode(text).ids)
    special = [i for i, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    spare = [i for i in special if i not in taken and i < n_rows]
    if spare:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(spare[0])
    return bool(spare)


def exported_template(
    tokenizer: PreTrainedTokenizerBase, policy: EncodingPolicy, exported: PreTrainedTokenizerBase
) -> str:
    """The chat template that renders for `exported` the rows that this policy encodes with `tokenizer`.

    Raise `CheckpointError` where the policy's template cannot be wrapped.
    """
    prefix = "".join(tokenizer.convert_ids_to_tokens(list(policy.start_ids))) if not policy.template else ""
    end = _kept_text(tokenizer, policy)
    renamed = "".join(
        f"{{%- set {name} = {_literal(str(token))} -%}}\n"
        for name, token in tokenizer.special_tokens_map.items()
        # The pad token is chosen later.
        if isinstance(token, str)
        and name in policy.template
        and (name == "pad_token" or exported.special_tokens_map.get(name) != token)
    )
    may_end_otherwise = policy.ending_varies and (policy.skip_id is not None or policy.rule.ending == "eos")
    is_whole = end == policy.template_tail and policy.template_date is None and not policy.strips_newlines
    if policy.template and is_whole and not renamed and not may_end_otherwise:
        return policy.template
    template = renamed + _wrapped(tokenizer, policy, prefix, end)
    _compare(tokenizer, policy, exported, template, prefix, end)
    return template


def _wrapped(tokenizer: PreTrainedTokenizerBase, policy: EncodingPolicy, prefix: str, end: str) -> str:
    # Jinja drops a newline at the end of a template, which is inside the wrapped one; `+` keeps white space beside tags.
    original = (policy.template or _JOINED).removesuffix("\n")
    return (
        _clock(tokenizer, policy)
        + f"{{%- set rendered +%}}{original}{{%+ endset -%}}\n"
        + (f"{{{{- {_literal(prefix)} -}}}}\n" if prefix else "")
        + "{%- if not add_generation_prompt and messages and messages[-1]['role'] == 'assistant' -%}\n"
        + _jinja_of_row(tokenizer, policy, end)
        + "{%- else -%}\n{{- rendered -}}\n{%- endif -%}"
    )


def _jinja_of_row(tokenizer: PreTrainedTokenizerBase, policy: EncodingPolicy, end: str) -> str:
    """Jinja for the text of a row, where `rendered` is the rendering; the same as `_row_text`."""
    if policy.template and policy.rule.ending == "eos":
        eos = _literal(str(tokenizer.eos_token))
        return (
            "{%- set rendered = rendered.rstrip('\\n') -%}\n"
            f"{{{{- rendered -}}}}{{%- if not rendered.endswith({eos}) -%}}{{{{- ' ' + {eos} -}}}}{{%- endif -%}}\n"
        )
    if policy.template and policy.rule.ending in CLOSES_ANY_TAIL:
        skipped, stripped = _skipped_text(tokenizer, policy)
        if not skipped:
            return "{{- rendered -}}\n"
        return (
            "{%- set row = namespace(text=rendered) -%}\n"
            f"{{%- for _ in range([rendered.count({_literal(skipped)}), {_MOST_SKIPPED}] | min) -%}}\n"
            f"{{%- if row.text{stripped}.endswith({_literal(skipped)}) -%}}"
            f"{{%- set row.text = row.text{stripped}[:-{len(skipped)}] -%}}{{%- endif -%}}\n"
            "{%- endfor -%}\n{{- row.text -}}\n"
        )
    tail = policy.template_tail
    body = f"(rendered[:-{len(tail)}] if rendered.endswith({_literal(tail)}) else rendered)" if tail else "rendered"
    return f"{{{{- {body} -}}}}{{{{- {_literal(end)} -}}}}\n"


def _row_text(tokenizer: PreTrainedTokenizerBase, policy: EncodingPolicy, rendered: str, end: str) -> str:
    """The text of a row up to the token whose score is read, from the rendering of a conversation."""
    if policy.template and policy.rule.ending == "eos":
        eos, text = str(tokenizer.eos_token), rendered.rstrip("\n")
        return text if text.endswith(eos) else f"{text} {eos}"
    if not policy.template or policy.rule.ending not in CLOSES_ANY_TAIL:
        return rendered.removesuffix(policy.template_tail) + end
    skipped, stripped = _skipped_text(tokenizer, policy)
    while skipped and (rendered.rstrip() if stripped else rendered).endswith(skipped):
        rendered = (rendered.rstrip() if stripped else rendered).removesuffix(skipped)
    return rendered


def _skipped_text(tokenizer: PreTrainedTokenizerBase, policy: EncodingPolicy) -> tuple[str, str]:
    """The text of the pad token that is skipped, and `.rstrip()` where that token absorbs the white space after it."""
    fast = tokenizer._tokenizer
    token = fast.get_added_tokens_decoder().get(policy.skip_id)
    return text_of(fast, policy.skip_id), ".rstrip()" if token is not None and token.rstrip else ""


def _clock(tokenizer: PreTrainedTokenizerBase, policy: EncodingPolicy) -> str:
    """Jinja for a fixed date, in each format that the template uses."""
    if policy.template_date is None:
        return ""
    formats = clock_formats(policy.template)
    if formats is None:
        raise CheckpointError(
            "the chat template computes the format of its date, so the date cannot be written into the exported template. Write "
            "the date of training into the template, then train again."
        )
    clock = ChatTemplate(tokenizer, policy.template, policy.template_date).clock
    known = ", ".join(f"{_literal(each)}: {_literal(clock(each))}" for each in formats)
    return f"{{%- macro strftime_now(format) -%}}{{{{- {{{known}}}[format] -}}}}{{%- endmacro -%}}\n"


def _compare(
    tokenizer: PreTrainedTokenizerBase,
    policy: EncodingPolicy,
    exported: PreTrainedTokenizerBase,
    template: str,
    prefix: str,
    end: str,
) -> None:
    """Raise `CheckpointError` unless the wrapped template renders the policy's rows of each conversation that the inner renders."""
    inner = ChatTemplate(tokenizer, policy.template, policy.template_date)
    outer = ChatTemplate(exported, template)
    if outer.date_that_is_asked_for is not None:
        raise CheckpointError("the exported chat template still uses the current date")
    for conversation in _CONVERSATIONS:
        messages = tuple(Message(role, content) for role, content in conversation)
        prompt = _rendered(inner, messages[:-1], add_generation_prompt=True)
        full = _rendered(inner, messages, add_generation_prompt=False)
        if prompt is None or full is None:
            continue
        expected = _row_text(tokenizer, policy, full, end)
        if (
            outer(messages[:-1], add_generation_prompt=True) != prefix + prompt
            or outer(messages, add_generation_prompt=False) != prefix + expected
        ):
            raise CheckpointError(
                "the chat template cannot be wrapped: inside another template its output changes. Simplify it, or "
                "let it end at the token that ends a turn."
            )


def _rendered(template: ChatTemplate, messages: Sequence[Message], *, add_generation_prompt: bool) -> str | None:
    try:
        return template(messages, add_generation_prompt=add_generation_prompt)
    except InvalidMessages:
        return None


def _kept_ids(policy: EncodingPolicy) -> tuple[int, ...]:
    """The ending up to the token whose score is read: without the pad tokens that are skipped."""
    ids = policy.end_ids
    while ids and ids[-1] == policy.skip_id:
        ids = ids[:-1]
    return ids


def _kept_text(tokenizer: PreTrainedTokenizerBase, policy: EncodingPolicy) -> str:
    text = policy.end_text
    skipped, stripped = _skipped_text(tokenizer, policy)
    for _ in policy.end_ids[len(_kept_ids(policy)) :]:
        text = (text.rstrip() if stripped else text).removesuffix(skipped)
    return text


def _literal(text: str) -> str:
    """A string literal of Jinja."""
    for character, escaped in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(character, escaped)
    return f"'{text}'"
