"""Find held-out pairs and training pairs that are the same by content, whatever the names of their groups.

A training pair leaks when one of its responses, with its prompt, is in a held-out pair: as the same tokens, or as the
same words with other blanks or another case, preferred or not. A prompt alone does not leak: its other responses are
new, and data with few prompts would vanish. It is counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

from rewardserve.model.conversation import Sample
from rewardserve.training.dataset.feedback import Item
from rewardserve.training.dataset.sequences import FeedbackTable, TokenSequence, subset


@dataclass(frozen=True, slots=True)
class Overlap:
    """`n_dropped` training pairs had a held-out response; `n_same_prompt` held-out pairs share a prompt with training."""

    n_dropped: int = 0
    n_same_prompt: int = 0

    def __str__(self) -> str:
        """Describe the overlap as a sentence of a report."""
        return (
            f"{self.n_dropped} training pairs with a held-out response left out; {self.n_same_prompt} held-out pairs "
            "share a prompt with training"
        )


def remove_overlap(
    train: FeedbackTable, held_out: FeedbackTable, *, renumber: bool = True
) -> tuple[FeedbackTable, Overlap]:
    """Training pairs that share no response with a held-out pair, and the overlap of both."""
    held = _used_keys(held_out)
    leaks_N = [any(key in held for key in _keys(sequence)) for sequence in train.sequences]
    keep_I = [not any(leaks_N[number] for number in rows) for rows in train.rows]
    kept = subset(train, keep_I, renumber=renumber)
    n_of_prompt = Counter(map(prompt_key, held_out.items))
    in_both = {key for key in map(prompt_key, kept.items) if key in n_of_prompt}
    n_same_prompt = sum(n_of_prompt[key] for key in in_both)
    return kept, Overlap(len(train) - len(kept), n_same_prompt)


def _used_keys(table: FeedbackTable) -> set[bytes]:
    """Keys of the sequences that an item of this table uses: folds share their sequences."""
    used = {number for rows in table.rows for number in rows}
    return {key for number in used for key in _keys(table.sequences[number])}


def _keys(sequence: TokenSequence) -> tuple[bytes, bytes]:
    ids = hashlib.sha256(b"ids" + b",".join(b"%d" % i for i in sequence.ids)).digest()
    return ids, _digest(_words(sequence.sample))


def _words(sample: Sample) -> str:
    if sample.text is not None:
        return sample.text
    return "\n".join([sample.tools, *(f"{m.role}\0{m.text}" for m in sample.conversation())])


def prompt_key(item: Item) -> bytes:
    """Digest of the prompt of an item, without blanks and case."""
    sample = item.samples[0]
    if sample.text is not None:
        return _digest(sample.text.removesuffix(item.texts[0]))
    return _digest("\n".join([sample.tools, *(f"{m.role}\0{m.text}" for m in sample.conversation()[:-1])]))


def _digest(text: str) -> bytes:
    return hashlib.sha256(" ".join(text.casefold().split()).encode("utf-8")).digest()
