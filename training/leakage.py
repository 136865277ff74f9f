"""Find held-out pairs and training pairs that are the same by content, whatever the names of their groups.

A training pair leaks when one of its responses, with its prompt, is in a held-out pair: as the same tokens, or as the
same words with other blanks or another case, preferred or not. A prompt alone does not leak: its other responses are
new, and data with few prompts would vanish. It is counted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from rewardserve.model.conversation import Sample
from rewardserve.training.pairs import Pair
from rewardserve.training.sequences import PairTable, TokenSequence, subset


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


def remove_overlap(train: PairTable, held_out: PairTable, *, renumber: bool = True) -> tuple[PairTable, Overlap]:
    """Training pairs that share no response with a held-out pair, and the overlap of both."""
    held = _used_keys(held_out)
    leaks_N = [any(key in held for key in _keys(sequence)) for sequence in train.sequences]
    keep_P = [not (leaks_N[c] or leaks_N[r]) for c, r in zip(train.chosen, train.rejected, strict=True)]
    kept = subset(train, keep_P, renumber=renumber)
    prompts = {prompt_key(pair) for pair in kept.pairs}
    n_same_prompt = sum(prompt_key(pair) in prompts for pair in held_out.pairs)
    return kept, Overlap(len(train) - len(kept), n_same_prompt)


def _used_keys(table: PairTable) -> set[bytes]:
    """Keys of the sequences that a pair of this table uses: folds share their sequences."""
    used = {*table.chosen, *table.rejected}
    return {key for number in used for key in _keys(table.sequences[number])}


def _keys(sequence: TokenSequence) -> tuple[bytes, bytes]:
    ids = hashlib.sha256(b"ids" + b",".join(b"%d" % i for i in sequence.ids)).digest()
    return ids, _digest(_words(sequence.sample))


def _words(sample: Sample) -> str:
    if sample.text is not None:
        return sample.text
    return "\n".join(f"{m.role}\0{m.content}" for m in sample.conversation())


def prompt_key(pair: Pair) -> bytes:
    """Digest of the prompt of a pair, without blanks and case."""
    text = pair.chosen.text
    if text is not None:
        return _digest(text.removesuffix(pair.chosen_text))
    return _digest("\n".join(f"{m.role}\0{m.content}" for m in pair.chosen.conversation()[:-1]))


def _digest(text: str) -> bytes:
    return hashlib.sha256(" ".join(text.casefold().split()).encode("utf-8")).digest()
