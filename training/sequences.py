"""Encode pairs of conversations to pairs of token sequences, each distinct sequence once.

Nine thousand pairs may compare a thousand texts; equal sequences are encoded, forwarded and cached once. Depends on the
encoder, not on torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rewardserve.model.conversation import EmptyResponse, InputTooLong, Sample, SampleError
from rewardserve.model.encoding import Encoded, Encoder
from rewardserve.training.console import progress
from rewardserve.training.pairs import Pair

Ids = tuple[int, ...]


class PairEncodingError(Exception):
    """Pairs that the encoder refuses for a reason other than their length or an empty response."""


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
class PairTable:
    """Pairs over distinct sequences: pair `i` compares `sequences[chosen[i]]` with `sequences[rejected[i]]`.

    `dropped` counts, by reason, the pairs that were left out. `twins`: numbers of a sequence and of one that says the same.
    """

    pairs: tuple[Pair, ...]
    sequences: tuple[TokenSequence, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    dropped: dict[str, int]
    twins: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)


EMPTY = PairTable((), (), (), (), {})
"""A table without pairs."""


def encode(pairs: Sequence[Pair], encoder: Encoder, label: str = "pairs") -> PairTable:
    """Encode every distinct sample once. Raise `PairEncodingError` naming the first pairs the encoder refuses."""
    shelf = _SequenceIndex(encoder)
    kept: list[tuple[Pair, int, int]] = []
    dropped: Counter[str] = Counter()
    refused: list[str] = []
    for pair in progress(pairs, f"encoding {label}", len(pairs), unit=" pairs"):
        try:
            chosen, rejected = shelf.place(pair.chosen), shelf.place(pair.rejected)
        except InputTooLong:
            dropped["too_long"] += 1
        except EmptyResponse:
            dropped["empty"] += 1
        except SampleError as error:
            refused.append(f"{pair.id}: {error.message}")
        else:
            if chosen == rejected:
                dropped["same_tokens"] += 1
            else:
                kept.append((pair, chosen, rejected))
    if refused:
        raise PairEncodingError(f"{len(refused)} pairs cannot be encoded:\n  " + "\n  ".join(refused[:20]))
    return _table(kept, shelf.sequences, dict(dropped))


def subset(table: PairTable, keep_P: Sequence[bool], *, renumber: bool = True) -> PairTable:
    """Select pairs of a table; without `renumber` over the same numbered sequences, so that features keep their rows."""
    kept = [
        (pair, c, r) for pair, c, r, keep in zip(table.pairs, table.chosen, table.rejected, keep_P, strict=True) if keep
    ]
    if renumber:
        return _table(kept, table.sequences, table.dropped)
    return replace(
        table,
        pairs=tuple(p for p, _, _ in kept),
        chosen=tuple(c for _, c, _ in kept),
        rejected=tuple(r for _, _, r in kept),
    )


def joined(first: PairTable, second: PairTable) -> PairTable:
    """The pairs of both tables over common sequences; the sequences of the first keep their numbers."""
    number = {s.ids: i for i, s in enumerate(first.sequences)}
    new = [s for s in second.sequences if s.ids not in number]
    number |= {s.ids: i for i, s in enumerate(new, start=len(first.sequences))}
    place = [number[s.ids] for s in second.sequences]
    return PairTable(
        pairs=(*first.pairs, *second.pairs),
        sequences=(*first.sequences, *new),
        chosen=(*first.chosen, *(place[i] for i in second.chosen)),
        rejected=(*first.rejected, *(place[i] for i in second.rejected)),
        dropped=first.dropped,
    )


class _SequenceIndex:
    """Distinct sequences in the order of their first use."""

    def __init__(self, encoder: Encoder) -> None:
        self.sequences: list[TokenSequence] = []
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


def _table(
    kept: Sequence[tuple[Pair, int, int]], sequences: Sequence[TokenSequence], dropped: dict[str, int]
) -> PairTable:
    """Build a table with only the sequences that a kept pair uses, renumbered."""
    used = sorted({s for _, c, r in kept for s in (c, r)})
    number = {old: new for new, old in enumerate(used)}
    return PairTable(
        pairs=tuple(p for p, _, _ in kept),
        sequences=tuple(sequences[old] for old in used),
        chosen=tuple(number[c] for _, c, _ in kept),
        rejected=tuple(number[r] for _, _, r in kept),
        dropped=dropped,
    )
