"""What one row of feedback says: of two responses, of a ranking of several, or of one with a rating or a label.

Every item has samples and one value a sample, of which a higher one is better. Independent of files, columns and tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from rewardserve.model.conversation import Sample

Kind = Literal["pairs", "rankings", "ratings", "labels"]
KINDS: tuple[Kind, ...] = ("pairs", "rankings", "ratings", "labels")
SourceKind = Literal["pairs", "rankings", "ratings", "labels", "steps"]
"""Kind of the rows of a source. A row of labelled `steps` makes a label for each step."""
SOURCE_KINDS: tuple[SourceKind, ...] = (*KINDS, "steps")
NOUNS: dict[SourceKind, str] = {
    "pairs": "pair",
    "rankings": "ranking",
    "ratings": "rating",
    "labels": "label",
    "steps": "label",
}


class Item(Protocol):
    """One label over the samples of a row. `id` is `file:line`; `texts` are the responses alone."""

    @property
    def id(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def head(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def samples(self) -> tuple[Sample, ...]: ...
    @property
    def texts(self) -> tuple[str, ...]: ...
    @property
    def values(self) -> tuple[float, ...]: ...
    @property
    def margin(self) -> float: ...
    @property
    def flip(self) -> float: ...
    @property
    def weight(self) -> float: ...
    @property
    def repeat(self) -> float: ...
    @property
    def made(self) -> str: ...
    @property
    def donor_group(self) -> str | None: ...
    @property
    def paraphrase(self) -> str: ...
    def with_id(self, new: str) -> Item:
        """The same item under another id."""
        ...

    def with_samples(self, samples: Sequence[Sample]) -> Item:
        """The same label over other samples."""
        ...

    def with_weight(self, weight: float) -> Item:
        """The same label with another weight."""
        ...


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt, of which annotators preferred `chosen`; with `tie` they preferred neither.

    `chosen_text` and `rejected_text` are the responses alone, for length baselines. `id` is `file:line`. `made`: the kind of
    augmentation that made the pair from the one with this id; empty: annotators compared it. `donor_group`: the group of a
    pair from which a response was taken. `paraphrase` says the same as the chosen response; empty: none. `flip`: probability
    that the label is wrong. `repeat`: how often an epoch has it.
    """

    id: str
    source: str
    group: str
    head: str
    chosen: Sample
    rejected: Sample
    chosen_text: str
    rejected_text: str
    margin: float = 0.0
    weight: float = 1.0
    made: str = ""
    donor_group: str | None = None
    paraphrase: str = ""
    tie: bool = False
    flip: float = 0.0
    repeat: float = 1.0

    @property
    def kind(self) -> Kind:
        """`pairs`."""
        return "pairs"

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Chosen and rejected."""
        return (self.chosen, self.rejected)

    @property
    def texts(self) -> tuple[str, ...]:
        """The two responses alone."""
        return (self.chosen_text, self.rejected_text)

    @property
    def values(self) -> tuple[float, ...]:
        """1 and 0, or twice 0 for a tie."""
        return (0.0 if self.tie else 1.0, 0.0)

    def reversed(self) -> Pair:
        """The opposite preference."""
        return replace(
            self,
            chosen=self.rejected,
            rejected=self.chosen,
            chosen_text=self.rejected_text,
            rejected_text=self.chosen_text,
        )

    def with_id(self, new: str) -> Pair:
        """The same preference under another id."""
        return replace(self, id=new)

    def with_samples(self, samples: Sequence[Sample]) -> Pair:
        """The same preference between other samples."""
        chosen, rejected = samples
        return replace(self, chosen=chosen, rejected=rejected)

    def with_weight(self, weight: float) -> Pair:
        """The same preference with another weight."""
        return replace(self, weight=weight)


@dataclass(frozen=True, slots=True)
class Graded:
    """Responses with a value each: a ranking of several (`values` are minus the ranks), a rating, or a label (1 good, 0 bad).

    `scale`: whether ratings are compared within their source, or within their prompt only.
    """

    id: str
    source: str
    group: str
    head: str
    kind: Kind
    samples: tuple[Sample, ...]
    texts: tuple[str, ...]
    values: tuple[float, ...]
    weight: float = 1.0
    flip: float = 0.0
    scale: Literal["source", "prompt"] = "source"
    repeat: float = 1.0

    @property
    def margin(self) -> float:
        """0: only pairs have margins."""
        return 0.0

    @property
    def made(self) -> str:
        """Empty: only pairs are made."""
        return ""

    @property
    def donor_group(self) -> str | None:
        """None: only pairs are made."""
        return None

    @property
    def paraphrase(self) -> str:
        """Empty: only pairs have paraphrases."""
        return ""

    def with_id(self, new: str) -> Graded:
        """The same values under another id."""
        return replace(self, id=new)

    def with_samples(self, samples: Sequence[Sample]) -> Graded:
        """The same values over other samples."""
        return replace(self, samples=tuple(samples))

    def with_weight(self, weight: float) -> Graded:
        """The same values with another weight."""
        return replace(self, weight=weight)


def kinds_of(items: Iterable[Item]) -> tuple[Kind, ...]:
    """Kinds of these items, in the order of `KINDS`."""
    found = {item.kind for item in items}
    return tuple(kind for kind in KINDS if kind in found)


def noun(kinds: Sequence[SourceKind]) -> str:
    """Noun for one item of these kinds: `pair`, `rating`, ...; `item` for several kinds."""
    return NOUNS[kinds[0]] if len(kinds) == 1 else "item" if kinds else "pair"


def counted(items: Sequence[Item]) -> str:
    """Number of items by kind, in words: `1,200 pairs and 300 ratings`."""
    numbers = {kind: sum(item.kind == kind for item in items) for kind in kinds_of(items)}
    return " and ".join(with_noun(n, NOUNS[kind]) for kind, n in numbers.items()) or "0 pairs"


def with_noun(n: int, one: str) -> str:
    """A number with its noun in the singular or plural."""
    return f"{n:,} {one}{'s' * (n != 1)}"


def n_ties(items: Iterable[Item]) -> int:
    """Number of pairs that are ties."""
    return sum(item.kind == "pairs" and item.values[0] == item.values[1] for item in items)
