"""Decide whether pairs are conversations or plain text, and thus whether encoding uses the chat template.

One model has one encoding: text that training joins without a template is joined the same way by the server, and the
exported checkpoint has a chat template that does the same. Text that the template has already rendered counts as
conversations. Depends on pairs and a checkpoint's policy, not on torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rewardserve.model.checkpoint import Checkpoint
from rewardserve.model.conversation import Sample
from rewardserve.model.tokenization.encoding_policy import EncodingPolicy, infer_policy
from rewardserve.training.dataset.disk_list import DiskList, is_lazy
from rewardserve.training.dataset.feedback import Item, kinds_of, noun
from rewardserve.training.settings.validation import ConfigError

JOINED = (
    "all pairs are plain text that the chat template did not render: it is left out, also in the exported checkpoint, where "
    "prompt and response are joined unchanged"
)


def count_raw(items: Sequence[Item], policy: EncodingPolicy) -> int:
    """Number of items whose text lacks the template's text before a response; 0 without a template."""
    mark = policy.response_start.strip()
    if not mark:
        return 0
    return sum(any(s.text is not None and mark not in s.text for s in item.samples) for item in items)


def fit_template(start: Checkpoint, items: Sequence[Item], *, is_bound: bool) -> Checkpoint:
    """Checkpoint with a policy that encodes these items as the server will. Raise `ConfigError` if there is none.

    `is_bound`: the checkpoint is evaluated or calibrated unchanged, so its template stays.
    """
    n_raw = count_raw(items, start.policy)
    if not n_raw:
        return start
    unit = f"{noun(kinds_of(items))}s"
    if n_raw < len(items):
        raise ConfigError(
            f"{n_raw} of {len(items)} {unit} are plain text that the chat template did not render (strings: raw, or rendered "
            f"otherwise), and {len(items) - n_raw} are conversations. One model has one encoding: give all sources one form, "
            "or train a model for each."
        )
    if is_bound:
        raise ConfigError(
            f"all {n_raw} {unit} are plain text, and this checkpoint renders conversations with its chat template: the scores "
            "would differ from the served ones. Give prompt and response in separate columns (strings: turn)."
        )
    policy = start.policy
    joined = infer_policy(
        start.tokenizer,
        max_tokens=policy.max_tokens,
        vocab_size=policy.vocab_size,
        rule=policy.rule,
        pad_id=policy.skip_id,
        template="",
        truncation=policy.truncation,
    )
    return replace(start, policy=joined)


def as_served(items: Sequence[Item], policy: EncodingPolicy) -> Sequence[Item]:
    """Split items without a template into prompt and response, if known: in those a control token is text, as served."""
    if policy.template:
        return items
    parted = (item.with_samples([_parted(sample) for sample in item.samples]) for item in items)
    return DiskList(parted) if is_lazy(items) else tuple(parted)


def _parted(sample: Sample) -> Sample:
    if sample.text is None or not sample.n_prompt_chars:
        return sample
    prompt, response = sample.text[: sample.n_prompt_chars], sample.text[sample.n_prompt_chars :]
    return Sample(prompt=prompt, response=response, finish_reason=sample.finish_reason)
