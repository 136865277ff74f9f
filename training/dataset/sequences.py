"""Encode the conversations of feedback to token sequences, each distinct sequence once.

Nine thousand pairs may compare a thousand texts; equal sequences are encoded, forwarded and cached once. Depends on the
encoder, not on torch. Items that lie on disk make a table whose sequences lie there too.
"""

from __future__ import annotations

import hashlib
import sqlite3
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rewardserve.model.conversation import EmptyResponse, InputTooLong, Sample, SampleError
from rewardserve.model.encoding import Encoded, Encoder
from rewardserve.training.console import progress
from rewardserve.training.dataset.disk_list import DiskList, NumberRows, View, is_lazy, picked
from rewardserve.training.dataset.feedback import Item, Pair, kinds_of, noun, with_noun

Ids = tuple[int, ...]
Rows = tuple[int, ...]
"""Numbers of the sequences of one item, in the order of its samples."""


class PairEncodingError(Exception):
    """Items that the encoder refuses for a reason other than their length or an empty response."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One distinct sequence: its ids, its number of response tokens, and the first sample with it."""

    ids: Ids
    n_response: int
    sample: Sample
    truncated: bool = False
    variables: tuple[float, ...] = ()
    """Values of the variables that the loss reads, in the order of the recipe."""


@dataclass(frozen=True, slots=True)
class FeedbackTable:
    """Items of feedback over distinct sequences: the samples of item `i` are the sequences with the numbers `rows[i]`.

    `dropped` counts, by reason, the items that were left out. `twins`: numbers of a sequence and of one that says the same.
    """

    items: Sequence[Item]
    sequences: Sequence[TokenSequence]
    rows: Sequence[Rows]
    dropped: dict[str, int]
    twins: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of_pairs(
        cls,
        pairs: Sequence[Pair],
        sequences: Sequence[TokenSequence],
        chosen: Sequence[int],
        rejected: Sequence[int],
        dropped: dict[str, int],
    ) -> FeedbackTable:
        """A table of pairs: pair `i` compares `sequences[chosen[i]]` with `sequences[rejected[i]]`."""
        return cls(tuple(pairs), tuple(sequences), tuple(zip(chosen, rejected, strict=True)), dropped)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Items of a table that has pairs alone."""
        return tuple(item for item in self.items if isinstance(item, Pair))

    @property
    def chosen(self) -> Rows:
        """Sequence of the first sample of each item: of a pair, the chosen one."""
        return tuple(rows[0] for rows in self.rows)

    @property
    def rejected(self) -> Rows:
        """Sequence of the last sample of each item: of a pair, the rejected one."""
        return tuple(rows[-1] for rows in self.rows)

    @property
    def n_used(self) -> int:
        """Number of distinct sequences of the items."""
        if isinstance(self.rows, NumberRows):
            return len(np.unique(self.rows.numbers_K))
        return len({number for rows in self.rows for number in rows})

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)


EMPTY = FeedbackTable((), (), (), {})
"""A table without items."""


def encode(items: Sequence[Item], encoder: Encoder, label: str = "pairs") -> FeedbackTable:
    """Encode every distinct sample once. Raise `PairEncodingError` naming the first items the encoder refuses."""
    shelf = (_DiskSequenceIndex if is_lazy(items) else _SequenceIndex)(encoder)
    kept: list[int] = []
    kept_rows: list[Rows] | DiskList[Rows] = DiskList() if is_lazy(items) else []
    dropped: Counter[str] = Counter()
    refused: list[str] = []
    unit = f" {noun(kinds_of(items))}s"
    for number, item in enumerate(progress(items, f"encoding {label}", len(items), unit=unit)):
        try:
            rows = tuple(shelf.place(sample) for sample in item.samples)
        except InputTooLong:
            dropped["too_long"] += 1
        except EmptyResponse:
            dropped["empty"] += 1
        except SampleError as error:
            refused.append(f"{item.id}: {error.message}")
        else:
            if len(set(rows)) < len(rows):
                dropped["same_tokens"] += 1
            else:
                kept.append(number)
                kept_rows.append(rows)
    if refused:
        raise PairEncodingError(
            f"{with_noun(len(refused), noun(kinds_of(items)))} cannot be encoded:\n  " + "\n  ".join(refused[:20])
        )
    return _table(picked(items, kept), kept_rows, shelf.sequences, dict(dropped))


def subset(table: FeedbackTable, keep_I: Sequence[bool], *, renumber: bool = True) -> FeedbackTable:
    """Select items of a table; without `renumber` over the same numbered sequences, so that features keep their rows."""
    if len(keep_I) != len(table):
        raise ValueError(f"{len(keep_I)} decisions for {len(table)} items")
    places = np.flatnonzero(np.asarray(keep_I, dtype=bool))
    items, rows = picked(table.items, places), picked(table.rows, places)
    if renumber:
        return _table(items, rows, table.sequences, table.dropped)
    return replace(table, items=items, rows=NumberRows.of(rows) if is_lazy(rows) else rows)


def joined(first: FeedbackTable, second: FeedbackTable) -> FeedbackTable:
    """The items of both tables over common sequences; the sequences of the first keep their numbers."""
    number = {s.ids: i for i, s in enumerate(first.sequences)}
    new = [s for s in second.sequences if s.ids not in number]
    number |= {s.ids: i for i, s in enumerate(new, start=len(first.sequences))}
    place = [number[s.ids] for s in second.sequences]
    return FeedbackTable(
        items=(*first.items, *second.items),
        sequences=(*first.sequences, *new),
        rows=(*first.rows, *(tuple(place[i] for i in rows) for rows in second.rows)),
        dropped=first.dropped,
    )


class _SequenceIndex:
    """Distinct sequences in the order of their first use."""

    def __init__(self, encoder: Encoder) -> None:
        self.sequences: list[TokenSequence] | DiskList[TokenSequence] = []
        self._encoder = encoder
        self._of_sample: dict[Sample, int | InputTooLong] = {}
        self._of_ids: dict[Ids, int] = {}

    def place(self, sample: Sample) -> int:
        """Number of this sample's sequence. Raise `SampleError`."""
        known = self._of_sample.get(sample)
        if known is None:
            try:
                known = self._put(sample, self._encoder(sample))
            except InputTooLong as error:
                known = error
            self._of_sample[sample] = known
        if isinstance(known, InputTooLong):
            raise known
        return known

    def _put(self, sample: Sample, encoded: Encoded) -> int:
        at = self._of_ids.setdefault(encoded.ids, len(self.sequences))
        if at == len(self.sequences):
            n_response = len(encoded.ids) - encoded.n_prompt
            self.sequences.append(TokenSequence(encoded.ids, n_response, sample, encoded.truncated))
        return at


class _DiskSequenceIndex:
    """The same with sequences and index on disk: samples and ids are known by their digests, in a database that SQLite deletes."""

    def __init__(self, encoder: Encoder) -> None:
        self.sequences: list[TokenSequence] | DiskList[TokenSequence] = DiskList()
        self._encoder = encoder
        self._index = sqlite3.connect("")  # on disk, without a name
        weakref.finalize(self, self._index.close)
        self._index.execute("PRAGMA synchronous = OFF")
        self._index.execute("PRAGMA journal_mode = OFF")
        self._index.execute("CREATE TABLE number_of (digest BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")

    def place(self, sample: Sample) -> int:
        """Number of this sample's sequence. Raise `SampleError`."""
        of_sample = _digest("sample", repr(sample))
        known = self._find(of_sample)
        if known is not None:
            return known
        encoded = self._encoder(sample)
        of_ids = _digest("ids", str(encoded.ids))
        at = self._find(of_ids)
        if at is None:
            at = len(self.sequences)
            n_response = len(encoded.ids) - encoded.n_prompt
            self.sequences.append(TokenSequence(encoded.ids, n_response, sample, encoded.truncated))
            self._index.execute("INSERT INTO number_of VALUES (?, ?)", (of_ids, at))
        self._index.execute("INSERT INTO number_of VALUES (?, ?)", (of_sample, at))
        return at

    def _find(self, digest: bytes) -> int | None:
        found = self._index.execute("SELECT number FROM number_of WHERE digest = ?", (digest,)).fetchone()
        return None if found is None else int(found[0])


def _digest(kind: str, text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, person=kind.encode()).digest()


def _table(
    items: Sequence[Item], rows: Sequence[Rows], sequences: Sequence[TokenSequence], dropped: dict[str, int]
) -> FeedbackTable:
    """Build a table with only the sequences that an item uses, renumbered."""
    if is_lazy(items):
        numbers = NumberRows.of(rows)
        used_K = np.unique(numbers.numbers_K)
        return FeedbackTable(items, View(sequences, used_K), numbers.renumbered(used_K), dropped)
    used = sorted({number for own in rows for number in own})
    new_of = {old: new for new, old in enumerate(used)}
    return FeedbackTable(
        items=items,
        sequences=tuple(sequences[old] for old in used),
        rows=tuple(tuple(new_of[old] for old in own) for own in rows),
        dropped=dropped,
    )
