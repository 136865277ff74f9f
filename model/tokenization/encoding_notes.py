"""Notes of an encoder for the operator: weaknesses of a chat template, and facts that the files of a checkpoint do not name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rewardserve.model.templates.llama_factory_slots import Slots
from rewardserve.model.tokenization.control_tokens import ControlTokens
from rewardserve.model.tokenization.encoding_policy import EncodingPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_N_NAMED = 5
"""Tokens that a note lists by name."""


def encoder_notes(
    tokenizer: PreTrainedTokenizerBase,
    policy: EncodingPolicy,
    controls: ControlTokens,
    slots: Slots | None,
    between: Sequence[str],
    beyond: Sequence[tuple[int, str]],
) -> tuple[str, ...]:
    """All notes. `between`: the template's text before each turn of a test conversation; `beyond`: tokens without an embedding."""
    return (
        *_vocabulary_notes(beyond, policy.vocab_size),
        *_date_notes(policy),
        *_ending_notes(policy),
        *_bos_notes(tokenizer, policy),
        *_prompt_notes(between, policy),
        *(filter(None, [slots.note()]) if slots is not None else ()),
        *_eos_notes(policy),
        *(_imitation_notes(controls, between) if policy.template else ()),
    )


def tokens_without_embedding(fast: Any, n_rows: int) -> list[tuple[int, str]]:
    """The tokens of the vocabulary without an embedding, by id."""
    return sorted((i, token) for token, i in fast.get_vocab(with_added_tokens=True).items() if i >= n_rows)


def _vocabulary_notes(beyond: Sequence[tuple[int, str]], n_rows: int) -> tuple[str, ...]:
    if not beyond:
        return ()
    named = ", ".join(f"{token!r} ({i})" for i, token in beyond[:_N_NAMED])
    more = f" and {len(beyond) - _N_NAMED} more" if len(beyond) > _N_NAMED else ""
    return (
        f"the tokenizer has {len(beyond)} tokens that the model has no embedding for; its table has {n_rows} rows: {named}{more}. "
        "A sample with one of them is rejected (token_out_of_vocabulary)",
    )


def _date_notes(policy: EncodingPolicy) -> tuple[str, ...]:
    """Note on the fixed date of a template that uses the current date."""
    if policy.template_date is None:
        return ()
    return (
        f"the chat template uses the current date: it always gets {policy.template_date}, so that a score does not change at "
        "midnight. A plain apply_chat_template writes today's date, and so do other engines that render it: their scores "
        "of the same conversation may differ",
    )


def _ending_notes(policy: EncodingPolicy) -> tuple[str, ...]:
    if not policy.ending_varies:
        return ()
    return (
        "the chat template ends conversations in different ways: messages end as it writes them; text and ids keep the ending "
        "that they have, so send them complete",
    )


def _bos_notes(tokenizer: PreTrainedTokenizerBase, policy: EncodingPolicy) -> tuple[str, ...]:
    """Note where a trainer may have added a second BOS before a rendering."""
    bos = tokenizer.bos_token_id
    is_trls = policy.rule.reads_at == "last_non_pad"
    if not is_trls or not policy.template or policy.start_ids != (bos,) or tokenizer("x")["input_ids"][:1] != [bos]:
        return ()
    return (
        "rows begin with one BOS, the chat template's. TRL 0.12 to 0.23 tokenised the rendering with special tokens, and this "
        "tokenizer adds BOS: their rows began with two. The files do not name the version; if it was one of these, write BOS twice "
        "at the beginning of the chat template",
    )


def _prompt_notes(between: Sequence[str], policy: EncodingPolicy) -> tuple[str, ...]:
    """Note where OpenRLHF's rows depend on an option that a checkpoint does not name."""
    if policy.rule.ending != "eos" or not between or between[0].startswith(policy.response_start):
        return ()
    return (
        f"the chat template writes {policy.response_start!r} before a response to be generated and {between[0]!r} before an "
        "existing one. OpenRLHF with prompt_key cuts the rendering at the length of the first, so its rows had another text; "
        "here a row is the whole rendering, as without prompt_key. The files do not name the option; if it was set, send the "
        "text of its rows",
    )


_TEMPLATES_WITH_EOS = {"<end_of_turn>": "gemma2", "<|role_end|>": "bailing_v2", "<|endofassistant|>": "dots_ocr"}
"""End token -> name of LLaMA-Factory's templates that add EOS after their end token (`efficient_eos`)."""


def _eos_notes(policy: EncodingPolicy) -> tuple[str, ...]:
    """Note where LLaMA-Factory may have trained with an EOS that is not in the chat template."""
    end = policy.template_tail.strip()
    if policy.rule.tokenizes != "slots" or policy.rule.ending != "template_or_eos" or end not in _TEMPLATES_WITH_EOS:
        return ()
    return (
        f"rows end as the chat template writes, with {end!r}. LLaMA-Factory's template {_TEMPLATES_WITH_EOS[end]} ends so too and "
        "adds EOS, which the chat template lacks: if training used that template, set the ending to template_and_eos",
    )


def _imitation_notes(controls: ControlTokens, between: Sequence[str]) -> tuple[str, ...]:
    """Note for the operator where turns begin with plain text, which plain text can imitate."""
    plain = [mark for piece in between if (mark := controls.unmarked(piece)) is not None]
    if not plain:
        return ()
    marks = ", ".join(dict.fromkeys(repr(mark) for mark in plain))
    return (
        f"turns can be imitated: the chat template begins them with plain text ({marks}), and the content of messages is "
        "plain text too",
    )
