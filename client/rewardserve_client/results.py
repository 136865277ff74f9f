"""Results of a call: a record for every sample, and their common properties. Standard library only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MAX_SHOWN = 4

UNAVAILABLE = "unavailable"
"""Error code of a sample that no server scored in time. All other codes are the server's."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Error of one sample. `code` is stable."""

    code: str
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Model that made a result. `version` counts the models that one server process has loaded: it differs between replicas."""

    model: str
    version: int
    contract: str
    calibration: str | None
    pipeline: str

    @property
    def meaning(self) -> tuple[str, str, str | None, str]:
        """Fields that must be equal for two rewards to be comparable."""
        return self.model, self.contract, self.calibration, self.pipeline


@dataclass(frozen=True, slots=True)
class Result:
    """Result of one sample. Either `reward` or `error` is set, never both."""

    id: str
    reward: float | None = None
    raw: float | None = None
    normalized: float | None = None
    heads: Mapping[str, float] | None = None
    stages: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    tokens: int | None = None
    truncated: bool = False
    missing_end: bool = False
    cached: bool = False
    error: Failure | None = None
    identity: ModelIdentity | None = None

    @property
    def capped(self) -> bool:
        """Whether a cap of the server limited the reward."""
        return any("capped" in note for note in self.notes)


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """Result of one comparison. `winner` is None inside the tie margin, and where there is an error."""

    id: str
    ranking: tuple[int, ...] | None = None
    winner: int | None = None
    raw: tuple[float, ...] | None = None
    probabilities: tuple[tuple[float, ...], ...] | None = None
    margin: float | None = None
    error: Failure | None = None
    identity: ModelIdentity | None = None


@dataclass(frozen=True, slots=True)
class ApprovalResult:
    """Approvals of the queries of one group; None for a query without one, whose reason is in `errors`.

    `error` is the first of these, or the reason why the group has no results. `repeats_taken` are the indices of queries that
    equal a response taken.
    """

    id: str
    approvals: tuple[float | None, ...] = ()
    errors: tuple[Failure | None, ...] = ()
    repeats_taken: tuple[int, ...] = ()
    snapshot: str | None = None
    error: Failure | None = None
    identity: ModelIdentity | None = None

    @property
    def advantages(self) -> tuple[float | None, ...]:
        """Each approval above the mean of the others of its group: the weights of the gradients of the queries.

        None for a query without an approval, and where no other query has one.
        """
        known = [each for each in self.approvals if each is not None]
        total, n_others = sum(known), len(known) - 1
        return tuple(
            None if each is None or not n_others else each - (total - each) / n_others for each in self.approvals
        )


@dataclass(frozen=True, slots=True, repr=False)
class CallResults:
    """Results of one call. `identities` lists the models in the order of first appearance."""

    results: tuple[Result, ...] | tuple[ComparisonResult, ...] | tuple[ApprovalResult, ...]

    def __repr__(self) -> str:
        """Number of results, number of failures by code, and the model, without the results themselves."""
        codes = Counter(r.error.code for r in self.results if r.error is not None)
        failed = ", ".join(f"{code} {n}" for code, n in codes.most_common(_MAX_SHOWN))
        model = self.model.model if self.model is not None else None
        shown = [f"{len(self.results)} results", *self._shown(), f"failed: {failed or 'none'}", f"model={model!r}"]
        return f"<{type(self).__name__}: {', '.join(shown)}>"

    def _shown(self) -> list[str]:
        return []

    @property
    def identities(self) -> tuple[ModelIdentity, ...]:
        """Models that made these results."""
        return tuple(dict.fromkeys(r.identity for r in self.results if r.identity is not None))

    @property
    def model(self) -> ModelIdentity | None:
        """Model of the first result; None if there is no result with a model."""
        return next(iter(self.identities), None)

    @property
    def is_mixed(self) -> bool:
        """Whether results of different models stand side by side."""
        return len({identity.meaning for identity in self.identities}) > 1


@dataclass(frozen=True, slots=True, repr=False)
class Scores(CallResults):
    """Scores of one call: one result a sample, in the order given."""

    results: tuple[Result, ...]

    @property
    def rewards(self) -> list[float | None]:
        """Rewards in the order given; None for a sample that could not be scored."""
        return [r.reward for r in self.results]

    def _shown(self) -> list[str]:
        first = ", ".join("None" if r.reward is None else f"{r.reward:.4g}" for r in self.results[:_MAX_SHOWN])
        return [f"rewards [{first}{', ...' if len(self.results) > _MAX_SHOWN else ''}]"]

    @property
    def failed(self) -> tuple[Result, ...]:
        """Results without a reward."""
        return tuple(r for r in self.results if r.error is not None)


@dataclass(frozen=True, slots=True, repr=False)
class Comparisons(CallResults):
    """Rankings of one call: one result a comparison, in the order given."""

    results: tuple[ComparisonResult, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Approvals(CallResults):
    """Approvals of one call: one result a group, in the order given."""

    results: tuple[ApprovalResult, ...]

    @property
    def approvals(self) -> list[tuple[float | None, ...]]:
        """The approvals of the queries of each group."""
        return [r.approvals for r in self.results]

    @property
    def snapshots(self) -> tuple[str, ...]:
        """Snapshots that approved."""
        return tuple(dict.fromkeys(r.snapshot for r in self.results if r.snapshot is not None))

    @property
    def repeated_share(self) -> float:
        """Share of the queries that equal a response taken. Near 1, the queries are not independent draws."""
        n = sum(len(r.approvals) for r in self.results)
        return sum(len(r.repeats_taken) for r in self.results) / n if n else 0.0
