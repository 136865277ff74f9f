"""Count the rows that were read, lost, held out and used. Every row is counted once; the lines add up.

Pure functions of the results of `data`, `sequences` and `leakage`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from rewardserve.training import data
from rewardserve.training.data import Split
from rewardserve.training.leakage import Overlap
from rewardserve.training.pairs import Pair
from rewardserve.training.sequences import PairTable

REASONS = {
    "too_long": "longer than encoding.max_tokens",
    "empty": "with a response that is empty, or white space alone",
    "same_tokens": "the same tokens on both sides",
}
N_ROWS = "rows"
"""Key of the number of rows among the counts of counterexamples."""

_SAME_GROUP, _LEAKED = "in a group that eval_sources has", "with a response that is held out"


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Numbers of rows. `n_rows` is the sum of the counts up to `n_held_out`; the later ones are those of used pairs.

    `n_contradicting` pairs have an opposite: the same two responses, preferred the other way. `n_duplicate` repeat
    another. `made`: numbers of pairs that augmentation made, by kind, which are in none of the other numbers.
    `counterexamples` counts the rows of a queue that train nothing, by reason.
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
    made: dict[str, int] = field(default_factory=dict)
    counterexamples: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def count_rows(
    split: Split,
    train: PairTable,
    held_out: PairTable,
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
        n_duplicate=sum(len(t) - len(set(_keys(t))) for t in tables),
        n_same_prompt=overlap.n_same_prompt,
        n_groups=len({p.group for p in held_out.pairs}),
        counterexamples={reason: n for reason, n in unused.items() if reason != N_ROWS},
        notes=tuple(f"{r.path}: {note}" for r in split.read for note in r.notes),
    )


def refuse_losses(
    split: Split,
    encoded: PairTable,
    kept: PairTable,
    held_out: PairTable,
    max_dropped: float,
    *,
    counts_held_out: bool = True,
) -> None:
    """Raise `DataError` for a source of which too much was lost, with the counts by reason.

    `encoded` are the training pairs before those with a held-out response were left out, `kept` the ones after.
    `counts_held_out`: whether pairs left out because of held-out ones count as lost; without training they do not.
    """
    used, before = _ids(kept.pairs) | _ids(held_out.pairs), _ids(encoded.pairs)
    made = _ids(split.train) | _ids(split.held_out)
    dropped = ", ".join(REASONS.get(r, r) for r in {**encoded.dropped, **held_out.dropped}) or "dropped"
    for read in split.read:
        lost = Counter(
            _LEAKED if each in before else dropped if each in made else _SAME_GROUP
            for each in _ids(read.pairs)
            if each not in used
        )
        reasons = {r: lost[r] for r in (dropped, *([_SAME_GROUP, _LEAKED] if counts_held_out else []))}
        data.refuse_loss(f"rows of {read.path!r}", read.n_rows, {"make no pair": len(read.bad), **reasons}, max_dropped)
        # With max_pairs, the share is relative to the pairs that were taken.
        data.refuse_loss(f"pairs of {read.path!r}", len(read.pairs), reasons, max_dropped)


def refuse_fold(n_before: int, overlap: Overlap, max_dropped: float) -> None:
    """Raise `DataError` if too many training pairs of a fold have a response that is held out."""
    data.refuse_loss("training pairs of a fold", n_before, {_LEAKED: overlap.n_dropped}, max_dropped)


def _ids(pairs: Iterable[Pair]) -> set[str]:
    return {pair.id for pair in pairs}


def lines(found: RowCounts, *, in_folds: bool = False) -> Iterator[str]:
    """Yield the lines of the summary before training. `in_folds`: every pair is held out later, in its fold."""
    yield f"rows read: {found.n_rows:,}"
    lost = {
        "make no pair": found.n_bad,
        "beyond max_pairs": found.n_spare,
        **{REASONS.get(reason, reason): n for reason, n in found.dropped.items()},
        _SAME_GROUP: found.n_same_group,
        _LEAKED: found.n_leaked,
        **{f"of the counterexamples {reason}": n for reason, n in found.counterexamples.items()},
    }
    for reason, n in lost.items():
        if n:
            yield f"  left out: {n:,} {reason}"
    if in_folds:
        yield f"  used: {found.n_train:,} pairs, each held out in one fold"
    else:
        yield f"  used: {found.n_train:,} pairs to train on, {found.n_held_out:,} held out ({found.n_groups:,} groups)"
    yield (
        f"  of these: {found.n_truncated:,} truncated, {found.n_contradicting:,} contradicting, {found.n_duplicate:,} duplicate"
    )
    if found.made:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in found.made.items())
        yield f"  made of these: {sum(found.made.values()):,} more pairs to train on ({kinds})"
    if found.n_same_prompt:
        yield f"  {found.n_same_prompt:,} held-out pairs share a prompt with training, with other responses"
    if not found.n_held_out and not in_folds:
        yield "  no pairs are held out: there will be no accuracy and no calibration"
    yield from (f"  {note}" for note in found.notes)


def _keys(table: PairTable) -> list[tuple[int, int, str]]:
    return [(c, r, p.head) for c, r, p in zip(table.chosen, table.rejected, table.pairs, strict=True)]


def _n_contradicting(table: PairTable) -> int:
    keys = _keys(table)
    known = set(keys)
    return sum((r, c, head) in known for c, r, head in keys)


def _n_truncated(table: PairTable) -> int:
    cut_N = [s.truncated for s in table.sequences]
    return sum(cut_N[c] or cut_N[r] for c, r in zip(table.chosen, table.rejected, strict=True))
