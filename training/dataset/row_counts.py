"""Count the rows that were read, lost, held out and used. Every row is counted once; the lines add up.

Pure functions of the results of `data`, `sequences` and `leakage`.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rewardserve.training.dataset import data
from rewardserve.training.dataset.data import Split
from rewardserve.training.dataset.feedback import Item, counted, kinds_of, noun, with_noun
from rewardserve.training.dataset.leakage import Overlap
from rewardserve.training.dataset.sequences import FeedbackTable

REASONS = {
    "too_long": "longer than encoding.max_tokens",
    "empty": "with a response that is empty, or white space alone",
    "same_tokens": "the same tokens on both sides",
}
Hashes = npt.NDArray[np.uint64]

N_ROWS = "rows"
"""Key of the number of rows among the counts of counterexamples."""

_N_CAUSES = 5
_SAME_GROUP, _LEAKED = "in a group that eval_sources has", "with a response that is held out"


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Numbers of rows. `n_rows` is the sum of the counts up to `n_held_out`; the later ones are those of used pairs.

    `n_contradicting` pairs have an opposite: the same two responses, preferred the other way. `n_duplicate` repeat
    another. `n_cut` have a response that was cut off: its finish reason is length. `made`: numbers of pairs that augmentation
    made, by kind, which are in none of the other numbers. `causes` has the first bad row of each cause. `counterexamples` counts
    the rows of a queue that train nothing, by reason. `noun` names an item, `train_words` and `held_out_words` name them by kind.
    """

    n_rows: int
    n_bad: int
    n_spare: int
    n_same_group: int
    n_leaked: int
    dropped: dict[str, int]
    n_train: int
    n_held_out: int
    n_truncated: int
    n_contradicting: int
    n_duplicate: int
    n_same_prompt: int
    n_groups: int
    n_cut: int = 0
    noun: str = "pair"
    train_words: str = ""
    held_out_words: str = ""
    made: dict[str, int] = field(default_factory=dict)
    counterexamples: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()


def count_rows(
    split: Split,
    train: FeedbackTable,
    held_out: FeedbackTable,
    overlap: Overlap,
    counterexamples: Mapping[str, int] | None = None,
) -> RowCounts:
    """Count the rows. `train` has the pairs without the overlap; `counterexamples` counts the unused rows of these by reason."""
    unused = counterexamples or {}
    tables = (train, held_out)
    return RowCounts(
        n_rows=split.n_rows + unused.get(N_ROWS, 0),
        n_bad=len(split.bad),
        n_spare=sum(r.n_spare for r in split.read),
        n_same_group=split.n_same_group,
        n_leaked=overlap.n_dropped,
        dropped=dict(Counter(train.dropped) + Counter(held_out.dropped)),
        n_train=len(train),
        n_held_out=len(held_out),
        n_truncated=sum(_n_truncated(t) for t in tables),
        n_contradicting=sum(_n_contradicting(t) for t in tables),
        n_duplicate=sum(len(t) - len(np.unique(_keys(t)[0])) for t in tables),
        n_same_prompt=overlap.n_same_prompt,
        n_groups=len({item.group for item in held_out.items}),
        n_cut=sum(any(s.finish_reason == "length" for s in item.samples) for table in tables for item in table.items),
        noun=noun(tuple({r.kind for r in split.read})),
        train_words=counted(train.items),
        held_out_words=counted(held_out.items) if kinds_of(held_out.items) != ("pairs",) else f"{len(held_out):,}",
        counterexamples={reason: n for reason, n in unused.items() if reason != N_ROWS},
        causes=tuple(data.causes_of(split.bad)[:_N_CAUSES]),
        notes=tuple(f"{r.path}: {note}" for r in split.read for note in r.notes),
    )


def refuse_losses(
    split: Split,
    encoded: FeedbackTable,
    kept: FeedbackTable,
    held_out: FeedbackTable,
    max_dropped: float,
    *,
    counts_held_out: bool = True,
) -> None:
    """Raise `DataError` for a source of which too much was lost, with the counts by reason.

    `encoded` are the training pairs before those with a held-out response were left out, `kept` the ones after.
    `counts_held_out`: whether pairs left out because of held-out ones count as lost; without training they do not.
    """
    used, before = np.union1d(_ids(kept.items), _ids(held_out.items)), _ids(encoded.items)
    made = np.union1d(_ids(split.train), _ids(split.held_out))
    dropped = ", ".join(REASONS.get(r, r) for r in {**encoded.dropped, **held_out.dropped}) or "dropped"
    for read in split.read:
        unused = np.setdiff1d(_ids(read.items), used)
        encoded_too = np.isin(unused, before)
        in_split = np.isin(unused[~encoded_too], made)
        lost = {_LEAKED: int(encoded_too.sum()), dropped: int(in_split.sum()), _SAME_GROUP: int((~in_split).sum())}
        reasons = {r: lost[r] for r in (dropped, *([_SAME_GROUP, _LEAKED] if counts_held_out else []))}
        one = noun((read.kind,))
        lost_rows = {f"without a {one}": len(read.bad), **reasons}
        data.refuse_loss(f"rows of {read.path!r}", read.n_rows, lost_rows, max_dropped, read.bad)
        # With max_pairs, the share is relative to the items that were taken.
        data.refuse_loss(f"{one}s of {read.path!r}", len(read.items), reasons, max_dropped)


def refuse_fold(n_before: int, overlap: Overlap, max_dropped: float) -> None:
    """Raise `DataError` if too many training pairs of a fold have a response that is held out."""
    data.refuse_loss("training pairs of a fold", n_before, {_LEAKED: overlap.n_dropped}, max_dropped)


def _ids(items: Iterable[Item]) -> Hashes:
    """Sorted digests of the distinct ids."""
    return np.unique(np.fromiter((_hash(item.id) for item in items), np.uint64))


def _hash(text: str) -> int:
    """Digest of 8 bytes: for counts it does not matter that two of a billion texts may have the same."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def lines(found: RowCounts, *, in_folds: bool = False) -> Iterator[str]:
    """Yield the lines of the summary before training. `in_folds`: every pair is held out later, in its fold."""
    yield f"rows read: {found.n_rows:,}"
    without = f"without a {found.noun}"
    lost = {
        without: found.n_bad,
        "beyond max_pairs": found.n_spare,
        **{REASONS.get(reason, reason): n for reason, n in found.dropped.items()},
        _SAME_GROUP: found.n_same_group,
        _LEAKED: found.n_leaked,
        **{f"of the counterexamples {reason}": n for reason, n in found.counterexamples.items()},
    }
    for reason, n in lost.items():
        if n:
            yield f"  left out: {n:,} {reason}"
        if reason == without:
            yield from (f"    {cause}" for cause in found.causes)
    if in_folds:
        yield f"  used: {found.train_words}, each held out in one fold"
    else:
        yield f"  used: {found.train_words} to train on, {found.held_out_words} held out ({with_noun(found.n_groups, 'group')})"
    yield (
        f"  of these: {found.n_truncated:,} truncated, {found.n_contradicting:,} contradicting, {found.n_duplicate:,} duplicate"
    )
    if found.n_cut:
        yield f"  {found.n_cut:,} have a response that was cut off (finish_reason: length), read without an end token"
    if found.made:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in found.made.items())
        yield f"  made of these: {sum(found.made.values()):,} more pairs to train on ({kinds})"
    if found.n_same_prompt:
        yield f"  {found.n_same_prompt:,} held-out {found.noun}s share a prompt with training, with other responses"
    if not found.n_held_out and not in_folds:
        yield f"  no {found.noun}s are held out: there will be no accuracy and no calibration"
    yield from (f"  {note}" for note in found.notes)


def _keys(table: FeedbackTable) -> tuple[Hashes, Hashes]:
    """Digests of sequences, values and head of each item; and of the opposite of each decided pair or ranking of two."""
    own, opposite = array("Q"), array("Q")
    for rows, item in zip(table.rows, table.items, strict=True):
        label = f"{item.values} {item.head}"
        own.append(_hash(f"{rows} {label}"))
        if len(set(item.values)) == 2:
            opposite.append(_hash(f"{rows[::-1]} {label}"))
    return np.array(own, dtype=np.uint64), np.array(opposite, dtype=np.uint64)


def _n_contradicting(table: FeedbackTable) -> int:
    """Number of decided pairs (and rankings of two) with the opposite of another."""
    own, opposite = _keys(table)
    return int(np.isin(opposite, own).sum())


def _n_truncated(table: FeedbackTable) -> int:
    cut_N = [s.truncated for s in table.sequences]
    return sum(any(cut_N[number] for number in rows) for rows in table.rows)
