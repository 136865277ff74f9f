"""Sums over the samples of a run. The sums of several replicas, added up, are the sums over all their samples.

No entry ever falls, so each is exported as a counter; a signed number has two entries, `_positive` and `_negative`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from operator import add

from rewardserve.model.traits import TEXT_TRAITS, TOKEN_TRAITS, TRAITS

_SIGNED = ("score", "audit", "audited_score", "distance")
_WITH_SQUARES = ("score", "spread", "distance", "id_reuse", "duplicate_across_prompts", *TRAITS)
CLUSTERED = (
    "score", "spread", "distance", "saturated", "capped", "duplicate_within_prompt", "duplicate_across_prompts", "probing", *TRAITS
)  # fmt: skip
"""Numbers whose standard error is known: responses to one prompt are alike, so the prompts are the independent units."""

ENTRIES: tuple[str, ...] = (
    "samples", "prompts", "responses", "texts", "spreads", "distances", "audited", "groups", "flat_groups", "saturated", "capped",
    "duplicate_within_prompt", "duplicate_across_prompts", "probing", "ids", "id_reuse", "honeypots", "honeypot_hits",
    *(f"{name}_{side}" for name in _SIGNED for side in ("positive", "negative")), "spread", *TRAITS,
    *(f"{name}_squared" for name in _WITH_SQUARES), *(f"{name}_clustered" for name in CLUSTERED), "audit_gap_clustered",
)  # fmt: skip
"""`prompts` are the different prompts of each window. `responses` are samples of which it is known where the response begins,
`texts` those whose text is. `duplicate_within_prompt` are texts that the run sent before for the same prompt,
`duplicate_across_prompts` those that it sent for another one in the same window or the one before, `probing` those that it sent
very often for one prompt. `ids` are ids of samples, retries left out,
`id_reuse` those of them that stood for another sample before. `flat_groups` are groups of responses to one prompt that all have
the same reward. `honeypot_hits` are responses to planted prompts (`honeypots`) that do what no honest response does. `_clustered`
are the squares of (sum - mean * number) of each prompt of a window, times prompts / (prompts - 1): their root over the number of
samples is the standard error of a mean (Cochran, Sampling Techniques, 1977, section 9A.2). `audit_gap` is the score less the
judge's, of audited samples."""

_AT = {name: i for i, name in enumerate(ENTRIES)}
_CLUSTERED_AT = [_AT[f"{name}_clustered"] for name in CLUSTERED]
_AUDITED_AT = [
    _AT["audited"],
    *(_AT[f"{name}_{side}"] for name in ("audit", "audited_score") for side in ("positive", "negative")),
]
_COUNT_OF = {
    **dict.fromkeys(("score", "saturated", "capped"), "samples"),
    **dict.fromkeys(TOKEN_TRAITS, "responses"),
    **dict.fromkeys((*TEXT_TRAITS, "duplicate_within_prompt", "duplicate_across_prompts", "probing"), "texts"),
    **dict.fromkeys(("audit", "audited_score"), "audited"),
    "spread": "spreads",
    "distance": "distances",
    "flat_groups": "groups",
    "id_reuse": "ids",
    "honeypot_hits": "honeypots",
}


def count_of(name: str) -> str:
    """The entry that counts the samples with this number."""
    return _COUNT_OF[name]


def is_signed(name: str) -> bool:
    """Whether a number may be negative, and so has two entries."""
    return name in _SIGNED


COMPONENT_ENTRIES = ("positive", "negative", "squared")
"""Entries of each component of a reward that has several: its contribution by sign, and the squares."""


class RunningSums:
    """One number for each of `ENTRIES`, then for each component of a reward those of `COMPONENT_ENTRIES`."""

    __slots__ = ("sums",)

    def __init__(self, sums: Iterable[float] | None = None, *, n_components: int = 0) -> None:
        n = len(ENTRIES) + len(COMPONENT_ENTRIES) * n_components
        self.sums: list[float] = [0.0] * n if sums is None else [*sums]

    def __getitem__(self, name: str) -> float:
        """An entry."""
        return self.sums[_AT[name]]

    def __add__(self, other: RunningSums) -> RunningSums:
        """Add the sums of two sets of samples."""
        return RunningSums(map(add, self.sums, other.sums))

    def smoothed(self, newest: RunningSums, keep: float, keep_audited: float) -> RunningSums:
        """These sums with the weight `keep`, and the newest ones. Squared errors have the squares of the weights."""
        sums = [keep * old + new for old, new in zip(self.sums, newest.sums, strict=True)]
        for at in _CLUSTERED_AT:
            sums[at] = keep * keep * self.sums[at] + newest.sums[at]
        for at in _AUDITED_AT:
            sums[at] = keep_audited * self.sums[at] + newest.sums[at]
        at = _AT["audit_gap_clustered"]
        sums[at] = keep_audited * keep_audited * self.sums[at] + newest.sums[at]
        return RunningSums(sums)

    def keep_audited(self, newest: RunningSums, keep: float, min_audited: int) -> float:
        """The weight for the sums of audited samples: `keep`, or less where earlier windows had more audits.

        The newest window has at least the share 1 - `keep` of the audits then, as of the samples; one with fewer than `min_audited`
        as many as if it had so many, and one without any changes nothing.
        """
        n, most = self["audited"] * (1.0 - keep), max(newest["audited"], min_audited)
        return keep if not newest["audited"] or n <= most else keep * most / n

    def add(self, name: str, amount: float = 1.0) -> None:
        """Add to one entry."""
        self.sums[_AT[name]] += amount

    def set(self, name: str, amount: float) -> None:
        """Replace one entry."""
        self.sums[_AT[name]] = float(amount)

    def add_signed(self, name: str, amount: float) -> None:
        """Add to the entry for its side."""
        self.sums[_AT[f"{name}_positive" if amount >= 0 else f"{name}_negative"]] += abs(amount)

    def add_squared(self, name: str, amount: float) -> None:
        """Add a number and its square."""
        self.sums[_AT[name]] += amount
        self.sums[_AT[f"{name}_squared"]] += amount * amount

    def with_components(self, n_components: int) -> RunningSums:
        """Return the same entries, with zeros for the components of another reward."""
        return RunningSums(self.sums[: len(ENTRIES)] + [0.0] * (len(COMPONENT_ENTRIES) * n_components))

    @property
    def n_components(self) -> int:
        """Number of components of the reward."""
        return (len(self.sums) - len(ENTRIES)) // len(COMPONENT_ENTRIES)

    def add_components(self, components: Sequence[float]) -> None:
        """Add the contributions of the components of one reward."""
        at = len(ENTRIES)
        for component in components:
            self.sums[at if component >= 0 else at + 1] += abs(component)
            self.sums[at + 2] += component * component
            at += len(COMPONENT_ENTRIES)

    def components(self) -> list[tuple[float, float]]:
        """Mean and variance of each component over all samples; empty without samples."""
        n, at = self["samples"], len(ENTRIES)
        triples = [self.sums[i : i + len(COMPONENT_ENTRIES)] for i in range(at, len(self.sums), len(COMPONENT_ENTRIES))]
        means = [((positive - negative) / n, squared / n) for positive, negative, squared in triples] if n else []
        return [(mean, max(0.0, square - mean * mean)) for mean, square in means]

    def n_of(self, name: str) -> float:
        """Number of samples with this number."""
        return self[count_of(name)]

    def mean(self, name: str) -> float | None:
        """Mean over the samples with this number; None without any."""
        n = self.n_of(name)
        total = self[f"{name}_positive"] - self[f"{name}_negative"] if is_signed(name) else self[name]
        return total / n if n else None

    def error(self, name: str) -> float:
        """Standard error of the mean of a number, clustered by prompt; 0 where it is not known, and without any sample."""
        n = self.n_of(name)
        return sqrt(self[f"{name}_clustered"]) / n if n and name in CLUSTERED else 0.0

    @property
    def audit_gap(self) -> float | None:
        """Mean score less the mean of the audit judge's, of the samples that both scored; None without any."""
        score, audit = self.mean("audited_score"), self.mean("audit")
        return None if score is None or audit is None else score - audit

    @property
    def audit_gap_error(self) -> float:
        """Standard error of that, clustered by prompt."""
        return sqrt(self["audit_gap_clustered"]) / max(1.0, self["audited"])

    def std(self, name: str) -> float | None:
        """Standard deviation over the samples with this number; None without any."""
        mean = self.mean(name)
        if mean is None:
            return None
        return sqrt(max(0.0, self[f"{name}_squared"] / self.n_of(name) - mean * mean))
