"""What became of the rows: read, lost, held out, used. Every row is counted once; the lines add up.

Pure counts of what `data`, `sequences` and `leakage` have said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from training import data
from training.data import Split
from training.leakage import Overlap
from training.sequences import PairTable

REASONS = {
    "too_long": "longer than encoding.max_tokens",
    "empty": "with a response that is empty, or white space alone",
    "same_tokens": "the same tokens on both sides",
}


@dataclass(frozen=True, slots=True)
class Account:
    """`n_rows` is the sum of all that follows, up to `n_held_out`. The rest counts among the pairs that are used.

    `n_contradicting` pairs have an opposite: the same two responses, preferred the other way. `n_duplicate` repeat another.
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
    notes: tuple[str, ...] = ()


def account(split: Split, train: PairTable, held_out: PairTable, overlap: Overlap) -> Account:
    """Count. `train` is what the overlap has left."""
    tables = (train, held_out)
    return Account(
        n_rows=split.n_rows,
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
        notes=tuple(f"{r.path}: {note}" for r in split.read for note in r.notes),
    )


def refuse_losses(split: Split, train: PairTable, held_out: PairTable, max_dropped: float) -> None:
    """Raise `DataError` for a source of which too much was lost, rows and pairs together."""
    kept = Counter(data.origin(p) for table in (train, held_out) for p in table.pairs)
    made = Counter(data.origin(p) for p in (*split.train, *split.held_out))
    bad = Counter(b.file for b in split.bad)
    rows: Counter[str] = Counter()
    for read in split.read:
        places = {data.origin(p) for p in read.pairs} | {b.file for b in read.bad}
        rows.update(dict.fromkeys(places, read.n_rows))
    reasons = ", ".join(REASONS.get(r, r) for r in {**train.dropped, **held_out.dropped})
    for place, n_rows in rows.items():
        lost = {"make no pair": bad[place], reasons or "dropped": made[place] - kept[place]}
        data.refuse_loss(place, n_rows, lost, max_dropped)


def lines(found: Account) -> Iterator[str]:
    """The summary before training, a line a fact."""
    yield f"rows read: {found.n_rows:,}"
    lost = {
        "make no pair": found.n_bad,
        "beyond max_pairs": found.n_spare,
        **{REASONS.get(reason, reason): n for reason, n in found.dropped.items()},
        "in a group that eval_sources has": found.n_same_group,
        "with a response that is held out": found.n_leaked,
    }
    for reason, n in lost.items():
        if n:
            yield f"  left out: {n:,} {reason}"
    yield f"  used: {found.n_train:,} pairs to train on, {found.n_held_out:,} held out ({found.n_groups:,} groups)"
    yield (
        f"  of these: {found.n_truncated:,} truncated, {found.n_contradicting:,} contradicting, {found.n_duplicate:,} duplicate"
    )
    if found.n_same_prompt:
        yield f"  {found.n_same_prompt:,} held-out pairs answer a prompt that training has too, with other responses"
    if not found.n_held_out:
        yield "  nothing is held out: there will be no accuracy and no calibration"
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
